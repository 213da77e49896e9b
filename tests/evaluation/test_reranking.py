"""k-reciprocal re-ranking against a dense one that follows the paper with sets and loops."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posereid.config import EvaluationRecipe, RerankingRecipe
from posereid.errors import InputError
from posereid.evaluation import reranking
from posereid.evaluation.distances import distance_matrix
from posereid.evaluation.evaluate import evaluate_features
from posereid.evaluation.ranking import rank_gallery
from posereid.evaluation.reranking import k_reciprocal, rerank_heads
from posereid.evaluation.tables import evaluation_table


def naive_k_reciprocal(query, gallery, k1, k2, lambda_value):
    """Distances (Q, G) by the published algorithm; a crop is its own nearest, ties go to the earlier one."""
    crops = np.concatenate([np.asarray(query, np.float64), np.asarray(gallery, np.float64)])
    count = len(crops)
    squares = ((crops[:, None] - crops) ** 2).sum(2)
    ranked = [sorted(range(count), key=lambda j: (j != i, squares[i, j], j)) for i in range(count)]
    largest = squares.max(1)
    normalised = squares / np.where(largest > 0, largest, 1)[:, None]

    def reciprocal(crop, k):
        return {other for other in ranked[crop][: k + 1] if crop in ranked[other][: k + 1]}

    wide = [reciprocal(crop, k1) for crop in range(count)]
    narrow = [reciprocal(crop, int(np.around(k1 / 2))) for crop in range(count)]
    encodings = np.zeros((count, count))
    for crop in range(count):
        members = set(wide[crop])
        for candidate in wide[crop]:
            if 3 * len(narrow[candidate] & wide[crop]) > 2 * len(narrow[candidate]):
                members |= narrow[candidate]
        total = sum(np.exp(-normalised[crop, member]) for member in members)
        for member in members:
            encodings[crop, member] = np.exp(-normalised[crop, member]) / total
    encodings = np.array([encodings[ranked[crop][:k2]].mean(0) for crop in range(count)])
    answer = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            a, b = encodings[i], encodings[len(query) + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            answer[i, j] = (1 - lambda_value) * jaccard + lambda_value * normalised[i, len(query) + j]
    return answer


def people(rng, counts, dimensions=16, identities=40, noise=0.8):
    """Features of queries and gallery that scatter about their person's centre, and who each one shows."""
    centres = rng.normal(size=(identities, dimensions))
    shown = [rng.integers(1, identities + 1, count) for count in counts]
    features = [centres[part - 1] + noise * rng.normal(size=(len(part), dimensions)) for part in shown]
    return [part.astype(np.float32) for part in features], shown


@st.composite
def searches(draw):
    """Features on a small grid, so that equal distances and equal features are the rule; or scattered ones."""
    counts, dimensions = (draw(st.integers(1, 8)), draw(st.integers(1, 25))), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shapes = [(count, dimensions) for count in counts]
    if draw(st.booleans()):
        return [rng.integers(0, 4, shape).astype(draw(st.sampled_from([np.int64, np.float32]))) for shape in shapes]
    return [rng.normal(size=shape).astype(draw(st.sampled_from([np.float32, np.float64]))) for shape in shapes]


