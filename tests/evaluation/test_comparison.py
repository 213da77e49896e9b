"""Figures of each query survive the disk, and comparisons refuse what cannot be compared."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from posereid.config import EvaluationRecipe
from posereid.errors import InputError
from posereid.evaluation.comparison import compare, comparison_table, queries_file
from posereid.evaluation.embeddings import Embeddings
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.per_query import COLUMNS, QueryFigures
from posereid.evaluation.search import Search

QUICK = EvaluationRecipe(resamples=200)
PEOPLE = np.repeat(np.arange(1, 31), 4)


def search(noise: float, *, names: bool = True, seed: int = 0, identities: np.ndarray = PEOPLE) -> Search:
    """30 people, 4 crops each on both sides; the same people and labels for every seed."""
    centres = np.random.default_rng(9).normal(size=(31, 8))
    rng = np.random.default_rng(seed)
    sides = [
        Embeddings(
            centres[identities] + noise * rng.normal(size=(len(identities), 8)),
            identities,
            np.full(len(identities), camera),
            tuple(f"{camera}-{number}.jpg" for number in range(len(identities))) if names else None,
        )
        for camera in (1, 2)
    ]
    return Search.of(*sides, QUICK)


def written(folder: Path, found: Search, **changes: str) -> Path:
    folder.mkdir()
    content = QueryFigures.of(found).as_csv()
    reid = {"average_precision": "hits", "queries_sha256": hashlib.sha256(content.encode()).hexdigest()} | changes
    figures = {"schema": 2, "seed": 0, "data": {"test_fingerprint": found.fingerprint}, "reid": reid}
    (folder / "evaluation.json").write_text(json.dumps(figures))
    queries_file(folder / "evaluation.json").write_text(content)
    return folder


def test_figures_survive_the_disk_to_the_last_bit(tmp_path: Path) -> None:
    query = Embeddings(np.eye(3), np.array([1, 2, 9]), None, ("a,b.jpg", 'say "c".jpg', "d.jpg"))
    found = Search.of(query, Embeddings(np.eye(3)[::-1] + 0.1, np.array([1, 2, 1])), QUICK)
    before = QueryFigures.of(found)
    (tmp_path / "q.csv").write_text(before.as_csv())
    after = QueryFigures.read(tmp_path / "q.csv")
    assert after.labels == before.labels
    np.testing.assert_array_equal(after.first_hit_ranks, before.first_hit_ranks)
    np.testing.assert_array_equal(after.average_precisions, before.average_precisions)
    np.testing.assert_array_equal(after.inverse_negative_penalties, before.inverse_negative_penalties)
    assert np.isnan(after.average_precisions[2])


def test_a_better_run_is_called_better_and_an_equal_one_is_not(tmp_path: Path) -> None:
    good, bad, like_good = (
        written(tmp_path / name, search(noise, seed=seed))
        for name, noise, seed in (("good", 0.8, 0), ("bad", 1.4, 1), ("like", 0.8, 2))
    )
    worse = compare(good, bad)["differences"]
    assert worse["mAP"]["real"]
    assert worse["mAP"]["difference"] < 0
    assert worse["mAP"]["low"] <= worse["mAP"]["difference"] <= worse["mAP"]["high"] < 0
    assert worse["mAP"]["p_value"] < 0.05
    equal = compare(good, like_good)["differences"]
    assert not equal["mAP"]["real"]
    table = comparison_table(compare(good, bad))
    assert "A is better" in table
    assert "cannot be told apart" in comparison_table(compare(good, like_good))
    assert all(label in table for label in HEADLINES.values())
    files = compare(good / "evaluation.json", bad / "evaluation.json")
    assert files["differences"] == worse


def test_names_are_needed_on_neither_side(tmp_path: Path) -> None:
    named = written(tmp_path / "named", search(1.0))
    nameless = written(tmp_path / "nameless", search(1.0, names=False, seed=3))
    assert compare(named, nameless)["queries"] == 120


def test_figures_that_mean_different_things_are_refused_or_named(tmp_path: Path) -> None:
    first = written(tmp_path / "first", search(1.0), metric="cosine")
    trapezoid = written(tmp_path / "trapezoid", search(1.0), average_precision="trapezoid")
    with pytest.raises(InputError, match="two different figures"):
        compare(first, trapezoid)
    other = written(tmp_path / "other", search(1.0), metric="euclidean")
    assert "different metric" in comparison_table(compare(first, other))
    queries = queries_file(other / "evaluation.json")
    queries.write_text(queries.read_text().replace("1-0.jpg", "1-00.jpg"))
    with pytest.raises(InputError, match="does not belong to"):
        compare(first, other)


def test_few_people_prove_nothing(tmp_path: Path) -> None:
    people = np.repeat(np.arange(1, 6), 4)
    runs = [written(tmp_path / str(noise), search(noise, identities=people)) for noise in (0.1, 5.0)]
    comparison = compare(*runs)
    assert not any(row["real"] for row in comparison["differences"].values())
    assert "too few people to say" in comparison_table(comparison)
    alone = [written(tmp_path / f"alone-{n}", search(n, identities=np.array([1, 1]))) for n in (0.1, 5.0)]
    text = json.dumps(compare(*alone), allow_nan=False)
    assert '"p_value": null' in text
    assert "–" in comparison_table(compare(*alone))


def test_other_tests_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "first", search(1.0))
    other_people = written(tmp_path / "other", search(1.0, identities=PEOPLE[::-1].copy()))
    with pytest.raises(InputError, match="different tests"):
        compare(first, other_people)
    with pytest.raises(InputError, match="run posereid evaluate"):
        compare(first, tmp_path / "absent")
    with pytest.raises(InputError, match="--rerank"):
        compare(first, first, reranked=True)
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(InputError, match="not written by posereid evaluate"):
        compare(first, tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        compare(first, tmp_path / "x.json")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,1,x,0.5,0.5", "first_hit_rank"),
        ("a,1,1,-1,0.5,0.5", "first_hit_rank"),
        (f"a,1,1,{10**30},0.5,0.5", "first_hit_rank"),
        ("a,1,1,1,1.5,0.5", "from 0 to 1"),
        ("a,1,1,1,,0.5", "from 0 to 1"),
        ("a,1,1,1,nan,0.5", "from 0 to 1"),
        ("a,1,1,0,0.5,0.5", "has no match"),
        ("a,1,1,1,0.5", "5 fields"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "q.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{row}\n")
    with pytest.raises(InputError, match=message):
        QueryFigures.read(path)
