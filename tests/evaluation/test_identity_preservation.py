"""The look-up of a picture's person among real crops against a plain loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import CropTable
from posereid.evaluation.identity_preservation import RealCrops
from posereid.evaluation.picture_measures import foreground_masks


class Colours(nn.Module):
    """An embedder that tells people by the colours of a coarse copy of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def embed(self, pictures):
        assert not self.training
        coarse = nn.functional.adaptive_avg_pool2d(pictures, (4, 2)).flatten(1)
        return nn.functional.normalize(coarse - coarse.mean(1, keepdim=True))


@pytest.fixture(scope="module")
def test_crops(crops: CropTable):
    test = [*crops.query, *crops.gallery]
    # Junk, a distractor, and a crop of which neither mask nor joints are known.
    return [
        replace(test[0], identity=-1),
        replace(test[1], identity=0),
        replace(test[2], mask_path=None, joints=None),
        *test[3:],
    ]


def naive_preserved(picture, source, target, embed, images, masks):
    """Crop by crop; ``masks`` are those of the crops, or None for whole pictures."""
    crops = images.crops
    best = {True: -np.inf, False: -np.inf}
    for number, crop in enumerate(crops):
        person = crop.identity == crops[source].identity
        if crop.identity == -1 or number in (source, target) or (person and crop.camera == crops[source].camera):
            continue
        shown = to_float(images.image(number))
        if masks is not None:
            if not masks[number].any():
                continue
            shown = shown * masks[number]
        best[person] = max(best[person], float(embed(shown) @ embed(picture)))
    return float("nan") if best[True] == -np.inf else float(best[True] > best[False])


def test_agrees_with_a_loop_over_the_crops(test_crops):
    images = CropImages(test_crops, 64, 32)
    embedder = Colours().train()
    pairs = [
        (a, b)
        for a, first in enumerate(test_crops)
        for b, second in enumerate(test_crops)
        if a != b and first.identity == second.identity > 0
    ][::5]
    masks = foreground_masks(images, range(len(test_crops)), by_masks=True)
    assert not masks[2].any()
    pictures = torch.stack([to_float(images.image(source)) for source, _ in pairs])
    of_targets = masks[[target for _, target in pairs]]

    real = RealCrops(embedder, images, lambda positions: masks[list(positions)], batch_size=7)
    whole, alone = real.preserved(pictures, pairs), real.preserved(pictures, pairs, of_targets)
    assert embedder.training

    @torch.no_grad()
    def embed(picture):
        return Colours().eval().embed(picture[None])[0].numpy()

    for number, (source, target) in enumerate(pairs):
        wanted = naive_preserved(pictures[number], source, target, embed, images, None)
        np.testing.assert_equal(whole[number], wanted)
        masked = pictures[number] * of_targets[number]
        wanted = naive_preserved(masked, source, target, embed, images, masks)
        np.testing.assert_equal(alone[number], wanted if of_targets[number].any() else np.nan)
    assert {0.0, 1.0} <= set(whole) | set(alone)


def test_without_another_camera_or_without_a_mask_nothing_is_asked(test_crops):
    alike = [replace(crop, camera=1) for crop in test_crops]
    images = CropImages(alike, 64, 32)
    real = RealCrops(Colours(), images, lambda positions: torch.ones(len(positions), 64, 32, dtype=torch.bool))
    pictures = torch.rand(1, 3, 64, 32)
    assert np.isnan(real.preserved(pictures, [(3, 4)])).all()
    images = CropImages(test_crops, 64, 32)
    real = RealCrops(Colours(), images, lambda positions: torch.ones(len(positions), 64, 32, dtype=torch.bool))
    assert not np.isnan(real.preserved(pictures, [(3, 4)])).any()
    assert np.isnan(real.preserved(pictures, [(3, 4)], torch.zeros(1, 64, 32, dtype=torch.bool))).all()


def test_a_tie_with_a_stranger_is_no_match(test_crops):
    images = CropImages(test_crops, 64, 32)

    class Blind(Colours):
        def embed(self, pictures):
            return torch.ones(len(pictures), 1)

    real = RealCrops(Blind(), images, lambda positions: torch.ones(len(positions), 64, 32, dtype=torch.bool))
    assert real.preserved(torch.rand(1, 3, 64, 32), [(3, 4)]).tolist() == [0]
