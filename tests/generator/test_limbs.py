import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posereid.generator.limbs import PosedPictures, correspondence, joints_of_maps
from posereid.pose.canonical import canonical_pose
from posereid.pose.joints import FLIP_ORDER, JOINT_COUNT, joint_index
from posereid.pose.maps import heat_maps

HEIGHT, WIDTH = 128, 64


def standing() -> tuple[Tensor, Tensor]:
    """Somebody who faces the camera: (1, 18, 2) and (1, 18)."""
    joints = canonical_pose("front", height=HEIGHT, width=WIDTH)
    return torch.from_numpy(joints.xy.astype(np.float32))[None], torch.from_numpy(joints.present)[None]


def picture() -> Tensor:
    """Columns and rows as a picture, so that what is carried says where it came from."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([columns, rows, torch.zeros_like(rows)])[None].float()


def carried(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns and rows (2, H, W) of the source that the target's pixels show, and the confidence (H, W)."""
    found = correspondence(PosedPictures(picture(), *source), heat_maps(*target, HEIGHT, WIDTH))
    return found.carried(picture())[0, :2], found.confidence[0]


def at(joint: str, xy: Tensor) -> tuple[int, int]:
    x, y = xy[0, joint_index(joint)].round().int().tolist()
    return y, x


@given(
    points=st.lists(
        st.tuples(st.floats(0, WIDTH - 1, width=32), st.floats(0, HEIGHT - 1, width=32)),
        min_size=JOINT_COUNT,
        max_size=JOINT_COUNT,
    ),
    present=st.lists(st.booleans(), min_size=JOINT_COUNT, max_size=JOINT_COUNT),
)
def test_joints_come_back_from_their_heat_maps(points: list[tuple[float, float]], present: list[bool]) -> None:
    xy, there = torch.tensor([points], dtype=torch.float32), torch.tensor([present])
    found, found_there = joints_of_maps(heat_maps(xy, there, HEIGHT, WIDTH))
    assert torch.equal(found_there, there)
    assert (found - xy)[there].abs().amax() < 1e-2 if there.any() else True


@pytest.mark.parametrize("height", [64, 128, 256])
def test_joints_come_back_whatever_the_size(height: int) -> None:
    xy, there = standing()
    scaled = xy * height / HEIGHT
    found, _ = joints_of_maps(heat_maps(scaled, there, height, height // 2))
    torch.testing.assert_close(found[there], scaled[there], atol=1e-3, rtol=0)


def test_in_the_same_pose_every_sure_pixel_shows_itself() -> None:
    places, confidence = carried(standing(), standing())
    # Beyond a part's ends its last row is repeated.
    sure = confidence > 0.6
    assert 0.1 < sure.float().mean() < 0.6
    off = (places - picture()[0, :2])[:, sure].abs().amax(dim=0)
    assert (off < 1e-2).float().mean() > 0.97
    assert off.max() < 8


def test_a_person_who_stands_elsewhere_is_carried_along() -> None:
    xy, there = standing()
    places, confidence = carried((xy, there), (xy * 0.8 + torch.tensor([5.0, 9.0]), there))
    sure = (confidence > 0.2) & (picture()[0, 0] > 2)
    expected = (picture()[0, :2] - torch.tensor([5.0, 9.0])[:, None, None]) / 0.8
    inside = sure & (expected[0] > 0) & (expected[0] < WIDTH - 1) & (expected[1] < HEIGHT - 1)
    difference = (places - expected)[:, inside].abs()
    assert difference.median() < 0.05
    assert inside.sum() > 500


def test_a_limb_that_moves_takes_its_pixels_along() -> None:
    xy, there = standing()
    moved = xy.clone()
    elbow, wrist = joint_index("right_elbow"), joint_index("right_wrist")
    moved[0, wrist] = moved[0, elbow] + torch.tensor([-15.0, 0.0])
    places, _ = carried((xy, there), (moved, there))
    middle = ((moved[0, elbow] + moved[0, wrist]) / 2).round().int().tolist()
    before = (xy[0, elbow] + xy[0, wrist]) / 2
    assert (places[:, middle[1], middle[0]] - before).norm() < 2


def test_someone_seen_from_behind_shows_the_front_mirrored() -> None:
    xy, there = standing()
    # From behind, the person's right is on the right of the picture.
    behind = xy[:, FLIP_ORDER].clone()
    places, confidence = carried((xy, there), (behind, there))
    row, left, right = 50, 27, 37
    assert confidence[row, left] > 0.3
    middle = (
        xy[0, joint_index("neck"), 0] + (xy[0, joint_index("right_hip"), 0] + xy[0, joint_index("left_hip"), 0]) / 2
    ) / 2
    assert places[0, row, left].item() == pytest.approx(2 * middle.item() - left, abs=1.5)
    assert places[0, row, right] < places[0, row, left]


def test_a_hidden_limb_is_taken_from_the_other_side() -> None:
    xy, there = standing()
    hidden = there.clone()
    hidden[0, joint_index("right_wrist")] = False
    places, confidence = carried((xy, hidden), (xy, there))
    row, column = at("right_wrist", xy)
    assert confidence[row, column] > 0.5
    left = xy[0, joint_index("left_wrist")]
    assert (places[:, row, column] - left).norm() < 2


def test_nothing_is_known_of_a_limb_that_neither_side_shows_or_the_target_lacks() -> None:
    xy, there = standing()
    xy[0, joint_index("right_wrist")] = torch.tensor([2.0, 20.0])  # away from the rest of the body
    hidden = there.clone()
    hidden[0, [joint_index("right_wrist"), joint_index("left_wrist")]] = False
    row, column = at("right_wrist", xy)
    sure = carried((xy, there), (xy, there))[1][row, column]
    assert carried((xy, hidden), (xy, there))[1][row, column] < 0.5 * sure
    assert carried((xy, there), (xy, hidden))[1][row, column] < 0.5 * sure


def test_without_a_torso_nothing_is_known() -> None:
    xy, there = standing()
    without = there.clone()
    without[0, joint_index("left_hip")] = False
    for source, target in ((without, there), (there, without)):
        places, confidence = carried((xy, source), (xy, target))
        assert confidence.max() < 1e-6
        assert places.isfinite().all()


@given(
    data=st.lists(st.floats(0, 1, width=32), min_size=72, max_size=72),
    present=st.lists(st.booleans(), min_size=36, max_size=36),
)
def test_any_two_skeletons_give_finite_places(data: list[float], present: list[bool]) -> None:
    xy = torch.tensor(data).reshape(2, 1, 18, 2) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
    there = torch.tensor(present).reshape(2, 1, 18)
    found = correspondence(PosedPictures(picture(), xy[0], there[0]), heat_maps(xy[1], there[1], HEIGHT, WIDTH))
    assert found.columns.isfinite().all()
    assert found.rows.isfinite().all()
    assert found.carried(picture()).isfinite().all()
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()


def test_people_of_a_batch_do_not_mix() -> None:
    xy, there = standing()
    other = xy * 0.7 + 4
    pictures = torch.cat([picture(), picture() / 2])
    both = correspondence(
        PosedPictures(pictures, torch.cat([xy, other]), there.expand(2, -1)),
        heat_maps(torch.cat([other, xy]), there.expand(2, -1), HEIGHT, WIDTH),
    ).carried(pictures)
    alone = correspondence(PosedPictures(pictures[1:], other, there), heat_maps(xy, there, HEIGHT, WIDTH))
    torch.testing.assert_close(both[1:], alone.carried(pictures[1:]), atol=1e-4, rtol=0)
