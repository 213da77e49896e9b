"""What a crop's file name says: whose it is and which camera saw it."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

NameStyle = Literal["market1501", "dukemtmc", "cuhk03"]

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff"}
)
"""Endings, in lower case, of the files that count as images."""

# fmt: off
OTHER_IMAGE_SUFFIXES: frozenset[str] = frozenset((
    ".apng", ".avif", ".avifs", ".bpg", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".exr", ".gif", ".hdr", ".heic",
    ".heics", ".heif", ".hif", ".ico", ".j2c", ".j2k", ".jfi", ".jif", ".jng", ".jp2", ".jpc", ".jpf", ".jpg_large",
    ".jpx", ".jxl", ".jxr", ".mng", ".mpo", ".nef", ".orf", ".pam", ".pbm", ".pcx", ".pfm", ".pgm", ".pjp", ".pjpeg",
    ".png_large", ".pnm", ".ppm", ".psd", ".qoi", ".raf", ".ras", ".raw", ".rw2", ".sgi", ".svg", ".tga", ".wbmp",
    ".wdp", ".xbm", ".xcf", ".xpm",
))
"""Endings of pictures that are not read, and not passed over without a word either."""

_SIDE_SUFFIXES = frozenset((  # of what tools leave beside a crop, under its name
    ".csv", ".db", ".htm", ".html", ".json", ".log", ".mat", ".md", ".npy", ".npz", ".pkl", ".pt", ".pth", ".txt",
    ".xml", ".yaml", ".yml",
))
# fmt: on

NAME_EXAMPLES: dict[NameStyle, str] = {
    "market1501": "0002_c1s1_000451_03.jpg",
    "dukemtmc": "0005_c2_f0046985.jpg",
    "cuhk03": "0003_c1_22.png",
}

# Generated crops add words after the box, such as "_p2"; OpenPose drops the ending, and some of Market-1501's
# files have two.
_TAIL = r"(?:_[A-Za-z0-9]+)*(?:\.[A-Za-z]+)*"
_PATTERNS: dict[NameStyle, re.Pattern[str]] = {
    "market1501": re.compile(rf"(-1|[0-9]{{4}})_c([0-9])s[0-9]_[0-9]{{6}}_[0-9]{{2}}{_TAIL}"),
    # Nobody in DukeMTMC-reID is number 0, which would mean "distractor" here.
    "dukemtmc": re.compile(rf"((?!0000)[0-9]{{4}})_c([0-9])_f[0-9]{{7}}{_TAIL}"),
    # The release of the 767/700 protocol: person, camera, number.
    "cuhk03": re.compile(rf"((?!0000)[0-9]{{4}})_c([0-9])_[0-9]{{1,3}}{_TAIL}"),
}


@dataclass(frozen=True)
class CropName:
    """Identity (-1 junk, 0 distractor, else a person) and camera, as a file name states them."""

    identity: int
    camera: int
    style: NameStyle


def composed(name: str) -> str:
    """A name in Unicode's form NFC: some disks write é as one character, others as e and an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def looks_like_crop(name: str) -> bool:
    """Whether a file that is no image by its ending is a picture, or a crop by the rest of its name."""
    ending = PurePath(name).suffix.lower()
    return ending in OTHER_IMAGE_SUFFIXES or (ending not in _SIDE_SUFFIXES and parse_crop_name(name) is not None)


def parse_crop_name(name: str, style: NameStyle | None = None) -> CropName | None:
    """Read a file name of Market-1501, DukeMTMC-reID or CUHK03 (767/700), with or without its ending.

    ``style`` accepts one of them only. Returns None for a name that follows none.

    >>> parse_crop_name("0002_c1s1_000451_03.jpg")
    CropName(identity=2, camera=1, style='market1501')
    """
    for candidate in (style,) if style else tuple(_PATTERNS):
        found = _PATTERNS[candidate].fullmatch(name)
        if found:
            return CropName(int(found[1]), int(found[2]), candidate)
    return None
