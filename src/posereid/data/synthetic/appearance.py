"""What a person looks like: skin, hair, clothes with their patterns, and belongings.

Colours come from short palettes with uneven weights on purpose: many people share the colour of a garment, so
that matching by colour alone does not do. Whole outfits are shared too, as the preset says.
"""

from dataclasses import dataclass

import numpy as np

from posereid.data.synthetic.presets import Preset

Colour = tuple[float, float, float]
"""Red, green, blue reflectance in [0, 1]."""

_UPPER_COLOURS: dict[str, tuple[Colour, float]] = {
    "white": ((0.88, 0.88, 0.86), 0.13),
    "black": ((0.09, 0.09, 0.10), 0.13),
    "grey": ((0.50, 0.50, 0.51), 0.08),
    "red": ((0.72, 0.12, 0.13), 0.09),
    "blue": ((0.16, 0.30, 0.66), 0.09),
    "navy": ((0.11, 0.14, 0.29), 0.06),
    "green": ((0.18, 0.46, 0.25), 0.07),
    "yellow": ((0.86, 0.74, 0.20), 0.06),
    "pink": ((0.88, 0.55, 0.62), 0.06),
    "purple": ((0.42, 0.23, 0.52), 0.05),
    "orange": ((0.85, 0.45, 0.13), 0.05),
    "beige": ((0.77, 0.68, 0.53), 0.04),
    "light blue": ((0.55, 0.72, 0.86), 0.05),
    "burgundy": ((0.40, 0.08, 0.16), 0.04),
}
_LOWER_COLOURS: dict[str, tuple[Colour, float]] = {
    "black": ((0.08, 0.08, 0.09), 0.19),
    "denim": ((0.24, 0.34, 0.52), 0.19),
    "navy": ((0.12, 0.15, 0.28), 0.10),
    "grey": ((0.42, 0.42, 0.43), 0.11),
    "khaki": ((0.64, 0.56, 0.40), 0.12),
    "white": ((0.84, 0.84, 0.82), 0.10),
    "brown": ((0.34, 0.24, 0.17), 0.06),
    "red": ((0.62, 0.14, 0.16), 0.05),
    "green": ((0.24, 0.36, 0.22), 0.04),
    "light denim": ((0.52, 0.62, 0.74), 0.04),
}
_SKIN: tuple[Colour, ...] = (
    (0.93, 0.76, 0.66),
    (0.87, 0.68, 0.55),
    (0.78, 0.58, 0.44),
    (0.60, 0.42, 0.31),
    (0.40, 0.27, 0.20),
)
_HAIR: dict[str, Colour] = {
    "black": (0.07, 0.06, 0.06),
    "dark brown": (0.19, 0.12, 0.08),
    "brown": (0.35, 0.22, 0.13),
    "blond": (0.74, 0.58, 0.33),
    "grey": (0.62, 0.61, 0.60),
}
_SHOES: dict[str, Colour] = {
    "black": (0.08, 0.08, 0.08),
    "white": (0.86, 0.86, 0.86),
    "brown": (0.33, 0.22, 0.14),
    "red": (0.65, 0.15, 0.15),
}
_BAGS: dict[str, Colour] = {
    "black": (0.10, 0.10, 0.11),
    "red": (0.68, 0.14, 0.14),
    "blue": (0.15, 0.30, 0.60),
    "green": (0.28, 0.42, 0.22),
    "brown": (0.42, 0.28, 0.16),
    "orange": (0.90, 0.50, 0.12),
}


@dataclass(frozen=True)
class Pattern:
    """Two colours and how they alternate. ``period`` in metres.

    ``kind``: plain, horizontal stripes, vertical stripes, checks, blocks (``second`` below the height
    ``edge``, metres above the waist) or dots.
    """

    kind: str
    first: Colour
    second: Colour
    period: float = 0.1
    edge: float = 0.2


@dataclass(frozen=True)
class Print:
    """A print on a garment's chest or back. Half sizes in metres; ``shape``: badge, ring, bar or cross."""

    shape: str
    colour: Colour
    half_width: float
    half_height: float


