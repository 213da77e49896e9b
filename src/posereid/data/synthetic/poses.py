"""The pose library: walking, standing, phoning, carrying, sitting, crouching, cycling. Angles are radians."""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Limb:
    """An arm or a leg.

    ``swing`` forward, ``spread`` away from the body, ``turn`` inward for arms and outward for legs, ``bend``
    of the elbow or knee, ``foot`` pitch of the sole (positive: toes up). With a ``target`` the limb reaches
    for that point (metres) instead: from the pelvis, or from the shoulder line (``target_on_chest``) or the
    middle of the head (``target_on_head``).
    """

    swing: float = 0.0
    spread: float = 0.0
    turn: float = 0.0
    bend: float = 0.0
    foot: float = 0.0
    target: tuple[float, float, float] | None = None
    target_on_head: bool = False
    target_on_chest: bool = False


@dataclass(frozen=True)
class Pose:
    """Joint angles of the whole body. ``kind`` names the family; ``riding`` brings a bicycle along.

    ``pelvis_height`` (metres above ground) fixes the hips; None lets the lower foot stand on the ground.
    """

    kind: str = "standing"
    pelvis_turn: float = 0.0
    pelvis_pitch: float = 0.0
    pelvis_roll: float = 0.0
    spine_pitch: float = 0.0
    spine_twist: float = 0.0
    spine_roll: float = 0.0
    head_turn: float = 0.0
    head_pitch: float = 0.0
    head_roll: float = 0.0
    right_arm: Limb = field(default_factory=Limb)
    left_arm: Limb = field(default_factory=Limb)
    right_leg: Limb = field(default_factory=Limb)
    left_leg: Limb = field(default_factory=Limb)
    pelvis_height: float | None = None
    crank_angle: float = 0.0

    @property
    def riding(self) -> bool:
        """Whether the person sits on a bicycle."""
        return self.kind == "cycling"

    @property
    def seated(self) -> bool:
        """Whether the person sits on a bench."""
        return self.kind == "sitting"


POSE_WEIGHTS: dict[str, float] = {
    "walking": 0.55,
    "standing": 0.20,
    "phoning": 0.07,
    "carrying": 0.06,
    "raising": 0.03,
    "sitting": 0.02,
    "crouching": 0.02,
    "cycling": 0.05,
}
"""How often each family is drawn."""

BICYCLE_SADDLE_HEIGHT = 0.93
BICYCLE_CRANK_LENGTH = 0.165
BICYCLE_BRACKET = (0.0, 0.2, 0.29)
"""Bottom bracket in bicycle axes (metres): right, forward of the saddle, above ground."""
BICYCLE_GRIP = (0.25, 0.53, 1.04)
"""The right grip of the handlebar in bicycle axes."""


def sample_pose(rng: np.random.Generator, kind: str | None = None, phase: float = 0.0) -> Pose:
    """A random pose; ``kind`` restricts it to one family of :data:`POSE_WEIGHTS`.

    The same generator state with another ``phase`` (radians) gives the same person's movement at another instant: a
    walk or a ride that far on; poses without a cycle do not change.
    """
    if kind is None:
        names = list(POSE_WEIGHTS)
        kind = names[int(rng.choice(len(names), p=list(POSE_WEIGHTS.values())))]
    return _MOVING[kind](rng, phase) if kind in _MOVING else _STILL[kind](rng)


def stirred(pose: Pose, rng: np.random.Generator, spread: float) -> Pose:
    """A neighbouring pose: joint angles vary by about ``spread`` radians, the head's by twice that."""

    def limb(old: Limb) -> Limb:
        swing, spreading, bend = (_jitter(rng, spread) for _ in range(3))
        if old.target is not None:
            return old
        return replace(
            old, swing=old.swing + swing, spread=max(old.spread + spreading, 0.0), bend=max(old.bend + bend, 0.0)
        )

    return replace(
        pose,
        spine_pitch=pose.spine_pitch + _jitter(rng, spread / 2),
        spine_twist=pose.spine_twist + _jitter(rng, spread / 2),
        head_turn=float(np.clip(pose.head_turn + _jitter(rng, 2 * spread), -1.0, 1.0)),
        head_pitch=float(np.clip(pose.head_pitch + _jitter(rng, spread), -0.2, 0.5)),
        right_arm=limb(pose.right_arm),
        left_arm=limb(pose.left_arm),
        # The lower foot stands on the ground wherever it is, so legs may vary too.
        right_leg=limb(pose.right_leg),
        left_leg=limb(pose.left_leg),
    )


