"""One crop: a person in a pose before a camera, as pixels, foreground mask and joints."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posereid.data.synthetic.appearance import Appearance, Outfit, sample_appearance
from posereid.data.synthetic.body import Array, Frame, Proportions, Skeleton, pose_body, sample_proportions
from posereid.data.synthetic.cameras import Camera, FloatImage, Shot
from posereid.data.synthetic.figure import Figure, build_figure
from posereid.data.synthetic.patterns import Material, fold_shade, reflectance
from posereid.data.synthetic.poses import Pose
from posereid.data.synthetic.presets import Preset
from posereid.data.synthetic.props import belongings, occluder
from posereid.data.synthetic.rasteriser import FloatArray, Projection, Solids, Surface, cast, outline
from posereid.pose.joints import JOINT_NAMES, Joints

SUPERSAMPLING = 2
"""Rays per pixel and axis."""

_PERSON, _IN_FRONT = 1, 2

# How far (metres) a surface may lie before a joint and still be taken for the joint's own flesh and clothes.
# Shoulders and hips are lenient: detectors report the far ones of a profile, too.
_OWN_THICKNESS = {
    "nose": 0.035, "neck": 0.26, "shoulder": 0.44, "elbow": 0.09, "wrist": 0.08,
    "hip": 0.44, "knee": 0.38, "ankle": 0.14, "eye": 0.03, "ear": 0.06,
}  # fmt: skip
_FACE = np.array([name in ("nose", "right_eye", "left_eye") for name in JOINT_NAMES])
_FACE_BEHIND = 0.028  # metres behind the middle of the head at which nose and eyes have turned away
_TOLERANCE = np.array([_OWN_THICKNESS[name.rpartition("_")[2]] for name in JOINT_NAMES])


@dataclass(frozen=True, eq=False)
class Person:
    """An identity: one body with one look, the same in every crop."""

    body: Proportions
    looks: Appearance
    figure: Figure


@dataclass(frozen=True, eq=False)
class RenderedCrop:
    """``image`` (H, W, 3) uint8 RGB, ``mask`` (H, W) bool of the visible person, ``joints`` in pixels."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    joints: Joints


def sample_person(rng: np.random.Generator, preset: Preset, shared: Outfit | None = None) -> Person:
    """A random person, in the ``shared`` garments or in their own."""
    body = sample_proportions(rng)
    looks = sample_appearance(rng, body.stature, preset, shared)
    return Person(body, looks, build_figure(body, looks))


def render_crop(
    person: Person, pose: Pose, camera: Camera, rng: np.random.Generator, *, yaw: float | None = None
) -> RenderedCrop:
    """A crop of the person under random circumstances drawn from ``rng``.

    ``yaw`` (radians; 0 faces the camera, π/2 walks to the right of the image) fixes the viewing direction,
    which otherwise may be any. The same generator state gives the same
    circumstances for any person and pose.
    """
    return render_shot(person, pose, camera, camera.shoot(rng, yaw))


