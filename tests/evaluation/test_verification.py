"""The verification figures against a slow verifier that looks at pair after pair; intervals against the truth."""

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from posereid.errors import InputError
from posereid.evaluation import verification, verification_pairs
from posereid.evaluation.distances import FeatureDistances
from posereid.evaluation.verification import verify_pairs

RATES = (0.5, 0.25, 0.1, 0.01)


def naive_pairs(distances, query_ids, gallery_ids, query_cams, gallery_cams):
    """Genuine (distance, identity) and impostor (distance, cluster, cluster) pairs; a distractor is its own cluster."""
    genuine, impostor = [], []
    for row, query in enumerate(query_ids):
        for column, other in enumerate(gallery_ids):
            distance = float(distances[row][column])
            if other == -1:
                continue
            if query != other:
                impostor.append((distance, query, other if other else ("distractor", column)))
            elif query_cams is None or query_cams[row] != gallery_cams[column]:
                genuine.append((distance, query))
    return genuine, impostor


def accepted(pairs, threshold):
    return sum(pair[0] <= threshold for pair in pairs)


def naive_equal_error_rate(genuine, impostor):
    """Over all operating points, one at each distinct distance, after the one that accepts nothing."""
    before = (Fraction(0), Fraction(1))
    for threshold in sorted({pair[0] for pair in genuine + impostor}):
        false_match = Fraction(accepted(impostor, threshold), len(impostor))
        false_non_match = 1 - Fraction(accepted(genuine, threshold), len(genuine))
        if false_match >= false_non_match:
            rise = false_match - before[0] + before[1] - false_non_match
            return before[0] + (before[1] - before[0]) / rise * (false_match - before[0])
        before = (false_match, false_non_match)
    raise AssertionError("the last threshold accepts everything")


def naive_threshold(impostor, rate):
    """Halfway between the last accepted and the first rejected impostor distance."""
    distinct = sorted({pair[0] for pair in impostor})
    last = None
    for distance in distinct:
        if accepted(impostor, distance) / len(impostor) > rate:
            return math.nan if last is None else (last + distance) / 2
        last = distance
    raise AssertionError("a rate below 1 rejects the greatest distance")


def check_against_naive(distances, queries, gallery):
    (query_ids, query_cams), (gallery_ids, gallery_cams) = queries, gallery
    genuine, impostor = naive_pairs(distances, query_ids, gallery_ids, query_cams, gallery_cams)
    arguments = (distances, query_ids, gallery_ids, query_cams, gallery_cams)
    if not genuine or not impostor:
        with pytest.raises(InputError, match="no pair is an impostor" if genuine else "has a match in the gallery"):
            verify_pairs(*arguments)
        return None
    result = verify_pairs(*arguments, false_match_rates=RATES, resamples=40)
    assert (result.genuine_pairs, result.impostor_pairs) == (len(genuine), len(impostor))
    everything = sorted({pair[0] for pair in genuine + impostor})
    assert result.thresholds.tolist() == sorted({-math.inf, *(pair[0] for pair in genuine), everything[-1]})
    for false_match, true_match, threshold in zip(
        result.false_match_rates, result.true_match_rates, result.thresholds, strict=True
    ):
        assert false_match == accepted(impostor, threshold) / len(impostor)
        assert true_match == accepted(genuine, threshold) / len(genuine)
    wins = sum((g[0] < i[0]) + Fraction(g[0] == i[0], 2) for g in genuine for i in impostor)
    assert result.area_under_curve == float(Fraction(wins) / (len(genuine) * len(impostor)))
    assert result.equal_error_rate == pytest.approx(float(naive_equal_error_rate(genuine, impostor)), abs=1e-12)
    assert everything[0] <= result.equal_error_threshold <= everything[-1]
    for rate, point in zip(RATES, result.operating_points, strict=True):
        wanted = naive_threshold(impostor, rate)
        assert point.stated_false_match_rate == rate
        np.testing.assert_equal(point.threshold, wanted)
        assert point.supported == (not point.note)
        if math.isnan(wanted):
            assert math.isnan(point.false_match_rate)
            assert math.isnan(point.true_match_rate)
            assert not point.supported
        else:
            assert point.false_match_rate == accepted(impostor, wanted) / len(impostor) <= rate
            assert point.true_match_rate == accepted(genuine, wanted) / len(genuine)
    return result


