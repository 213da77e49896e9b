"""The command that looks for canonical poses in a set's keypoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from posereid.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from posereid.pose.joints import Joints

HEIGHT, WIDTH = 128, 64
"""Size of the crops in whose pixels poses are written: the keypoint CSV has no place to say another."""

PICTURE_HEIGHT = 192
POSES_PER_ROW = 8


@dataclass(frozen=True)
class Poses:
    """Find the poses that stand best for a set's people (k-medoids) and write them as a keypoint file.

    The file is the field's CSV, in pixels of 128 × 64 crops, names pose_01 … by how many crops each stands for.
    """

    keypoints: tyro.conf.Positional[Path]
    """Keypoint file, folder of OpenPose files, or folder of a set, whose training crops then count."""
    out: Path
    """CSV to write."""
    count: int = 8
    """Poses to find."""
    seed: int = 0
    """Seed of the search."""
    picture: Path | None = None
    """PNG of the poses as skeletons: orange and red are the person's right, blue the left."""
    named: bool = False
    """Show the eight named poses above them in the picture."""

    def run(self) -> None:
        """Find, write and draw."""
        from posereid.messages import complaint
        from posereid.pictures import save_png
        from posereid.pose.clusters import canonical_poses_of, cluster_poses, usable_poses
        from posereid.pose.files import write_keypoints
        from posereid.pose.skeletons import direction

        self._check_options()
        poses, notes = read_poses(self.keypoints)
        usable = usable_poses(poses)
        if not 1 <= self.count <= len(usable):
            raise complaint(
                self.keypoints,
                f"{len(usable)} poses with both shoulders and both hips for --count {self.count}",
                "--count from 1 to the number of poses",
                "ask for another number, or give keypoints of more crops",
            )
        found = dict(canonical_poses_of(usable, self.count, self.seed, HEIGHT, WIDTH))
        write_keypoints(found, self.out)
        if self.picture is not None:
            shares = cluster_poses(usable, self.count, self.seed).sizes / len(usable)
            labels = [
                f"{name} {direction(pose)} {share:.0%}"
                for (name, pose), share in zip(found.items(), shares, strict=True)
            ]
            save_png(self.picture, skeleton_sheet(labels, list(found.values()), named=self.named))
        for note in notes:
            print(note)
        left_out = len(poses) - len(usable)
        print(
            f"{self.out}: {self.count} poses that stand for {len(usable)} crops, in pixels of {HEIGHT} × {WIDTH} crops"
            f"; {left_out} crops without both shoulders and both hips did not count."
        )

    def _check_options(self) -> None:
        if self.out.suffix.lower() != ".csv":
            raise InputError(f"--out is {self.out}; give a file name that ends in .csv.")
        if self.out.absolute() == self.keypoints.absolute():
            raise InputError(f"--out is {self.out}, the file to read from; give another file name.")
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise InputError(f"--picture is {self.picture}; give a file name that ends in .png.")
        if self.named and self.picture is None:
            raise InputError("--named says what stands in the picture; give --picture FILE.png with it.")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must not be negative.")


def read_poses(path: Path) -> "tuple[list[Joints], tuple[str, ...]]":
    """The poses of a keypoint file or folder, or of a set's training crops, and what the reader had to decide.

    A folder with .json files and nothing that makes it a set is OpenPose's. Raises InputError.
    """
    from posereid.data.layouts import CROPS_CSV, load_crops
    from posereid.data.shards import INDEX
    from posereid.pose.files import read_keypoints

    is_set = path.is_dir() and (
        not any(path.glob("*.json"))
        or any((path / name).is_file() for name in (CROPS_CSV, INDEX))
        or any(child.is_dir() for child in path.iterdir())
    )
    if not is_set:
        table = read_keypoints(path)
        others = table.unparsed
        left_out = (f"{path}: {len(others)} files or folders are not read, such as {others[0]!r}.",) if others else ()
        return list(table.values()), (*table.notes, *left_out)
    crops = load_crops(path)
    known = [crop.joints for crop in crops.train if crop.joints is not None]
    unknown = len(crops.train) - len(known)
    without = (f"{path}: {unknown} training crops have no keypoints.",) if unknown else ()
    return known, (*crops.left_out(), *crops.notes, *without)


def skeleton_sheet(labels: Sequence[str], poses: "Sequence[Joints]", *, named: bool) -> "Image":
    """Poses, in pixels of HEIGHT × WIDTH, as labelled skeletons in rows; with ``named`` below the eight named ones."""
    from PIL import Image

    from posereid.pictures import contact_sheet
    from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
    from posereid.pose.drawing import draw_skeleton

    rows: list[tuple[Sequence[str], Sequence[Joints]]] = []
    if named:
        rows.append((CANONICAL_POSES, [canonical_pose(name, HEIGHT, WIDTH) for name in CANONICAL_POSES]))
    for start in range(0, len(poses), POSES_PER_ROW):
        rows.append((labels[start : start + POSES_PER_ROW], poses[start : start + POSES_PER_ROW]))
    scale = PICTURE_HEIGHT / HEIGHT
    width = round(WIDTH * scale)
    sheets = [
        contact_sheet([[draw_skeleton(pose.resized(scale, scale), PICTURE_HEIGHT, width) for pose in row]], names, 1)
        for names, row in rows
    ]
    size = (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets))
    whole = Image.new("RGB", size, (255, 255, 255))
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole
