import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from posereid.config import Recipe
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.maps import flip_keypoints
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint, load_pose_estimator
from posereid.training.pose import (
    ShuffledCrops,
    blur,
    choose_threshold,
    heat_map_loss,
    scale_and_shift,
    split_posed_crops,
    train_pose_estimator,
    vary,
)
from posereid.training.reid import train_reid

Build = Callable[..., Recipe]
TINY = {
    "backbone": "test_resnet",
    "width": 8,
    "map_stride": 2,
    "epochs": 2,
    "batch_size": 8,
    "log_every": 1,
    "checkpoint_every": 3,
}


@pytest.fixture(scope="session")
def pose_recipe(tiny_recipe: Build) -> Build:
    return lambda **changes: tiny_recipe(pose_estimator=TINY | changes.pop("pose_estimator", {}), **changes)


@pytest.fixture(scope="module")
def finished(crops: CropTable, pose_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pose_estimator(pose_recipe(), crops, tmp_path_factory.mktemp("runs") / "run", progress=False)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(checkpoint_folders(run)[-1] / "pose_estimator.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_trains_validates_and_can_be_loaded(crops: CropTable, finished: Path) -> None:
    facts, *rest = records(finished)
    steps = [record for record in rest if "loss_heat_maps" in record]
    learned = set(latest_checkpoint(finished).identities)
    posed = [crop for crop in crops.train if crop.joints is not None]
    assert facts["held_out_crops"] == sum(crop.identity not in learned for crop in posed) > 0
    assert facts["crops"] == sum(crop.identity in learned for crop in posed)
    assert facts["steps"] == len(steps) == 2 * (facts["crops"] // 8)
    checks = [record for record in rest if "pckh" in record]
    assert [check["step"] for check in checks] == [3, 6]
    assert all(0 <= check["pckh"] <= 1 and 0 <= check["presence_accuracy"] <= 1 for check in checks)
    checkpoint = latest_checkpoint(finished)
    assert checkpoint.stage == "pose"
    assert len(checkpoint.identities) == 3
    estimator = load_pose_estimator(finished)
    assert not estimator.training
    assert estimator.threshold.item() == pytest.approx(checks[-1]["presence_threshold"], abs=1e-4)
    keypoints, present = estimator.estimate(torch.zeros(2, 3, 64, 32))
    assert keypoints.shape == (2, JOINT_COUNT, 2)
    assert present.shape == (2, JOINT_COUNT)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    crops: CropTable, pose_recipe: Build, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(checkpoint_folders(run)[-1])
    assert latest_checkpoint(run).step == 3
    train_pose_estimator(pose_recipe(), crops, run, resume=True, progress=False)
    assert latest_checkpoint(run).step == 6
    assert equal(weights(run), weights(finished))


def test_another_stages_run_is_neither_resumed_nor_loaded(
    crops: CropTable, pose_recipe: Build, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pose run and cannot go on as a reid run"):
        train_reid(pose_recipe(), crops, finished, resume=True, progress=False)
    reid = train_reid(pose_recipe(), crops, tmp_path / "reid", progress=False)
    with pytest.raises(InputError, match="has not trained a pose_estimator"):
        load_pose_estimator(reid)


def test_generated_crops_and_crops_without_joints_teach_nothing(crops: CropTable, pose_recipe: Build) -> None:
    drawn = [replace(crop, name=f"drawn_{crop.name}", source=crop.name) for crop in crops.train]
    nobody = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))
    bare = [replace(crop, joints=joints) for crop in crops.train[:4] for joints in (None, nobody)]
    alone = split_posed_crops(crops.train, 0)
    among = split_posed_crops(crops.with_crops([*crops.train, *drawn, *bare]), 0)
    assert [[c.name for c in part] for part in among] == [[c.name for c in part] for part in alone]
    learned, held_out = alone
    assert not {crop.identity for crop in learned} & {crop.identity for crop in held_out}
    assert len({crop.identity for crop in held_out}) == 1


def test_without_keypoints_there_is_nothing_to_train(crops: CropTable, pose_recipe: Build, tmp_path: Path) -> None:
    bare = crops.with_crops(replace(crop, joints=None) for crop in crops)
    with pytest.raises(InputError, match="0 identities have real training crops with keypoints"):
        train_pose_estimator(pose_recipe(), bare, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 3))
def test_an_epoch_holds_no_crop_twice_and_few_are_left_for_the_next(count: int, size: int, epoch: int) -> None:
    sampler = ShuffledCrops(count, size, seed=1)
    batches = [sampler.batch(epoch, step) for step in range(sampler.batches_per_epoch)]
    assert {batch.shape for batch in batches} == {(min(count, size), 1)}
    drawn = np.concatenate(batches)[:, 0].tolist()
    assert len(set(drawn)) == len(drawn) > count - min(count, size)
    assert set(drawn) <= set(range(count))


@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(0, 1)), min_size=1, max_size=8))
def test_the_loss_counts_a_joints_own_place_five_times(cells: list[tuple[float, float]]) -> None:
    expected = sum((1 + 4 * target) * (value - target) ** 2 for value, target in cells) / len(cells)
    maps, target = (torch.tensor([[[side]]], dtype=torch.float64) for side in zip(*cells, strict=True))
    assert heat_map_loss(maps, target).item() == pytest.approx(expected)


