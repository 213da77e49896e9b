import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.joints import JOINT_COUNT, JOINT_NAMES, TORSO, Joints, joint_index
from posereid.pose.skeletons import (
    ABSENCE,
    DIRECTIONS,
    REACH,
    Direction,
    direction,
    directions,
    normalised,
    pose_distances,
)

seeds = st.integers(0, 2**32 - 1)


def people(seed: int, count: int) -> list[Joints]:
    """Random joints with a torso, some of the others absent."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        present = random.random(JOINT_COUNT) < 0.7
        present[list(TORSO)] = True
        xy = random.uniform(0, 100, (JOINT_COUNT, 2)).astype(np.float32)
        found.append(Joints(np.where(present[:, None], xy, 0).astype(np.float32), present))
    return found


def without(pose: Joints, *names: str) -> Joints:
    present = pose.present.copy()
    present[[joint_index(name) for name in names]] = False
    return Joints(np.where(present[:, None], pose.xy, 0).astype(np.float32), present)


def moved(pose: Joints, x: float, y: float, times: float = 1) -> Joints:
    xy = pose.xy * times + np.array([x, y], np.float32)
    return Joints(np.where(pose.present[:, None], xy, 0).astype(np.float32), pose.present)


@given(seeds, st.floats(-50, 50), st.floats(-50, 50), st.floats(0.25, 8))
def test_place_and_size_in_the_crop_do_not_matter(seed: int, x: float, y: float, times: float) -> None:
    pose = people(seed, 1)[0]
    here, there = normalised([pose]), normalised([moved(pose, x, y, times)])
    np.testing.assert_allclose(here.xy, there.xy, atol=2e-3)
    np.testing.assert_array_equal(here.present, there.present)


@pytest.mark.parametrize("name", CANONICAL_POSES)
def test_the_crops_size_does_not_matter(name: str) -> None:
    small, large = normalised([canonical_pose(name, 64, 32)]), normalised([canonical_pose(name, 256, 128)])
    assert pose_distances(small, large).item() < 1e-3


def test_skeletons_are_counted_in_torso_lengths_from_the_hips() -> None:
    skeletons = normalised([canonical_pose("front")])
    hips, shoulders = (
        skeletons.xy[0, [joint_index(f"{side}_{part}") for side in ("left", "right")]].mean(0)
        for part in ("hip", "shoulder")
    )
    np.testing.assert_allclose(hips, 0, atol=1e-6)
    # The canonical person's legs are a little longer than Market-1501's, so its torso counts as a little foreshortened.
    np.testing.assert_allclose(shoulders, [0, -1], atol=0.2)


def test_a_foreshortened_torso_is_made_up_for_by_the_legs() -> None:
    upright = canonical_pose("front")
    xy = upright.xy.copy()
    above = [number for number, name in enumerate(JOINT_NAMES) if not name.endswith(("hip", "knee", "ankle"))]
    hips = upright.xy[list(TORSO[2:])].mean(0)
    xy[above, 1] = hips[1] + (xy[above, 1] - hips[1]) * 0.3
    bent = Joints(xy, upright.present)
    legs = [joint_index(f"{side}_{part}") for side in ("left", "right") for part in ("knee", "ankle")]
    np.testing.assert_allclose(normalised([bent]).xy[0, legs], normalised([upright]).xy[0, legs], atol=0.02)
    # Without legs nothing says that the torso is foreshortened.
    names = [JOINT_NAMES[joint] for joint in legs]
    skeleton = normalised([without(bent, *names)])
    assert skeleton.xy[0, joint_index("left_shoulder"), 1] == pytest.approx(-1, abs=1e-5)


def test_misplaced_and_coinciding_joints_stay_finite() -> None:
    nowhere = Joints(np.full((JOINT_COUNT, 2), 7, np.float32), np.ones(JOINT_COUNT, bool))
    far = canonical_pose("front")
    far.xy[joint_index("left_wrist")] = 100_000
    skeletons = normalised([nowhere, far])
    assert np.isfinite(skeletons.xy).all()
    assert np.abs(skeletons.xy).max() == REACH
    assert np.isfinite(pose_distances(skeletons, skeletons)).all()


def test_joints_without_a_torso_have_no_size() -> None:
    legs_only = without(canonical_pose("front"), "left_shoulder")
    with pytest.raises(ValueError, match="torso"):
        normalised([canonical_pose("front"), legs_only])
    with pytest.raises(ValueError, match="torso"):
        direction(legs_only)


def test_no_poses_give_empty_tables() -> None:
    none, two = normalised([]), normalised(people(0, 2))
    assert pose_distances(none, two).shape == (0, 2)
    assert pose_distances(two, none).shape == (2, 0)
    assert directions(none).shape == (0,)


@given(seeds)
def test_distances_equal_a_loop_over_joints(seed: int) -> None:
    first, second = normalised(people(seed, 4)), normalised(people(seed + 1, 3))
    expected = np.zeros((4, 3))
    for row in range(4):
        for column in range(3):
            total = 0.0
            for joint in range(JOINT_COUNT):
                one, other = first.present[row, joint], second.present[column, joint]
                if one and other:
                    total += float(((first.xy[row, joint] - second.xy[column, joint]) ** 2).sum())
                elif one or other:
                    total += ABSENCE**2
            expected[row, column] = (total / JOINT_COUNT) ** 0.5
    table = pose_distances(first, second)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)


def test_distances_are_symmetric_and_zero_only_to_oneself() -> None:
    # More than one block of rows.
    skeletons = normalised(people(3, 600))
    table = pose_distances(skeletons, skeletons)
    np.testing.assert_allclose(table, table.T, atol=1e-5)
    assert (np.diag(table) < 1e-5).all()
    assert table[~np.eye(600, dtype=bool)].min() > 0.01


def test_a_hidden_face_alone_keeps_two_poses_apart() -> None:
    front = canonical_pose("front")
    hidden = without(front, "nose", "left_eye", "right_eye")
    expected = (3 * ABSENCE**2 / JOINT_COUNT) ** 0.5
    assert pose_distances(normalised([front]), normalised([hidden])).item() == pytest.approx(expected)


def test_front_is_nearer_to_its_diagonals_than_to_the_back() -> None:
    poses = {name: normalised([canonical_pose(name)]) for name in CANONICAL_POSES}
    to_back = pose_distances(poses["front"], poses["back"]).item()
    for diagonal in ("front_left", "front_right"):
        assert pose_distances(poses["front"], poses[diagonal]).item() < to_back / 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("front", "front"), ("front_left", "front"), ("left", "left"), ("back_left", "back"),
        ("back", "back"), ("back_right", "back"), ("right", "right"), ("front_right", "front"),
    ],
)  # fmt: skip
def test_the_eight_named_views_come_out_right(name: str, expected: Direction) -> None:
    for size in ((128, 64), (64, 32), (256, 128)):
        assert direction(canonical_pose(name, *size)) == expected
    assert direction(moved(canonical_pose(name), 30, -20, 1.7)) == expected


@pytest.mark.parametrize("name", CANONICAL_POSES)
def test_a_mirrored_crop_shows_the_other_side(name: str) -> None:
    mirrored = {"left": "right", "right": "left"}
    seen = direction(canonical_pose(name))
    assert direction(canonical_pose(name).flipped(64)) == mirrored.get(seen, seen)


@given(seeds)
def test_mirroring_exchanges_left_and_right_whatever_the_pose(seed: int) -> None:
    poses = people(seed, 8)
    order = np.array([DIRECTIONS.index(name) for name in ("front", "right", "back", "left")])
    flipped = normalised([pose.flipped(100) for pose in poses])
    np.testing.assert_array_equal(directions(flipped), order[directions(normalised(poses))])


@pytest.mark.parametrize("view", ["left", "right"])
def test_a_side_view_is_told_without_a_face_by_the_knees_and_the_hidden_arm(view: Direction) -> None:
    face = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
    assert direction(without(canonical_pose(view), *face)) == view
    bare_arms = ("left_elbow", "right_elbow", "left_wrist", "right_wrist")
    assert direction(without(canonical_pose(view), *face, *bare_arms)) == view


@pytest.mark.parametrize("view", ["left", "right"])
def test_a_side_view_whose_shoulders_were_exchanged_stays_one(view: Direction) -> None:
    pose = canonical_pose(view)
    xy = pose.xy.copy()
    right, left, right_hip, left_hip = TORSO
    xy[[right, left, right_hip, left_hip]] = xy[[left, right, left_hip, right_hip]] + np.array(
        [[2, 0], [-2, 0], [1, 0], [-1, 0]], np.float32
    )
    assert direction(Joints(xy, pose.present)) == view


def test_a_half_turned_back_that_shows_its_nose_is_a_side_view() -> None:
    back = canonical_pose("back_right")
    xy, present = back.xy.copy(), back.present.copy()
    xy[joint_index("nose")] = back.xy[joint_index("neck")] + np.array([9, -12], np.float32)
    present[joint_index("nose")] = True
    assert direction(Joints(xy, present)) == "right"


def test_shoulders_and_hips_in_one_line_without_any_other_joint_still_get_a_direction() -> None:
    line = without(canonical_pose("front"), *(name for name in JOINT_NAMES if joint_index(name) not in TORSO))
    line.xy[:, 0] = np.where(line.present, 30, 0)
    assert direction(line) == "back"
