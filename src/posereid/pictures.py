"""Sheets of small pictures to look at: what was generated beside what is real, and what a search found."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from posereid.errors import InputError
from posereid.files import write_atomically

Picture = npt.NDArray[np.uint8]
"""A crop to show: (H, W, 3) uint8 RGB."""

_PAPER, _INK, _FAINT = (255, 255, 255), (31, 35, 40), (110, 118, 129)
_RIGHT, _WRONG = (26, 127, 55), (207, 34, 46)
_FONT_SIZE = 13
_GAP = 8
_FRAME = 3


@dataclass(frozen=True, eq=False)
class RankedRow:
    """One query and the head of its ranked list, best first.

    ``gallery``, ``right`` and ``gallery_cameras`` (where cameras are known) are equally long.
    """

    query: Picture
    gallery: Sequence[Picture]
    right: Sequence[bool] | npt.NDArray[np.bool_]
    query_camera: int | str | None = None
    gallery_cameras: Sequence[int | str] | npt.NDArray[np.int64] | None = None


def contact_sheet(
    rows: Sequence[Sequence[Picture]],
    headers: Sequence[str],
    scale: int = 2,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """A grid of pictures under column headers, enlarged ``scale`` times pixel by pixel.

    Pictures may differ in size; each stands centred in its column and row. Every row has one picture per
    header. Raises :class:`InputError` where counts disagree, nothing is given, ``scale`` is below 1 or a
    picture is not (H, W, 3) uint8.
    """
    if not rows or not headers or scale < 1:
        raise InputError(
            f"A sheet needs rows, headers and a scale of at least 1; it got {len(rows)}, {len(headers)} and {scale}."
        )
    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise InputError(
                f"Row {number} of the sheet has {len(row)} pictures, but there are {len(headers)} headers."
            )
    if row_labels is not None and len(row_labels) != len(rows):
        raise InputError(f"The sheet has {len(rows)} rows and {len(row_labels)} row labels.")
    images = [[_enlarged(picture, scale) for picture in row] for row in rows]
    longest_words = [max(map(_text_width, header.split()), default=0) for header in headers]
    widths = [max(word, *(row[column].width for row in images)) for column, word in enumerate(longest_words)]
    heights = [max(image.height for image in row) for row in images]
    wrapped = [_wrapped(header, width) for header, width in zip(headers, widths, strict=True)]
    label_width = max((_text_width(label) for label in row_labels), default=0) if row_labels else 0
    left = _GAP + (label_width + _GAP if label_width else 0)
    top = _GAP + _line_height() * max(len(lines) for lines in wrapped) + _GAP // 2
    sheet = _paper(left + sum(widths) + _GAP * len(widths), top + sum(heights) + _GAP * len(heights))
    draw = ImageDraw.Draw(sheet)
    lefts = [left + sum(widths[:column]) + _GAP * column for column in range(len(widths))]
    for lines, x, width in zip(wrapped, lefts, widths, strict=True):
        # Headers of one line sit next to the pictures, not at the sheet's edge.
        first = top - _GAP // 2 - _line_height() * len(lines)
        for line_number, line in enumerate(lines):
            _centred(draw, line, x + width / 2, first + line_number * _line_height(), _INK)
    y = top
    for number, (row_images, height) in enumerate(zip(images, heights, strict=True)):
        if row_labels is not None:
            draw.text((_GAP, y + (height - _line_height()) // 2), row_labels[number], _FAINT, _font())
        for image, x, width in zip(row_images, lefts, widths, strict=True):
            sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
        y += height + _GAP
    return sheet


def ranked_list_sheet(rows: Sequence[RankedRow], scale: int = 2) -> Image.Image:
    """Queries with the crops found for them: right ones in a solid green frame with a tick, wrong ones in a
    dashed red frame with a cross; cameras stand below.

    Lists may differ in length and crops in size. Raises :class:`InputError` where a row's lengths disagree,
    nothing is given, ``scale`` is below 1 or a picture is not (H, W, 3) uint8.
    """
    if not rows or scale < 1:
        raise InputError(
            f"A sheet of ranked lists needs rows and a scale of at least 1; it got {len(rows)} and {scale}."
        )
    for number, row in enumerate(rows):
        cameras = len(row.gallery) if row.gallery_cameras is None else len(row.gallery_cameras)
        if not len(row.gallery) == len(row.right) == cameras:
            raise InputError(
                f"Ranked list {number} has {len(row.gallery)} pictures, {len(row.right)} verdicts and "
                f"{cameras} cameras."
            )
    images = [[_enlarged(picture, scale) for picture in (row.query, *row.gallery)] for row in rows]
    columns = max(len(row) for row in images)
    cell_width = max(image.width for row in images for image in row) + 2 * _FRAME
    row_heights = [max(image.height for image in row) + 2 * _FRAME for row in images]
    has_cameras = any(row.query_camera is not None or row.gallery_cameras is not None for row in rows)
    caption = _line_height() if has_cameras else 0
    query_gap = 2 * _GAP  # sets the query apart from what was found
    top = _GAP + _line_height()
    sheet = _paper(
        _GAP + columns * (cell_width + _GAP) + query_gap,
        top + sum(row_heights) + (caption + _GAP) * len(rows),
    )
    draw = ImageDraw.Draw(sheet)
    lefts = [_GAP + column * (cell_width + _GAP) + (query_gap if column else 0) for column in range(columns)]
    for column, x in enumerate(lefts):
        _centred(draw, str(column) if column else "query", x + cell_width / 2, _GAP // 2, _INK)
    y = top
    for row, row_images, height in zip(rows, images, row_heights, strict=True):
        verdicts: list[bool | None] = [None, *(bool(right) for right in row.right)]
        camera_names = [row.query_camera, *(row.gallery_cameras if row.gallery_cameras is not None else ())]
        for column, (image, verdict) in enumerate(zip(row_images, verdicts, strict=True)):
            x = lefts[column] + (cell_width - image.width) // 2
            sheet.paste(image, (x, y + _FRAME))
            box = (x - _FRAME, y, x + image.width + _FRAME - 1, y + image.height + 2 * _FRAME - 1)
            if verdict is not None:
                _frame(draw, box, verdict)
            if column < len(camera_names) and camera_names[column] is not None:
                text = f"cam {camera_names[column]}"
                _centred(draw, text, lefts[column] + cell_width / 2, box[3] + 2, _FAINT)
        y += height + caption + _GAP
    return sheet


def png_bytes(picture: Image.Image | Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(_checked(picture))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: Path | str, picture: Image.Image | Picture | bytes) -> None:
    """Write a picture (or a PNG's bytes) whole or not at all; missing folders are made."""
    write_atomically(Path(path), picture if isinstance(picture, bytes) else png_bytes(picture))


def _checked(picture: Any) -> Picture:
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise InputError(f"A picture is {array.shape} {array.dtype}; (height, width, 3) uint8 is expected.")
    return array


def _enlarged(picture: Picture, scale: int) -> Image.Image:
    """Repeats pixels: what is shown is what was generated, not what an interpolation makes of it."""
    return Image.fromarray(_checked(picture).repeat(scale, 0).repeat(scale, 1))


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), _PAPER)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib brings this font along, so a sheet looks the same on every machine.
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)


