"""How sure a mean is: intervals by resampling people, since crops of one person rise and fall together."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from posereid.errors import InputError
from posereid.evaluation.protocol import as_array

ENOUGH_PEOPLE = 10
"""With fewer people, resampling them calls differences real far more often than it says."""

# Resampled people that are looked at together: 8 MB of indices.
_BATCH_ELEMENTS = 2**20


class Interval(NamedTuple):
    """A mean and its confidence interval, in the unit of the values; the bounds are NaN for fewer than two people."""

    estimate: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """How two systems differ on the same cases: ``difference`` = second - first, with its confidence interval.

    ``p_value`` is the two-sided bootstrap figure: twice the smaller share of resamples on one side of zero, in
    [0, 1]. ``people`` is how many identities were drawn from; below :data:`ENOUGH_PEOPLE` nothing is called real.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    people: int

    @property
    def real(self) -> bool:
        """Whether the interval leaves zero out, and there are people enough to say so."""
        return self.people >= ENOUGH_PEOPLE and (self.low > 0 or self.high < 0)


def clustered_mean(
    values: npt.ArrayLike,
    identities: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """Mean of ``values`` (n,) and its percentile bootstrap interval, resampling ``identities`` (n,).

    Whole people are drawn with replacement (cluster bootstrap, Davison and Hinkley 1997, section 3.8), because the
    queries of one person are not independent; drawing single queries gives intervals that are too narrow. NaN values
    are left out. Where all people score the same the interval has no width, which says little about few people.
    Raises :class:`InputError` for lengths that disagree, no value at all, or settings out of range.

    >>> clustered_mean([1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "c"]).estimate
    0.75
    """
    sums, counts = _by_identity([values], identities)
    spread = _resample(sums[0], counts, confidence, resamples, seed)
    low, high = spread.confidence_interval if spread else (np.nan, np.nan)
    return Interval(float(sums[0].sum() / counts.sum()), float(low), float(high))


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    identities: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> PairedDifference:
    """Mean of ``second`` - ``first``, both (n,) over the same cases, and its interval as in :func:`clustered_mean`.

    The same people are drawn for both, so that what makes a person easy or hard for both cancels. Cases where either
    is NaN are left out. Raises :class:`InputError` as there.

    >>> import numpy as np
    >>> first = np.linspace(0.2, 0.5, 20)
    >>> paired_difference(first, first + 0.1, np.arange(20)).real
    True
    """
    sums, counts = _by_identity([first, second], identities)
    means = [float(total.sum() / counts.sum()) for total in sums]
    spread = _resample(sums[1] - sums[0], counts, confidence, resamples, seed)
    before, after = means
    if spread is None:
        return PairedDifference(before, after, after - before, np.nan, np.nan, np.nan, len(counts))
    drawn = spread.bootstrap_distribution
    # One resample more on either side: no finite number of draws proves an impossibility.
    tails = [(np.count_nonzero(side) + 1) / (len(drawn) + 1) for side in (drawn <= 0, drawn >= 0)]
    low, high = spread.confidence_interval
    p_value = float(min(1, 2 * min(tails)))
    return PairedDifference(before, after, after - before, float(low), float(high), p_value, len(counts))


def _by_identity(
    columns: list[npt.ArrayLike], identities: npt.ArrayLike
) -> tuple[list[npt.NDArray], npt.NDArray[np.int64]]:
    """Each column's sum per identity, and the number of cases per identity; cases with NaN are left out."""
    raw = [as_array(column) for column in columns]
    if any(array.dtype.kind not in "fiub" for array in raw):
        kinds = " and ".join(str(array.dtype) for array in raw)
        raise InputError(f"Values of type {kinds} were given; real numbers are expected.")
    arrays = [array.astype(np.float64) for array in raw]
    if any(np.isinf(array).any() for array in arrays):
        raise InputError("An infinite value was given; a mean needs finite ones, or NaN for cases without a value.")
    owners = as_array(identities)
    if any(array.shape != owners.shape or array.ndim != 1 for array in arrays):
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise InputError(f"Values of shape {shapes} came with identities of shape {owners.shape}; give one per case.")
    known = ~np.isnan(arrays).any(0)
    if not known.any():
        raise InputError("There is no value to take a mean of: every case is NaN or there is none.")
    _, codes = np.unique(owners[known], return_inverse=True)
    return [np.bincount(codes, array[known]) for array in arrays], np.bincount(codes)


def _resample(sums: npt.NDArray, counts: npt.NDArray, confidence: float, resamples: int, seed: int) -> Any:
    """SciPy's bootstrap of sum / count over people, or None for fewer than two people."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it lies between 0 and 1, for example 0.95.")
    if not isinstance(resamples, int | np.integer) or resamples < 100:
        raise InputError(f"resamples is {resamples}; an interval needs a whole number of at least 100.")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed is {seed}; a whole number from 0 on is expected.")
    if len(sums) < 2:
        return None

    def mean(total: npt.NDArray, count: npt.NDArray, axis: int = -1) -> npt.NDArray:
        return total.sum(axis) / count.sum(axis)

    with warnings.catch_warnings():
        # People who all score the same: the interval has no width, which is the answer.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(
            (sums, counts),
            mean,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH_ELEMENTS // len(sums)),
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
