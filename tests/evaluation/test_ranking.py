"""The ranking figures against a slow evaluator that follows the protocol one crop at a time."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posereid.errors import InputError
from posereid.evaluation.distances import DistanceTable, FeatureDistances, distance_matrix
from posereid.evaluation.ranking import rank_features, rank_gallery, ranked_matches

REFERENCE = Path(os.environ.get("POSEREID_REFERENCE", Path(__file__).parents[3] / "shared" / "market1501"))


def naive_ranked_list(distances, identity, camera, gallery_identities, gallery_cameras):
    """Gallery indices, best first, after the protocol's exclusions."""
    kept = []
    for index in range(len(gallery_identities)):
        junk = gallery_identities[index] == -1
        own_camera = camera is not None and gallery_identities[index] == identity and gallery_cameras[index] == camera
        if not junk and not own_camera:
            kept.append(index)
    return sorted(kept, key=lambda index: (distances[index], index))


def naive_query(distances, identity, camera, gallery_identities, gallery_cameras):
    """(rank of the first right crop, hits AP, trapezoid AP, INP), or None without a right crop."""
    ranked = naive_ranked_list(distances, identity, camera, gallery_identities, gallery_cameras)
    right = [gallery_identities[index] == identity for index in ranked]
    total = sum(right)
    if total == 0:
        return None
    hits, at_hits, trapezoid, first, last = 0, 0.0, 0.0, None, None
    old_recall, old_precision = 0.0, 1.0
    for place, is_right in enumerate(right, start=1):
        if is_right:
            hits += 1
            first, last = first or place, place
            at_hits += hits / place
        recall, precision = hits / total, hits / place
        trapezoid += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return first, at_hits / total, trapezoid, total / last


def check_against_naive(distances, queries, gallery, max_rank, naive=naive_query):
    """Compare all a result says with the naive evaluator; queries and gallery are (identities, cameras)."""
    (query_ids, query_cams), (gallery_ids, gallery_cams) = queries, gallery
    answers = [
        naive(
            distances[row],
            query_ids[row],
            None if query_cams is None else query_cams[row],
            gallery_ids,
            gallery_cams,
        )
        for row in range(len(query_ids))
    ]
    matched = [answer for answer in answers if answer is not None]
    arguments = (distances, query_ids, gallery_ids, query_cams, gallery_cams)
    if not matched:
        with pytest.raises(InputError, match="has a match in the gallery"):
            rank_gallery(*arguments)
        return
    hits = rank_gallery(*arguments, max_rank=max_rank)
    trapezoid = rank_gallery(*arguments, max_rank=max_rank, average_precision="trapezoid")
    assert hits.average_precision == "hits"
    assert trapezoid.average_precision == "trapezoid"
    assert hits.first_hit_ranks.tolist() == [0 if answer is None else answer[0] for answer in answers]
    for got, position in (
        (hits.average_precisions, 1),
        (trapezoid.average_precisions, 2),
        (hits.inverse_negative_penalties, 3),
    ):
        wanted = [np.nan if answer is None else answer[position] for answer in answers]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
    assert hits.evaluated_queries == len(matched)
    assert hits.unmatched_queries == len(answers) - len(matched)
    cmc = [sum(answer[0] <= k for answer in matched) / len(matched) for k in range(1, max_rank + 1)]
    assert hits.cmc.tolist() == cmc
    assert hits.rank1 == cmc[0]
    assert hits.mean_average_precision == pytest.approx(np.mean([a[1] for a in matched]), abs=1e-12)
    assert trapezoid.mean_average_precision == pytest.approx(np.mean([a[2] for a in matched]), abs=1e-12)
    assert hits.mean_inverse_negative_penalty == pytest.approx(np.mean([a[3] for a in matched]), abs=1e-12)


@st.composite
def searches(draw):
    query_count, gallery_count = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    query_ids = draw(st.lists(st.integers(1, 4), min_size=query_count, max_size=query_count))
    gallery_ids = draw(st.lists(st.integers(-1, 4), min_size=gallery_count, max_size=gallery_count))
    query_cams = draw(st.lists(st.integers(1, 3), min_size=query_count, max_size=query_count))
    gallery_cams = draw(st.lists(st.integers(1, 3), min_size=gallery_count, max_size=gallery_count))
    # Few distinct distances, so that ties are the rule.
    values = st.lists(st.integers(0, 5), min_size=query_count * gallery_count, max_size=query_count * gallery_count)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64, np.float16]))
    distances = np.array(draw(values), dtype).reshape(query_count, gallery_count)
    cameras = draw(st.booleans())
    return (
        distances,
        (query_ids, query_cams if cameras else None),
        (gallery_ids, gallery_cams if cameras else None),
    )


