from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posereid.cli import main
from posereid.data.crops import CropTable
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.files import read_keypoints, write_keypoints
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.skeletons import normalised, pose_distances

NOBODY = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with exit code 2 and gives its one sentence."""

    def call(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["poses", *map(str, arguments)])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    return call


@pytest.fixture
def keypoints(tmp_path: Path) -> Path:
    """The eight named poses in crops of 256 × 128, and a crop that shows nobody."""
    path = tmp_path / "keypoints.csv"
    write_keypoints({name: canonical_pose(name, 256, 128) for name in CANONICAL_POSES} | {"empty": NOBODY}, path)
    return path


def run(*arguments: str | Path) -> None:
    main(["poses", *map(str, arguments)])


def test_poses_of_a_keypoint_file_are_written_for_crops_of_128_by_64(
    keypoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(keypoints, "--out", tmp_path / "poses.csv")
    said = capsys.readouterr().out
    assert "8 poses that stand for 8 crops, in pixels of 128 × 64 crops" in said
    assert "; 1 crops without both shoulders and both hips did not count" in said
    table = read_keypoints(tmp_path / "poses.csv")
    assert list(table) == [f"pose_{number:02d}" for number in range(1, 9)]
    named = normalised([canonical_pose(name) for name in CANONICAL_POSES])
    distances = pose_distances(normalised(list(table.values())), named)
    # Whole pixels are all that the file keeps.
    assert (distances.min(1) < 0.05).all()
    assert sorted(distances.argmin(1).tolist()) == list(range(8))
    for pose in table.values():
        assert (pose.xy <= (63, 127)).all()


def test_equal_seeds_write_equal_files(world: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(world, "--out", tmp_path / f"{name}.csv", "--picture", tmp_path / f"{name}.png", "--count", "3")
    for ending in ("csv", "png"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_the_folder_of_a_set_gives_the_poses_of_its_training_crops(
    world: Path, crops: CropTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(world, "--out", tmp_path / "poses.csv", "--count", "4")
    posed = [crop.joints for crop in crops.train if crop.joints is not None and crop.joints.has_torso]
    assert f"stand for {len(posed)} crops" in capsys.readouterr().out
    found = normalised(list(read_keypoints(tmp_path / "poses.csv").values()))
    assert (pose_distances(found, normalised(posed)).min(1) < 0.05).all()


def test_a_folder_of_openpose_files_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "openpose"
    write_keypoints({name: canonical_pose(name) for name in CANONICAL_POSES}, folder, "openpose")
    run(folder, "--out", tmp_path / "poses.csv", "--count", "2")
    assert len(read_keypoints(tmp_path / "poses.csv")) == 2


@pytest.mark.parametrize(("options", "rows"), [((), 2), (("--named",), 3)])
def test_the_picture_shows_every_pose(world: Path, tmp_path: Path, options: tuple[str, ...], rows: int) -> None:
    picture = tmp_path / "poses.png"
    run(world, "--out", tmp_path / "poses.csv", "--picture", picture, "--count", "10", *options)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    black = (pixels.sum(2) == 0).any(1)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], black.astype(int)])) == 1)
    assert len(starts) == rows
    columns = (pixels[starts[0] + 5] == 0).all(1)
    assert np.count_nonzero(np.diff(np.concatenate([[0], columns.astype(int)])) == 1) == 8


def test_mistakes_are_named_in_one_sentence(keypoints: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "poses.csv"
    for count in ("0", "-1", "9"):
        said = refused(keypoints, "--out", out, "--count", count)
        assert f"found 8 poses with both shoulders and both hips for --count {count}" in said
    assert "ends in .csv" in refused(keypoints, "--out", tmp_path / "poses.json")
    assert "ends in .png" in refused(keypoints, "--out", out, "--picture", tmp_path / "poses.jpg")
    assert "--picture" in refused(keypoints, "--out", out, "--named")
    assert "--seed is -1" in refused(keypoints, "--out", out, "--seed", "-1")
    assert "the file to read from" in refused(keypoints, "--out", keypoints)
    assert "no readable file" in refused(tmp_path / "missing.csv", "--out", out)
    broken = tmp_path / "broken.json"
    broken.write_text('{"people": 3}')
    assert "expected" in refused(broken, "--out", out)
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in refused(tmp_path / "empty", "--out", out)
    assert not out.exists()
