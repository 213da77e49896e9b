"""SSIM against a plain loop over the formula, masks drawn from joints, and the trivial answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posereid.errors import InputError
from posereid.evaluation.image_quality import (
    PSNR_CAP,
    TrivialAnswers,
    grey_background,
    pose_mask,
    signal_to_noise,
    structural_similarity,
)
from posereid.pose.joints import JOINT_COUNT, joint_index


def naive_ssim_map(first, second):
    """Wang et al. 2004, equation 13, window by window, for two (H, W) channels of range 2."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    first_padded, second_padded = np.pad(first, 5, "reflect"), np.pad(second, 5, "reflect")
    answer = np.empty_like(first)
    for y in range(first.shape[0]):
        for x in range(first.shape[1]):
            a, b = first_padded[y : y + 11, x : x + 11], second_padded[y : y + 11, x : x + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a = (window * (a - mean_a) ** 2).sum()
            variance_b = (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            answer[y, x] = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
                (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
            )
    return answer


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 20, 12, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(2, 3, 20, 12, generator=generator, dtype=torch.float64)
    return (target + 0.2 * noise).clamp(-1, 1), target


def test_agrees_with_the_formula(pictures):
    generated, target = pictures
    maps = np.array(
        [
            [naive_ssim_map(a, b) for a, b in zip(x, y, strict=True)]
            for x, y in zip(generated.numpy(), target.numpy(), strict=True)
        ]
    )
    np.testing.assert_allclose(structural_similarity(generated, target), maps.mean((1, 2, 3)), atol=1e-6)
    mask = torch.zeros(2, 20, 12, dtype=torch.bool)
    mask[0, :3, :] = True  # on the border, where a shifted or cropped map would show
    mask[1, 7:15, 4:9] = True
    wanted = [maps[index].mean(0)[mask[index].numpy()].mean() for index in range(2)]
    np.testing.assert_allclose(structural_similarity(generated, target, mask), wanted, atol=1e-6)


def test_equal_pictures_score_one_and_range_does_not_depend_on_them(pictures):
    generated, target = pictures
    assert structural_similarity(target, target).tolist() == pytest.approx([1, 1])
    # A range taken from the pictures would make this one equal to the unscaled one.
    halved = structural_similarity(generated / 2, target / 2)
    assert not torch.allclose(halved, structural_similarity(generated, target), atol=1e-3)


def test_one_pair_does_not_depend_on_its_batch(pictures):
    generated, target = pictures
    together = structural_similarity(generated, target)
    alone = torch.cat([structural_similarity(generated[i : i + 1], target[i : i + 1]) for i in range(2)])
    assert torch.equal(together, alone)


def test_half_precision_under_autocast_is_computed_in_full(pictures):
    generated, target = (picture.to(torch.bfloat16) for picture in pictures)
    with torch.autocast("cpu", torch.bfloat16):
        got = structural_similarity(generated, target)
    assert torch.equal(got, structural_similarity(generated.float(), target.float()))
    assert got.dtype == torch.float32


def test_full_and_empty_masks(pictures):
    full = torch.ones(2, 20, 12, dtype=torch.bool)
    torch.testing.assert_close(structural_similarity(*pictures, full), structural_similarity(*pictures))
    assert structural_similarity(*pictures, ~full).isnan().all()


@pytest.mark.parametrize(
    ("generated", "target", "mask", "message"),
    [
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), None, "two equal shapes"),
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), None, "two equal shapes"),
        (torch.zeros(1, 3, 8, 5), torch.zeros(1, 3, 8, 5), None, "too small for SSIM"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8), "mask is"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 9).bool(), "mask is"),
    ],
)
def test_wrong_pictures_are_named(generated, target, mask, message):
    with pytest.raises(InputError, match=message):
        structural_similarity(generated, target, mask)


def test_noise_agrees_with_the_formula(pictures):
    generated, target = pictures
    mask = torch.zeros(2, 20, 12, dtype=torch.bool)
    mask[0, 3:9, 2:7] = True
    for number, (a, b) in enumerate(zip(generated.numpy(), target.numpy(), strict=True)):
        errors = [(a[c, y, x] - b[c, y, x]) ** 2 for c in range(3) for y in range(20) for x in range(12)]
        wanted = 10 * np.log10(2**2 / np.mean(errors))
        assert signal_to_noise(generated, target)[number] == pytest.approx(wanted, rel=1e-6)
    inside = [
        (generated[0, c, y, x] - target[0, c, y, x]) ** 2 for c in range(3) for y in range(3, 9) for x in range(2, 7)
    ]
    found = signal_to_noise(generated, target, mask)
    assert found[0] == pytest.approx(10 * np.log10(2**2 / np.mean(inside)), rel=1e-6)
    assert found[1].isnan()


@given(st.integers(1, 255))
def test_noise_is_the_same_in_pixels(step):
    plain = torch.zeros(1, 3, 4, 4)
    other = plain + step / 127.5
    assert signal_to_noise(plain, other).item() == pytest.approx(20 * np.log10(255 / step), rel=1e-5, abs=1e-5)


def test_equal_pictures_are_capped(pictures):
    _, target = pictures
    assert signal_to_noise(target, target).tolist() == [PSNR_CAP, PSNR_CAP]
    with pytest.raises(InputError, match="two equal shapes"):
        signal_to_noise(target, target[:1])


