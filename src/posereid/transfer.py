"""One person in one new pose: an image, its joints, a target pose, a picture."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from posereid.augment import draw
from posereid.errors import InputError
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.files import KeypointTable, read_keypoints
from posereid.pose.formats import CSV_HEADER, parse_csv
from posereid.pose.joints import Joints


def find_joints(spec: str, name: str | None = None, tables: tuple[Path, ...] = ()) -> Joints:
    """Joints from what a user may type.

    ``spec`` is a keypoint file, or one row of the field's CSV ``name: [y …]: [x …]``, or a crop's name to look up
    in ``tables``. In a file of several rows, ``name`` says which. Raises InputError.
    """
    if spec.count(":") >= 2 and "[" in spec:
        return next(iter(parse_csv(f"{CSV_HEADER}\n{spec}", "the keypoint row").values()))
    if Path(spec).exists():
        return _only_or_named(read_keypoints(spec), name, spec)
    for path in tables:
        table = read_keypoints(path)
        if spec in table:
            return table[spec]
    searched = ", ".join(str(path) for path in tables) or "no keypoint files, because none were given"
    raise InputError(
        f"{spec!r} is no keypoint file, no row 'name: [y …]: [x …]', and no crop's name in {searched}; give one of "
        "these."
    )


def find_target(spec: str, tables: tuple[Path, ...], height: int, width: int) -> Joints:
    """A target pose: one of the eight canonical names, or what :func:`find_joints` takes. Raises InputError."""
    if spec in CANONICAL_POSES:
        return canonical_pose(spec, height, width)
    try:
        return find_joints(spec, tables=tables)
    except InputError as error:
        raise InputError(f"{error} The canonical poses are {', '.join(CANONICAL_POSES)}.") from None


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
    Raises InputError when either pose has no joints at all.
    """
    height, width = generator.crop_size
    for pose, what in ((joints, "source"), (target, "target")):
        if not pose.present.any():
            raise InputError(f"the {what} pose has no joints; at least one is needed to draw anybody.")
    scale = (width / image.width, height / image.height)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
    drawn = draw(generator, pixels, [joints.resized(*scale)], [target.resized(*scale)])
    return Image.fromarray(drawn[0].permute(1, 2, 0).numpy())
