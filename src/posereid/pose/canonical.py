"""Eight named target poses: one walking person, seen from eight directions."""

import numpy as np

from posereid.pose.joints import JOINT_COUNT, Joints, joint_index

# The person faces +z with its own right at -x; y points up and 1 is the standing height.
_BODY: dict[str, tuple[float, float, float]] = {
    "nose": (0.0, 0.925, 0.075),
    "neck": (0.0, 0.825, 0.0),
    "right_shoulder": (-0.105, 0.815, 0.0),
    "right_elbow": (-0.125, 0.655, 0.03),
    "right_wrist": (-0.12, 0.52, 0.10),
    "left_shoulder": (0.105, 0.815, 0.0),
    "left_elbow": (0.125, 0.655, -0.05),
    "left_wrist": (0.125, 0.505, -0.03),
    "right_hip": (-0.065, 0.535, 0.0),
    "right_knee": (-0.065, 0.29, -0.015),
    "right_ankle": (-0.065, 0.06, -0.12),
    "left_hip": (0.065, 0.535, 0.0),
    "left_knee": (0.065, 0.285, 0.07),
    "left_ankle": (0.065, 0.045, 0.11),
    "right_eye": (-0.022, 0.94, 0.06),
    "left_eye": (0.022, 0.94, 0.06),
    "right_ear": (-0.052, 0.93, 0.0),
    "left_ear": (0.052, 0.93, 0.0),
}

# Directions the body turns to, in degrees, seen from the camera; what is then hidden by head or trunk.
_NEAR_RIGHT = ("left_eye", "left_ear")
_NEAR_LEFT = ("right_eye", "right_ear")
_FACE = ("nose", "right_eye", "left_eye")
_VIEWS: dict[str, tuple[float, tuple[str, ...]]] = {
    "front": (0, ()),
    "front_left": (45, ("right_ear",)),
    "left": (90, (*_NEAR_LEFT, "right_elbow")),
    "back_left": (135, (*_FACE, "right_ear")),
    "back": (180, _FACE),
    "back_right": (225, (*_FACE, "left_ear")),
    "right": (270, (*_NEAR_RIGHT, "left_elbow")),
    "front_right": (315, ("left_ear",)),
}

CANONICAL_POSES: tuple[str, ...] = tuple(_VIEWS)
"""Names of the eight directions; ``left`` shows the person's left side to the camera."""


def canonical_pose(name: str, height: int = 128, width: int = 64) -> Joints:
    """One of the eight named poses in a ``height`` × ``width`` crop, in pixels.

    The person stands upright in the crop's middle and fills nine tenths of its height. Joints that head or trunk
    would hide are absent, so that front and back differ. Raises KeyError for a name not in CANONICAL_POSES.
    """
    degrees, hidden = _VIEWS[name]
    turn = np.deg2rad(degrees)
    xy = np.zeros((JOINT_COUNT, 2), np.float32)
    present = np.ones(JOINT_COUNT, bool)
    for joint, (x, y, z) in _BODY.items():
        # Showing the left side means turning the left shoulder to the viewer: +x comes towards the camera.
        across = x * np.cos(turn) - z * np.sin(turn)
        xy[joint_index(joint)] = (
            width / 2 - 0.5 + across * 0.9 * height,
            height * (0.95 - 0.9 * y) - 0.5,
        )
        present[joint_index(joint)] = joint not in hidden
    return Joints(np.where(present[:, None], xy, 0).astype(np.float32), present)
