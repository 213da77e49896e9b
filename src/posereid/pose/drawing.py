"""Skeletons as pictures, for people to look at: sheets, reports, documentation."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from posereid.errors import InputError
from posereid.pose.joints import JOINT_NAMES, LIMBS, Joints

# Warm for the person's right, cold for the left, yellow between: told apart with any colour vision, and on
# black as well as on a photograph (the palette of Okabe and Ito, its blue lightened for dark grounds).
_ARM = {"right": (240, 160, 0), "left": (86, 190, 245)}
_LEG = {"right": (225, 85, 20), "left": (30, 120, 235)}
_FACE = {"right": (245, 190, 120), "left": (170, 220, 250)}
_MIDDLE = (245, 230, 70)

_OVERSAMPLING = 4


def draw_skeleton(
    joints: Joints, height: int, width: int, background: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """One person's limbs and joints as a picture, (height, width, 3) uint8 RGB; absent joints are left out.

    Orange and red are the person's right, blue the left. ``background`` is (height, width, 3) uint8, black
    unless given; it is not changed. Raises :class:`InputError` for a background of another shape or type.
    """
    if background is None:
        background = np.zeros((height, width, 3), np.uint8)
    elif background.shape != (height, width, 3) or background.dtype != np.uint8:
        raise InputError(
            f"The background is {background.shape} {background.dtype}; ({height}, {width}, 3) uint8 is expected."
        )
    # Enlarged by repeating pixels, so that shrinking gives untouched pixels back exactly.
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    canvas = Image.fromarray(background).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    points = (joints.xy + 0.5) * _OVERSAMPLING - 0.5
    radius = _OVERSAMPLING * max(0.6, 0.011 * height)
    for first, second in LIMBS:
        if joints.present[first] and joints.present[second]:
            colour = _limb_colour(first, second)
            ends = [(float(points[joint, 0]), float(points[joint, 1])) for joint in (first, second)]
            draw.line(ends, fill=colour, width=max(1, round(2 * radius)))
            for x, y in ends:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    # Limbs in their order hide each other's ends; a joint on top shows even where its limbs are absent.
    for joint in np.flatnonzero(joints.present).tolist():
        x, y = map(float, points[joint])
        reach = radius * (1.0 if _is_face(joint) else 1.35)
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=_joint_colour(joint))
    return np.asarray(canvas.reduce(_OVERSAMPLING)).copy()


def _is_face(joint: int) -> bool:
    return JOINT_NAMES[joint].endswith(("eye", "ear"))


def _joint_colour(joint: int) -> tuple[int, int, int]:
    side, _, part = JOINT_NAMES[joint].partition("_")
    if not part:
        return _MIDDLE
    if part in ("eye", "ear"):
        return _FACE[side]
    return (_LEG if part in ("hip", "knee", "ankle") else _ARM)[side]


def _limb_colour(first: int, second: int) -> tuple[int, int, int]:
    """A limb takes the colour of its outer end, which ``LIMBS`` names second."""
    return _joint_colour(second)
