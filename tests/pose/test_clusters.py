from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.errors import InputError
from posereid.pose import clusters as module
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.clusters import canonical_poses_of, cluster_poses, find_medoids, in_crop, usable_poses
from posereid.pose.files import KeypointTable
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.skeletons import normalised, pose_distances

Table = npt.NDArray[np.float32]
seeds = st.integers(0, 2**32 - 1)


def distances_of(points: npt.NDArray[np.float64]) -> Table:
    return np.linalg.norm(points[:, None] - points[None], axis=-1).astype(np.float32)


def cost(distances: Table, medoids: npt.ArrayLike) -> float:
    return float(distances[np.asarray(medoids)].astype(np.float64).min(0).sum())


def crowd(sizes: dict[str, int], seed: int = 0, noise: float = 0.5) -> list[Joints]:
    """So many people in each named pose, their joints some pixels off, mixed."""
    random = np.random.default_rng(seed)
    poses = []
    for name, size in sizes.items():
        pose = canonical_pose(name)
        for _ in range(size):
            xy = pose.xy + random.normal(0, noise, (JOINT_COUNT, 2)).astype(np.float32)
            poses.append(Joints(np.where(pose.present[:, None], xy, 0).astype(np.float32), pose.present))
    return [poses[position] for position in random.permutation(len(poses))]


@given(seeds, st.integers(1, 9), st.data())
def test_no_single_swap_lowers_the_cost(seed: int, points: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, points))
    # Whole numbers give points in the same place and equal distances.
    places = np.random.default_rng(seed).integers(0, 6, (points, 2)).astype(np.float64)
    distances = distances_of(places)
    medoids = find_medoids(distances, count, seed)
    assert len(set(medoids.tolist())) == count
    reached = cost(distances, medoids)
    for number in range(count):
        for other in set(range(points)) - set(medoids.tolist()):
            assert reached <= cost(distances, [*np.delete(medoids, number), other]) + 1e-5


@given(seeds, st.integers(1, 4))
def test_well_separated_groups_get_the_best_medoids_of_all(seed: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 4, groups)
    places = np.repeat(np.arange(groups) * 100.0, sizes)[:, None] + random.uniform(-1, 1, (sizes.sum(), 2))
    distances = distances_of(places)
    best = min(combinations(range(len(places)), groups), key=lambda medoids: cost(distances, medoids))
    assert cost(distances, find_medoids(distances, groups, seed)) == pytest.approx(cost(distances, best), abs=1e-4)


def test_one_medoid_is_the_point_nearest_to_all() -> None:
    distances = distances_of(np.random.default_rng(0).normal(size=(30, 2)))
    assert find_medoids(distances, 1, 0).tolist() == [distances.sum(0).argmin()]


def test_medoids_are_a_function_of_the_seed_and_of_as_many_points_all() -> None:
    distances = distances_of(np.random.default_rng(0).normal(size=(150, 3)))
    np.testing.assert_array_equal(find_medoids(distances, 15, 5), find_medoids(distances, 15, 5))
    assert len({tuple(find_medoids(distances, 15, seed)) for seed in range(8)}) > 1
    np.testing.assert_array_equal(find_medoids(distances, 150, 0), np.arange(150))


@pytest.mark.parametrize("count", [0, -2])
def test_no_poses_at_all_cannot_be_asked_for(count: int) -> None:
    poses = crowd({"front": 3})
    for call in (lambda: cluster_poses(poses, count, 0), lambda: canonical_poses_of(poses, count, 0)):
        with pytest.raises(InputError, match=f"{count} poses are asked for"):
            call()
    with pytest.raises(InputError, match="asked for"):
        find_medoids(np.zeros((3, 3), np.float32), count, 0)


def test_more_clusters_than_usable_poses_are_an_input_error() -> None:
    nobody = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))
    with pytest.raises(InputError, match="only 3 poses have both shoulders"):
        canonical_poses_of([*crowd({"front": 3}), nobody], 4, 0)


