import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posereid.errors import InputError
from posereid.evaluation.seeds import mean_over_seeds


def test_the_errors_are_those_of_the_seeds_means_and_of_the_peoples_means() -> None:
    values = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    found = mean_over_seeds(values, ["a", "b", "c", "d"])
    seeds = [sum(row) / 4 for row in values]
    mean = sum(seeds) / 3
    assert found.estimate == pytest.approx(mean)
    assert found.seed_error**2 == pytest.approx(sum((s - mean) ** 2 for s in seeds) / 2 / 3)
    people = [sum(column) / 3 for column in values.T]
    assert found.people_error**2 == pytest.approx(sum((p - mean) ** 2 for p in people) / 3 / 4)
    assert found.low < found.estimate < found.high


def test_queries_of_one_person_count_as_one_person() -> None:
    values = np.random.default_rng(0).random((4, 20))
    alone = mean_over_seeds(values, np.arange(20))
    copied = mean_over_seeds(np.repeat(values, 5, axis=1), np.repeat(np.arange(20), 5))
    assert copied == pytest.approx(alone)


@pytest.mark.parametrize(("seeds", "networks"), [(5, 1), (5, 2), (3, 1)], ids=str)
def test_intervals_hold_the_truth_as_often_as_they_say_and_are_no_wider_than_they_must_be(
    seeds: int, networks: int
) -> None:
    """Of ``seeds`` generators with so many re-ID networks each, before people who are drawn at random, too."""
    random = np.random.default_rng(1)
    trials, people = 600, 30
    spread_of = {"generator": 1.0, "network": 0.7, "person": 2.0, "rest": 1.0}
    groups = np.repeat(np.arange(seeds), networks)
    variance = (
        spread_of["generator"] ** 2 / seeds
        + spread_of["network"] ** 2 / (seeds * networks)
        + spread_of["person"] ** 2 / people
        + spread_of["rest"] ** 2 / (seeds * networks * people)
    )
    held, lengths = 0, []
    for _ in range(trials):
        values = (
            random.normal(0, spread_of["generator"], (seeds, 1))[groups]
            + random.normal(0, spread_of["network"], (len(groups), 1))
            + random.normal(0, spread_of["person"], (1, people))
            + random.normal(0, spread_of["rest"], (len(groups), people))
        )
        estimate = mean_over_seeds(values, np.arange(people), groups=groups)
        held += estimate.low <= 0 <= estimate.high
        lengths.append(estimate.high - estimate.low)
    # Three standard deviations of a share of 600 each way.
    assert abs(held / trials - 0.95) <= 3 * (0.95 * 0.05 / trials) ** 0.5
    # Who knew all variances would still have to guess from so few generators: Satterthwaite's degrees of freedom.
    shared = spread_of["rest"] ** 2 / (seeds * networks * people)
    of_seeds, of_people = variance - spread_of["person"] ** 2 / people, spread_of["person"] ** 2 / people + shared
    total = of_seeds + of_people
    freedom = total**2 / (of_seeds**2 / (seeds - 1) + of_people**2 / (people - 1))
    assert np.mean(lengths) / (2 * stats.t.ppf(0.975, freedom) * total**0.5) == pytest.approx(1, abs=0.1)


def test_seeds_alone_or_people_alone_would_give_an_interval_that_is_too_narrow() -> None:
    random = np.random.default_rng(2)
    values = random.normal(0, 1, (5, 1)) + random.normal(0, 1, (1, 40))
    found = mean_over_seeds(values, np.arange(40))
    assert found.high - found.low > 2 * 2 * max(found.seed_error, found.people_error) * 0.98


@given(st.floats(-5, 5), st.integers(2, 6), st.integers(2, 6))
def test_values_that_are_all_alike_have_an_interval_without_width(value: float, seeds: int, people: int) -> None:
    found = mean_over_seeds(np.full((seeds, people), value), np.arange(people))
    assert found.low == pytest.approx(value)
    assert found.high == pytest.approx(value)


def test_columns_without_a_value_are_left_out() -> None:
    values = np.array([[1.0, np.nan, 0.0], [1.0, 5.0, 1.0]])
    assert mean_over_seeds(values, [1, 2, 3]).estimate == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("values", "identities", "match"),
    [
        ([[1.0, 2.0]], [1, 2], "two of each"),
        ([[1.0, 2.0], [1.0, 2.0]], [1, 1], "two of each"),
        ([[1.0, 2.0], [1.0, 2.0]], [1], "shape"),
        ([1.0, 2.0], [1, 2], "shape"),
        ([[1.0, np.inf], [1.0, 2.0]], [1, 2], "infinite"),
    ],
)
def test_what_cannot_have_an_interval_is_said(values: list, identities: list, match: str) -> None:
    with pytest.raises(InputError, match=match):
        mean_over_seeds(values, identities)


def test_a_confidence_out_of_range_is_said() -> None:
    with pytest.raises(InputError, match="confidence"):
        mean_over_seeds(np.ones((2, 2)), [1, 2], confidence=1.0)
