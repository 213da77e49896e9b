"""From a person's build and looks to the solids that the rasteriser draws, once per person.

All coordinates are in the frames of :class:`~posereid.data.synthetic.body.Frame`, so posing a figure needs
only new frames.
"""

from dataclasses import dataclass

from posereid.data.synthetic.appearance import Appearance
from posereid.data.synthetic.body import Frame, Proportions
from posereid.data.synthetic.patterns import Material
from posereid.data.synthetic.rasteriser import FAR, SolidBuilder, Solids

SKIN, HAIR, HEAD, UPPER, TORSO, LOWER, SHOES, BAG, CAP, NECK, SOLE = range(11)
"""Positions in :attr:`Figure.materials`."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A dressed body: its solids and what they are made of."""

    solids: Solids
    materials: tuple[Material, ...]
    folds: float


def build_figure(body: Proportions, looks: Appearance) -> Figure:
    """The solids of one person, about thirty."""
    builder = SolidBuilder()
    _trunk(builder, body, looks)
    _legs(builder, body, looks)
    _arms(builder, body, looks)
    _head(builder, body, looks)
    _belongings(builder, body, looks)
    shade = 0.9
    materials = (
        Material(looks.skin),
        Material(looks.hair, folds=0.12),
        Material(looks.skin, "head", wearer=looks),
        Material(looks.upper.first, "garment", looks.upper, folds=0.09),
        Material(looks.upper.first, "torso", looks.upper, looks, folds=0.09),
        Material(looks.lower, folds=0.06)
        if looks.upper_kind != "dress"
        else Material(looks.upper.first, "garment", looks.upper, folds=0.09),
        Material(looks.shoes),
        Material(looks.backpack or looks.bag_colour, folds=0.05),
        Material(looks.cap or looks.hair),
        Material(tuple(shade * c for c in looks.skin)),  # type: ignore[arg-type]
        Material((0.75, 0.75, 0.74) if sum(looks.shoes) < 1 else (0.25, 0.25, 0.25)),
    )
    return Figure(builder.build(), materials, looks.folds)


def _trunk(builder: SolidBuilder, body: Proportions, looks: Appearance) -> None:
    girth, trunk, waist = body.girth, body.trunk, body.waist_height
    thick = 0.012 if looks.upper_kind in ("jacket", "open jacket") else 0.0
    half = body.shoulder_half - 0.028
    depth = 0.106 * girth + thick
    wide = (half + thick) / depth
    below = (0.0, 0.0, -waist)  # pelvis coordinates -> metres above the waist
    builder.add(
        Frame.CHEST, TORSO, (0, 0.004, 0.07), (0, 0.0, trunk - 0.085),
        (depth * 0.93 * body.belly**0.3, depth), (wide, 1, 0.9),
    )  # fmt: skip
    # The upper chest and shoulder blades, flatter than the ribs.
    builder.add(
        Frame.CHEST, TORSO, (0, 0.0, trunk - 0.1), (0, -0.012, trunk - 0.045),
        (0.095 * girth + thick, 0.06 * girth + thick), ((half + 0.006) / (0.092 * girth), 1, 0.75),
    )  # fmt: skip
    belly = (0.098 * girth + thick) * body.belly
    belly_wide = (0.5 * half + 0.5 * body.hip_half * 1.6 + 0.004 + thick) * body.belly**0.5 / belly
    builder.add(Frame.CHEST, TORSO, (0, 0.005, -0.08), (0, 0.004, 0.09), (belly * 1.02, belly), (belly_wide, 1, 1))
    for sign in (1, -1):
        # Slope from the neck to the shoulder, then the cap of the shoulder.
        builder.add(
            Frame.CHEST, TORSO, (sign * 0.028, -0.014, trunk + 0.012),
            (sign * (body.shoulder_half - 0.002), -0.002, trunk - 0.018),
            (0.046 * girth + thick / 2, 0.05 * girth + thick / 2), (1, 1.05, 1),
        )  # fmt: skip
    seat = body.hip_half + 0.066 * girth
    hip_depth = 0.104 * girth
    builder.add(
        Frame.PELVIS, LOWER, (0, -0.014, -0.045), (0, 0, 0.09), (hip_depth, hip_depth * 0.9),
        (seat / hip_depth, 1, 0.75), pattern_origin=below,
    )  # fmt: skip
    hem = {"t-shirt": -0.05, "long sleeve": -0.045, "jacket": -0.09, "open jacket": -0.1, "dress": -0.02}[
        looks.upper_kind
    ]
    loose = hip_depth + 0.017 + thick
    builder.add(
        Frame.PELVIS, TORSO, (0, -0.014, -0.1), (0, 0.002, waist), (loose, max(belly, loose * 0.93)),
        (max((seat + 0.016 + thick) / loose, 1.0), 1, 1), keep=(hem, FAR), pattern_origin=below,
    )  # fmt: skip


