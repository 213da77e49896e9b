"""Opening images that somebody else made."""

import io
from pathlib import Path

from PIL import Image, ImageOps

from posereid.data.crops import Crop, ShardPlace
from posereid.messages import complaint

MAX_PIXELS = 25_000_000
"""Larger images are refused before they are decoded."""

# Pillow's other formats run outside programs (EPS) or are never crops.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")


def open_image(path: str | Path) -> Image.Image:
    """Decode a whole image file to RGB, upright as its EXIF orientation says.

    Raises InputError for a file that is absent, truncated, no image, empty, or of more than
    :data:`MAX_PIXELS` pixels.
    """
    path = Path(path)
    _require_file(path, "an image")
    return _decoded(path, path)


def decode_image(content: bytes, path: Path) -> Image.Image:
    """:func:`open_image` for an image file's bytes; ``path`` is what a message calls it."""
    return _decoded(io.BytesIO(content), path)


def open_crop(crop: Crop) -> Image.Image:
    """:func:`open_image` for a crop, be it a file or a part of a shard."""
    return open_image(crop.path) if crop.place is None else decode_image(read_bytes(crop.path, crop.place), crop.path)


def open_mask(crop: Crop) -> Image.Image:
    """:func:`open_image` for the mask of a crop that has one, be it a file or a part of a shard."""
    path, place = crop.mask_path, crop.mask_place
    assert path is not None, f"{crop.name} has no mask"
    return open_image(path) if place is None else decode_image(read_bytes(path, place), path)


def read_bytes(path: Path, place: ShardPlace | None) -> bytes:
    """The bytes of an image file, undecoded: those at ``place``, or without a place the whole file ``path``.

    A shard is opened for each call: no position or descriptor is shared, so any thread or forked process may read.
    Raises InputError when the file or shard cannot be read or the shard ends too early.
    """
    file = path if place is None else place.tar
    _require_file(file, "an image" if place is None else f"the shard that holds {path.name}")
    try:
        if place is None:
            return path.read_bytes()
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


def _decoded(source: Path | io.BytesIO, path: Path) -> Image.Image:
    try:
        with Image.open(source, formats=_FORMATS) as image:
            pixels = image.width * image.height
            if 0 < pixels <= MAX_PIXELS:
                upright = ImageOps.exif_transpose(image)
                # Straight to RGB, Pillow warns about palettes with transparency.
                return (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
            problem = f"{image.width} × {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = "too many pixels"
    except Exception as error:  # on damaged files Pillow's decoders raise errors of almost any type
        problem = f"no readable image ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        # Pillow quotes what it was given: the whole path, or the address of a buffer.
        problem = problem.replace(str(path), path.name).replace(repr(source), path.name)
        raise complaint(
            path,
            problem,
            "a whole JPEG, PNG, BMP, WebP or TIFF file",
            "replace the file or remove it from the set",
        ) from error
    raise complaint(path, problem, f"1 to {MAX_PIXELS:,} of them", "crop or shrink the image")
