"""Pictures of the ablation: Table 3 and what crops are worth as plots, Figures 8, 9, 11 and 12 as contact sheets."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posereid.ablation.grid import Cell, Grid
from posereid.ablation.results import USES
from posereid.ablation.rows import FULL, REAL, ROWS, TEXTURE
from posereid.ablation.sheets import SheetPairs, sheet
from posereid.pictures import save_png
from posereid.training.checkpoint import load_generator
from posereid.training.devices import pick_device

PICTURES = "pictures"
_BETTER, _WORSE, _NEITHER, _LEVEL, _PAPER = "#1b7837", "#b2182b", "#888888", "#1f2328", "#0072b2"
_USE_MARKS = ("o", "s", "D")
_MEANING = {_BETTER: "better", _WORSE: "worse", _NEITHER: "cannot be told"}


def write_pictures(grid: Grid, results: Mapping[str, Any]) -> list[Path]:
    """Write what the finished rows give to the folder's pictures; return the files. Raises InputError."""
    folder = grid.out / PICTURES
    paths = []
    if results["rows"]:
        for name, plot in PLOTS.items():
            paths.append(folder / name)
            save_png(paths[-1], plot(results))
    drawing = [key for key in results["rows"] if ROWS[key].fuses and ROWS[key].shares is None]
    blocks = {
        key: grid.recipe.generator.blocks if key == FULL else ROWS[key].generator["generator"]["blocks"]
        for key in drawing
        if key == FULL or key.startswith("blocks-")
    }
    parts = [key for key in drawing if key == FULL or key.startswith("no-")]
    labels = {key: ROWS[key].label for key in drawing}
    sheets = {
        "figures-8-9.png": {key: labels[key] for key in drawing if key in (FULL, TEXTURE)},
        "figure-11.png": {key: f"{count} blocks" for key, count in sorted(blocks.items(), key=lambda item: item[1])},
        # As in the paper, what lacks a part first and the whole last.
        "figure-12.png": {key: labels[key] for key in sorted(parts, key=lambda key: key == FULL)},
    }
    for name, columns in sheets.items():
        if len(columns) >= (1 if name == "figures-8-9.png" else 2) and write_sheet(grid, columns, folder / name):
            paths.append(folder / name)
    return paths


def write_sheet(grid: Grid, columns: Mapping[str, str], path: Path) -> bool:
    """The same test pairs drawn by the first generator of several rows, a column each; False where no pair has a pose.

    ``columns`` are the rows' headers by their keys.
    """
    size = grid.recipe.data.height, grid.recipe.data.width
    pairs = SheetPairs(grid.crops, grid.recipe.evaluation, size, 16 if len(columns) < 3 else 8)
    if not pairs.pairs:
        return False
    real = pairs.real()
    shown = {"source": real["source"], "target pose": real["target pose"]}
    device = pick_device(grid.recipe.runtime)
    for key, header in columns.items():
        cell = Cell("generator", key, grid.generator_seeds[0])
        shown[header] = pairs.drawn(load_generator(grid.folder(cell), device))
    save_png(path, sheet(shown | {"target": real["target"]}, 2 if len(columns) < 3 else 1))
    return True


def difference_plot(results: Mapping[str, Any]) -> bytes:
    """Rank-1 of every row under flip averaging, and its differences to the full model and to real crops only.

    Crosses are the paper's differences on Market-1501 (Table 3); colours say whether the sign can be told.
    """
    rows = list(results["rows"].values())
    full = results["rows"].get(FULL)
    figure = Figure(figsize=(13, 0.36 * len(rows) + 1.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    panels = {
        "mean": "rank-1, %",
        "minus_full": "rank-1 − full model, points",
        "minus_real": "rank-1 − real crops only, points",
    }
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            measured = row["reid"]["flip"]["rank1"]
            _interval(axis, place, measured.get(key), coloured=key != "mean")
            if (
                key == "minus_full"
                and full
                and row is not full
                and None not in (row["published_rank1"], full["published_rank1"])
            ):
                published = row["published_rank1"] - full["published_rank1"]
                axis.plot(published, place, "x", color=_PAPER, markersize=7, markeredgewidth=2)
        if key != "mean":
            axis.axvline(0, color="black", linewidth=0.8)
        legend = "\n× the paper's, on Market-1501" if key == "minus_full" else "\n"
        axis.set_xlabel(f"{title}, {100 * results['confidence']:g} % interval{legend}")
        _plain(axis)
    axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes[0].invert_yaxis()
    figure.legend(handles=_colours(), loc="outside lower left", ncols=len(_MEANING), frameon=False)
    return _png(figure)


def uses_plot(results: Mapping[str, Any]) -> bytes:
    """What each row's crops gain in mAP over real crops only, flip averaging on both sides: one mark for each use."""
    rows = [row for key, row in results["rows"].items() if key != REAL]
    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for number, ((use, label), mark) in enumerate(zip(USES.items(), _USE_MARKS, strict=True)):
        axis.plot([], [], mark, color=_NEITHER, label=label)
        for place, row in enumerate(rows):
            measured = row["reid"].get(use, {}).get("mAP", {})
            _interval(axis, place + 0.24 * (number - 1), measured.get("minus_real"), mark=mark)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel(f"mAP − real crops only, points, {100 * results['confidence']:g} % interval; both sides with flips")
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    _plain(axis)
    axis.legend(title="generated crops used", frameon=False)
    figure.legend(handles=_colours(), loc="outside lower center", ncols=len(_MEANING), frameon=False)
    return _png(figure)


PLOTS: dict[str, Callable[[Mapping[str, Any]], bytes]] = {"table-3.png": difference_plot, "uses.png": uses_plot}
"""The pictures that show no people, each drawn from a grid's results alone, by the names of their files."""


def _colours() -> list[Line2D]:
    return [Line2D([], [], color=colour, linewidth=2.5, label=label) for colour, label in _MEANING.items()]


def _plain(axis: Any) -> None:
    axis.grid(axis="x", linewidth=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _interval(
    axis: Any, place: float, bounds: Sequence[float | None] | None, *, coloured: bool = True, mark: str = "o"
) -> None:
    """A mark and its interval, ``coloured`` by the sign that it shows."""
    if not bounds or bounds[0] is None:
        return
    middle, low, high = bounds
    colour = _NEITHER if coloured else _LEVEL
    if low is not None and high is not None:
        if coloured:
            colour = _BETTER if low > 0 else _WORSE if high < 0 else _NEITHER
        axis.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
    axis.plot(middle, place, mark, color=colour, markersize=6)
