"""Ray casting of elliptical round cones: the one solid of which people, bicycles and plants are made.

An elliptical round cone is the volume swept by a sphere whose radius changes linearly along a segment, then
stretched along the axes of the part it belongs to. Spheres, ellipsoids, capsules and tapered limbs are
special cases. Under parallel rays its depth has a closed form, so all solids of a crop are intersected in
one flat array of (solid, pixel) pairs: a handful of NumPy calls for a whole person.
"""

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

FAR = 1e3
"""Beyond every coordinate (metres) of a part: a cut at this height cuts nothing."""

_BACKGROUND = -1
_DEPTH_STEPS = 256.0  # depth resolution of the depth test, per pixel
_PAIR_BITS = 22  # room for four million (solid, pixel) pairs in one depth-test key


@dataclass(frozen=True, eq=False)
class Solids:
    """P elliptical round cones, each fixed to a frame (a body part). Lengths are metres.

    ``start`` and ``end`` (P, 3) are the ends of the segment in part coordinates, ``start_radius`` and
    ``end_radius`` (P,) the radii there, ``stretch`` (P, 3) the factors along the part's axes by which the
    sphere is stretched. Only the part with ``keep[:, 0] <= z <= keep[:, 1]`` is drawn (hems, sleeves).
    ``frame`` (P,) indexes the frames, ``material`` (P,) the materials, ``layer`` (P,) says whose it is
    (1 the person and their belongings, 2 something in front). ``pattern_origin`` (P, 3) is added to part
    coordinates before patterns are evaluated, so that a pattern goes on from one solid to the next.
    """

    frame: npt.NDArray[np.intp]
    start: FloatArray
    end: FloatArray
    start_radius: FloatArray
    end_radius: FloatArray
    stretch: FloatArray
    keep: FloatArray
    material: npt.NDArray[np.intp]
    layer: npt.NDArray[np.intp]
    pattern_origin: FloatArray

    def __len__(self) -> int:
        return len(self.frame)

    def joined(self, other: "Solids", frame_offset: int, material_offset: int, layer: int) -> "Solids":
        """These solids followed by others, whose frames and materials were appended to ours."""
        columns = {item.name: [getattr(self, item.name), getattr(other, item.name)] for item in fields(self)}
        columns["frame"][1] = other.frame + frame_offset
        columns["material"][1] = other.material + material_offset
        columns["layer"][1] = np.full(len(other), layer)
        return Solids(**{name: np.concatenate(parts) for name, parts in columns.items()})


