"""Same person or not, and at which threshold: ROC, equal error rate, and operating points with their uncertainty.

Every query is compared with every gallery crop that the protocol of :mod:`posereid.evaluation.protocol` leaves it: a
pair of one identity is *genuine*, any other pair an *impostor*, distractors included. A pair is accepted as the same
person where its distance is at most the threshold. The false-match rate is the share of impostor pairs accepted, the
true-match rate the share of genuine ones.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from posereid.errors import InputError
from posereid.evaluation.distances import Distances, Table, as_distances
from posereid.evaluation.protocol import as_array
from posereid.evaluation.verification_pairs import (
    Counts,
    Cut,
    GenuineDistances,
    ImpostorCounts,
    ImpostorTail,
    LabelledPairs,
    count_impostors,
    cut_for,
    nearest_pairs,
    tail_steps,
)
from posereid.progress import progress_bar

Interval = tuple[float, float]
Rates = npt.NDArray[np.float64]

_NOWHERE: Interval = (math.nan, math.nan)

# Points of the ROC that are kept.
_ROC_POINTS = 1000
# Weights that are drawn together: 8 MB, but for 16 resamples at least.
_WEIGHTS_TOGETHER = 2**20
# A rate is supported by so many expected false matches, and by false matches of so many people.
_ENOUGH = 10


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold for a stated false-match rate, and what it does.

    ``threshold`` is the largest one whose false-match rate over the measured pairs is at most
    ``stated_false_match_rate``, halfway between the last accepted and the first rejected impostor distance, in the
    distances' unit; a pair is accepted where distance <= threshold. ``false_match_rate`` and ``true_match_rate`` are
    what was measured there, shares in [0, 1].

    The intervals answer: had other people been photographed? ``false_match_rate_interval`` and
    ``true_match_rate_interval`` hold the rates that this threshold has on the population the people come from;
    ``threshold_interval`` holds the threshold that has the stated rate there. An end of infinity says that the people
    are too few to bound it. What is measured in turn on as many other people scatters √2 times as far.

    ``supported`` is False where the pairs or the people are too few for the stated rate; ``note`` then says why in a
    sentence and is empty otherwise. Without a threshold (not one false match allowed) all figures but the stated rate
    are NaN.
    """

    stated_false_match_rate: float
    threshold: float
    false_match_rate: float
    true_match_rate: float
    threshold_interval: Interval
    false_match_rate_interval: Interval
    true_match_rate_interval: Interval
    supported: bool
    note: str


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """How well distances tell genuine from impostor pairs.

    The ROC is three (P,) float64 arrays, P at most 1,000, ascending: at ``thresholds`` (-inf first, then distances of
    genuine pairs, last the greatest distance) exactly ``false_match_rates`` of the impostor pairs and
    ``true_match_rates`` of the genuine ones are accepted. Where there are more distinct genuine distances, points
    evenly spaced in the logarithm of the false-match rate stand for them.

    ``area_under_curve`` is the probability that a genuine pair is nearer than an impostor pair, ties counted half,
    over all pairs. ``equal_error_rate`` is where the false-match rate and the false-non-match rate (1 - true-match
    rate) cross, interpolated linearly between the two neighbouring operating points among all distances;
    ``equal_error_threshold`` lies at that genuine distance, or between the two genuine distances around the crossing,
    interpolated linearly too.

    ``operating_points`` has one entry for each stated rate, in the order asked for. ``confidence``, ``resamples`` and
    ``seed`` say how their intervals were made. Below 1, ``kept_share`` is the share of the smallest impostor distances,
    drawn by chance, that thresholds and intervals were made from.
    """

    genuine_pairs: int
    impostor_pairs: int
    false_match_rates: Rates
    true_match_rates: Rates
    thresholds: Rates
    area_under_curve: float
    equal_error_rate: float
    equal_error_threshold: float
    operating_points: tuple[OperatingPoint, ...]
    confidence: float
    resamples: int
    seed: int
    kept_share: float = 1.0

    def threshold_for(self, false_match_rate: float) -> OperatingPoint:
        """The operating point of one of the stated false-match rates; InputError for any other rate."""
        for point in self.operating_points:
            if math.isclose(point.stated_false_match_rate, false_match_rate, rel_tol=1e-9):
                return point
        held = ", ".join(f"{point.stated_false_match_rate:g}" for point in self.operating_points)
        raise InputError(
            f"A threshold for the false-match rate {false_match_rate!r} was asked for, but the result holds {held}; "
            "name the rate in verify_pairs(false_match_rates=…)."
        )


