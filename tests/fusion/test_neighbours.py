import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from posereid.errors import InputError
from posereid.fusion import centralise, neighbours

# Small whole numbers tie often.
TABLES = st.integers(1, 9).flatmap(lambda n: arrays(np.int64, (n, 3), elements=st.integers(-2, 2)))


def unit(row: npt.NDArray) -> npt.NDArray:
    length = np.sqrt((row**2).sum())
    return row / length if length else row


def naive(features: npt.NDArray, k1: int, k2: int) -> npt.NDArray:
    """f_i + Σ f_j over j among the k1 nearest of i that have i among their k2 nearest; of unit length."""
    rows = [unit(np.asarray(row, np.float64)) for row in features]

    def nearest(i: int, k: int) -> list[int]:
        others = [j for j in range(len(rows)) if j != i]
        return sorted(others, key=lambda j: (-round(float(rows[i] @ rows[j]), 9), j))[:k]

    answer = []
    for i, row in enumerate(rows):
        total = row.copy()
        for j in nearest(i, k1):
            if i in nearest(j, k2):
                total += rows[j]
        answer.append(unit(np.where(np.abs(total) < 1e-12, 0, total)))
    return np.array(answer)


@given(TABLES, st.integers(1, 4), st.integers(1, 4))
def test_features_are_those_of_the_naive_loop(features: npt.NDArray, k1: int, k2: int) -> None:
    expected = naive(features, k1, k2)
    found = centralise(features, k1, k2)
    assert found.shape == features.shape
    assert found.dtype == np.float32
    # The direction of a sum that cancels is rounding alone.
    sure = np.abs(expected).any(axis=1)
    assert np.allclose(found[sure], expected[sure], atol=1e-5)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).standard_normal((50, 8))
    whole = centralise(features, 3, 5)
    monkeypatch.setattr(neighbours, "_BLOCK_ELEMENTS", 150)
    assert np.array_equal(centralise(features, 3, 5), whole)


def test_mutual_neighbours_meet_and_a_one_sided_one_is_left_alone() -> None:
    angles = np.deg2rad([0, 10, 25])
    found = centralise(np.stack([np.cos(angles), np.sin(angles)], axis=1), 1, 1)
    assert np.rad2deg(np.arctan2(found[:, 1], found[:, 0])) == pytest.approx([5, 5, 25], abs=1e-4)


def test_equal_crops_tie_in_the_order_in_which_they_come() -> None:
    features = np.repeat(np.random.default_rng(0).standard_normal((1, 64)), 30, axis=0)
    assert neighbours._nearest(neighbours._unit(features), 2, None)[[0, 1, 29]].tolist() == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("crops", [0, 1])
def test_without_other_crops_features_are_only_scaled(crops: int) -> None:
    features = np.full((crops, 4), 3.0)
    assert np.allclose(centralise(features), np.full((crops, 4), 0.5))


@pytest.mark.parametrize("settings", [(0, 1), (1, 0)])
def test_fewer_than_one_neighbour_is_an_input_error(settings: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"is 0; .* at least 1"):
        centralise(np.eye(3), *settings)


@pytest.mark.parametrize("features", [np.ones(3), [[1.0, np.nan]]])
def test_what_is_no_finite_table_is_an_input_error(features: npt.ArrayLike) -> None:
    with pytest.raises(InputError, match=r"shape|not finite"):
        centralise(features)