def render_shot(person: Person | None, pose: Pose, camera: Camera, shot: Shot) -> RenderedCrop:
    """A crop of the person under given circumstances; without a person only the background."""
    height, width = camera.height, camera.width
    if person is None:
        image = camera.develop(camera.background(shot, 2.0, 0.95 * height, 0.5 * width), shot)
        nothing = Joints(np.zeros((len(JOINT_NAMES), 2), np.float32), np.zeros(len(JOINT_NAMES), bool))
        return RenderedCrop(image, np.zeros((height, width), bool), nothing)

    skeleton = pose_body(person.body, pose)
    turn, ground = _view(shot.yaw, camera.elevation), _view(None, camera.elevation)
    centre = np.array([0.0, 0.0, 0.5 * person.body.stature])
    rotation, origin = turn @ skeleton.rotation, (skeleton.origin - centre) @ turn.T
    projection = _framing(person.figure.solids, rotation, origin, camera, shot)

    solids, materials = person.figure.solids, person.figure.materials
    props = belongings(pose, skeleton, shot.detail_seed)
    if shot.occluder:
        props.append(occluder(shot.occluder, np.random.default_rng((shot.detail_seed, 2))))
    for prop in props:
        axes = turn if prop.on_body else ground
        layer = _PERSON if prop.on_body else _IN_FRONT
        solids = solids.joined(prop.solids, len(rotation), len(materials), layer)
        rotation = np.concatenate((rotation, axes @ prop.rotation))
        origin = np.concatenate((origin, (prop.origin - centre) @ axes.T))
        materials = materials + prop.materials

    fine = _finer(projection)
    surface = cast(solids, rotation, origin, fine, height * SUPERSAMPLING, width * SUPERSAMPLING)
    colour = _shaded(surface, solids, materials, person.figure.folds, camera)
    points = fine.points((skeleton.joints - centre) @ turn.T)
    head_depth = float((turn @ (skeleton.origin[Frame.HEAD] - centre))[2])
    joints = _visible_joints(points, head_depth, surface, solids, fine, shot.missed)

    feet = projection.points(np.array([(-centre) @ turn.T]))[0]
    metres_high = height / projection.scale_y
    stretch = projection.scale_x / projection.scale_y
    background = camera.background(shot, metres_high, float(feet[1]), float(feet[0]), stretch)
    _drop_shadow(background, skeleton, turn, centre, projection, camera)
    coverage, mask, light = _resolved(surface, solids, colour, height, width)
    light *= _creases(surface, projection.scale_y, height, width)[..., None]
    image = camera.develop(background * (1 - coverage[..., None]) + light, shot)
    return RenderedCrop(image, mask, joints)


def _view(yaw: float | None, elevation: float) -> Array:
    """Rows are the view axes (right, down, towards the viewer) in body axes; without yaw in ground axes."""
    if yaw is None:
        right, towards = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    else:
        c, s = np.cos(yaw), np.sin(yaw)
        right, towards = np.array([-c, s, 0]), np.array([s, c, 0])
    up = np.array([0, 0, 1.0])
    c, s = np.cos(elevation), np.sin(elevation)
    return np.stack((right, -(c * up - s * towards), c * towards + s * up))


def _framing(solids: Solids, rotation: Array, origin: Array, camera: Camera, shot: Shot) -> Projection:
    """Scale and position so that the person fills the box as the shot says.

    Real sets resize a tight box of any shape to one size, so that slim figures come out wide: in Market-1501's
    training crops the shoulders are 26 of 64 pixels apart in the median, the ankles 90 rows below the neck.
    """
    boxes = outline(solids, rotation, origin, Projection(0, 0, 1, 1, camera.distance))
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    scale = shot.fill * camera.height / (bottom - top)
    # Wide people (sitting, arms spread) get a larger box rather than lose their limbs.
    scale = max(min(scale, 1.02 * shot.fill * camera.width / (right - left)), 0.62 * scale)
    natural = scale * (right - left) / camera.width
    scale_x = scale * shot.squeeze * float(np.clip(shot.fill_across / natural, 0.85, 1.6))
    return Projection(
        column=(0.5 + shot.shift_x) * camera.width - 0.5 - scale_x * (left + right) / 2,
        row=(0.5 + shot.shift_y) * camera.height - 0.5 - scale * (top + bottom) / 2,
        scale_x=scale_x,
        scale_y=scale,
        distance=camera.distance,
    )


def _finer(projection: Projection) -> Projection:
    """The same view on the grid of rays; pixel centres are at whole numbers on both grids."""
    times = SUPERSAMPLING
    shift = (times - 1) / 2
    return Projection(
        projection.column * times + shift,
        projection.row * times + shift,
        projection.scale_x * times,
        projection.scale_y * times,
        projection.distance,
    )


def _shaded(
    surface: Surface, solids: Solids, materials: tuple[Material, ...], folds: float, camera: Camera
) -> FloatImage:
    """(N, 3) colours of the hit points under the camera's light."""
    material = solids.material[surface.solid]
    own = surface.part + solids.pattern_origin.astype(np.float32)[surface.solid]
    colour = reflectance(materials, material, surface.part, own)
    lambert = np.clip(surface.normal @ camera.light.astype(np.float32), 0, None)
    # The sky lights what faces up, the ground sends a little back from below.
    sky = 1 - 0.22 * surface.normal[:, 1]
    shade = (camera.ambient * sky + camera.diffuse * lambert) * fold_shade(materials, material, surface.part, folds)
    return colour * shade[:, None]


