"""How good a search is: CMC, mean average precision and mINP, by the Market-1501 protocol.

Which gallery crops count for a query is said in :mod:`posereid.evaluation.protocol`. A query for whom no
right crop remains is left out of every mean and counted.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from posereid.errors import InputError
from posereid.evaluation.distances import (
    Distances,
    FeatureDistances,
    Metric,
    Table,
    as_distances,
    finite_block,
    map_blocks,
)
from posereid.evaluation.protocol import Indices, RankingProtocol

AveragePrecision = Literal["hits", "trapezoid"]


@dataclass(frozen=True, eq=False)
class RankingResult:
    """What a search over Q queries scored.

    ``cmc`` is (max_rank,) float64 in [0, 1]: ``cmc[k - 1]`` is the share of evaluated queries with a right
    crop among the first k. The per-query arrays are (Q,) in the queries' order: ``average_precisions`` and
    ``inverse_negative_penalties`` are float64 in [0, 1], NaN for an unmatched query; ``first_hit_ranks`` is
    int64, 1 for a right crop in first place, 0 for an unmatched query. ``average_precision`` names the figure
    that was computed, since the field uses two.
    """

    cmc: npt.NDArray[np.float64]
    mean_average_precision: float
    mean_inverse_negative_penalty: float
    average_precisions: npt.NDArray[np.float64]
    inverse_negative_penalties: npt.NDArray[np.float64]
    first_hit_ranks: npt.NDArray[np.int64]
    evaluated_queries: int
    unmatched_queries: int
    average_precision: AveragePrecision

    @property
    def rank1(self) -> float:
        """Share of evaluated queries whose first crop is right."""
        return self.rank(1)

    def rank(self, k: int) -> float:
        """Share of evaluated queries with a right crop among the first ``k``; k lies in 1 … max_rank."""
        if not 1 <= k <= len(self.cmc):
            raise InputError(f"rank({k}) was asked for, but the result holds ranks 1 to {len(self.cmc)}.")
        return float(self.cmc[k - 1])


class RankedMatches(NamedTuple):
    """The head of one query's ranked list.

    ``gallery_indices`` is (k,) int64, best first; ``right`` is (k,) bool, whether the crop shows the query's
    person.
    """

    gallery_indices: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]


def rank_gallery(
    distances: npt.ArrayLike | Distances,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
    *,
    max_rank: int = 50,
    average_precision: AveragePrecision = "hits",
) -> RankingResult:
    """Score a search by the Market-1501 protocol (Zheng et al. 2015), with mINP (Ye et al. 2021).

    ``distances`` is (Q, G), smaller is more alike, finite; identities and cameras are (Q,) and (G,), whole
    numbers or strings. Lists, NumPy arrays and torch tensors all do. Without cameras no crop is dropped for
    its camera. Crops at equal distance keep the gallery's order, so a result never depends on the sort.
    Beyond the gallery's size ``cmc`` stays at its last value.

    ``average_precision="hits"`` averages the precision at each right crop; ``"trapezoid"`` is the figure of
    the original Market-1501 code, which takes the mean of that precision and the one a rank earlier (1 before
    the first rank). mINP averages (number of right crops) / (rank of the last one).

    Raises :class:`InputError` for distances that are not finite, lengths that disagree, no query, no query
    with a match, a query that is junk or a distractor, ``max_rank`` below 1 and an unknown
    ``average_precision``.

    >>> result = rank_gallery([[0.3, 0.1, 0.2]], [7], [7, 8, 7])
    >>> result.rank1, result.rank(2), round(result.mean_average_precision, 4)
    (0.0, 1.0, 0.5833)

    Both gallery crops are equally far: the one that comes first in the gallery is ranked first.

    >>> rank_gallery([[0.5, 0.5]], [7], [8, 7]).rank1, rank_gallery([[0.5, 0.5]], [7], [7, 8]).rank1
    (0.0, 1.0)
    """
    return _rank(
        as_distances(distances),
        (query_identities, gallery_identities, query_cameras, gallery_cameras),
        max_rank,
        average_precision,
    )


def rank_features(
    query_features: npt.ArrayLike,
    gallery_features: npt.ArrayLike,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    device: Any = None,
    max_rank: int = 50,
    average_precision: AveragePrecision = "hits",
) -> RankingResult:
    """:func:`rank_gallery` for features (Q, D) and (G, D), without ever holding the (Q, G) distances.

    Distances are worked out for a block of queries at a time, as
    :meth:`posereid.evaluation.distances.FeatureDistances.of` defines them, on ``device`` (as torch names it; by
    default NumPy does it), so memory does not grow with queries times gallery. Raises :class:`InputError` as
    :func:`rank_gallery` does, and for features that are not finite or of different length.

    >>> rank_features([[1.0, 0.0]], [[0.0, 1.0], [2.0, 0.1]], [7], [8, 7]).rank1
    1.0
    """
    return _rank(
        as_distances(FeatureDistances.of(query_features, gallery_features, metric, device=device)),
        (query_identities, gallery_identities, query_cameras, gallery_cameras),
        max_rank,
        average_precision,
    )


def _rank(
    distances: Distances,
    labels: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike | None, npt.ArrayLike | None],
    max_rank: int,
    average_precision: AveragePrecision,
) -> RankingResult:
    if max_rank < 1:
        raise InputError(f"max_rank is {max_rank}; it must be at least 1.")
    if average_precision not in get_args(AveragePrecision):
        choices = " or ".join(get_args(AveragePrecision))
        raise InputError(f"average_precision is {average_precision!r}; choose {choices}.")
    queries = distances.shape[0]
    protocol = RankingProtocol.of(distances.shape, *labels)
    # Every right crop of every query in one run: `ranks` ascends within a query, `nth` counts 1, 2, … there.
    parts = map_blocks(distances, protocol.kept, lambda start, block: (start, *_hit_ranks(start, block, protocol)))
    owner = np.concatenate([start + rows for start, rows, _ in parts])
    ranks = np.concatenate([ranks for *_, ranks in parts])
    counts = np.bincount(owner, minlength=queries)
    matched = counts > 0
    if not matched.any():
        raise InputError(protocol.why_unmatched())
    ends = np.cumsum(counts)
    nth = np.arange(len(ranks)) - (ends - counts)[owner] + 1
    precision = nth / ranks
    if average_precision == "trapezoid":
        earlier = np.where(ranks > 1, (nth - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + earlier) / 2

    average_precisions = np.full(queries, np.nan)
    penalties = np.full(queries, np.nan)
    first_hits = np.zeros(queries, np.int64)
    average_precisions[matched] = np.bincount(owner, precision, queries)[matched] / counts[matched]
    penalties[matched] = counts[matched] / ranks[ends[matched] - 1]
    first_hits[matched] = ranks[nth == 1]
    hits_at_rank = np.bincount(np.minimum(first_hits[matched], max_rank + 1), minlength=max_rank + 2)
    evaluated = int(matched.sum())
    return RankingResult(
        cmc=np.cumsum(hits_at_rank[1 : max_rank + 1]) / evaluated,
        mean_average_precision=float(average_precisions[matched].mean()),
        mean_inverse_negative_penalty=float(penalties[matched].mean()),
        average_precisions=average_precisions,
        inverse_negative_penalties=penalties,
        first_hit_ranks=first_hits,
        evaluated_queries=evaluated,
        unmatched_queries=queries - evaluated,
        average_precision=average_precision,
    )


def ranked_matches(
    distances: npt.ArrayLike | Distances,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
    *,
    query_index: int,
    top: int = 10,
) -> RankedMatches:
    """The first ``top`` gallery crops of one query's ranked list, under :func:`rank_gallery`'s protocol.

    Indices count in the gallery as given, junk included. Fewer than ``top`` come back where fewer crops are
    left. Raises :class:`InputError` as :func:`rank_gallery` does (a query without match is no error here),
    and for a ``query_index`` out of range or ``top`` below 1.

    >>> indices, right = ranked_matches([[0.3, 0.1, 0.2]], [7], [7, -1, 8], query_index=0)
    >>> indices.tolist(), right.tolist()
    ([2, 0], [False, True])
    """
    if top < 1:
        raise InputError(f"top is {top}; it must be at least 1.")
    source = as_distances(distances)
    protocol = RankingProtocol.of(source.shape, query_identities, gallery_identities, query_cameras, gallery_cameras)
    if not 0 <= query_index < source.shape[0]:
        raise InputError(f"query_index is {query_index}; there are {source.shape[0]} queries, counted from 0.")
    row = finite_block(source.select(protocol.kept), protocol.kept, query_index, query_index + 1)[0]
    matches, dropped = protocol.split(query_index)
    row[dropped] = np.inf
    order = np.argsort(row, kind="stable")[: min(top, len(row) - len(dropped))]
    return RankedMatches(protocol.kept[order].astype(np.int64), np.isin(order, matches))


def _hit_ranks(first_query: int, block: Table, protocol: RankingProtocol) -> tuple[Indices, Indices]:
    """Row and 1-based rank of every right crop of a block, rows ascending, and ranks within a row.

    ``block`` (queries, kept gallery) is overwritten. A rank counts the smaller distances, so sorted values
    suffice, which come several times faster than sorted indices. Only where a right crop ties with another
    one do positions matter.
    """
    (rows, hits), dropped = protocol.split_block(first_query, first_query + len(block))
    block[dropped] = np.inf
    values = block[rows, hits]
    order = np.lexsort((hits, values, rows))
    hits, values = hits[order], values[order]
    ordered = np.sort(block, axis=1)
    bounds = np.searchsorted(rows, np.arange(len(block) + 1))
    ahead = np.empty(len(rows), np.intp)
    for row, (start, stop) in enumerate(pairwise(bounds.tolist())):
        ahead[start:stop] = ordered[row].searchsorted(values[start:stop])
    following = np.minimum(ahead + 1, block.shape[1] - 1)
    tied = (following > ahead) & (ordered[rows, following] == values)
    # Right crops that tie share `ahead`; each stands behind all crops of that value that come first in the gallery.
    for row in np.unique(rows[tied]).tolist():
        inside = slice(bounds[row], bounds[row + 1])
        for value in np.unique(values[inside][tied[inside]]):
            same = np.flatnonzero(values[inside] == value) + bounds[row]
            ahead[same] += np.searchsorted(np.flatnonzero(block[row] == value), hits[same])
    return rows, ahead + 1