@dataclass(frozen=True)
class Appearance:
    """Everything a person keeps from crop to crop. Colours are reflectances; names are for humans."""

    skin: Colour
    hair: Colour
    hair_name: str
    hair_style: str
    """short, long, ponytail, bun or bald."""
    upper_kind: str
    """t-shirt, long sleeve, jacket, open jacket or dress."""
    upper_name: str
    upper: Pattern
    inner: Colour
    """The shirt under an open jacket."""
    lower_kind: str
    """trousers, shorts or skirt."""
    lower_name: str
    lower: Colour
    shoes: Colour
    shoes_name: str
    logo: Print | None
    """On the chest."""
    back_print: Print | None
    backpack: Colour | None
    bag: str
    """none, shoulder bag, right handbag or left handbag."""
    bag_colour: Colour
    bag_name: str
    cap: Colour | None
    glasses: bool
    beard: bool
    folds: float
    """Phase of the garment's folds, radians."""

    def attributes(self) -> dict[str, str | bool]:
        """A short description in words, for ``world.json``."""
        return {
            "hair": f"{self.hair_style} {self.hair_name}" if self.hair_style != "bald" else "bald",
            "upper": f"{self.upper_name} {self.upper_kind}, {self.upper.kind}",
            "lower": f"{self.lower_name} {self.lower_kind}",
            "shoes": self.shoes_name,
            "logo": _in_words(self.logo),
            "back_print": _in_words(self.back_print),
            "backpack": self.backpack is not None,
            "bag": self.bag if self.bag == "none" else f"{self.bag_name} {self.bag}",
            "cap": self.cap is not None,
            "glasses": self.glasses,
        }


@dataclass(frozen=True)
class Outfit:
    """The garments that a group of people shares, before anything that is a person's own."""

    feminine: bool
    upper_kind: str
    upper_names: tuple[str, str]
    upper_colours: tuple[Colour, Colour]
    pattern: str
    period: float
    edge: float
    lower_kind: str
    lower_name: str
    lower_colour: Colour


def sample_outfit(rng: np.random.Generator, preset: Preset, feminine: bool) -> Outfit:
    """Random garments."""
    closed = 1 - preset.open_jacket
    kinds = ["t-shirt", "long sleeve", "jacket", "open jacket"]
    weights = (0.53 * closed, 0.31 * closed, 0.16 * closed, preset.open_jacket)
    upper_kind = "dress" if feminine and rng.random() < 0.15 else _pick(rng, kinds, weights)
    first = _pick(rng, *_weighted(_UPPER_COLOURS))
    second = _pick(rng, *_weighted(_UPPER_COLOURS))
    while second == first:
        second = _pick(rng, *_weighted(_UPPER_COLOURS))
    pattern = _pick(
        rng,
        ["plain", "horizontal stripes", "vertical stripes", "checks", "blocks", "dots"],
        (0.46, 0.18, 0.07, 0.12, 0.12, 0.05)
        if upper_kind in ("t-shirt", "long sleeve", "dress")
        else (0.78, 0.06, 0.0, 0.04, 0.12, 0.0),
    )
    period = {
        "horizontal stripes": rng.uniform(0.07, 0.15),
        "vertical stripes": rng.uniform(0.08, 0.13),
        "dots": 0.09,
    }
    lower_kind = (
        _pick(rng, ["trousers", "shorts", "skirt"], (0.55, 0.2, 0.25))
        if feminine
        else _pick(rng, ["trousers", "shorts"], (0.74, 0.26))
    )
    lower_name = _pick(rng, *_weighted(_LOWER_COLOURS))
    return Outfit(
        feminine=feminine,
        upper_kind=upper_kind,
        upper_names=(first, second),
        upper_colours=(
            _dyed(rng, _UPPER_COLOURS[first][0], preset.dye),
            _dyed(rng, _UPPER_COLOURS[second][0], preset.dye),
        ),
        pattern=pattern,
        period=float(period.get(pattern, rng.uniform(0.10, 0.16))),
        edge=float(rng.uniform(0.08, 0.26)),
        lower_kind=lower_kind,
        lower_name=lower_name,
        lower_colour=_dyed(rng, _LOWER_COLOURS[lower_name][0], preset.dye),
    )


def is_feminine(rng: np.random.Generator, stature: float) -> bool:
    """Shorter people wear skirts and long hair more often."""
    return bool(rng.random() < 1 / (1 + np.exp((stature - 1.69) / 0.05)))


