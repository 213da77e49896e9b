"""The page of an evaluation, checked on what it shows and what it leaves out."""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posereid.config import EvaluationRecipe
from posereid.curves import MatchCurve, match_curves, precision_histogram, receiver_curve
from posereid.data.batches import CropImages
from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError
from posereid.evaluation.evaluate import Evaluation, evaluate_features
from posereid.evaluation.generator_quality import ImageQuality
from posereid.evaluation.picture_measures import MEASURES
from posereid.evaluation.search import Search
from posereid.evaluation.verification import verify_pairs
from posereid.evaluation_report import evaluation_sections, quality_section, write_evaluation, write_evaluation_report
from posereid.report import Section

Build = Callable[..., Evaluation]
SETTINGS = EvaluationRecipe(resamples=200, false_match_rates=(0.1, 0.01, 1e-4))
TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
RERANKED = SETTINGS.model_copy(update={"rerank": True})


def write_features(path: Path, people: int, crops_each: int, noise: float, **changes: Any) -> Path:
    """Features that cluster by person; one query of each, the rest in the gallery."""
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(1, people + 1), crops_each)
    cameras = np.tile(np.arange(crops_each) % 3, people)
    features = rng.normal(size=(people + 1, 8))[identities] + noise * rng.normal(size=(len(identities), 8))
    names = np.array([f"<b>{i}_{number}</b>.jpg" for number, i in enumerate(identities)])
    is_query = np.arange(len(identities)) % crops_each == 0
    arrays = {
        f"{side}_{name}": values[chosen]
        for side, chosen in (("query", is_query), ("gallery", ~is_query))
        for name, values in (("features", features), ("identities", identities), ("cameras", cameras), ("names", names))
    }
    np.savez(path, **{name: values for name, values in (arrays | changes).items() if values is not None})
    return path


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("features")

    def evaluate(
        settings: EvaluationRecipe = SETTINGS, people: int = 12, crops_each: int = 5, noise: float = 1.0, **changes: Any
    ) -> Evaluation:
        path = write_features(folder / "<i>model.npz", people, crops_each, noise, **changes)
        return evaluate_features([path], settings)

    return evaluate


