"""Procedural street scenes: the big picture of which each crop's background is a window."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

SCENE_WIDTH, SCENE_HEIGHT = 1280, 640

_GROUNDS = (
    (126, 124, 121),
    (158, 151, 140),
    (105, 106, 108),
    (170, 160, 146),
    (142, 118, 104),
    (138, 140, 134),
)
_WALLS = ((168, 158, 144), (142, 96, 80), (190, 186, 178), (120, 124, 132), (200, 184, 150), (96, 92, 90))
_GREENS = ((70, 98, 56), (92, 116, 62), (58, 84, 58), (104, 120, 78))
_CARS = ((176, 176, 178), (52, 54, 58), (118, 58, 54), (66, 82, 112), (200, 199, 194), (112, 114, 118))

Ink = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """A camera's view of an empty street. Rows count from the top.

    A person ``stature`` metres tall with feet at row r is ``stature · (r - horizon) / eye_height`` pixels
    high; feet may stand on rows ``nearest`` … ``farthest``.
    """

    image: Image.Image
    horizon: float
    eye_height: float
    farthest: float
    nearest: float

    def window(self, across: float, depth: float) -> tuple[float, float, float]:
        """Column and row of the feet and pixels per metre at a place given by two numbers in [0, 1]."""
        row = self.farthest + (self.nearest - self.farthest) * depth
        metre = (row - self.horizon) / self.eye_height
        column = 1.2 * metre + across * (SCENE_WIDTH - 2.4 * metre)
        return column, row, metre


def build_scene(rng: np.random.Generator, pieces: int) -> Scene:
    """A random street with its ground, backdrop and ``pieces`` of furniture."""
    horizon = float(rng.uniform(0.10, 0.2) * SCENE_HEIGHT)
    eye_height = float(rng.uniform(2.2, 3.8))
    base = horizon + float(rng.uniform(18, 60))
    image = Image.new("RGB", (SCENE_WIDTH, SCENE_HEIGHT), _ink(rng, _GROUNDS))
    draw = ImageDraw.Draw(image)
    _backdrop(draw, rng, base)
    _ground(draw, rng, horizon, base, eye_height)
    scene = Scene(image, horizon, eye_height, base + 55, SCENE_HEIGHT - 40)
    _furniture(draw, rng, scene, base, pieces)
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    pixels = np.asarray(image, np.float32) * _texture(rng)[..., None]
    finished = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return Scene(finished, horizon, eye_height, base + 55, SCENE_HEIGHT - 40)


def _ink(rng: np.random.Generator, palette: tuple[Ink, ...], spread: float = 10) -> Ink:
    chosen = np.array(palette[int(rng.integers(len(palette)))]) + rng.normal(0, spread) + rng.normal(0, 4, 3)
    red, green, blue = (int(value) for value in np.clip(chosen, 10, 245))
    return red, green, blue


def _shaded(ink: Ink, factor: float) -> Ink:
    red, green, blue = (int(min(255, value * factor)) for value in ink)
    return red, green, blue


def _backdrop(draw: ImageDraw.ImageDraw, rng: np.random.Generator, base: float) -> None:
    """Houses, hedges and trees above the row where the ground begins."""
    draw.rectangle((0, 0, SCENE_WIDTH, base), fill=_ink(rng, ((178, 194, 210), (205, 208, 210))))
    x = -rng.uniform(0, 100)
    while x < SCENE_WIDTH:
        wide = rng.uniform(120, 380)
        if rng.random() < 0.65:
            wall = _ink(rng, _WALLS)
            draw.rectangle((x, 0, x + wide, base), fill=wall)
            step = rng.uniform(34, 70)
            glass = _shaded(wall, rng.uniform(0.35, 0.6))
            for left in np.arange(x + step * 0.3, x + wide - step * 0.6, step):
                for top in np.arange(base - 1.45 * step, -step, -1.3 * step):
                    draw.rectangle((left, top, left + 0.55 * step, top + 0.8 * step), fill=glass)
                if rng.random() < 0.25:
                    draw.rectangle((left, base - 1.2 * step, left + 0.5 * step, base), fill=_shaded(wall, 0.5))
            draw.rectangle((x, base - 7, x + wide, base), fill=_shaded(wall, 0.7))
        else:
            green = _ink(rng, _GREENS)
            draw.rectangle((x, base * 0.4, x + wide, base), fill=_shaded(green, 0.7))
            for _ in range(int(wide / 6)):
                cx, cy = rng.uniform(x, x + wide), rng.uniform(0, base)
                size = rng.uniform(8, 26)
                tone = _shaded(green, rng.uniform(0.6, 1.25))
                draw.ellipse((cx - size, cy - 0.7 * size, cx + size, cy + 0.7 * size), fill=tone)
        x += wide
    draw.line((0, base, SCENE_WIDTH, base), fill=(70, 68, 66), width=3)


def _ground(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: float, base: float, eye_height: float
) -> None:
    """Paving in perspective, lawns, lanes and patches."""
    tone = _ink(rng, _GROUNDS)
    draw.rectangle((0, base, SCENE_WIDTH, SCENE_HEIGHT), fill=tone)
    vanishing = rng.uniform(-0.3, 1.3) * SCENE_WIDTH

    def at(lateral: float, row: float) -> tuple[float, float]:
        # lateral in metres right of the camera's axis
        return vanishing + lateral * (row - horizon) / eye_height, row

    for _ in range(int(rng.integers(1, 5))):
        left = rng.uniform(-9, 9)
        wide = rng.uniform(0.8, 4)
        fill = _ink(rng, _GREENS) if rng.random() < 0.35 else _shaded(tone, rng.uniform(0.75, 1.2))
        draw.polygon([at(left, base), at(left + wide, base), at(left + wide, 640), at(left, 640)], fill=fill)
        edge = _shaded(tone, 1.25)
        draw.line([at(left, base), at(left, 640)], fill=edge, width=3)
        draw.line([at(left + wide, base), at(left + wide, 640)], fill=_shaded(tone, 0.7), width=3)
    for _ in range(int(rng.integers(0, 3))):
        top = rng.uniform(base, SCENE_HEIGHT - 60)
        fill = _ink(rng, _GREENS) if rng.random() < 0.3 else _shaded(tone, rng.uniform(0.78, 1.18))
        draw.rectangle((0, top, SCENE_WIDTH, top + rng.uniform(0.1, 0.3) * (top - horizon)), fill=fill)
    if rng.random() < 0.75:
        joint = _shaded(tone, rng.uniform(0.72, 0.9))
        spacing = rng.uniform(0.5, 1.1)
        for lateral in np.arange(-14, 14, spacing):
            draw.line([at(lateral, base), at(lateral, 640)], fill=joint, width=1)
        distance = eye_height * 400 / (SCENE_HEIGHT - horizon)
        while horizon + eye_height * 400 / distance > base:
            row = horizon + eye_height * 400 / distance
            draw.line((0, row, SCENE_WIDTH, row), fill=joint, width=1)
            distance += spacing * 1.6
    for _ in range(int(rng.integers(2, 8))):
        cx, cy = rng.uniform(0, SCENE_WIDTH), rng.uniform(base + 20, SCENE_HEIGHT)
        size = 0.25 * (cy - horizon) * rng.uniform(0.3, 1.2)
        draw.ellipse(
            (cx - size, cy - 0.25 * size, cx + size, cy + 0.25 * size),
            fill=_shaded(tone, rng.uniform(0.6, 0.9)),
        )
    if rng.random() < 0.6:
        paint = (215, 213, 205) if rng.random() < 0.7 else (205, 178, 80)
        lateral = rng.uniform(-5, 5)
        draw.line([at(lateral, base), at(lateral, 640)], fill=paint, width=5)


def _furniture(draw: ImageDraw.ImageDraw, rng: np.random.Generator, scene: Scene, base: float, pieces: int) -> None:
    """Posts, trees, cars, bins and bystanders, the far ones first."""
    rows = np.sort(base + 4 + (SCENE_HEIGHT - base) * rng.random(pieces) ** 1.8)
    for row in rows:
        x = rng.uniform(0, SCENE_WIDTH)
        metre = (row - scene.horizon) / scene.eye_height
        kind = int(rng.choice(6, p=(0.24, 0.14, 0.13, 0.13, 0.22, 0.14)))
        shadow = (x - 0.5 * metre, row - 0.08 * metre, x + 0.6 * metre, row + 0.1 * metre)
        if kind in (2, 3, 4):
            draw.ellipse(shadow, fill=(84, 82, 80))
        if kind == 0:  # post
            tone = _ink(rng, _CARS)
            half = rng.uniform(0.03, 0.07) * metre
            draw.rectangle((x - half, row - rng.uniform(1, 3) * metre, x + half, row), fill=tone)
            draw.rectangle((x + 0.3 * half, row - metre, x + half, row), fill=_shaded(tone, 0.7))
        elif kind == 1:  # tree
            draw.rectangle((x - 0.12 * metre, row - 3 * metre, x + 0.12 * metre, row), fill=(84, 68, 54))
            for _ in range(14):
                cx, cy = x + rng.normal(0, 0.6) * metre, row - (2.6 + abs(rng.normal(0, 0.6))) * metre
                size = rng.uniform(0.2, 0.5) * metre
                draw.ellipse((cx - size, cy - size, cx + size, cy + size), fill=_ink(rng, _GREENS, 14))
        elif kind == 2:  # car
            tone = _ink(rng, _CARS)
            half = 2.0 * metre
            draw.rounded_rectangle((x - half, row - 0.95 * metre, x + half, row - 0.2 * metre), 0.25 * metre, fill=tone)
            roof = [
                (x - 0.55 * half, row - 1.45 * metre),
                (x + 0.4 * half, row - 1.45 * metre),
                (x + 0.7 * half, row - 0.9 * metre),
                (x - 0.8 * half, row - 0.9 * metre),
            ]
            draw.polygon(roof, fill=_shaded(tone, 0.45))
            for wheel in (-1.2, 1.2):
                cx = x + wheel * metre
                draw.ellipse(
                    (cx - 0.33 * metre, row - 0.62 * metre, cx + 0.33 * metre, row + 0.02 * metre),
                    fill=(34, 34, 34),
                )
                draw.ellipse(
                    (cx - 0.17 * metre, row - 0.46 * metre, cx + 0.17 * metre, row - 0.14 * metre),
                    fill=(128, 128, 130),
                )
        elif kind == 3:  # bin, box or sign
            tone = _ink(rng, _CARS + _GREENS)
            high, half = rng.uniform(0.7, 1.6) * metre, rng.uniform(0.2, 0.5) * metre
            draw.rectangle((x - half, row - high, x + half, row), fill=tone)
            draw.rectangle((x + 0.5 * half, row - high, x + half, row), fill=_shaded(tone, 0.75))
        elif kind == 4:  # bystander
            head, trunk = 0.11 * metre, 0.22 * metre
            cloth, dark = _ink(rng, _CARS, 25), _ink(rng, ((40, 42, 50), (70, 80, 110)), 12)
            draw.rectangle((x - 0.75 * trunk, row - 0.85 * metre, x + 0.6 * trunk, row), fill=dark)
            draw.rounded_rectangle(
                (x - trunk, row - 1.45 * metre, x + trunk, row - 0.8 * metre), 0.1 * metre, fill=cloth
            )
            draw.ellipse((x - head, row - 1.72 * metre, x + head, row - 1.42 * metre), fill=(120, 90, 74))
        else:  # railing or bicycle stand
            tone = _ink(rng, _CARS)
            long = rng.uniform(0.8, 3) * metre
            for high in (0.9, 0.5):
                draw.line(
                    (x, row - high * metre, x + long, row - high * metre),
                    fill=tone,
                    width=max(1, int(0.05 * metre)),
                )
            for post in np.linspace(x, x + long, 5):
                draw.line((post, row - 0.9 * metre, post, row), fill=tone, width=max(1, int(0.05 * metre)))


def _texture(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(SCENE_HEIGHT, SCENE_WIDTH) factors around 1: stains, wear and grain, coarse to fine."""
    total = np.ones((SCENE_HEIGHT, SCENE_WIDTH), np.float32)
    for cells, depth in ((5, 0.09), (18, 0.06), (70, 0.05), (230, 0.045), (640, 0.04)):
        grid = rng.standard_normal((cells // 2 + 1, cells)).astype(np.float32)
        layer = Image.fromarray(grid).resize((SCENE_WIDTH, SCENE_HEIGHT), Image.Resampling.BICUBIC)
        total += depth * np.asarray(layer)
    return total
