"""Opening images that somebody else made."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from posereid.data.crops import Crop, ShardPlace
from posereid.files import read_limited
from posereid.messages import complaint

MAX_PIXELS = 25_000_000
"""Larger images are refused before they are decoded."""

MAX_IMAGE_BYTES = 2**28
"""Files of more bytes are not read: so many hold :data:`MAX_PIXELS` of four 16-bit channels without compression."""

# Pillow's other formats run outside programs (EPS) or are never crops.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")

# What white may be in pictures of other numbers than 0 … 255, and what the brightest pixel must reach for that to be
# told: 16 bits may hold a camera's 10 or 12, and 32 bits or floats anything.
_WHITES = {
    "I;16": ((65535, 4096),),
    "I": ((255, 16), (65535, 32768)),
    "F": ((1, 1 / 16), (255, 16), (65535, 32768)),
}
_TAGS = {"BitsPerSample": 258, "PhotometricInterpretation": 262, "SampleFormat": 339}
_LYING = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""


def open_image(path: str | Path) -> Image.Image:
    """Decode a whole image file to RGB of 8 bits, upright as its EXIF orientation says.

    Grey pictures of 16 or 32 bits or of floats are brought down to 8 bits: 16 bits from 0 … 65535, the others from
    0 … 1, 0 … 255 or 0 … 65535 where the brightest pixel tells which. Raises InputError where it does not, and for a
    file that is absent, truncated, no image, empty, of more than :data:`MAX_PIXELS` pixels or :data:`MAX_IMAGE_BYTES`.
    """
    path = Path(path)
    return decode_image(read_bytes(path, None), path)


def decode_image(content: bytes, path: Path) -> Image.Image:
    """:func:`open_image` for an image file's bytes; ``path`` is what a message calls it."""
    return _decoded(content, path, _rgb)


def decode_mask(content: bytes, path: Path) -> Image.Image:
    """A mask file's bytes as a picture in mode L, upright: 255 where the mask says foreground, else 0.

    Foreground is what is above half of white; a mask of 0 and one other value is that value's, and whole numbers that
    stay below half of white are labels, of which 0 is the background. A palette's colours count where they are
    greys, otherwise its indices; transparency counts where it varies. Raises InputError as :func:`open_image` does.
    """
    return _decoded(content, path, _foreground)


def open_crop(crop: Crop) -> Image.Image:
    """:func:`open_image` for a crop, be it a file or a part of a shard."""
    return decode_image(read_bytes(crop.path, crop.place), crop.path)


def open_mask(crop: Crop) -> Image.Image:
    """:func:`decode_mask` for the mask of a crop that has one, be it a file or a part of a shard."""
    assert crop.mask_path is not None, f"{crop.name} has no mask"
    return decode_mask(read_bytes(crop.mask_path, crop.mask_place), crop.mask_path)


def picture_size(crop: Crop) -> tuple[int, int]:
    """(width, height) of a crop's upright picture; of a JPEG file only the head is decoded. Raises InputError."""
    content = read_bytes(crop.path, crop.place)
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:
            (width, height), lying = picture.size, picture.getexif().get(ExifTags.Base.Orientation) in _LYING
    except Exception:  # on damaged files Pillow raises errors of almost any type; and PNG says it all after the picture
        return decode_image(content, crop.path).size
    if not 0 < width * height <= MAX_PIXELS:
        return decode_image(content, crop.path).size
    return (height, width) if lying else (width, height)


def read_bytes(path: Path, place: ShardPlace | None) -> bytes:
    """The bytes of an image file, undecoded: those at ``place``, or without a place the whole file ``path``.

    A shard is opened for each call: no position or descriptor is shared, so any thread or forked process may read.
    Raises InputError when the file or shard cannot be read, the file is larger than :data:`MAX_IMAGE_BYTES`, or the
    shard ends too early.
    """
    file = path if place is None else place.tar
    _require_file(file, "an image" if place is None else f"the shard that holds {path.name}")
    try:
        if place is None:
            return read_limited(path, MAX_IMAGE_BYTES)
        with file.open("rb") as shard:
            shard.seek(place.offset)
            content = shard.read(place.size)
    except OSError as error:
        raise complaint(
            file, f"a file that cannot be read ({error.strerror})", "a readable one", "check its permissions"
        ) from error
    if len(content) < place.size:
        raise complaint(file, f"no {path.name} where the index says", "a whole shard", "copy the shard again")
    return content