@settings(max_examples=300, deadline=None)
@given(searches(), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_agrees_with_the_naive_algorithm(search, k1, k2, lambda_value):
    got = k_reciprocal(*search, k1, k2, lambda_value)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, naive_k_reciprocal(*search, k1, k2, lambda_value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_heads_are_reranked_among_the_nearest_crops_alone(metric, monkeypatch):
    (query, gallery), (who, whom) = people(np.random.default_rng(5), (8, 70))
    recipe = RerankingRecipe(k1=6, k2=3)
    monkeypatch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", 50)
    whole = k_reciprocal(query, gallery, 6, 3, metric=metric)
    every = rerank_heads(query, gallery, recipe, 78, metric=metric)
    np.testing.assert_array_equal(every.rows(0, 8), whole)
    scaled = [
        part / (np.linalg.norm(part, axis=1, keepdims=True) if metric == "cosine" else 1) for part in (query, gallery)
    ]
    crops = np.concatenate(scaled).astype(np.float64)
    plain = distance_matrix(query, gallery, metric)
    heads = rerank_heads(query, gallery, recipe, 20, metric=metric)
    for number in range(8):
        nearest = sorted(range(78), key=lambda other: (other != number, np.linalg.norm(crops[other] - crops[number])))[
            :20
        ]
        others = sorted(other for other in nearest if other < 8 and other != number)
        columns = sorted(other - 8 for other in nearest if other >= 8)
        wanted = plain[number].astype(np.float64) + 2
        wanted[columns] = naive_k_reciprocal(crops[[number, *others]], crops[8:][columns], 6, 3, 0.3)[0]
        np.testing.assert_allclose(heads.rows(number, number + 1)[0], wanted, atol=2e-6)
    result = rank_gallery(heads, who, whom)
    assert result.mean_average_precision == pytest.approx(
        rank_gallery(heads.rows(0, 8), who, whom).mean_average_precision
    )
    kept = np.arange(0, 70, 3)
    np.testing.assert_array_equal(heads.select(kept).rows(2, 5), heads.rows(2, 5)[:, kept])


def test_a_large_gallery_is_searched_by_heads_and_says_so(tmp_path, monkeypatch):
    (query, gallery), (who, whom) = people(np.random.default_rng(6), (6, 90))
    np.savez(
        tmp_path / "f.npz",
        query_features=query,
        gallery_features=gallery,
        query_identities=who,
        gallery_identities=whom,
    )
    monkeypatch.setattr("posereid.evaluation.search.LARGEST_WHOLE", 89)
    monkeypatch.setattr("posereid.evaluation.search.k_reciprocal", None)
    figures = evaluate_features([tmp_path / "f.npz"], EvaluationRecipe(rerank=True, resamples=200)).figures
    assert figures["reid_reranked"]["reranked_candidates"] == 1000
    assert "among each query's nearest 1000 crops" in evaluation_table(figures)


@pytest.fixture(scope="module")
def crowd():
    features, _ = people(np.random.default_rng(2), (200, 600))
    # Empty crops all look the same: more equal features than a neighbourhood holds, in query and gallery.
    features[0][::20] = features[1][::12] = 0.5
    return features, naive_k_reciprocal(*features, 20, 6, 0.3)


def test_agrees_with_the_naive_algorithm_in_a_crowd(crowd):
    features, wanted = crowd
    np.testing.assert_allclose(k_reciprocal(*features), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"_BLOCK_ELEMENTS": 1},
        {"_BLOCK_ELEMENTS": 800 * 37},
        {"_DIFFERENCE_ELEMENTS": 100},
        {"_SPARE_CANDIDATES": 0},
        {"_SPARE_CANDIDATES": 10**6},
        {"_ROUNDING": 0.01},
    ],
    ids=str,
)
def test_the_answer_hangs_on_no_block_size(crowd, changes, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setattr(reranking, name, value)
    features, wanted = crowd
    np.testing.assert_allclose(k_reciprocal(*features), wanted, rtol=0, atol=1e-6)


def test_the_same_call_gives_the_same_bits(crowd):
    features, _ = crowd
    before = [part.copy() for part in features]
    assert k_reciprocal(*features).tobytes() == k_reciprocal(*features).tobytes()
    for part, old in zip(features, before, strict=True):
        np.testing.assert_array_equal(part, old)


@pytest.mark.parametrize(("offset", "scale"), [(1000, 1), (0, 2.0**-83), (0, 2.0**83), (-7e9, 2.0**10)])
def test_neighbours_are_found_far_from_the_origin_and_at_any_scale(offset, scale):
    (query, gallery), _ = people(np.random.default_rng(3), (30, 120))
    query, gallery = ((offset + scale * part.astype(np.float64)).astype(np.float32) for part in (query, gallery))
    unit = 1 / scale  # a power of two, so that ties stay ties
    wanted = naive_k_reciprocal(query.astype(np.float64) * unit, gallery.astype(np.float64) * unit, 20, 6, 0.3)
    np.testing.assert_allclose(k_reciprocal(query, gallery), wanted, rtol=0, atol=2e-6)


def test_one_far_outlier_does_not_blur_the_others():
    (query, gallery), _ = people(np.random.default_rng(4), (30, 120))
    gallery[7] = 1e6
    wanted = naive_k_reciprocal(query, gallery, 20, 6, 0.3)
    np.testing.assert_allclose(k_reciprocal(query, gallery), wanted, rtol=0, atol=1e-6)


def test_cosine_scales_features_to_length_one():
    rng = np.random.default_rng(5)
    query, gallery = rng.normal(size=(9, 5)), rng.normal(size=(40, 5))
    query, gallery = (part * rng.uniform(1e-3, 1e3, (len(part), 1)) for part in (query, gallery))
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (query, gallery)]
    got = k_reciprocal(query, gallery, 8, 3, metric="cosine")
    np.testing.assert_allclose(got, naive_k_reciprocal(*unit, 8, 3, 0.3), rtol=0, atol=1e-6)
    # Whatever its scale a feature keeps its direction, and one without direction stays at 0.
    query[0] *= 1e-300
    np.testing.assert_allclose(k_reciprocal(query, gallery, 8, 3, metric="cosine"), got, rtol=0, atol=1e-6)
    query[0] = 0
    assert np.isfinite(k_reciprocal(query, gallery, 8, 3, metric="cosine")).all()


@pytest.mark.parametrize("value", [0, 1.5, -3e38, 1e-40, 0.1])
def test_equal_features_are_at_no_normalised_distance(value):
    query, gallery = np.full((2, 3), value), np.full((30, 3), value)
    assert not k_reciprocal(query, gallery, lambda_value=1).any()
    np.testing.assert_allclose(
        k_reciprocal(query, gallery, 4, 2), naive_k_reciprocal(query, gallery, 4, 2, 0.3), rtol=0, atol=1e-6
    )