def walking(rng: np.random.Generator, phase: float = 0.0) -> Pose:
    """One instant of a walk, ``phase`` radians after a random one."""
    phase += float(rng.uniform(0, 2 * np.pi))  # 0 = right leg fully forward
    stride = float(rng.uniform(0.28, 0.52))
    arm_swing = stride * float(rng.uniform(0.5, 1.1))

    def leg(at: float) -> Limb:
        swing = stride * np.cos(at) - 0.02
        # The knee bends most while the leg is brought forward, a little at heel strike.
        bend = 0.08 + 0.95 * stride / 0.42 * max(0.0, np.sin(at - np.pi - 0.25)) ** 1.6 + _jitter(rng, 0.03)
        trailing = max(0.0, -np.cos(at)) * (0.9 * stride / 0.42)
        foot = 0.25 * max(0.0, np.cos(at)) ** 3 - 0.55 * trailing * (0.6 + 0.4 * np.sin(at - np.pi))
        return Limb(swing + 0.3 * max(0.0, bend - 0.2), 0.03 + abs(_jitter(rng, 0.02)), 0.0, bend, foot)

    def arm(at: float) -> Limb:
        return Limb(
            -arm_swing * np.cos(at) + 0.02,
            0.10 + abs(_jitter(rng, 0.06)),
            0.25,
            0.22 + 0.25 * max(0.0, -np.cos(at)) + abs(_jitter(rng, 0.1)),
        )

    right_arm, left_arm = arm(phase), arm(phase + np.pi)
    habit = rng.random()
    if habit < 0.08:  # a hand in the pocket
        right_arm = Limb(-0.1, 0.25, 0.4, 0.55)
    elif habit < 0.16:
        left_arm = Limb(-0.1, 0.25, 0.4, 0.55)
    twist = 0.12 * np.cos(phase)
    return Pose(
        kind="walking",
        pelvis_turn=0.06 * np.cos(phase),
        spine_pitch=float(rng.uniform(0.0, 0.12)),
        spine_twist=-twist - 0.03 * np.cos(phase),
        spine_roll=_jitter(rng, 0.02),
        right_arm=right_arm,
        left_arm=left_arm,
        right_leg=leg(phase),
        left_leg=leg(phase + np.pi),
        **_gaze(rng),
    )


def standing(rng: np.random.Generator) -> Pose:
    """Standing, with the weight on one leg and arms down, folded, behind the back or on the hip."""
    shift = _jitter(rng, 0.05)

    def leg() -> Limb:
        bend = abs(_jitter(rng, 0.06))
        return Limb(bend * 0.5 + _jitter(rng, 0.05), float(rng.uniform(0.02, 0.14)), _jitter(rng, 0.1), bend)

    right = Limb(_jitter(rng, 0.12), float(rng.uniform(0.06, 0.2)), 0.25, float(rng.uniform(0.1, 0.4)))
    left = Limb(_jitter(rng, 0.12), float(rng.uniform(0.06, 0.2)), 0.25, float(rng.uniform(0.1, 0.4)))
    habit = rng.random()
    if habit < 0.12:  # folded arms
        right = Limb(target=(-0.11, 0.17, -0.26), target_on_chest=True)
        left = Limb(target=(0.11, 0.19, -0.22), target_on_chest=True)
    elif habit < 0.2:  # hands behind the back
        right = Limb(target=(0.03, -0.17, -0.36), target_on_chest=True)
        left = Limb(target=(-0.03, -0.17, -0.38), target_on_chest=True)
    elif habit < 0.28:  # a hand on the hip
        right = Limb(target=(0.19, 0.03, -0.36), target_on_chest=True)
    elif habit < 0.4:  # looking at a phone
        right = Limb(target=(0.06, 0.30, -0.16), target_on_chest=True)
    return Pose(
        kind="standing",
        pelvis_roll=shift,
        spine_pitch=_jitter(rng, 0.04),
        spine_twist=_jitter(rng, 0.12),
        spine_roll=-shift,
        right_arm=right,
        left_arm=left,
        right_leg=leg(),
        left_leg=leg(),
        **_gaze(rng),
    )


def phoning(rng: np.random.Generator, phase: float = 0.0) -> Pose:
    """Walking or standing with a phone at one ear."""
    base = walking(rng, phase) if rng.random() < 0.6 else standing(rng)
    arms = {"right_arm": base.right_arm, "left_arm": base.left_arm}
    side = 1 if rng.random() < 0.6 else -1
    ear = (side * (0.13 + abs(_jitter(rng, 0.01))), 0.02 + _jitter(rng, 0.02), -0.09 + _jitter(rng, 0.02))
    arms["right_arm" if side > 0 else "left_arm"] = Limb(target=ear, target_on_head=True)
    return _varied(base, "phoning", arms)


def carrying(rng: np.random.Generator, phase: float = 0.0) -> Pose:
    """Both hands holding something in front of the body."""
    base = walking(rng, phase) if rng.random() < 0.6 else standing(rng)
    height = float(rng.uniform(-0.36, -0.2))
    apart = float(rng.uniform(0.08, 0.17))
    forward = float(rng.uniform(0.24, 0.36))
    arms = {
        "right_arm": Limb(target=(apart, forward, height + _jitter(rng, 0.03)), target_on_chest=True),
        "left_arm": Limb(target=(-apart, forward, height + _jitter(rng, 0.03)), target_on_chest=True),
    }
    return _varied(base, "carrying", arms)


