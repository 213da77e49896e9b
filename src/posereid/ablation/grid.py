"""The grid on disk: its folder, its cells, and which cells wait for which."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from posereid.ablation.rows import FULL, REAL, ROWS, Row, choose_rows, paper_note
from posereid.config import DataRecipe, FusionRecipe, Recipe, parse_recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.validation import without_validation
from posereid.errors import InputError
from posereid.messages import shown

GRID_FILE = "grid.json"
FUSION_FILE = "fusion.json"
LOCKS = "locks"
CELLS = "cells"
"""Beside the cells' folders, which belong to their runs: what became of each cell."""

DRAWINGS = "drawings"
WORLD = "world"

_LARGEST = 2**24
_LARGEST_SEED = 2**32 - 1

Kind = Literal["pose", "reid", "generator", "fusion"]


@dataclass(frozen=True)
class Cell:
    """One unit of work with a folder of its own: the pose estimator, a re-ID network and its searches, a generator with
    its pictures, or the choice of the settings with which a row's generators are searched with.
    """

    kind: Kind
    row: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder inside the grid's."""
        folders = {"generator": "generators", "reid": "reid"}
        if self.kind in folders:
            return f"{folders[self.kind]}/{self.row}/seed-{self.seed}"
        return f"{self.kind}/{self.row}" if self.row else self.kind


POSE = Cell("pose")


@dataclass(frozen=True)
class Grid:
    """What is measured, and where it lies: the same in every process.

    The i-th re-ID seed goes with the generator of seed ``generator_seeds[i mod their number]``. With one generator for
    each re-ID seed, intervals over seeds hold both kinds of chance; with fewer they are for these generators alone.
    ``choosing`` are the re-ID seeds with which fusion is set, and the generators' seeds that go with them: those of the
    call that began the folder, whatever seeds came later.
    """

    recipe: Recipe
    out: Path
    seeds: tuple[int, ...]
    generator_seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    choosing: tuple[tuple[int, int], ...] = ()

    def folder(self, cell: Cell) -> Path:
        """Where a cell lies."""
        return self.out / cell.name

    @property
    def crops(self) -> CropTable:
        """The real crops, without the identities that are held out for validation."""
        return _crops(self.recipe.data)

    @property
    def synthetic(self) -> bool:
        """Whether the set is a rendered world, whose true renders can be had."""
        return is_synthetic(self.recipe)

    @property
    def chooses_fusion(self) -> bool:
        """Whether settings of fusion are chosen, for which people must be held out."""
        return self.recipe.data.validation_share > 0

    @property
    def judge(self) -> Cell:
        """The network that says whether generated pictures keep their identity: it never saw one."""
        return Cell("reid", REAL, self.seeds[0])

    def partner(self, seed: int) -> int:
        """The generator's seed that goes with a re-ID seed."""
        return self.generator_seeds[self.seeds.index(seed) % len(self.generator_seeds)]

    @property
    def partners(self) -> tuple[tuple[int, int], ...]:
        """Each re-ID seed with its generator's."""
        return tuple((seed, self.partner(seed)) for seed in self.seeds)

    @property
    def shares_generators(self) -> bool:
        """Whether several re-ID seeds have one generator, so that they are not independent."""
        return len({generator for _, generator in self.partners}) < len(self.seeds)

    @property
    def choosers(self) -> tuple[tuple[int, int], ...]:
        """The pairs of seeds with which fusion is set; before the folder is opened, those of the call."""
        return self.choosing or self.partners

    def maker(self, cell: Cell) -> Cell | None:
        """The cell whose generated crops a re-ID cell trains on; None for real crops only."""
        maker = ROWS[cell.row].maker
        return None if maker is None else Cell("generator", maker, self.partner(cell.seed))

    def cells(self) -> list[Cell]:
        """All of them, in the order in which they are best begun: what others wait for first, then row by row."""
        wanted = [POSE, *(Cell("reid", REAL, seed) for seed in self.seeds)]
        # All that one maker's drawings serve together, seed by seed, so that few drawings lie on the disk at a time.
        makers = dict.fromkeys(row.maker for row in sorted(self.rows, key=lambda row: row.key != FULL))
        for maker in filter(None, makers):
            rows = [row.key for row in self.rows if row.maker == maker]
            wanted += [Cell("generator", maker, seed) for seed in self.generator_seeds]
            wanted += [Cell("reid", key, seed) for seed in self.seeds for key in rows]
        found: dict[Cell, None] = {}
        for cell in wanted:
            self._add(cell, found)
        return list(found)

    def _add(self, cell: Cell, found: dict[Cell, None]) -> None:
        if cell not in found:
            for need in self.needs(cell):
                self._add(need, found)
            found[cell] = None

    def needs(self, cell: Cell) -> list[Cell]:
        """The cells that must be done before this one can begin."""
        if cell.kind == "generator" and ROWS[cell.row].drawn_by == "generator":
            return [POSE, self.judge]
        if cell.kind == "fusion":
            reals = [Cell("reid", REAL, seed) for seed, _ in self.choosers]
            return [*reals, *dict.fromkeys(Cell("generator", cell.row, seed) for _, seed in self.choosers)]
        maker = self.maker(cell) if cell.kind == "reid" else None
        if maker is None:
            return []
        found = [maker, Cell("reid", REAL, cell.seed)]
        return [*found, Cell("fusion", maker.row)] if self.chooses_fusion and ROWS[cell.row].fuses else found

    def drawings(self, maker: Cell) -> Path:
        """Where a generator's drawings of test and held-out people lie while networks search with them."""
        return self.out / DRAWINGS / maker.row / f"seed-{maker.seed}"

    def drawings_needed(self, maker: Cell) -> bool:
        """Whether a cell of this grid that is not done searches with a generator's drawings."""
        rows = [row for row in self.rows if row.fuses and row.maker == maker.row]
        users = [Cell("reid", row.key, seed) for row in rows for seed, own in self.partners if own == maker.seed]
        if self.chooses_fusion and maker.seed in [own for _, own in self.choosers]:
            users.append(Cell("fusion", maker.row))
        return not all(map(self.is_done, users))

    def record(self, cell: Cell) -> Path:
        """The file that says what became of a cell."""
        return self.out / CELLS / f"{cell.name}.json"

    def state(self, cell: Cell) -> dict[str, Any]:
        """What the cell's file says of it; nothing before its first attempt. Raises InputError for a damaged file."""
        path = self.record(cell)
        return read_json(path) if path.exists() else {}

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell has come to its end; a user who deletes its folder has it done again."""
        return self.state(cell).get("done") is True and self.folder(cell).is_dir()

    def fusion(self, maker: str) -> FusionRecipe:
        """Settings of fusion with a row's generators: those chosen for them on the held-out identities, or the recipe's
        where nobody is held out.

        D_I has no word in them, since not every row has one. Raises InputError where they are not chosen yet.
        """
        own = self.recipe.evaluation.fusion.changed(by_realism=False)
        if not self.chooses_fusion:
            return own
        folder = self.folder(Cell("fusion", maker))
        chosen = read_json(folder / FUSION_FILE).get("chosen") if (folder / FUSION_FILE).exists() else None
        if not isinstance(chosen, dict) or set(chosen) != {"weight", "poses"}:
            raise InputError(f"{folder} holds no choice of settings; delete it and go on.")
        # Through the parser: a damaged file must end in a sentence.
        content = self.recipe.model_dump()
        content["evaluation"]["fusion"] |= {**chosen, "by_realism": False}
        return parse_recipe(content, str(folder / FUSION_FILE)).evaluation.fusion


@cache
def _crops(data: DataRecipe) -> CropTable:
    return without_validation(every_crop(data), data.validation_share)


@cache
def every_crop(data: DataRecipe) -> CropTable:
    """The whole set, held-out identities included."""
    assert data.root is not None
    return load_crops(data.root, data.layout, data.keypoints)


def renders_world(recipe: Recipe) -> bool:
    """Whether a recipe's set is the world that it describes: it names neither a folder nor a layout."""
    return recipe.data.root is None and recipe.data.layout == "auto"