@settings(max_examples=400, deadline=None)
@given(searches(), st.integers(1, 20))
def test_agrees_with_the_naive_evaluator(search, max_rank):
    check_against_naive(*search, max_rank)


@settings(max_examples=150, deadline=None)
@given(searches(), st.integers(1, 20), st.data())
def test_ranked_list_agrees_with_the_naive_one(search, top, data):
    distances, (query_ids, query_cams), (gallery_ids, gallery_cams) = search
    query = data.draw(st.integers(0, len(query_ids) - 1))
    camera = None if query_cams is None else query_cams[query]
    wanted = naive_ranked_list(distances[query], query_ids[query], camera, gallery_ids, gallery_cams)[:top]
    indices, right = ranked_matches(
        distances, query_ids, gallery_ids, query_cams, gallery_cams, query_index=query, top=top
    )
    assert indices.tolist() == wanted
    assert right.tolist() == [gallery_ids[index] == query_ids[query] for index in wanted]


@pytest.fixture(scope="module", params=["a tenth of it, drawn", "Market-1501"])
def market(request):
    """(identities, cameras) of queries and gallery: some in the official shares, and the official where they are."""
    if request.param != "Market-1501":
        rng = np.random.default_rng(7)
        people = np.concatenate([np.repeat([-1, 0], [382, 280]), rng.integers(1, 76, 1311)])
        return [(ids, rng.integers(1, 7, len(ids))) for ids in (rng.integers(1, 76, 337), people)]
    files = [REFERENCE / f"{split}-ids-cameras.csv" for split in ("query", "gallery")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"the official Market-1501 identities are not in {REFERENCE}; set POSEREID_REFERENCE")
    return [np.loadtxt(file, int, delimiter=",", skiprows=1, unpack=True) for file in files]


def numpy_query(distances, identity, camera, gallery_identities, gallery_cameras):
    """:func:`naive_query` for thousands of crops: the same steps, each over the whole ranked list."""
    kept = (gallery_identities != -1) & ~((gallery_identities == identity) & (gallery_cameras == camera))
    order = np.argsort(distances[kept], kind="stable")
    right = gallery_identities[kept][order] == identity
    if not right.any():
        return None
    places, hits, total = np.arange(1, len(right) + 1), right.cumsum(), right.sum()
    precision = hits / places
    earlier = np.concatenate([[1.0], precision[:-1]])
    return (
        places[right][0],
        precision[right].mean(),
        ((precision + earlier) / 2)[right].sum() / total,
        total / places[right][-1],
    )


@pytest.mark.parametrize("levels", [None, 100], ids=["no ties", "100 distinct distances"])
def test_market_agrees_with_the_naive_evaluator(market, levels):
    queries, gallery = market
    shape = (len(queries[0]), len(gallery[0]))
    assert shape in ((3368, 19732), (337, 1973))
    rng = np.random.default_rng(0)
    if levels is None:
        distances = rng.random(shape, np.float32)
        # Right crops nearer on the whole, so that the figures are not all next to zero.
        distances[queries[0][:, None] == gallery[0]] *= 0.02
    else:
        distances = rng.integers(0, levels, shape).astype(np.float32)
    check_against_naive(distances, queries, gallery, 50, naive=numpy_query)


@settings(max_examples=100, deadline=None)
@given(searches())
def test_the_two_naive_evaluators_agree(search):
    distances, (query_ids, query_cams), (gallery_ids, gallery_cams) = search
    for row, identity in enumerate(query_ids):
        camera = query_cams[row] if query_cams else None
        slow = naive_query(distances[row].tolist(), identity, camera, gallery_ids, gallery_cams)
        cameras = np.array(gallery_cams) if gallery_cams else np.zeros(len(gallery_ids))
        fast = numpy_query(distances[row], identity, camera, np.array(gallery_ids), cameras)
        assert fast == (None if slow is None else pytest.approx(slow, abs=1e-12))