@st.composite
def searches(draw):
    query_count, gallery_count = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    query_ids = draw(st.lists(st.integers(1, 4), min_size=query_count, max_size=query_count))
    gallery_ids = draw(st.lists(st.integers(-1, 4), min_size=gallery_count, max_size=gallery_count))
    query_cams = draw(st.lists(st.integers(1, 3), min_size=query_count, max_size=query_count))
    gallery_cams = draw(st.lists(st.integers(1, 3), min_size=gallery_count, max_size=gallery_count))
    # Few distinct distances, so that ties are the rule.
    size = query_count * gallery_count
    values = draw(st.lists(st.integers(-2, draw(st.integers(1, 30))), min_size=size, max_size=size))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64, np.float16]))
    distances = np.array(values, dtype).reshape(query_count, gallery_count)
    cameras = draw(st.booleans())
    return distances, (query_ids, query_cams if cameras else None), (gallery_ids, gallery_cams if cameras else None)


@settings(max_examples=300, deadline=None)
@given(searches(), st.sampled_from([1, 2**20]), st.sampled_from([1, 20, 2**22]))
def test_agrees_with_the_naive_verifier(search, tail, block_elements):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification_pairs, "_TAIL_AT_LEAST", tail)
        patch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", block_elements)
        check_against_naive(*search)


def naive_interval_draws(genuine, impostor, threshold, rate, weights):
    """Threshold, false-match rate and true-match rate of one resample; ``weights`` says how often it has a cluster."""
    total = sum(weights[query] * weights[other] for _, query, other in impostor)
    right = sum(weights[person] for _, person in genuine)
    false_match = sum(weights[query] * weights[other] for distance, query, other in impostor if distance <= threshold)
    true_match = sum(weights[person] for distance, person in genuine if distance <= threshold)
    return (
        naive_weighted_threshold(impostor, rate * total, weights) if total else math.nan,
        false_match / total if total else math.nan,
        true_match / right if right else math.nan,
    )


def naive_weighted_threshold(impostor, wanted, weights):
    reached, last = 0, None
    for distance in sorted({pair[0] for pair in impostor}):
        here = reached + sum(weights[query] * weights[other] for d, query, other in impostor if d == distance)
        if here > wanted:
            return -math.inf if last is None else last + (wanted - reached) / (here - reached) * (distance - last)
        reached, last = here, distance
    return math.inf


@settings(max_examples=60, deadline=None)
@given(searches())
def test_resamples_agree_with_weighing_pair_by_pair(search):
    distances, (query_ids, query_cams), (gallery_ids, gallery_cams) = search
    genuine, impostor = naive_pairs(distances, query_ids, gallery_ids, query_cams, gallery_cams)
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        resampled = verification._resampled
        patch.setattr(verification, "_resampled", lambda *given: kept.append(resampled(*given)) or kept[-1])
        result = check_against_naive(*search)
    if result is None:
        return
    # The order of clusters: people among the queries, people in the gallery only, distractor crops.
    clusters = sorted(set(query_ids)) + sorted({other for other in gallery_ids if other > 0} - set(query_ids))
    clusters += [("distractor", column) for column, other in enumerate(gallery_ids) if other == 0]
    weights = np.concatenate(list(verification._weights(len(clusters), 40, 0)), axis=1)
    assert (weights.sum(0) == len(clusters)).all()
    for draws, point in zip(kept[0], result.operating_points, strict=True):
        if math.isnan(point.threshold):
            assert not len(draws.thresholds)
            continue
        wanted = [
            naive_interval_draws(
                genuine,
                impostor,
                point.threshold,
                point.stated_false_match_rate,
                dict(zip(clusters, drawn, strict=True)),
            )
            for drawn in weights.T
        ]
        got = np.stack([draws.thresholds, draws.false_match_rates, draws.true_match_rates], axis=1)
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
        usable = got[~np.isnan(got[:, 1]), 1]
        ends = np.quantile(usable, [(1 - 0.95) / 2, (1 + 0.95) / 2], method="inverted_cdf")
        assert point.false_match_rate_interval == tuple(ends)


def people(rng, count, crops=4, noise=0.5):
    """Features (count · crops, 16) around one centre a person, and identities from 1."""
    centres = rng.normal(size=(count, 16))
    features = centres[:, None] + noise * rng.normal(size=(count, crops, 16))
    return features.reshape(-1, 16).astype(np.float32), np.repeat(np.arange(1, count + 1), crops)


