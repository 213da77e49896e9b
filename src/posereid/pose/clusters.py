"""Poses that stand for many: medoids of normalised skeletons.

The search for medoids is our own because scikit-learn has none and the maintained package kmedoids is under the GPL.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32, Int64

from posereid.errors import InputError
from posereid.pose.joints import Joints
from posereid.pose.skeletons import Skeletons, normalised, pose_distances

LARGEST_TABLE = 4096
"""Poses among which medoids are looked for; of more, a seeded sample. The table of their distances takes 64 MiB."""

# Where Market-1501's people stand in their crops, in the median over its training keypoints and in crop heights.
_TORSO_LENGTH = 0.297
_HIPS_DOWN = 0.492


@dataclass(frozen=True, eq=False)
class PoseClusters:
    """Clusters, the largest first: positions of their medoids, and for each pose the number of its cluster."""

    medoids: Int64[npt.NDArray[np.int64], " k"]
    cluster_of: Int64[npt.NDArray[np.int64], " n"]

    @property
    def sizes(self) -> Int64[npt.NDArray[np.int64], " k"]:
        """Poses in each cluster, its medoid included."""
        return np.bincount(self.cluster_of, minlength=len(self.medoids)).astype(np.int64)


def find_medoids(
    distances: Float32[npt.NDArray[np.float32], "n n"], count: int, seed: int
) -> Int64[npt.NDArray[np.int64], " k"]:
    """Positions, in ascending order, of ``count`` of n points to which all points are near.

    The cost is the sum of all points' distances to their nearest medoid. Medoids are first drawn like the centres of
    k-means++ (Arthur and Vassilvitskii 2007); then a medoid and another point change places as long as any such swap
    lowers the cost, with FasterPAM's order and bookkeeping (Schubert and Rousseeuw 2021). The result is a local
    optimum under single swaps. ``distances`` are symmetric and not negative. Deterministic in the seed.

    Raises InputError when ``count`` is below 1 or above n or LARGEST_TABLE.
    """
    _check(count, len(distances))
    if count == 1:
        return np.array([distances.sum(0, dtype=np.float64).argmin()])
    random = np.random.default_rng((seed, 9))
    medoids = _first_medoids(distances, count, random)
    order = random.permutation(len(distances))
    nearest, near, second = _two_nearest(distances, medoids)
    step = since_swap = 0
    while since_swap < len(order):
        candidate = order[step % len(order)]
        step += 1
        since_swap += 1
        if candidate in medoids:
            continue
        new = distances[candidate].astype(np.float64)
        closer = new < near
        # A point goes to the candidate if that is nearer than its medoid; if not, only the loss of its own medoid
        # concerns it, and then it goes to its second nearest or to the candidate.
        gained = (new - near)[closer].sum()
        change = np.bincount(nearest, np.where(closer, 0, np.minimum(new, second) - near), minlength=count)
        given_up = int(change.argmin())
        # Sums in another order differ in their last digits; such a difference must not swap to and fro.
        if gained + change[given_up] < -1e-9 * (near.sum() + 1e-30):
            medoids[given_up] = candidate
            nearest, near, second = _two_nearest(distances, medoids)
            since_swap = 0
    return np.sort(medoids)


def _first_medoids(
    distances: npt.NDArray[np.float32], count: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    medoids = [int(random.integers(len(distances)))]
    free = np.ones(len(distances), bool)
    free[medoids] = False
    near = distances[medoids[0]].astype(np.float64)
    while len(medoids) < count:
        weight = np.where(free, near**2, 0)
        # Points that all lie on medoids already are as good as each other.
        weight = weight if weight.sum() > 0 else free.astype(np.float64)
        medoids.append(int(random.choice(len(distances), p=weight / weight.sum())))
        free[medoids[-1]] = False
        near = np.minimum(near, distances[medoids[-1]])
    return np.array(medoids, np.int64)


def _two_nearest(
    distances: npt.NDArray[np.float32], medoids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each point the number of its nearest medoid, the distance to that one and to the second nearest."""
    table = distances[medoids].astype(np.float64)
    nearest = table.argmin(0)
    points = np.arange(table.shape[1])
    near = table[nearest, points]
    table[nearest, points] = np.inf
    return nearest, near, table.min(0)


