"""From the cells to results.json: means over seeds, intervals, and differences to ``full`` and to ``real``."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posereid.ablation.grid import FUSION, FUSION_FILE, Cell, Grid, read_json
from posereid.ablation.rows import FULL, REAL, ROWS, Row
from posereid.ablation.work import FLIP, FUSED, QUALITY_FILE, SEARCH_ONLY_FILE
from posereid.errors import InputError
from posereid.evaluation.bootstrap import clustered_mean
from posereid.evaluation.comparison import EVALUATION_FILE, queries_file
from posereid.evaluation.evaluate import versions
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.per_query import QueryFigures
from posereid.evaluation.picture_measures import ANSWERS
from posereid.evaluation.seeds import mean_over_seeds
from posereid.training.devices import pick_device

RESULTS_FILE = "results.json"
SCHEMA = 1

SEARCH_ONLY = "search only"
"""The search of a network that saw real crops only, with the row's generator: generated crops without training use."""

QUALITY = {
    "ssim": ("ssim", "image"),
    "foreground_ssim": ("ssim", "foreground"),
    "mask_ssim": ("mask_ssim", "foreground"),
    "pckh": ("pckh", "image"),
    "identity": ("identity", "image"),
    "foreground_identity": ("identity", "foreground"),
}
"""Figures of image quality by their keys: the measure and the region that each is."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Searches:
    """What every query scored under every seed, in every search: search → headline → (S, Q), in [0, 1]."""

    tables: Mapping[str, Mapping[str, Values]]
    identities: npt.NDArray[Any]


def summarise(grid: Grid, *, command: str, jobs: int, seconds: float, failed: Mapping[Cell, str]) -> dict[str, Any]:
    """Everything that the finished cells of the folder say, whichever call made them; ready for JSON.

    Rows of which a cell is missing are named under ``unfinished``. Raises InputError for damaged files.
    """
    rows = [row for row in ROWS.values() if row in grid.rows or _is_finished(grid, row)]
    finished = [row for row in rows if _is_finished(grid, row)]
    searches = {row.key: read_searches(grid, row) for row in finished}
    quality = {row.key: read_quality(grid, row) for row in finished if row.fuses and row.shares is None}
    confidence = grid.recipe.evaluation.confidence
    cells = [cell for row in finished for cell in _cells(grid, row)]
    cells = list(dict.fromkeys([cell for cell in grid.cells() if cell.kind in ("pose", "fusion")] + cells))
    seconds_of = {cell.name: grid.state(cell).get("seconds") for cell in cells if grid.is_done(cell)}
    crops = grid.crops
    return {
        "schema": SCHEMA,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "device": _device_name(grid),
        "threads": torch.get_num_threads(),
        "jobs": jobs,
        "versions": versions(),
        "recipe": _placeless(grid.recipe.model_dump(mode="json")),
        "seeds": list(grid.seeds),
        "generator_seeds": list(grid.generator_seeds),
        "generator_of_seed": {str(seed): grid.partner(seed) for seed in grid.seeds},
        "confidence": confidence,
        "seconds": {
            "cells": seconds_of,
            "total": round(sum(found for found in seconds_of.values() if found), 1),
            "this_call": round(seconds, 1),
        },
        "data": {
            "root": crops.root.name,
            "synthetic": grid.synthetic,
            "training_crops": len(crops.train),
            "training_identities": len({crop.identity for crop in crops.train if crop.identified}),
            "query": len(crops.query),
            "gallery": len(crops.gallery),
            "test_identities": len({crop.identity for crop in crops.query}),
        },
        "fusion": {
            "settings": grid.fusion().model_dump(mode="json") if _fusion_is_known(grid) else None,
            "chosen": read_json(grid.folder(FUSION) / FUSION_FILE)
            if grid.chooses_fusion and grid.is_done(FUSION)
            else None,
        },
        "rows": {
            row.key: {
                "label": row.label,
                "published_rank1": row.published,
                "changes": {"generator": row.generator, "reid": row.reid, "shares": row.shares},
                "reid": reid_figures(searches[row.key], searches.get(FULL), searches.get(REAL), row, confidence),
                "quality": quality_figures(quality[row.key], quality.get(FULL), grid) if row.key in quality else None,
            }
            for row in finished
        },
        "cells": {
            Cell("reid", row.key, seed).name: {
                search: {name: _percent(float(np.nanmean(values[at]))) for name, values in table.items()}
                for search, table in searches[row.key].tables.items()
            }
            for row in finished
            for at, seed in enumerate(grid.seeds)
        },
        "unfinished": [row.key for row in rows if row not in finished],
        "failed": {cell.name: why for cell, why in failed.items()},
    }


def _cells(grid: Grid, row: Row) -> list[Cell]:
    made = [Cell("generator", row.maker, seed) for seed in grid.generator_seeds] if row.maker else []
    return [*made, *(Cell("reid", row.key, seed) for seed in grid.seeds)]


def _is_finished(grid: Grid, row: Row) -> bool:
    return all(map(grid.is_done, _cells(grid, row)))


def _fusion_is_known(grid: Grid) -> bool:
    return not grid.chooses_fusion or grid.is_done(FUSION)


def _device_name(grid: Grid) -> str:
    device = pick_device(grid.recipe.runtime)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _placeless(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the places that say something of one machine only."""
    return recipe | {"data": recipe["data"] | {"root": None, "keypoints": None}}


# --- searches ------------------------------------------------------------------------------------------------