# --- variations of crops and joints ------------------------------------------------------------------------


def spots(keypoints: Tensor, height: int, width: int) -> Tensor:
    """Images with a soft bright spot at each crop's first joint."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    x, y = (keypoints[:, 0, axis, None, None] for axis in (0, 1))
    return torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18)[:, None].expand(-1, 3, -1, -1) - 1


def centres(images: Tensor) -> Tensor:
    """(x, y) of each image's spot, which stands on its darkest value."""
    light = (images[:, 0] - images[:, 0].flatten(1).amin(1)[:, None, None]) ** 2
    light = torch.where(light > 0.05 * light.flatten(1).amax(1)[:, None, None], light, torch.zeros_like(light))
    total = light.sum((1, 2))
    x = (light.sum(1) * torch.arange(images.shape[-1])).sum(1) / total
    y = (light.sum(2) * torch.arange(images.shape[-2])).sum(1) / total
    return torch.stack([x, y], -1)


def test_joints_move_with_their_pictures() -> None:
    torch.manual_seed(0)
    keypoints = torch.tensor([24.0, 44.0]) + torch.rand(16, JOINT_COUNT, 2) * torch.tensor([16.0, 40.0])
    images = spots(keypoints, 128, 64)
    scale, shift = 0.8 + 0.4 * torch.rand(16), 0.2 * torch.rand(16, 2) - 0.1
    moved, joints = scale_and_shift(images, keypoints, scale, shift)
    torch.testing.assert_close(centres(moved), joints[:, 0], rtol=0, atol=0.1)
    assert (joints - keypoints).abs().amax() > 3


def test_variation_mirrors_joints_with_their_pictures_and_exchanges_sides() -> None:
    keypoints = torch.rand(64, JOINT_COUNT, 2) * torch.tensor([30.0, 60.0]) + torch.tensor([17.0, 34.0])
    present = torch.rand(64, JOINT_COUNT) < 0.7
    torch.manual_seed(3)
    images, joints, kept = vary(spots(keypoints, 128, 64), keypoints, present)
    assert images.amin() >= -1
    assert images.amax() <= 1
    torch.testing.assert_close(centres(images), joints[:, 0], rtol=0, atol=0.8)
    # Scale and shift are small: a joint lies near its own place, or near its mirrored partner's.
    mirrored, mirrored_present = flip_keypoints(keypoints, present, 64)
    straight = (kept == present).all(1) & ((joints - keypoints).abs().amax((1, 2)) < 16)
    turned = (kept == mirrored_present).all(1) & ((joints - mirrored).abs().amax((1, 2)) < 16)
    assert (straight ^ turned).all()
    assert 16 < int(turned.sum()) < 48


def test_joints_that_leave_the_picture_are_absent() -> None:
    torch.manual_seed(0)
    keypoints = torch.zeros(32, JOINT_COUNT, 2)
    present = torch.ones(32, JOINT_COUNT, dtype=torch.bool)
    _, joints, kept = vary(torch.zeros(32, 3, 64, 32), keypoints, present)
    inside = ((joints >= -0.5) & (joints <= torch.tensor([31.5, 63.5]))).all(-1)
    assert torch.equal(kept, inside)
    assert inside.any()
    assert not inside.all()


def test_blur_is_a_gaussian_of_each_images_own_width() -> None:
    images = torch.zeros(2, 3, 21, 17)
    images[:, :, 10, 8] = 1
    blurred = blur(images, torch.tensor([0.5, 2.0]))
    assert blurred[0, 0, 10, 9] / blurred[0, 0, 10, 8] == pytest.approx(math.exp(-2), rel=1e-4)
    assert blurred[1, 2, 12, 8] / blurred[1, 2, 10, 8] == pytest.approx(math.exp(-0.5), rel=1e-4)
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(2, 3))
    flat = torch.full((2, 3, 9, 7), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([0.3, 1.5])), flat)


@given(st.lists(st.tuples(st.integers(-3, 9), st.booleans()), min_size=1, max_size=12))
def test_the_threshold_is_right_about_as_many_joints_as_any(joints: list[tuple[int, bool]]) -> None:
    confidence = torch.tensor([value / 8 for value, _ in joints])
    present = torch.tensor([truth for _, truth in joints])
    threshold = choose_threshold(confidence, present)
    right = int(((confidence > threshold) == present).sum())
    assert right == max(int(((confidence > (n - 0.5) / 8) == present).sum()) for n in range(-4, 12))
