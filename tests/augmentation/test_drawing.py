import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posereid.augmentation.drawing import augment, draw
from posereid.augmentation.sets import check_generated_set, read_set
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


def test_a_call_that_fails_leaves_no_set_and_an_unfinished_one(
    generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("posereid.augmentation.drawing.draw", broken)
    with pytest.raises(RuntimeError):
        augment(generator, crops, tmp_path / "set", settings(), seed=3, checkpoint="abc", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [".set.unfinished"]


def test_bad_arguments_leave_nothing(generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed is -1"):
        augment(generator, crops, tmp_path / "set", settings(), seed=-1, checkpoint="abc", progress=False)
    with pytest.raises(InputError, match=r"at most 2\^63"):
        augment(generator, crops, tmp_path / "set", settings(), seed=2**63 + 1, checkpoint="abc", progress=False)
    drawn = crops.with_crops(replace(crop, source=crop.name, target_pose=crop.name) for crop in crops)
    with pytest.raises(InputError, match="drawn by a generator themselves"):
        augment(generator, drawn, tmp_path / "set", settings(), seed=3, checkpoint="abc", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_set_says_how_it_was_made(generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path) -> None:
    recipe = settings(1).changed(target_poses="clusters", pose_clusters=2)
    made = augment(generator, crops, tmp_path / "set", recipe, seed=3, checkpoint="abc", progress=False)
    about = read_set(made.folder)
    posed = [crop for crop in crops.train if crop.can_pose]
    assert (about.source_root, about.source_fingerprint) == (crops.root.name, crops.train.fingerprint)
    assert (about.layout, about.checkpoint, about.seed) == ("market1501", "abc", 3)
    assert about.drawn == made.drawn == len(posed)
    assert about.training_crops_without_pose == len(crops.train) - len(posed)
    assert about.identities == len({crop.identity for crop in posed})
    section = recipe.model_dump(mode="json", exclude={"workers"})
    assert about.recipe == {"augmentation": section, "height": 64, "width": 32}
    digest = hashlib.sha256(json.dumps(about.recipe, sort_keys=True).encode()).hexdigest()
    assert about.recipe_sha256 == digest
    assert about.plan["target_poses"] == "clusters"
    assert about.creation["device"] == "cpu"
    assert about.creation["precision"] == "32-true"
    assert about.creation["threads"] == torch.get_num_threads()
    check_generated_set(made.folder, checkpoint="abc")


def test_a_crop_that_is_no_picture_is_named(generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path) -> None:
    broken = tmp_path / crops.train[0].name
    broken.write_bytes(crops.train[0].path.read_bytes()[:400])
    table = crops.with_crops([replace(crops.train[0], path=broken), *crops.train.crops[1:]])
    with pytest.raises(InputError, match=crops.train[0].name):
        augment(generator, table, tmp_path / "set", settings(1), seed=3, checkpoint="abc", progress=False)


def test_a_set_of_ones_own_layout_stays_readable(
    generator: PoseTransferGenerator, crops: CropTable, tmp_path: Path
) -> None:
    own = replace(crops, layout="csv")
    augment(generator, own, tmp_path / "set", settings(1), seed=3, checkpoint="abc", progress=False)
    table = load_crops(tmp_path / "set")
    assert table.layout == "csv"
    by_name = {crop.name: crop for crop in crops.train}
    assert all(crop.identity == by_name[str(crop.source)].identity for crop in table.train)


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