def verify_pairs(
    distances: "npt.ArrayLike | Distances",
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
    *,
    false_match_rates: Sequence[float] = (1e-2, 1e-3, 1e-4),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> VerificationResult:
    """Score distances as a verifier: does this pair show one person?

    ``distances`` is (Q, G), smaller is more alike, finite: an array, or a
    :class:`~posereid.evaluation.distances.FeatureDistances`, which works them out twice and holds few of them.
    Identities and cameras are (Q,) and (G,), whole numbers or strings. Pairs follow the Market-1501 protocol: junk
    (-1) is dropped, and pairs of one identity *and* camera where cameras are given; distractors (0) are impostors.

    Counts, ROC, area, equal error rate and operating points are exact over all pairs. The ``confidence`` intervals
    come from ``resamples`` resamples of people, not of pairs, for pairs share people: each identity and each
    distractor crop is a cluster, clusters are drawn with replacement, on the query and the gallery side at once, and
    a pair counts as often as its two clusters do together (Bolle, Ratha & Pankanti 2004; Owen 2007, The Annals of
    Applied Statistics 1:386). For false matches that is conservative: where they are so few that chance between
    single pairs outweighs differences between people, an interval is wider than needed by a factor of up to √3.
    Intervals of threshold and false-match rate are percentiles of the resamples; that of the true-match rate is
    normal on the logit scale, which holds near 1 where percentiles are too narrow. Where every genuine pair, or none,
    is accepted, it is the exact binomial interval of as many people. Beyond 512 distinct distances, resampled
    thresholds are interpolated between 512 and more of the smallest impostor distances.

    Memory grows with the largest of ``false_match_rates``, each in (0, 1): about 30 bytes for twice that share of the
    impostor pairs, and not beyond 2²⁴ of those. Of more, the 2²⁰ smallest are kept and of the others a sample by
    ``seed``, from which thresholds and intervals are made; the rates at a threshold are counted over all pairs.
    ``progress`` shows a bar meanwhile.

    Raises :class:`InputError` for what :func:`~posereid.evaluation.ranking.rank_gallery` rejects, for no genuine or
    no impostor pair, and for rates, ``confidence``, ``resamples`` or ``seed`` out of range.

    >>> result = verify_pairs([[0.1, 0.6, 0.7], [0.8, 0.2, 0.5]], [1, 2], [1, 2, 3], false_match_rates=[0.5])
    >>> result.genuine_pairs, result.impostor_pairs, result.area_under_curve, result.equal_error_rate
    (2, 4, 1.0, 0.0)
    >>> point = result.threshold_for(0.5)
    >>> round(point.threshold, 4), point.false_match_rate, point.true_match_rate, point.supported
    (0.65, 0.5, 1.0, False)
    """
    stated = _checked_rates(false_match_rates)
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; it must lie between 0 and 1, as 0.95 does.")
    if resamples < 2 / (1 - confidence):
        raise InputError(
            f"resamples is {resamples}; intervals of confidence {confidence:g} need at least "
            f"{math.ceil(2 / (1 - confidence))}."
        )
    if seed < 0:
        raise InputError(f"seed is {seed!r}; a whole number from 0 on is expected.")
    pairs = LabelledPairs.of(
        as_distances(distances), query_identities, gallery_identities, query_cameras, gallery_cameras
    )
    with progress_bar(2 * len(pairs.splits), "verification", "query", show=progress) as bar:
        genuine, nearest = nearest_pairs(pairs, max(stated), seed, bar)
        cuts = [cut_for(rate, nearest, pairs.impostors) for rate in stated]
        counts = count_impostors(pairs, genuine.values, tail_steps(nearest, cuts), nearest, seed, bar)
    accepted = genuine.accepted
    resampled = _resampled(pairs, genuine, cuts, counts.tail, resamples, seed)
    return VerificationResult(
        pairs.genuine,
        pairs.impostors,
        *_roc(genuine.values, accepted, counts, pairs.impostors),
        _area_under_curve(accepted, counts, pairs.impostors),
        *_equal_error(genuine.values, accepted, counts, pairs.impostors),
        tuple(
            _operating_point(pairs, genuine, cut, counts.tail, draws, confidence)
            for cut, draws in zip(cuts, resampled, strict=True)
        ),
        confidence,
        resamples,
        seed,
        nearest.share,
    )


def _roc(values: Table, accepted: Counts, counts: ImpostorCounts, impostors: int) -> tuple[Rates, Rates, Rates]:
    """False-match rates, true-match rates and thresholds of at most ``_ROC_POINTS`` points."""
    thresholds = np.concatenate([[-np.inf], values.astype(np.float64)])
    false_matches = np.concatenate([[0], counts.at_most])
    true_matches = np.concatenate([[0], accepted])
    if counts.greatest > values[-1]:
        thresholds = np.append(thresholds, counts.greatest)
        false_matches, true_matches = np.append(false_matches, impostors), np.append(true_matches, accepted[-1])
    false_match_rates = false_matches / impostors
    if len(thresholds) > _ROC_POINTS:
        wanted = np.append(0, np.geomspace(1 / impostors, 1, _ROC_POINTS - 2))
        chosen = np.unique(np.append(0, np.searchsorted(false_match_rates, wanted, "right") - 1))
    else:
        chosen = np.arange(len(thresholds))
    return false_match_rates[chosen], true_matches[chosen] / accepted[-1], thresholds[chosen]


def _area_under_curve(accepted: Counts, counts: ImpostorCounts, impostors: int) -> float:
    here = np.diff(accepted, prepend=0)
    # Twice the count, so that ties stay whole numbers; Python's, which do not overflow.
    twice = sum((here * (2 * impostors - counts.below - counts.at_most)).tolist())
    return twice / (2 * impostors * int(accepted[-1]))


def _equal_error(values: Table, accepted: Counts, counts: ImpostorCounts, impostors: int) -> tuple[float, float]:
    """The rate at which both errors are equal, and its threshold.

    Between two genuine distances only the false-match rate moves, so the staircase's corners, just below and at
    each genuine distance, hold the crossing as exactly as all distances would.
    """
    genuine = int(accepted[-1])
    before = np.append(0, accepted[:-1])
    # False-match rate minus false-non-match rate, times both numbers of pairs: whole numbers.
    excess_below = counts.below * genuine - (genuine - before) * impostors
    excess_at = counts.at_most * genuine - (genuine - accepted) * impostors
    crossing = int(np.argmax(excess_at >= 0))
    value = float(values[crossing])
    if excess_below[crossing] < 0:
        share = -excess_below[crossing] / (excess_at[crossing] - excess_below[crossing])
        jump = counts.at_most[crossing] - counts.below[crossing]
        return float(counts.below[crossing] + share * jump) / impostors, value
    rate = float(genuine - before[crossing]) / genuine
    if crossing == 0:
        return rate, value
    share = -excess_at[crossing - 1] / (excess_below[crossing] - excess_at[crossing - 1])
    return rate, float(values[crossing - 1] + share * (value - values[crossing - 1]))


@dataclass(frozen=True, eq=False)
class _Draws:
    """What each of R resamples of the people says at one stated rate: (R,) arrays.

    NaN where a resample has no pair to say it; -inf or inf for a threshold that lies beyond the kept distances.
    """

    thresholds: Rates
    false_match_rates: Rates
    true_match_rates: Rates


def _weights(clusters: int, resamples: int, seed: int) -> Iterator[Rates]:
    """How often each cluster is drawn, (clusters, R) in parts of some resamples."""
    rng = np.random.default_rng(seed)
    together = max(16, _WEIGHTS_TOGETHER // clusters)
    for start in range(0, resamples, together):
        drawn = [
            np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)
            for _ in range(start, min(start + together, resamples))
        ]
        yield np.stack(drawn, axis=1).astype(np.float64)


def _resampled(
    pairs: LabelledPairs, genuine: GenuineDistances, cuts: list[Cut], tail: ImpostorTail, resamples: int, seed: int
) -> list[_Draws]:
    """Thresholds and rates of every resample, for each cut."""
    people = pairs.query_people
    by_step = tail.by_step()
    queries = np.bincount(pairs.query_clusters, minlength=pairs.clusters).astype(np.float64)
    crops = np.bincount(pairs.gallery_clusters, minlength=pairs.clusters).astype(np.float64)
    all_genuine = np.bincount(genuine.owners, minlength=people).astype(np.float64)
    right = [np.bincount(genuine.owners_within(cut.threshold), minlength=people) for cut in cuts]
    parts: list[list[tuple[Rates, Rates, Rates]]] = [[] for _ in cuts]
    for weights in _weights(pairs.clusters, resamples, seed):
        of_people = weights[:people]
        reached = np.cumsum([np.einsum("pr,pr->r", of_people, part @ weights) for part in by_step], axis=0)
        # All pairs less those of one identity, whichever camera took them.
        impostors = (queries @ weights) * (crops @ weights) - (queries * crops) @ weights**2
        impostors[impostors == 0] = np.nan
        genuine_pairs = all_genuine @ of_people
        genuine_pairs[genuine_pairs == 0] = np.nan
        for part, cut, accepted in zip(parts, cuts, right, strict=True):
            if cut.accepted:
                part.append(
                    (
                        _weighted_quantile(reached, cut.rate * impostors, tail.steps),
                        reached[tail.step_of(cut)] / impostors,
                        accepted @ of_people / genuine_pairs,
                    )
                )
    empty = (np.empty(0),) * 3
    return [_Draws(*map(np.concatenate, zip(empty, *part, strict=True))) for part in parts]


def _weighted_quantile(reached: Rates, wanted: Rates, steps: Table) -> Rates:
    """Where the weight reached at each step, (steps, R), comes to what is wanted, (R,), linear between steps.

    -inf where the first step has more, inf where the last has not more.
    """
    edges = steps.astype(np.float64)
    passed = (reached <= wanted).sum(0)
    after = np.clip(passed, 1, len(edges) - 1) if len(edges) > 1 else np.zeros_like(passed)
    before = np.maximum(after - 1, 0)
    resample = np.arange(len(wanted))
    low, high = reached[before, resample], reached[after, resample]
    share = np.clip((wanted - low) / np.where(high > low, high - low, 1), 0, 1)
    found = edges[before] + share * (edges[after] - edges[before])
    found[passed == 0] = -np.inf
    found[passed == len(edges)] = np.inf
    found[np.isnan(wanted)] = np.nan
    return found


def _operating_point(
    pairs: LabelledPairs, genuine: GenuineDistances, cut: Cut, tail: ImpostorTail, draws: _Draws, confidence: float
) -> OperatingPoint:
    if not cut.accepted:
        note = _why_no_threshold(cut, pairs.impostors)
        return OperatingPoint(cut.rate, math.nan, math.nan, math.nan, _NOWHERE, _NOWHERE, _NOWHERE, False, note)
    true_match_rate = len(genuine.owners_within(cut.threshold)) / pairs.genuine
    threshold_interval = _percentiles(draws.thresholds, confidence)
    note = _why_unsupported(cut, pairs.impostors, tail.people_within(cut), threshold_interval)
    return OperatingPoint(
        cut.rate,
        cut.threshold,
        int(tail.reached[tail.step_of(cut)]) / pairs.impostors,
        true_match_rate,
        threshold_interval,
        _percentiles(draws.false_match_rates, confidence),
        _share_interval(true_match_rate, draws.true_match_rates, len(np.unique(genuine.owners)), confidence),
        not note,
        note,
    )


def _percentiles(draws: Rates, confidence: float) -> Interval:
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return _NOWHERE
    # A drawn value each, since one cannot interpolate towards infinity.
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(low), float(high)


def _share_interval(share: float, draws: Rates, people: int, confidence: float) -> Interval:
    """An interval for a share, from its resamples' spread; from the number of people where nothing can spread."""
    if share in (0.0, 1.0):
        likely = ((1 - confidence) / 2) ** (1 / people)
        return (likely, 1.0) if share else (0.0, 1 - likely)
    if people == 1:
        return 0.0, 1.0
    centre = math.log(share / (1 - share))
    deviation = float(np.nanstd(draws)) / (share * (1 - share))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    return float(expit(centre - reach)), float(expit(centre + reach))


def _why_no_threshold(cut: Cut, impostors: int) -> str:
    if cut.allowed:
        return (
            f"A false-match rate of {cut.rate:g} allows {cut.allowed:,} of {impostors:,} impostor pairs, but more tie "
            "at the smallest distance, so no threshold has it."
        )
    return (
        f"A false-match rate of {cut.rate:g} allows not one false match among {impostors:,} impostor pairs; at least "
        f"{math.ceil(_ENOUGH / cut.rate):,} pairs are needed to support it."
    )


def _why_unsupported(cut: Cut, impostors: int, people: float, threshold_interval: Interval) -> str:
    """One sentence, or nothing where pairs and people suffice."""
    if cut.rate * impostors < _ENOUGH:
        return (
            f"Only {cut.rate * impostors:.1f} false matches are expected among {impostors:,} impostor pairs at a "
            f"false-match rate of {cut.rate:g}; at least {math.ceil(_ENOUGH / cut.rate):,} pairs are needed to support "
            "it."
        )
    if people < _ENOUGH:
        return (
            f"The false matches at a rate of {cut.rate:g} come from as few as {people:.1f} people, weighed by their "
            f"share; at least {_ENOUGH} are needed to support it."
        )
    if not all(map(math.isfinite, threshold_interval)):
        return f"The people are too few to bound the threshold for a false-match rate of {cut.rate:g}."
    return ""


def _checked_rates(rates: Sequence[float]) -> list[float]:
    values = as_array(rates)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "fiu":
        raise InputError(f"false_match_rates is {rates!r}; a list of rates such as [0.01, 0.001] is expected.")
    for value in values:
        if not 0 < value < 1:
            raise InputError(f"false_match_rates holds {value:g}; each rate must lie between 0 and 1.")
    return [float(value) for value in values]
