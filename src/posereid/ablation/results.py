"""From the cells to results.json: means over seeds, intervals, and differences to ``full`` and to ``real``."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from posereid.ablation.figures import (
    percent,
    quality_figures,
    read_quality,
    read_searches,
    read_validation,
    reid_figures,
)
from posereid.ablation.grid import FUSION_FILE, POSE, Cell, Grid, read_json
from posereid.ablation.rows import (
    FULL,
    REAL,
    ROWS,
    Row,
    joint_changes,
    label,
    paper_note,
    published,
)
from posereid.ablation.work import FLIP, FUSED, SEARCH_ONLY
from posereid.evaluation.evaluate import versions

RESULTS_FILE = "results.json"
SCHEMA = 2

USES = {FLIP: "in training", SEARCH_ONLY: "at search time", FUSED: "in both"}
"""Uses of generated crops that are compared with real crops only under flip averaging: what each search is."""


def summarise(grid: Grid, *, command: str, jobs: int, seconds: float, failed: Mapping[Cell, str]) -> dict[str, Any]:
    """Everything that the finished cells of the folder say, whichever call made them; ready for JSON.

    Rows of which a cell is missing are named under ``unfinished``. Raises InputError for damaged files.
    """
    rows = [row for row in ROWS.values() if row in grid.rows or _is_finished(grid, row)]
    finished = [row for row in rows if _is_finished(grid, row)]
    searches = {row.key: read_searches(grid, row) for row in finished}
    quality = {row.key: read_quality(grid, row) for row in finished if row.fuses and row.shares is None}
    confidence = grid.recipe.evaluation.confidence
    partners = [grid.partner(seed) for seed in grid.seeds]
    cells = list(dict.fromkeys([cell for row in finished for cell in _cells(grid, row)]))
    crops, recipe = grid.crops, grid.recipe
    makers = dict.fromkeys(row.maker for row in finished if row.maker and row.fuses)
    rows_found = {
        row.key: {
            "label": label(row, recipe),
            "published_rank1": published(row, recipe),
            "changes": {"joint": joint_changes(row, recipe), "reid": row.reid} if row.maker else {},
            "shares": row.shares,
            "reid": reid_figures(searches[row.key], searches.get(FULL), searches.get(REAL), row, confidence, partners),
            "validation": read_validation(grid, row),
            "quality": quality_figures(quality[row.key], quality.get(FULL), grid) if row.key in quality else None,
        }
        for row in finished
    }
    return {
        "schema": SCHEMA,
        "command": command,
        **circumstances(grid, cells),
        "last_call": {"jobs": jobs, "seconds": round(seconds, 1), "versions": versions()},
        "recipe": _placeless(recipe.model_dump(mode="json")),
        "note": paper_note(recipe),
        "seeds": list(grid.seeds),
        "generator_seeds": list(grid.generator_seeds),
        "generator_of_seed": {str(seed): grid.partner(seed) for seed in grid.seeds},
        "shared_generators": grid.shares_generators,
        "confidence": confidence,
        "data": {
            "root": crops.root.name,
            "synthetic": grid.synthetic,
            "training_crops": len(crops.train),
            "training_identities": len({crop.identity for crop in crops.train if crop.identified}),
            "query": len(crops.query),
            "gallery": len(crops.gallery),
            "test_identities": len({crop.identity for crop in crops.query}),
        },
        "fusion": {maker: _fusion(grid, maker) for maker in makers},
        "rows": rows_found,
        "best": best_use(rows_found),
        "cells": {
            Cell("reid", row.key, seed).name: {
                search: {name: percent(float(np.nanmean(values[at]))) for name, values in table.items()}
                for search, table in searches[row.key].tables.items()
            }
            for row in finished
            for at, seed in enumerate(grid.seeds)
        },
        "unfinished": [row.key for row in rows if row not in finished],
        "failed": {cell.name: why for cell, why in failed.items()},
    }


def best_use(rows: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row and use of the best mean mAP on the held-out people, the first of equals, and how many were compared.

    Rows that no generator drew for do not count. None where nobody is held out or no such row is finished. The test
    has no word in it.
    """
    compared = [
        {"row": key, "use": use, "mAP": row["validation"]["mAP"][use]["mean"]}
        for key, row in rows.items()
        if row["validation"] is not None and ROWS[key].fuses
        for use in USES
        if use in row["validation"]["mAP"]
    ]
    if not compared:
        return None
    best = max(compared, key=lambda each: each["mAP"])
    of_real = (rows.get(REAL) or {}).get("validation")
    return {
        **best,
        "compared": len(compared),
        "real_mAP": of_real["mAP"][FLIP]["mean"] if of_real else None,
        **{name: rows[best["row"]]["validation"][name] for name in ("queries", "gallery", "identities")},
    }


def circumstances(grid: Grid, cells: Sequence[Cell]) -> dict[str, Any]:
    """When, where and for how long the cells were done, by their own records, whichever call did them."""
    states = {cell: grid.state(cell) for cell in (POSE, *cells) if grid.is_done(cell)}
    seconds = {cell.name: state.get("seconds", 0.0) for cell, state in states.items()}
    times = {name: sorted(state[name] for state in states.values() if name in state) for name in ("began", "finished")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "began": times["began"][0] if times["began"] else now,
        "finished": times["finished"][-1] if times["finished"] else now,
        "seconds": {"cells": seconds, "total": round(sum(seconds.values()), 1)},
        **{
            name: sorted({each for state in states.values() for each in state.get(name, [])})
            for name in ("devices", "machines", "threads", "torch")
        },
    }


def _fusion(grid: Grid, maker: str) -> dict[str, Any]:
    """The settings of the searches with a row's generators, and what they were chosen from, if they were."""
    cell = Cell("fusion", maker)
    return {
        "settings": grid.fusion(maker).model_dump(mode="json"),
        "chosen": read_json(grid.folder(cell) / FUSION_FILE) if grid.chooses_fusion else None,
    }


def _cells(grid: Grid, row: Row) -> list[Cell]:
    made = [Cell("generator", row.maker, seed) for seed in grid.generator_seeds] if row.maker else []
    chosen = [Cell("fusion", row.maker)] if row.maker and row.fuses and grid.chooses_fusion else []
    return [*made, *chosen, *(Cell("reid", row.key, seed) for seed in grid.seeds)]


def _is_finished(grid: Grid, row: Row) -> bool:
    return all(map(grid.is_done, _cells(grid, row)))


def _placeless(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the places that say something of one machine only."""
    return recipe | {"data": recipe["data"] | {"root": None, "keypoints": None}}
