import numpy as np
import pytest

from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.joints import JOINT_NAMES, Joints, joint_index


def x(pose: Joints, name: str) -> float:
    return float(pose.xy[joint_index(name), 0])


def y(pose: Joints, name: str) -> float:
    return float(pose.xy[joint_index(name), 1])


def absent(pose: Joints) -> set[str]:
    return {name for name, there in zip(JOINT_NAMES, pose.present, strict=True) if not there}


def test_there_are_eight_directions_once_round_the_person() -> None:
    assert CANONICAL_POSES == (
        "front", "front_left", "left", "back_left", "back", "back_right", "right", "front_right",
    )  # fmt: skip


@pytest.mark.parametrize("size", [(128, 64), (64, 32), (256, 128)], ids=str)
@pytest.mark.parametrize("name", CANONICAL_POSES)
def test_every_joint_lies_inside_the_crop_and_the_person_stands_upright(name: str, size: tuple[int, int]) -> None:
    height, width = size
    pose = canonical_pose(name, height, width)
    shown = pose.xy[pose.present]
    assert pose.has_torso
    assert (shown >= 0).all()
    assert (shown < (width, height)).all()
    for upper, lower in (("neck", "hip"), ("hip", "knee"), ("knee", "ankle")):
        for side in ("left", "right"):
            above = upper if upper == "neck" else f"{side}_{upper}"
            assert y(pose, above) < y(pose, f"{side}_{lower}")
    feet = max(y(pose, "left_ankle"), y(pose, "right_ankle"))
    head = shown[:, 1].min()
    assert 0.75 * height < feet - head < 0.9 * height
    middle = (shown[:, 0].min() + shown[:, 0].max()) / 2
    assert abs(middle - (width - 1) / 2) < 0.1 * width


def test_poses_scale_with_the_crop() -> None:
    small, large = canonical_pose("front_left", 64, 32), canonical_pose("front_left", 128, 64)
    np.testing.assert_allclose(small.resized(2, 2).xy, large.xy, atol=1e-3)


def test_seen_from_the_front_the_persons_right_is_on_the_pictures_left() -> None:
    pose = canonical_pose("front")
    for part in ("shoulder", "hip", "eye", "ear", "knee"):
        assert x(pose, f"right_{part}") < x(pose, f"left_{part}")
    assert absent(pose) == set()


def test_seen_from_behind_the_sides_change_and_the_face_is_hidden() -> None:
    pose = canonical_pose("back")
    for part in ("shoulder", "hip", "ear"):
        assert x(pose, f"right_{part}") > x(pose, f"left_{part}")
    assert absent(pose) == {"nose", "right_eye", "left_eye"}


@pytest.mark.parametrize(("name", "far", "direction"), [("left", "right", -1), ("right", "left", 1)])
def test_a_side_view_looks_across_and_hides_the_far_side(name: str, far: str, direction: int) -> None:
    pose = canonical_pose(name)
    assert direction * (x(pose, "nose") - x(pose, "neck")) > 2  # whoever shows the left side looks to our left
    shoulders = abs(x(pose, "left_shoulder") - x(pose, "right_shoulder"))
    assert shoulders < 0.2 * abs(
        x(canonical_pose("front"), "left_shoulder") - x(canonical_pose("front"), "right_shoulder")
    )
    assert absent(pose) == {f"{far}_eye", f"{far}_ear", f"{far}_elbow"}


def test_the_nose_points_the_way_the_body_turns() -> None:
    offsets = {
        name: x(canonical_pose(name), "nose") - x(canonical_pose(name), "neck")
        for name in ("front_right", "front", "front_left")
    }
    assert offsets["front_left"] < -1
    assert offsets["front"] == pytest.approx(0, abs=1e-4)
    assert offsets["front_right"] > 1


@pytest.mark.parametrize("name", CANONICAL_POSES)
def test_the_face_shows_from_the_front_half_only(name: str) -> None:
    assert ("nose" in absent(canonical_pose(name))) == name.startswith("back")


@pytest.mark.parametrize(
    ("name", "mirror"), [("left", "right"), ("front_left", "front_right"), ("back_left", "back_right")]
)
def test_opposite_views_hide_mirrored_joints(name: str, mirror: str) -> None:
    assert absent(canonical_pose(name).flipped(64)) == absent(canonical_pose(mirror))


def test_all_eight_differ() -> None:
    poses = {canonical_pose(name).xy.tobytes() for name in CANONICAL_POSES}
    assert len(poses) == 8


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        canonical_pose("above")
