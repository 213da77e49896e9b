"""The articulated body: proportions, and forward kinematics from a pose to frames and the 18 joints.

Body axes are x to the person's right, y forward, z up; lengths are metres and the ground is z = 0.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from posereid.data.synthetic.poses import Limb, Pose
from posereid.pose.joints import JOINT_COUNT, joint_index

Array = npt.NDArray[np.float64]


class Frame(IntEnum):
    """Coordinate frames of the body parts. Limb frames start at the near joint; z runs along the limb."""

    PELVIS = 0
    CHEST = 1
    HEAD = 2
    RIGHT_UPPER_ARM = 3
    RIGHT_FOREARM = 4
    LEFT_UPPER_ARM = 5
    LEFT_FOREARM = 6
    RIGHT_THIGH = 7
    RIGHT_SHIN = 8
    RIGHT_FOOT = 9
    LEFT_THIGH = 10
    LEFT_SHIN = 11
    LEFT_FOOT = 12
    SKIRT = 13
    RIGHT_BAG = 14
    LEFT_BAG = 15
    NECK = 16


@dataclass(frozen=True)
class Proportions:
    """One person's build. Lengths in metres, ``girth`` a factor on all thicknesses around 1."""

    stature: float
    girth: float
    shoulder_half: float
    hip_half: float
    upper_arm: float
    forearm: float
    thigh: float
    shin: float
    trunk: float
    """Waist to the line of the shoulders."""
    belly: float
    """Factor on the thickness of the waist."""

    @property
    def ankle_height(self) -> float:
        """Ankle above the sole."""
        return 0.046 * self.stature

    @property
    def waist_height(self) -> float:
        """Waist above the line of the hips."""
        return 0.085 * self.stature


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A posed body: ``rotation`` (F, 3, 3) and ``origin`` (F, 3) of the frames, ``joints`` (18, 3)."""

    rotation: Array
    origin: Array
    joints: Array


def sample_proportions(rng: np.random.Generator) -> Proportions:
    """A random adult."""
    stature = float(np.clip(rng.normal(1.70, 0.09), 1.5, 1.92))
    broad = rng.normal(0, 1)  # from narrow shoulders and wide hips to the opposite
    return Proportions(
        stature=stature,
        girth=float(np.clip(rng.normal(1.0, 0.1), 0.82, 1.25)),
        shoulder_half=stature * float(np.clip(0.103 + 0.006 * broad, 0.092, 0.116)),
        hip_half=stature * float(np.clip(0.053 - 0.002 * broad, 0.048, 0.058)),
        upper_arm=stature * float(rng.uniform(0.162, 0.176)),
        forearm=stature * float(rng.uniform(0.142, 0.154)),
        thigh=stature * float(rng.uniform(0.232, 0.248)),
        shin=stature * float(rng.uniform(0.232, 0.246)),
        trunk=stature * float(rng.uniform(0.200, 0.214)),
        belly=float(np.clip(rng.normal(1.0, 0.1), 0.85, 1.3)),
    )


def about_x(angle: float) -> Array:
    """Rotation about the body's right axis; positive swings a hanging limb forward."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def about_y(angle: float) -> Array:
    """Rotation about the forward axis; positive swings a hanging limb to the person's left."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def about_z(angle: float) -> Array:
    """Rotation about the vertical; positive turns to the person's left."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


_HANGING = about_x(np.pi)  # part z points down the limb


def _along(direction: Array, side: Array) -> Array:
    """Frame whose z runs along ``direction`` and whose x lies as near to ``side`` as it can."""
    z = direction / np.sqrt(direction @ direction)
    x = side - z * (side @ z)
    x /= np.sqrt(x @ x)
    # Written out: np.cross is slow for single vectors, and every limb of every crop needs one.
    y = (z[1] * x[2] - z[2] * x[1], z[2] * x[0] - z[0] * x[2], z[0] * x[1] - z[1] * x[0])
    return np.array((x, y, z)).T


def _bent(root: Array, target: Array, upper: float, lower: float, pole: Array) -> Array:
    """The middle joint of a two-bone limb from ``root`` to ``target``, bending towards ``pole``."""
    reach = target - root
    distance = float(np.clip(np.linalg.norm(reach), abs(upper - lower) + 0.01, upper + lower - 0.005))
    forward = reach / np.linalg.norm(reach)
    along = (distance**2 + upper**2 - lower**2) / (2 * distance)
    aside = pole - forward * (pole @ forward)
    aside /= np.linalg.norm(aside)
    return root + forward * along + aside * np.sqrt(max(upper**2 - along**2, 0))


