"""The two published SSIM protocols and mask-SSIM against plain loops over the formula."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posereid.errors import InputError
from posereid.evaluation.published_ssim import gfla_ssim, mask_ssim, patn_ssim


def naive_ssim(first, second, window, data_range, sample):
    """Wang et al. 2004, equation 13, over every window that lies inside two (H, W) channels, averaged."""
    size = len(window)
    pixels = size**2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    scores = []
    for y in range(first.shape[0] - size + 1):
        for x in range(first.shape[1] - size + 1):
            a, b = first[y : y + size, x : x + size], second[y : y + size, x : x + size]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            unbiased = pixels / (pixels - 1) if sample else 1
            variance_a = unbiased * (window * (a - mean_a) ** 2).sum()
            variance_b = unbiased * (window * (b - mean_b) ** 2).sum()
            covariance = unbiased * (window * (a - mean_a) * (b - mean_b)).sum()
            scores.append(
                ((2 * mean_a * mean_b + c1) * (2 * covariance + c2))
                / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
            )
    return np.mean(scores)


def gaussian_window():
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    return window / window.sum()


def naive_patn(generated, target):
    data_range = float(generated.max()) - float(generated.min())
    channels = zip(generated.astype(float), target.astype(float), strict=True)
    return np.mean([naive_ssim(a, b, gaussian_window(), data_range, sample=False) for a, b in channels])


def random_pictures(height, width, seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    noise = torch.randint(-60, 61, target.shape, generator=generator)
    # No full range, or a range taken from the picture would not show.
    return (target // 2 + noise).clamp(20, 180).to(torch.uint8), target.to(torch.uint8)


def test_patn_takes_its_range_from_the_generated_picture():
    generated, target = random_pictures(20, 14)
    wanted = [naive_patn(a, b) for a, b in zip(generated.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(patn_ssim(generated, target), wanted, atol=1e-10)
    assert not np.allclose(patn_ssim(generated, target), patn_ssim(target, generated), atol=1e-4)


def test_gfla_has_a_uniform_window_of_51_and_range_1():
    generated, target = random_pictures(54, 52)
    window = np.full((51, 51), 1 / 51**2)
    wanted = [
        np.mean([naive_ssim(c / 255, d / 255, window, 1, sample=True) for c, d in zip(a, b, strict=True)])
        for a, b in zip(generated.numpy(), target.numpy(), strict=True)
    ]
    np.testing.assert_allclose(gfla_ssim(generated, target), wanted, atol=1e-10)


def test_mask_ssim_is_of_whole_pictures_that_are_black_outside():
    generated, target = random_pictures(20, 14)
    mask = torch.zeros(2, 20, 14, dtype=torch.bool)
    mask[0, 5:15, 3:9] = True
    inside = mask[0].numpy()
    wanted = naive_patn(generated[0].numpy() * inside, target[0].numpy() * inside)
    found = mask_ssim(generated, target, mask)
    assert found[0] == pytest.approx(wanted, abs=1e-10)
    assert np.isnan(found[1])
    assert found[0] > patn_ssim(generated, target)[0]


@given(st.integers(0, 10**6), st.integers(11, 24), st.integers(11, 24))
def test_equal_pictures_score_one_and_others_less(seed, height, width):
    generated, target = random_pictures(height, width, seed)
    assert patn_ssim(target, target) == pytest.approx([1, 1])
    assert (np.abs(patn_ssim(generated, target)) < 1).all()


def test_a_plain_picture_has_no_patn_score():
    _, target = random_pictures(12, 12)
    assert np.isnan(patn_ssim(torch.full_like(target, 127), target)).all()


@pytest.mark.parametrize(
    ("score", "generated", "target", "message"),
    [
        (patn_ssim, (1, 3, 10, 12), (1, 3, 10, 12), "11 × 11"),
        (gfla_ssim, (1, 3, 64, 32), (1, 3, 64, 32), "64 × 32 pixels are smaller .* 51 × 51"),
        (patn_ssim, (1, 3, 12, 12), (1, 3, 12, 13), "two equal shapes"),
        (gfla_ssim, (3, 60, 60), (3, 60, 60), "two equal shapes"),
    ],
)
def test_wrong_pictures_are_named(score, generated, target, message):
    with pytest.raises(InputError, match=message):
        score(torch.zeros(generated, dtype=torch.uint8), torch.zeros(target, dtype=torch.uint8))


def test_a_mask_of_another_size_is_named():
    pictures = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(InputError, match="mask is"):
        mask_ssim(pictures, pictures, torch.ones(1, 12, 11, dtype=torch.bool))
