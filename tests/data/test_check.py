import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posereid.data.check import CheckReport, check_crops, require_joint_scale
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError
from posereid.pose.files import read_keypoints
from posereid.pose.formats import CSV_HEADER
from posereid.pose.joints import Joints

SOUND = {
    "bounding_box_train": [
        "0002_c1s1_000001_01.jpg",
        "0002_c2s1_000001_01.jpg",
        "0002_c2s1_000002_01.jpg",
        "0007_c1s1_000001_01.jpg",
        "0007_c2s1_000001_01.jpg",
    ],
    "query": ["0001_c1s1_000001_00.jpg"],
    "bounding_box_test": ["0001_c2s1_000001_01.jpg", "0000_c1s1_000001_01.jpg", "-1_c1s1_000001_01.jpg"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, names in SOUND.items():
        for name in names:
            add(tmp_path, folder, name)
    joints(tmp_path, SOUND["bounding_box_train"])
    return tmp_path


def add(root: Path, folder: str, name: str) -> None:
    (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", (8, 16)).save(root / folder / name)


def joints(root: Path, names: list[str], x: int = 7) -> None:
    rows = [f"{name}: {[15] * 18}: {[x] * 18}" for name in names]
    (root / "annotation-train.csv").write_text("\n".join([CSV_HEADER, *rows]))


def check(root: Path, decode: bool = True) -> CheckReport:
    report = check_crops(load_crops(root), decode=decode)
    json.dumps(report.as_dict())
    assert report.ok == (not any(line.startswith("WRONG") for line in report.lines()))
    return report


def test_sound_set(root: Path) -> None:
    report = check(root)
    assert report.ok
    assert report.as_dict()["ok"] is True
    assert report.pose_pairs == {"train": 3 * 2 + 2 * 1, "query": 0, "gallery": 0}
    assert report.splits["train"].without_joints == 0
    assert report.splits["gallery"].without_joints == 3
    assert report.splits["gallery"].identities == 1
    text = "\n".join(report.lines())
    assert "train: 5 crops, 2 identities, 2 cameras, 0 without joints, 8 pose pairs" in text
    assert "Nothing is wrong." in text


def test_unreadable_images_are_named(root: Path) -> None:
    broken = root / "query" / SOUND["query"][0]
    broken.write_bytes(broken.read_bytes()[:200])
    report = check(root)
    assert report.unreadable == (broken.name,)
    assert not report.ok
    assert any(broken.name in line for line in report.lines())
    assert check(root, decode=False).ok


def test_masks_that_cannot_be_read_are_named(root: Path) -> None:
    masks = root / "foreground_masks" / "query"
    masks.mkdir(parents=True)
    mask = masks / SOUND["query"][0].replace(".jpg", ".png")
    Image.new("I;16", (8, 16), 1).save(mask)
    assert check(root).ok
    mask.write_bytes(mask.read_bytes()[:45])
    report = check(root)
    assert report.unreadable == (f"foreground_masks/query/{mask.name}",)
    assert f"WRONG: 1 images or masks that cannot be read: foreground_masks/query/{mask.name}" in report.lines()


def test_joints_outside_the_image(root: Path) -> None:
    joints(root, SOUND["bounding_box_train"][:1], x=8)
    assert check(root).joints_outside == (SOUND["bounding_box_train"][0],)
    assert not check(root, decode=False).decoded


@pytest.mark.parametrize(
    ("factor", "problem"),
    [
        (1 / 64, "train: joints of all crops lie within one pixel, as if from 0 to 1"),
        (2 / 64, "train: joints of all crops lie within two pixels, as if from 0 to 1"),
        (1 / 2, "train: joints of all crops lie in the upper left of their pictures, as if for a smaller size"),
        (1 / 4, "upper left"),
        (2, "lie outside their pictures, as if for another size"),
        (1, ""),
        (0.8, ""),
    ],
)
def test_joints_of_another_scale_are_told(
    crops: CropTable, rescaled: Callable[[CropTable, float], CropTable], factor: float, problem: str
) -> None:
    changed = rescaled(crops.train, factor)
    report = check_crops(changed)
    assert bool(report.joint_scale) == bool(problem)
    assert problem in "".join(report.joint_scale)
    if not problem:
        assert report.ok
        return require_joint_scale(changed)
    assert f"WRONG: {report.joint_scale[0]}" in report.lines()
    with pytest.raises(InputError, match=f"{problem}.*; write the keypoints again in pixels of"):
        require_joint_scale(changed)
    return None


def test_splits_of_a_few_crops_are_judged_together(
    crops: CropTable, rescaled: Callable[[CropTable, float], CropTable]
) -> None:
    few = crops.with_crops([*crops.train[:15], *crops.gallery[:15]])
    assert check_crops(rescaled(few, 0.5)).joint_scale[0].startswith("joints of all crops lie in the upper left")
    assert not check_crops(rescaled(few[:15], 0.5)).joint_scale
    # OpenPose's -1 … 1: what is left of or above the middle reads as absent.
    table = read_keypoints(crops.root / "market-annotation-train.csv")
    wide = {
        n: Joints(j.xy / np.float32([16, 32]) - 1, j.present & (j.xy > (16, 32)).all(axis=1)) for n, j in table.items()
    }
    posed = crops.train.with_crops(replace(c, joints=wide[c.name] if c.joints else None) for c in crops.train)
    assert "within one pixel" in check_crops(posed).joint_scale[0]


def test_queries_without_a_match(root: Path) -> None:
    names = ["0003_c1s1_000001_00.jpg", "0001_c2s1_000009_00.jpg", "0000_c1s1_000009_00.jpg"]
    for name in names:
        add(root, "query", name)
    report = check(root)
    assert dict(report.unmatched) == {
        names[0]: "not in the gallery",
        names[1]: "only in the query's own camera",
        names[2]: "not a person",
    }
    assert not report.ok
    assert len([line for line in report.lines() if "queries without a match" in line]) == 3


def test_weak_and_shared_identities(root: Path) -> None:
    add(root, "bounding_box_train", "0009_c1s1_000001_01.jpg")
    add(root, "bounding_box_train", "0001_c1s1_000001_01.jpg")
    add(root, "bounding_box_test", "0012_c1s1_000001_01.jpg")
    report = check(root)
    assert report.shared_identities == (1,)
    assert report.one_camera_train == report.single_crop_train == (1, 9)
    assert report.one_camera_test == (12,)
    assert not report.ok


def test_missing_and_unparsed_files(root: Path) -> None:
    for number in range(7):
        add(root, "query", f"IMG_{number}.jpg")
    (root / "manifest.csv").write_text("name,source,target_pose\ngone.jpg,a,b\n")
    report = check(root)
    assert len(report.unparsed) == 7
    assert report.missing == ("gone.jpg",)
    line = next(line for line in report.lines() if "IMG_0.jpg" in line)
    assert "WRONG: 7 " in line
    assert "IMG_4.jpg" in line
    assert "IMG_5.jpg" not in line
