"""What a person looks like: skin, hair, clothes with their patterns, and belongings.

Colours come from short palettes with uneven weights on purpose: many people share the colour of a garment, so
that matching by colour alone does not do.
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]
"""Red, green, blue reflectance in [0, 1]."""

_UPPER_COLOURS: dict[str, tuple[Colour, float]] = {
    "white": ((0.88, 0.88, 0.86), 0.19),
    "black": ((0.09, 0.09, 0.10), 0.18),
    "grey": ((0.50, 0.50, 0.51), 0.11),
    "red": ((0.72, 0.12, 0.13), 0.10),
    "blue": ((0.16, 0.30, 0.66), 0.11),
    "navy": ((0.11, 0.14, 0.29), 0.07),
    "green": ((0.18, 0.46, 0.25), 0.06),
    "yellow": ((0.86, 0.74, 0.20), 0.05),
    "pink": ((0.88, 0.55, 0.62), 0.05),
    "purple": ((0.42, 0.23, 0.52), 0.03),
    "orange": ((0.85, 0.45, 0.13), 0.03),
    "beige": ((0.77, 0.68, 0.53), 0.02),
}
_LOWER_COLOURS: dict[str, tuple[Colour, float]] = {
    "black": ((0.08, 0.08, 0.09), 0.27),
    "denim": ((0.24, 0.34, 0.52), 0.27),
    "navy": ((0.12, 0.15, 0.28), 0.12),
    "grey": ((0.42, 0.42, 0.43), 0.11),
    "khaki": ((0.64, 0.56, 0.40), 0.10),
    "white": ((0.84, 0.84, 0.82), 0.06),
    "brown": ((0.34, 0.24, 0.17), 0.04),
    "red": ((0.62, 0.14, 0.16), 0.03),
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
    logo: Colour | None
    logo_size: tuple[float, float]
    """Half width and half height in metres."""
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
            "logo": self.logo is not None,
            "backpack": self.backpack is not None,
            "bag": self.bag if self.bag == "none" else f"{self.bag_name} {self.bag}",
            "cap": self.cap is not None,
            "glasses": self.glasses,
        }


def sample_appearance(rng: np.random.Generator, stature: float) -> Appearance:
    """A random person's look. Shorter people wear skirts and long hair more often."""
    feminine = rng.random() < 1 / (1 + np.exp((stature - 1.69) / 0.05))
    skin = _SKIN[int(rng.choice(len(_SKIN), p=(0.30, 0.28, 0.20, 0.12, 0.10)))]
    hair_name = _pick(rng, list(_HAIR), (0.40, 0.24, 0.18, 0.10, 0.08))
    hair_style = (
        _pick(rng, ["short", "long", "ponytail", "bun"], (0.12, 0.42, 0.3, 0.16))
        if feminine
        else _pick(rng, ["short", "long", "bald"], (0.88, 0.04, 0.08))
    )
    upper_kind = _pick(
        rng,
        ["t-shirt", "long sleeve", "jacket", "open jacket", "dress"],
        (0.38, 0.22, 0.12, 0.13, 0.15) if feminine else (0.44, 0.26, 0.14, 0.16, 0.0),
    )
    upper_name, first = _garment(rng, _UPPER_COLOURS)
    second_name, second = _garment(rng, _UPPER_COLOURS)
    while second_name == upper_name:
        second_name, second = _garment(rng, _UPPER_COLOURS)
    patterned = upper_kind in ("t-shirt", "long sleeve", "dress")
    kind = _pick(
        rng,
        ["plain", "horizontal stripes", "vertical stripes", "checks", "blocks", "dots"],
        (0.46, 0.18, 0.07, 0.12, 0.12, 0.05) if patterned else (0.78, 0.06, 0.0, 0.04, 0.12, 0.0),
    )
    period = {
        "horizontal stripes": rng.uniform(0.07, 0.15),
        "vertical stripes": rng.uniform(0.08, 0.13),
        "dots": 0.09,
    }
    upper = Pattern(
        kind,
        _tinted(rng, first),
        _tinted(rng, second),
        float(period.get(kind, rng.uniform(0.10, 0.16))),
        float(rng.uniform(0.08, 0.26)),
    )
    lower_kind = (
        _pick(rng, ["trousers", "shorts", "skirt"], (0.55, 0.2, 0.25))
        if feminine
        else _pick(rng, ["trousers", "shorts"], (0.74, 0.26))
    )
    lower_name, lower = _garment(rng, _LOWER_COLOURS)
    lower = _tinted(rng, lower)
    if upper_kind == "dress":
        lower_kind, lower_name, lower = "skirt", upper_name, upper.first
    shoes_name = _pick(rng, list(_SHOES), (0.45, 0.35, 0.13, 0.07))
    bag_name = _pick(rng, list(_BAGS), (0.40, 0.15, 0.15, 0.10, 0.12, 0.08))
    bag_draw = rng.random()
    logo = None
    if rng.random() < 0.4 and kind in ("plain", "blocks") and upper_kind != "open jacket":
        logo = max(
            (_UPPER_COLOURS[name][0] for name in ("white", "red", "yellow", "navy", "black")),
            key=lambda c: _contrast(rng, c, first),
        )
    return Appearance(
        skin=_tinted(rng, skin, 0.03),
        hair=_tinted(rng, _HAIR[hair_name], 0.02),
        hair_name=hair_name,
        hair_style=hair_style,
        upper_kind=upper_kind,
        upper_name=upper_name if kind == "plain" else f"{upper_name} and {second_name}",
        upper=upper,
        inner=_tinted(rng, second),
        lower_kind=lower_kind,
        lower_name=lower_name,
        lower=lower,
        shoes=_SHOES[shoes_name],
        shoes_name=shoes_name,
        logo=logo,
        logo_size=(float(rng.uniform(0.05, 0.09)), float(rng.uniform(0.03, 0.07))),
        backpack=_BAGS[bag_name] if bag_draw < 0.24 else None,
        bag="none"
        if bag_draw < 0.24 or bag_draw > 0.52
        else _pick(rng, ["shoulder bag", "right handbag", "left handbag"], (0.45, 0.3, 0.25)),
        bag_colour=_BAGS[bag_name],
        bag_name=bag_name,
        cap=_garment(rng, _UPPER_COLOURS)[1] if rng.random() < 0.12 else None,
        glasses=bool(rng.random() < 0.12),
        beard=bool(not feminine and rng.random() < 0.15),
        folds=float(rng.uniform(0, 2 * np.pi)),
    )


def _pick(rng: np.random.Generator, names: list[str], weights: tuple[float, ...]) -> str:
    return names[int(rng.choice(len(names), p=weights))]


def _garment(rng: np.random.Generator, palette: dict[str, tuple[Colour, float]]) -> tuple[str, Colour]:
    name = _pick(rng, list(palette), tuple(weight for _, weight in palette.values()))
    return name, palette[name][0]


def _tinted(rng: np.random.Generator, colour: Colour, spread: float = 0.035) -> Colour:
    """The same colour from another shop: slightly lighter or darker, hardly another hue."""
    shade = rng.normal(0, spread)
    red, green, blue = np.clip(np.array(colour) * (1 + 2 * shade) + rng.normal(0, spread / 3, 3), 0.03, 0.95)
    return float(red), float(green), float(blue)


def _contrast(rng: np.random.Generator, colour: Colour, ground: Colour) -> float:
    return float(np.abs(np.array(colour) - np.array(ground)).sum() + rng.uniform(0, 0.8))