def test_large_identities_of_two_kinds_stay_apart():
    identities = np.arange(6) + 2**60
    distances = 1 - np.eye(6)
    assert rank_gallery(distances, identities.astype(np.uint64), identities).first_hit_ranks.tolist() == [1] * 6
    assert rank_gallery(np.eye(6), identities.astype(np.uint64), identities).first_hit_ranks.tolist() == [6] * 6


def test_junk_is_dropped_and_distractors_stay():
    distances = [[0.1, 0.2, 0.3]]
    assert rank_gallery(distances, [5], [-1, 0, 5]).first_hit_ranks.tolist() == [2]
    assert rank_gallery(distances, ["5"], ["-1", "0000", "5"]).first_hit_ranks.tolist() == [2]


def test_same_camera_crops_are_dropped_only_with_cameras():
    arguments = ([[0.1, 0.2, 0.3]], [5], [5, 6, 5])
    assert rank_gallery(*arguments).first_hit_ranks.tolist() == [1]
    assert rank_gallery(*arguments, ["a"], ["a", "a", "b"]).first_hit_ranks.tolist() == [2]


def test_unmatched_queries_are_counted_and_left_out():
    result = rank_gallery([[0.1, 0.2], [0.2, 0.1], [0.0, 0.0]], [1, 2, 9], [1, 2])
    assert (result.evaluated_queries, result.unmatched_queries) == (2, 1)
    assert result.first_hit_ranks.tolist() == [1, 1, 0]
    assert np.isnan(result.average_precisions[2])
    assert np.isnan(result.inverse_negative_penalties[2])
    assert result.mean_average_precision == 1.0


def test_cmc_is_padded_beyond_the_gallery():
    result = rank_gallery([[0.3]], [1], [1], max_rank=5)
    assert result.cmc.tolist() == [1.0] * 5
    assert result.rank(5) == 1.0
    with pytest.raises(InputError, match="ranks 1 to 5"):
        result.rank(6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_lists_and_arrays_give_the_same(dtype):
    distances = torch.tensor([[0.5, 0.25, 0.75], [0.125, 0.5, 0.25]], dtype=dtype, requires_grad=True)
    query, gallery = torch.tensor([1, 2]), torch.tensor([1, 2, 1])
    from_tensors = rank_gallery(distances, query, gallery)
    from_lists = rank_gallery(distances.tolist(), query.tolist(), gallery.tolist())
    assert from_tensors.average_precisions.tolist() == from_lists.average_precisions.tolist()
    assert from_tensors.cmc.tolist() == from_lists.cmc.tolist()


def test_nothing_given_is_changed():
    distances = np.array([[0.3, 0.1, 0.2]])
    before = distances.copy()
    rank_gallery(distances, [1], [1, 2, 1], [1], [1, 1, 2])
    ranked_matches(distances, [1], [1, 2, 1], [1], [1, 1, 2], query_index=0)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances": [[np.nan, 0.1]]}, "query 0 to gallery crop 0 is nan"),
        ({"distances": [[0.1, np.inf]]}, "query 0 to gallery crop 1 is inf"),
        ({"distances": [0.1, 0.2]}, "two dimensions"),
        ({"distances": [["a", "b"]]}, "table of numbers"),
        ({"distances": [[0.1, 0.2], [0.3]]}, "expected"),
        ({"distances": []}, "no query"),
        ({"distances": np.empty((0, 2)), "query_identities": []}, "no query"),
        ({"query_identities": [1, 2]}, "query_identities has shape"),
        ({"gallery_identities": [1, 2, 3]}, "gallery_identities has shape"),
        ({"gallery_cameras": [1, 2]}, "query_cameras is not"),
        ({"query_cameras": [1], "gallery_cameras": [1]}, "gallery_cameras has shape"),
        (
            {"query_cameras": [1], "gallery_cameras": [1, 2]},
            "1 have crops of their identity from their own camera",
        ),
        ({"query_identities": [3]}, "1 have none at all"),
        ({"query_identities": ["1"]}, "both as strings"),
        ({"query_identities": [1.5]}, "whole numbers or strings"),
        ({"query_identities": [0]}, "marks junk"),
        ({"query_identities": [-1]}, "marks junk"),
        ({"gallery_identities": [-1, -1]}, "has a match in the gallery"),
        ({"distances": np.empty((1, 0)), "gallery_identities": []}, "has a match in the gallery"),
        ({"max_rank": 0}, "max_rank is 0"),
        ({"average_precision": "voc"}, "choose hits or trapezoid"),
    ],
)
def test_wrong_input_is_named(changes, message):
    arguments = {"distances": [[0.1, 0.2]], "query_identities": [1], "gallery_identities": [1, 2]} | changes
    with pytest.raises(InputError, match=message):
        rank_gallery(**arguments)