@pytest.fixture(scope="module")
def with_crops(crops: CropTable, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Random features for the world's test split: everything goes wrong somewhere."""
    rng = np.random.default_rng(1)
    arrays = {}
    for side, split in (("query", crops.query), ("gallery", crops.gallery)):
        arrays[f"{side}_features"] = rng.normal(size=(len(split), 8))
        arrays |= {f"{side}_identities": split.identities, f"{side}_cameras": split.cameras}
        arrays[f"{side}_names"] = np.array(split.names)
    path = tmp_path_factory.mktemp("random") / "features.npz"
    np.savez(path, **arrays)
    return replace(evaluate_features([path], RERANKED), crops=crops)


def with_quality(evaluation: Evaluation, *left_out: str) -> Evaluation:
    """The same with figures of image quality, as a run's evaluation holds them."""
    scores = {
        measure: {answer: {"image": 0.25, "foreground": 0.5} for answer in known.answers}
        for measure, known in MEASURES.items()
        if measure not in left_out
    }
    generator = {
        "pairs": 1234,
        "pairs_seed": 0,
        "foreground_from": "masks",
        "targets_of_unseen_cameras": 7,
        "identity_judged_by": "<judge>",
        "joints_found_by": "estimator",
        "scores": scores,
        "intervals": {"ssim": {"image": [0.125, 0.375], "foreground": [0.45, 0.55]}},
        "not_measured": {measure: f"Nobody brought {measure}." for measure in left_out},
    }
    quality = ImageQuality({}, {}, np.zeros(1234, np.int64), {}, "masks", 7)
    return replace(evaluation, figures=evaluation.figures | {"generator": generator}, quality=quality)


def headings(evaluation: Evaluation) -> list[str]:
    return [section.heading for section in evaluation_sections(evaluation)]


def section(evaluation: Evaluation, heading: str, **options: Any) -> Section:
    return next(found for found in evaluation_sections(evaluation, **options) if found.heading == heading)


def pixels(png: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(png: Any, colour: tuple[int, int, int]) -> int:
    """How many pixels are nearly of a colour."""
    return int((abs(pixels(png) - colour) < 40).all(2).sum())


def test_the_page_holds_every_figure_with_its_interval(build: Build, tmp_path: Path) -> None:
    evaluation = with_quality(build(RERANKED), "pckh")
    write_evaluation_report(tmp_path / "deep" / "report.html", evaluation)
    page = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"data:[^\"]*", "", page)
    for reid in (evaluation.figures["reid"], evaluation.figures["reid_reranked"]):
        for name, (low, high) in reid["intervals"].items():
            assert f">{reid[name]:.2f}<" in text
            assert f">{low:.2f}{TO}{high:.2f}<" in text
    found = evaluation.verification
    assert found is not None
    assert f"{found.genuine_pairs:,} genuine" in text
    for point in found.operating_points:
        if math.isfinite(point.threshold):
            assert f"{point.threshold:.4f} (" in text
        assert point.note in text
    for figure in (f"{100 * found.equal_error_rate:.2f} %", ".250 / .500", "Nobody brought pckh.", "1,234 pairs"):
        assert figure in text
    assert text.count("<h2>") == 5
    assert page.count("data:image/png;base64,") == 3
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", page) == []


def test_names_from_outside_are_escaped(build: Build, tmp_path: Path) -> None:
    write_evaluation_report(tmp_path / "report.html", with_quality(build()))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "&lt;judge&gt;" in page
    assert not re.search(r"<b>|<i>|<judge>", page)


def test_what_was_not_evaluated_has_no_section(build: Build) -> None:
    evaluation = build()
    assert headings(evaluation) == ["Who is found", "Same person or not", "Where it fails", "Circumstances"]
    assert headings(replace(evaluation, verification=None)) == ["Who is found", "Where it fails", "Circumstances"]
    bare = {name: value for name, value in evaluation.figures.items() if name not in ("reid", "verification")}
    nothing = Evaluation(bare | {"generator": None})
    assert headings(nothing) == ["Circumstances"]
    assert headings(with_quality(nothing)) == ["How good the pictures are", "Circumstances"]
    header = section(evaluation, "Who is found").tables[0].header
    assert not any("re-ranked" in name for name in header)


def test_a_reason_stands_where_there_is_no_figure(build: Build) -> None:
    evaluation = build()
    reasons = {"verification": "All show one person.", "generator": "No test identity has two crops."}
    noted = replace(evaluation, figures=evaluation.figures | {"not_measured": reasons}, verification=None)
    assert section(noted, "What was not measured").tables[0].rows == [
        ("same person or not", "All show one person."),
        ("image quality", "No test identity has two crops."),
    ]


def test_the_text_says_the_protocol(build: Build) -> None:
    text = section(build(), "Who is found").text
    for words in ("12 queries of 12 people", "gallery of 48 crops", "own camera", "do not count", "200 times"):
        assert words in text
    assert "multi-query" not in text
    assert "left out" not in text
    changed = SETTINGS.model_copy(
        update={"same_camera_rule": False, "average_precision": "trapezoid", "metric": "euclidean"}
    )
    text = section(build(changed), "Who is found").text
    assert "count too" in text
    assert "trapezoids" in text
    assert "euclidean distance" in text
    pooled = SETTINGS.model_copy(update={"multi_query": "mean"})
    assert "averaged into one query" in section(build(pooled), "Who is found").text
    nobody = np.array([900, *range(2, 13)])
    assert "left out of every figure: 1." in section(build(query_identities=nobody), "Who is found").text


def test_one_person_has_no_interval(build: Build) -> None:
    evaluation = build(people=3, query_identities=np.array([1, 1, 1]))
    rows = section(evaluation, "Who is found").tables[0].rows
    assert [row[2] for row in rows[:5]] == ["–"] * 5


def expected_rows(search: Search, *, best: bool, count: int) -> list[tuple[str, str]]:
    """Names and AP by a naive sort, ties in the queries' order."""
    assert search.query.names is not None
    scored = [
        (-precision if best else precision, number, name)
        for number, (precision, name) in enumerate(
            zip(search.result.average_precisions.tolist(), search.query.names, strict=True)
        )
        if not math.isnan(precision)
    ]
    return [(name, f"{100 * abs(precision):.2f}") for precision, _, name in sorted(scored)[:count]]


@pytest.mark.parametrize("noise", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("examples", [1, 4, 40])
def test_worst_and_best_queries_are_those_of_a_naive_sort(build: Build, noise: float, examples: int) -> None:
    evaluation = build(noise=noise, query_identities=np.array([1, 900, *range(3, 13)]))
    assert evaluation.search is not None
    tables = section(evaluation, "Where it fails", examples=examples).tables
    for table, best in zip(tables, (False, True), strict=True):
        assert [(row[0], row[3]) for row in table.rows] == expected_rows(evaluation.search, best=best, count=examples)


def test_a_tie_for_the_best_is_said(build: Build) -> None:
    evaluation = build(noise=0.01)
    found = section(evaluation, "Where it fails", examples=2)
    assert "12 of 12 queries reach that" in found.text
    assert "12 queries tie" in str(found.tables[1].caption)
    assert "tie" not in str(section(evaluation, "Where it fails", examples=12).tables[1].caption)


def test_queries_without_names_or_cameras_are_numbered(build: Build) -> None:
    unknown = dict.fromkeys(f"{side}_{what}" for side in ("query", "gallery") for what in ("names", "cameras"))
    rows = section(build(noise=0.01, **unknown), "Where it fails", examples=2).tables[0].rows
    assert [tuple(row[:3]) for row in rows] == [("number 1", "1", "–"), ("number 2", "2", "–")]


def shows(sheet: Any, crop: Crop) -> bool:
    """Whether a crop stands in a sheet, pixel for pixel below the verdict in its corner."""
    picture = CropImages([crop], 128, 64).image(0).permute(1, 2, 0).numpy()[20:]
    page = np.asarray(sheet)
    corners = np.argwhere((page[:-107, :-63] == picture[0, 0]).all(2))
    return any(np.array_equal(page[y : y + 108, x : x + 64], picture) for y, x in corners)


def test_ranked_lists_show_the_crops_that_were_found(with_crops: Evaluation) -> None:
    pictures = section(with_crops, "Where it fails", examples=3).pictures
    assert len(pictures) == 3
    green, red = (26, 127, 55), (207, 34, 46)
    counts = []
    for shown in pictures[1:]:
        assert isinstance(shown.picture, Image.Image)
        sheet = np.asarray(shown.picture)
        counts.append([int((sheet == colour).all(2).sum()) for colour in (green, red)])
        assert sheet.shape[0] > 3 * 128
    assert counts[0][0] < counts[1][0]
    assert counts[0][1] > 0
    crops, search = with_crops.crops, with_crops.search
    assert crops is not None
    assert search is not None
    worst = int(np.nanargmin(search.result.average_precisions))
    found = search.ranked(worst, 11).gallery_indices.tolist()
    assert shows(pictures[1].picture, crops.query[worst])
    assert all(shows(pictures[1].picture, crops.gallery[index]) for index in found[:10])
    alone = section(with_crops, "Where it fails", examples=1).pictures[1].picture
    assert not shows(alone, crops.gallery[found[10]])
    assert len(section(with_crops, "Where it fails", examples=1).pictures) == 3


def test_pooled_queries_go_by_the_name_of_their_first_crop(with_crops: Evaluation) -> None:
    assert with_crops.search is not None
    assert with_crops.search.query.names is not None
    every_other = np.arange(0, len(with_crops.search.query), 2)
    query = with_crops.search.query
    fewer = replace(
        query,
        features=query.features[every_other],
        identities=query.identities[every_other],
        cameras=None if query.cameras is None else query.cameras[every_other],
        names=tuple(with_crops.search.query.names[number] for number in every_other),
    )
    search = Search.of(fewer, with_crops.search.gallery, SETTINGS)
    figures = with_crops.figures | {"reid": search.summary(SETTINGS) | {"multi_query": "mean"}}
    pooled = replace(with_crops, figures=figures, search=search)
    pictures = section(pooled, "Where it fails").pictures
    assert len(pictures) == 3
    assert "first crop" in pictures[1].caption
    assert with_crops.crops is not None
    worst = int(np.nanargmin(search.result.average_precisions))
    assert shows(pictures[1].picture, with_crops.crops.query[int(every_other[worst])])


def test_crops_that_are_not_those_of_the_search_are_not_shown(build: Build, crops: CropTable) -> None:
    assert len(section(replace(build(), crops=crops), "Where it fails").pictures) == 1


def test_quality_shows_every_measure_and_answer_that_has_one() -> None:
    generator = with_quality(Evaluation({}), "fid").figures["generator"]
    shown = quality_section(generator, confidence=0.9)
    scores, controls, recipes = shown.tables
    assert "90 % interval" in scores.header
    assert [row[0] for row in scores.rows] == [
        f"{known.label}\N{NO-BREAK SPACE}{'↑' if known.higher_is_better else '↓'}"
        for measure, known in MEASURES.items()
        if measure != "fid"
    ]
    assert scores.rows[0][:3] == [
        "SSIM\N{NO-BREAK SPACE}↑",
        ".250 / .500",
        f".125{TO}.375 / .450{TO}.550",
    ]
    assert scores.rows[0][-1] == "–"  # SSIM of the real target with itself says nothing
    assert [str(row[0])[:4] for row in controls.rows] == ["SSIM", "PSNR"]
    assert ("FID", "not measured: Nobody brought fid.") in list(recipes.rows)
    assert "7 targets" in shown.text


def test_circumstances_hold_what_a_figure_depends_on(build: Build) -> None:
    evaluation = build()
    facts = dict(section(replace(evaluation, figures=evaluation.figures | {"seed": 0}), "Circumstances").tables[0].rows)
    assert facts["training seed"] == "0"
    assert facts["fingerprint of the test"] == evaluation.figures["data"]["test_fingerprint"]
    assert facts["metric"] == "cosine"
    assert facts["resamples and their seed"] == "200, 0"
    assert facts["version of torch"] == evaluation.figures["versions"]["torch"]
    assert "fingerprint of the data" not in facts


def test_examples_are_checked(build: Build) -> None:
    with pytest.raises(InputError, match="examples is 0"):
        evaluation_sections(build(), examples=0)


def test_an_evaluation_is_written_with_all_its_files(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "run" / "evaluation.json"
    evaluation = build(RERANKED)
    written = write_evaluation(evaluation, out)
    assert sorted(written) == sorted(out.parent.iterdir())
    assert [path.name for path in written] == [
        "evaluation.json",
        "evaluation.html",
        "evaluation-queries.csv",
        "evaluation-queries-reranked.csv",
    ]
    digest = hashlib.sha256((out.parent / "evaluation-queries.csv").read_bytes()).hexdigest()
    held = json.loads(out.read_text(encoding="utf-8"))
    assert held["reid"] == evaluation.figures["reid"] | {"queries_sha256": digest}
    assert out.with_name("evaluation-queries.csv").read_text().count("\n") == 13
    # What an earlier evaluation left does not pass for this one's.
    assert sorted(write_evaluation(build(), out)) == sorted(out.parent.iterdir())


def test_match_curves_draw_each_line_and_its_intervals() -> None:
    blue, orange = (0, 114, 178), (213, 94, 0)
    curve = MatchCurve(np.linspace(0.2, 0.9, 50))
    one = match_curves({"plain": curve}, chance_rank1=0.01)
    two = match_curves({"plain": curve, "re-ranked": MatchCurve(np.linspace(0.4, 1, 50))}, chance_rank1=0.01)
    assert coloured(one, blue) > 500
    assert coloured(one, orange) == 0
    assert coloured(two, orange) > 500
    wide = MatchCurve(curve.shares, {1: (0.1, 0.3), 5: (math.nan, math.nan), 100: (0.1, 0.2)})
    assert (pixels(match_curves({"plain": wide}, chance_rank1=0.01)) != pixels(one)).any()
    with pytest.raises(InputError, match="no CMC curve"):
        match_curves({}, chance_rank1=0.01)


@pytest.mark.parametrize("people", [2, 3, 40])
def test_receiver_curve_draws_many_pairs_and_few(people: int) -> None:
    rng = np.random.default_rng(people)
    identities = np.arange(people)
    distances = rng.random((people, people)) + 1 - np.eye(people)
    result = verify_pairs(distances, identities + 1, identities + 1, false_match_rates=(0.5, 0.01), resamples=100)
    drawn = receiver_curve(result)
    assert coloured(drawn, (0, 114, 178)) > 500
    marked = sum(math.isfinite(point.threshold) for point in result.operating_points)
    assert (coloured(drawn, (213, 94, 0)) > 0) == (marked > 0)


def test_precision_histogram_counts_known_values_only() -> None:
    values = np.array([0.0, 0.5, 1.0, 1.0])
    assert precision_histogram(values) == precision_histogram(np.append(values, np.nan))
    assert coloured(precision_histogram(values), (213, 94, 0)) > 100
    with pytest.raises(InputError, match="None of the queries"):
        precision_histogram(np.full(3, np.nan))
