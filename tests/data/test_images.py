"""Pictures and masks of other numbers than 0 … 255 mean what they say, or are refused."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from posereid.data.crops import Crop
from posereid.data.images import MAX_IMAGE_BYTES, open_image, open_mask
from posereid.errors import InputError

RAMP = np.tile(np.linspace(0, 1, 64)[:, None], (1, 32))
SOFT = np.repeat(np.array([[0.0, 0.2, 0.7, 1.0]]), 8, axis=0)


def tiff(path: Path, values: npt.NDArray[Any], *, photometric: int = 1, bits: int | None = None) -> Path:
    """An uncompressed TIFF file in the order of bytes of ``values``, of kinds that Pillow does not write."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    data = values.tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    size = bits or 8 * values.dtype.itemsize
    tags = [(256, width), (257, height), (258, size), (259, 1), (262, photometric), (273, 122), (277, 1),
            (279, len(data)), (339, kind)]  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    path.write_bytes(head + entries + struct.pack(f"{order}I", 0) + data)
    return path


@pytest.mark.parametrize(
    ("kind", "white"),
    [(">u2", 65535), ("<u2", 65535), ("<i2", 32767), ("<i4", 65535), ("<i4", 255), ("<f4", 1), (">f4", 255)],
)  # fmt: skip
def test_grey_pictures_of_any_numbers_have_256_levels(tmp_path: Path, kind: str, white: int) -> None:
    values = RAMP * white if kind[1] == "f" else np.rint(RAMP * white)
    pixels = np.asarray(open_image(tiff(tmp_path / "a.tif", values.astype(kind))))
    assert pixels.shape == (64, 32, 3)
    assert np.abs(pixels - RAMP[..., None] * 255).max() <= 1
    if kind in ("<u2", "<f4"):  # Pillow opens no others of those in which 0 is white
        inverted = np.asarray(open_image(tiff(tmp_path / "b.tif", values.astype(kind), photometric=0)))
        assert (pixels.astype(int) + inverted == 255).all()


def test_sixteen_bits_of_other_files_too(tmp_path: Path) -> None:
    grey = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    grey.save(tmp_path / "a.png", transparency=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(tmp_path / "turned.png", exif=exif)
    assert abs(np.asarray(open_image(tmp_path / "a.png")).mean() - 127.5) < 1
    assert open_image(tmp_path / "turned.png").size == (64, 32)
    assert len(np.unique(np.asarray(open_image(tmp_path / "turned.png")))) == 64
    twelve = np.tile(np.array([0x00, 0x0F, 0xFF], np.uint8), (8, 4))  # two pixels in three bytes: 0 and 4095
    packed = tiff(tmp_path / "twelve.tif", twelve, bits=12)
    packed.write_bytes(
        packed.read_bytes().replace(struct.pack("<HHII", 256, 4, 1, 12), struct.pack("<HHII", 256, 4, 1, 8))
    )
    assert np.unique(np.asarray(open_image(packed))).tolist() == [0, 255]
    Image.new("I;16", (4, 8)).save(tmp_path / "black.png")
    assert not np.asarray(open_image(tmp_path / "black.png")).any()


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 255).astype("<u2"),  # 8 bits in 16, or darkness
        (RAMP * 4095).astype(">u2"),  # a camera's 12 bits
        (RAMP * 1023).astype("<i4"),
        (RAMP * 4e9).astype("<u4"),
        (RAMP * 2 - 1).astype("<f4"),
        (RAMP * 3).astype("<f4"),
        np.where(RAMP > 0.5, np.nan, RAMP).astype("<f4"),
        np.where(RAMP > 0.5, np.inf, RAMP).astype("<f4"),
    ],
)
def test_pictures_whose_white_cannot_be_told_are_refused(tmp_path: Path, values: npt.NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"a\.tif: found grey values from .*; save it with 8 bits\.$"):
        open_image(tiff(tmp_path / "a.tif", values))


def mask_of(path: Path) -> list[bool]:
    mask = np.asarray(open_mask(Crop(path, path.name, 1, 1, "train", mask_path=path)))
    assert set(np.unique(mask)) <= {0, 255}
    assert (mask == mask[0]).all()
    return (mask[0] > 127).tolist()


def test_masks_mean_what_they_say(tmp_path: Path) -> None:
    wanted = [False, False, True, True]
    path = tmp_path / "mask.png"
    for values in (SOFT > 0.5, np.uint8(SOFT > 0.5), np.uint8(SOFT * 255), np.uint8((SOFT > 0.5) * 7),
                   np.uint8((SOFT > 0.5) * (SOFT * 20)), np.uint16(SOFT * 65535), np.uint16(SOFT > 0.5),
                   np.uint16((SOFT > 0.5) * 255), np.uint16((SOFT > 0.5) * (1000 + SOFT))):  # fmt: skip
        Image.fromarray(values).save(path)
        assert mask_of(path) == wanted, values.dtype
    for values in (np.float32(SOFT), np.int32((SOFT > 0.5) * 9), np.int32(SOFT * 65535)):
        assert mask_of(tiff(path, values)) == wanted, values.dtype
    indices = Image.fromarray(np.uint8(SOFT > 0.5)).convert("P")
    for palette in ([0, 0, 0, 128, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 255, 255, 255], [0, 0, 64, 0, 0, 0]):
        indices.putpalette(palette)
        indices.save(path)
        assert mask_of(path) == wanted, palette
    indices.putpalette([255, 255, 255, 0, 0, 0])  # greys are colours, whatever their order
    indices.save(path)
    assert mask_of(path) == [not seen for seen in wanted]
    cut_out = np.full((8, 4, 4), 90, np.uint8)
    cut_out[..., 3] = SOFT * 255
    Image.fromarray(cut_out).save(path)
    assert mask_of(path) == wanted
    cut_out[..., 3], cut_out[..., 0] = 255, (SOFT > 0.5) * 128
    cut_out[..., 1:3] = 0
    Image.fromarray(cut_out).save(path)
    assert mask_of(path) == wanted
    for value, seen in ((0, False), (1, True), (255, True)):
        Image.new("L", (4, 8), value).save(path)
        assert mask_of(path) == [seen] * 4
    with pytest.raises(InputError, match=r"mask\.png"):
        mask_of(tiff(path, np.float32(SOFT * 2 - 1)))


def test_an_oversized_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.touch()
    os.truncate(path, MAX_IMAGE_BYTES + 1)  # a sparse file
    with pytest.raises(
        InputError, match=r"large\.png: found a file of 268,435,457 bytes, expected at most 268,435,456;"
    ):
        open_image(path)