def _legs(builder: SolidBuilder, body: Proportions, looks: Appearance) -> None:
    girth, thigh, shin = body.girth, body.thigh, body.shin
    trousers = looks.lower_kind == "trousers"
    skin = LOWER if trousers else SKIN
    loose = 0.008 if trousers else 0.0
    for name in ("RIGHT", "LEFT"):
        thigh_frame, shin_frame, foot = (Frame[f"{name}_{part}"] for part in ("THIGH", "SHIN", "FOOT"))
        builder.add(
            thigh_frame, skin, (0, 0.006, 0), (0, 0, thigh),
            (0.078 * girth, 0.05 * girth + loose), pattern_origin=(0, 0, 0),
        )  # fmt: skip
        if trousers:
            builder.add(
                shin_frame, LOWER, (0, 0, 0), (0, 0, shin * 0.97),
                (0.052 * girth + loose, 0.043 * girth + loose), keep=(-FAR, shin - 0.005),
            )  # fmt: skip
        else:
            builder.add(shin_frame, SKIN, (0, 0, 0), (0, 0, shin), (0.049 * girth, 0.032 * girth))
            builder.add(shin_frame, SKIN, (0, 0.014, 0.1), (0, 0.006, 0.2), (0.047 * girth, 0.04 * girth))
        if looks.lower_kind == "skirt":
            # The cloth lies on a leg that steps forward, so that no bare thigh comes through it.
            longer = 0.92 if looks.upper_kind == "dress" else 0.78
            builder.add(
                thigh_frame, LOWER, (0, 0.004, -0.01), (0, 0, thigh), (0.081 * girth, 0.082 * girth),
                keep=(-FAR, thigh * longer), pattern_origin=(0, 0, -body.waist_height),
            )  # fmt: skip
        if looks.lower_kind == "shorts":
            builder.add(
                thigh_frame, LOWER, (0, 0.004, -0.01), (0, 0, thigh), (0.083 * girth, 0.076 * girth),
                keep=(-FAR, thigh * 0.82),
            )  # fmt: skip
        sole = -body.ankle_height
        length = 0.15 * body.stature
        builder.add(
            foot,
            SHOES,
            (0, -0.035, sole + 0.036),
            (0, length - 0.085, sole + 0.026),
            (0.038, 0.032),
            (1.15, 1, 1),
            keep=(sole + 0.004, FAR),
        )
        builder.add(foot, SHOES, (0, -0.012, 0.0), (0, 0.012, sole + 0.04), (0.04, 0.042))
        builder.add(
            foot,
            SOLE,
            (0, -0.03, sole + 0.012),
            (0, length - 0.085, sole + 0.012),
            (0.041, 0.036),
            (1.15, 1, 0.32),
        )
    if looks.lower_kind == "skirt":
        top = body.hip_half + 0.07 * girth
        depth = 0.108 * girth
        length = thigh + (0.12 if looks.upper_kind == "dress" else 0.02)
        builder.add(
            Frame.SKIRT, LOWER, (0, 0, -0.02), (0, 0, length), (depth, depth + 0.07), (top / depth, 1, 1),
            keep=(-FAR, length - 0.03), pattern_origin=(0, 0, -body.waist_height),
        )  # fmt: skip


