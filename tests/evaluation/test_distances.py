"""Distances between features against their definitions."""

import numpy as np
import pytest
import torch

from posereid.errors import InputError
from posereid.evaluation.distances import FeatureDistances, distance_matrix


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_agree_with_the_definition(metric, dtype, monkeypatch):
    monkeypatch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", 20)  # several blocks
    rng = np.random.default_rng(1)
    queries, gallery = rng.normal(size=(7, 5)).astype(dtype), rng.normal(size=(9, 5)).astype(dtype)
    got = distance_matrix(queries, gallery, metric)
    assert got.dtype == dtype
    for row, query in enumerate(queries):
        for column, crop in enumerate(gallery):
            wanted = (
                1 - query @ crop / np.linalg.norm(query) / np.linalg.norm(crop)
                if metric == "cosine"
                else np.linalg.norm(query - crop)
            )
            assert got[row, column] == pytest.approx(wanted, abs=1e-6)


def test_small_euclidean_distances_survive_large_features():
    base = np.full((1, 64), 100, np.float32)
    other = base.copy()
    other[0, 0] += 0.01
    assert distance_matrix(base, other, "euclidean")[0, 0] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-24, 1e20])
def test_cosine_does_not_depend_on_the_features_length(scale):
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, 5, 8)).astype(np.float32)
    scaled = distance_matrix((query * np.float32(scale)), (gallery * np.float32(scale)))
    np.testing.assert_allclose(scaled, distance_matrix(query, gallery), atol=1e-6)


def test_zero_features_are_at_cosine_distance_one():
    assert distance_matrix(torch.zeros(1, 3), torch.ones(2, 3)).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("queries", "gallery", "metric", "message"),
    [
        ([[1.0, 2.0]], [[1.0]], "cosine", "same network"),
        ([[np.nan]], [[1.0]], "cosine", "Row 0 of query_features is not finite"),
        ([1.0], [[1.0]], "cosine", "two dimensions"),
        ([[1.0]], [[1.0]], "manhattan", "choose cosine or euclidean"),
    ],
)
def test_distance_matrix_names_wrong_input(queries, gallery, metric, message):
    with pytest.raises(InputError, match=message):
        distance_matrix(queries, gallery, metric)


def test_selected_columns_are_those_of_the_whole():
    rng = np.random.default_rng(2)
    source = FeatureDistances.of(rng.normal(size=(3, 4)), rng.normal(size=(6, 4)))
    kept = np.array([1, 4, 5])
    assert source.select(kept).shape == (3, 3)
    np.testing.assert_allclose(source.select(kept).rows(0, 3), source.rows(0, 3)[:, kept], atol=1e-12)