def search_of(features, identities, crops=4, metric="cosine"):
    """One crop of each person searches the others: arguments of verify_pairs."""
    query = np.arange(len(identities)) % crops == 0
    return FeatureDistances.of(features[query], features[~query], metric), identities[query], identities[~query]


def impostor_distances(distances, query_ids, gallery_ids):
    return distances.rows(0, len(query_ids))[query_ids[:, None] != gallery_ids]


def share_within(ascending, threshold):
    return np.searchsorted(ascending, threshold, "right") / len(ascending)


def test_a_threshold_of_one_half_of_the_people_holds_on_the_other_half():
    features, identities = people(np.random.default_rng(0), 400)
    first = identities <= 200
    point = verify_pairs(*search_of(features[first], identities[first])).threshold_for(1e-3)
    assert point.supported
    others = impostor_distances(*search_of(features[~first], identities[~first]))
    low, high = point.false_match_rate_interval
    assert low <= np.mean(others <= point.threshold) <= high
    assert low < 1e-3 < high


# Cosine: chance between pairs outweighs people. Euclidean: some people are close to many.
@pytest.mark.parametrize(("metric", "noise"), [("cosine", 0.5), ("euclidean", 0.9)])
def test_intervals_hold_the_truth_as_often_as_they_say_and_are_no_longer_than_they_say(metric, noise):
    rng, trials = np.random.default_rng(12345), 30
    population = np.sort(impostor_distances(*search_of(*people(rng, 2000, 2, noise), 2, metric)))
    strangers = [search_of(*people(rng, 500, 2, noise), 2, metric) for _ in range(40)]
    same_person = np.sort(np.concatenate([np.diag(distances.rows(0, 500)) for distances, *_ in strangers]))
    held, lengths, scatter = defaultdict(list), defaultdict(list), defaultdict(list)
    for seed in range(trials):
        features, identities = people(np.random.default_rng(seed), 300, noise=noise)
        first = identities <= 150
        result = verify_pairs(*search_of(features[first], identities[first], metric=metric), resamples=200)
        others = np.sort(impostor_distances(*search_of(features[~first], identities[~first], metric=metric)))
        for rate in (1e-2, 1e-3):
            point = result.threshold_for(rate)
            accepted = share_within(population, point.threshold)
            matched = share_within(same_person, point.threshold)
            for key, interval, truth, error in (
                ("false-match rate", point.false_match_rate_interval, accepted, accepted),
                ("threshold", point.threshold_interval, population[int(rate * len(population))], point.threshold),
                ("true-match rate", point.true_match_rate_interval, matched, point.true_match_rate - matched),
                ("others' rate", point.false_match_rate_interval, share_within(others, point.threshold), 0),
                ("others' threshold", point.threshold_interval, others[int(rate * len(others))], 0),
            ):
                held[key, rate].append(interval[0] <= truth <= interval[1])
                lengths[key, rate].append(interval[1] - interval[0])
                scatter[key, rate].append(error)
    coverage = defaultdict(list)
    for (key, _), values in held.items():
        coverage[key] += values
    # As many others, measured in turn, scatter √2 times as far: 83 % of them are to be expected at least.
    assert min(np.mean(coverage[key]) for key in ("others' rate", "others' threshold")) >= 0.75, coverage
    least = binom.ppf(0.0025, 2 * trials, 0.95)
    low_spread, high_spread = np.sqrt(chi2.interval(0.999, trials - 1) / np.array(trials - 1))
    for key, longest in (("false-match rate", 3**0.5), ("threshold", 3**0.5), ("true-match rate", 1)):
        assert sum(coverage[key]) >= least, (key, coverage[key])
        for rate in (1e-2, 1e-3):
            # Against how far the figure lies off over other people, as well as so many trials tell it. Intervals of
            # false matches may be √3 times as long as needed.
            ratio = np.median(lengths[key, rate]) / (2 * 1.96 * np.std(scatter[key, rate], ddof=1))
            assert 1 / high_spread <= ratio <= longest / low_spread, (key, rate, ratio)


