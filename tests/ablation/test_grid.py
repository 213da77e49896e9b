"""The grid's folder and the order of its cells."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posereid.ablation.grid import GRID_FILE, LOCKS, POSE, Cell, Grid, plan_grid
from posereid.ablation.locks import try_lock
from posereid.ablation.opening import open_grid
from posereid.ablation.rows import ROWS
from posereid.config import Recipe
from posereid.errors import InputError

Build = Callable[..., Recipe]


@pytest.fixture
def recipe(tiny_recipe: Build, world: Path) -> Recipe:
    return tiny_recipe(data={"root": str(world)}, reid={"epochs": 4})


def planned(recipe: Recipe, out: Path, **changes: object) -> Grid:
    arguments = {"seeds": (0, 1, 2), "generator_seeds": (5, 6), "rows": ("no-semantic",)} | changes
    return plan_grid(recipe, out, **arguments)[0]  # type: ignore[arg-type]


# --- cells -----------------------------------------------------------------------------------------------------


def test_re_id_seeds_take_the_generators_in_turn(recipe: Recipe, tmp_path: Path) -> None:
    grid = planned(recipe, tmp_path, seeds=(3, 4, 9))
    assert [grid.partner(seed) for seed in grid.seeds] == [5, 6, 5]
    assert grid.maker(Cell("reid", "no-semantic", 4)) == Cell("generator", "no-semantic", 6)
    assert grid.maker(Cell("reid", "real", 4)) is None


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_each_cell_comes_once_and_behind_those_that_it_needs(recipe: Recipe, tmp_path: Path, share: float) -> None:
    recipe = recipe.model_copy(update={"data": recipe.data.changed(validation_share=share)})
    grid = planned(recipe, tmp_path, rows=())
    cells = grid.cells()
    assert len(set(cells)) == len(cells) == len({grid.folder(cell) for cell in cells})
    for number, cell in enumerate(cells):
        assert set(grid.needs(cell)) <= set(cells[:number])
    chosen = [cell.row for cell in cells if cell.kind == "fusion"]
    assert chosen == ([row.key for row in grid.rows if row.fuses and row.shares is None] if share else [])
    for cell in cells:
        if share and cell.kind == "reid" and ROWS[cell.row].fuses:
            assert Cell("fusion", str(ROWS[cell.row].maker)) in grid.needs(cell)


def test_a_grid_has_a_network_for_each_row_and_seed_and_shared_generators_once(recipe: Recipe, tmp_path: Path) -> None:
    grid = planned(recipe, tmp_path, rows=("full-warmup", "true"))
    names = [cell.name for cell in grid.cells()]
    assert names == [
        "pose",
        *(f"reid/real/seed-{seed}" for seed in (0, 1, 2)),
        *(f"generators/full/seed-{seed}" for seed in (5, 6)),
        *(f"reid/{row}/seed-{seed}" for seed in (0, 1, 2) for row in ("full", "full-warmup")),
        *(f"generators/true/seed-{seed}" for seed in (5, 6)),
        *(f"reid/true/seed-{seed}" for seed in (0, 1, 2)),
    ]
    assert grid.needs(Cell("generator", "full", 5)) == [POSE, Cell("reid", "real", 0)]
    assert grid.needs(Cell("generator", "true", 5)) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": ()}, r"--seeds names no seed; give at least one"),
        ({"seeds": (1, 2, 1)}, r"--seeds names 1 twice"),
        ({"generator_seeds": (-1,)}, r"--generator-seeds holds -1; a seed is a whole number from 0"),
        ({"seeds": (2**32,)}, r"--seeds holds 4294967296"),
    ],
)
def test_seeds_that_make_no_grid_are_said(recipe: Recipe, tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        planned(recipe, tmp_path, **changes)


def test_a_cell_trains_in_one_process(tiny_recipe: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 devices on 1 machines.*--jobs"):
        planned(tiny_recipe(runtime={"devices": 2}), tmp_path)


# --- the folder ------------------------------------------------------------------------------------------------


def test_a_folder_is_opened_again_with_other_rows_and_more_seeds(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    open_grid(planned(recipe, out))
    open_grid(planned(recipe, out, rows=("saturating",), seeds=(0, 1, 2, 3)))
    opened = open_grid(planned(recipe, out, seeds=(0, 1)))
    record = json.loads((out / GRID_FILE).read_text())
    assert record["generator_of_seed"] == [[0, 5], [1, 6], [2, 5], [3, 6]]
    # Fusion is set with the seeds of the first call, whatever came later.
    assert opened.choosers == ((0, 5), (1, 6), (2, 5))
    reals = [cell.seed for cell in opened.cells() if cell.kind == "reid" and cell.row == "real"]
    assert reals == [0, 1]


def test_fusion_asks_for_the_networks_of_the_first_call(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"data": recipe.data.changed(validation_share=0.5)})
    out = tmp_path / "grid"
    first = open_grid(planned(recipe, out))
    later = open_grid(planned(recipe, out, seeds=(0,), rows=("saturating",)))
    assert later.choosers == first.choosers
    cells = later.cells()
    for number, cell in enumerate(cells):
        assert set(later.needs(cell)) <= set(cells[:number])
    assert Cell("reid", "real", 2) in cells
    assert Cell("reid", "saturating", 1) not in cells


def test_without_generator_seeds_each_re_id_seed_has_one_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    grid = planned(recipe, tmp_path, generator_seeds=())
    assert grid.partners == ((0, 0), (1, 1), (2, 2))
    assert not grid.shares_generators
    assert planned(recipe, tmp_path).shares_generators


def test_generator_seeds_are_added_where_every_seed_keeps_its_own(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    open_grid(planned(recipe, out, seeds=(0, 1), generator_seeds=(5, 6)))
    open_grid(planned(recipe, out, seeds=(0, 1, 2), generator_seeds=(5, 6, 7)))
    assert json.loads((out / GRID_FILE).read_text())["generator_of_seed"] == [[0, 5], [1, 6], [2, 7]]
    with pytest.raises(InputError, match="with --generator-seeds 5 6 some would change theirs"):
        open_grid(planned(recipe, out, seeds=(0, 1, 2), generator_seeds=(5, 6)))


def test_a_kill_while_the_grid_was_begun_is_no_obstacle(recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    (out / LOCKS / "grid").mkdir(parents=True)
    (out / f".{GRID_FILE}.partial-12").write_text("{")
    open_grid(planned(recipe, out))
    assert (out / GRID_FILE).exists()


def test_the_notes_say_what_no_held_out_people_and_a_richer_recipe_mean(tiny_recipe: Build, tmp_path: Path) -> None:
    recipe = tiny_recipe(losses={"structure": 0.5})
    _, notes = plan_grid(recipe, tmp_path, (0,), (), ("no-semantic",))
    assert [note for note in notes if "goes beyond the paper in losses.structure" in note]
    assert [note for note in notes if "fusion uses the recipe's settings" in note]
    held = tiny_recipe(data={"validation_share": 0.3})
    assert plan_grid(held, tmp_path, (0,), (), ("no-semantic",))[1] == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": (1, 2)}, r"was begun with --seeds 0 1 2; give these, the first of them"),
        ({"generator_seeds": (5,)}, r"with --generator-seeds 5 some would change theirs"),
    ],
)
def test_seeds_that_would_meet_other_generators_are_refused(
    recipe: Recipe, tmp_path: Path, changes: dict, sentence: str
) -> None:
    open_grid(planned(recipe, tmp_path / "grid"))
    with pytest.raises(InputError, match=sentence):
        open_grid(planned(recipe, tmp_path / "grid", **changes))


def test_a_grid_of_another_recipe_is_refused_by_its_first_difference(recipe: Recipe, tmp_path: Path) -> None:
    open_grid(planned(recipe, tmp_path / "grid"))
    other = recipe.model_copy(
        update={"losses": recipe.losses.changed(semantic=3.0), "reid": recipe.reid.changed(epochs=9)}
    )
    with pytest.raises(
        InputError, match=r"holds an ablation of another recipe \(losses\.semantic is 3\.0, was 10\.0\)"
    ):
        open_grid(planned(other, tmp_path / "grid"))


def test_where_it_runs_may_differ(recipe: Recipe, tmp_path: Path) -> None:
    open_grid(planned(recipe, tmp_path / "grid"))
    other = recipe.model_copy(update={"runtime": recipe.runtime.changed(workers=3)})
    open_grid(planned(other, tmp_path / "grid"))


def test_other_crops_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    open_grid(planned(recipe, tmp_path / "grid"))
    path = tmp_path / "grid" / GRID_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0"}))
    with pytest.raises(InputError, match="was begun on other crops"):
        open_grid(planned(recipe, tmp_path / "grid"))


def test_a_folder_of_something_else_and_a_file_are_refused_untouched(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="already holds files; an ablation"):
        open_grid(planned(recipe, tmp_path / "photos"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a file; an ablation needs a folder"):
        open_grid(planned(recipe, tmp_path / "file"))


@pytest.mark.parametrize("pairs", ["[]", "[[0]]", "[[0, 1, 2]]", '[["a", 1]]', "[[true, 1]]", "{}", "[3]", "null"])
@pytest.mark.parametrize("field", ["generator_of_seed", "fusion_chosen_with"])
def test_damaged_seeds_of_the_grid_are_said(recipe: Recipe, tmp_path: Path, field: str, pairs: str) -> None:
    out = tmp_path / "grid"
    open_grid(planned(recipe, out))
    content = json.loads((out / GRID_FILE).read_text()) | {field: json.loads(pairs)}
    (out / GRID_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"grid\.json .*{field}.*choose another folder"):
        open_grid(planned(recipe, out))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": 99}', '{"schema": 2, "recipe": []}', "\0"])
def test_a_damaged_record_of_the_grid_is_said(recipe: Recipe, tmp_path: Path, content: str) -> None:
    out = tmp_path / "grid"
    out.mkdir()
    (out / GRID_FILE).write_text(content)
    with pytest.raises(InputError, match=r"grid\.json"):
        open_grid(planned(recipe, out))


def test_a_damaged_record_of_a_cell_is_said(recipe: Recipe, tmp_path: Path) -> None:
    grid = open_grid(planned(recipe, tmp_path / "grid"))
    grid.record(POSE).parent.mkdir()
    grid.record(POSE).write_text('{"done": tr')
    with pytest.raises(InputError, match=r"pose\.json cannot be read"):
        grid.is_done(POSE)


def test_a_set_that_the_recipe_names_and_nobody_gave_is_asked_for(tiny_recipe: Build, tmp_path: Path) -> None:
    grid = planned(tiny_recipe(data={"layout": "market1501"}), tmp_path / "grid")
    with pytest.raises(InputError, match=r"data\.root is not set.*give --data\.root FOLDER, or --dry-run"):
        open_grid(grid)
    assert not (tmp_path / "grid").exists()


def test_the_world_is_rendered_once(tiny_recipe: Build, tmp_path: Path) -> None:
    small = {"identities": 4, "crops_per_identity": 4, "cameras": 2}
    grid = planned(tiny_recipe(world=small), tmp_path / "grid")
    opened = open_grid(grid)
    assert opened.recipe.data.root == (tmp_path / "grid" / "world").absolute()
    before = (tmp_path / "grid" / "world" / "world.json").stat().st_mtime_ns
    open_grid(grid)
    assert (tmp_path / "grid" / "world" / "world.json").stat().st_mtime_ns == before
    assert opened.synthetic
    assert len(opened.crops.train) > 0


def test_whoever_opens_a_grid_waits_for_the_one_that_is_at_it(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grid"
    with try_lock(out / LOCKS / "grid") as mine:
        assert mine
        thread = threading.Thread(target=open_grid, args=(planned(recipe, out),))
        thread.start()
        time.sleep(0.3)
        assert not (out / GRID_FILE).exists()
    thread.join(timeout=30)
    assert (out / GRID_FILE).exists()
    assert "waiting" in capsys.readouterr().out


# --- fusion ----------------------------------------------------------------------------------------------------


def test_without_held_out_people_fusion_is_the_recipe_s_without_d_i(recipe: Recipe, tmp_path: Path) -> None:
    fusion = recipe.evaluation.fusion.changed(weight=0.3, by_realism=True, poses=2)
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.changed(fusion=fusion)})
    grid, notes = plan_grid(recipe, tmp_path, (0,), (0,), ("no-semantic",))
    assert grid.fusion("full") == fusion.changed(by_realism=False)
    assert any("by_realism" in note for note in notes)


@pytest.mark.parametrize("content", ["{}", '{"chosen": {"weight": 7, "poses": 1}}', '{"chosen": 3}', "["])
def test_a_damaged_choice_of_fusion_is_said(recipe: Recipe, tmp_path: Path, content: str) -> None:
    recipe = recipe.model_copy(update={"data": recipe.data.changed(validation_share=0.5)})
    grid = planned(recipe, tmp_path)
    folder = grid.folder(Cell("fusion", "full"))
    folder.mkdir(parents=True)
    (folder / "fusion.json").write_text(content)
    with pytest.raises(InputError, match="fusion"):
        grid.fusion("full")


def test_rows_know_who_draws_for_them() -> None:
    assert [key for key, row in ROWS.items() if not row.fuses] == ["real", "true"]
