import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from posereid.pose.joints import FLIP_ORDER, JOINT_COUNT, JOINT_NAMES, LIMBS, TORSO, Joints, joint_index


@st.composite
def joints(draw: st.DrawFn, width: int = 64) -> Joints:
    present = draw(hnp.arrays(bool, JOINT_COUNT))
    xy = draw(hnp.arrays(np.float32, (JOINT_COUNT, 2), elements=st.integers(0, width - 1)))
    return Joints(np.where(present[:, None], xy, 0).astype(np.float32), present)


def test_the_order_is_openposes_18_joints() -> None:
    assert JOINT_NAMES[:2] == ("nose", "neck")
    assert [name.split("_")[0] for name in JOINT_NAMES[2:]] == [
        *["right"] * 3, *["left"] * 3, *["right"] * 3, *["left"] * 3, "right", "left", "right", "left",
    ]  # fmt: skip
    assert [name.split("_")[1] for name in JOINT_NAMES[2:]] == [
        *["shoulder", "elbow", "wrist"] * 2, *["hip", "knee", "ankle"] * 2, *["eye"] * 2, *["ear"] * 2,
    ]  # fmt: skip


def test_mirroring_exchanges_each_left_joint_with_its_right_one() -> None:
    for name, source in zip(JOINT_NAMES, FLIP_ORDER, strict=True):
        side, _, part = name.partition("_")
        expected = {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name)
        assert JOINT_NAMES[source] == expected


@given(joints())
def test_mirroring_twice_changes_nothing(person: Joints) -> None:
    again = person.flipped(64).flipped(64)
    np.testing.assert_array_equal(again.xy, person.xy)
    np.testing.assert_array_equal(again.present, person.present)


def test_mirroring_follows_the_pixels_of_the_mirrored_picture() -> None:
    picture = np.zeros((4, 10), np.uint8)
    picture[2, 7] = 255
    xy, present = np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool)
    xy[joint_index("left_knee")], present[joint_index("left_knee")] = (7, 2), True
    mirrored = Joints(xy, present).flipped(10)
    row, column = np.argwhere(picture[:, ::-1] == 255)[0]
    assert mirrored.xy[joint_index("right_knee")].tolist() == [column, row]
    assert np.flatnonzero(mirrored.present).tolist() == [joint_index("right_knee")]


def test_absent_joints_stay_at_zero_when_mirrored_or_resized() -> None:
    nobody = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))
    assert not nobody.flipped(64).xy.any()
    assert not nobody.resized(2, 0.5).xy.any()


@pytest.mark.parametrize("size", [(40, 80), (10, 20), (30, 20)], ids=str)
def test_resized_joints_stay_on_what_they_marked(size: tuple[int, int]) -> None:
    width, height = 20, 40
    rows, columns = np.indices((height, width))
    picture = np.exp(-((columns - 9) ** 2 + (rows - 16) ** 2) / 8).astype(np.float32)
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    rows, columns = np.indices(resized.shape)
    centre = (columns * resized).sum() / resized.sum(), (rows * resized).sum() / resized.sum()
    xy = np.tile(np.float32([9, 16]), (JOINT_COUNT, 1))
    moved = Joints(xy, np.ones(JOINT_COUNT, bool)).resized(size[0] / width, size[1] / height)
    np.testing.assert_allclose(moved.xy[3], centre, atol=0.05)
    assert moved.xy.dtype == np.float32


@given(joints())
def test_resizing_there_and_back_changes_nothing(person: Joints) -> None:
    back = person.resized(2, 4).resized(0.5, 0.25)
    np.testing.assert_allclose(back.xy, person.xy, atol=1e-4)


@pytest.mark.parametrize("missing", TORSO)
def test_each_of_the_four_torso_joints_is_needed(missing: int) -> None:
    present = np.zeros(JOINT_COUNT, bool)
    present[list(TORSO)] = True
    xy = np.zeros((JOINT_COUNT, 2), np.float32)
    assert Joints(xy, present).has_torso
    present[missing] = False
    assert not Joints(xy, present.copy()).has_torso


def test_the_torso_is_both_shoulders_and_both_hips() -> None:
    assert {JOINT_NAMES[joint] for joint in TORSO} == {
        "right_shoulder", "left_shoulder", "right_hip", "left_hip",
    }  # fmt: skip


def test_limbs_connect_all_joints_to_one_skeleton_that_is_its_own_mirror_image() -> None:
    reached = {joint_index("neck")}
    for _ in LIMBS:
        reached |= {joint for limb in LIMBS if reached & set(limb) for joint in limb}
    assert reached == set(range(JOINT_COUNT))
    mirrored = {frozenset(FLIP_ORDER[joint] for joint in limb) for limb in LIMBS}
    assert mirrored == {frozenset(limb) for limb in LIMBS}


@pytest.mark.parametrize(("xy", "present"), [((17, 2), 18), ((18, 3), 18), ((18, 2), 17)])
def test_arrays_of_other_shapes_are_refused(xy: tuple[int, int], present: int) -> None:
    with pytest.raises(ValueError, match="Joints need xy"):
        Joints(np.zeros(xy, np.float32), np.zeros(present, bool))