def test_of_too_many_impostors_a_sample_is_kept_and_rates_are_still_counted(monkeypatch):
    rng = np.random.default_rng(8)
    queries, gallery = np.repeat(np.arange(1, 101), 2), np.repeat(np.arange(1, 201), 10)
    distances = rng.random((200, 2000)) ** 0.5
    distances[queries[:, None] == gallery] *= 0.4
    arguments = {"false_match_rates": [0.1, 0.01, 2e-4], "resamples": 200}
    whole = verify_pairs(distances, queries, gallery, **arguments)
    assert whole.kept_share == 1
    monkeypatch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", 2000 * 7)
    monkeypatch.setattr(verification_pairs, "_TAIL_AT_LEAST", 200)
    monkeypatch.setattr(verification_pairs, "_TAIL_AT_MOST", 8000)
    most = []
    ascending = verification_pairs._Smallest.ascending
    monkeypatch.setattr(
        verification_pairs._Smallest,
        "ascending",
        lambda self: most.append(sum(map(len, self._waiting))) or ascending(self),
    )
    few = verify_pairs(distances, queries, gallery, **arguments)
    assert few.kept_share == pytest.approx(8000 / (0.2 * whole.impostor_pairs), rel=1e-3)
    assert max(most) <= 8000 * 1.25 + 2000 * 7
    assert (few.area_under_curve, few.equal_error_rate) == (whole.area_under_curve, whole.equal_error_rate)
    impostors = np.sort(distances[queries[:, None] != gallery])
    for sampled, exact in zip(few.operating_points, whole.operating_points, strict=True):
        # A sample of n tells a rank up to 1 / √n; the smallest ones are all kept.
        tolerance = 4 / (exact.false_match_rate * 8000 / 0.2) ** 0.5 if exact.false_match_rate > 1e-3 else 0
        assert sampled.false_match_rate == pytest.approx(exact.false_match_rate, rel=tolerance)
        assert sampled.false_match_rate == np.searchsorted(impostors, sampled.threshold, "right") / len(impostors)
        # Intervals hold the sample's own error too, 1 / √share of that of all pairs where pairs are all chance.
        lengths = [np.diff(point.threshold_interval)[0] for point in (exact, sampled)]
        assert 0.8 * lengths[0] <= lengths[1] <= 1.2 * lengths[0] / few.kept_share**0.5
    assert verify_pairs(distances, queries, gallery, **arguments).operating_points == few.operating_points


@pytest.mark.parametrize("levels", [None, 300], ids=["no ties", "300 distinct distances"])
def test_the_way_of_counting_changes_nothing(levels, monkeypatch):
    rng = np.random.default_rng(3)
    queries, gallery = np.repeat(np.arange(1, 41), 3), rng.integers(-1, 50, 400)
    distances = rng.random((120, 400)) if levels is None else rng.integers(0, levels, (120, 400)).astype(float)
    distances[queries[:, None] == gallery] *= 0.5
    arguments = (distances, queries, gallery, rng.integers(0, 3, 120), rng.integers(0, 3, 400))
    plain = verify_pairs(*arguments)
    monkeypatch.setattr("posereid.evaluation.distances._BLOCK_ELEMENTS", 1000)
    monkeypatch.setattr(verification_pairs, "_CELLS_WAITING", 300)
    in_blocks = verify_pairs(*arguments)
    assert in_blocks.operating_points == plain.operating_points
    monkeypatch.setattr(verification_pairs, "_TAIL_AT_LEAST", 1)
    monkeypatch.setattr(verification_pairs, "_TAIL_STEPS", 64)
    short = verify_pairs(*arguments)
    for result in (in_blocks, short):
        assert result.area_under_curve == plain.area_under_curve
        assert result.equal_error_rate == plain.equal_error_rate
        assert result.equal_error_threshold == plain.equal_error_threshold
        np.testing.assert_array_equal(result.thresholds, plain.thresholds)
        np.testing.assert_array_equal(result.false_match_rates, plain.false_match_rates)
        np.testing.assert_array_equal(result.true_match_rates, plain.true_match_rates)
    for point, wanted in zip(short.operating_points, plain.operating_points, strict=True):
        np.testing.assert_equal(point.threshold, wanted.threshold)
        np.testing.assert_equal(point.false_match_rate_interval, wanted.false_match_rate_interval)
        np.testing.assert_equal(point.true_match_rate_interval, wanted.true_match_rate_interval)
        np.testing.assert_allclose(point.threshold_interval, wanted.threshold_interval, rtol=0.05)


