"""Poses compared: skeletons without place and size, how far two of them lie apart, which side the camera sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float32, Int64

from posereid.pose.joints import JOINT_COUNT, TORSO, Joints, joint_index

Direction = Literal["front", "left", "back", "right"]
"""The side of the person that the camera sees."""

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

REACH = 4.0
"""Torso lengths from the hips beyond which a joint is misplaced; its coordinates are cut off there."""

ABSENCE = 0.5
"""Torso lengths that a joint counts for which one of two skeletons has and the other lacks."""

# Medians over Market-1501's training keypoints, in torso lengths.
_THIGH, _SHIN = 0.73, 0.72
# Of the canonical person seen from the front, in torso lengths; Market-1501's people are a little broader.
_SHOULDERS, _HIPS = 0.75, 0.46
_NOSE_AHEAD = 0.27
# Cosine of the turn from which on a person counts as seen from a side: 60°, so that half-turned people show their
# front or back.
_SIDEWAYS = 0.5
# The same for a back with a nose, which must be turned far enough to show it: 37°.
_SIDEWAYS_BACK_WITH_NOSE = 0.8
_ROWS = 512

_RIGHT_SHOULDER, _LEFT_SHOULDER, _RIGHT_HIP, _LEFT_HIP = TORSO
_NOSE, _NECK = joint_index("nose"), joint_index("neck")
_LEGS = [[joint_index(f"{side}_{part}") for part in ("hip", "knee", "ankle")] for side in ("right", "left")]
_NEAR_PARTS = ("eye", "ear", "elbow", "wrist")
_RIGHT_PARTS, _LEFT_PARTS = ([joint_index(f"{side}_{part}") for part in _NEAR_PARTS] for side in ("right", "left"))


@dataclass(frozen=True, eq=False)
class Skeletons:
    """People's joints in torso lengths from the middle of their hips, y downwards.

    Place in the crop, size of the person and size of the crop are gone. Absent joints are zero.
    """

    xy: Float32[npt.NDArray[np.float32], "n 18 2"]
    present: Bool[npt.NDArray[np.bool_], "n 18"]

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, positions: npt.NDArray[np.int64] | slice) -> "Skeletons":
        return Skeletons(self.xy[positions], self.present[positions])


def normalised(joints: Sequence[Joints]) -> Skeletons:
    """Joints in pixels, of crops of any size, to skeletons in torso lengths.

    A torso is as long as from the shoulders' middle to the hips'. A person who bends, or stands under a steep camera,
    shows it shortened, so it is taken to be no shorter than the thighs and shins say (their median, scaled by the
    proportions of Market-1501's people). Coordinates end at ±REACH.

    Raises ValueError for joints without both shoulders and both hips.
    """
    if not all(pose.has_torso for pose in joints):
        raise ValueError("joints without both shoulders and both hips have no torso to be measured by")
    if not joints:
        return Skeletons(np.zeros((0, JOINT_COUNT, 2), np.float32), np.zeros((0, JOINT_COUNT), bool))
    xy = np.stack([pose.xy for pose in joints]).astype(np.float64)
    present = np.stack([pose.present for pose in joints])
    hips = xy[:, [_RIGHT_HIP, _LEFT_HIP]].mean(1)
    shoulders = xy[:, [_RIGHT_SHOULDER, _LEFT_SHOULDER]].mean(1)
    lengths = [np.linalg.norm(shoulders - hips, axis=-1)]
    for hip, knee, ankle in _LEGS:
        for upper, lower, usual in ((hip, knee, _THIGH), (knee, ankle, _SHIN)):
            length = np.linalg.norm(xy[:, upper] - xy[:, lower], axis=-1) / usual
            lengths.append(np.where(present[:, upper] & present[:, lower], length, np.nan))
    # Without legs the torso stands in for them, which also keeps rows of NaN alone from the median.
    legs = np.stack(lengths[1:])
    legs = np.where(np.isnan(legs).all(0), lengths[0], legs)
    scale = np.maximum(lengths[0], np.nanmedian(legs, axis=0))
    scale = np.where(scale > 0, scale, 1)
    placed = np.clip((xy - hips[:, None]) / scale[:, None, None], -REACH, REACH)
    return Skeletons(np.where(present[..., None], placed, 0).astype(np.float32), present)


def pose_distances(first: Skeletons, second: Skeletons) -> Float32[npt.NDArray[np.float32], "n m"]:
    """How far each of n skeletons is from each of m, in torso lengths: 0 for equal ones, never negative, symmetric.

    The root of the mean over the 18 joints of: the squared distance where both have the joint; ABSENCE² where one
    has it and the other lacks it, since what is hidden, above all the face, tells how a person stands; 0 where both
    lack it. Memory beyond the table itself is bounded.
    """
    table = np.empty((len(first), len(second)), np.float32)
    columns = _factors(second, swapped=True).T
    for start in range(0, len(first), _ROWS):
        squares = _factors(first[start : start + _ROWS], swapped=False) @ columns
        table[start : start + _ROWS] = np.sqrt(np.maximum(squares, 0) / JOINT_COUNT)
    return table


def _factors(skeletons: Skeletons, *, swapped: bool) -> npt.NDArray[np.float64]:
    """(n, 90) rows whose inner products are sums over joints, so that the whole table is one matrix product.

    With p for present, |a - b|² of joints that both have is (p|a|²) p' + p (p'|b|²) - 2 a·b, absent ones being zero,
    and one of the two lacks the joint where p (1 - p') + (1 - p) p' is 1.
    """
    xy, present = skeletons.xy.astype(np.float64), skeletons.present.astype(np.float64)
    size = (xy**2).sum(-1)
    flat = xy.reshape(len(xy), 2 * JOINT_COUNT)
    if swapped:
        return np.concatenate([present, size, -2 * flat, ABSENCE**2 * (1 - present), ABSENCE**2 * present], axis=1)
    return np.concatenate([size, present, flat, present, 1 - present], axis=1)


def directions(skeletons: Skeletons) -> Int64[npt.NDArray[np.int64], " n"]:
    """For each skeleton the position in DIRECTIONS of the side that the camera sees.

    Seen from the front the person's left is on the picture's right, from behind on its left; the narrower shoulders
    and hips are, the further the person is turned. From 60° on it is a side view: which, is told by the face (it
    looks to the picture's left when it shows the person's left), by knees, which bend forwards, and by eyes, ears and
    arms of the far side being hidden. The four diagonal views so count as front or back; but a back that shows its
    nose, too, is a side view from 37° on.
    """
    x, present = skeletons.xy[..., 0].astype(np.float64), skeletons.present
    shoulders = (x[:, _LEFT_SHOULDER] - x[:, _RIGHT_SHOULDER]) / _SHOULDERS
    hips = (x[:, _LEFT_HIP] - x[:, _RIGHT_HIP]) / _HIPS
    facing = (shoulders + hips) / 2
    leftward = 0.25 * (present[:, _LEFT_PARTS].sum(1) - present[:, _RIGHT_PARTS].sum(1))
    neck = np.where(present[:, _NECK], x[:, _NECK], (x[:, _LEFT_SHOULDER] + x[:, _RIGHT_SHOULDER]) / 2)
    leftward += np.where(present[:, _NOSE], np.clip((neck - x[:, _NOSE]) / _NOSE_AHEAD, -1, 1), 0)
    for hip, knee, ankle in _LEGS:
        bend = np.clip((x[:, hip] + x[:, ankle]) / 2 - x[:, knee], -0.5, 0.5)
        leftward += np.where(present[:, [knee, ankle]].all(1), bend, 0)
    limit = np.where((facing < 0) & present[:, _NOSE], _SIDEWAYS_BACK_WITH_NOSE, _SIDEWAYS)
    sideways = (np.abs(facing) < limit) & (leftward != 0)
    front = np.where(facing == 0, present[:, _NOSE], facing > 0)
    codes = np.where(
        sideways,
        np.where(leftward > 0, DIRECTIONS.index("left"), DIRECTIONS.index("right")),
        np.where(front, DIRECTIONS.index("front"), DIRECTIONS.index("back")),
    )
    return codes.astype(np.int64)


def direction(joints: Joints) -> Direction:
    """The side of one person that the camera sees (:func:`directions`).

    Raises ValueError for joints without both shoulders and both hips.
    """
    return DIRECTIONS[directions(normalised([joints]))[0]]
