"""The whole grid on a tiny world: from nothing to results, tables and pictures, and on from where it was stopped."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from posereid.ablation.ablate import TABLES_FILE, ablate
from posereid.ablation.grid import DRAWINGS, LOCKS, POSE, Cell, Grid, every_crop, plan_grid
from posereid.ablation.locks import try_lock
from posereid.ablation.opening import open_grid
from posereid.ablation.results import RESULTS_FILE
from posereid.ablation.tables import ablation_tables, filled
from posereid.ablation.work import (
    GENERATED,
    QUALITY_FILE,
    SEARCH_ONLY,
    SHEET_FILE,
    VALIDATION_FILE,
    choose,
    clear_drawings,
    work,
)
from posereid.augmentation.sets import read_manifest
from posereid.cli import main
from posereid.config import Recipe, Stage, read_recipe, write_recipe
from posereid.curves import read_log
from posereid.data.validation import validation_identities
from posereid.errors import InputError, Stopped
from posereid.evaluation.fusion_choice import tune_fusion
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.per_query import QueryFigures
from posereid.files import write_atomically
from posereid.fusion.drawings import draw_pose
from posereid.training import joint
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint

Build = Callable[..., Recipe]

SEEDS, GENERATOR_SEEDS, ROWS = (0, 1), (3,), ("true",)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Build) -> Recipe:
    estimator = {"backbone": "test_resnet", "width": 4, "epochs": 1, "batch_size": 8, "log_every": 1}
    return tiny_recipe(
        data={"validation_share": 0.3},
        world={"identities": 16, "crops_per_identity": 6, "cameras": 3},
        joint={"epochs": 3},
        pose_estimator=estimator,
        evaluation={"resamples": 100, "pairs": 8},
    )


@pytest.fixture(scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Without the pages of evaluations, which have tests of their own and take most of a tiny cell's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posereid.evaluation_report.write_evaluation_report", lambda *_, **__: None)
        yield patch


@pytest.fixture(scope="module")
def read() -> set[str]:
    """What the grid read of its recipe."""
    return set()


@pytest.fixture(scope="module")
def finished(
    recipe: Recipe,
    quick: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    reading: Callable[[], AbstractContextManager[set[str]]],
    read: set[str],
) -> Grid:
    """A grid that was stopped in the midst of its generator's training and then brought to its end."""
    out = tmp_path_factory.mktemp("ablations") / "grid"
    torch.set_num_threads(1)
    step = joint.training_step

    def stopped(networks: Any, batch: Any, recipe: Recipe, number: int, fabric: Any) -> Any:
        if number == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(networks, batch, recipe, number, fabric)

    with pytest.MonkeyPatch.context() as patch, reading() as begun:
        patch.setattr(joint, "training_step", stopped)
        with pytest.raises(Stopped, match="the same command goes on there"):
            ablate(recipe, out, SEEDS, GENERATOR_SEEDS, ROWS, progress=False)
    assert not (out / RESULTS_FILE).exists()
    with reading() as seen:
        assert ablate(recipe, out, SEEDS, GENERATOR_SEEDS, ROWS, command="posereid ablate it", progress=False)
    read |= begun | seen
    return open_grid(plan_grid(recipe, out, SEEDS, GENERATOR_SEEDS, ROWS)[0])


@pytest.fixture(scope="module")
def results(finished: Grid) -> dict[str, Any]:
    return json.loads((finished.out / RESULTS_FILE).read_text())


def test_the_cell_that_was_stopped_went_on_from_its_checkpoint(finished: Grid) -> None:
    log = read_log(finished.folder(Cell("generator", "full", 3)) / "log.jsonl")
    assert [record["resumed"] for record in log if "resumed" in record] == [False, True]


def test_ablate_reads_what_the_table_says(
    finished: Grid, read: set[str], assert_reads: Callable[[Stage, set[str]], None]
) -> None:
    assert_reads("ablation", read)


def test_every_cell_has_recipe_log_weights_and_evaluation(finished: Grid) -> None:
    for cell in finished.cells():
        folder = finished.folder(cell)
        assert finished.is_done(cell)
        if cell.kind == "fusion" or (cell.row == "true" and cell.kind == "generator"):
            continue
        assert len(checkpoint_folders(folder)) == 1
        assert (latest_checkpoint(folder).folder / "resume.pt").stat().st_size < 2000
        own = read_recipe(folder / "recipe.yaml")
        assert own == latest_checkpoint(folder).recipe
        assert (folder / "log.jsonl").exists()
        if cell.kind != "pose":
            assert own.seed == cell.seed
            assert json.loads((folder / "evaluation.json").read_text())["seed"] == cell.seed
        assert not (folder / "features").exists()