def test_a_long_roc_is_thinned_to_exact_points():
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(1, 61), 8)
    distances = rng.random((480, 480))
    same = identities[:, None] == identities
    distances[same] *= 0.7
    result = verify_pairs(distances, identities, identities, resamples=40)
    assert 300 < len(result.thresholds) <= 1000 < result.genuine_pairs
    genuine, impostor = distances[same], distances[~same]
    for index in (0, 1, 2, 100, 250, -2, -1):
        threshold = result.thresholds[index]
        assert result.false_match_rates[index] == np.mean(impostor <= threshold)
        assert result.true_match_rates[index] == np.mean(genuine <= threshold)
    assert (result.false_match_rates[0], result.true_match_rates[0]) == (0, 0)
    assert (result.false_match_rates[-1], result.true_match_rates[-1]) == (1, 1)
    assert (np.diff(result.thresholds) > 0).all()
    # The best that can be had without a single false match.
    unerring = result.false_match_rates == 0
    assert result.true_match_rates[unerring].max() == np.mean(genuine < impostor.min())


def test_equal_error_threshold_lies_at_the_crossing():
    distances, query_ids, gallery_ids = search_of(*people(np.random.default_rng(1), 200, noise=1.0))
    result = verify_pairs(distances, query_ids, gallery_ids, resamples=40)
    table = distances.rows(0, len(query_ids))
    same = query_ids[:, None] == gallery_ids
    assert np.mean(table[~same] <= result.equal_error_threshold) == pytest.approx(result.equal_error_rate, abs=2e-3)
    assert np.mean(table[same] > result.equal_error_threshold) == pytest.approx(result.equal_error_rate, abs=2e-3)