def read_searches(grid: Grid, row: Row) -> Searches:
    """All searches of a row's networks over the grid's seeds. Raises InputError where they asked different queries."""
    places = {"off": (EVALUATION_FILE, "off"), "flip": (EVALUATION_FILE, FLIP)}
    if row.fuses:
        places[FUSED] = (EVALUATION_FILE, FUSED)
    if row.fuses and row.shares is None:
        places[SEARCH_ONLY] = (SEARCH_ONLY_FILE, FUSED)
    tables: dict[str, dict[str, Values]] = {}
    labels: set[tuple[tuple[str, str, str], ...]] = set()
    for search, (name, mode) in places.items():
        found = [
            QueryFigures.read(queries_file(grid.folder(Cell("reid", row.key, seed)) / name, fusion=mode))
            for seed in grid.seeds
        ]
        labels |= {each.labels for each in found}
        tables[search] = {key: np.stack([each.headlines()[key] for each in found]) for key in HEADLINES}
    if len(labels) > 1:
        raise InputError(
            f"{grid.out / 'reid' / row.key}: its networks were asked different queries; delete this folder and go on."
        )
    return Searches(tables, np.array([identity for _, identity, _ in next(iter(labels))]))


def reid_figures(
    own: Searches, full: Searches | None, real: Searches | None, row: Row, confidence: float
) -> dict[str, Any]:
    """Every search's headlines in percent, and their differences.

    ``mean``, ``minus_full`` and ``minus_real`` are [mean, low, high]. A search is compared with the same search of
    ``full``; with real crops only without any averaging where it does none itself, and under flip averaging otherwise,
    so that what a mirrored crop gains counts on both sides.
    """
    found: dict[str, Any] = {}
    for search, table in own.tables.items():
        found[search] = {}
        for name, values in table.items():
            figure: dict[str, Any] = {
                "mean": interval(values, own.identities, confidence),
                "seeds": [_percent(float(np.nanmean(seed))) for seed in values],
            }
            if full is not None and row.key != FULL and search in full.tables:
                figure["minus_full"] = interval(values - full.tables[search][name], own.identities, confidence)
            control = search if search == "off" else FLIP
            if real is not None and not (row.key == REAL and search == control):
                figure["minus_real"] = interval(values - real.tables[control][name], own.identities, confidence)
            found[search][name] = figure
    return found


def interval(values: Values, identities: npt.NDArray[Any], confidence: float) -> list[float | None]:
    """Mean of (S, Q) shares and its interval, in percent: over seeds and people, or over people alone for one seed."""
    known = ~np.isnan(values).any(0)
    if len(values) > 1 and len(np.unique(identities[known])) > 1:
        found = mean_over_seeds(values, identities, confidence=confidence)
        return [_percent(found.estimate), _percent(found.low), _percent(found.high)]
    people = clustered_mean(values.mean(0), identities, confidence=confidence)
    return [_percent(people.estimate), _percent(people.low), _percent(people.high)]


def _percent(share: float) -> float | None:
    return round(100 * share, 2) if np.isfinite(share) else None


# --- pictures ------------------------------------------------------------------------------------------------


def read_quality(grid: Grid, row: Row) -> dict[str, Values]:
    """Every measure of the row's generators pair by pair, (generator seeds, pairs), and the pairs' ``identities``.

    Empty where no test pair has a pose. Raises InputError for a damaged file.
    """
    arrays: list[dict[str, Values]] = []
    for seed in grid.generator_seeds:
        path = grid.folder(Cell("generator", row.key, seed)) / QUALITY_FILE
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays.append({name: file[name] for name in file.files})
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}); delete its folder and go on.") from None
    shared = [name for name in arrays[0] if all(name in each for each in arrays)]
    return {name: np.stack([each[name] for each in arrays]) for name in shared}


def quality_figures(own: Mapping[str, Values], full: Mapping[str, Values] | None, grid: Grid) -> dict[str, Any] | None:
    """Each figure of every answer, and of the generated crops the differences to ``full`` and to the other answers.

    Means are over pairs and generator seeds. Intervals are over people, with these generators; what another seed gives
    stands under ``seeds``. Shares, in [0, 1]. None where nothing was measured.
    """
    if not own:
        return None
    identities = own["identities"][0]

    def spread(values: Values) -> list[float | None]:
        return people_interval(values, identities, grid)

    found: dict[str, Any] = {"pairs": len(identities)}
    for name, (measure, region) in QUALITY.items():
        answers = {answer: own.get(f"{measure}/{answer}/{region}") for answer in ANSWERS}
        drawn = answers["generated"]
        if drawn is None or np.isnan(drawn).all():
            continue
        figure: dict[str, Any] = {
            "mean": spread(drawn),
            "seeds": [_rounded(float(np.nanmean(seed))) for seed in drawn],
            "answers": {},
        }
        for answer, values in answers.items():
            if answer != "generated" and values is not None and not np.isnan(values).all():
                figure["answers"][answer] = {"mean": spread(values), "generated_minus": spread(drawn - values)}
        others = (full or {}).get(f"{measure}/generated/{region}")
        if full is not own and others is not None:
            figure["minus_full"] = spread(drawn - others)
        found[name] = figure
    return found


def people_interval(values: Values, identities: npt.NDArray[Any], grid: Grid) -> list[float | None]:
    """Mean of (S, P) values and its interval over people, each pair's value being its mean over the seeds."""
    settings = grid.recipe.evaluation
    found = clustered_mean(
        values.mean(0),
        identities,
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.resampling_seed,
    )
    return [_rounded(found.estimate), _rounded(found.low), _rounded(found.high)]


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
