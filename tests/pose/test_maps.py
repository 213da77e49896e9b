import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posereid.pose.joints import JOINT_COUNT, JOINT_NAMES, joint_index
from posereid.pose.maps import flip_heat_maps, flip_keypoints, heat_maps

COORDINATE = st.floats(-8, 24, width=32)
PEOPLE = st.lists(
    st.lists(st.tuples(COORDINATE, COORDINATE), min_size=JOINT_COUNT, max_size=JOINT_COUNT),
    min_size=1,
    max_size=2,
).map(torch.tensor)
PRESENCE = st.lists(st.booleans(), min_size=JOINT_COUNT, max_size=JOINT_COUNT)


def everywhere(x: float, y: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[[float(x), float(y)]] * JOINT_COUNT]), torch.ones(1, JOINT_COUNT, dtype=torch.bool)


@given(PEOPLE, PRESENCE, st.floats(0.5, 6))
def test_a_map_is_a_gaussian_of_the_distance_to_the_joint(keypoints: Tensor, present: list[bool], sigma: float) -> None:
    height, width = 7, 5
    maps = heat_maps(keypoints, torch.tensor([present] * len(keypoints)), height, width, sigma)
    assert maps.shape == (len(keypoints), JOINT_COUNT, height, width)
    for person, joints in enumerate(keypoints.tolist()):
        for joint, (x, y) in enumerate(joints):
            for row in range(height):
                for column in range(width):
                    distance = (column - x) ** 2 + (row - y) ** 2
                    expected = math.exp(-distance / (2 * sigma**2)) if present[joint] else 0.0
                    assert maps[person, joint, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_sigma_is_six_pixels_at_height_128_and_grows_with_the_height() -> None:
    for height, width, sigma in ((128, 64, 6.0), (64, 32, 3.0), (256, 128, 12.0)):
        maps = heat_maps(*everywhere(10, 20), height, width)
        assert maps[0, 0, 20, 10] == 1
        assert maps[0, 0, 20, 10 + round(sigma)].item() == pytest.approx(math.exp(-0.5), rel=1e-5)
        assert maps[0, 0, 20 + round(2 * sigma), 10].item() == pytest.approx(math.exp(-2), rel=1e-5)


def test_absent_joints_give_empty_maps_even_where_their_coordinates_are_not_numbers() -> None:
    keypoints, present = everywhere(3, 4)
    present[0, 5] = False
    keypoints[0, 5] = math.nan
    maps = heat_maps(keypoints, present, 16, 8)
    assert not maps[0, 5].any()
    assert maps[0, 4].max() == 1


def test_nobody_gives_nothing_and_present_joints_keep_within_0_and_1() -> None:
    keypoints = torch.randn(2, JOINT_COUNT, 2) * 20
    assert not heat_maps(keypoints, torch.zeros(2, JOINT_COUNT, dtype=torch.bool), 16, 8).any()
    maps = heat_maps(keypoints, torch.ones(2, JOINT_COUNT, dtype=torch.bool), 16, 8)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_maps_have_the_type_of_the_keypoints() -> None:
    keypoints, present = everywhere(1, 2)
    assert heat_maps(keypoints.double(), present, 8, 4).dtype == torch.float64


def test_another_number_of_joints_is_refused() -> None:
    with pytest.raises(ValueError, match=r"18.*17"):
        heat_maps(torch.zeros(1, 17, 2), torch.ones(1, 17, dtype=torch.bool))


@given(PEOPLE, PRESENCE)
def test_mirroring_the_maps_equals_mirroring_the_joints(keypoints: Tensor, present: list[bool]) -> None:
    shown = torch.tensor([present] * len(keypoints))
    mirrored_joints = heat_maps(*flip_keypoints(keypoints, shown, 12), 16, 12)
    torch.testing.assert_close(flip_heat_maps(heat_maps(keypoints, shown, 16, 12)), mirrored_joints)


def test_a_mirrored_persons_right_wrist_is_the_left_one_on_the_other_side() -> None:
    keypoints, present = everywhere(0, 0)
    keypoints[0, joint_index("right_wrist")] = torch.tensor([2.0, 9.0])
    present[0, joint_index("left_ear")] = False
    mirrored, shown = flip_keypoints(keypoints, present, 12)
    assert mirrored[0, joint_index("left_wrist")].tolist() == [9, 9]
    absent = [name for name, there in zip(JOINT_NAMES, shown[0].tolist(), strict=True) if not there]
    assert absent == ["right_ear"]
    assert keypoints[0, joint_index("right_wrist")].tolist() == [2, 9]  # the input is left alone
