"""Opening images that somebody else made."""

from pathlib import Path

from PIL import Image, ImageOps

from posereid.messages import complaint

MAX_PIXELS = 50_000_000
"""Larger images are refused before they are decoded."""

# Pillow's other formats run outside programs (EPS) or are never crops.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")


def open_image(path: str | Path) -> Image.Image:
    """Decode a whole image file to RGB, upright as its EXIF orientation says.

    Raises InputError for a file that is absent, truncated, no image, empty, or of more than
    :data:`MAX_PIXELS` pixels.
    """
    path = Path(path)
    try:
        regular = path.is_file()
    except (OSError, ValueError):  # a path that the system cannot even look up
        regular = False
    if not regular:
        raise complaint(path, "no such file", "an image", "check the path")
    try:
        with Image.open(path, formats=_FORMATS) as image:
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
        problem = problem.replace(str(path), path.name)
        raise complaint(
            path,
            problem,
            "a whole JPEG, PNG, BMP, WebP or TIFF file",
            "replace the file or remove it from the set",
        ) from error
    raise complaint(path, problem, f"1 to {MAX_PIXELS:,} of them", "crop or shrink the image")
