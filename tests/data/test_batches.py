from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from posereid.data.batches import (
    CropImages,
    PosePairBatch,
    PosePairs,
    Quartets,
    class_labels,
    load_batches,
    shifted,
    to_float,
    to_pixels,
)
from posereid.data.crops import Crop, CropTable
from posereid.data.sampling import PosePairSampler, QuartetSampler, ShardedBatches
from posereid.errors import InputError
from posereid.pose.joints import FLIP_ORDER, JOINT_COUNT, Joints, joint_index

WRIST = joint_index("left_wrist")


def one_crop(folder: Path, size: tuple[int, int] = (32, 64), dot: tuple[int, int] = (20, 40)) -> Crop:
    """A black crop whose left wrist is a white spot of 3×3 pixels."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    x, y = dot
    pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    path = folder / f"{size[0]}x{size[1]}.png"
    Image.fromarray(pixels).save(path)
    xy, present = np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool)
    xy[WRIST], present[WRIST] = dot, True
    return Crop(path, path.name, 4, 1, "train", Joints(xy, present))


def centre_of_light(image: torch.Tensor) -> list[float]:
    light = image.float().sum(0)
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in light.shape), indexing="ij")
    return [(columns * light).sum().item() / light.sum().item(), (rows * light).sum().item() / light.sum().item()]


# --- pixels and floats -------------------------------------------------------------------------------------


def test_all_256_values_survive_the_way_to_floats_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_pixels(to_float(pixels)), pixels)


def test_black_and_white_are_minus_one_and_one_and_the_steps_are_even() -> None:
    values = to_float(torch.arange(256, dtype=torch.uint8))
    assert (values[0].item(), values[255].item()) == (-1, 1)
    torch.testing.assert_close(values.diff(), torch.full((255,), 2 / 255))


def test_floats_are_rounded_to_the_nearest_pixel_value_and_clipped() -> None:
    floats = torch.tensor([-7.0, -1.0, 0.4 * 2 / 255 - 1, 0.6 * 2 / 255 - 1, 1.0, 1.01])
    assert to_pixels(floats).tolist() == [0, 0, 0, 1, 255, 255]


def test_conversion_leaves_its_input_alone() -> None:
    floats = torch.tensor([0.5])
    to_pixels(floats)
    assert floats.item() == 0.5


# --- crops -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 64), (64, 128), (16, 32), (48, 64)], ids=str)
def test_joints_stay_on_the_person_when_the_crop_is_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    scale = size[0] / 32, size[1] / 64
    crop = one_crop(tmp_path, size, (round(20 * scale[0]), round(40 * scale[1])))
    images = CropImages([crop], 64, 32)
    joints = images.joints(0)  # before the picture was asked for
    assert images.image(0).shape == (3, 64, 32)
    np.testing.assert_allclose(joints.xy[WRIST], centre_of_light(images.image(0)), atol=0.35)


def test_decoded_crops_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    crop = one_crop(tmp_path)
    kept, fresh = CropImages([crop], 64, 32), CropImages([crop], 64, 32, cache_gb=0)
    before = kept.image(0).clone()
    fresh.image(0)
    Image.new("RGB", (32, 64), (255, 0, 0)).save(crop.path)
    assert torch.equal(kept.image(0), before)
    assert fresh.image(0)[0].min() == 255


def test_a_crop_without_joints_has_all_of_them_absent(tmp_path: Path) -> None:
    crop = one_crop(tmp_path)
    images = CropImages([Crop(crop.path, crop.name, 1, 1, "train")], 64, 32)
    assert not images.joints(0).present.any()


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        CropImages([Crop(path, path.name, 1, 1, "train")], 64, 32).image(0)


# --- pose pairs --------------------------------------------------------------------------------------------


def test_mirroring_a_pair_mirrors_both_images_and_both_sets_of_joints(crops: CropTable) -> None:
    train = crops.train
    images, labels = CropImages(train, 64, 32), class_labels(train)
    _, source, target = next(iter(ShardedBatches(PosePairSampler(train, 4, 8, 0), 1)))[0]
    plain = PosePairs(images, labels, flip=0.0)[[(5, source, target)]]
    mirrored = PosePairs(images, labels, flip=1.0)[[(5, source, target)]]
    for side in ("source", "target"):
        picture, flipped = getattr(plain, f"{side}_images"), getattr(mirrored, f"{side}_images")
        assert torch.equal(flipped, picture.flip(-1))
        present, shown = getattr(plain, f"{side}_present")[0], getattr(mirrored, f"{side}_present")[0]
        assert torch.equal(shown, present[list(FLIP_ORDER)])
        before, after = getattr(plain, f"{side}_keypoints")[0], getattr(mirrored, f"{side}_keypoints")[0]
        for joint in range(JOINT_COUNT):
            if shown[joint]:
                old = before[FLIP_ORDER[joint]]
                assert after[joint].tolist() == [31 - old[0].item(), old[1].item()]
    assert plain.labels == mirrored.labels
    assert plain.target_cameras == -mirrored.target_cameras > 0


def test_the_mirrored_joint_still_lies_on_the_mirrored_spot(tmp_path: Path) -> None:
    pairs = PosePairs(CropImages([one_crop(tmp_path)], 64, 32), {4: 0}, flip=1.0)
    pair = pairs[[(0, 0, 0)]]
    spot = pair.target_keypoints[0, joint_index("right_wrist")].tolist()
    assert spot == centre_of_light(pair.target_images[0])


def test_the_share_of_mirrored_pairs_follows_the_recipe_and_the_draw_decides(tmp_path: Path) -> None:
    pairs = PosePairs(CropImages([one_crop(tmp_path)], 64, 32), {4: 0}, flip=0.25)

    def mirrored(draw: int) -> bool:
        return bool(pairs[[(draw, 0, 0)]].source_present[0, joint_index("right_wrist")])

    first = [mirrored(draw) for draw in range(400)]
    assert 60 < sum(first) < 140
    assert [mirrored(draw) for draw in range(400)] == first


def test_a_batch_holds_its_rows_field_by_field_and_renders_its_poses(crops: CropTable) -> None:
    train = crops.train
    images, labels = CropImages(train, 64, 32), class_labels(train)
    rows = next(iter(ShardedBatches(PosePairSampler(train, 3, 8, 0), 1)))
    pairs = PosePairs(images, labels)
    batch = pairs[rows]
    assert isinstance(batch, PosePairBatch)
    assert len(batch) == 3
    for n, (_, source, target) in enumerate(rows):
        assert torch.equal(batch.source_images[n], images.image(source))
        assert torch.equal(batch.target_images[n], images.image(target))
        np.testing.assert_array_equal(batch.source_keypoints[n], images.joints(source).xy)
        assert batch.labels[n] == labels[train[source].identity]
        assert abs(batch.target_cameras[n]) == train[target].camera
        x, y = batch.target_keypoints[n, 1].round().int().tolist()
        assert batch.target_poses[n, 1, y, x] > 0.9
    assert batch.source_poses.shape == batch.target_poses.shape == (3, 18, 64, 32)


def test_a_batch_moves_to_another_device_whole() -> None:
    tensors = [torch.zeros(1)] * 8
    moved = PosePairBatch(*tensors, {3: "no picture"}).to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert moved.unreadable == {3: "no picture"}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_yields_each_batch_in_order(crops: CropTable, workers: int) -> None:
    train = crops.train
    images, labels = CropImages(train, 64, 32), class_labels(train)
    batches = ShardedBatches(PosePairSampler(train, 3, 9, 0), 3)
    loaded = list(load_batches(PosePairs(images, labels, 0.5), batches, workers))
    assert len(loaded) == 3
    pairs = PosePairs(images, labels, 0.5)
    for batch, rows in zip(loaded, batches, strict=True):
        assert batch.unreadable == {}
        for field, value in vars(pairs[rows]).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(batch, field), value)


# --- quartets ----------------------------------------------------------------------------------------------


def test_quartets_without_augmentation_are_the_crops_themselves(crops: CropTable) -> None:
    train = crops.train
    images, labels = CropImages(train, 64, 32), class_labels(train)
    row = next(iter(ShardedBatches(QuartetSampler(train, 1, 4, 0), 1)))[0]
    quartet = Quartets(images, labels)[[row]]
    assert quartet.images.shape == (1, 4, 3, 64, 32)
    for n, position in enumerate(row[1:]):
        assert torch.equal(quartet.images[0, n], images.image(position))
        assert quartet.labels[0, n] == labels[train[position].identity]


def test_a_quartet_says_which_of_its_images_are_generated(crops: CropTable) -> None:
    train = [replace(crop, source="x" if n % 3 == 0 else None) for n, crop in enumerate(crops.train)]
    quartets = Quartets(CropImages(train, 64, 32), class_labels(train))
    batch = quartets[[(1, 0, 1, 9, 17, 3), (2, 4, 6, 10, 30, 2)]]
    assert batch.generated.tolist() == [[True, False, True, False, True], [False, True, False, True, False]]
    assert batch.to("cpu").generated.tolist() == batch.generated.tolist()


def test_a_quartets_augmentation_follows_its_draw_and_leaves_torchs_random_numbers_alone(
    crops: CropTable,
) -> None:
    train = crops.train
    quartets = Quartets(CropImages(train, 64, 32), class_labels(train), flip=0.5, padding=4)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = quartets[[(11, 0, 1, 2, 3)]]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(quartets[[(11, 0, 1, 2, 3)]].images, first.images)
    assert not torch.equal(quartets[[(12, 0, 1, 2, 3)]].images, first.images)


def test_each_crop_of_a_quartet_is_shifted_by_at_most_the_padding_and_mirrored_on_its_own(tmp_path: Path) -> None:
    quartets = Quartets(CropImages([one_crop(tmp_path)], 64, 32), {4: 0}, flip=0.5, padding=3)
    found = [centre_of_light(image) for draw in range(50) for image in quartets[[(draw, 0, 0, 0, 0)]].images[0]]
    assert {round(y) - 40 for _, y in found} == set(range(-3, 4))
    assert {round(x) for x, _ in found} == {*range(17, 24), *range(31 - 23, 31 - 16)}
    sides = [x > 15.5 for x, _ in found]
    assert any(any(sides[n : n + 4]) and not all(sides[n : n + 4]) for n in range(0, 200, 4))


@given(st.data(), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.floats(0, 1))
def test_each_image_is_mirrored_and_then_shifted_with_its_edge_repeated(
    data: st.DataObject, count: int, height: int, width: int, padding: int, flip: float
) -> None:
    pixels = data.draw(hnp.arrays(np.uint8, (count, 3, height, width)))
    shares = st.floats(0, 1, exclude_max=True)
    variation = data.draw(hnp.arrays(np.float64, (count, 3), elements=shares))
    found = shifted(torch.from_numpy(pixels.copy()), variation, flip, padding).numpy()
    for n, (mirror, down, right) in enumerate(variation):
        picture = pixels[n, :, :, ::-1] if mirror < flip else pixels[n]
        down, right = (int(share * (2 * padding + 1)) - padding for share in (down, right))
        for y in range(height):
            for x in range(width):
                from_y, from_x = min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)
                assert found[n, :, y, x].tolist() == picture[:, from_y, from_x].tolist()


def test_a_row_varies_alike_in_whatever_batch_it_comes(crops: CropTable) -> None:
    train = crops.train
    quartets = Quartets(CropImages(train, 64, 32), class_labels(train), flip=0.5, padding=4)
    rows = [(draw, 0, 9, 17, 25) for draw in range(6)]
    whole = quartets[rows]
    for n, row in enumerate(rows):
        assert torch.equal(quartets[[row]].images[0], whole.images[n])
    assert torch.equal(quartets[rows[::-1]].images, whole.images.flip(0))


def test_classes_number_the_identities_in_order_without_junk_and_distractors() -> None:
    crops = [Crop(Path("x"), "x", identity, 1, "train") for identity in (7, -1, 3, 0, 7, 11)]
    assert class_labels(crops) == {3: 0, 7: 1, 11: 2}