@dataclass
class SolidBuilder:
    """Collects solids one by one; a figure is built once per person and then only posed."""

    rows: list[tuple] = field(default_factory=list)

    def add(
        self,
        frame: int,
        material: int,
        start: tuple[float, float, float],
        end: tuple[float, float, float] | None = None,
        radius: float | tuple[float, float] = 1.0,
        stretch: tuple[float, float, float] = (1.0, 1.0, 1.0),
        keep: tuple[float, float] = (-FAR, FAR),
        pattern_origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        """One solid; without ``end`` an ellipsoid, with one radius a capsule."""
        radii = radius if isinstance(radius, tuple) else (radius, radius)
        self.rows.append((frame, start, end or start, radii[0], radii[1], stretch, keep, material, 1, pattern_origin))

    def build(self) -> Solids:
        """All solids added so far as arrays."""
        columns = list(zip(*self.rows, strict=True))
        return Solids(*(np.array(column) for column in columns))


@dataclass(frozen=True, eq=False)
class Surface:
    """What the rays hit first. N is the number of covered pixels.

    ``pixel`` (N,) flat pixel index; ``solid`` (N,) index of the solid; ``depth`` (N,) pixels towards the
    viewer; ``normal`` (N, 3) unit normals in view axes (right, down, towards the viewer); ``part`` (N, 3)
    metres in the coordinates of the solid's part. ``depth_map`` and ``solid_map`` (H, W) hold depth and solid
    as images, with -1e9 and -1 for the background.
    """

    pixel: npt.NDArray[np.intp]
    solid: npt.NDArray[np.intp]
    depth: FloatArray
    normal: FloatArray
    part: FloatArray
    depth_map: FloatArray
    solid_map: npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Projection:
    """Where view coordinates (metres; right, down, towards the viewer) land in the image.

    x = column + scale_x · x · f and y = row + scale_y · y · f with f = distance / (distance - z): a mild
    perspective about the person's middle.
    """

    column: float
    row: float
    scale_x: float
    scale_y: float
    distance: float

    def points(self, view: FloatArray) -> FloatArray:
        """(n, 3) view coordinates -> (n, 3) columns, rows and depth in pixels."""
        factor = self.distance / (self.distance - view[:, 2])
        return np.stack(
            (
                self.column + self.scale_x * view[:, 0] * factor,
                self.row + self.scale_y * view[:, 1] * factor,
                self.scale_y * view[:, 2],
            ),
            axis=1,
        )


def outline(solids: Solids, rotation: FloatArray, origin: FloatArray, projection: Projection) -> FloatArray:
    """Bounding boxes (P, 4) of the solids in the image: left, top, right, bottom in pixels."""
    return _placed(solids, rotation, origin, projection)[-1]


def _placed(solids: Solids, rotation: FloatArray, origin: FloatArray, projection: Projection) -> tuple[FloatArray, ...]:
    turn = rotation[solids.frame]
    start_view = np.einsum("pij,pj->pi", turn, solids.start) + origin[solids.frame]
    end_view = np.einsum("pij,pj->pi", turn, solids.end) + origin[solids.frame]
    start, end = projection.points(start_view), projection.points(end_view)
    near = projection.distance / (projection.distance - np.stack((start_view[:, 2], end_view[:, 2])))
    middle = near.mean(axis=0)
    axes_scale = np.stack(
        np.broadcast_arrays(projection.scale_x, projection.scale_y, projection.scale_y), axis=-1
    ).astype(float)
    # forward[p] maps the unstretched part axes to pixels, to first order around the solid's middle.
    forward = turn * axes_scale[None, :, None] * middle[:, None, None]
    start_radius = solids.start_radius * near[0] / middle
    end_radius = solids.end_radius * near[1] / middle
    reach = np.sqrt(np.einsum("pij,pj->pi", forward[:, :2] ** 2, solids.stretch**2))
    low = np.minimum(start[:, :2] - reach * start_radius[:, None], end[:, :2] - reach * end_radius[:, None])
    high = np.maximum(start[:, :2] + reach * start_radius[:, None], end[:, :2] + reach * end_radius[:, None])
    return start, end, start_radius, end_radius, forward, np.concatenate((low, high), axis=1)


def cast(
    solids: Solids,
    rotation: FloatArray,
    origin: FloatArray,
    projection: Projection,
    height: int,
    width: int,
) -> Surface:
    """Intersects one ray per pixel with all solids and keeps the nearest hit.

    ``rotation`` (F, 3, 3) and ``origin`` (F, 3) take part coordinates of each frame to view coordinates.
    """
    start, end, start_radius, end_radius, forward, box = _placed(solids, rotation, origin, projection)
    # Into a space where the solid is a true round cone and the ray runs along the third axis.
    inverse = np.linalg.inv(forward)
    to_sphere = inverse / solids.stretch[:, :, None]
    ray = to_sphere[:, :, 2]
    ray_length = np.linalg.norm(ray, axis=1)
    to_local = _basis_along(ray / ray_length[:, None]) @ to_sphere
    axis = np.einsum("pij,pj->pi", to_local, end - start)
    offset = -np.einsum("pij,pj->pi", to_local, start)
    start_radius, growth = _tamed(start_radius, end_radius - start_radius, axis)
    quadratic = np.minimum(growth**2 - (axis[:, :2] ** 2).sum(axis=1), -1e-9)
    slant = np.maximum((axis**2).sum(axis=1) - growth**2, 1e-9)

    pair_solid, column, row = _pairs(box, height, width)
    table = np.column_stack(
        (
            to_local[:, 0, 0], to_local[:, 0, 1], offset[:, 0],
            to_local[:, 1, 0], to_local[:, 1, 1], offset[:, 1],
            axis, start_radius, growth, quadratic, slant,
        )
    ).astype(np.float32)  # fmt: skip
    gathered = np.take(np.ascontiguousarray(table.T), pair_solid, axis=1)
    x = gathered[0] * column + gathered[1] * row + gathered[2]
    y = gathered[3] * column + gathered[4] * row + gathered[5]
    along_x, along_y, along_z, radius, growth_of, c = gathered[6:12]
    # Depth of the sphere at parameter s: s·axis_z + sqrt(a + b·s + c·s²); the visible one maximises it.
    a = radius * radius - x * x - y * y
    b = 2 * (radius * growth_of + x * along_x + y * along_y)
    discriminant = np.maximum(b * b - 4 * a * c, 0)
    s = np.clip((b + along_z * np.sqrt(discriminant / gathered[12])) / (-2 * c), 0, 1)
    height_squared = a + s * (b + c * s)
    hit = np.flatnonzero(height_squared > 0)

    solid, x, y, s = pair_solid[hit], x[hit], y[hit], s[hit]
    column, row = column[hit], row[hit]
    bulge = np.sqrt(height_squared[hit])
    tilt = np.column_stack(
        (to_local[:, 2, 0] / ray_length, to_local[:, 2, 1] / ray_length, offset[:, 2] / ray_length)
    ).astype(np.float32).T[:, solid]  # fmt: skip
    scaled = (1 / ray_length).astype(np.float32)[solid]
    depth = (s * along_z[hit] + bulge) * scaled - tilt[0] * column - tilt[1] * row - tilt[2]

    cut = np.flatnonzero(((solids.keep[:, 0] > -FAR) | (solids.keep[:, 1] < FAR))[solid])
    if len(cut):
        which = solid[cut]
        third = inverse[:, 2]
        along = (
            solids.start[which, 2]
            + third[which, 0] * (column[cut] - start[which, 0])
            + third[which, 1] * (row[cut] - start[which, 1])
            + third[which, 2] * (depth[cut] - start[which, 2])
        )
        depth[cut[(along < solids.keep[which, 0]) | (along > solids.keep[which, 1])]] = -np.inf

    flat = row.astype(np.intp) * width + column.astype(np.intp)
    # Depth above, pair below: one integer maximum per pixel finds both the nearest hit and what was hit.
    valid = np.isfinite(depth)
    steps = np.where(valid, (depth + 2.0**16) * _DEPTH_STEPS, 0).astype(np.int64)
    keys = (steps << _PAIR_BITS) | np.arange(len(steps))
    buffer = np.full(height * width, _BACKGROUND, np.int64)
    np.maximum.at(buffer, flat[valid], keys[valid])
    pixel = np.flatnonzero(buffer >= 0)
    first = buffer[pixel] & ((1 << _PAIR_BITS) - 1)

    solid, depth = solid[first], depth[first]
    along = np.take(axis.T.astype(np.float32), solid, axis=1) * s[first]
    local = (x[first] - along[0], y[first] - along[1], bulge[first])
    normal = _turned(to_local.transpose(0, 2, 1), solid, local)
    normal /= np.sqrt((normal * normal).sum(axis=0))
    base = np.take(start.T.astype(np.float32), solid, axis=1)
    part = _turned(inverse, solid, (column[first] - base[0], row[first] - base[1], depth - base[2]))
    part += np.take(solids.start.T.astype(np.float32), solid, axis=1)

    depth_map = np.full(height * width, -1e9, np.float32)
    depth_map[pixel] = depth
    solid_map = np.full(height * width, _BACKGROUND, np.intp)
    solid_map[pixel] = solid
    shape = (height, width)
    return Surface(pixel, solid, depth, normal.T, part.T, depth_map.reshape(shape), solid_map.reshape(shape))


def _turned(
    matrices: FloatArray, index: npt.NDArray[np.intp], vectors: tuple[FloatArray, FloatArray, FloatArray]
) -> FloatArray:
    """(3, N) products of matrices[index] (P, 3, 3) with N vectors given as three columns."""
    m = np.take(np.ascontiguousarray(matrices.reshape(-1, 9).T, np.float32), index, axis=1)
    x, y, z = vectors
    return np.stack([m[3 * i] * x + m[3 * i + 1] * y + m[3 * i + 2] * z for i in range(3)])


def _basis_along(direction: FloatArray) -> FloatArray:
    """(P, 3) unit vectors -> (P, 3, 3) rotations whose third row is the vector."""
    helper = np.where(np.abs(direction[:, :1]) < 0.7, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(helper, direction)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack((first, np.cross(direction, first), direction), axis=1)


def _tamed(radius: FloatArray, growth: FloatArray, axis: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Start radius and growth, with the growth limited where a tapered solid is seen end on.

    There the larger sphere hides the smaller and the closed form breaks down; a gentler taper that keeps the
    larger radius looks the same.
    """
    limit = 0.95 * np.linalg.norm(axis[:, :2], axis=1)
    limited = np.clip(growth, -limit, limit)
    return np.where(growth > 0, radius + growth - limited, radius), limited


def _pairs(
    box: FloatArray, height: int, width: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Every (solid, column, row) with the pixel inside the solid's bounding box."""
    left = np.clip(np.ceil(box[:, 0]), 0, width).astype(np.intp)
    top = np.clip(np.ceil(box[:, 1]), 0, height).astype(np.intp)
    columns = np.maximum(np.clip(np.floor(box[:, 2]) + 1, 0, width).astype(np.intp) - left, 0)
    rows = np.maximum(np.clip(np.floor(box[:, 3]) + 1, 0, height).astype(np.intp) - top, 0)
    counts = columns * rows
    solid = np.repeat(np.arange(len(box)), counts)
    place = (np.arange(len(solid)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.float32)
    across = np.repeat(columns.astype(np.float32), counts)
    row = np.floor((place + 0.5) / across)
    column = place - row * across
    return (
        solid,
        column + np.repeat(left.astype(np.float32), counts),
        row + np.repeat(top.astype(np.float32), counts),
    )