def test_neighbourhoods_larger_than_the_world_hold_everybody():
    query, gallery = [[0.0]], [[1.0], [3.0], [7.0]]
    np.testing.assert_array_equal(k_reciprocal(query, gallery, 1000, 2000), k_reciprocal(query, gallery, 3, 4))
    # Everybody's encoding is the mean of all, so no Jaccard distance is left.
    np.testing.assert_allclose(k_reciprocal(query, gallery, 1000, 2000, 0.0), 0, atol=1e-6)


def test_lambda_one_leaves_the_normalised_squares():
    (query, gallery), _ = people(np.random.default_rng(6), (20, 90))
    squares = distance_matrix(query, np.concatenate([query, gallery]), "euclidean").astype(np.float64) ** 2
    wanted = (squares / squares.max(1, keepdims=True))[:, 20:]
    np.testing.assert_allclose(k_reciprocal(query, gallery, lambda_value=1.0), wanted, rtol=0, atol=1e-6)


def test_reranking_finds_more_of_a_person():
    (query, gallery), (query_ids, gallery_ids) = people(np.random.default_rng(7), (100, 800), noise=1.1)
    plain = rank_gallery(distance_matrix(query, gallery, "euclidean"), query_ids, gallery_ids)
    reranked = rank_gallery(k_reciprocal(query, gallery), query_ids, gallery_ids)
    assert reranked.mean_average_precision > plain.mean_average_precision + 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_lists_and_arrays_give_the_same(dtype):
    rng = np.random.default_rng(8)
    query, gallery = (torch.tensor(rng.normal(size=(n, 3)), dtype=dtype, requires_grad=True) for n in (4, 20))
    from_tensors = k_reciprocal(query, gallery, 5, 2, device=torch.device("cpu"))
    np.testing.assert_allclose(from_tensors, k_reciprocal(query.tolist(), gallery.tolist(), 5, 2), rtol=0, atol=1e-6)


def test_autocast_does_not_coarsen_the_answer(crowd):
    features, wanted = crowd
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(k_reciprocal(*features), wanted, rtol=0, atol=1e-6)


def test_short_formats_are_switched_off_while_it_multiplies_and_back_on(monkeypatch):
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before, seen, multiply = torch.get_float32_matmul_precision(), [], torch.addmm

    def watched(*arguments, **options):
        seen.extend(backend.fp32_precision for backend in backends)
        return multiply(*arguments, **options)

    monkeypatch.setattr(torch, "addmm", watched)
    try:
        torch.set_float32_matmul_precision("medium")
        k_reciprocal([[0.0]], [[1.0]])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["ieee", "ieee"]


def test_progress_is_shown_only_on_demand(capsys):
    k_reciprocal([[0.0]], [[1.0]])
    assert not capsys.readouterr().err
    k_reciprocal([[0.0]], [[1.0]], progress=True)
    assert "re-ranking" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_memory_does_not_grow_with_the_square_of_the_crops():
    program = """
import numpy as np
from pathlib import Path
from posereid.evaluation.reranking import k_reciprocal

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

features = np.random.default_rng(0).normal(size=(14000, 8)).astype(np.float32)
k_reciprocal(features[:10], features[10:200])
before = peak()
k_reciprocal(features[:100], features[100:])
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    table = 14000**2 * 4 / 2**20
    assert float(done.stdout) < table / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_features": [[np.nan, 1.0]]}, "Row 0 of query_features is not finite"),
        ({"gallery_features": [[1.0, 1.0], [np.inf, 1.0]]}, "Row 1 of gallery_features is not finite"),
        ({"query_features": [1.0, 2.0]}, "query_features has shape"),
        ({"gallery_features": [["a", "b"]]}, "table of numbers"),
        ({"gallery_features": [[1.0]]}, "same network"),
        ({"query_features": np.empty((0, 2))}, "no query to re-rank"),
        ({"gallery_features": np.empty((0, 2))}, "no gallery to re-rank"),
        ({"k1": 0}, "k1 is 0; a whole number"),
        ({"k1": 2.5}, "k1 is 2.5; a whole number"),
        ({"k2": -1}, "k2 is -1; a whole number"),
        ({"k2": "6"}, "k2 is 6; a whole number"),
        ({"lambda_value": 1.1}, "lambda_value is 1.1; a share"),
        ({"lambda_value": -0.1}, "lambda_value is -0.1; a share"),
        ({"lambda_value": np.nan}, "lambda_value is nan; a share"),
        ({"metric": "manhattan"}, "choose cosine or euclidean"),
    ],
)
def test_wrong_input_is_named(changes, message):
    arguments = {"query_features": [[0.0, 1.0]], "gallery_features": [[1.0, 1.0], [0.0, 0.0]]} | changes
    with pytest.raises(InputError, match=message):
        k_reciprocal(**arguments)