def test_a_generator_s_cell_holds_its_crops_its_quality_and_a_sheet(finished: Grid) -> None:
    folder = finished.folder(Cell("generator", "full", 3))
    assert len(read_manifest(folder / GENERATED)) == sum(crop.can_pose for crop in finished.crops.train)
    with np.load(folder / QUALITY_FILE) as arrays:
        assert {"ssim/generated/foreground", "pckh/target/image", "identity/generated/image"} <= set(arrays.files)
    with Image.open(folder / SHEET_FILE) as sheet:
        assert sheet.width > 5 * 64
    figures = json.loads((folder / "evaluation.json").read_text())["generator"]
    assert figures["identity_judged_by"] == "seed-0"
    assert figures["joints_found_by"] == "pose"


def test_true_renders_take_the_place_of_the_same_drawings(finished: Grid) -> None:
    drawn, true = (read_manifest(finished.folder(Cell("generator", row, 3)) / GENERATED) for row in ("full", "true"))
    assert [(row.name, row.source, row.target_pose) for row in drawn] == [
        (row.name, row.source, row.target_pose) for row in true
    ]


def test_held_out_people_are_in_no_training_and_choose_the_settings_of_fusion(finished: Grid) -> None:
    held = validation_identities(every_crop(finished.recipe.data), 0.3)
    for cell in finished.cells():
        if cell.kind in ("reid", "generator") and finished.folder(cell).joinpath("checkpoints").exists():
            assert not held & set(latest_checkpoint(finished.folder(cell)).identities)
    record = json.loads((finished.out / "fusion" / "full" / "fusion.json").read_text())
    best = max(record["validation"], key=lambda row: row["mAP"])
    assert record["chosen"] == {name: best[name] for name in ("weight", "poses")}
    assert {row["poses"] for row in record["validation"]} == {1, 2, 4, 8}
    assert (record["seeds"], record["generator_seeds"]) == ([0, 1], [3, 3])
    assert finished.fusion("full").weight == best["weight"]
    for seed in SEEDS:
        evaluation = json.loads((finished.out / "reid" / "full" / f"seed-{seed}" / "evaluation.json").read_text())
        assert evaluation["fusion"]["settings"]["weight"] == best["weight"]


def test_results_are_the_means_of_what_the_cells_say(finished: Grid, results: dict[str, Any]) -> None:
    assert set(results["rows"]) == {"full", "real", "true"}
    assert results["unfinished"] == []
    assert results["failed"] == {}
    assert results["generator_of_seed"] == {"0": 3, "1": 3}
    searches = {"full": ["off", "flip", "fusion+flip", SEARCH_ONLY], "real": ["off", "flip"], "true": ["off", "flip"]}
    for key, row in results["rows"].items():
        assert list(row["reid"]) == searches[key]
        assert (row["quality"] is None) == (key != "full")
        for name in HEADLINES:
            own = [
                json.loads((finished.out / "reid" / key / f"seed-{seed}" / "evaluation.json").read_text())
                for seed in SEEDS
            ]
            shares = [evaluation["fusion"]["rows"]["flip"][name] for evaluation in own]
            assert row["reid"]["flip"][name]["mean"][0] == pytest.approx(sum(shares) / len(shares), abs=0.02)
            assert results["cells"][f"reid/{key}/seed-1"]["flip"][name] == pytest.approx(shares[1], abs=0.01)
    flips = {key: row["reid"]["flip"]["mAP"]["mean"][0] for key, row in results["rows"].items()}
    found = results["rows"]["full"]["reid"][SEARCH_ONLY]["mAP"]
    assert found["minus_real"][0] == pytest.approx(found["mean"][0] - flips["real"], abs=0.02)
    controls = results["rows"]["full"]["quality"]["ssim"]["answers"]
    assert set(controls) == {"copy_source", "mean_image", "camera_mean", "wrong_source", "wrong_pose"}
    assert "target" in results["rows"]["full"]["quality"]["pckh"]["answers"]
    assert results["fusion"]["full"]["chosen"]["seeds"] == [0, 1]
    assert results["shared_generators"] is True
    assert results["devices"] == ["cpu"]
    assert results["threads"] == [1]
    assert results["began"] <= results["finished"]
    assert results["seconds"]["total"] == pytest.approx(sum(results["seconds"]["cells"].values()), abs=0.1)
    assert set(results["seconds"]["cells"]) == {cell.name for cell in finished.cells()}
    assert str(finished.out) not in json.dumps(results)


