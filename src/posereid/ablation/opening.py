"""A grid's folder: begun, or taken up again where recipe, crops and seeds agree."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posereid.ablation.grid import GRID_FILE, LOCKS, WORLD, Grid, every_crop, read_json, renders_world
from posereid.ablation.locks import waiting_lock
from posereid.config import READ_BY
from posereid.data.synthetic import synthesize
from posereid.errors import InputError
from posereid.files import require_free, write_atomically
from posereid.messages import shown

SCHEMA = 2


def open_grid(grid: Grid) -> Grid:
    """The grid in its folder, new or begun, with its world rendered. Raises InputError for the folder of another one.

    A folder may be opened with other rows, and with more seeds behind those that it was begun with, as long as every
    re-ID seed keeps its generator.
    """
    out, path = grid.out, grid.out / GRID_FILE
    if not path.exists() and out.exists():
        if not out.is_dir():
            raise InputError(f"{out} is a file; an ablation needs a folder, so choose another.")
        require_free(out, "an ablation", LOCKS)
    if not renders_world(grid.recipe) and grid.recipe.data.root is None:
        raise InputError(
            f"data.root is not set, and the recipe's set is {grid.recipe.data.layout}; give --data.root FOLDER, or "
            "--dry-run for a plan without it."
        )
    with waiting_lock(out / LOCKS / "grid", "prepares this grid"):
        known = require_agreement(grid, read_json(path)) if path.exists() else None
        data = grid.recipe.data
        fingerprint = None if data.root is None else every_crop(data).fingerprint
        if known and known.get("fingerprint") != fingerprint:
            raise InputError(f"{out} was begun on other crops than those of {data.root}; choose another folder.")
        before = _pairs(path, known, "generator_of_seed") if known else ()
        choosing = _pairs(path, known, "fusion_chosen_with") if known else grid.partners
        record = {
            "schema": SCHEMA,
            "recipe": grid.recipe.model_dump(mode="json"),
            "generator_of_seed": max(before, grid.partners, key=len),
            "fusion_chosen_with": choosing,
            "fingerprint": fingerprint,
        }
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        if data.root is None:
            root = out / WORLD
            if not root.exists():
                synthesize(
                    root,
                    **grid.recipe.world.model_dump(),
                    height=grid.recipe.data.height,
                    seed=grid.recipe.seed,
                    progress=True,
                )
            data = data.changed(root=root, layout="market1501")
    return replace(grid, recipe=grid.recipe.model_copy(update={"data": data}), choosing=choosing)


def require_agreement(grid: Grid, known: dict[str, Any]) -> dict[str, Any]:
    """What the folder's file says, if this grid may go on there. Raises InputError."""
    path = grid.out / GRID_FILE
    if known.get("schema") != SCHEMA or not isinstance(known.get("recipe"), dict):
        raise InputError(f"{path} was not written by this version of posereid ablate; choose another folder.")
    if difference := first_difference(known["recipe"], grid.recipe.model_dump(mode="json")):
        raise InputError(f"{grid.out} holds an ablation of another recipe ({difference}); choose another folder.")
    before = _pairs(path, known, "generator_of_seed")
    _pairs(path, known, "fusion_chosen_with")
    seeds, generator_seeds = ([pair[column] for pair in before] for column in (0, 1))
    if any(old != new for old, new in zip(seeds, grid.seeds, strict=False)):
        raise InputError(
            f"{grid.out} was begun with --seeds {_listed(seeds)}; give these, the first of them, or these and more "
            "behind them."
        )
    if any(old != new for old, new in zip(before, grid.partners, strict=False)):
        raise InputError(
            f"{grid.out} was begun with generators of the seeds {_listed(generator_seeds)} for the re-ID seeds "
            f"{_listed(seeds)}, and with --generator-seeds {_listed(grid.generator_seeds)} some would change theirs; "
            "give generator seeds with which each keeps its own, or choose another folder."
        )
    return known


def _pairs(path: Path, known: dict[str, Any], field: str) -> tuple[tuple[int, int], ...]:
    """Pairs of a re-ID seed and a generator's, as the folder's file names them. Raises InputError."""
    found = known.get(field)
    if not isinstance(found, list) or not found:
        raise InputError(f"{path} names no {field}; choose another folder.")
    for pair in found:
        if not isinstance(pair, list) or [type(seed) for seed in pair] != [int, int]:
            raise InputError(
                f"{path} holds {shown(pair)} in {field}, which is no pair of seeds; choose another folder."
            )
    return tuple((seed, generator) for seed, generator in found)


def first_difference(known: dict[str, Any], given: dict[str, Any], place: str = "") -> str | None:
    """The first field in which two recipes differ, as ``field is NEW, was OLD``.

    Where and how it runs does not count, nor what no cell reads, nor where the set lies: what is in it is compared by
    its fingerprint.
    """
    for name in dict.fromkeys((*given, *known)):
        field = f"{place}{name}"
        if field in ("runtime", "safety", "data.root", "data.keypoints") or not (place or field in READ_BY["ablation"]):
            continue
        old, new = known.get(name), given.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := first_difference(old, new, f"{field}."):
                return inner
        elif old != new:
            return f"{field} is {shown(new)}, was {shown(old)}"
    return None


def _listed(seeds: Sequence[Any]) -> str:
    return " ".join(map(shown, seeds[:10]))
