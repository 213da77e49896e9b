"""Crops that cannot be read, and who takes their places."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from posereid.data.batches import CropImages, PosedCrops, PosePairs, Quartets, StandIns, class_labels, load_batches
from posereid.data.crops import Crop
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, Joints

FULL = Joints(np.ones((JOINT_COUNT, 2), np.float32), np.ones(JOINT_COUNT, bool))
HEADLESS = Joints(np.ones((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))


@dataclass
class Pictures:
    """Crops of which some cannot be read, without files."""

    crops: list[Crop]
    broken: set[int]
    asked: list[int] = field(default_factory=list)

    def image(self, position: int) -> None:
        self.asked.append(position)
        if position in self.broken:
            raise InputError(f"{self.crops[position].path}: broken.")


@st.composite
def pictures(draw: st.DrawFn) -> Pictures:
    """One or two identities of real and generated crops, some without a torso, any of them broken."""
    crops = []
    for n in range(draw(st.integers(1, 12))):
        identity, source = draw(st.integers(1, 2)), draw(st.sampled_from([None, None, None, "s"]))
        joints = draw(st.sampled_from([FULL, FULL, FULL, HEADLESS]))
        crops.append(Crop(Path(f"{n}.jpg"), f"{n}.jpg", identity, 1, "train", joints, source))
    broken = draw(st.sets(st.integers(0, len(crops) - 1)))
    return Pictures(crops, broken)


def peers(images: Pictures, position: int) -> set[int]:
    """Readable crops with a torso of the same identity and origin, by the definition."""
    crop = images.crops[position]
    return {
        n
        for n, other in enumerate(images.crops)
        if other.identity == crop.identity and other.generated == crop.generated and other.joints is FULL
    } - images.broken


@settings(max_examples=200)
@given(st.data(), pictures())
def test_a_stand_in_has_the_same_identity_and_origin_and_is_no_other_crop_of_its_row_while_one_is_left(
    data: st.DataObject, images: Pictures
) -> None:
    usable = [n for n, crop in enumerate(images.crops) if crop.can_pose] or [0]
    row = data.draw(st.lists(st.sampled_from(usable), min_size=1, max_size=4))
    draw = data.draw(st.integers(0, 2**63 - 1))
    stand_ins = StandIns(images, lambda crop: crop.can_pose)  # type: ignore[arg-type]
    hopeless = [n for n in row if n in images.broken and not peers(images, n)]
    if hopeless:
        with pytest.raises(InputError, match=f"identity {images.crops[hopeless[0]].identity}: none of its crops"):
            stand_ins.replace([(draw, *row)])
        return
    [(same_draw, *found)], unreadable = stand_ins.replace([(draw, *row)])
    assert same_draw == draw
    assert {n for n in row if n in images.broken} <= unreadable.keys() <= images.broken
    assert all(unreadable[n] == f"{n}.jpg: broken." for n in unreadable)
    for column, (wanted, given_) in enumerate(zip(row, found, strict=True)):
        if wanted not in images.broken:
            assert given_ == wanted
            continue
        assert given_ in peers(images, wanted)
        # What the row held when this column was looked at: those before it replaced, those after it not yet.
        others = {*found[:column], *row[column + 1 :]}
        assert given_ not in others or peers(images, wanted) <= others
    assert stand_ins.replace([(draw, *row)]) == ([(draw, *found)], unreadable)


def test_stand_ins_change_with_the_draw_and_not_with_what_was_read_before() -> None:
    crops = [Crop(Path(f"{n}.jpg"), f"{n}.jpg", 1, 1, "train", FULL) for n in range(6)]
    chosen = [StandIns(Pictures(crops, {0}), lambda _: True).replace([(draw, 0)])[0] for draw in range(40)]  # type: ignore[arg-type]
    assert {row[1] for (row,) in chosen} == {1, 2, 3, 4, 5}
    one = StandIns(Pictures(crops, {0}), lambda _: True)  # type: ignore[arg-type]
    assert [one.replace([(draw, 0)])[0] for draw in reversed(range(40))] == chosen[::-1]


def test_nothing_is_replaced_that_can_be_read() -> None:
    images = Pictures([Crop(Path("x"), "x", 1, 1, "train", FULL)] * 3, set())
    assert StandIns(images, lambda _: False).replace([(7, 2, 0), (8, 1, 1)]) == ([(7, 2, 0), (8, 1, 1)], {})  # type: ignore[arg-type]


# --- in batches --------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> list[Crop]:
    """Three identities of three crops, each crop of one colour, the first of each identity broken."""
    crops = []
    for n in range(9):
        path = tmp_path / f"{n}.png"
        Image.new("RGB", (4, 8), (20 * n, 0, 0)).save(path)
        if n % 3 == 0:
            path.write_bytes(path.read_bytes()[:40])
        crops.append(Crop(path, path.name, 1 + n // 3, 1, "train", FULL))
    return crops


def shades(images: torch.Tensor) -> list[int]:
    """The number of each crop, read from its colour."""
    return (images[..., 0, 0, 0] // 20).flatten().tolist()


def test_pose_pairs_stand_in_with_picture_joints_and_label_together(damaged: list[Crop]) -> None:
    pairs = PosePairs(CropImages(damaged, 8, 4), class_labels(damaged), stand_ins=True)
    batch = pairs[[(5, 0, 1), (6, 4, 5), (7, 8, 6)]]
    # In a row that holds one of the two others already, only one is left.
    assert (shades(batch.source_images), shades(batch.target_images)) == ([2, 4, 8], [1, 5, 7])
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.source_present.all()
    assert batch.unreadable.keys() == {0, 6}
    assert "0.png" in batch.unreadable[0]


def test_quartets_and_posed_crops_stand_in_too(damaged: list[Crop]) -> None:
    images = CropImages(damaged, 8, 4)
    quartets = Quartets(images, class_labels(damaged), stand_ins=True)[[(5, 0, 1, 4, 7)]]
    assert shades(quartets.images) == [2, 1, 4, 7]
    assert quartets.labels.tolist() == [[0, 0, 1, 2]]
    assert quartets.unreadable.keys() == {0}
    posed = PosedCrops(images, stand_ins=True)[[(5, 3), (6, 8)]]
    assert shades(posed.images)[0] in (4, 5)
    assert shades(posed.images)[1] == 8
    assert posed.unreadable.keys() == {3}


@pytest.mark.parametrize("kind", ["pairs", "quartets", "posed crops"])
def test_without_stand_ins_a_crop_that_cannot_be_read_is_a_mistake(damaged: list[Crop], kind: str) -> None:
    images, labels = CropImages(damaged, 8, 4), class_labels(damaged)
    dataset = {"pairs": PosePairs(images, labels), "quartets": Quartets(images, labels), "posed crops": None}[kind]
    with pytest.raises(InputError, match=r"0\.png"):
        (dataset or PosedCrops(images))[[(5, 0)] if kind == "posed crops" else [(5, 1, 0)]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_identity_without_a_readable_crop_is_named_in_one_sentence(damaged: list[Crop], workers: int) -> None:
    for crop in damaged[3:6]:
        crop.path.write_bytes(b"no picture")
    pairs = PosePairs(CropImages(damaged, 8, 4), class_labels(damaged), stand_ins=True)
    with pytest.raises(InputError) as complaint:
        list(load_batches(pairs, [[(0, 1, 2), (1, 4, 5)]], workers))  # type: ignore[arg-type]
    said = str(complaint.value)
    assert said.startswith("identity 2: none of its crops can be read; ")
    assert "4.png" in said
    assert "\n" not in said
    assert "Traceback" not in said
    assert "InputError" not in said
    assert complaint.value.__suppress_context__


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_say_which_crops_could_not_be_read(damaged: list[Crop], workers: int) -> None:
    pairs = PosePairs(CropImages(damaged, 8, 4), class_labels(damaged), stand_ins=True)
    found = list(load_batches(pairs, [[(0, 0, 1), (1, 4, 5)]] * 2, workers))  # type: ignore[arg-type]
    assert [set(batch.unreadable) for batch in found] == [{0}, {0}]
    assert all(torch.equal(batch.source_images[1], found[0].source_images[1]) for batch in found)
