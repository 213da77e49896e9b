"""Materials: the reflectance of a point of a surface, from its coordinates on the body part.

Because patterns live on the parts, they follow the pose and the viewing direction.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posereid.data.synthetic.appearance import Appearance, Colour, Pattern, Print

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """How a surface looks: a base colour, then whatever is painted on it.

    ``paint``: plain, garment (``pattern``), torso (``pattern``, and what is worn on the trunk), or head (the
    face and the hair line). ``folds`` is the depth of the fabric's folds in [0, 1].
    """

    colour: Colour
    paint: str = "plain"
    pattern: Pattern | None = None
    wearer: Appearance | None = None
    folds: float = 0.0


def reflectance(materials: tuple[Material, ...], material: npt.NDArray[np.intp], part: Array, own: Array) -> Array:
    """(N, 3) colours in [0, 1] of N surface points.

    ``material`` (N,) indexes ``materials``; ``part`` (N, 3) are metres on the body part, ``own`` the same
    shifted so that patterns continue from part to part.
    """
    colour = np.array([each.colour for each in materials], np.float32)[material]
    for index, each in enumerate(materials):
        if each.paint == "plain":
            continue
        where = np.flatnonzero(material == index)
        if not len(where):
            continue
        if each.paint == "head":
            assert each.wearer is not None
            colour[where] = _head(each.wearer, part[where])
            continue
        if each.pattern is not None and each.pattern.kind != "plain":
            colour[where] = _patterned(each.pattern, own[where])
        if each.paint == "torso" and each.wearer is not None:
            colour[where] = _worn(each.wearer, own[where], colour[where])
    return colour


def fold_shade(materials: tuple[Material, ...], material: npt.NDArray[np.intp], part: Array, phase: float) -> Array:
    """(N,) factors around 1: soft wrinkles of fabric, fixed to the part and to the wearer."""
    depth = np.array([each.folds for each in materials], np.float32)[material]
    x, y, z = part[:, 0], part[:, 1], part[:, 2]
    wave = np.sin(31 * z + 26 * x + phase) * np.sin(13 * z - 37 * x + 29 * y + 2 * phase)
    return 1 + depth * wave


def _patterned(pattern: Pattern, point: Array) -> Array:
    x, z = point[:, 0], point[:, 2]
    period = pattern.period
    if pattern.kind == "horizontal stripes":
        blend = _square(z / period)
    elif pattern.kind == "vertical stripes":
        blend = _square(x / period)
    elif pattern.kind == "checks":
        blend = 0.5 * (_square(z / period) + _square(x / period))
    elif pattern.kind == "dots":
        row = np.floor(z / period)
        across = x / period + 0.5 * (row % 2)
        blend = ((across % 1 - 0.5) ** 2 + (z / period % 1 - 0.5) ** 2 < 0.08).astype(np.float32)
    else:  # blocks
        blend = (z < pattern.edge).astype(np.float32)
    first, second = np.array(pattern.first, np.float32), np.array(pattern.second, np.float32)
    return first + blend[:, None] * (second - first)


def _square(turns: Array) -> Array:
    return ((turns % 1) < 0.5).astype(np.float32)


def _worn(wearer: Appearance, point: Array, colour: Array) -> Array:
    """Zip, shirt front, prints and straps on the trunk. z is metres above the waist."""
    x, y, z = point[:, 0], point[:, 1], point[:, 2]
    front = y > 0
    if wearer.upper_kind == "open jacket":
        # The gap widens from the collar down.
        _mark(colour, front & (np.abs(x) < 0.045 + 0.05 * (0.35 - z)), wearer.inner)
    elif wearer.upper_kind == "jacket":
        _mark(colour, front & (np.abs(x) < 0.01), tuple(0.55 * c for c in wearer.upper.first))
    if wearer.logo is not None:
        _mark(colour, front & _printed(wearer.logo, x, z - 0.2), wearer.logo.colour)
    if wearer.back_print is not None:
        _mark(colour, ~front & _printed(wearer.back_print, x, z - 0.22), wearer.back_print.colour)
    if wearer.backpack is not None:
        _mark(colour, front & (np.abs(np.abs(x) - 0.105) < 0.022) & (z > 0.1), wearer.backpack)
    if wearer.bag == "shoulder bag":
        _mark(colour, np.abs(0.8 * x - 0.6 * (z - 0.16) + 0.02) < 0.018, wearer.bag_colour)
    return colour


def _printed(print_: Print, x: Array, z: Array) -> npt.NDArray[np.bool_]:
    """Which points the print covers; ``x`` and ``z`` in metres from its middle."""
    across, up = x / print_.half_width, z / print_.half_height
    inside = across**4 + up**4 < 1
    if print_.shape == "ring":
        return inside & (across**2 + up**2 > 0.3)
    if print_.shape == "bar":
        return (np.abs(across) < 1.7) & (np.abs(up) < 0.5)
    if print_.shape == "cross":
        return inside & ((np.abs(across) < 0.4) | (np.abs(up) < 0.4))
    return inside


def _head(wearer: Appearance, point: Array) -> Array:
    """Face in front, hair above and behind. Origin in the middle of the head, eyes at z = 0.016."""
    x, y, z = point[:, 0], point[:, 1], point[:, 2]
    skin = np.array(wearer.skin, np.float32)
    colour = np.repeat(skin[None], len(point), axis=0)
    front = y > 0
    aside = np.abs(x)
    _mark(
        colour,
        front & (z < -0.052) & (z > -0.066) & (aside < 0.026),
        (0.62 * skin[0], 0.36 * skin[1], 0.38 * skin[2]),
    )
    if wearer.beard:
        _mark(colour, (y > -0.005) & (z < -0.035) & ~((z > -0.066) & (z < -0.05) & (aside < 0.026)), wearer.hair)
    eyes = front & (np.abs(aside - 0.034) < 0.017) & (np.abs(z - 0.014) < 0.010)
    if wearer.glasses:
        _mark(
            colour,
            (y > -0.01) & (np.abs(z - 0.014) < 0.016) & (aside < 0.09) & (aside > 0.008),
            (0.06, 0.06, 0.07),
        )
    else:
        _mark(colour, eyes, (0.20, 0.16, 0.15))
        brow = front & (np.abs(aside - 0.034) < 0.022) & (np.abs(z - 0.037) < 0.006)
        _mark(colour, brow, tuple(0.5 * h + 0.25 * s for h, s in zip(wearer.hair, skin, strict=True)))
    if wearer.hair_style != "bald":
        hairy = (z > 0.062 + 0.25 * x * x / 0.09) | ((y < -0.02) & (z > -0.062)) | ((y < 0.02) & (z > 0.0))
        _mark(colour, hairy, wearer.hair)
    return colour


def _mark(colour: Array, where: npt.NDArray[np.bool_], ink: tuple) -> None:
    colour[where] = np.array(ink, np.float32)