def test_named_poses_are_found_again_the_most_frequent_first() -> None:
    sizes = {name: 3 + 2 * number for number, name in enumerate(CANONICAL_POSES)}
    poses = crowd(sizes)
    clusters = cluster_poses(poses, 8, seed=1)
    assert clusters.sizes.tolist() == sorted(sizes.values(), reverse=True)
    assert clusters.cluster_of[clusters.medoids].tolist() == list(range(8))
    named = normalised([canonical_pose(name) for name in CANONICAL_POSES])
    nearest = pose_distances(normalised([poses[medoid] for medoid in clusters.medoids]), named).argmin(1)
    assert [CANONICAL_POSES[number] for number in nearest] == list(CANONICAL_POSES[::-1])


def test_every_pose_belongs_to_its_nearest_medoid() -> None:
    poses = crowd(dict.fromkeys(CANONICAL_POSES, 6), noise=4)
    clusters = cluster_poses(poses, 5, seed=0)
    skeletons = normalised(poses)
    table = pose_distances(skeletons, skeletons[clusters.medoids])
    np.testing.assert_allclose(table[np.arange(len(poses)), clusters.cluster_of], table.min(1), atol=1e-6)


def test_poses_that_are_all_the_same_leave_no_cluster_empty() -> None:
    clusters = cluster_poses([canonical_pose("front")] * 5, 3, seed=0)
    assert clusters.sizes.tolist() == [3, 1, 1]


def test_of_very_many_poses_a_sample_is_looked_at_and_all_are_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def watched(distances: Table, count: int, seed: int) -> npt.NDArray[np.int64]:
        nonlocal largest
        largest = max(largest, len(distances))
        return find_medoids(distances, count, seed)

    monkeypatch.setattr(module, "LARGEST_TABLE", 40)
    monkeypatch.setattr(module, "find_medoids", watched)
    poses = crowd({"front": 60, "back": 40, "left": 30})
    clusters = cluster_poses(poses, 3, seed=0)
    assert largest == 40
    assert clusters.sizes.tolist() == [60, 40, 30]
    again = cluster_poses(poses, 3, seed=0)
    np.testing.assert_array_equal(clusters.medoids, again.medoids)
    np.testing.assert_array_equal(clusters.cluster_of, again.cluster_of)


def test_canonical_poses_are_somebodys_pose_inside_the_crop() -> None:
    poses = crowd({"front": 5, "left": 4, "back_right": 3})
    found = canonical_poses_of(poses, 3, 0, height=256, width=128)
    assert [name for name, _ in found] == ["pose_01", "pose_02", "pose_03"]
    own = normalised(poses)
    for _, pose in found:
        assert pose_distances(normalised([pose]), own).min() < 1e-3
        assert (pose.xy >= 0).all()
        assert (pose.xy <= (127, 255)).all()


def test_keypoint_tables_and_lists_give_the_same_poses() -> None:
    poses = crowd({"front": 4, "back": 3})
    table = KeypointTable(Path("k.csv"), {f"{number}.jpg": pose for number, pose in enumerate(poses)})
    for (name, pose), (other_name, other) in zip(
        canonical_poses_of(table, 2, 0), canonical_poses_of(poses, 2, 0), strict=True
    ):
        assert name == other_name
        np.testing.assert_array_equal(pose.xy, other.xy)
    assert len(usable_poses(table)) == 7


@pytest.mark.parametrize("size", [(128, 64), (64, 32), (256, 192)], ids=str)
@pytest.mark.parametrize("name", CANONICAL_POSES)
def test_a_pose_keeps_its_shape_in_a_crop_of_any_size(name: str, size: tuple[int, int]) -> None:
    height, width = size
    placed = in_crop(canonical_pose(name, 200, 300), height, width)
    assert pose_distances(normalised([placed]), normalised([canonical_pose(name)])).item() < 1e-3
    shown = placed.xy[placed.present]
    assert (shown >= 0).all()
    assert (shown <= (width - 1, height - 1)).all()
    assert 0.7 * height < np.ptp(shown[:, 1]) < height


def test_a_pose_too_wide_for_the_crop_is_made_smaller() -> None:
    wide = canonical_pose("front")
    hips = wide.xy[[8, 11]].mean(0)
    wide.xy[4] = hips + np.array([-80, -30], np.float32)
    wide.xy[7] = hips + np.array([70, -30], np.float32)
    placed = in_crop(wide, 128, 64)
    assert placed.xy[4, 0] == pytest.approx(0, abs=1e-3)
    assert placed.xy[7, 0] == pytest.approx(63, abs=1e-3)
    assert pose_distances(normalised([placed]), normalised([wide])).item() < 1e-3
