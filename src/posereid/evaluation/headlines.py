"""The figures that every table of a search shows."""

import math

import numpy as np
import numpy.typing as npt

RANKS = (1, 5, 10)

HEADLINES = {"rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
"""Each figure's key, and how tables call it."""


def headline_values(
    first_hit_ranks: npt.NDArray[np.int64],
    average_precisions: npt.NDArray[np.float64],
    inverse_negative_penalties: npt.NDArray[np.float64],
) -> dict[str, npt.NDArray[np.float64]]:
    """Each headline's value for each query, (Q,) in [0, 1], NaN for unmatched queries."""
    hits = {f"rank{k}": np.where(first_hit_ranks > 0, (first_hit_ranks <= k).astype(np.float64), np.nan) for k in RANKS}
    return hits | {"mAP": average_precisions, "mINP": inverse_negative_penalties}


def percent(share: float) -> float | None:
    """A share in percent, to two digits; None for NaN, which JSON does not know."""
    return None if math.isnan(share) else round(100 * share, 2)