@pytest.mark.parametrize(
    ("genuine", "impostor", "rate", "threshold"),
    [
        ([0.1, 0.2], [0.3, 0.4], 0.0, 0.2),
        ([0.3, 0.4], [0.1, 0.2], 1.0, 0.3),
        ([0.5, 0.5], [0.5, 0.5], 0.5, 0.5),
        ([0.1, 0.4], [0.2, 0.6], 0.5, 0.1 + 0.3 * 0.5 / 0.5),
    ],
)
def test_equal_error_rate_of_few_pairs(genuine, impostor, rate, threshold):
    result = verify_pairs([[*genuine, *impostor]], [1], [1, 1, 2, 3], resamples=40)
    assert result.equal_error_rate == pytest.approx(rate)
    assert result.equal_error_threshold == pytest.approx(threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_threshold_separates_neighbouring_numbers(dtype):
    low = dtype(0.7)
    high = np.nextafter(low, dtype(1))
    distances = np.array([[0.1, low, high, high]], dtype)
    point = verify_pairs(distances, [1], [1, 2, 3, 4], false_match_rates=[0.4], resamples=40).threshold_for(0.4)
    assert (distances <= point.threshold).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("rate", [0.29, 0.07, 0.57])
def test_a_rate_that_a_whole_number_of_pairs_meets_is_met(rate):
    distances = np.arange(101.0)[None]
    result = verify_pairs(distances, [1], [1, *range(2, 102)], false_match_rates=[rate], resamples=40)
    assert result.threshold_for(rate).false_match_rate == rate


def test_unsupported_rates_say_why():
    features, identities = people(np.random.default_rng(0), 30)
    result = verify_pairs(*search_of(features, identities), false_match_rates=(0.1, 1e-3, 1e-5))
    plenty, few, none = result.operating_points
    assert plenty.supported
    assert not plenty.note
    assert not few.supported
    assert "Only 2.6 false matches are expected among 2,610" in few.note
    assert "10,000 pairs" in few.note
    assert math.isfinite(few.threshold)
    assert not none.supported
    assert "allows not one false match among 2,610" in none.note
    assert math.isnan(none.threshold)
    assert all(math.isnan(end) for end in (*none.threshold_interval, *none.true_match_rate_interval))


def test_one_crop_that_looks_like_everybody_supports_no_rate():
    rng = np.random.default_rng(0)
    identities = np.arange(1, 101)
    distances = 0.5 + rng.random((100, 100))
    distances[:, 7] = 0.1 * rng.random(100)
    point = verify_pairs(distances, identities, identities, false_match_rates=[0.005]).threshold_for(0.005)
    assert point.false_match_rate > 0.004
    assert not point.supported
    assert "come from as few as 3.9 people" in point.note


def test_ties_at_the_smallest_distance_leave_no_threshold():
    distances = np.zeros((1, 21))
    result = verify_pairs(distances, [1], [1, *range(2, 22)], false_match_rates=[0.5], resamples=40)
    assert math.isnan(result.threshold_for(0.5).threshold)
    assert "tie at the smallest distance" in result.threshold_for(0.5).note


def test_perfect_true_match_rate_is_bounded_by_the_number_of_people():
    features, identities = people(np.random.default_rng(0), 50, noise=0.01)
    low, high = verify_pairs(*search_of(features, identities)).threshold_for(1e-2).true_match_rate_interval
    assert high == 1
    # 50 people of 50: Clopper and Pearson's lower end.
    assert low == pytest.approx(0.025 ** (1 / 50))


def test_confidence_seed_and_resamples_are_kept_and_matter():
    arguments = search_of(*people(np.random.default_rng(0), 60))
    plain, again = verify_pairs(*arguments, resamples=200), verify_pairs(*arguments, resamples=200)
    assert (plain.confidence, plain.resamples, plain.seed) == (0.95, 200, 0)
    assert plain.operating_points == again.operating_points
    other = verify_pairs(*arguments, resamples=200, seed=1)
    assert other.operating_points != plain.operating_points
    narrow = verify_pairs(*arguments, resamples=200, confidence=0.5)
    for field in ("threshold_interval", "false_match_rate_interval", "true_match_rate_interval"):
        wide, tight = (getattr(result.threshold_for(1e-2), field) for result in (plain, narrow))
        assert wide[0] < tight[0] < tight[1] < wide[1]


def test_only_stated_rates_have_a_threshold():
    result = verify_pairs(*search_of(*people(np.random.default_rng(0), 20)), resamples=40)
    assert result.threshold_for(0.001).stated_false_match_rate == 1e-3
    with pytest.raises(InputError, match=r"0\.05 was asked for, but the result holds 0\.01, 0\.001, 0\.0001"):
        result.threshold_for(0.05)


def test_identities_may_be_strings_and_nothing_given_is_changed():
    distances = np.array([[0.1, 0.5, 0.2, 0.9], [0.7, 0.3, 0.6, 0.8]])
    before = distances.copy()
    strings = verify_pairs(distances, ["0001", "0002"], ["0001", "0002", "-1", "0000"], resamples=40)
    numbers = verify_pairs(distances, [1, 2], [1, 2, -1, 0], resamples=40)
    assert strings.thresholds.tolist() == numbers.thresholds.tolist()
    assert (strings.genuine_pairs, strings.impostor_pairs) == (numbers.genuine_pairs, numbers.impostor_pairs) == (2, 4)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances": [[np.nan, 0.1]]}, "query 0 to gallery crop 0 is nan"),
        ({"distances": [[0.1, np.inf]]}, "query 0 to gallery crop 1 is inf"),
        ({"distances": [0.1, 0.2]}, "two dimensions"),
        ({"distances": np.empty((0, 2)), "query_identities": []}, "no query"),
        ({"query_identities": [1, 2]}, "query_identities has shape"),
        ({"gallery_identities": [1, 2, 3]}, "gallery_identities has shape"),
        ({"gallery_cameras": [1, 2]}, "query_cameras is not"),
        ({"query_identities": [3]}, "1 have none at all"),
        ({"query_cameras": [1], "gallery_cameras": [1, 2]}, "from their own camera"),
        ({"gallery_identities": [1, 1]}, "1 queries and 2 gallery crops show one identity"),
        ({"gallery_identities": [1, -1]}, "1 queries and 1 gallery crops show one identity"),
        ({"distances": np.empty((1, 0)), "gallery_identities": []}, "has a match in the gallery"),
        ({"query_identities": [0]}, "marks junk"),
        ({"false_match_rates": [0.1, 0.0]}, "holds 0; each rate must lie between 0 and 1"),
        ({"false_match_rates": [1]}, "holds 1; each rate"),
        ({"false_match_rates": [np.nan]}, "holds nan"),
        ({"false_match_rates": []}, "list of rates"),
        ({"false_match_rates": 0.1}, "list of rates"),
        ({"confidence": 1}, "confidence is 1"),
        ({"confidence": 95}, "confidence is 95"),
        ({"resamples": 10}, r"confidence 0\.95 need at least 40"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_input_is_named(changes, message):
    arguments = {"distances": [[0.1, 0.2]], "query_identities": [1], "gallery_identities": [1, 2]} | changes
    with pytest.raises(InputError, match=message) as raised:
        verify_pairs(**arguments)
    assert "\n" not in str(raised.value)
