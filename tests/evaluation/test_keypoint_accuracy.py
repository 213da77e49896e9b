"""PCKh against a slow count that follows the definition one joint at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posereid.evaluation.keypoint_accuracy import pckh, pckh_hits
from posereid.pose.joints import JOINT_COUNT, joint_index

HEAD_NAMES = ("nose", "neck", "right_eye", "left_eye", "right_ear", "left_ear")
# Whole and half numbers: distances fall on the limit often.
PLACE = st.integers(0, 12).map(lambda half: half / 2)
PEOPLE = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        *(
            st.lists(st.lists(element, min_size=JOINT_COUNT, max_size=JOINT_COUNT), min_size=count, max_size=count).map(
                torch.tensor
            )
            for element in (st.tuples(PLACE, PLACE), st.booleans(), st.tuples(PLACE, PLACE), st.booleans())
        )
    )
)


def naive_crop(estimated, estimated_present, target, target_present, share):
    """(hits, counted) of one crop, as lists."""
    head = [target[joint_index(name)] for name in HEAD_NAMES if target_present[joint_index(name)]]
    if len(head) < 2:
        return [False] * JOINT_COUNT, [False] * JOINT_COUNT
    width = max(x for x, _ in head) - min(x for x, _ in head)
    height = max(y for _, y in head) - min(y for _, y in head)
    hits, counted = [], []
    for joint in range(JOINT_COUNT):
        counted.append(target_present[joint])
        near_x = abs(estimated[joint][0] - target[joint][0]) < share * width
        near_y = abs(estimated[joint][1] - target[joint][1]) < share * height
        hits.append(target_present[joint] and estimated_present[joint] and near_x and near_y)
    return hits, counted


@given(PEOPLE, st.sampled_from([0.25, 0.5, 1.0]))
def test_hits_and_shares_are_those_of_a_count_joint_by_joint(people: tuple[Tensor, ...], share: float) -> None:
    crops = [
        naive_crop(*(tensor[number].tolist() for tensor in people), share=share) for number in range(len(people[0]))
    ]
    hits, counted = pckh_hits(*people, share=share)
    assert hits.tolist() == [crop[0] for crop in crops]
    assert counted.tolist() == [crop[1] for crop in crops]
    result = pckh(*people, share=share)
    total = sum(sum(crop[1]) for crop in crops)
    assert result.joints == total
    assert result.crops_without_head == sum(not any(crop[1]) for crop in crops)
    if total:
        assert result.overall == pytest.approx(sum(sum(crop[0]) for crop in crops) / total)
    else:
        assert math.isnan(result.overall)
    for share_of_crop, (found, of) in zip(result.per_crop.tolist(), crops, strict=True):
        assert math.isnan(share_of_crop) if not any(of) else share_of_crop == pytest.approx(sum(found) / sum(of))


def person() -> tuple[Tensor, Tensor]:
    """One pose whose head is 4 wide and 10 high."""
    keypoints = torch.full((1, JOINT_COUNT, 2), 20.0)
    for name, place in {"nose": (10, 4), "neck": (10, 12), "right_eye": (8, 2), "left_eye": (12, 2)}.items():
        keypoints[0, joint_index(name)] = torch.tensor(place, dtype=torch.float)
    present = torch.ones(1, JOINT_COUNT, dtype=torch.bool)
    present[0, [joint_index("right_ear"), joint_index("left_ear")]] = False
    return keypoints, present


@pytest.mark.parametrize(
    ("move", "hit"), [((1.9, 4.9), True), ((2, 0), False), ((0, 5), False), ((-1.9, 0), True), ((0, -5.1), False)]
)
def test_a_joint_may_be_off_by_half_the_heads_width_and_height(move: tuple[float, float], hit: bool) -> None:
    target, present = person()
    hits, counted = pckh_hits(target + torch.tensor(move), present, target, present)
    assert counted.sum() == JOINT_COUNT - 2
    assert bool(hits[counted].all()) is hit
    assert bool(hits.any()) is hit


def test_a_joint_that_is_not_found_is_a_miss_and_one_too_many_is_not_looked_at() -> None:
    target, present = person()
    lacking, everything = present.clone(), torch.ones_like(present)
    lacking[0, joint_index("nose")] = False
    assert pckh(target, present, target, present).overall == 1
    assert pckh(target, lacking, target, present).overall == pytest.approx(15 / 16)
    assert pckh(target, everything, target, present).overall == 1


def test_a_target_without_a_head_counts_nothing_and_is_told_of() -> None:
    target, present = (torch.cat([part, part]) for part in person())
    for name in HEAD_NAMES[1:]:
        present[1, joint_index(name)] = False
    result = pckh(target, present, target, present)
    assert (result.overall, result.joints, result.crops_without_head) == (1.0, JOINT_COUNT - 2, 1)
    assert result.per_crop[0] == 1
    assert result.per_crop[1].isnan()


def test_coordinates_of_absent_joints_do_not_matter() -> None:
    target, present = person()
    noise = torch.where(present[..., None], target, torch.full_like(target, math.nan))
    assert pckh(noise, present, noise, present).overall == 1


def test_other_shapes_are_refused() -> None:
    target, present = person()
    with pytest.raises(ValueError, match="keypoints must be"):
        pckh_hits(target[:, :17], present, target, present)
    with pytest.raises(ValueError, match="keypoints must be"):
        pckh(torch.cat([target, target]), present, target, present)