def _arms(builder: SolidBuilder, body: Proportions, looks: Appearance) -> None:
    girth, upper, lower = body.girth, body.upper_arm, body.forearm
    jacket = looks.upper_kind in ("jacket", "open jacket")
    sleeveless = looks.upper_kind in ("t-shirt", "dress")
    thick = 0.01 if jacket else 0.004
    for name in ("RIGHT", "LEFT"):
        arm, forearm = Frame[f"{name}_UPPER_ARM"], Frame[f"{name}_FOREARM"]
        # Limb coordinates run downwards from the shoulder; patterns count metres above the waist.
        shift = (0.0, 0.0, -body.trunk)
        if sleeveless:
            builder.add(arm, SKIN, (0, 0, 0.015), (0, 0, upper), (0.044 * girth, 0.036 * girth))
            builder.add(
                arm,
                UPPER,
                (0, 0, 0.012),
                (0, 0, upper),
                (0.051 * girth, 0.057 * girth),
                keep=(-FAR, 0.6 * upper),
                pattern_origin=shift,
            )
            builder.add(forearm, SKIN, (0, 0, 0), (0, 0, lower), (0.037 * girth, 0.025 * girth))
        else:
            builder.add(
                arm,
                UPPER,
                (0, 0, 0.012),
                (0, 0, upper),
                (0.049 * girth + thick / 2, 0.04 * girth + thick),
                pattern_origin=shift,
            )
            builder.add(
                forearm, UPPER, (0, 0, 0), (0, 0, lower), (0.04 * girth + thick, 0.031 * girth + thick),
                keep=(-FAR, lower - 0.01), pattern_origin=(0.0, 0.0, upper - body.trunk),
            )  # fmt: skip
        hand = 0.055 * body.stature
        builder.add(
            forearm,
            SKIN,
            (0, 0, lower),
            (0.004, -0.004, lower + hand * 0.8),
            (0.027 * girth, 0.034),
            (0.75, 1.1, 1),
        )


def _head(builder: SolidBuilder, body: Proportions, looks: Appearance) -> None:
    # Small people have relatively larger heads.
    size = 0.55 + 0.45 * body.stature / 1.70

    def at(x: float, y: float, z: float) -> tuple[float, float, float]:
        return (size * x, size * y, size * z)

    builder.add(Frame.NECK, NECK, (0, 0, -0.02), (0, 0, 0.1), (0.056 * body.girth**0.5, 0.05 * body.girth**0.5))
    builder.add(Frame.HEAD, HEAD, at(0, -0.006, 0.03), at(0, 0.022, -0.068), (0.09 * size, 0.053 * size), (0.88, 1, 1))
    builder.add(Frame.HEAD, SKIN, at(0, 0.09, 0.004), at(0, 0.1, -0.02), (0.009 * size, 0.016 * size))
    for sign in (1, -1):
        builder.add(Frame.HEAD, SKIN, at(sign * 0.077, -0.008, -0.002), radius=size, stretch=(0.012, 0.02, 0.03))
    style = looks.hair_style
    if style != "bald":
        builder.add(Frame.HEAD, HAIR, at(0, -0.022, 0.046), radius=size, stretch=(0.089, 0.102, 0.092))
        builder.add(Frame.HEAD, HAIR, at(0, -0.045, 0.0), radius=size, stretch=(0.082, 0.072, 0.09))
    if style == "long":
        builder.add(Frame.HEAD, HAIR, at(0, -0.052, 0.01), at(0, -0.07, -0.2), (0.078, 0.066), (1.25, 0.75, 1))
    elif style == "ponytail":
        builder.add(Frame.HEAD, HAIR, at(0, -0.115, 0.06), at(0, -0.15, -0.14), (0.034, 0.02))
    elif style == "bun":
        builder.add(Frame.HEAD, HAIR, at(0, -0.115, 0.085), radius=0.045)
    if looks.cap is not None:
        builder.add(Frame.HEAD, CAP, at(0, -0.014, 0.05), radius=size, stretch=(0.1, 0.117, 0.098), keep=(0.046, FAR))
        builder.add(Frame.HEAD, CAP, at(0, 0.125, 0.052), radius=size, stretch=(0.07, 0.065, 0.012))


def _belongings(builder: SolidBuilder, body: Proportions, looks: Appearance) -> None:
    if looks.backpack is not None:
        back = -0.11 * body.girth - 0.075
        builder.add(
            Frame.CHEST,
            BAG,
            (0, back, 0.02),
            (0, back + 0.01, body.trunk - 0.12),
            (0.1, 0.092),
            (1.5, 0.95, 1),
        )
        builder.add(Frame.CHEST, BAG, (0, back - 0.08, 0.03), (0, back - 0.075, 0.1), 0.06, (1.8, 0.7, 1))
    if looks.bag == "shoulder bag":
        side = -(body.hip_half + 0.12 * body.girth)
        builder.add(Frame.PELVIS, BAG, (side, -0.03, -0.05), (side, -0.03, 0.03), 0.1, (0.55, 1.35, 1))
    if looks.bag.endswith("handbag"):
        frame = Frame.RIGHT_BAG if looks.bag.startswith("right") else Frame.LEFT_BAG
        builder.add(frame, BAG, (0, 0, 0.2), (0, 0, 0.27), (0.09, 0.1), (0.5, 1.35, 1))
        for sign in (1, -1):
            builder.add(frame, BAG, (0, 0, 0.0), (0, sign * 0.08, 0.15), 0.009)
