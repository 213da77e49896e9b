"""Cameras: where they look from, what they see behind people, and what lens and sensor do to the picture."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from posereid.data.synthetic.presets import Preset
from posereid.data.synthetic.props import OCCLUDERS
from posereid.data.synthetic.scenes import Scene, build_scene
from posereid.pose.joints import JOINT_NAMES

FloatImage = npt.NDArray[np.float32]

DETECTOR_MISSES = {
    "nose": 0.0, "neck": 0.0, "shoulder": 0.0, "elbow": 0.03, "wrist": 0.18,
    "hip": 0.0, "knee": 0.0, "ankle": 0.10, "eye": 0.05, "ear": 0.0,
}  # fmt: skip
"""Rates at which a pose detector misses joints that can be seen: what geometry leaves of Market-1501's rates."""

NOTHING_FOUND = 0.03
"""Rate of crops in which a pose detector finds nobody, in Market-1501."""

_MISSES = np.array([DETECTOR_MISSES[name.rpartition("_")[2]] for name in JOINT_NAMES])


@dataclass(frozen=True)
class Shot:
    """Everything about one crop that belongs neither to the person nor to the pose nor to the camera.

    The same shot with another person, pose or camera shows them under the same circumstances.
    """

    yaw: float
    """Radians by which the person is turned; 0 faces the camera, +π/2 walks to the right of the image."""
    fill: float
    """Height of the person over the height of the crop; above 1 the box cuts the person."""
    fill_across: float
    """Width of the person over the width of the crop, as far as the stretch of a real box goes."""
    shift_x: float
    shift_y: float
    """Misalignment of the box, as a share of its width and height."""
    squeeze: float
    """Jitter of the horizontal scale."""
    across: float
    depth: float
    """Where in the scene the person stands, both in [0, 1]."""
    exposure: float
    occluder: str
    """One of OCCLUDERS, or an empty string."""
    missed: tuple[int, ...]
    """Joints that the pose detector misses even where they can be seen."""
    detail_seed: int
    """Seeds sensor noise, the occluder's looks and those of a bicycle or parcel."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One fixed camera. ``number`` counts from 1; angles are radians; images it makes are ``height`` high."""

    number: int
    height: int
    scene: Scene
    preset: Preset
    elevation: float
    distance: float
    light: npt.NDArray[np.float64]
    """Unit vector towards the light in view axes: right, down, towards the viewer."""
    ambient: float
    diffuse: float
    cast: npt.NDArray[np.float64]
    """Factors on red, green and blue."""
    gamma: float
    contrast: float
    blur: float
    """Standard deviation in pixels of a crop 128 high."""
    noise: float
    """Standard deviation of the sensor noise in grey levels."""
    native_height: int
    """Rows that the sensor really has on a crop; fewer than ``height`` are scaled up."""

    @property
    def width(self) -> int:
        """Width of the crops."""
        return self.height // 2

    def shoot(self, rng: np.random.Generator, yaw: float | None = None) -> Shot:
        """Random circumstances for one crop. ``yaw`` fixes the direction; the other draws do not change."""
        preset = self.preset
        drawn = float(rng.uniform(-np.pi, np.pi))
        fill, fill_across = float(rng.uniform(*preset.fill)), float(rng.uniform(0.72, 0.96))
        shift_x, shift_y = (float(rng.normal(0, spread)) for spread in preset.shift)
        cut, side, fault = float(rng.uniform(0.05, 0.45)), rng.random(), rng.random()
        if fault < preset.cut:
            # The detector's box misses a part: mostly the legs, sometimes the head.
            fill, shift_y = fill + cut, shift_y + (0.5 if side < 0.8 else -0.2) * cut
        elif fault < preset.cut + preset.loose:
            fill *= 1 - cut
        kind = OCCLUDERS[int(rng.integers(len(OCCLUDERS)))]
        nobody, found = rng.random() < preset.misses * NOTHING_FOUND, rng.random(len(_MISSES))
        return Shot(
            yaw=drawn if yaw is None else yaw,
            fill=fill,
            fill_across=fill_across,
            shift_x=shift_x,
            shift_y=shift_y,
            squeeze=float(rng.uniform(0.93, 1.07)),
            occluder=kind if rng.random() < preset.occluded else "",
            missed=tuple(np.flatnonzero(nobody | (found < preset.misses * _MISSES)).tolist()),
            across=float(rng.random()),
            depth=float(rng.random()),
            exposure=float(np.exp(rng.normal(0, preset.exposure / 2))),
            detail_seed=int(rng.integers(2**31)),
        )

    def shoot_junk(self, rng: np.random.Generator) -> Shot:
        """Circumstances of a useless crop: the box holds a piece of a person, or misses them altogether."""
        shot = self.shoot(rng)
        fill = float(rng.uniform(1.5, 3.0))
        return Shot(
            **{
                **shot.__dict__,
                "fill": fill,
                "shift_x": float(rng.uniform(-0.6, 0.6)),
                "shift_y": float(rng.uniform(-0.4, 0.4)) * fill,
            }
        )

    def background(
        self, shot: Shot, metres_high: float, feet_row: float, feet_column: float, stretch: float = 1.0
    ) -> FloatImage:
        """The window of the scene behind the person, (height, width, 3) in [0, 1].

        ``metres_high`` is the height of the crop where the person stands; the feet are at the given row and
        column of the crop, ``stretch`` is the crop's horizontal over its vertical scale.
        """
        column, row, metre = self.scene.window(shot.across, shot.depth)
        scale = metre * metres_high / self.height
        scale_x = scale / stretch
        image = self.scene.image
        left = np.clip(column - feet_column * scale_x, 0, max(image.width - self.width * scale_x, 0))
        top = np.clip(row - feet_row * scale, 0, max(image.height - self.height * scale, 0))
        box = (
            float(left),
            float(top),
            float(min(left + self.width * scale_x, image.width)),
            float(min(top + self.height * scale, image.height)),
        )
        window = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(window, np.float32) * np.float32(1 / 255)

    def develop(self, radiance: FloatImage, shot: Shot) -> npt.NDArray[np.uint8]:
        """Lens and sensor: colour cast, exposure, gamma, blur, native resolution, noise."""
        tone = np.clip(radiance * (self.cast * shot.exposure).astype(np.float32), 0, 1)
        tone = np.clip((tone ** np.float32(self.gamma) - 0.45) * self.contrast + 0.45, 0, 1)
        image = Image.fromarray((tone * 255 + 0.5).astype(np.uint8))
        sigma = self.blur * self.height / 128
        if sigma > 0.2:
            image = image.filter(ImageFilter.GaussianBlur(sigma))
        if self.native_height < self.height:
            small = image.resize((self.native_height // 2, self.native_height), Image.Resampling.BOX)
            image = small.resize((self.width, self.height), Image.Resampling.BICUBIC)
        noise = np.random.default_rng((shot.detail_seed, 1)).standard_normal((self.height, self.width, 3), np.float32)
        noisy = np.asarray(image, np.float32) + noise * np.float32(self.noise)
        return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def build_camera(number: int, height: int, preset: Preset, rng: np.random.Generator) -> Camera:
    """Camera ``number`` as the preset's cameras are."""
    # The scene has numbers of its own: however much stands about, the camera under a preset is the same but for degree.
    scene = build_scene(rng.spawn(1)[0], preset.furniture)
    light = np.array([rng.uniform(-0.8, 0.8), -rng.uniform(0.4, 0.9), rng.uniform(0.25, 0.8)])

    def strays(spread: float) -> float:
        """A deviate of this standard deviation without tails: of four cameras, one odd one would decide a world."""
        return float(rng.uniform(-1, 1)) * 3**0.5 * spread

    warmth = strays(preset.cast)
    share = float(rng.choice(preset.native_shares))
    ambient = float(rng.uniform(*preset.ambient))
    return Camera(
        number=number,
        height=height,
        scene=scene,
        preset=preset,
        elevation=float(rng.uniform(0.08, 0.40)),
        distance=float(rng.uniform(5, 10)),
        light=light / np.linalg.norm(light),
        ambient=ambient,
        # Where little light comes from everywhere, more comes from the sun.
        diffuse=float(rng.uniform(0.38, 0.62)) + 0.58 - ambient,
        cast=np.exp(np.array([warmth, strays(preset.cast / 2), -warmth]) + strays(preset.exposure)),
        gamma=float(np.exp(strays(preset.gamma))),
        contrast=float(rng.uniform(*preset.contrast)),
        blur=float(rng.uniform(0.0, preset.blur)),
        noise=float(rng.uniform(1.0, 2.4)),
        native_height=round(share * height / 2) * 2,
    )
