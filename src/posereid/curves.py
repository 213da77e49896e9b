"""Plots of a training and an evaluation, each the bytes of a PNG."""

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from posereid.errors import InputError
from posereid.evaluation.verification import VerificationResult
from posereid.messages import shown

_PREFIX = "loss_"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_MARKERS = ("o", "s", "^", "v", "P")
_QUIET = "#59636e"

_RANK_TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
_LEAST_RATE = 1e-5
_AP_BINS = 20
# The page's column is as wide in pixels, so that letters keep their size there.
_WIDE, _WIDE_DPI = 8.4, 125


@dataclass(frozen=True, eq=False)
class MatchCurve:
    """A line of the CMC plot: ``shares`` (max_rank,) in [0, 1], and intervals of some ranks, (low, high) in [0, 1]."""

    shares: npt.NDArray[np.float64]
    intervals: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def decimal_rate(rate: float) -> str:
    """Three digits of a share, without an exponent, which few readers are used to.

    >>> decimal_rate(0.00002713), decimal_rate(1e-5)
    ('0.0000271', '0.00001')
    """
    return np.format_float_positional(rate, precision=3, fractional=False, trim="-")


def match_curves(curves: Mapping[str, MatchCurve], *, chance_rank1: float) -> bytes:
    """CMC: the share of queries with a right crop among the first k, in percent, a line for each name.

    Ranks are on a logarithmic axis. Intervals are drawn where they are known; ``chance_rank1``, in [0, 1], is marked
    at rank 1. Raises :class:`InputError` where there is no curve.
    """
    if not curves:
        raise InputError("There is no CMC curve to draw.")
    figure, axes = _wide_figure()
    last = max(len(curve.shares) for curve in curves.values())
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ranks = np.arange(1, len(curve.shares) + 1)
        dots = "." if len(ranks) <= 20 else None
        # A later line is dashed: an equal one below it stays visible.
        dashes = "--" if number else "-"
        axes.plot(ranks, 100 * curve.shares, dashes, color=colour, linewidth=1.8, marker=dots, markersize=6, label=name)
        for rank, (low, high) in curve.intervals.items():
            if np.isfinite([low, high]).all() and rank <= len(ranks):
                # Side by side, or the bars of two lines would hide each other.
                place = rank * 1.024 ** (number - (len(curves) - 1) / 2)
                axes.plot([place] * 2, [100 * low, 100 * high], color=colour, linewidth=5, alpha=0.35)
    axes.plot([1], [100 * chance_rank1], "x", color=_QUIET, markersize=8, markeredgewidth=2, clip_on=False)
    axes.annotate(
        f"a random order: {100 * chance_rank1:.1f} %",
        (1, 100 * chance_rank1),
        xytext=(10, 3),
        textcoords="offset points",
        fontsize=9,
        color=_QUIET,
    )
    axes.set_xscale("log")
    axes.set_xlim(0.94, max(last, 2) * 1.04)
    ticks = [tick for tick in _RANK_TICKS if tick <= last]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:g}"))
    axes.set_ylim(0, 101)
    axes.set_xlabel("rank k")
    axes.set_ylabel("queries with a right crop\namong the first k (%)")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=10, loc="lower right")
    return _png(figure)


