"""Means, intervals and differences against naive loops."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.ablation.figures import Searches, interval, quality_figures, reid_figures
from posereid.ablation.grid import Cell, Grid, plan_grid
from posereid.ablation.results import best_use, circumstances
from posereid.ablation.rows import ROWS
from posereid.ablation.work import SEARCH_ONLY
from posereid.config import Recipe
from posereid.evaluation.bootstrap import clustered_mean
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.seeds import mean_over_seeds

Build = Callable[..., Recipe]

IDENTITIES = np.array(["a", "a", "b", "c", "c", "c", "d"])
SEEDS = 3
GENERATORS = (5, 6, 5)


def searches(seed: int, names: tuple[str, ...]) -> Searches:
    random = np.random.default_rng(seed)
    return Searches(
        {name: {key: random.random((SEEDS, len(IDENTITIES))) for key in HEADLINES} for name in names}, IDENTITIES
    )


FULL = searches(1, ("off", "flip", "fusion+flip", SEARCH_ONLY))
REAL = searches(2, ("off", "flip"))
OWN = searches(3, ("off", "flip", "fusion+flip", SEARCH_ONLY))


def naive_difference(own: np.ndarray, other: np.ndarray) -> float:
    total, count = 0.0, 0
    for seed in range(len(own)):
        for query in range(len(own[seed])):
            total += own[seed][query] - other[seed][query]
            count += 1
    return round(100 * total / count, 2)


def test_every_search_is_compared_with_the_same_of_full_and_with_flips_of_real() -> None:
    figures = reid_figures(OWN, FULL, REAL, ROWS["no-semantic"], 0.95, GENERATORS)
    assert set(figures) == set(OWN.tables)
    for search, table in figures.items():
        control = "off" if search == "off" else "flip"
        for name, row in table.items():
            own = OWN.tables[search][name]
            assert row["mean"][0] == round(100 * sum(map(sum, own)) / own.size, 2)
            assert row["seeds"] == [round(100 * sum(seed) / len(seed), 2) for seed in own]
            assert row["minus_full"][0] == naive_difference(own, FULL.tables[search][name])
            others = REAL.tables[control][name]
            assert row["minus_real"][0] == naive_difference(own, others)
            assert row["minus_real_by_generator"] == {
                "5": naive_difference(own[[0, 2]], others[[0, 2]]),
                "6": naive_difference(own[[1]], others[[1]]),
            }


def test_a_row_is_not_compared_with_itself() -> None:
    full = reid_figures(FULL, FULL, REAL, ROWS["full"], 0.95, GENERATORS)
    real = reid_figures(REAL, FULL, REAL, ROWS["real"], 0.95, GENERATORS)
    assert all("minus_full" not in row and "minus_real" in row for table in full.values() for row in table.values())
    assert all("minus_full" in row and "minus_real" not in row for table in real.values() for row in table.values())


def test_without_the_rows_to_compare_with_there_are_no_differences() -> None:
    figures = reid_figures(OWN, None, None, ROWS["no-semantic"], 0.95, GENERATORS)
    assert all(set(row) == {"mean", "seeds"} for table in figures.values() for row in table.values())


@given(st.integers(0, 100))
def test_an_interval_over_seeds_is_for_seeds_and_people(seed: int) -> None:
    values = np.random.default_rng(seed).random((SEEDS, len(IDENTITIES)))
    expected = mean_over_seeds(values, IDENTITIES, confidence=0.9)
    assert interval(values, IDENTITIES, 0.9) == [
        round(100 * value, 2) for value in (expected.estimate, expected.low, expected.high)
    ]


def test_generators_are_the_outer_level_of_an_interval() -> None:
    values = np.random.default_rng(0).random((5, len(IDENTITIES)))
    of_generators = np.stack([(values[0] + values[2]) / 2, (values[1] + values[3]) / 2])
    assert interval(values[:4], IDENTITIES, 0.95, (7, 8, 7, 8)) == interval(of_generators, IDENTITIES, 0.95)
    nested = interval(values, IDENTITIES, 0.95, (7, 8, 7, 8, 7))
    # Two generators say little, and five networks of one generator nothing of another.
    apart = interval(values, IDENTITIES, 0.95)
    assert None not in (*nested, *apart)
    assert nested[2] - nested[1] > 1.5 * (apart[2] - apart[1])  # type: ignore[operator]
    assert interval(values, IDENTITIES, 0.95, (7,) * 5) == apart


def test_one_seed_gives_an_interval_over_people_alone() -> None:
    values = np.random.default_rng(0).random((1, len(IDENTITIES)))
    expected = clustered_mean(values[0], IDENTITIES, confidence=0.95)
    assert interval(values, IDENTITIES, 0.95) == [round(100 * value, 2) for value in expected]


def test_one_person_gives_no_interval() -> None:
    assert interval(np.ones((2, 3)), np.array(["a"] * 3), 0.95) == [100, None, None]


def test_queries_without_a_match_are_left_out() -> None:
    values = np.random.default_rng(0).random((SEEDS, len(IDENTITIES)))
    values[:, 2] = math.nan
    others = np.delete(values, 2, axis=1)
    assert interval(values, IDENTITIES, 0.95) == interval(others, np.delete(IDENTITIES, 2), 0.95)


# --- pictures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    recipe = tiny_recipe(evaluation={"resamples": 200})
    return plan_grid(recipe, tmp_path_factory.mktemp("grids") / "grid", (0, 1), (0, 1), ("no-semantic",))[0]


def quality(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    names = [f"ssim/{answer}/{region}" for answer in ("generated", "copy_source") for region in ("image", "foreground")]
    names += ["pckh/generated/image", "pckh/target/image", "mask_ssim/generated/foreground"]
    values = {name: random.random((2, len(IDENTITIES))) for name in names}
    values["pckh/generated/image"][:, 1] = math.nan
    return values | {"identities": np.stack([np.arange(len(IDENTITIES))] * 2)}


def test_image_quality_is_a_mean_over_pairs_and_generators_beside_its_controls(grid: Grid) -> None:
    own, full = quality(1), quality(2)
    figures = quality_figures(own, full, grid)
    assert figures is not None
    assert figures["pairs"] == len(IDENTITIES)
    assert set(figures) == {"pairs", "ssim", "foreground_ssim", "mask_ssim", "pckh"}
    drawn, copied = own["ssim/generated/foreground"], own["ssim/copy_source/foreground"]
    row = figures["foreground_ssim"]
    assert row["mean"][0] == round(sum(map(sum, drawn)) / drawn.size, 4)
    assert row["seeds"] == [round(sum(seed) / len(seed), 4) for seed in drawn]
    assert row["answers"]["copy_source"]["mean"][0] == round(sum(map(sum, copied)) / copied.size, 4)
    gain = [drawn[s][p] - copied[s][p] for s in range(2) for p in range(len(IDENTITIES))]
    assert row["answers"]["copy_source"]["generated_minus"][0] == round(sum(gain) / len(gain), 4)
    others = full["ssim/generated/foreground"]
    change = [drawn[s][p] - others[s][p] for s in range(2) for p in range(len(IDENTITIES))]
    assert row["minus_full"][0] == round(sum(change) / len(change), 4)
    assert row["minus_full_by_generator"] == {
        str(s): round(sum(drawn[s][p] - others[s][p] for p in range(len(IDENTITIES))) / len(IDENTITIES), 4)
        for s in range(2)
    }
    assert row["mean"][1] < row["mean"][0] < row["mean"][2]


def test_the_full_model_is_not_compared_with_itself_and_nothing_measured_is_nothing(grid: Grid) -> None:
    own = quality(1)
    figures = quality_figures(own, own, grid)
    assert figures is not None
    assert all("minus_full" not in row for name, row in figures.items() if name != "pairs")
    assert quality_figures({}, own, grid) is None


def test_intervals_of_pictures_are_over_generators_and_people_with_the_recipe_s_confidence(grid: Grid) -> None:
    own = quality(1)
    narrow = replace(
        grid,
        recipe=grid.recipe.model_copy(update={"evaluation": grid.recipe.evaluation.changed(confidence=0.5)}),
    )
    for each in (grid, narrow):
        figures = quality_figures(own, None, each)
        assert figures is not None
        expected = mean_over_seeds(
            own["pckh/generated/image"], own["identities"][0], confidence=each.recipe.evaluation.confidence
        )
        assert figures["pckh"]["mean"] == [round(value, 4) for value in expected[:3]]


# --- the choice and the circumstances --------------------------------------------------------------------------


def validated(**precisions: float) -> dict[str, Any]:
    names = {"training": "flip", "search": SEARCH_ONLY, "both": "fusion+flip", "off": "off"}
    uses = {names[use]: {"mean": mean, "seeds": [mean]} for use, mean in precisions.items()}
    return {"validation": {"mAP": uses, "queries": 9, "gallery": 20, "identities": 3}}


def test_the_best_use_has_the_best_mean_on_held_out_people_with_flips_on_and_a_generator() -> None:
    rows = {
        "full": validated(off=99.0, training=50.0, search=52.0, both=51.0),
        "no-semantic": validated(training=40.0, search=52.0, both=53.5),
        "real": validated(off=99.0, training=90.0),
        "true": validated(training=95.0),
    }
    best = best_use(rows)
    assert best is not None
    assert (best["row"], best["use"], best["mAP"], best["compared"]) == ("no-semantic", "fusion+flip", 53.5, 6)
    assert best["real_mAP"] == 90
    assert (best["queries"], best["gallery"], best["identities"]) == (9, 20, 3)
    first = best_use({key: rows[key] for key in ("full", "real")} | {"not-joint": rows["full"]})
    assert first is not None
    assert (first["row"], first["use"]) == ("full", SEARCH_ONLY)


def test_nothing_is_chosen_without_held_out_people_or_without_a_generator() -> None:
    assert best_use({"full": {"validation": None}, "real": {"validation": None}}) is None
    assert best_use({"real": validated(training=90.0), "true": validated(training=95.0)}) is None


def test_circumstances_are_those_of_all_cells_whichever_call_did_them(grid: Grid, tmp_path: Path) -> None:
    grid = replace(grid, out=tmp_path)
    cells = [Cell("reid", "real", seed) for seed in (0, 1)]
    for cell, device, threads, hour, seconds in zip(cells, ("cpu", "A GPU"), (1, 2), (9, 7), (3.5, 4.0), strict=True):
        grid.folder(cell).mkdir(parents=True)
        grid.record(cell).parent.mkdir(parents=True, exist_ok=True)
        state = {
            "done": True,
            "began": f"2026-01-01T0{hour}:00:00+00:00",
            "finished": f"2026-01-02T0{hour}:00:00+00:00",
            "seconds": seconds,
            "devices": [device],
            "threads": [threads],
        }
        grid.record(cell).write_text(json.dumps(state))
    found = circumstances(grid, cells)
    assert found["devices"] == ["A GPU", "cpu"]
    assert found["threads"] == [1, 2]
    assert (found["began"], found["finished"]) == ("2026-01-01T07:00:00+00:00", "2026-01-02T09:00:00+00:00")
    assert found["seconds"] == {"cells": {cells[0].name: 3.5, cells[1].name: 4.0}, "total": 7.5}
