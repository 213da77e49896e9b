"""One person in one new pose: an image, its joints, a target pose, a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from posereid.augmentation.drawing import draw
from posereid.data.check import require_joint_scale, scale_problem
from posereid.data.crops import Crop, CropTable
from posereid.data.images import open_crop
from posereid.errors import InputError
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.files import KeypointTable, read_keypoints
from posereid.pose.formats import CSV_HEADER, parse_csv
from posereid.pose.joints import Joints


def find_joints(
    spec: str,
    name: str | None,
    tables: Sequence[Path],
    crops: Iterable[Crop],
    size: tuple[int, int],
) -> Joints:
    """Joints from what a user may type, in pixels of an image of ``size`` (width, height).

    ``spec`` is a keypoint file, or one row of the field's CSV ``name: [y …]: [x …]``, or a crop's name to look up
    in the keypoint files ``tables`` and among ``crops``, whose joints are resized with them. In a file of several
    rows, ``name`` says which. Raises InputError.
    """
    if spec.count(":") >= 2 and "[" in spec:
        return next(iter(parse_csv(f"{CSV_HEADER}\n{spec}", "the keypoint row").values()))
    if _is_there(spec):
        return _only_or_named(read_keypoints(spec), name, spec)
    for path in tables:
        table = read_keypoints(path)
        if spec in table:
            return table[spec]
    found = next((crop for crop in crops if crop.name == spec and crop.joints is not None), None)
    if found is not None and found.joints is not None:
        if isinstance(crops, CropTable):
            require_joint_scale(crops)
        own = open_crop(found).size
        return found.joints.resized(size[0] / own[0], size[1] / own[1])
    searched = ", ".join(str(path) for path in tables) or "the run's data set"
    raise InputError(
        f"{spec!r} is no keypoint file, no row 'name: [y …]: [x …]', and no crop with joints in {searched}; give one "
        "of these."
    )


def find_target(spec: str, tables: Sequence[Path], crops: Iterable[Crop], size: tuple[int, int]) -> Joints:
    """A target pose: one of the eight canonical names, or what :func:`find_joints` takes. Raises InputError."""
    if spec in CANONICAL_POSES:
        return canonical_pose(spec, height=size[1], width=size[0])
    try:
        return find_joints(spec, None, tables, crops, size)
    except InputError as error:
        raise InputError(f"{error} The canonical poses are {', '.join(CANONICAL_POSES)}.") from None


def _is_there(spec: str) -> bool:
    try:
        return bool(spec) and Path(spec).exists()
    except OSError:  # longer than a file name may be
        return False


def _only_or_named(table: KeypointTable, name: str | None, spec: str) -> Joints:
    if name is not None and name in table:
        return table[name]
    if len(table) == 1:
        return next(iter(table.values()))
    wanted = f"none of them is {name!r}" if name else "which one is not said"
    raise InputError(f"{spec} holds {len(table)} rows and {wanted}; give a file with one row, or the row itself.")


def redraw(generator: PoseTransferGenerator, image: Image.Image, joints: Joints, target: Joints) -> Image.Image:
    """The person of ``image`` in another pose.

    ``joints`` and ``target`` are in pixels of ``image``. The result has the generator's ``crop_size``.
    Raises InputError when either pose has no joints at all, joints outside the image, or all of them within two pixels.
    """
    height, width = generator.crop_size
    for pose, what in ((joints, "source"), (target, "target")):
        if not pose.present.any():
            raise InputError(f"the {what} pose has no joints; at least one is needed to draw anybody.")
        outside = (pose.xy < -1) | (pose.xy > np.array([image.width, image.height]))
        if (outside.any(axis=1) & pose.present).any():
            furthest = pose.xy[pose.present].max(axis=0).round().astype(int).tolist()
            raise InputError(
                f"the {what} pose reaches to {tuple(furthest)}, outside the image of {image.width} × {image.height} "
                "pixels; give it in pixels of that image."
            )
        if problem := scale_problem([(pose, image.size)]):
            raise InputError(f"the {what} pose is of another scale: {problem}; give it in pixels of that image.")
    scale = (width / image.width, height / image.height)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    drawn = draw(generator, pixels, [joints.resized(*scale)], [target.resized(*scale)])
    return Image.fromarray(drawn[0].permute(1, 2, 0).numpy())
