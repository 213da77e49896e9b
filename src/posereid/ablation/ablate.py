"""The ablation from a recipe to its tables."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from posereid.ablation.estimate import plan_text
from posereid.ablation.grid import LOCKS, plan_grid, require_jobs
from posereid.ablation.locks import waiting_lock
from posereid.ablation.opening import open_grid
from posereid.ablation.pictures import write_pictures
from posereid.ablation.results import RESULTS_FILE, summarise
from posereid.ablation.running import run_grid, stoppable
from posereid.ablation.tables import ablation_tables
from posereid.config import Recipe
from posereid.files import write_atomically
from posereid.training.devices import pick_device

TABLES_FILE = "tables.md"


def ablate(
    recipe: Recipe,
    out: Path,
    seeds: Sequence[int],
    generator_seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    *,
    jobs: int = 1,
    command: str = "posereid ablate",
    progress: bool = True,
) -> bool:
    """Do every cell of the grid that is not done, and write results.json, tables.md and pictures to ``out``.

    Without ``generator_seeds`` each re-ID seed has a generator of the same seed. ``rows`` are keys of
    :data:`~posereid.ablation.rows.ROWS`, without any all that the recipe allows. Returns whether all cells came to
    their end; those that did not are named, with the reason. Raises InputError for arguments that
    make no grid and for the folder of another one, and Stopped after Ctrl-C.
    """
    start = time.perf_counter()
    # Before a world is rendered.
    require_jobs(jobs)
    planned, notes = plan_grid(recipe, out, seeds, generator_seeds, rows)
    pick_device(recipe.runtime)
    with stoppable(out):
        grid = open_grid(planned)
        for note in notes:
            print(note)
        failed = run_grid(grid, jobs, progress=progress)
    # Machines that share the folder come to the end at about the same moment; the last one knows all cells.
    with waiting_lock(out / LOCKS / "results", "writes the results"):
        results = summarise(grid, command=command, jobs=jobs, seconds=time.perf_counter() - start, failed=failed)
        write_atomically(out / RESULTS_FILE, json.dumps(results, indent=1, allow_nan=False) + "\n")
        tables = ablation_tables(results)
        text = "\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items())
        write_atomically(out / TABLES_FILE, text + "\n")
        pictures = write_pictures(grid, results)
    for cell, why in failed.items():
        print(f"{cell.name} could not be done: {why}")
    print(tables["table3"])
    print(f"Written: {', '.join(str(path) for path in (out / RESULTS_FILE, out / TABLES_FILE, *pictures))}.")
    if failed:
        print(f"{len(failed)} cells could not be done; the same command tries them again.")
    return not failed


def plan(
    recipe: Recipe,
    out: Path,
    seeds: Sequence[int],
    generator_seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    *,
    jobs: int = 1,
) -> str:
    """What :func:`ablate` would do, in how many steps, and about how long; writes nothing. Raises InputError."""
    grid, notes = plan_grid(recipe, out, seeds, generator_seeds, rows)
    return "\n".join([*notes, plan_text(grid, jobs)])
