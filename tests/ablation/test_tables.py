"""docs/evidence.md says what its results say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from posereid.ablation.conditions import evaluation_tables, is_evaluation
from posereid.ablation.tables import ablation_tables, filled
from posereid.ablation.wording import captioned, difference, markdown, spread
from posereid.ablation.work import SEARCH_ONLY
from posereid.errors import InputError

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "evidence.md"
RESULTS = ROOT / "docs" / "evidence.json"


def row(label: str, published: float | None = None, **reid: Any) -> dict[str, Any]:
    figure = {"mean": [50.0, 45.0, 55.0], "seeds": [49.0, 51.0]}
    names = ("rank1", "rank5", "rank10", "mAP", "mINP")
    searches = {search: dict.fromkeys(names, figure | change) for search, change in reid.items()}
    return {"label": label, "published_rank1": published, "reid": searches, "quality": None, "validation": None}


@pytest.fixture
def results() -> dict[str, Any]:
    measured = {
        "mean": [0.4, 0.38, 0.42],
        "answers": {
            "target": {
                "mean": [0.5, 0.4, 0.6],
                "generated_minus": [-0.1, -0.2, 0.05],
                "generated_minus_by_generator": {"0": -0.1},
            }
        },
    }
    full = row(
        "full model",
        93.5,
        off={},
        flip={"minus_real": [-2.0, -3.0, -1.0], "minus_real_by_generator": {"0": -2.0, "1": -2.0}},
    )
    full["quality"] = {"pairs": 8, "pckh": measured}
    return {
        "command": "posereid ablate it",
        "began": "2026-11-22T23:00:00+00:00",
        "finished": "2026-11-23T01:00:00+00:00",
        "machines": ["x86_64"],
        "devices": ["A GPU", "cpu"],
        "threads": [2],
        "torch": ["2.15"],
        "seeds": [0, 1],
        "generator_seeds": [0, 1],
        "generator_of_seed": {"0": 0, "1": 1},
        "shared_generators": False,
        "confidence": 0.95,
        "note": "The recipe goes beyond the paper in losses.structure.",
        "best": None,
        "seconds": {"total": 7200.0},
        "data": {
            "training_crops": 10,
            "training_identities": 2,
            "query": 3,
            "gallery": 4,
            "test_identities": 2,
        },
        "fusion": {"full": {"settings": {"weight": 0.8, "poses": 2}, "chosen": {"seeds": [0]}}},
        "unfinished": ["saturating"],
        "rows": {
            "full": full,
            "no-semantic": row(
                "without L_S",
                91.3,
                off={},
                flip={"minus_full": [1.0, -1.0, 3.0], "minus_full_by_generator": {"0": 1.0, "1": 1.0}},
            ),
            "real": row("real crops only", off={}, flip={}),
        },
    }


def test_a_difference_is_bold_where_its_interval_leaves_zero_out() -> None:
    assert difference({"d": [1.0, -1.0, 3.0]}, "d") == "+1.0 [-1.0, +3.0]"
    assert difference({"d": [-2.0, -3.0, -1.0]}, "d") == "**-2.0 [-3.0, -1.0]**"
    assert difference({"d": [0.012, 0.002, 0.022]}, "d", 3) == "**+0.012 [+0.002, +0.022]**"
    assert difference({"d": [1.0, None, None]}, "d") == difference({}, "d") == "–"


def test_captions_count_the_intervals_and_say_whose_they_are(results: dict[str, Any]) -> None:
    table = "| a | 50.0 [45.0, 55.0] | **+1.0 [+0.5, +1.5]** | -2.0 [-3.0, +1.0] | 91.3 (-2.2) |"
    own = captioned(table, results)
    assert own.startswith(
        f"{table}\n\nIntervals of 95 % over 2 generators, each with its re-ID seeds, and people. This table has 2 "
        "differences with an interval, about 0.1 of which"
    )
    shared = captioned(table, results | {"generator_of_seed": {"0": 0, "1": 0}})
    assert "over re-ID seeds and people, for this one generator." in shared
    assert "over 2 generators and people." in captioned(table, results, quality=True)
    assert captioned("| a |", results).endswith("and people.")


def test_without_held_out_people_the_table_says_that_nothing_was_chosen(results: dict[str, Any]) -> None:
    text = ablation_tables(results)["best"]
    assert text.startswith("Nothing was chosen")
    assert "| full model | in training | – | **-2.0 [-3.0, -1.0]** | **-2.0 [-3.0, -1.0]** |" in text


def test_the_use_that_the_held_out_people_chose_is_the_claim(results: dict[str, Any]) -> None:
    gain = {"minus_real": [1.5, 0.5, 2.5], "minus_real_by_generator": {"0": 2.0, "1": 1.0}}
    row_of_best = row("without L_S", off={}, flip={}, **{SEARCH_ONLY: gain})
    row_of_best["validation"] = {"mAP": {SEARCH_ONLY: {"mean": 61.25}}}
    results["rows"]["no-semantic"] = row_of_best
    results["best"] = {
        "row": "no-semantic",
        "use": SEARCH_ONLY,
        "mAP": 61.25,
        "real_mAP": 60.0,
        "compared": 4,
        "queries": 9,
        "identities": 3,
    }
    text = ablation_tables(results)["best"]
    assert "of 4 rows and uses: without L_S, at search time (61.25 %; real crops only reach 60.00 %)" in text
    assert "**+1.5 [+0.5, +2.5]** mAP and **+1.5 [+0.5, +2.5]** rank-1" in text
    assert "| without L_S | at search time | 61.25 |" in text


def test_the_seeds_table_gives_the_differences_of_every_generator(results: dict[str, Any]) -> None:
    text = ablation_tables(results)["seeds"]
    assert "| full model | 49.0 / 49.0 | 51.0 / 51.0 |" in text
    assert "| without L_S, in training − full | +1.0 | +1.0 |" in text
    assert "| full model, in training − real crops only | -2.0 | -2.0 |" in text


def test_a_mean_without_an_interval_stands_alone() -> None:
    assert spread({"mean": [1.0, None, None]}) == "1.0"
    assert spread({"mean": [None, None, None]}) == spread(None) == "–"
    assert spread({"mean": [0.5, 0.25, 0.75]}, 2) == "0.50 [0.25, 0.75]"


def test_a_table_s_columns_are_figures() -> None:
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_table_3_stands_beside_the_paper_s(results: dict[str, Any]) -> None:
    lines = ablation_tables(results)["table3"].splitlines()
    assert lines[2].startswith("| full model | 50.0 [45.0, 55.0] |")
    assert lines[2].endswith("| – | 93.5 |")
    assert lines[3].endswith("| +1.0 [-1.0, +3.0] | 91.3 (-2.2) |")
    assert lines[4].endswith("| – | – |")


def test_controls_say_what_share_of_the_real_target_the_generated_crops_reach(results: dict[str, Any]) -> None:
    lines = ablation_tables(results)["controls-full"].splitlines()
    assert "| generated | 0.400 [0.380, 0.420] |" in lines
    assert "| generated − the real target | -0.100 [-0.200, +0.050] |" in lines
    assert "| generated, as a share of the real target | 0.80 |" in lines


def test_the_facts_name_command_date_time_and_what_is_missing(results: dict[str, Any]) -> None:
    facts = ablation_tables(results)["facts"]
    for part in (
        "`posereid ablate it`",
        "2026-11-22 to 2026-11-23, A GPU, CPU (x86_64, threads to a cell: 2)",
        "2.00 hours",
        "one for each re-ID seed",
        "seeds 0 (those of the first call; other seeds keep that choice): full weight 0.8, 2 poses",
        "goes beyond the paper in losses.structure",
        "in no table: saturating",
        "chosen on",
    ):
        assert part in facts


def test_a_document_gets_each_table_behind_its_mark(results: dict[str, Any]) -> None:
    document = "# A\n<!-- figures small table3 -->\n\n<!-- end -->\nB\n<!-- figures big seeds -->\nold\n<!-- end -->\n"
    text = filled(document, {"small": results, "big": results})
    tables = ablation_tables(results)
    assert text == document.replace("-->\n\n<!-- end", f"-->\n{tables['table3']}\n<!-- end").replace(
        "\nold\n", f"\n{tables['seeds']}\n"
    )
    assert filled(text, {"small": results, "big": results}) == text
    # Marks with nothing between them are filled too, and do not reach into what follows.
    assert filled(document.replace("\n\n<!-- end", "\n<!-- end"), {"small": results, "big": results}) == text


@pytest.mark.parametrize("document", ["no marks", "<!-- figures small everything -->\n\n<!-- end -->"])
def test_a_mark_without_a_table_and_a_document_without_marks_are_said(document: str, results: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="figures"):
        filled(document, {"small": results}, "docs/evidence.md")


def test_the_script_fills_the_document_and_keeps_the_results_beside_it(
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_benchmark: Callable[[str], ModuleType],
) -> None:
    script = load_benchmark("evidence_tables")
    for name, file in (("DOCUMENT", "evidence.md"), ("RESULTS", "evidence.json"), ("IMAGES", "images")):
        monkeypatch.setattr(script, name, tmp_path / file)
    (tmp_path / "images").mkdir()
    (tmp_path / "grid" / "pictures").mkdir(parents=True)
    for name in ("figure-11.png", "figure-12.png"):
        (tmp_path / "grid" / "pictures" / name).write_bytes(b"picture")
    monkeypatch.setattr("sys.argv", ["evidence_tables", f"small={tmp_path / 'grid'}"])

    def written(*, synthetic: bool) -> set[str]:
        results["data"]["synthetic"] = synthetic
        (tmp_path / "grid" / "results.json").write_text(json.dumps(results))
        script.main()
        found = {path.name for path in (tmp_path / "images").iterdir()}
        for path in (tmp_path / "images").iterdir():
            path.unlink()
        return found

    with pytest.raises(InputError, match="is not there; write it with marks"):
        written(synthetic=True)
    links = "".join(f"![a](images/evidence-small-{name}.png)\n" for name in ("table-3", "figure-12"))
    (tmp_path / "evidence.md").write_text(f"<!-- figures small seeds -->\n\n<!-- end -->\n{links}")
    assert written(synthetic=True) == {"evidence-small-table-3.png", "evidence-small-figure-12.png"}
    assert ablation_tables(results)["seeds"] in (tmp_path / "evidence.md").read_text()
    assert json.loads((tmp_path / "evidence.json").read_text()) == {"small": results}
    # Pictures of real people stay where they are.
    assert written(synthetic=False) == {"evidence-small-table-3.png"}
    monkeypatch.setattr("sys.argv", ["evidence_tables", "small"])
    with pytest.raises(InputError, match="is not NAME=FOLDER"):
        script.main()


@pytest.fixture
def evaluation() -> dict[str, Any]:
    def both(image: float, foreground: float) -> dict[str, float]:
        return {"image": image, "foreground": foreground}

    return {
        "device": "cpu",
        "machine": "x86_64",
        "threads": 1,
        "versions": {"torch": "2.15"},
        "seed": 1,
        "step": 2432,
        "generator": {
            "pairs": 400,
            "pairs_seed": 0,
            "identity_judged_by": "real",
            "joints_found_by": "pose",
            "scores": {
                "ssim": {
                    "generated": both(0.4, 0.35),
                    "copy_source": both(0.1, 0.2),
                    "camera_mean": both(0.3, 0.1),
                    "wrong_source": both(0.2, 0.2),
                },
                "pckh": {"generated": {"image": 0.8}, "target": {"image": 0.9}},
                "identity": {"generated": both(0.6, 0.5), "target": both(0.8, 0.75)},
            },
            "intervals": {"ssim": {"image": [0.38, 0.42]}},
        },
    }


def test_conditions_say_what_was_found_and_what_is_missed(evaluation: dict[str, Any]) -> None:
    assert is_evaluation(evaluation)
    lines = evaluation_tables(evaluation)["conditions"].splitlines()[2:]
    assert lines[0] == "| SSIM, whole crop | copy the source | 0.400 | 0.100 | +0.300 | ≥ 0.20 | yes |"
    assert [line.endswith("| yes |") for line in lines] == [True, False, True, True, True, False, False]
    assert lines[-1].endswith("| 0.600 | 0.800 | 0.750 of it | ≥ 0.80 of it | **no** |")
    assert "| 0.889 of it | ≥ 0.90 of it | **no** |" in lines[5]


def test_an_evaluation_s_answers_stand_in_one_table(evaluation: dict[str, Any]) -> None:
    lines = evaluation_tables(evaluation)["answers"].splitlines()
    assert lines[0] == (
        "| answer | SSIM, whole crop | SSIM, person | PCKh, whole crop | identity preserved, whole crop "
        "| identity preserved, person |"
    )
    assert lines[2] == "| generated | 0.400 [0.380, 0.420] | 0.350 | 0.800 | 0.600 | 0.500 |"
    assert lines[-1] == "| generated, as a share of the real target | – | – | 0.889 | 0.750 | 0.667 |"


def test_results_of_an_evaluation_and_of_a_grid_fill_one_document(
    evaluation: dict[str, Any], results: dict[str, Any]
) -> None:
    document = "<!-- figures one facts -->\n\n<!-- end -->\n<!-- figures grid seeds -->\n\n<!-- end -->\n"
    text = filled(document, {"one": evaluation, "grid": results})
    assert "seed 1, 2,432 steps; 400 pairs of test people" in text
    assert ablation_tables(results)["seeds"] in text


def test_the_script_takes_runs_beside_grids(
    evaluation: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_benchmark: Callable[[str], ModuleType],
) -> None:
    script = load_benchmark("evidence_tables")
    for name, file in (("DOCUMENT", "evidence.md"), ("RESULTS", "evidence.json"), ("IMAGES", "images")):
        monkeypatch.setattr(script, name, tmp_path / file)
    drawn: list[tuple[Path, Path]] = []
    monkeypatch.setattr(script, "write_sheet", lambda run, path: drawn.append((run, path)))
    monkeypatch.setattr("sys.argv", ["evidence_tables", f"one={tmp_path}"])
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "evidence.md").write_text(
        "<!-- figures one conditions -->\n\n<!-- end -->\n![pairs](images/evidence-one-pairs.png)\n"
    )
    script.main()
    assert evaluation_tables(evaluation)["conditions"] in (tmp_path / "evidence.md").read_text()
    assert drawn == [(tmp_path, tmp_path / "images" / "evidence-one-pairs.png")]
    del evaluation["generator"]["scores"]["identity"]["target"]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(InputError, match="lacks PCKh or identity of generated crops; give posereid evaluate"):
        script.main()
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"holds neither results\.json nor evaluation\.json"):
        script.main()


@pytest.mark.skipif(not DOCUMENT.exists(), reason="docs/evidence.md is not written yet")
def test_the_document_holds_the_tables_of_its_results() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    document = DOCUMENT.read_text(encoding="utf-8")
    assert filled(document, kept, str(DOCUMENT)) == document
    grids = [results for results in kept.values() if not is_evaluation(results)]
    assert len(grids) < len(kept)
    for results in grids:
        assert results["command"] in document
        assert results["finished"][:10] in document