def raising(rng: np.random.Generator) -> Pose:
    """Standing with one or both arms raised."""
    base = standing(rng)
    first = Limb(float(rng.uniform(0.4, 1.6)), float(rng.uniform(1.2, 2.5)), 0.0, float(rng.uniform(0.1, 0.9)))
    second = Limb(float(rng.uniform(0.4, 1.6)), float(rng.uniform(1.2, 2.5)), 0.0, float(rng.uniform(0.1, 0.9)))
    choice = rng.random()
    arms = {"right_arm": base.right_arm, "left_arm": base.left_arm}
    if choice < 0.75:
        arms["right_arm"] = first
    if choice > 0.4:
        arms["left_arm"] = second
    return _varied(base, "raising", arms)


def sitting(rng: np.random.Generator) -> Pose:
    """Sitting on a bench, hands on the thighs."""

    def leg() -> Limb:
        swing = 1.45 + _jitter(rng, 0.08)
        return Limb(swing, 0.1 + abs(_jitter(rng, 0.08)), 0.0, swing + _jitter(rng, 0.15))

    reach = float(rng.uniform(0.18, 0.32))
    return Pose(
        kind="sitting",
        pelvis_pitch=-0.05,
        spine_pitch=float(rng.uniform(0.05, 0.35)),
        spine_twist=_jitter(rng, 0.08),
        right_arm=Limb(target=(0.13, reach, 0.13)),
        left_arm=Limb(target=(-0.13, reach + _jitter(rng, 0.04), 0.13)),
        right_leg=leg(),
        left_leg=leg(),
        **_gaze(rng),
    )


def crouching(rng: np.random.Generator) -> Pose:
    """Crouching or bending down."""
    depth = float(rng.uniform(0.5, 1.0))

    def leg() -> Limb:
        return Limb(1.6 * depth + _jitter(rng, 0.1), 0.15, 0.1, 2.3 * depth + _jitter(rng, 0.1), -0.1 * depth)

    return Pose(
        kind="crouching",
        pelvis_pitch=0.3 * depth,
        spine_pitch=0.3 + 0.3 * depth,
        right_arm=Limb(0.9 + _jitter(rng, 0.2), 0.1, 0.2, 0.5 + _jitter(rng, 0.2)),
        left_arm=Limb(0.9 + _jitter(rng, 0.2), 0.1, 0.2, 0.5 + _jitter(rng, 0.2)),
        right_leg=leg(),
        left_leg=leg(),
        **_gaze(rng),
    )


def cycling(rng: np.random.Generator, phase: float = 0.0) -> Pose:
    """On a bicycle: feet on the pedals, hands on the grips."""
    crank = phase + float(rng.uniform(0, 2 * np.pi))
    hips = BICYCLE_SADDLE_HEIGHT + 0.04

    def pedal(side: int) -> Limb:
        angle = crank if side > 0 else crank + np.pi
        forward = BICYCLE_BRACKET[1] + BICYCLE_CRANK_LENGTH * np.cos(angle) - 0.06
        height = BICYCLE_BRACKET[2] + BICYCLE_CRANK_LENGTH * np.sin(angle) + 0.11 - hips
        return Limb(target=(side * 0.1, float(forward), float(height)))

    def grip(side: int) -> Limb:
        return Limb(target=(side * BICYCLE_GRIP[0], BICYCLE_GRIP[1] - 0.06, BICYCLE_GRIP[2] + 0.05 - hips))

    return Pose(
        kind="cycling",
        pelvis_pitch=0.15,
        spine_pitch=float(rng.uniform(0.15, 0.35)),
        right_arm=grip(1),
        left_arm=grip(-1),
        right_leg=pedal(1),
        left_leg=pedal(-1),
        pelvis_height=hips,
        crank_angle=crank,
        **_gaze(rng),
    )


def _gaze(rng: np.random.Generator) -> dict[str, float]:
    """A little turning and nodding of the head; now and then a look to the side or at the ground."""
    aside = rng.normal(0, 0.6) if rng.random() < 0.15 else rng.normal(0, 0.12)
    return {
        "head_turn": float(np.clip(aside, -1.0, 1.0)),
        "head_pitch": float(np.clip(rng.normal(0.08, 0.12), -0.2, 0.5)),
        "head_roll": _jitter(rng, 0.04),
    }


def _jitter(rng: np.random.Generator, spread: float) -> float:
    """A normal deviate cut off at two standard deviations."""
    return float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))


def _varied(base: Pose, kind: str, changes: dict[str, Limb]) -> Pose:
    return Pose(**{**base.__dict__, **changes, "kind": kind})


_MOVING = {"walking": walking, "phoning": phoning, "carrying": carrying, "cycling": cycling}
_STILL = {"standing": standing, "raising": raising, "sitting": sitting, "crouching": crouching}