def test_a_cell_killed_just_before_its_end_is_done_again_without_training(
    finished: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train_joint", "train_reid", "train_pose_estimator"):
        monkeypatch.setattr(f"posereid.ablation.work.{name}", lambda *_, **__: pytest.fail("it was trained"))
    for cell in (POSE, Cell("generator", "full", 3), Cell("reid", "full", 0)):
        before = latest_checkpoint(finished.folder(cell))
        work(finished, cell)
        assert latest_checkpoint(finished.folder(cell)) == before


def test_the_best_use_is_chosen_on_held_out_people_alone(finished: Grid, results: dict[str, Any]) -> None:
    uses = {"full": ["off", "flip", "fusion+flip", SEARCH_ONLY], "real": ["off", "flip"], "true": ["off", "flip"]}
    means = {}
    for key, row in results["rows"].items():
        assert sorted(row["validation"]["mAP"]) == sorted(uses[key])
        for use in uses[key]:
            own = [
                json.loads((finished.out / "reid" / key / f"seed-{seed}" / VALIDATION_FILE).read_text())["mAP"][use]
                for seed in SEEDS
            ]
            means[key, use] = 100 * sum(own) / len(own)
            assert row["validation"]["mAP"][use]["mean"] == pytest.approx(means[key, use], abs=0.01)
    best = results["best"]
    assert best["compared"] == 3
    assert best["row"] == "full"
    assert best["mAP"] == pytest.approx(
        max(means["full", use] for use in ("flip", "fusion+flip", SEARCH_ONLY)), abs=0.01
    )
    assert best["real_mAP"] == pytest.approx(means["real", "flip"], abs=0.01)
    # What fusion was set by is what the network that saw real crops only reaches with it.
    record = json.loads((finished.out / "fusion" / "full" / "fusion.json").read_text())
    assert means["full", SEARCH_ONLY] == pytest.approx(100 * max(row["mAP"] for row in record["validation"]), abs=0.01)


def test_networks_with_one_generator_share_its_drawings(finished: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counted(generator: Any, people: Any, pose: Any) -> Any:
        drawn.append(len(people))
        return draw_pose(generator, people, pose)

    monkeypatch.setattr("posereid.fusion.embedding.draw_pose", counted)
    crops = len(finished.crops.query) + len(finished.crops.gallery)
    for seed in SEEDS:
        for name in ("evaluation.json", "search-only.json", VALIDATION_FILE):
            (finished.out / "reid" / "full" / f"seed-{seed}" / name).unlink()
        work(finished, Cell("reid", "full", seed))
        if seed == SEEDS[0]:
            first = sum(drawn)
            assert first >= 0.8 * crops * finished.fusion("full").poses
    assert sum(drawn) == first
    clear_drawings(finished, Cell("reid", "full", SEEDS[0]))


def test_d_i_has_no_word_in_the_choice(finished: Grid) -> None:
    runs = [finished.folder(cell) for cell in (Cell("reid", "real", 0), Cell("generator", "full", 3))]
    for tried in (True, False):
        choice = tune_fusion(*runs, crops=every_crop(finished.recipe.data), most_poses=2, try_realism=tried)
        assert any(point.by_realism for point in choice.grid) == tried


def test_drawings_go_once_nobody_searches_with_them(finished: Grid) -> None:
    assert not [path for path in (finished.out / DRAWINGS).rglob("*") if path.is_file()]
    assert not finished.drawings_needed(Cell("generator", "full", 3))


def test_the_network_that_saw_real_crops_searches_with_the_row_s_generator(finished: Grid) -> None:
    folder = finished.out / "reid"
    real = QueryFigures.read(folder / "real" / "seed-1" / "evaluation-queries-fusion-flip.csv")
    beside = QueryFigures.read(folder / "full" / "seed-1" / "search-only-queries-fusion-flip.csv")
    assert real.average_precisions.tolist() == beside.average_precisions.tolist()
    fused = json.loads((folder / "full" / "seed-1" / "search-only.json").read_text())["fusion"]
    assert fused["rows"]["fusion+flip"]["draws"]


def test_there_are_tables_and_pictures(finished: Grid, results: dict[str, Any]) -> None:
    tables = ablation_tables(results)
    assert {"facts", "table3", "training", "search", "best", "quality", "controls-full", "seeds"} <= set(tables)
    text = (finished.out / TABLES_FILE).read_text()
    assert all(table in text for table in tables.values())
    assert {path.name for path in (finished.out / "pictures").iterdir()} == {
        "table-3.png",
        "uses.png",
        "figures-8-9.png",
    }
    document = "a\n<!-- figures small table3 -->\nold\n<!-- end -->\nb"
    assert filled(document, {"small": results}).count("| true renders (ceiling) |") == 1


def test_a_finished_grid_is_only_summed_up_again(
    recipe: Recipe, finished: Grid, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posereid.ablation.running.work", lambda *_: pytest.fail("nothing was left to do"))
    written: list[tuple[str, bool]] = []

    def watched(path: Path, content: str) -> None:
        with try_lock(finished.out / LOCKS / "results") as free:
            written.append((path.name, free))
        write_atomically(path, content)

    monkeypatch.setattr("posereid.ablation.ablate.write_atomically", watched)
    assert ablate(recipe, finished.out, SEEDS, GENERATOR_SEEDS, ROWS, command="posereid ablate it", progress=False)
    again = json.loads((finished.out / RESULTS_FILE).read_text())
    assert {**again, "last_call": None} == {**results, "last_call": None}
    # Of machines that come to the end together one writes at a time.
    assert written == [(RESULTS_FILE, False), (TABLES_FILE, False)]


def test_rows_that_an_earlier_call_finished_stay_in_the_results(
    recipe: Recipe, finished: Grid, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(grid: Grid, cell: Cell) -> None:
        raise InputError("there is no room.")

    monkeypatch.setattr("posereid.ablation.running.work", broken)
    before = (finished.out / RESULTS_FILE).read_text()
    assert not ablate(recipe, finished.out, SEEDS, GENERATOR_SEEDS, ("blocks-3",), progress=False)
    again = json.loads((finished.out / RESULTS_FILE).read_text())
    (finished.out / RESULTS_FILE).write_text(before)
    assert again["rows"] == results["rows"]
    assert again["unfinished"] == ["blocks-3"]
    assert again["best"] == results["best"]
    assert again["failed"]["generators/blocks-3/seed-3"] == "there is no room."
    assert again["failed"]["reid/blocks-3/seed-0"] == "it needs generators/blocks-3/seed-3"


def test_a_grid_in_which_all_fails_says_so(
    tiny_recipe: Build, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(grid: Grid, cell: Cell) -> None:
        raise InputError("there is no room.")

    monkeypatch.setattr("posereid.ablation.running.work", broken)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(write_recipe(tiny_recipe(data={"root": str(world)})))
    with pytest.raises(SystemExit) as exit:
        main(["ablate", str(recipe), "--out", str(tmp_path / "grid"), "--rows", "true"])
    assert exit.value.code == 1
    said = capsys.readouterr().out
    assert "pose could not be done: there is no room." in said
    results = json.loads((tmp_path / "grid" / RESULTS_FILE).read_text())
    assert results["rows"] == {}
    assert results["unfinished"] == ["full", "real", "true"]
    assert len(results["failed"]) == 1 + 5 + 5 + 5 + 5 + 5


def test_the_command_line_says_what_is_wrong_in_one_sentence(
    recipe: Recipe, finished: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    for extra, sentence in (
        (["--rows", "everything"], "--rows: found 'everything'"),
        (["--losses.semantic", "3"], "holds an ablation of another recipe (losses.semantic is 3.0, was 10.0)"),
        (["--seeds", "1"], "was begun with --seeds 0 1"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--runtime.devices", "2"], "a cell trains in one process"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(
                ["ablate", str(path), "--out", str(finished.out), "--generator-seeds", "3", "--seeds", "0", "1", *extra]
            )
        assert exit.value.code == 2
        said = capsys.readouterr().err.strip()
        assert sentence in said
        assert re.fullmatch(r"posereid: [^\n]*\.", said)


def test_no_world_is_rendered_for_jobs_that_cannot_be(tiny_recipe: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--jobs is 0"):
        ablate(tiny_recipe(), tmp_path / "grid", SEEDS, GENERATOR_SEEDS, ROWS, jobs=0)
    assert not (tmp_path / "grid").exists()


def test_of_several_networks_the_setting_of_the_best_mean_is_chosen_the_first_of_equals() -> None:
    grids = [
        [{"weight": 0.0, "poses": 1, "mAP": 0.5}, {"weight": 0.5, "poses": 1, "mAP": 0.4}],
        [{"weight": 0.0, "poses": 1, "mAP": 0.5}, {"weight": 0.5, "poses": 1, "mAP": 0.6}],
    ]
    best, means = choose(grids, ("weight", "poses"))
    assert best == {"weight": 0.0, "poses": 1}
    assert [row["mAP"] for row in means] == [0.5, 0.5]
    assert means[1]["seeds"] == [0.4, 0.6]
