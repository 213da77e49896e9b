"""Decoded crops that are kept, within bounds and for all processes."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from posereid.data import batches
from posereid.data.batches import CropImages, PosePairs, load_batches
from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError

GIGABYTES_PER_CROP = 3 * 16 * 8 / 1e9


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the crops that this process opens."""
    names: list[str] = []
    real = batches.open_crop

    def noting(crop: Crop) -> Image.Image:
        names.append(crop.name)
        return real(crop)

    monkeypatch.setattr(batches, "open_crop", noting)
    return names


def refuse(_: Crop) -> Image.Image:
    raise InputError("read again")


def test_of_a_set_that_does_not_fit_the_first_crops_are_kept_and_all_are_right(
    crops: CropTable, decoded: list[str]
) -> None:
    some = list(crops)[:6]
    whole, small = CropImages(some, 16, 8), CropImages(some, 16, 8, cache_gb=3.9 * GIGABYTES_PER_CROP)
    assert (whole.kept, small.kept) == (6, 3)
    expected = whole.images(range(6))
    decoded.clear()
    for _ in range(2):
        for position in (5, 0, 3, 2, 1, 4):
            assert torch.equal(small.image(position), expected[position])
            np.testing.assert_array_equal(small.joints(position).xy, whole.joints(position).xy)
        assert torch.equal(small.images([4, 0, 0, 5]), expected[[4, 0, 0, 5]])
        assert torch.equal(small.images([2, 0, 2]), expected[[2, 0, 2]])
    # The first three once, the others each time.
    assert [decoded.count(crop.name) for crop in some] == [1, 1, 1, 2, 4, 4]


def test_without_a_cache_nothing_is_kept(crops: CropTable, decoded: list[str]) -> None:
    images = CropImages(list(crops)[:2], 16, 8, cache_gb=0)
    for _ in range(3):
        images.images([0, 1])
    assert len(decoded) == 6


def test_batches_are_copies_that_may_be_written_to(crops: CropTable) -> None:
    images = CropImages(list(crops)[:2], 16, 8)
    before = images.image(0).clone()
    for _ in range(2):
        images.images([0, 1]).zero_()
        assert torch.equal(images.image(0), before)


def test_what_worker_processes_have_decoded_this_one_need_not(
    crops: CropTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [crop for crop in crops if crop.can_pose][:8]
    images, labels = CropImages(some, 16, 8), {crop.identity: 0 for crop in some}
    halves = [[(0, 0, 1), (0, 2, 3)], [(0, 4, 5), (0, 6, 7)]]
    found = list(load_batches(PosePairs(images, labels), halves, workers=2))  # type: ignore[arg-type]
    monkeypatch.setattr(batches, "open_crop", refuse)
    again = PosePairs(images, labels)
    for rows, batch in zip(halves, found, strict=True):
        assert torch.equal(again[rows].source_images, batch.source_images)
        assert torch.equal(again[rows].target_keypoints, batch.target_keypoints)
    with pytest.raises(InputError, match="read again"):
        CropImages(some, 16, 8).image(0)


def test_what_this_process_has_decoded_worker_processes_need_not(
    crops: CropTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [crop for crop in crops if crop.can_pose][:2]
    images = CropImages(some, 16, 8)
    expected = images.images([0, 1])
    monkeypatch.setattr(batches, "open_crop", refuse)
    pairs = PosePairs(images, {crop.identity: 0 for crop in some})
    [batch] = load_batches(pairs, [[(0, 0, 1)]], workers=1)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([batch.source_images, batch.target_images]), expected)


def test_a_copy_for_a_process_that_is_started_afresh_reads_the_same_into_a_memory_of_its_own(
    crops: CropTable, decoded: list[str]
) -> None:
    images = CropImages(list(crops)[:3], 16, 8, cache_gb=2.5 * GIGABYTES_PER_CROP)
    expected = images.images([0, 1, 2])
    content = pickle.dumps(images)
    decoded.clear()
    copy = pickle.loads(content)
    assert (len(copy), copy.kept) == (3, 2)
    assert torch.equal(copy.images([0, 1, 2]), expected)
    copy.images([0, 1])
    assert len(decoded) == 3