def _resolved(
    surface: Surface, solids: Solids, colour: FloatImage, height: int, width: int
) -> tuple[FloatImage, npt.NDArray[np.bool_], FloatImage]:
    """Averages the rays of each pixel: coverage (H, W), the person's mask, and covered light (H, W, 3)."""
    fine = np.zeros((height * width * SUPERSAMPLING**2, 5), np.float32)
    fine[surface.pixel, :3] = colour
    fine[surface.pixel, 3] = 1
    fine[surface.pixel, 4] = solids.layer[surface.solid] == _PERSON
    grid = fine.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, 5)
    total = grid[:, 0, :, 0] + grid[:, 0, :, 1] + grid[:, 1, :, 0] + grid[:, 1, :, 1]
    total *= np.float32(1 / SUPERSAMPLING**2)
    return total[..., 3], total[..., 4] >= 0.5, total[..., :3]


def _creases(surface: Surface, scale: float, height: int, width: int) -> FloatImage:
    """(H, W) factors: darker where a nearer surface close by keeps the light away."""
    depth = surface.depth_map[::SUPERSAMPLING, ::SUPERSAMPLING] / SUPERSAMPLING
    reach = max(2, round(0.035 * scale))
    padded = np.pad(depth, reach, constant_values=-1e9)
    shade = np.zeros((height, width), np.float32)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1), (-0.7, -0.7), (-0.7, 0.7)):
        top, left = reach + round(dy * reach), reach + round(dx * reach)
        rise = (padded[top : top + height, left : left + width] - depth) * np.float32(1 / (0.09 * scale))
        # A step of a few centimetres casts most; far things such as an occluder cast nothing.
        shade += np.where(rise < 4, np.clip(rise - 0.3, 0, 1), 0)
    return 1 - np.float32(0.075) * shade


def _visible_joints(
    points: FloatArray,
    head_depth: float,
    surface: Surface,
    solids: Solids,
    fine: Projection,
    missed: tuple[int, ...],
) -> Joints:
    """Which joints lie in the crop and are neither hidden nor ``missed``, in crop pixels."""
    height, width = surface.depth_map.shape
    column, row = np.round(points[:, 0]).astype(int), np.round(points[:, 1]).astype(int)
    present = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
    before = (surface.depth_map[row, column] - points[:, 2]) / fine.scale_y
    solid = surface.solid_map[row, column]
    foreign = (solid >= 0) & (solids.layer[solid] == _IN_FRONT)
    present &= (before <= _TOLERANCE) & ~(foreign & (before > 0))
    present &= ~(_FACE & (points[:, 2] / fine.scale_y < head_depth - _FACE_BEHIND))
    present[list(missed)] = False
    xy = (points[:, :2] - (SUPERSAMPLING - 1) / 2) / SUPERSAMPLING
    limit = np.array([width // SUPERSAMPLING - 1, height // SUPERSAMPLING - 1])
    xy = np.clip(xy, 0, limit)
    return Joints(np.where(present[:, None], xy, 0).astype(np.float32), present)


def _drop_shadow(
    background: FloatImage,
    skeleton: Skeleton,
    turn: Array,
    centre: Array,
    projection: Projection,
    camera: Camera,
) -> None:
    """Darkens the ground under the feet and away from the light, in place."""
    height, width = background.shape[:2]
    foreshortening = np.sin(camera.elevation) + 0.08
    feet = skeleton.joints[[10, 13]].copy()
    feet[:, 2] = 0.0
    contacts = projection.points((feet - centre) @ turn.T)
    middle = contacts.mean(axis=0)
    away = -camera.light[0] * 0.45 * projection.scale_x
    spots = [(x, y, 0.11, 0.45) for x, y, _ in contacts] + [(middle[0] + away, middle[1], 0.34, 0.32)]
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    light = np.ones((height, width), np.float32)
    for x, y, radius, depth in spots:
        across = np.exp(-(((columns - x) / (radius * projection.scale_x)) ** 2))
        down = np.exp(-(((rows - y) / (radius * projection.scale_y * (0.35 + foreshortening))) ** 2))
        light *= 1 - np.float32(depth) * down[:, None] * across[None]
    background *= light[..., None]