def _line_height() -> int:
    return _FONT_SIZE + 5


def _text_width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _centred(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, colour: tuple[int, int, int]) -> None:
    draw.text((x - _font().getlength(text) / 2, y), text, colour, _font())


def _wrapped(text: str, width: int) -> list[str]:
    """Lines no wider than ``width`` pixels, where no word is wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and _text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _frame(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], right: bool) -> None:
    """A frame just inside ``box``, and a mark in its corner; told apart by colour, by line and by mark."""
    colour = _RIGHT if right else _WRONG
    left, top, end, bottom = box
    draw.rectangle(box, outline=colour, width=_FRAME)
    if not right:
        for start in range(left + 8, end - 4, 12):
            draw.line((start, top + 1, start + 5, top + 1), fill=_PAPER, width=_FRAME)
            draw.line((start, bottom - 1, start + 5, bottom - 1), fill=_PAPER, width=_FRAME)
        for start in range(top + 8, bottom - 4, 12):
            draw.line((left + 1, start, left + 1, start + 5), fill=_PAPER, width=_FRAME)
            draw.line((end - 1, start, end - 1, start + 5), fill=_PAPER, width=_FRAME)
    size = _FONT_SIZE + 2
    draw.rectangle((end - size, top, end, top + size), fill=colour)
    x, y, unit = end - size, top, size / 10
    if right:
        tick = ((2, 5.2), (4.2, 7.4), (8, 2.8))
        draw.line([(x + across * unit, y + down * unit) for across, down in tick], fill=_PAPER, width=2)
    else:
        draw.line((x + 2.5 * unit, y + 2.5 * unit, x + 7.5 * unit, y + 7.5 * unit), fill=_PAPER, width=2)
        draw.line((x + 2.5 * unit, y + 7.5 * unit, x + 7.5 * unit, y + 2.5 * unit), fill=_PAPER, width=2)
