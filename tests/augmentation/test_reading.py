import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posereid.augmentation.reading import PosesBySize, read_batches
from posereid.augmentation.targets import Drawing, plan_drawings
from posereid.config import AugmentationRecipe
from posereid.data.batches import CropImages
from posereid.data.crops import CropTable
from posereid.data.images import decode_image, open_crop, picture_size
from posereid.data.layouts import load_crops
from posereid.data.shards import write_shards
from posereid.errors import InputError

SIZE = (32, 16)


@pytest.fixture
def drawings(crops: CropTable) -> list[Drawing]:
    return plan_drawings(crops.train, AugmentationRecipe(poses_per_crop=3), 0)


def in_batches(drawings: list[Drawing], size: int) -> list[list[Drawing]]:
    return [drawings[start : start + size] for start in range(0, len(drawings), size)]


def test_batches_hold_the_pictures_and_joints_that_training_would_see(
    crops: CropTable, drawings: list[Drawing]
) -> None:
    images = CropImages(crops.train, *SIZE)
    found = list(read_batches(in_batches(drawings, 7), crops.train, PosesBySize(crops.train, *SIZE)))
    assert [each for batch in found for each in batch.drawings] == drawings
    for batch in found:
        assert torch.equal(batch.images, images.images([each.source for each in batch.drawings]))
        for each, source, target in zip(batch.drawings, batch.source_poses, batch.target_poses, strict=True):
            for joints, wanted in ((source, images.joints(each.source)), (target, images.joints(each.target))):
                assert np.array_equal(joints.xy, wanted.xy)
                assert np.array_equal(joints.present, wanted.present)


def test_each_source_is_decoded_once_and_no_target(
    crops: CropTable, drawings: list[Drawing], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()

    def counted(content: bytes, path: Path) -> Image.Image:
        decoded[path.name] += 1
        return decode_image(content, path)

    monkeypatch.setattr("posereid.data.images.decode_image", counted)
    some = drawings[:7]
    for _ in read_batches(in_batches(some, 2), crops.train, PosesBySize(crops.train, *SIZE)):
        pass
    assert decoded == Counter({crops.train[position].name for position in {each.source for each in some}})


def test_no_more_than_two_batches_are_read_ahead(
    crops: CropTable, drawings: list[Drawing], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    quiet = threading.Event()

    def noted(batches: list[list[Drawing]]) -> Iterator[list[Drawing]]:
        for number, batch in enumerate(batches):
            started.append(number)
            yield batch

    batches = read_batches(noted(in_batches(drawings, 2)), crops.train, PosesBySize(crops.train, *SIZE))  # type: ignore[arg-type]
    for number in range(4):
        next(batches)
        quiet.wait(0.01)
        assert len(started) <= number + 3
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_pictures_size_is_that_of_the_upright_picture(
    kind: str, orientation: int, crops: CropTable, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 50)).save(path, exif=exif)
    crop = replace(crops.train[0], path=path)
    assert picture_size(crop) == open_crop(crop).size == ((20, 50) if orientation < 5 else (50, 20))


def test_a_pictures_size_is_read_from_a_shard_too(crops: CropTable, tmp_path: Path) -> None:
    sharded = load_crops(write_shards(crops.train, tmp_path / "shards").folder)
    assert [picture_size(crop) for crop in sharded] == [open_crop(crop).size for crop in crops.train]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff"])
def test_a_file_that_is_no_picture_is_an_input_error(content: bytes, crops: CropTable, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jpg"):
        picture_size(replace(crops.train[0], path=tmp_path / "a.jpg"))


def test_a_source_that_cannot_be_read_is_an_input_error_where_the_batch_is_asked_for(
    crops: CropTable, drawings: list[Drawing], tmp_path: Path
) -> None:
    broken = drawings[4].source
    table = crops.train.with_crops(
        replace(crop, path=tmp_path / "gone.jpg") if position == broken else crop
        for position, crop in enumerate(crops.train)
    )
    with pytest.raises(InputError, match=r"gone\.jpg"):
        list(read_batches(in_batches(drawings, 2), table, PosesBySize(table, *SIZE)))
