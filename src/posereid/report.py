"""One HTML page that holds a whole run's figures, tables and pictures."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.pictures import png_bytes
from posereid.report_page import PAGE

Cell = str | int | float | None
"""A table's cell. Numbers are written with up to four digits; give text to choose the digits yourself."""


@dataclass(frozen=True, eq=False)
class ReportPicture:
    """A picture, the caption below it, and the text for who cannot see it (the caption unless given)."""

    picture: Image.Image | npt.NDArray[np.uint8] | bytes
    caption: str
    alt: str | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """A header and rows of equally many cells. Columns that hold only numbers are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str | None = None


@dataclass(frozen=True, eq=False)
class Section:
    """A heading, paragraphs (blank lines part them), tables and pictures, shown in this order."""

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[ReportPicture] = ()


def write_report(path: Path | str, *, title: str, summary: Mapping[str, Cell], sections: Sequence[Section]) -> None:
    """Write one self-contained HTML page, whole or not at all; missing folders are made.

    ``summary`` holds the key figures shown first, by name. All text is escaped; pictures are part of the
    page, which loads nothing from anywhere and runs no script. It follows the reader's light or dark setting.
    Raises :class:`InputError` for a table whose rows differ in length from its header.
    """
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(PAGE)
    html = page.render(
        title=title,
        summary=[(name, _cell_text(value)) for name, value in summary.items()],
        sections=[
            {
                "heading": section.heading,
                "paragraphs": [part for part in re.split(r"\n\s*\n", section.text.strip()) if part],
                "tables": [_table_for_page(table) for table in section.tables],
                "pictures": [_picture_for_page(picture) for picture in section.pictures],
            }
            for section in sections
        ],
    )
    write_atomically(Path(path), html)


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, str):
        return re.fullmatch(r"[-+−±]?\d[\d\s,.]*( ?± ?[\d.]+)?( ?(%|s|ms|h|min))?|[–-]", cell.strip()) is not None
    return True


def _cell_text(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float | np.floating) and math.isnan(cell)):
        return "–"
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | np.integer):
        return f"{cell:,}"
    if math.isinf(cell):
        return "∞" if cell > 0 else "-∞"
    small_or_large = cell != 0 and not 1e-3 <= abs(cell) < 1e5
    return f"{cell:.3g}" if small_or_large else f"{cell:.3f}"


def _table_for_page(table: Table) -> dict[str, Any]:
    for number, row in enumerate(table.rows):
        if len(row) != len(table.header):
            raise InputError(
                f"Row {number} of a report's table has {len(row)} cells under {len(table.header)} headings."
            )
    return {
        "caption": table.caption,
        "header": table.header,
        "rows": [[_cell_text(cell) for cell in row] for row in table.rows],
        "numeric": [
            bool(table.rows) and all(_is_number(row[column]) for row in table.rows)
            for column in range(len(table.header))
        ],
    }


def _picture_for_page(picture: ReportPicture) -> dict[str, Any]:
    content = picture.picture if isinstance(picture.picture, bytes) else png_bytes(picture.picture)
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    return {
        "source": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "alt": picture.caption if picture.alt is None else picture.alt,
        "caption": picture.caption,
        "width": width,
        "height": height,
    }
