import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posereid.augmentation.sets import check_generated_set, with_generated
from posereid.augmentation.targets import plan_drawings
from posereid.augmentation.true_renders import TruePoses, write_true_renders
from posereid.config import AugmentationRecipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError

ONE_POSE = AugmentationRecipe()


def test_a_crop_in_its_own_pose_is_rendered_as_it_is(crops: CropTable) -> None:
    truth = TruePoses.of(crops.root)
    crop = next(crop for crop in crops.train if crop.can_pose)
    pixels, joints = truth.render(crop, crop)
    written = np.asarray(Image.open(crop.path), np.int64)
    assert np.abs(pixels - written).mean() < 4  # what the JPEG lost
    assert crop.joints is not None
    np.testing.assert_array_equal(joints.present, crop.joints.present)
    np.testing.assert_allclose(joints.xy[joints.present], crop.joints.xy[joints.present], atol=0.51)


def test_the_person_is_the_sources_and_the_pose_the_targets(crops: CropTable) -> None:
    truth = TruePoses.of(crops.root)
    train = [crop for crop in crops.train if crop.can_pose]
    source = train[0]
    target = next(crop for crop in train if crop.identity != source.identity)
    pixels, _ = truth.render(source, target)
    other, _ = truth.render(target, target)
    assert np.abs(pixels.astype(int) - other).mean() > 4
    planned = truth.planned[target.name]
    assert truth.world.pose(planned) == truth.world.pose(truth.planned[target.name])


def test_the_set_holds_the_drawings_that_augmentation_would_plan(crops: CropTable, tmp_path: Path) -> None:
    out = tmp_path / "true"
    count = write_true_renders(crops, out, ONE_POSE, seed=3, progress=False)
    drawings = plan_drawings(crops.train, ONE_POSE, 3)
    rows = check_generated_set(out)
    assert count == len(rows) == len(drawings)
    assert [(row.name, row.source, row.target_pose) for row in rows] == [
        (d.name, crops.train[d.source].name, crops.train[d.target].name) for d in drawings
    ]
    both = with_generated(crops, load_crops(out))
    assert sum(crop.generated for crop in both.train) == count
    assert json.loads((out / "set.json").read_text())["source_fingerprint"] == crops.train.fingerprint


def test_a_set_that_is_not_synthetic_is_refused(crops: CropTable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"world\.json"):
        write_true_renders(replace(crops, root=tmp_path), tmp_path / "out", ONE_POSE, seed=0, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_crop_that_the_world_does_not_know_is_refused(crops: CropTable) -> None:
    crop = next(crop for crop in crops.train if crop.can_pose)
    with pytest.raises(InputError, match="no such training crop"):
        TruePoses.of(crops.root).render(replace(crop, name="0009_c1s1_000001_01.jpg"), crop)