@pytest.mark.parametrize("wrong", [{"query_index": 1}, {"query_index": -1}, {"query_index": 0, "top": 0}])
def test_ranked_matches_names_wrong_input(wrong):
    with pytest.raises(InputError, match=r"query_index is|top is"):
        ranked_matches([[0.1]], [1], [1], **wrong)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ranking_features_is_ranking_their_distances(metric, monkeypatch):
    rng = np.random.default_rng(3)
    query_ids, gallery_ids = rng.integers(1, 9, 40), rng.integers(-1, 9, 90)
    query_cams, gallery_cams = rng.integers(0, 3, 40), rng.integers(0, 3, 90)
    query, gallery = rng.normal(size=(40, 16)), rng.normal(size=(90, 16))
    labels = (query_ids, gallery_ids, query_cams, gallery_cams)
    wanted = rank_gallery(distance_matrix(query, gallery, metric), *labels, average_precision="trapezoid")
    monkeypatch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", 300)  # several blocks
    for device in (None, "cpu", torch.device("cpu")):
        result = rank_features(query, gallery, *labels, metric=metric, device=device, average_precision="trapezoid")
        assert result.cmc.tolist() == wanted.cmc.tolist()
        np.testing.assert_array_equal(result.average_precisions, wanted.average_precisions)
    head = ranked_matches(FeatureDistances.of(query, gallery, metric), *labels, query_index=7, top=5)
    assert (
        head.gallery_indices.tolist()
        == naive_ranked_list(
            distance_matrix(query, gallery, metric)[7], query_ids[7], query_cams[7], gallery_ids, gallery_cams
        )[:5]
    )


def test_ranking_features_never_holds_many_distances(monkeypatch):
    monkeypatch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", 250)  # a product takes four times that
    seen = []
    plain = FeatureDistances.rows

    def counted(self, start, stop):
        block = plain(self, start, stop)
        seen.append(block.size)
        return block

    monkeypatch.setattr(FeatureDistances, "rows", counted)
    rng = np.random.default_rng(0)
    rank_features(rng.normal(size=(50, 8)), rng.normal(size=(100, 8)), np.arange(1, 51), np.arange(1, 101))
    assert sum(seen) == 50 * 100
    assert max(seen) <= 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_features": [[np.nan, 1.0]]}, "Row 0 of query_features is not finite"),
        ({"gallery_features": [[1.0, 1.0], [np.inf, 1.0]]}, "Row 1 of gallery_features is not finite"),
        ({"gallery_features": [[1.0], [2.0]]}, "same network"),
        ({"query_features": [["a", "b"]]}, "table of numbers"),
        ({"query_features": np.empty((0, 2)), "query_identities": []}, "no query"),
        ({"query_identities": [1, 2]}, r"query_identities has shape \(2,\), but there are 1 queries"),
        ({"query_identities": [3]}, "1 have none at all"),
        ({"metric": "hamming"}, "choose cosine or euclidean"),
    ],
)
def test_ranking_features_names_wrong_input(changes, message):
    arguments = {
        "query_features": [[0.0, 1.0]],
        "gallery_features": [[1.0, 1.0], [0.0, 1.0]],
        "query_identities": [1],
        "gallery_identities": [1, 2],
    }
    with pytest.raises(InputError, match=message):
        rank_features(**(arguments | changes))


def test_a_table_of_distances_is_taken_as_it_is():
    table = DistanceTable(np.array([[0.1, 0.2, 0.3]]))
    assert rank_gallery(table, [5], [-1, 0, 5]).first_hit_ranks.tolist() == [2]