def cluster_poses(joints: Sequence[Joints], count: int, seed: int) -> PoseClusters:
    """Clusters of poses, each with both shoulders and both hips, by :func:`~posereid.pose.skeletons.pose_distances`.

    Of more than LARGEST_TABLE poses, the medoids are those of a sample drawn with ``seed``; every pose then belongs to
    its nearest medoid. Clusters of equal size are in the order of their medoids.

    Raises InputError when ``count`` is below 1 or there are fewer poses, ValueError for a pose without torso.
    """
    _check(count, len(joints))
    skeletons = normalised(joints)
    looked_at = np.arange(len(joints))
    if len(joints) > LARGEST_TABLE:
        looked_at = np.sort(np.random.default_rng((seed, 10)).choice(len(joints), LARGEST_TABLE, replace=False))
    sample = skeletons[looked_at]
    medoids = looked_at[find_medoids(pose_distances(sample, sample), count, seed)]
    cluster_of = _nearest_medoids(skeletons, medoids)
    order = np.argsort(-np.bincount(cluster_of, minlength=count), kind="stable")
    return PoseClusters(medoids[order], np.argsort(order)[cluster_of])


def _nearest_medoids(skeletons: Skeletons, medoids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    centres = skeletons[medoids]
    blocks = [
        pose_distances(skeletons[start : start + LARGEST_TABLE], centres).argmin(1)
        for start in range(0, len(skeletons), LARGEST_TABLE)
    ]
    nearest = np.concatenate(blocks)
    # Two medoids in the very same pose: each stays in its own cluster, so that none is empty.
    nearest[medoids] = np.arange(len(medoids))
    return nearest


def canonical_poses_of(
    poses: Mapping[str, Joints] | Iterable[Joints], count: int, seed: int, height: int = 128, width: int = 64
) -> list[tuple[str, Joints]]:
    """The ``count`` poses that stand best for many, named pose_01 … by the size of their clusters, largest first.

    They are medoids, so each is the pose of somebody; :func:`in_crop` places it in a ``height`` × ``width`` crop.
    Poses without both shoulders and both hips are left out. Deterministic in the seed.

    Raises InputError when ``count`` is below 1 or fewer poses are left.
    """
    usable = usable_poses(poses)
    clusters = cluster_poses(usable, count, seed)
    return [
        (f"pose_{number:02d}", in_crop(usable[medoid], height, width))
        for number, medoid in enumerate(clusters.medoids, 1)
    ]


def usable_poses(poses: Mapping[str, Joints] | Iterable[Joints]) -> list[Joints]:
    """Those with both shoulders and both hips, in their order."""
    return [pose for pose in (poses.values() if isinstance(poses, Mapping) else poses) if pose.has_torso]


def in_crop(joints: Joints, height: int, width: int) -> Joints:
    """A pose from a crop of any size, in pixels of a ``height`` × ``width`` crop as most of Market-1501's people stand.

    The hips' middle is in the middle of the columns at 0.49 of the height, the torso is 0.30 of the height long. What
    would stick out is moved inside, and if it does not fit, made smaller. Raises ValueError without torso.
    """
    skeleton = normalised([joints])
    xy = skeleton.xy[0].astype(np.float64)
    present = joints.present
    last = np.array([width - 1, height - 1], np.float64)
    low, high = xy[present].min(0), xy[present].max(0)
    extent = np.maximum(high - low, 1e-9)
    scale = min(_TORSO_LENGTH * height, *(last / extent))
    place = np.array([width / 2, _HIPS_DOWN * height]) - 0.5
    place = np.clip(place, -low * scale, last - high * scale)
    placed = np.clip(xy * scale + place, 0, last)
    return Joints(np.where(present[:, None], placed, 0).astype(np.float32), present)


def _check(count: int, poses: int) -> None:
    if not 1 <= count <= LARGEST_TABLE:
        raise InputError(f"{count} poses are asked for as the centres of clusters; ask for 1 to {LARGEST_TABLE}.")
    if poses < count:
        raise InputError(
            f"{count} clusters of poses are asked for, and only {poses} poses have both shoulders and both hips; ask "
            "for fewer, or give keypoints of more crops."
        )
