"""Loss curves, and one HTML page that holds a whole run's figures, tables and pictures."""

import base64
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.pictures import png_bytes
from posereid.report_page import PAGE

Cell = str | int | float | None
"""A table's cell. Numbers are written with up to four digits; give text to choose the digits yourself."""

_PREFIX = "loss_"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


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


def loss_curves(log: Path | str | Iterable[Mapping[str, Any]]) -> bytes:
    """A PNG with one panel for each ``loss_…`` key of a training log, over the steps.

    ``log`` is the path of a JSON-lines file or the records themselves, each with a ``step``; where records
    name more than one ``stage``, each stage is a line of its own. Long curves are drawn faint under their
    running mean. A last line that a stopped run left unfinished is skipped. Raises :class:`InputError` for a
    file that is missing or not JSON lines, and where no record holds a loss.
    """
    records = _read_log(Path(log)) if isinstance(log, str | Path) else list(log)
    curves = _curves(records)
    if not curves:
        raise InputError(f"None of the log's {len(records)} records has a step and a key that starts with {_PREFIX!r}.")
    stages = list(dict.fromkeys(stage for by_stage in curves.values() for stage in by_stage))
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, by_stage) in zip(axes, curves.items(), strict=False):
        for stage, points in by_stage.items():
            steps, values = np.array(sorted(points, key=lambda point: point[0])).T
            values = np.where(np.isfinite(values), values, np.nan)
            colour = _COLOURS[stages.index(stage) % len(_COLOURS)]
            smooth = _running_mean(values)
            if smooth is None:
                panel.plot(
                    steps,
                    values,
                    color=colour,
                    linewidth=1.3,
                    marker="." if len(steps) < 3 else None,
                    label=stage,
                )
            else:
                panel.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
                panel.plot(steps, smooth, color=colour, linewidth=1.5, label=stage)
        panel.set_title(name.removeprefix(_PREFIX).replace("_", " "), fontsize=10, loc="left")
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.set_xlabel("step", fontsize=8)
        if len(by_stage) > 1:
            panel.legend(fontsize=7, frameon=False)
    for panel in axes[len(curves) :]:
        panel.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"The training log {path} does not exist.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise InputError(f"Line {number} of the training log {path} is not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise InputError(f"Line {number} of the training log {path} is not a JSON object.")
        records.append(record)
    return records


def _curves(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Loss -> stage -> (step, value), in the order of first appearance."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        step = record.get("step")
        if step is None:
            continue
        for name, value in record.items():
            if name.startswith(_PREFIX) and isinstance(value, Real):
                by_stage = curves.setdefault(name, {})
                by_stage.setdefault(str(record.get("stage", "training")), []).append((float(step), float(value)))
    return curves


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """The mean over a fortieth of the curve around each point; None for curves too short to need it."""
    if len(values) < 80:
        return None
    window = np.ones(2 * (len(values) // 80) + 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0), window, "same")
    count = np.convolve(known, window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


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
