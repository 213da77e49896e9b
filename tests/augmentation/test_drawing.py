import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posereid.augmentation.drawing import augment, draw
from posereid.augmentation.sets import with_generated
from posereid.augmentation.targets import plan_drawings
from posereid.config import AugmentationRecipe, Recipe
from posereid.data.batches import CropImages
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError
from posereid.generator.generator import PoseTransferGenerator
from posereid.training.checkpoint import new_generator


@pytest.fixture(scope="module")
def generator(tiny_recipe: Callable[..., Recipe]) -> PoseTransferGenerator:
    torch.manual_seed(0)
    return new_generator(tiny_recipe()).eval()


def settings(poses: int = 2) -> AugmentationRecipe:
    return AugmentationRecipe(poses_per_crop=poses, batch_size=5)


def test_each_posed_crop_is_drawn_in_k_poses_of_other_crops(crops: CropTable) -> None:
    train = crops.train
    drawings = plan_drawings(train, 3, seed=1)
    posed = [position for position, crop in enumerate(train) if crop.can_pose]
    assert [drawing.source for drawing in drawings] == [position for position in posed for _ in range(3)]
    assert len({drawing.name for drawing in drawings}) == len(drawings)
    for position in posed:
        targets = [drawing.target for drawing in drawings if drawing.source == position]
        assert len(set(targets)) == 3
        assert position not in targets
        assert all(train[target].can_pose for target in targets)


def test_target_poses_come_from_other_identities_too(crops: CropTable) -> None:
    train = crops.train
    drawings = plan_drawings(train, 3, seed=1)
    assert any(train[drawing.source].identity != train[drawing.target].identity for drawing in drawings)


def test_the_plan_is_a_function_of_the_seed(crops: CropTable) -> None:
    assert plan_drawings(crops.train, 2, seed=1) == plan_drawings(crops.train, 2, seed=1)
    assert plan_drawings(crops.train, 2, seed=1) != plan_drawings(crops.train, 2, seed=2)


def test_too_few_posed_crops_are_an_input_error(crops: CropTable) -> None:
    without = crops.with_crops(replace(crop, joints=None) for crop in crops.train)
    with pytest.raises(InputError, match="poses_per_crop"):
        plan_drawings(without, 1, seed=0)


def test_the_written_set_accounts_for_every_crop(
    generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path
) -> None:
    made = augment(generator, crops, tmp_path / "set", settings(), seed=3, checkpoint="abc", progress=False)
    with (tmp_path / "set" / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    posed = [crop for crop in crops.train if crop.can_pose]
    assert made.drawn == len(rows) == 2 * len(posed)
    assert made.without_pose == len(crops.train) - len(posed)
    by_name = {crop.name: crop for crop in crops.train}
    for row in rows:
        source = by_name[row["source"]]
        assert (int(row["identity"]), int(row["camera"])) == (source.identity, source.camera)
        assert row["target_pose"] in by_name
        assert row["checkpoint"] == "abc"
    assert json.loads((tmp_path / "set" / "set.json").read_text())["drawn"] == made.drawn

    table = load_crops(tmp_path / "set")
    assert len(table.train) == made.drawn
    for crop in table.train:
        assert crop.generated
        assert crop.identity == by_name[str(crop.source)].identity
        target = by_name[str(crop.target_pose)].joints
        assert crop.joints is not None
        assert target is not None
        assert (crop.joints.present == target.present).all()


def test_equal_calls_write_equal_bytes(generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        augment(generator, crops, tmp_path / name, settings(1), seed=3, checkpoint="abc", progress=False)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert digests[0] == digests[1]


def test_nothing_stays_behind_when_drawing_fails(
    generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("posereid.augmentation.drawing.draw", broken)
    with pytest.raises(RuntimeError):
        augment(generator, crops, tmp_path / "set", settings(), seed=3, checkpoint="abc", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_ones_own_layout_stays_readable(
    generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path
) -> None:
    own = replace(crops, layout="csv")
    augment(generator, own, tmp_path / "set", settings(1), seed=3, checkpoint="abc", progress=False)
    table = load_crops(tmp_path / "set")
    assert table.layout == "csv"
    by_name = {crop.name: crop for crop in crops.train}
    assert all(crop.identity == by_name[str(crop.source)].identity for crop in table.train)


def test_crops_with_equal_file_names_get_names_of_their_own(crops: CropTable) -> None:
    train = crops.train
    twins = [replace(crop, path=crop.path.with_name("twin.jpg")) for crop in train]
    drawings = plan_drawings(twins, 2, seed=0)
    assert len({drawing.name for drawing in drawings}) == len(drawings)


def test_draw_keeps_order_and_size(generator: PoseTransferGenerator, crops: CropTable) -> None:
    images = CropImages(crops.train, *generator.crop_size)
    pixels = torch.stack([images.image(position) for position in range(3)])
    poses = [images.joints(position) for position in range(3)]
    together = draw(generator, pixels, poses, poses)
    assert together.shape == (3, 3, 64, 32)
    assert together.dtype == torch.uint8
    for position in range(3):
        alone = draw(generator, pixels[position : position + 1], [poses[position]], [poses[position]])
        assert (alone[0].int() - together[position].int()).abs().max() <= 1


def test_real_and_generated_crops_join_in_one_table(
    generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path
) -> None:
    augment(generator, crops, tmp_path / "set", settings(1), seed=3, checkpoint="abc", progress=False)
    generated = load_crops(tmp_path / "set")
    both = with_generated(crops, generated)
    assert len(both.train) == len(crops.train) + len(generated.train)
    assert len(both.query) == len(crops.query)
    with pytest.raises(InputError, match=r"manifest\.csv"):
        with_generated(crops, crops)
    strangers = generated.with_crops(replace(crop, identity=crop.identity + 5000) for crop in generated)
    with pytest.raises(InputError, match="different data sets"):
        with_generated(crops, strangers)