def is_synthetic(recipe: Recipe) -> bool:
    """Whether true renders of the recipe's set can be made."""
    return renders_world(recipe) or (recipe.data.root is not None and (recipe.data.root / "world.json").is_file())


def checked_seeds(field: str, seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds. Raises InputError where there is none, one comes twice, or one is out of range."""
    if not seeds:
        raise InputError(f"{field} names no seed; give at least one, for example {field} 0 1.")
    for seed in seeds:
        if not 0 <= seed <= _LARGEST_SEED:
            raise InputError(f"{field} holds {shown(seed)}; a seed is a whole number from 0 to {_LARGEST_SEED}.")
        if list(seeds).count(seed) > 1:
            raise InputError(f"{field} names {seed} twice; give each seed once.")
    return tuple(seeds)


def require_jobs(jobs: int) -> None:
    """Raise InputError where not even one cell at a time may be done."""
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; at least one cell at a time is needed.")


def plan_grid(
    recipe: Recipe, out: Path, seeds: Sequence[int], generator_seeds: Sequence[int], rows: Sequence[str]
) -> tuple[Grid, tuple[str, ...]]:
    """The grid that was asked for, and what is to be said of it; touches no file.

    Without ``generator_seeds`` they are those of the re-ID training, one generator each. Raises InputError.
    """
    if recipe.runtime.devices * recipe.runtime.num_nodes > 1:
        raise InputError(
            f"runtime asks for {recipe.runtime.devices} devices on {recipe.runtime.num_nodes} machines, and a cell "
            "trains in one process; leave both at 1 and give --jobs, or start the same command on each machine."
        )
    chosen, notes = choose_rows(recipe, rows, synthetic=is_synthetic(recipe))
    if note := paper_note(recipe):
        notes = (*notes, note)
    if not recipe.data.validation_share:
        notes = (
            *notes,
            "Nobody is held out (data.validation_share is 0): fusion uses the recipe's settings, and no best use of "
            "generated crops is chosen.",
        )
    if recipe.evaluation.fusion.by_realism:
        notes = (*notes, "evaluation.fusion.by_realism is left out: not every row has a D_I to ask.")
    named = checked_seeds("--seeds", seeds), checked_seeds("--generator-seeds", generator_seeds or seeds)
    return Grid(recipe, out.absolute(), *named, chosen), notes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the grid. Raises InputError for a file that is missing, too large or none."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        found = json.loads(content) if len(content) <= _LARGEST else None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "not JSON, or cut short"
        raise InputError(f"{path} cannot be read ({why}); delete it and give the same command again.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is no JSON object of posereid ablate; delete it and give the same command again.")
    return found
