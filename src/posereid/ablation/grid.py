"""The grid on disk: its folder, its cells, and which cells wait for which."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from posereid.ablation.locks import waiting_lock
from posereid.ablation.rows import FULL, REAL, ROWS, Row, choose_rows
from posereid.config import DataRecipe, FusionRecipe, Recipe, parse_recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.data.validation import without_validation
from posereid.errors import InputError
from posereid.files import require_free, write_atomically
from posereid.messages import shown

GRID_FILE = "grid.json"
CELL_FILE = "cell.json"
FUSION_FILE = "fusion.json"
LOCKS = "locks"
WORLD = "world"
SCHEMA = 1

_LARGEST = 2**24
_LARGEST_SEED = 2**32 - 1

Kind = Literal["pose", "reid", "generator", "fusion"]


@dataclass(frozen=True)
class Cell:
    """One unit of work with a folder of its own: the pose estimator, a re-ID network and its searches, a generator with
    its pictures, or the choice of fusion's settings.
    """

    kind: Kind
    row: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder inside the grid's."""
        folders = {"generator": "generators", "reid": "reid"}
        return f"{folders[self.kind]}/{self.row}/seed-{self.seed}" if self.kind in folders else self.kind


POSE, FUSION = Cell("pose"), Cell("fusion")


