"""Dry runs: what a grid takes, without doing any of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posereid.ablation import estimate, measuring
from posereid.ablation.ablate import plan
from posereid.ablation.estimate import Counts, cell_seconds, count_crops, steps_of
from posereid.ablation.grid import FUSION_FILE, POSE, Cell, Grid, plan_grid
from posereid.ablation.measuring import Seconds, measure
from posereid.ablation.opening import open_grid
from posereid.ablation.rows import FULL, ROWS
from posereid.cli import main
from posereid.config import Recipe, bundled_recipes, read_recipe
from posereid.data.layouts import load_crops
from posereid.errors import InputError

Build = Callable[..., Recipe]

RECIPES = sorted(path.stem for path in bundled_recipes().glob("*.yaml"))
FIXED = Seconds(dict.fromkeys(ROWS, 2.0), 3.0, 5.0, 0.01, 0.001, 0.1, ())


def named(name: str) -> Recipe:
    return read_recipe(bundled_recipes() / f"{name}.yaml")


def grid_of(recipe: Recipe, out: Path, rows: tuple[str, ...] = ()) -> Grid:
    return plan_grid(recipe, out, (0, 1, 2), (0, 1), rows)[0]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_plan_without_its_data_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "measure", lambda grid, identities: FIXED)
    recipe = named(name)
    text = plan(recipe, tmp_path / "out", (0, 1, 2), (0, 1), jobs=2)
    steps = recipe.joint.epochs * (recipe.joint.pairs_per_epoch // recipe.joint.batch_size)
    assert f"{steps:,}" in text
    assert all(row.key in text for row in ROWS.values())
    assert "3 re-ID and 2 generator seeds" in text
    assert not (tmp_path / "out").exists()
    if recipe.data.layout == "market1501":
        assert "assumed are the 751 identities and 12,936 crops of Market-1501" in text
        assert "Row true is left out" in text


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "smoke"])
def test_every_recipe_s_steps_can_be_measured(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["ablate", str(bundled_recipes() / f"{name}.yaml"), "--out", str(tmp_path / "out"), "--dry-run"])
    assert "joint step" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_command_measures_real_steps_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    recipe = str(bundled_recipes() / "smoke.yaml")
    main(["ablate", recipe, "--out", str(out), "--dry-run", "--seeds", "0", "1", "--rows", "blocks-3", "texture"])
    said = capsys.readouterr().out
    assert "4 rows with 2 re-ID and 2 generator seeds: 15 cells, 0 of them done." in said
    assert "joint step" in said
    assert not out.exists()


def test_pretrained_weights_are_never_fetched(tiny_recipe: Build, tmp_path: Path) -> None:
    # There are none for this backbone: fetching them would fail.
    recipe = tiny_recipe(embedder={"pretrained": True}, pose_estimator={"backbone": "test_resnet", "width": 4})
    found = measure(grid_of(recipe, tmp_path, ("no-semantic",)), 8)
    assert set(found.joint) == {"full", "no-semantic"}
    assert min(*found.joint.values(), found.reid, found.pose, found.draw, found.embed) > 0


def test_what_takes_too_long_to_measure_is_taken_over_from_the_full_model(
    tiny_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_MEASURING_SECONDS", -1.0)
    recipe = tiny_recipe(pose_estimator={"backbone": "test_resnet", "width": 4})
    found = measure(grid_of(recipe, tmp_path, ("no-semantic",)), 8)
    assert found.taken_over == ("no-semantic",)
    assert found.joint["no-semantic"] == found.joint[FULL]


def test_crops_are_counted_where_the_set_is_at_hand(tiny_recipe: Build, world: Path, tmp_path: Path) -> None:
    table = load_crops(world)
    recipe = tiny_recipe(data={"root": str(world), "validation_share": 0.5})
    counts = count_crops(grid_of(recipe, tmp_path))
    assert counts.identities == 2
    assert counts.training_crops + counts.held_out_crops == len(table.train)
    assert counts.test_crops == len(table.query) + len(table.gallery)


def test_steps_are_those_of_the_trainings(tiny_recipe: Build, tmp_path: Path) -> None:
    recipe = tiny_recipe(pose_estimator={"epochs": 3, "batch_size": 4})
    steps = steps_of(grid_of(recipe, tmp_path), Counts(8, 64, 0, 64, ""))
    assert steps == {"joint": 2 * 2, "reid": 2 * 2, "pose": 3 * (58 // 4)}


def test_a_cell_s_time_is_its_steps_and_the_crops_that_it_draws_and_embeds(tiny_recipe: Build, tmp_path: Path) -> None:
    recipe = tiny_recipe(evaluation={"pairs": 10, "fusion": {"poses": 2}}, augmentation={"poses_per_crop": 3})
    grid = grid_of(recipe, tmp_path, ("true",))
    counts, steps = Counts(8, 100, 20, 50, ""), {"joint": 7, "reid": 11, "pose": 13}

    def seconds(cell: Cell) -> float:
        return cell_seconds(grid, cell, counts, steps, FIXED)

    assert seconds(POSE) == 13 * 5.0
    assert seconds(Cell("generator", "full", 0)) == pytest.approx(7 * 2.0 + (300 + 30) * 0.01 + 4 * 50 * 0.001)
    assert seconds(Cell("generator", "true", 0)) == pytest.approx(300 * 0.1)
    assert seconds(Cell("reid", "real", 0)) == pytest.approx(11 * 3.0 + 70 * 2 * 0.001)
    assert seconds(Cell("reid", "true", 0)) == seconds(Cell("reid", "real", 0))
    # Test and held-out people by its own network, the test by the one that saw real crops only; drawn once.
    embedded = (70 + 50) * 6 * 0.001
    assert seconds(Cell("reid", "full", 0)) == pytest.approx(11 * 3.0 + embedded + 50 * 2 * 0.01)
    assert seconds(Cell("reid", "full", 2)) == pytest.approx(11 * 3.0 + embedded)
    assert seconds(Cell("fusion", "full")) == pytest.approx(3 * 20 * (2 * 0.001 + 8 * (0.01 + 2 * 0.001)))


def test_searches_are_counted_with_the_poses_chosen_and_with_the_most_before(
    tiny_recipe: Build, tmp_path: Path
) -> None:
    grid = grid_of(tiny_recipe(data={"validation_share": 0.3}), tmp_path, ("true",))
    counts, steps = Counts(8, 100, 20, 50, ""), {"joint": 7, "reid": 11, "pose": 13}
    cell, fusion = Cell("reid", "full", 2), Cell("fusion", "full")
    assert cell_seconds(grid, cell, counts, steps, FIXED) == pytest.approx(11 * 3.0 + (70 + 50) * 18 * 0.001)
    for path, content in (
        (grid.record(fusion), {"done": True}),
        (grid.folder(fusion) / FUSION_FILE, {"chosen": {"weight": 0.5, "poses": 4}}),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    assert cell_seconds(grid, cell, counts, steps, FIXED) == pytest.approx(11 * 3.0 + (70 + 50) * 10 * 0.001)


def test_a_true_render_is_measured(tiny_recipe: Build, world: Path, tmp_path: Path) -> None:
    for data in ({}, {"root": str(world)}):
        recipe = tiny_recipe(data=data, pose_estimator={"backbone": "test_resnet", "width": 4})
        assert measure(grid_of(recipe, tmp_path, ("true",)), 8).render > 0
    assert measure(grid_of(recipe, tmp_path, ("no-semantic",)), 8).render == 0


def test_a_plan_for_the_folder_of_another_grid_is_refused_and_jobs_must_be_positive(
    tiny_recipe: Build, world: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(data={"root": str(world)})
    grid = grid_of(recipe, tmp_path / "grid", ("no-semantic",))
    open_grid(grid)
    other = recipe.model_copy(update={"seed": 5})
    with pytest.raises(InputError, match=r"another recipe \(seed is 5, was 0\)"):
        plan(other, tmp_path / "grid", (0, 1, 2), (0, 1))
    with pytest.raises(InputError, match="--jobs is 0"):
        plan(recipe, tmp_path / "grid", (0, 1, 2), (0, 1), jobs=0)
