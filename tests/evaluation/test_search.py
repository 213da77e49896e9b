"""A search's figures against the functions they come from, written out."""

from dataclasses import replace

import numpy as np
import pytest

from posereid.config import EvaluationRecipe
from posereid.errors import InputError
from posereid.evaluation.distances import distance_matrix
from posereid.evaluation.embeddings import Embeddings, pool_queries
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.ranking import rank_gallery
from posereid.evaluation.search import Search

QUICK = EvaluationRecipe(resamples=200)


@pytest.fixture(scope="module")
def sides() -> tuple[Embeddings, Embeddings]:
    """40 queries and 200 gallery crops of 20 people before 3 cameras, with junk and distractors."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(21, 16))

    def side(identities: np.ndarray) -> Embeddings:
        features = centres[np.maximum(identities, 0)] + 0.8 * rng.normal(size=(len(identities), 16))
        names = tuple(f"{number}.jpg" for number in range(len(identities)))
        return Embeddings(features.astype(np.float32), identities, rng.integers(1, 4, len(identities)), names)

    return side(np.repeat(np.arange(1, 21), 2)), side(rng.integers(-1, 21, 200))


def test_figures_are_those_of_the_ranking(sides) -> None:
    query, gallery = sides
    search = Search.of(query, gallery, QUICK)
    distances = distance_matrix(query.features, gallery.features)
    result = rank_gallery(distances, query.identities, gallery.identities, query.cameras, gallery.cameras)
    summary = search.summary(QUICK)
    assert summary["rank1"] == pytest.approx(100 * result.rank(1), abs=0.005)
    assert summary["rank10"] == pytest.approx(100 * result.rank(10), abs=0.005)
    assert summary["mAP"] == pytest.approx(100 * result.mean_average_precision, abs=0.005)
    assert summary["mINP"] == pytest.approx(100 * result.mean_inverse_negative_penalty, abs=0.005)
    assert summary["queries"] == result.evaluated_queries
    assert summary["query_identities"] == 20
    for name in HEADLINES:
        low, high = summary["intervals"][name]
        assert low <= summary[name] <= high
    wanted = np.argsort(distances[3], kind="stable")
    kept = [
        index
        for index in wanted
        if gallery.identities[index] != -1
        and not (gallery.identities[index] == query.identities[3] and gallery.cameras[index] == query.cameras[3])
    ]
    assert search.ranked(3, top=5).gallery_indices.tolist() == kept[:5]


def test_settings_change_what_they_name(sides) -> None:
    query, gallery = sides
    plain = Search.of(query, gallery, QUICK)
    without = Search.of(query, gallery, QUICK.changed(same_camera_rule=False))
    assert without.result.mean_average_precision != plain.result.mean_average_precision
    assert not without.summary(QUICK)["same_camera_rule"]
    assert without.fingerprint != plain.fingerprint
    trapezoid = Search.of(query, gallery, QUICK.changed(average_precision="trapezoid"))
    assert trapezoid.result.mean_average_precision < plain.result.mean_average_precision
    stretched = Embeddings(query.features * np.linspace(1, 9, len(query))[:, None], query.identities, query.cameras)
    euclidean = Search.of(stretched, gallery, QUICK.changed(metric="euclidean"))
    assert euclidean.result.mean_average_precision < plain.result.mean_average_precision


def test_chance_is_what_random_orders_score_on_average(sides) -> None:
    query, gallery = sides
    search = Search.of(query, gallery, QUICK)
    chance = search.chance_rank1()
    rng = np.random.default_rng(1)
    hits = [rank_gallery(rng.random((40, 200)), *search.labels).rank1 for _ in range(200)]
    assert np.mean(hits) == pytest.approx(chance, abs=4 * np.std(hits) / np.sqrt(200))


def test_reranking_helps_where_people_form_clusters(sides) -> None:
    plain = Search.of(*sides, QUICK)
    reranked = plain.reranked(QUICK)
    assert reranked.result.mean_average_precision > plain.result.mean_average_precision
    assert reranked.distances.shape == (40, 200)


def test_pooled_queries_find_people_better(sides) -> None:
    query, gallery = sides
    same_camera = replace(query, cameras=np.ones(len(query), int))
    pooled = pool_queries(same_camera)
    assert len(pooled) == 20
    better = Search.of(pooled, gallery, QUICK).result.mean_average_precision
    assert better > Search.of(same_camera, gallery, QUICK).result.mean_average_precision


def test_an_empty_side_is_named(sides) -> None:
    query, gallery = sides
    empty = Embeddings(gallery.features[:0], gallery.identities[:0], np.empty(0, int))
    with pytest.raises(InputError, match="no gallery crops"):
        Search.of(query, empty, QUICK)
    with pytest.raises(InputError, match="no query crops"):
        Search.of(empty, gallery, QUICK)
