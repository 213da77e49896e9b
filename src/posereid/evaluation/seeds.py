"""How sure a mean is that several training seeds and several people went into."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from posereid.errors import InputError
from posereid.evaluation.protocol import as_array


class SeedInterval(NamedTuple):
    """A mean over seeds and cases with its confidence interval, in the unit of the values.

    ``seed_error`` and ``people_error`` are the standard errors that come from the seeds and from the people.
    """

    estimate: float
    low: float
    high: float
    seed_error: float
    people_error: float


def mean_over_seeds(
    values: npt.ArrayLike, identities: npt.ArrayLike, *, confidence: float = 0.95, groups: npt.ArrayLike | None = None
) -> SeedInterval:
    """Mean of ``values`` (S, Q), one row per training seed and one column per query, and its interval.

    ``identities`` (Q,) say whose query each column is. The interval is for other seeds *and* other people: both are
    drawn at random and every seed meets every person, so the variances of the seeds' means and of the people's means
    add (two-way random effects, Searle, Casella and McCulloch 1992, chapter 4). What is left over of a seed with a
    person is in both, which makes the interval a little wide. Degrees of freedom are Satterthwaite's; with two
    seeds alone they are a guess, and such intervals hold the truth too seldom (nine times in ten rather than 95 %).
    For the difference of two systems give their differences, seed by seed and query by query. Columns that hold a NaN
    are left out.

    ``groups`` (S,) say which seeds share something that was drawn at random before them, as re-ID networks share a
    generator: the groups' means then take the seeds' place, as the outer level of a nested design, because seeds of
    one group say nothing of how another would do.

    Raises :class:`InputError` for fewer than two seeds (groups, where they are given) or two people, shapes that
    disagree, and infinite values.

    >>> mean_over_seeds([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], ["a", "b", "c"]).estimate.__round__(3)
    0.833
    """
    table, owners = as_array(values), as_array(identities)
    if table.ndim != 2 or owners.shape != table.shape[1:]:
        raise InputError(
            f"Values of shape {table.shape} came with identities of shape {owners.shape}; give a row per seed and an "
            "identity per column."
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it lies between 0 and 1, for example 0.95.")
    table = table.astype(np.float64)
    known = ~np.isnan(table).any(0)
    table, owners = table[:, known], owners[known]
    _, makers = np.unique(np.arange(len(table)) if groups is None else as_array(groups), return_inverse=True)
    if makers.shape != table.shape[:1]:
        raise InputError(f"Values of shape {table.shape} came with {len(makers)} groups; give one to each row.")
    seeds, people = len(np.unique(makers)), len(np.unique(owners))
    if seeds < 2 or people < 2:
        raise InputError(f"There are {seeds} seeds and {people} people; an interval needs two of each.")
    if not np.isfinite(table).all():
        raise InputError("An infinite value was given; a mean needs finite ones, or NaN for cases without a value.")
    estimate = float(table.mean())

    def error(means: npt.NDArray[np.float64], labels: npt.NDArray, drawn: int) -> float:
        """Variance of the estimate that comes from who was drawn; who has more cases weighs more (ratio estimator)."""
        _, codes = np.unique(labels, return_inverse=True)
        departures = np.bincount(codes, means - estimate) * drawn / len(means)
        return float(departures.var(ddof=1)) / drawn

    of_seeds, of_people = error(table.mean(1), makers, seeds), error(table.mean(0), owners, people)
    variance = of_seeds + of_people
    half = 0.0
    if variance > 0:
        shares = of_seeds / variance, of_people / variance
        freedom = 1 / (shares[0] ** 2 / (seeds - 1) + shares[1] ** 2 / (people - 1))
        half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * variance**0.5
    return SeedInterval(estimate, estimate - half, estimate + half, of_seeds**0.5, of_people**0.5)
