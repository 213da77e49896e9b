"""Intervals against a bootstrap written out, and against how often they hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from posereid.errors import InputError
from posereid.evaluation.bootstrap import clustered_mean, paired_difference


def naive_interval(values, identities, resamples, confidence, seed):
    """Percentiles of the means of people drawn with replacement, one resample at a time."""
    people = sorted(set(identities))
    members = {person: [v for v, i in zip(values, identities, strict=True) if i == person] for person in people}
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = [value for number in rng.integers(0, len(people), len(people)) for value in members[people[number]]]
        means.append(np.mean(drawn))
    tail = 100 * (1 - confidence) / 2
    return np.percentile(means, [tail, 100 - tail])


def test_agrees_with_a_bootstrap_written_out():
    rng = np.random.default_rng(4)
    identities = rng.integers(0, 30, 120)
    values = rng.random(120) + 0.3 * (identities % 3)
    interval = clustered_mean(values, identities, resamples=4000, seed=1)
    low, high = naive_interval(values, identities, 4000, 0.95, seed=2)
    assert interval.estimate == pytest.approx(values.mean())
    # Two bootstraps with different draws: their percentiles differ by the draws' own noise.
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.006)


def people(rng, count):
    """Hits of people who differ in difficulty, 1 to 8 queries each."""
    sizes = rng.integers(1, 9, count)
    difficulty = rng.beta(2, 2, count)
    identities = np.repeat(np.arange(count), sizes)
    return (rng.random(len(identities)) < difficulty[identities]).astype(float), identities


def test_holds_as_often_as_it_says_where_single_queries_would_not():
    rng = np.random.default_rng(0)
    truth = 0.5
    held_people, held_queries = 0, 0
    lengths = []
    for trial in range(200):
        values, identities = people(rng, 80)
        interval = clustered_mean(values, identities, resamples=400, seed=trial)
        held_people += interval.low <= truth <= interval.high
        lengths.append(interval.high - interval.low)
        naive = clustered_mean(values, np.arange(len(values)), resamples=400, seed=trial)
        held_queries += naive.low <= truth <= naive.high
    # What 200 trials of .95 show but once in a thousand times, on either side.
    few, many = binom.interval(0.999, 200, 0.95)
    assert few <= held_people <= many
    assert held_queries < few
    # Not longer or shorter than the means of other people scatter, but for what few people and resamples cost.
    scatter = np.std([people(rng, 80)[0].mean() for _ in range(4000)])
    assert 0.95 <= np.mean(lengths) / (2 * 1.96 * scatter) <= 1.03


def test_pairing_sees_a_difference_that_two_intervals_hide():
    rng = np.random.default_rng(1)
    identities = np.repeat(np.arange(60), 4)
    first = np.clip(rng.beta(2, 2, 60)[identities] + 0.02 * rng.normal(size=240), 0, 1)
    second = first + 0.02 + 0.02 * rng.normal(size=240)
    difference = paired_difference(first, second, identities)
    apart = [clustered_mean(values, identities) for values in (first, second)]
    assert apart[0].high > apart[1].low
    assert difference.real
    assert difference.p_value < 0.01
    assert difference.difference == pytest.approx(second.mean() - first.mean())
    assert difference.low < difference.difference < difference.high


def test_a_system_does_not_differ_from_itself():
    rng = np.random.default_rng(1)
    values, identities = people(rng, 40)
    same = paired_difference(values, values, identities)
    assert same[2:] == (0, 0, 0, 1, 40)
    assert not same.real


def test_no_difference_is_called_real_about_as_rarely_as_it_should_be():
    rng = np.random.default_rng(2)
    called, lengths = 0, []
    for trial in range(200):
        identities = np.repeat(np.arange(60), 3)
        first, second = rng.random((2, 180))
        difference = paired_difference(first, second, identities, resamples=400, seed=trial)
        called += difference.real
        lengths.append(difference.high - difference.low)
    few, many = binom.interval(0.999, 200, 0.05)
    assert few <= called <= many
    # A difference of two uniform numbers has the variance 1/6, the mean of 180 a 180th of it.
    assert 0.95 <= np.mean(lengths) / (2 * 1.96 * np.sqrt(1 / 6 / 180)) <= 1.03


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=30), st.integers(0, 3))
def test_bounds_lie_around_the_mean_and_order_does_not_matter(cases, seed):
    values, identities = (np.array(column) for column in zip(*cases, strict=True))
    interval = clustered_mean(values, identities, resamples=100, seed=seed)
    turned = clustered_mean(values[::-1], identities[::-1], resamples=100, seed=seed)
    assert interval.estimate == pytest.approx(values.mean())
    if len(set(identities)) > 1:
        assert values.min() - 1e-9 <= interval.low <= interval.high <= values.max() + 1e-9
        assert turned[1:] == pytest.approx(interval[1:])
    else:
        assert np.isnan([interval.low, interval.high]).all()


def test_few_people_are_never_enough_to_call_a_difference_real():
    first = np.linspace(0.1, 0.5, 9)
    assert not paired_difference(first, first + 0.1, np.arange(9)).real


def test_nan_is_left_out_and_strings_do_as_identities():
    interval = clustered_mean([1.0, np.nan, 0.0], ["a", "b", "c"])
    assert interval.estimate == 0.5
    assert paired_difference([0.0, np.nan, 0.5], [1.0, 1.0, np.nan], ["a", "b", "c"]).difference == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1.0, 2.0]}, "give one per case"),
        ({"values": [np.nan] * 3}, "no value to take a mean of"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"resamples": 10}, "resamples is 10"),
        ({"resamples": 200.5}, "whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"values": ["0", "1", "1"]}, "real numbers"),
        ({"values": [1j, 0, 1]}, "real numbers"),
        ({"values": [np.inf, 0, 1]}, "infinite value"),
    ],
)
def test_wrong_input_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        clustered_mean(**({"values": [0.0, 1.0, 1.0], "identities": [1, 2, 3]} | changes))