def _require_file(path: Path, expected: str) -> None:
    try:
        regular = path.is_file()
    except (OSError, ValueError):  # a path that the system cannot even look up
        regular = False
    if not regular:
        raise complaint(path, "no such file", expected, "check the path")


def _decoded(content: bytes, path: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    source = io.BytesIO(content)
    expected, remedy = "a whole JPEG, PNG, BMP, WebP or TIFF file", "replace the file or remove it from the set"
    try:
        with Image.open(source, formats=_FORMATS) as image:
            pixels = image.width * image.height
            if 0 < pixels <= MAX_PIXELS:
                return convert(image)
            problem = f"{image.width} × {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = "too many pixels"
    except _UnclearValuesError as error:
        problem, remedy = str(error), "save it with 8 bits"
        expected = "0 … 255, 16 bits that use their range, or floats from 0 to 1"
        raise complaint(path, problem, expected, remedy) from None
    except Exception as error:  # on damaged files Pillow's decoders raise errors of almost any type
        problem = f"no readable image ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        # Pillow quotes what it was given: the address of a buffer.
        raise complaint(path, problem.replace(repr(source), path.name), expected, remedy) from error
    raise complaint(path, problem, f"1 to {MAX_PIXELS:,} of them", "crop or shrink the image")


class _UnclearValuesError(Exception):
    """Which numbers of a picture are black and white cannot be told."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        super().__init__(f"grey values from {values.min():.4g} to {values.max():.4g} of the type {values.dtype.name}")


def _rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    kind = image.mode[:4]  # I;16 has variants for the order of bytes
    if kind not in _WHITES:
        # Straight to RGB, Pillow warns about palettes with transparency.
        return (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
    values = np.asarray(upright)
    tags = getattr(image, "tag_v2", {})
    whites = _WHITES[kind]
    if bits := tags.get(_TAGS["BitsPerSample"], (32,))[0] % 32:  # TIFF says of up to 16 bits how many they are
        signed = tags.get(_TAGS["SampleFormat"], (1,))[0] == 2
        whites = ((2 ** (bits - signed) - 1, 2 ** (bits - signed - 4)),)
    white, least = next((pair for pair in whites if values.max() <= pair[0]), (0, 0))
    # A black picture is black in any numbers; the comparisons are false for what is no number.
    if not (values.min() >= 0 and (values.max() == 0 or (white and values.max() >= least))):
        raise _UnclearValuesError(values)
    grey = np.rint(values * (255 / (white or 1))).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(_TAGS["PhotometricInterpretation"]) == 0 else grey).convert("RGB")


def _foreground(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    values = np.asarray(upright)
    if upright.mode == "P":
        colours = np.asarray(upright.convert("RGB"))
        greys = (colours == colours[..., :1]).all() and len(np.unique(colours)) == len(np.unique(values))
        values = colours[..., 0] if greys else values > 0
    elif values.ndim == 3:
        channels = np.asarray(upright.convert("RGBA"))
        alpha = channels[..., 3]
        values = channels[..., :3].max(-1) if alpha.min() == alpha.max() else alpha
    top = values.max()
    white = next((white for white in (1, 255, 65535) if top <= white), None)
    if values.min() == 0 and len(np.unique(values)) == 2:
        foreground = values > 0
    elif white is None or not values.min() >= 0:
        raise _UnclearValuesError(values)
    else:
        labels = values.dtype.kind != "f" and top <= white / 2
        foreground = values > (0 if labels else white / 2)
    return Image.fromarray(np.where(foreground, np.uint8(255), np.uint8(0)))
