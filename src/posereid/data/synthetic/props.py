"""Things beside the body: bicycle, bench, parcel, telephone, and what may stand in front of a person."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from posereid.data.synthetic.appearance import sample_appearance
from posereid.data.synthetic.body import Array, Skeleton, about_z, pose_body, sample_proportions
from posereid.data.synthetic.figure import build_figure
from posereid.data.synthetic.patterns import Material
from posereid.data.synthetic.poses import (
    BICYCLE_BRACKET,
    BICYCLE_CRANK_LENGTH,
    BICYCLE_GRIP,
    BICYCLE_SADDLE_HEIGHT,
    Pose,
    walking,
)
from posereid.data.synthetic.presets import PRESETS
from posereid.data.synthetic.rasteriser import SolidBuilder, Solids
from posereid.pose.joints import joint_index

OCCLUDERS = ("post", "hedge", "passer-by", "plant", "parked bicycle", "bin")
"""Kinds of things that may hide a part of the person."""


_SIDES = ("right", "left")


@dataclass(frozen=True, eq=False)
class Prop:
    """Solids with frames of their own: ``rotation`` (F, 3, 3) and ``origin`` (F, 3).

    With ``on_body`` the frames are in body axes and turn with the person; otherwise in ground axes: x to the
    right of the image, y towards the camera, z up, origin under the person.
    """

    solids: Solids
    materials: tuple[Material, ...]
    rotation: Array
    origin: Array
    on_body: bool


def _still(builder: SolidBuilder, materials: tuple[Material, ...], *, on_body: bool) -> Prop:
    return Prop(builder.build(), materials, np.eye(3)[None], np.zeros((1, 3)), on_body)


def bicycle(paint: tuple[float, float, float], crank_angle: float) -> Prop:
    """A bicycle under its rider: saddle above the origin, wheels ahead of and behind it."""
    builder = SolidBuilder()
    frame, rubber, steel = 0, 1, 2
    rear, front = (0.0, -0.2, 0.33), (0.0, 0.83, 0.33)
    bracket = BICYCLE_BRACKET
    seat = (0.0, 0.02, BICYCLE_SADDLE_HEIGHT - 0.08)
    head, crown = (0.0, 0.6, 0.92), (0.0, 0.65, 0.7)
    for start, end, radius in (
        (bracket, seat, 0.017), (bracket, crown, 0.021), (seat, head, 0.017), (crown, head, 0.02),
        (bracket, rear, 0.012), (seat, rear, 0.01), (crown, front, 0.014),
    ):  # fmt: skip
        builder.add(0, frame, start, end, radius)
    grip = BICYCLE_GRIP
    builder.add(0, steel, head, (0, 0.58, grip[2]), 0.014)
    for sign in (1, -1):
        builder.add(0, steel, (0, 0.6, grip[2] - 0.01), (sign * grip[0], grip[1], grip[2]), 0.013)
    builder.add(
        0,
        rubber,
        (0, -0.06, BICYCLE_SADDLE_HEIGHT - 0.02),
        (0, 0.16, BICYCLE_SADDLE_HEIGHT),
        (0.06, 0.03),
        (1.2, 1, 0.6),
    )
    segments = 12
    for centre in (rear, front):
        builder.add(0, steel, (-0.03, *centre[1:]), (0.03, *centre[1:]), 0.025)
        rim = [
            (0.0, centre[1] + 0.32 * float(np.cos(turn)), centre[2] + 0.32 * float(np.sin(turn)))
            for turn in np.linspace(0, 2 * np.pi, segments + 1)
        ]
        for start, end in pairwise(rim):
            builder.add(0, rubber, start, end, 0.017)
    reach = BICYCLE_CRANK_LENGTH
    for sign in (1, -1):
        tip = (
            sign * 0.08,
            bracket[1] + sign * reach * float(np.cos(crank_angle)),
            bracket[2] + sign * reach * float(np.sin(crank_angle)),
        )
        builder.add(0, steel, (sign * 0.06, *bracket[1:]), tip, 0.011)
        builder.add(0, rubber, tip, (sign * 0.15, tip[1], tip[2]), 0.025, (1, 1.3, 0.6))
    materials = (Material(paint), Material((0.07, 0.07, 0.07)), Material((0.45, 0.45, 0.46)))
    return _still(builder, materials, on_body=True)


def bench(seat_height: float) -> Prop:
    """A bench under a sitting person."""
    builder = SolidBuilder()
    for forward in (-0.24, -0.12, 0.0, 0.12):
        builder.add(0, 0, (-0.5, forward, seat_height), (0.5, forward, seat_height), 0.05, (1, 1, 0.4))
    for sign in (1, -1):
        for forward in (-0.2, 0.08):
            builder.add(0, 1, (sign * 0.42, forward, seat_height), (sign * 0.42, forward, 0.0), 0.02)
    return _still(builder, (Material((0.42, 0.30, 0.19)), Material((0.2, 0.2, 0.2))), on_body=True)


def parcel(skeleton: Skeleton, colour: tuple[float, float, float], size: float) -> Prop:
    """A parcel between the two hands."""
    hands = (skeleton.joints[joint_index("right_wrist")] + skeleton.joints[joint_index("left_wrist")]) / 2
    apart = np.linalg.norm(skeleton.joints[joint_index("right_wrist")] - skeleton.joints[joint_index("left_wrist")])
    half = max(float(apart) / 2 - 0.02, 0.09)
    place = hands + np.array([0, 0.1, 0.02])
    x, y, z = (float(value) for value in place)
    builder = SolidBuilder()
    # Two flat ended cylinders side by side read as a soft box.
    for forward in (-0.05, 0.05):
        builder.add(
            0, 0, (x, y + forward, z - size), (x, y + forward, z + size), 0.1, (half / 0.1, 0.9, 1),
            keep=(z - size, z + size),
        )  # fmt: skip
    return _still(builder, (Material(colour),), on_body=True)


def phone(skeleton: Skeleton) -> Prop:
    """A dark telephone in the hand that is at an ear."""
    joints = skeleton.joints
    sides = [(joints[joint_index(f"{side}_wrist")], joints[joint_index(f"{side}_ear")]) for side in _SIDES]
    wrist, ear = min(sides, key=lambda pair: float(np.linalg.norm(pair[0] - pair[1])))
    lower, upper = 0.55 * wrist + 0.45 * ear, 0.15 * wrist + 0.85 * ear
    builder = SolidBuilder()
    builder.add(0, 0, tuple(lower.tolist()), tuple(upper.tolist()), 0.022, (0.7, 1.2, 1))
    return _still(builder, (Material((0.06, 0.06, 0.07)),), on_body=True)


def occluder(kind: str, rng: np.random.Generator) -> Prop:
    """Something that stands between the person and the camera; ``kind`` is one of :data:`OCCLUDERS`."""
    aside = float(rng.choice((-1, 1)) * rng.uniform(0.12, 0.36))
    near = float(rng.uniform(0.45, 0.8))
    grey = float(rng.uniform(0.2, 0.6))
    builder = SolidBuilder()
    if kind == "post":
        radius = float(rng.uniform(0.04, 0.1))
        builder.add(0, 0, (aside, near, -0.3), (aside, near, 4.0), radius)
        return _still(builder, (Material((grey, grey, grey * 1.05)),), on_body=False)
    if kind == "hedge":
        top = float(rng.uniform(0.3, 0.75))
        green = Material((0.16 + 0.1 * grey, 0.32 + 0.1 * grey, 0.14), folds=0.35)
        stone = Material((grey + 0.15, grey + 0.13, grey + 0.1), folds=0.06)
        builder.add(0, 0, (-2, near, top - 0.2), (2, near, top - 0.2), 0.2)
        builder.add(0, 0, (-2, near, 0.0), (2, near, 0.0), 0.2, (1, 1, 3.5), keep=(-1, top - 0.15))
        return _still(builder, (green if rng.random() < 0.6 else stone,), on_body=False)
    if kind == "plant":
        height = float(rng.uniform(0.7, 1.3))
        for _ in range(22):
            x, y, z = rng.normal((aside * 1.3, near, 0.6 * height), (0.15, 0.1, 0.24 * height))
            stretch = rng.uniform(0.05, 0.14, 3)
            builder.add(0, int(rng.integers(2)), (x, y, z), radius=1.0, stretch=tuple(stretch))
        greens = (Material((0.15, 0.34, 0.13), folds=0.3), Material((0.25, 0.44, 0.17), folds=0.3))
        return _still(builder, greens, on_body=False)
    if kind == "bin":
        builder.add(
            0,
            0,
            (aside, near, 0.0),
            (aside, near, 0.9),
            (0.2, 0.26),
            keep=(0.0, float(rng.uniform(0.7, 0.95))),
        )
        return _still(builder, (Material((0.15, 0.2 + 0.3 * grey, 0.2)),), on_body=False)
    if kind == "parked bicycle":
        paint = tuple(float(value) for value in rng.uniform(0.08, 0.6, 3))
        bike = bicycle(paint, float(rng.uniform(0, 6)))  # type: ignore[arg-type]
        turn = about_z(float(rng.choice((-1, 1)) * rng.uniform(1.2, 1.9)))
        return Prop(bike.solids, bike.materials, turn[None], np.array([[aside - 0.3, near, 0.0]]), on_body=False)
    if kind == "passer-by":
        body = sample_proportions(rng)
        figure = build_figure(body, sample_appearance(rng, body.stature, PRESETS["default"]))
        skeleton = pose_body(body, walking(rng))
        turn = about_z(float(rng.uniform(0, 2 * np.pi)))
        place = np.array([np.sign(aside) * (0.2 + abs(aside) / 2), near, 0.0])
        return Prop(figure.solids, figure.materials, turn @ skeleton.rotation, skeleton.origin @ turn.T + place, False)
    raise ValueError(f"unknown kind of occluder {kind!r}; expected one of {', '.join(OCCLUDERS)}")


def belongings(pose: Pose, skeleton: Skeleton, seed: int) -> list[Prop]:
    """What the pose brings along: a bicycle, a bench, a parcel, a telephone. ``seed`` fixes their looks."""
    rng = np.random.default_rng(seed)
    tint = rng.uniform(0.0, 1.0, 3)
    if pose.riding:
        return [bicycle(tuple(0.08 + 0.55 * tint**2), pose.crank_angle)]
    if pose.seated:
        hips = skeleton.origin[0]
        seat = bench(float(hips[2]) - 0.13)
        return [Prop(seat.solids, seat.materials, seat.rotation, seat.origin, True)]
    if pose.kind == "phoning":
        return [phone(skeleton)]
    if pose.kind == "carrying" and tint[0] < 0.7:
        brown = np.array((0.62, 0.47, 0.31)) * (0.6 + 0.6 * tint[1])
        return [parcel(skeleton, tuple(brown), 0.06 + 0.1 * float(tint[2]))]
    return []
