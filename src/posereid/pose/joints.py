"""The 18 joints that every part of posereid speaks of: their order, their sides, one person's set of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

JOINT_NAMES: tuple[str, ...] = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
"""OpenPose's 18 joints in its order; left and right are the person's own."""

JOINT_COUNT = len(JOINT_NAMES)


def joint_index(name: str) -> int:
    """Position of a joint in :data:`JOINT_NAMES`."""
    return JOINT_NAMES.index(name)


def _mirrored(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side, name)


FLIP_ORDER: tuple[int, ...] = tuple(joint_index(_mirrored(name)) for name in JOINT_NAMES)
"""``flipped[j] = joints[FLIP_ORDER[j]]``: what a mirrored person calls left was the right before."""

TORSO: tuple[int, ...] = tuple(
    joint_index(name) for name in ("right_shoulder", "left_shoulder", "right_hip", "left_hip")
)
"""The four joints that the pair rule asks for."""

LIMBS: tuple[tuple[int, int], ...] = tuple(
    (joint_index(first), joint_index(second))
    for first, second in (
        ("neck", "right_shoulder"),
        ("neck", "left_shoulder"),
        ("right_shoulder", "right_elbow"),
        ("right_elbow", "right_wrist"),
        ("left_shoulder", "left_elbow"),
        ("left_elbow", "left_wrist"),
        ("neck", "right_hip"),
        ("right_hip", "right_knee"),
        ("right_knee", "right_ankle"),
        ("neck", "left_hip"),
        ("left_hip", "left_knee"),
        ("left_knee", "left_ankle"),
        ("neck", "nose"),
        ("nose", "right_eye"),
        ("nose", "left_eye"),
        ("right_eye", "right_ear"),
        ("left_eye", "left_ear"),
    )
)
"""Pairs of joints that a drawn skeleton connects."""


@dataclass(frozen=True, eq=False)
class Joints:
    """One person's joints in one crop.

    ``xy`` is (18, 2) float32, (x, y) in pixels of the crop with the origin at the top left; ``present`` is
    (18,) bool. Coordinates of absent joints are zero and mean nothing.
    """

    xy: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.xy.shape != (JOINT_COUNT, 2) or self.present.shape != (JOINT_COUNT,):
            raise ValueError(
                f"Joints need xy ({JOINT_COUNT}, 2) and present ({JOINT_COUNT},), "
                f"got {self.xy.shape} and {self.present.shape}"
            )

    @property
    def has_torso(self) -> bool:
        """Whether both shoulders and both hips are present."""
        return bool(self.present[list(TORSO)].all())

    def flipped(self, width: float) -> "Joints":
        """The joints of the horizontally mirrored crop, ``width`` pixels wide.

        A pixel's centre at column x moves to ``width - 1 - x``; left and right change places.
        """
        order = list(FLIP_ORDER)
        present = self.present[order]
        xy = self.xy[order].copy()
        xy[:, 0] = np.where(present, width - 1 - xy[:, 0], 0)
        return Joints(xy, present)

    def resized(self, scale_x: float, scale_y: float) -> "Joints":
        """The joints of the crop after resizing it by the two factors, pixel centres at whole numbers."""
        scale = np.array([scale_x, scale_y], np.float32)
        xy = (self.xy + 0.5) * scale - 0.5
        return Joints(np.where(self.present[:, None], xy, 0).astype(np.float32), self.present)