@dataclass(frozen=True)
class Grid:
    """What is measured, and where it lies: the same in every process.

    The i-th re-ID seed goes with the generator of seed ``generator_seeds[i mod their number]``, so that intervals over
    seeds hold both kinds of chance.
    """

    recipe: Recipe
    out: Path
    seeds: tuple[int, ...]
    generator_seeds: tuple[int, ...]
    rows: tuple[Row, ...]

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

    def maker(self, cell: Cell) -> Cell | None:
        """The cell whose generated crops a re-ID cell trains on; None for real crops only."""
        maker = ROWS[cell.row].maker
        return None if maker is None else Cell("generator", maker, self.partner(cell.seed))

    def cells(self) -> list[Cell]:
        """All of them, in the order in which they are best begun: what others wait for first, then row by row."""
        found = [POSE, *(Cell("reid", REAL, seed) for seed in self.seeds)]
        for row in sorted(self.rows, key=lambda row: row.key != FULL):
            if row.maker is None:
                continue
            found += [Cell("generator", row.maker, seed) for seed in self.generator_seeds]
            if row.key == FULL and self.chooses_fusion:
                found.append(FUSION)
            found += [Cell("reid", row.key, seed) for seed in self.seeds]
        return list(dict.fromkeys(found))

    def needs(self, cell: Cell) -> list[Cell]:
        """The cells that must be done before this one can begin."""
        if cell.kind == "generator" and ROWS[cell.row].drawn_by == "generator":
            return [POSE, self.judge]
        if cell.kind == "fusion":
            reals = [Cell("reid", REAL, seed) for seed in self.seeds]
            return [*reals, *(Cell("generator", FULL, seed) for seed in self.generator_seeds)]
        maker = self.maker(cell) if cell.kind == "reid" else None
        if maker is None:
            return []
        found = [maker, Cell("reid", REAL, cell.seed)]
        return [*found, FUSION] if self.chooses_fusion and ROWS[cell.row].fuses else found

    def state(self, cell: Cell) -> dict[str, Any]:
        """What the cell's file says of it; nothing before it has begun. Raises InputError for a damaged file."""
        path = self.folder(cell) / CELL_FILE
        return read_json(path) if path.exists() else {}

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell has come to its end."""
        return self.state(cell).get("done") is True

    def fusion(self) -> FusionRecipe:
        """Settings of fusion: those chosen on the held-out identities, or the recipe's where nobody is held out.

        D_I has no word in them, since not every row has one. Raises InputError where they are not chosen yet.
        """
        own = self.recipe.evaluation.fusion.changed(by_realism=False)
        if not self.chooses_fusion:
            return own
        chosen = read_json(self.folder(FUSION) / FUSION_FILE).get("chosen")
        if not isinstance(chosen, dict) or set(chosen) != {"weight", "poses"}:
            raise InputError(f"{self.folder(FUSION)} holds no choice of settings; delete it and go on.")
        # Through the parser: a damaged file must end in a sentence.
        content = self.recipe.model_dump()
        content["evaluation"]["fusion"] |= {**chosen, "by_realism": False}
        return parse_recipe(content, str(self.folder(FUSION) / FUSION_FILE)).evaluation.fusion


@cache
def _crops(data: DataRecipe) -> CropTable:
    return without_validation(every_crop(data), data.validation_share)


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


def plan_grid(
    recipe: Recipe, out: Path, seeds: Sequence[int], generator_seeds: Sequence[int], rows: Sequence[str]
) -> tuple[Grid, tuple[str, ...]]:
    """The grid that was asked for, and what is to be said of it; touches no file. Raises InputError."""
    if recipe.runtime.devices * recipe.runtime.num_nodes > 1:
        raise InputError(
            f"runtime asks for {recipe.runtime.devices} devices on {recipe.runtime.num_nodes} machines, and a cell "
            "trains in one process; leave both at 1 and give --jobs, or start the same command on each machine."
        )
    chosen, notes = choose_rows(recipe, rows, synthetic=is_synthetic(recipe))
    if recipe.evaluation.fusion.by_realism:
        notes = (*notes, "evaluation.fusion.by_realism is left out: not every row has a D_I to ask.")
    named = checked_seeds("--seeds", seeds), checked_seeds("--generator-seeds", generator_seeds)
    return Grid(recipe, out.absolute(), *named, chosen), notes


def open_grid(grid: Grid) -> Grid:
    """The grid in its folder, new or begun, with its world rendered. Raises InputError for the folder of another one.

    A folder may be opened with other rows, and with more seeds behind those that it was begun with.
    """
    out, path = grid.out, grid.out / GRID_FILE
    if not path.exists() and out.exists():
        if not out.is_dir():
            raise InputError(f"{out} is a file; an ablation needs a folder, so choose another.")
        if {each.name for each in out.iterdir()} - {LOCKS}:
            require_free(out, "an ablation")
    if not renders_world(grid.recipe) and grid.recipe.data.root is None:
        raise InputError(
            f"data.root is not set, and the recipe's set is {grid.recipe.data.layout}; give --data.root FOLDER, or "
            "--dry-run for a plan without it."
        )
    with waiting_lock(out / LOCKS / "grid"):
        known = require_agreement(grid, read_json(path)) if path.exists() else None
        data = grid.recipe.data
        fingerprint = None if data.root is None else every_crop(data).fingerprint
        if known and known.get("fingerprint") != fingerprint:
            raise InputError(f"{out} was begun on other crops than those of {data.root}; choose another folder.")
        seeds = max(grid.seeds, tuple((known or {}).get("seeds", ())), key=len)
        record = {
            "schema": SCHEMA,
            "recipe": grid.recipe.model_dump(mode="json"),
            "seeds": seeds,
            "generator_seeds": grid.generator_seeds,
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
    return Grid(grid.recipe.model_copy(update={"data": data}), out, grid.seeds, grid.generator_seeds, grid.rows)


def require_agreement(grid: Grid, known: dict[str, Any]) -> dict[str, Any]:
    """What the folder's file says, if this grid may go on there. Raises InputError."""
    path = grid.out / GRID_FILE
    if known.get("schema") != SCHEMA or not isinstance(known.get("recipe"), dict):
        raise InputError(f"{path} was not written by this version of posereid ablate; choose another folder.")
    if difference := first_difference(known["recipe"], grid.recipe.model_dump(mode="json")):
        raise InputError(f"{grid.out} holds an ablation of another recipe ({difference}); choose another folder.")
    seeds, generator_seeds = known.get("seeds"), known.get("generator_seeds")
    if not isinstance(seeds, list) or not isinstance(generator_seeds, list):
        raise InputError(f"{path} names no seeds; choose another folder.")
    if generator_seeds != list(grid.generator_seeds):
        raise InputError(
            f"{grid.out} was begun with --generator-seeds {_listed(generator_seeds)}, and every re-ID seed has "
            "its generator; give the same, or choose another folder."
        )
    if any(old != new for old, new in zip(seeds, grid.seeds, strict=False)):
        raise InputError(
            f"{grid.out} was begun with --seeds {_listed(seeds)}; give these, the first of them, or these and more "
            "behind them, so that each keeps its generator."
        )
    return known


def first_difference(known: dict[str, Any], given: dict[str, Any], place: str = "") -> str | None:
    """The first field in which two recipes differ, as ``field is NEW, was OLD``.

    Where and how it runs does not count, nor where the set lies; what is in it is compared by its fingerprint.
    """
    for name in dict.fromkeys((*given, *known)):
        field = f"{place}{name}"
        if field in ("runtime", "safety", "data.root", "data.keypoints"):
            continue
        old, new = known.get(name), given.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := first_difference(old, new, f"{field}."):
                return inner
        elif old != new:
            return f"{field} is {shown(new)}, was {shown(old)}"
    return None


def _listed(seeds: Any) -> str:
    return " ".join(map(shown, seeds[:10]))


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