def pose_body(body: Proportions, pose: Pose) -> Skeleton:
    """Forward kinematics: where every body part and joint of this person is in this pose."""
    rotation = np.zeros((len(Frame), 3, 3))
    origin = np.zeros((len(Frame), 3))
    joints = np.zeros((JOINT_COUNT, 3))

    pelvis = about_z(pose.pelvis_turn) @ about_x(-pose.pelvis_pitch) @ about_y(pose.pelvis_roll)
    chest = pelvis @ about_x(-pose.spine_pitch) @ about_z(pose.spine_twist) @ about_y(pose.spine_roll)
    # The head keeps its gaze level whatever the trunk does, then nods and turns by itself.
    level = about_x(0.75 * (pose.pelvis_pitch + pose.spine_pitch))
    head = chest @ level @ about_z(pose.head_turn) @ about_x(-pose.head_pitch) @ about_y(pose.head_roll)
    waist = pelvis @ np.array([0, 0, body.waist_height])
    top = waist + chest @ np.array([0, 0, body.trunk])
    neck_base = top + chest @ np.array([0, -0.01, 0.022 * body.stature])
    skull = neck_base + (0.5 * chest + 0.5 * head) @ np.array([0, 0.012, 0.092 * body.stature])

    for frame, turn, place in (
        (Frame.PELVIS, pelvis, np.zeros(3)),
        (Frame.CHEST, chest, waist),
        (Frame.HEAD, head, skull),
        (Frame.NECK, _along(skull - neck_base, chest[:, 0]), neck_base),
    ):
        rotation[frame], origin[frame] = turn, place

    sides: tuple[tuple[str, int, Limb, Limb], ...] = (
        ("right", 1, pose.right_arm, pose.right_leg),
        ("left", -1, pose.left_arm, pose.left_leg),
    )
    knees = []
    for name, sign, arm, leg in sides:
        upper_arm = Frame[f"{name.upper()}_UPPER_ARM"]
        thigh = Frame[f"{name.upper()}_THIGH"]
        hip = pelvis @ np.array([sign * body.hip_half, 0, 0])
        turn = about_z(pose.pelvis_turn) @ about_x(leg.swing) @ about_y(-sign * leg.spread)
        turn = turn @ about_z(-sign * leg.turn)
        if leg.target is None:
            knee = hip + turn @ np.array([0, 0, -body.thigh])
            lower = turn @ about_x(-leg.bend)
            ankle = knee + lower @ np.array([0, 0, -body.shin])
        else:
            ankle = np.array(leg.target)
            knee = _bent(hip, ankle, body.thigh, body.shin, np.array([0.12 * sign, 1.0, 0.25]))
            ankle = knee + (ankle - knee) / np.linalg.norm(ankle - knee) * body.shin
        knees.append(knee)
        rotation[thigh], origin[thigh] = _along(knee - hip, turn[:, 0]), hip
        rotation[thigh + 1], origin[thigh + 1] = _along(ankle - knee, turn[:, 0]), knee
        # Soles stay nearly flat while the leg is forward or straight, and roll up as it trails behind.
        heading = about_z(pose.pelvis_turn - sign * (0.12 + leg.turn))
        rotation[thigh + 2], origin[thigh + 2] = heading @ about_x(leg.foot), ankle

        shoulder = waist + chest @ np.array([sign * body.shoulder_half, 0, body.trunk - 0.012])
        turn = chest @ about_x(arm.swing) @ about_y(-sign * arm.spread) @ about_z(sign * arm.turn)
        if arm.target is None:
            elbow = shoulder + turn @ np.array([0, 0, -body.upper_arm])
            wrist = elbow + turn @ about_x(arm.bend) @ np.array([0, 0, -body.forearm])
        else:
            wrist = np.array(arm.target)
            if arm.target_on_head:
                wrist = skull + head @ wrist
            elif arm.target_on_chest:
                wrist = waist + chest @ (wrist + np.array([0, 0, body.trunk]))
            pole = chest @ np.array([0.55 * sign, -0.45, -0.7])
            elbow = _bent(shoulder, wrist, body.upper_arm, body.forearm, pole)
            wrist = elbow + (wrist - elbow) / np.linalg.norm(wrist - elbow) * body.forearm
        rotation[upper_arm], origin[upper_arm] = _along(elbow - shoulder, turn[:, 0]), shoulder
        rotation[upper_arm + 1], origin[upper_arm + 1] = _along(wrist - elbow, turn[:, 0]), elbow
        bag = Frame[f"{name.upper()}_BAG"]
        rotation[bag] = about_z(pose.pelvis_turn) @ _HANGING
        origin[bag] = wrist + (wrist - elbow) * (0.32 if arm.target is None else 0.15)
        for part, point in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", wrist),
            ("hip", hip), ("knee", knee), ("ankle", ankle),
        ):  # fmt: skip
            joints[joint_index(f"{name}_{part}")] = point
        for part, place in (("eye", (0.033, 0.088, 0.016)), ("ear", (0.074, -0.005, 0.0))):
            joints[joint_index(f"{name}_{part}")] = skull + head @ np.array([sign * place[0], *place[1:]])
    joints[joint_index("nose")] = skull + head @ np.array([0, 0.105, -0.018])
    joints[joint_index("neck")] = top + chest @ np.array([0, 0, 0.004])
    fall = (knees[0] + knees[1]) / 2 - np.array([0, 0, 0.05])
    rotation[Frame.SKIRT], origin[Frame.SKIRT] = _along(fall, pelvis[:, 0]), np.zeros(3)

    # The lowest foot, or the seat, stands on the ground.
    if pose.pelvis_height is None:
        soles = [
            origin[foot] + rotation[foot] @ np.array([0, y, -body.ankle_height])
            for foot in (Frame.RIGHT_FOOT, Frame.LEFT_FOOT)
            for y in (-0.05, 0.16)
        ]
        lift = -min(float(point[2]) for point in soles)
    else:
        lift = pose.pelvis_height
    origin[:, 2] += lift
    joints[:, 2] += lift
    return Skeleton(rotation, origin, joints)
