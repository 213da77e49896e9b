"""Evaluation with fusion: its rows are one test, its controls are there, and nothing is embedded twice."""

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from posereid.cli import main
from posereid.config import EvaluationRecipe, FusionMode, Recipe
from posereid.data.crops import CropTable
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.bootstrap import paired_difference
from posereid.evaluation.comparison import compare, comparison_table
from posereid.evaluation.evaluate import Evaluation, evaluate_run
from posereid.evaluation.fused_search import SideParts, differences, load_networks, with_controls
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.ranking import rank_features
from posereid.evaluation.tables import evaluation_table
from posereid.evaluation_report import write_evaluation
from posereid.features import embed_crops
from posereid.fusion import fuse_sides
from posereid.training.checkpoint import latest_checkpoint, load_embedder
from posereid.training.joint import train_joint
from posereid.training.reid import train_reid

Build = Callable[..., Recipe]
MODES = get_args(FusionMode)
QUICK = EvaluationRecipe(pairs=6, resamples=200, fusion={"poses": 2, "weight": 0.8})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def joint(crops: CropTable, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_joint(tiny_recipe(seed=5), crops, tmp_path_factory.mktemp("runs") / "joint", progress=False)


@pytest.fixture(scope="module")
def reid(crops: CropTable, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_reid(tiny_recipe(seed=6), crops, tmp_path_factory.mktemp("runs") / "reid", progress=False)


@pytest.fixture(scope="module")
def everything(reid: Path, joint: Path, crops: CropTable, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    kept = tmp_path_factory.mktemp("kept")
    return evaluate_run(reid, QUICK, crops=crops, fusion=MODES, generator_run=joint, cache=kept)


def test_off_is_the_plain_search(everything: Evaluation, reid: Path, crops: CropTable) -> None:
    figures = everything.figures
    plain = evaluate_run(reid, QUICK, crops=crops)
    off = figures["fusion"]["rows"]["off"]
    assert off.items() >= {name: plain.figures["reid"][name] for name in (*HEADLINES, "intervals", "queries")}.items()
    assert figures["reid"] == plain.figures["reid"]
    assert everything.search is everything.fused["off"]
    assert plain.search is not None
    # Batches of another size may round otherwise.
    np.testing.assert_allclose(everything.fused["off"].query.features, plain.search.query.features, atol=1e-6)
    np.testing.assert_allclose(everything.fused["off"].gallery.features, plain.search.gallery.features, atol=1e-6)


def test_all_rows_are_the_same_test_by_embeddings_of_their_own(everything: Evaluation) -> None:
    assert tuple(everything.fused) == tuple(everything.figures["fusion"]["rows"]) == MODES
    assert {search.fingerprint for search in everything.fused.values()} == {
        everything.figures["data"]["test_fingerprint"]
    }
    tables = [search.gallery.features for search in everything.fused.values()]
    for number, table in enumerate(tables):
        assert not any(np.allclose(table, other, atol=1e-6) for other in tables[:number])
    rows = everything.figures["fusion"]["rows"]
    assert {mode for mode in MODES if rows[mode]["transductive"]} == {"nfc", "all"}
    assert {mode for mode in MODES if rows[mode]["draws"]} == {"fusion", "fusion+flip", "all"}
    assert rows["off"]["cost_ms_per_crop"] < rows["flip"]["cost_ms_per_crop"] < rows["fusion+flip"]["cost_ms_per_crop"]
    assert rows["fusion"]["crops_without_pose"] == sum(
        crop.joints is None or not crop.joints.has_torso
        for crop in (*everything.crops.query, *everything.crops.gallery)  # type: ignore[union-attr]
    )
    assert everything.figures["fusion"]["poses"] == ["front", "back"]
    assert json.loads(json.dumps(everything.figures, allow_nan=False)) == everything.figures


def test_a_rows_figures_are_those_of_ranking_its_embeddings(everything: Evaluation) -> None:
    for mode, search in everything.fused.items():
        result = rank_features(search.query.features, search.gallery.features, *search.labels)
        row = everything.figures["fusion"]["rows"][mode]
        assert row["mAP"] == pytest.approx(100 * result.mean_average_precision, abs=0.005)
        for control in {"off", "flip"} - {mode}:
            before = everything.fused[control].result.average_precisions  # type: ignore[index]
            found = paired_difference(before, result.average_precisions, search.query.identities, resamples=200)
            stated = row["differences"][control]["mAP"]
            assert stated["difference"] == pytest.approx(100 * found.difference, abs=0.006)
            assert stated["low"] == pytest.approx(100 * found.low, abs=0.006)
            assert stated["real"] is found.real
        assert mode not in row["differences"]


def test_a_search_does_not_differ_from_itself(everything: Evaluation) -> None:
    search = everything.fused["fusion"]
    assert {name: row["difference"] for name, row in differences(search, search, QUICK).items()} == dict.fromkeys(
        HEADLINES, 0.0
    )


def test_the_controls_are_added(joint: Path, crops: CropTable, tmp_path: Path) -> None:
    evaluation = evaluate_run(joint, QUICK, crops=crops, fusion=["fusion"], cache=tmp_path)
    assert tuple(evaluation.figures["fusion"]["rows"]) == ("off", "flip", "fusion")
    assert set(evaluation.figures["fusion"]["rows"]["fusion"]["differences"]) == {"off", "flip"}
    assert evaluation.figures["fusion"]["generator"] == "joint"
    assert evaluation.figures["generator"]["pairs"] == 6
    assert with_controls(["all", "off", "all"]) == ("off", "flip", "all")


def test_what_needs_no_generator_runs_without_one(reid: Path, joint: Path, crops: CropTable, tmp_path: Path) -> None:
    figures = evaluate_run(reid, QUICK, crops=crops, fusion=["flip", "nfc"], cache=tmp_path).figures["fusion"]
    assert tuple(figures["rows"]) == ("off", "flip", "nfc")
    assert figures["generator"] is None
    with pytest.raises(InputError, match=r"reid has no generator.*--generator"):
        evaluate_run(reid, QUICK, crops=crops, fusion=["fusion"])
    with pytest.raises(InputError, match="leave it out"):
        evaluate_run(reid, QUICK, crops=crops, fusion=["flip"], generator_run=joint)
    with pytest.raises(InputError, match=r"fusion\.poses is 0, .* ask for 1 to 8"):
        evaluate_run(
            reid, QUICK.changed(fusion={"poses": 0, "weight": 0.8}), crops=crops, fusion=["fusion"], generator_run=joint
        )
    with pytest.raises(InputError, match=r"fusion\.poses is 9"):
        evaluate_run(
            reid,
            QUICK.changed(fusion={"poses": 9, "weight": 0.8}),
            crops=crops,
            fusion=["fusion"],
            generator_run=joint,
            cache=tmp_path,
        )


def test_an_evaluation_again_embeds_nothing(
    reid: Path, joint: Path, crops: CropTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    embed = Embedder.embed

    def counted(self: Embedder, images: object) -> object:
        calls.append(1)
        return embed(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(Embedder, "embed", counted)
    first, second = (
        evaluate_run(
            reid,
            QUICK.changed(fusion={"poses": 2, "weight": weight}),
            crops=crops,
            fusion=["fusion+flip"],
            generator_run=joint,
            cache=tmp_path,
        )
        for weight in (0.5, 0.0)
    )
    assert calls
    done = len(calls)
    again = evaluate_run(
        reid,
        QUICK.changed(fusion={"poses": 2, "weight": 0.5}),
        crops=crops,
        fusion=["fusion+flip"],
        generator_run=joint,
        cache=tmp_path,
    )
    assert len(calls) == done
    assert again.figures["fusion"]["rows"] == first.figures["fusion"]["rows"]
    # Weight 0 leaves the control.
    rows = second.figures["fusion"]["rows"]
    assert [rows["fusion+flip"][name] for name in HEADLINES] == [rows["flip"][name] for name in HEADLINES]
    np.testing.assert_array_equal(second.fused["fusion+flip"].gallery.features, second.fused["flip"].gallery.features)


def test_a_weight_of_zero_draws_nothing_and_says_how_to_tune(
    reid: Path, joint: Path, crops: CropTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posereid.evaluation.fused_search.load_generator", None)
    settings = QUICK.changed(fusion={"weight": 0})
    arguments = {"crops": crops, "fusion": ["all", "fusion"], "generator_run": joint, "cache": tmp_path}
    evaluation = evaluate_run(reid, settings, **arguments)
    rows = evaluation.figures["fusion"]["rows"]
    for mode, same in (("fusion", "off"), ("all", "flip")):
        assert not rows[mode]["draws"]
        assert rows[mode]["crops_without_pose"] == 0
        assert rows[mode]["cost_ms_per_crop"] == rows[same]["cost_ms_per_crop"]
    assert rows["fusion"]["rank1"] == rows["off"]["rank1"]
    table = evaluation_table(evaluation.figures)
    assert "Nothing was fused: the weight of generated poses is 0" in table
    assert "posereid tune-fusion" in table
    assert "Generated poses:" not in table
    # What is wrong is said all the same.
    for changed, message in ((arguments | {"generator_run": None}, "give --generator RUN"), (arguments, "poses is 9")):
        wrong = settings.changed(fusion={"weight": 0, "poses": 9})
        with pytest.raises(InputError, match=message):
            evaluate_run(reid, wrong, **changed)


def test_multi_query_pools_the_fused_queries(reid: Path, crops: CropTable, tmp_path: Path) -> None:
    settings = QUICK.changed(multi_query="mean")
    plain = evaluate_run(reid, settings, crops=crops)
    fused = evaluate_run(reid, settings, crops=crops, fusion=["flip"], cache=tmp_path)
    assert fused.figures["reid"] == plain.figures["reid"]
    assert fused.fused["flip"].fingerprint == plain.search.fingerprint  # type: ignore[union-attr]


def test_one_call_embeds_both_sides_as_two_would(reid: Path, crops: CropTable) -> None:
    checkpoint = latest_checkpoint(reid)
    networks = load_networks(reid, checkpoint, ["flip"], None, QUICK.fusion, "cpu")  # type: ignore[arg-type]
    assert networks is not None
    parts = SideParts.of(networks, crops, crops.with_crops(()), QUICK.fusion)
    query, gallery = parts.sides("off", QUICK)
    assert query.names == crops.query.names
    assert gallery.names == crops.gallery.names
    np.testing.assert_allclose(gallery.features, embed_crops(load_embedder(reid), crops.gallery), atol=1e-6)
    apart = [networks.embed(side, QUICK.fusion) for side in (crops.query, crops.gallery)]
    for side, expected in zip(parts.sides("flip", QUICK), fuse_sides(*apart, "flip", QUICK.fusion), strict=True):
        np.testing.assert_allclose(side.features, expected, atol=1e-6)
    with pytest.raises(InputError, match="no query crops"):
        SideParts.of(networks, crops.gallery, crops.with_crops(()), QUICK.fusion)


def test_table_report_and_files_of_queries_show_every_row(everything: Evaluation, tmp_path: Path) -> None:
    table = evaluation_table(everything.figures)
    written = write_evaluation(everything, tmp_path / "e.json")
    page = (tmp_path / "e.html").read_text()
    rows = json.loads((tmp_path / "e.json").read_text())["fusion"]["rows"]
    for text in (table, page):
        assert "nfc and all are transductive" in text
        assert "among the queries and among the gallery apart" in text
        assert "drawn by joint" in text
        for mode, row in rows.items():
            assert f"{mode}: " in text
            assert f"{row['mAP']:.2f}" in text
            assert f"{row['cost_ms_per_crop']:.2f}" in text
    assert "What fusion at search time brings" in page
    for mode, row in rows.items():
        path = tmp_path / f"e-queries-fusion-{mode}.csv"
        assert path in written
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["queries_sha256"]
        with path.open() as file:
            assert len(list(csv.DictReader(file))) == row["queries"] + row["queries_without_match"]
    assert (tmp_path / "e-queries-fusion-off.csv").read_bytes() == (tmp_path / "e-queries.csv").read_bytes()


def test_an_earlier_evaluations_files_do_not_pass_for_this_ones(reid: Path, crops: CropTable, tmp_path: Path) -> None:
    for mode in MODES:
        (tmp_path / f"e-queries-fusion-{mode}.csv").write_text("of an earlier evaluation")
    write_evaluation(evaluate_run(reid, QUICK, crops=crops), tmp_path / "e.json")
    assert not list(tmp_path.glob("*fusion*"))
    assert "fusion" not in json.loads((tmp_path / "e.json").read_text())
    assert "fusion at search" not in (tmp_path / "e.html").read_text()


def test_two_evaluations_are_compared_in_one_mode(everything: Evaluation, tmp_path: Path) -> None:
    search = everything.fused["fusion"]
    worse = replace(everything, fused={**everything.fused, "fusion": everything.fused["nfc"]})
    for name, evaluation in (("a", everything), ("b", worse)):
        write_evaluation(evaluation, tmp_path / f"{name}.json")
    found = compare(tmp_path / "a.json", tmp_path / "b.json", fusion="fusion", resamples=200)
    expected = differences(search, everything.fused["nfc"], QUICK)
    assert {name: row["difference"] for name, row in found["differences"].items()} == {
        name: row["difference"] for name, row in expected.items()
    }
    assert "fusion fusion" in comparison_table(found)
    assert compare(tmp_path / "a.json", tmp_path / "b.json")["differences"]["mAP"]["difference"] == 0
    with pytest.raises(InputError, match="compare one kind"):
        compare(tmp_path / "a.json", tmp_path / "b.json", fusion="fusion", reranked=True)
    (tmp_path / "a-queries-fusion-nfc.csv").unlink()
    with pytest.raises(InputError, match="evaluate again with --fusion nfc"):
        compare(tmp_path / "a.json", tmp_path / "b.json", fusion="nfc")


def test_the_command_takes_modes_and_their_settings(
    reid: Path, joint: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.json"
    common = ["--root", str(world), "--resamples", "100", "--out", str(out), "--cache", str(tmp_path / "kept")]
    modes = ["--fusion", "fusion", "nfc", "--fusion.poses", "1", "--fusion.weight", "0.25", "--fusion.by-realism"]
    main(["evaluate", str(reid), *modes, "--generator", str(joint), *common])
    said = capsys.readouterr().out
    assert "fusion: with generated poses" in said
    assert "weighed by D_I's word" in said
    fusion = json.loads(out.read_text())["fusion"]
    assert tuple(fusion["rows"]) == ("off", "flip", "fusion", "nfc")
    settings = fusion["settings"]
    assert (settings["poses"], settings["weight"], settings["by_realism"]) == (1, 0.25, True)
    assert list((tmp_path / "kept").iterdir())
    assert not (reid / "features").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fusion", "fusion"], "give --generator RUN"),
        (["--generator", "elsewhere"], "add --fusion"),
        (["--cache", "elsewhere"], "--cache was given without --fusion"),
        (["--keep-drawings"], "--keep-drawings was given without --fusion"),
        (["--fusion", "fusion", "--generator", "absent"], "no such run"),
    ],
    ids=["no generator", "no mode", "nothing to keep", "no drawings", "no run"],
)
def test_wrong_wishes_end_in_one_sentence(
    options: list[str], words: str, reid: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(reid), "--root", str(world), "--out", str(tmp_path / "e.json"), *options])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_features_from_elsewhere_cannot_be_fused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--features", "f.npz", "--fusion", "flip"])
    assert "--fusion was given with --features" in capsys.readouterr().err
