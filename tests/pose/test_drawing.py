import numpy as np
import pytest

from posereid.errors import InputError
from posereid.pose.drawing import draw_skeleton
from posereid.pose.joints import JOINT_COUNT, Joints, joint_index


def person(**places):
    xy, present = np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool)
    for name, place in places.items():
        xy[joint_index(name)], present[joint_index(name)] = place, True
    return Joints(xy, present)


ARMS = {
    "right_shoulder": (20, 30), "right_elbow": (10, 60), "left_shoulder": (43, 30), "left_elbow": (53, 60)
}  # fmt: skip


def test_right_is_warm_and_left_is_cold_along_the_limb():
    picture = draw_skeleton(person(**ARMS), 128, 64).astype(int)
    assert picture.shape == (128, 64, 3)
    right, left = picture[45, 15], picture[45, 48]
    assert right[0] > right[2] + 100
    assert left[2] > left[0] + 100


def test_absent_joints_and_limbs_are_left_out():
    assert not draw_skeleton(person(), 128, 64).any()
    one = draw_skeleton(person(right_wrist=(30, 40)), 128, 64)
    assert one[40, 30].any()
    rows, columns = one.any(2).nonzero()
    assert abs(rows - 40).max() <= 4
    assert abs(columns - 30).max() <= 4


def test_background_stays_as_it_is_away_from_the_skeleton():
    background = np.random.default_rng(0).integers(0, 256, (128, 64, 3), np.uint8)
    before = background.copy()
    picture = draw_skeleton(person(**ARMS), 128, 64, background)
    np.testing.assert_array_equal(background, before)
    np.testing.assert_array_equal(picture[70:], before[70:])
    assert (picture[45, 15] != before[45, 15]).any()
    np.testing.assert_array_equal(draw_skeleton(person(), 128, 64, background), before)


def test_a_limb_is_centred_on_its_joints():
    picture = draw_skeleton(person(right_hip=(31, 20), right_knee=(31, 100)), 128, 64).astype(float).sum(2)
    weights = picture[60]
    assert (weights * np.arange(64)).sum() / weights.sum() == pytest.approx(31, abs=0.15)


def test_small_and_outlying_skeletons_are_drawn():
    small = draw_skeleton(person(**ARMS).resized(0.5, 0.5), 64, 32)
    assert 20 < small.any(2).sum() < 200
    assert draw_skeleton(person(neck=(-3, 5), right_shoulder=(10, 5)), 64, 32)[5, 5].any()


@pytest.mark.parametrize("background", [np.zeros((64, 128, 3), np.uint8), np.zeros((128, 64, 3), np.float32)])
def test_wrong_background_is_named(background):
    with pytest.raises(InputError, match="background is"):
        draw_skeleton(person(), 128, 64, background)