def test_the_background_turns_grey(pictures):
    generated, _ = pictures
    mask = torch.zeros(2, 20, 12, dtype=torch.bool)
    mask[:, 3:9] = True
    grey = grey_background(generated, mask)
    assert torch.equal(grey[:, :, 3:9], generated[:, :, 3:9])
    assert not grey[:, :, 9:].any()
    assert grey.dtype == generated.dtype


def standing_person():
    """Joints of a frontal person in a 128 × 64 crop."""
    places = {
        "nose": (32, 16), "neck": (32, 28), "right_shoulder": (22, 30), "right_elbow": (18, 46),
        "right_wrist": (17, 60), "left_shoulder": (42, 30), "left_elbow": (46, 46), "left_wrist": (47, 60),
        "right_hip": (26, 64), "right_knee": (26, 90), "right_ankle": (26, 116), "left_hip": (38, 64),
        "left_knee": (38, 90), "left_ankle": (38, 116), "right_eye": (30, 14), "left_eye": (34, 14),
        "right_ear": (27, 15), "left_ear": (37, 15),
    }  # fmt: skip
    keypoints = torch.zeros(1, JOINT_COUNT, 2)
    for name, place in places.items():
        keypoints[0, joint_index(name)] = torch.tensor(place, dtype=torch.float32)
    return keypoints, torch.ones(1, JOINT_COUNT, dtype=torch.bool)


def test_mask_covers_the_person_and_leaves_the_corners():
    keypoints, present = standing_person()
    mask = pose_mask(keypoints, present, 128, 64)[0]
    for x, y in keypoints[0].long().tolist():
        assert mask[y, x]
    assert mask[48, 32]  # the belly, far from every limb's middle line
    assert not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert not mask[110, 32]  # between the shins
    assert 0.2 < mask.float().mean() < 0.45


def test_mask_scales_with_the_crop_and_mirrors_with_the_person():
    keypoints, present = standing_person()
    mask = pose_mask(keypoints, present, 128, 64)
    small = pose_mask((keypoints + 0.5) / 2 - 0.5, present, 64, 32)
    reduced = torch.nn.functional.avg_pool2d(mask.float()[:, None], 2)[:, 0]
    certain = (reduced == 0) | (reduced == 1)
    assert torch.equal(small[certain], reduced[certain] == 1)
    mirrored = keypoints.clone()
    mirrored[..., 0] = 63 - mirrored[..., 0]
    assert torch.equal(pose_mask(mirrored, present, 128, 64), mask.flip(-1))


def test_absent_joints_draw_nothing():
    keypoints, present = standing_person()
    nobody = pose_mask(keypoints, torch.zeros_like(present), 128, 64)
    assert not nobody.any()
    only_wrist = torch.zeros_like(present)
    only_wrist[0, joint_index("left_wrist")] = True
    mask = pose_mask(keypoints, only_wrist, 128, 64)[0]
    assert mask[60, 47]
    assert int(mask.sum()) == pytest.approx(np.pi * (0.045 * 128) ** 2, rel=0.1)


def test_joints_on_one_spot_do_not_fill_the_crop():
    keypoints = torch.full((1, JOINT_COUNT, 2), 20.0)
    mask = pose_mask(keypoints, torch.ones(1, JOINT_COUNT, dtype=torch.bool), 128, 64)
    assert int(mask.sum()) == pytest.approx(np.pi * (0.075 * 128) ** 2, rel=0.1)
    keypoints[0, :, 1] = torch.arange(JOINT_COUNT) + 20.0  # all in one column
    assert not pose_mask(keypoints, torch.ones(1, JOINT_COUNT, dtype=torch.bool), 128, 64)[0, 100:].any()


def test_mask_of_a_batch_is_the_masks_of_its_members():
    keypoints, present = standing_person()
    batch = torch.cat([keypoints, keypoints + 3])
    fewer = present.clone()
    fewer[0, 4:8] = False
    together = pose_mask(batch, torch.cat([present, fewer]), 96, 48)
    assert torch.equal(together[:1], pose_mask(keypoints, present, 96, 48))
    assert torch.equal(together[1:], pose_mask(keypoints + 3, fewer, 96, 48))
    with pytest.raises(InputError, match="expected"):
        pose_mask(batch, present, 96, 48)


def test_trivial_answers_are_the_means():
    images = torch.rand(10, 3, 8, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    cameras = [1, 2, 1, 1, 5, 2, 2, 2, 1, 5]
    answers = TrivialAnswers()
    answers.update(images[:6], torch.tensor(cameras[:6]))
    answers.update(images[6:], cameras[6:])
    torch.testing.assert_close(answers.mean_image, images.mean(0))
    got = answers.camera_mean(torch.tensor([5, 1, 9, 5]))
    torch.testing.assert_close(got[0], images[[4, 9]].mean(0))
    torch.testing.assert_close(got[1], images[[0, 2, 3, 8]].mean(0))
    torch.testing.assert_close(got[2], images.mean(0))
    torch.testing.assert_close(got[3], got[0])
    assert answers.unseen_camera_answers == 1
    assert answers.camera_mean([]).shape == (0, 3, 8, 4)


def test_trivial_answers_name_wrong_input():
    answers = TrivialAnswers()
    with pytest.raises(InputError, match="before any training picture"):
        _ = answers.mean_image
    with pytest.raises(InputError, match="2 cameras came with"):
        answers.update(torch.zeros(3, 3, 8, 4), [1, 2])
    answers.update(torch.zeros(1, 3, 8, 4), [1])
    with pytest.raises(InputError, match="resize all"):
        answers.update(torch.zeros(1, 3, 8, 8), [1])