def receiver_curve(result: VerificationResult) -> bytes:
    """ROC: the true-match rate in percent over the false-match rate, which is on a logarithmic axis.

    Operating points stand with their thresholds and intervals, the equal error rate and the line of a verifier that
    guesses beside them. False-match rates that no count of these pairs can tell from zero lie beyond the left edge.
    """
    figure, axes = _wide_figure(height=5.2)
    points = [point for point in result.operating_points if math.isfinite(point.threshold)]
    smallest = min([_LEAST_RATE, *(point.false_match_rate / 2 for point in points)])
    left = min(0.01, max(smallest, 0.5 / result.impostor_pairs))
    rates = np.maximum(result.false_match_rates, left / 10)
    # Between two genuine distances only false matches are added.
    axes.step(rates, 100 * result.true_match_rates, where="post", color=_COLOURS[0], linewidth=1.8)
    guesses = np.geomspace(left, 1, 200)
    axes.plot(guesses, 100 * guesses, color=_QUIET, linewidth=1, linestyle=":", label="guessing")
    for number, point in enumerate(points):
        low, high = point.true_match_rate_interval
        style: dict[str, Any] = {"color": _COLOURS[1 + number % (len(_COLOURS) - 1)], "clip_on": False, "zorder": 3}
        axes.plot([point.false_match_rate] * 2, [100 * low, 100 * high], linewidth=5, alpha=0.35, **style)
        axes.plot(
            [point.false_match_rate],
            [100 * point.true_match_rate],
            linestyle="",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=7,
            markerfacecolor=style["color"] if point.supported else "white",
            label=f"rate {decimal_rate(point.stated_false_match_rate)}: threshold {point.threshold:.4f}"
            + ("" if point.supported else " (not supported)"),
            **style,
        )
    error = result.equal_error_rate
    axes.plot(
        [max(error, left)],
        [100 * (1 - error)],
        linestyle="",
        marker="D",
        color="#1f2328",
        markersize=6,
        clip_on=False,
        zorder=3,
        label=f"equal error rate {100 * error:.2f} %: threshold {result.equal_error_threshold:.4f}",
    )
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    axes.set_ylim(0, 101)
    axes.set_xlabel("false-match rate: share of impostor pairs accepted")
    axes.set_ylabel("true-match rate:\ngenuine pairs accepted (%)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: decimal_rate(rate)))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return _png(figure)


def precision_histogram(average_precisions: npt.NDArray[np.float64]) -> bytes:
    """How many queries have which average precision; (Q,) in [0, 1], NaN for queries that have none, in percent.

    The mean is marked. Raises :class:`InputError` where every query has none.
    """
    known = 100 * average_precisions[~np.isnan(average_precisions)]
    if not len(known):
        raise InputError("None of the queries has an average precision to draw.")
    figure, axes = _wide_figure()
    axes.hist(known, _AP_BINS, range=(0, 100), color=_COLOURS[0], alpha=0.85, edgecolor="white")
    axes.axvline(known.mean(), color=_COLOURS[1], linewidth=1.8, label=f"mean: {known.mean():.1f} %")
    axes.set_xlim(-0.5, 100.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("average precision of a query (%)")
    axes.set_ylabel("queries")
    axes.legend(frameon=False, fontsize=10)
    return _png(figure)


def loss_curves(log: Path | str | Iterable[Mapping[str, Any]]) -> bytes:
    """A PNG with one panel for each ``loss_…`` key of a training log, over the steps.

    ``log`` is the path of a JSON-lines file or the records themselves, each with a ``step``; where records
    name more than one ``stage``, each stage is a line of its own. Long curves are drawn faint under their
    running mean. A last line that a stopped run left unfinished is skipped. Raises :class:`InputError` for a
    file that is missing or not JSON lines, and where no record holds a loss.
    """
    records = read_log(Path(log)) if isinstance(log, str | Path) else list(log)
    curves = _curves(records)
    if not curves:
        raise InputError(f"None of the log's {len(records)} records has a step and a key that starts with {_PREFIX!r}.")
    stages = list(dict.fromkeys(stage for by_stage in curves.values() for stage in by_stage))
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = _figure((3.6 * columns, 2.5 * rows), dpi=150)
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
        _plain(panel)
        panel.tick_params(labelsize=8)
        panel.set_xlabel("step", fontsize=8)
        if len(by_stage) > 1:
            panel.legend(fontsize=7, frameon=False)
    for panel in axes[len(curves) :]:
        panel.set_visible(False)
    return _png(figure)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run's ``log.jsonl``; a last line that a killed run left half-written does not count.

    Raises InputError for a log that is absent or of which any other line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"The training log {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"The training log {path} cannot be read: {shown(str(error), 150)}.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(
                f"Line {number} of the training log {path} is not JSON: {shown(str(error), 150)}."
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"Line {number} of the training log {path} is not a JSON object.")
        records.append(record)
    return records


def _curves(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Loss -> stage -> (step, value), in the order of first appearance."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        step = record.get("step")
        if step is None or not _is_number(step):
            continue
        for name, value in record.items():
            if name.startswith(_PREFIX) and _is_number(value):
                by_stage = curves.setdefault(name, {})
                by_stage.setdefault(str(record.get("stage", "training")), []).append((float(step), float(value)))
    return curves


def _is_number(value: object) -> bool:
    # A whole number may have more digits than a float can hold.
    return isinstance(value, Real) and (isinstance(value, float) or abs(value) < 10**300)  # type: ignore[operator]


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """The mean over a fortieth of the curve around each point; None for curves too short to need it."""
    if len(values) < 80:
        return None
    window = np.ones(2 * (len(values) // 80) + 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0), window, "same")
    count = np.convolve(known, window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _figure(size: tuple[float, float], dpi: int) -> Figure:
    """A figure of a size in inches that pyplot knows nothing of, so that nothing of it stays in memory."""
    figure = Figure(figsize=size, dpi=dpi, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


def _wide_figure(height: float = 4.4) -> tuple[Figure, Axes]:
    figure = _figure((_WIDE, height), _WIDE_DPI)
    axes = figure.subplots()
    _plain(axes)
    axes.tick_params(labelsize=10)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
