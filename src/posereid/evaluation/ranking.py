"""How good a search is: CMC, mean average precision and mINP, by the Market-1501 protocol.

Which gallery crops count for a query is said in :mod:`posereid.evaluation.protocol`. A query for whom no
right crop remains is left out of every mean and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from posereid.errors import InputError
from posereid.evaluation.protocol import RankingProtocol, as_array, as_table

AveragePrecision = Literal["hits", "trapezoid"]
Metric = Literal["cosine", "euclidean"]

# Elements of the distance matrix that are looked at together: 16 MB of float32.
_BLOCK_ELEMENTS = 2**22


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
    distances: npt.ArrayLike,
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
    if max_rank < 1:
        raise InputError(f"max_rank is {max_rank}; it must be at least 1.")
    if average_precision not in get_args(AveragePrecision):
        choices = " or ".join(get_args(AveragePrecision))
        raise InputError(f"average_precision is {average_precision!r}; choose {choices}.")
    matrix = _distance_table(distances)
    protocol = RankingProtocol.of(matrix.shape, query_identities, gallery_identities, query_cameras, gallery_cameras)
    per_query = [
        ranks for start, block in _finite_blocks(matrix, protocol) for ranks in _hit_ranks(start, block, protocol)
    ]
    counts = np.array([len(ranks) for ranks in per_query], np.int64)
    matched = counts > 0
    if not matched.any():
        raise InputError(protocol.why_unmatched())

    # Every right crop of every query in one run: `ranks` ascends within a query, `nth` counts 1, 2, … there.
    ranks = np.concatenate(per_query)
    owner = np.repeat(np.arange(len(matrix)), counts)
    ends = np.cumsum(counts)
    nth = np.arange(len(ranks)) - (ends - counts)[owner] + 1
    precision = nth / ranks
    if average_precision == "trapezoid":
        earlier = np.where(ranks > 1, (nth - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + earlier) / 2

    average_precisions = np.full(len(matrix), np.nan)
    penalties = np.full(len(matrix), np.nan)
    first_hits = np.zeros(len(matrix), np.int64)
    average_precisions[matched] = np.bincount(owner, precision, len(matrix))[matched] / counts[matched]
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
        unmatched_queries=len(matrix) - evaluated,
        average_precision=average_precision,
    )


def ranked_matches(
    distances: npt.ArrayLike,
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
    matrix = _distance_table(distances)
    protocol = RankingProtocol.of(matrix.shape, query_identities, gallery_identities, query_cameras, gallery_cameras)
    if not 0 <= query_index < len(matrix):
        raise InputError(f"query_index is {query_index}; there are {len(matrix)} queries, counted from 0.")
    row = _finite_block(matrix, protocol, query_index, query_index + 1)[0]
    matches, dropped = protocol.split(query_index)
    row[dropped] = np.inf
    order = np.argsort(row, kind="stable")[: min(top, len(row) - len(dropped))]
    return RankedMatches(protocol.kept[order].astype(np.int64), np.isin(order, matches))


def distance_matrix(
    query_features: npt.ArrayLike, gallery_features: npt.ArrayLike, metric: Metric = "cosine"
) -> npt.NDArray[np.floating[Any]]:
    """Distances (Q, G) between features (Q, D) and (G, D); float64 where one of the two is, else float32.

    ``"cosine"`` is 1 - cosine similarity, in [0, 2], and 1 where a feature is all zero; ``"euclidean"`` is
    the plain L2 distance. Worked out in blocks of queries, so that little memory beyond the answer is used.
    Raises :class:`InputError` for features that are not finite, not two-dimensional or of different length.

    >>> distance_matrix([[1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]]).tolist()
    [[0.0, 1.0]]
    >>> distance_matrix([[0.0, 0.0]], [[3.0, 4.0]], "euclidean").tolist()
    [[5.0]]
    """
    if metric not in get_args(Metric):
        raise InputError(f"metric is {metric!r}; choose {' or '.join(get_args(Metric))}.")
    queries = _feature_table(query_features, "query_features")
    gallery = _feature_table(gallery_features, "gallery_features")
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"Query features have {queries.shape[1]} numbers each and gallery features {gallery.shape[1]}; "
            "both must come from the same network."
        )
    distances = np.empty((len(queries), len(gallery)), np.result_type(queries, gallery))
    rows = _rows_per_block(len(gallery))
    if metric == "cosine":
        queries, gallery = _unit_length(queries), _unit_length(gallery)
        for start in range(0, len(queries), rows):
            similarities = queries[start : start + rows] @ gallery.T
            np.clip(1 - similarities, 0, 2, out=distances[start : start + rows])
        return distances
    # |a|² + |b|² - 2ab loses the digits of a small distance, hence double precision.
    gallery = gallery.astype(np.float64)
    gallery_squares = np.einsum("gd,gd->g", gallery, gallery)
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].astype(np.float64)
        squares = np.einsum("qd,qd->q", block, block)[:, None] + gallery_squares - 2 * (block @ gallery.T)
        distances[start : start + rows] = np.sqrt(np.maximum(squares, 0))
    return distances


def _hit_ranks(
    first_query: int, block: npt.NDArray[np.floating[Any]], protocol: RankingProtocol
) -> Iterator[npt.NDArray[np.int64]]:
    """Ascending 1-based ranks of the right crops, query by query.

    ``block`` (queries, kept gallery) is overwritten. A rank counts the smaller distances, so sorted values
    suffice, which come several times faster than sorted indices. Only where a right crop ties with another
    one do positions matter.
    """
    splits = [protocol.split(first_query + row) for row in range(len(block))]
    for row, (_, dropped) in zip(block, splits, strict=True):
        row[dropped] = np.inf
    ordered = np.sort(block, axis=1)
    for row, ordered_row, (matches, _) in zip(block, ordered, splits, strict=True):
        hits = matches[np.argsort(row[matches], kind="stable")]
        values = row[hits]
        ahead = np.searchsorted(ordered_row, values, "left")
        tied = np.searchsorted(ordered_row, values, "right") > ahead + 1
        for value in np.unique(values[tied]):
            same = values == value
            ahead[same] += np.searchsorted(np.flatnonzero(row == value), hits[same])
        yield ahead.astype(np.int64) + 1


def _rows_per_block(columns: int) -> int:
    return max(1, _BLOCK_ELEMENTS // max(1, columns))


def _finite_blocks(
    matrix: npt.NDArray[Any], protocol: RankingProtocol
) -> Iterator[tuple[int, npt.NDArray[np.floating[Any]]]]:
    """The first query and the distances of each block, see :func:`_finite_block`."""
    rows = _rows_per_block(len(protocol.kept))
    for start in range(0, len(matrix), rows):
        yield start, _finite_block(matrix, protocol, start, start + rows)


def _finite_block(
    matrix: npt.NDArray[Any], protocol: RankingProtocol, start: int, stop: int
) -> npt.NDArray[np.floating[Any]]:
    """A writable copy of some rows without junk columns, floating point, checked to be finite."""
    part, kept = matrix[start:stop], protocol.kept
    # Keeping float32 and float64 as they are keeps ties as they are.
    dtype = part.dtype if part.dtype in (np.float32, np.float64) else np.float64
    block = np.array(part if len(kept) == part.shape[1] else part[:, kept], dtype, order="C")
    if not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        raise InputError(
            f"The distance of query {start + row} to gallery crop {kept[column]} is {block[row, column]}; "
            "distances must be finite, so look for NaN in the features."
        )
    return block


def _distance_table(distances: npt.ArrayLike) -> npt.NDArray[Any]:
    distances = as_array(distances)
    if distances.shape[:1] == (0,):
        raise InputError("distances has no rows: there is no query to evaluate.")
    return as_table(distances, "distances")


def _feature_table(features: npt.ArrayLike, name: str) -> npt.NDArray[np.floating[Any]]:
    table = as_table(features, name)
    table = table.astype(np.float64 if table.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(table).all():
        crop = np.flatnonzero(~np.isfinite(table).all(1))[0]
        raise InputError(f"Row {crop} of {name} is not finite; look for NaN in the network's weights.")
    return table


def _unit_length(features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)