def sample_appearance(
    rng: np.random.Generator, stature: float, preset: Preset, shared: Outfit | None = None
) -> Appearance:
    """A random person's look, in garments of their own or in the ``shared`` ones.

    Also in shared garments a person has shades, prints, belongings, shoes, hair and skin of their own, and may
    wear the pattern finer or coarser, or with another second colour.
    """
    feminine = is_feminine(rng, stature) if shared is None else shared.feminine
    own = sample_outfit(rng, preset, feminine)
    outfit = own if shared is None else shared
    skin = _SKIN[int(rng.choice(len(_SKIN), p=(0.30, 0.28, 0.20, 0.12, 0.10)))]
    hair_name = _pick(rng, list(_HAIR), (0.40, 0.24, 0.18, 0.10, 0.08))
    hair_style = (
        _pick(rng, ["short", "long", "ponytail", "bun"], (0.12, 0.42, 0.3, 0.16))
        if feminine
        else _pick(rng, ["short", "long", "bald"], (0.88, 0.04, 0.08))
    )
    upper_name, second_name = outfit.upper_names
    first, second = outfit.upper_colours
    if shared is not None and rng.random() < 0.3 and own.upper_names[1] != upper_name:
        second_name, second = own.upper_names[1], own.upper_colours[1]
    upper = Pattern(
        outfit.pattern,
        _tinted(rng, first),
        _tinted(rng, second),
        outfit.period if shared is None else outfit.period * float(rng.choice((0.7, 1.0, 1.4))),
        own.edge,
    )
    lower_name, lower = outfit.lower_name, _tinted(rng, outfit.lower_colour)
    lower_kind = outfit.lower_kind
    if outfit.upper_kind == "dress":
        lower_kind, lower_name, lower = "skirt", upper_name, upper.first
    shoes_name = _pick(rng, list(_SHOES), (0.45, 0.35, 0.13, 0.07))
    bag_name = _pick(rng, list(_BAGS), (0.40, 0.15, 0.15, 0.10, 0.12, 0.08))
    bag_draw = rng.random() - preset.backpack
    logo = _sample_print(rng, first, 1.0) if rng.random() < preset.logo else None
    back_print = _sample_print(rng, first, 1.4) if rng.random() < preset.back_print else None
    printable = outfit.pattern in ("plain", "blocks")
    return Appearance(
        skin=_tinted(rng, skin, 0.03),
        hair=_tinted(rng, _HAIR[hair_name], 0.02),
        hair_name=hair_name,
        hair_style=hair_style,
        upper_kind=outfit.upper_kind,
        upper_name=upper_name if outfit.pattern == "plain" else f"{upper_name} and {second_name}",
        upper=upper,
        inner=_tinted(rng, second),
        lower_kind=lower_kind,
        lower_name=lower_name,
        lower=lower,
        shoes=_SHOES[shoes_name],
        shoes_name=shoes_name,
        logo=logo if printable and outfit.upper_kind != "open jacket" else None,
        back_print=back_print if printable else None,
        backpack=_BAGS[bag_name] if bag_draw < 0 else None,
        bag=_pick(rng, ["shoulder bag", "right handbag", "left handbag"], (0.45, 0.3, 0.25))
        if 0 <= bag_draw < preset.bag
        else "none",
        bag_colour=_BAGS[bag_name],
        bag_name=bag_name,
        cap=_UPPER_COLOURS[_pick(rng, *_weighted(_UPPER_COLOURS))][0] if rng.random() < 0.12 else None,
        glasses=bool(rng.random() < 0.12),
        beard=bool(not feminine and rng.random() < 0.15),
        folds=float(rng.uniform(0, 2 * np.pi)),
    )


def _sample_print(rng: np.random.Generator, ground: Colour, size: float) -> Print:
    """A print that stands out from its ground."""
    colours = [_UPPER_COLOURS[name][0] for name in ("white", "red", "yellow", "navy", "black", "green")]
    return Print(
        shape=_pick(rng, ["badge", "ring", "bar", "cross"], (0.4, 0.2, 0.2, 0.2)),
        colour=max(colours, key=lambda colour: _contrast(rng, colour, ground)),
        half_width=size * float(rng.uniform(0.06, 0.10)),
        half_height=size * float(rng.uniform(0.04, 0.08)),
    )


def _in_words(print_: Print | None) -> str:
    return "none" if print_ is None else print_.shape


def _pick(rng: np.random.Generator, names: list[str], weights: tuple[float, ...]) -> str:
    return names[int(rng.choice(len(names), p=weights))]


def _weighted(palette: dict[str, tuple[Colour, float]]) -> tuple[list[str], tuple[float, ...]]:
    return list(palette), tuple(weight for _, weight in palette.values())


def _dyed(rng: np.random.Generator, colour: Colour, dye: float) -> Colour:
    """The colour with up to a share ``dye`` of a random other in it."""
    share = rng.uniform(0, dye)
    red, green, blue = (1 - share) * np.array(colour) + share * rng.uniform(0.05, 0.95, 3)
    return float(red), float(green), float(blue)


def _tinted(rng: np.random.Generator, colour: Colour, spread: float = 0.035) -> Colour:
    """The same colour from another shop: slightly lighter or darker, hardly another hue."""
    shade = rng.normal(0, spread)
    red, green, blue = np.clip(np.array(colour) * (1 + 2 * shade) + rng.normal(0, spread / 3, 3), 0.03, 0.95)
    return float(red), float(green), float(blue)


def _contrast(rng: np.random.Generator, colour: Colour, ground: Colour) -> float:
    return float(np.abs(np.array(colour) - np.array(ground)).sum() + rng.uniform(0, 0.8))
