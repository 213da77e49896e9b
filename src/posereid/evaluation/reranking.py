"""k-reciprocal re-ranking (Zhong et al. 2017) without a table of all distances between all crops.

The published code holds several N × N tables of N = queries + gallery crops. Here each row of distances is looked at
once, in blocks: what stays of it are its nearest crops, its largest distance and, for a query, the distances that are
part of the answer. Everything after that works on sparse rows.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from posereid.config import RerankingRecipe
from posereid.errors import InputError
from posereid.evaluation.distances import FeatureDistances, Metric, Table, feature_tables
from posereid.evaluation.protocol import Indices
from posereid.progress import progress_bar

Singles = npt.NDArray[np.float32]

LARGEST_WHOLE = 50_000
"""Gallery crops up to which all are re-ranked, queries and gallery together; beyond, each query's nearest alone."""

CANDIDATES = 1000
"""How many nearest crops those are: ten times the ranks that are looked at, and more than any person's crops."""

# Distances that are looked at together: 64 MB of float32.
_BLOCK_ELEMENTS = 2**24
# Numbers of features whose differences are looked at together; this 1 MB of float64 stays in the processor's cache.
_DIFFERENCE_ELEMENTS = 2**17
# A block's products are float32, so a crop's neighbours are chosen from this many more than are asked for.
_SPARE_CANDIDATES = 8
# Of float32: the rounding of one operation, and a square below which digits are lost.
_ROUNDING = 2.0**-24
_SMALLEST_SQUARE = 2.0**-120


def k_reciprocal(
    query_features: npt.ArrayLike,
    gallery_features: npt.ArrayLike,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    metric: Metric = "euclidean",
    device: Any = None,
    progress: bool = False,
) -> Singles:
    """Re-ranked distances (Q, G) float32 between features (Q, D) and (G, D), smaller is more alike.

    They lie in [0, 1], up to float32's last digit.

    "Re-ranking Person Re-identification with k-reciprocal Encoding" (Zhong et al., CVPR 2017), eqs. 1-12:
    (1 - ``lambda_value``) · Jaccard distance of the encoded neighbourhoods + ``lambda_value`` · squared Euclidean
    distance divided by the query's largest one. ``k1`` is the size of the neighbourhoods, ``k2`` the number of
    neighbours over which encodings are averaged, 1 for none; both reach at most to all N = Q + G crops, and may be
    larger. ``metric`` "euclidean" takes the features as they are, "cosine" scales each to length 1 first. Lists, NumPy
    arrays and torch tensors all do.

    As in the code that the paper's authors published, distances are squared and divided by their row's maximum before
    they are weighted, queries and gallery stand in one list of neighbours, and a set of neighbours grows by a smaller
    one of which more than two thirds lie in the set as it was at first (eq. 4 has: at least two thirds). Where that
    code leaves a choice: a crop is always its own nearest, crops at equal distance keep their order (queries first),
    and where all features are equal every distance counts as 0 instead of 0 / 0. Which crops are neighbours is decided
    on differences in double precision, so the answer does not hang on rounding.

    Beyond the answer the memory grows with N · (D + k1² · k2) at most, never with N². ``device``, as torch names it, is
    where blocks of distances are worked out; without one, the CPU. Raises :class:`InputError` for features that are
    not finite, not two-dimensional or of different length, no query, an empty gallery, ``k1`` or ``k2`` that is no
    whole number above 0, and ``lambda_value`` outside [0, 1].

    >>> k_reciprocal([[0.0, 0.0]], [[0.0, 1.0], [9.0, 0.0], [9.0, 1.0]], k1=1, k2=1).astype(float).round(3).tolist()
    [[0.012, 0.996, 1.0]]
    """
    k1, k2 = _whole_number(k1, "k1"), _whole_number(k2, "k2")
    if not 0 <= lambda_value <= 1:
        raise InputError(f"lambda_value is {lambda_value}; a share between 0 and 1 is expected.")
    features, queries = _joint_features(query_features, gallery_features, metric)
    crops = len(features)
    answer = np.empty((queries, crops - queries), np.float32)
    nearest = np.empty((crops, min(crops, max(k1 + 1, k2))), np.int32)
    largest = np.empty(crops, np.float32)
    with progress_bar(crops, "re-ranking: neighbours", "crop", show=progress) as bar:
        for block in _blocks_of_distances(features, nearest.shape[1], device):
            rows = slice(block.start, block.start + len(block.nearest))
            nearest[rows], largest[rows] = block.nearest, block.largest
            if block.start < queries:
                answer[rows] = _normalised(block, *answer[rows].shape)
            bar.update(len(block.nearest))
    encodings = _encode(features, nearest, largest, k1)
    chosen = nearest[:, :k2]
    averages = sparse.csr_array(
        (np.full(chosen.size, 1 / chosen.shape[1], np.float32), chosen.ravel(), _row_ends(chosen)), (crops, crops)
    )
    encodings = (averages @ encodings).tocsr()
    with progress_bar(queries, "re-ranking: queries", "query", show=progress) as bar:
        for row, jaccard in zip(answer, _jaccard_distances(encodings[:queries], encodings[queries:]), strict=True):
            row *= lambda_value
            row += (1 - lambda_value) * jaccard
            bar.update()
    return answer


@dataclass(frozen=True, eq=False)
class RerankedHeads:
    """Q × G distances in which each query's nearest gallery crops come first, re-ranked, and the others as they were.

    ``columns`` and ``values`` are each query's re-ranked crops and their distances, in [0, 1]; the plain distances of
    all others, which are 0 or more, stand behind them with 2 added. ``kept`` says which columns count.
    """

    plain: FeatureDistances
    columns: tuple[Indices, ...]
    values: tuple[Singles, ...]
    kept: Indices | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery crops)."""
        return self.plain.shape[0], self.plain.shape[1] if self.kept is None else len(self.kept)

    def select(self, kept: Indices) -> "RerankedHeads":
        """The distances to some gallery crops only."""
        return replace(self, kept=kept if self.kept is None else self.kept[kept])

    @property
    def block_rows(self) -> int:
        """How many rows are best asked for together."""
        return self.plain.block_rows

    def rows(self, start: int, stop: int) -> Table:
        """Distances of some queries, (stop - start, G) float64."""
        block = self.plain.rows(start, stop).astype(np.float64) + 2
        for row, columns, values in zip(block, self.columns[start:stop], self.values[start:stop], strict=True):
            row[columns] = values
        return block if self.kept is None else block[:, self.kept]


def rerank_heads(
    query_features: npt.ArrayLike,
    gallery_features: npt.ArrayLike,
    recipe: RerankingRecipe,
    candidates: int = CANDIDATES,
    *,
    metric: Metric = "euclidean",
    device: Any = None,
    progress: bool = False,
) -> RerankedHeads:
    """:func:`k_reciprocal` among each query's nearest ``candidates`` of all queries and gallery crops, one by one.

    The usual way with large galleries, where only the head of a ranking is looked at: neighbourhoods are those among
    the candidates. The same as :func:`k_reciprocal` where there are no more crops than candidates. Memory grows with
    Q · ``candidates`` instead of Q · G, time with Q · G · D and Q · ``candidates``². Raises :class:`InputError` as
    there, and for ``candidates`` below 1.
    """
    candidates = _whole_number(candidates, "candidates")
    query, gallery = feature_tables(query_features, gallery_features, metric)
    plain = FeatureDistances.of(query, gallery, metric, device=device)
    among_queries = FeatureDistances.of(query, query, metric, device=device)
    columns: list[Indices] = []
    values: list[Singles] = []
    with progress_bar(len(query), "re-ranking: queries", "query", show=progress) as bar:
        for start in range(0, len(query), plain.block_rows):
            stop = min(start + plain.block_rows, len(query))
            blocks = (among_queries.rows(start, stop), plain.rows(start, stop))
            for number, row in enumerate(np.concatenate(blocks, axis=1), start):
                row[number] = -1  # itself, whatever equal crop there is
                nearest = np.argpartition(row, candidates - 1)[:candidates] if candidates < len(row) else None
                chosen = np.arange(len(row)) if nearest is None else np.sort(nearest)
                others = chosen[(chosen < len(query)) & (chosen != number)]
                found = chosen[chosen >= len(query)] - len(query)
                columns.append(found)
                values.append(np.empty(0, np.float32))
                if len(found):
                    values[-1] = k_reciprocal(
                        query[[number, *others]],
                        gallery[found],
                        recipe.k1,
                        recipe.k2,
                        recipe.lambda_value,
                        metric=metric,
                        device=device,
                    )[0]
                bar.update()
    return RerankedHeads(plain, tuple(columns), tuple(values))


def _whole_number(value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{name} is {value}; a whole number of at least 1 is expected.")
    return number


def _joint_features(query_features: Any, gallery_features: Any, metric: Metric) -> tuple[Table, int]:
    """Queries and gallery in one table (N, D) of numbers up to 1, and how many queries come first."""
    query, gallery = feature_tables(query_features, gallery_features, metric)
    if not len(query):
        raise InputError("query_features has no rows: there is no query to re-rank.")
    if not len(gallery):
        raise InputError("gallery_features has no rows: there is no gallery to re-rank.")
    features = np.concatenate([query, gallery])
    # A common power of two changes no digit and no ratio of distances, and keeps squares within float32.
    _, exponent = np.frexp(np.abs(features).max(initial=0))
    np.ldexp(features, -exponent, out=features)
    if metric == "cosine":
        # A row far smaller than the largest would lose its digits when squared.
        largest = np.abs(features).max(axis=1, initial=0, keepdims=True)
        features /= np.where(largest > 0, largest, 1)
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        features /= np.where(lengths > 0, lengths, 1)
    return features, len(query)


@dataclass(frozen=True, eq=False)
class _Block:
    """What is looked at of some rows of squared distances, from row ``start`` on.

    ``nearest`` (rows, neighbours) are crops, the row's own first; ``largest`` (rows,) float32 is the largest square,
    infinite where all are 0 so that dividing by it leaves 0; ``squares`` (rows, N) float32 are all of them, on the
    device, until the next block is asked for.
    """

    start: int
    nearest: npt.NDArray[np.intp]
    largest: Singles
    squares: torch.Tensor


def _blocks_of_distances(features: Table, neighbours: int, device: Any) -> Iterator[_Block]:
    crops, dimensions = features.shape
    # Without their common part |a|² + |b|² - 2ab loses few digits, even of features that are all alike.
    centred = features - features.mean(axis=0, dtype=np.float64)
    square_lengths = np.einsum("ij,ij->i", centred, centred)
    points = torch.from_numpy(centred.astype(np.float32)).to("cpu" if device is None else device)
    offsets = torch.from_numpy(square_lengths.astype(np.float32)).to(points.device)
    del centred
    rows = max(1, min(crops, _BLOCK_ELEMENTS // crops))
    room = torch.empty((rows, crops), device=points.device)
    candidates = min(crops, neighbours + _SPARE_CANDIDATES)
    for start in range(0, crops, rows):
        stop = min(start + rows, crops)
        squares = room[: stop - start]
        with _full_float32():
            torch.addmm(offsets, points[start:stop], points.T, alpha=-2, out=squares)
        squares += offsets[start:stop, None]
        own = np.arange(start, stop)
        values, columns = (part.cpu().numpy() for part in squares.topk(candidates, largest=False))
        nearest, reach = _in_exact_order(features, own, np.sort(columns, axis=1), neighbours)
        slack = _rounding_error(square_lengths[start:stop], reach, dimensions)
        if candidates < crops:
            # A crop that was not chosen may be nearer than its square says.
            for row in np.flatnonzero(values[:, -1] - slack <= reach):
                within = torch.nonzero(squares[row] <= float(reach[row] + slack[row])).cpu().numpy().reshape(1, -1)
                nearest[row] = _in_exact_order(features, own[row : row + 1], within, neighbours)[0]
        largest = _square_distances(features, own, squares.argmax(dim=1).cpu().numpy()).astype(np.float32)
        yield _Block(start, nearest, np.where(largest > 0, largest, np.float32(np.inf)), squares)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Switch off the short formats (TF32, bfloat16) that PyTorch may have been told to multiply float32 with."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _rounding_error(square_lengths: npt.NDArray[Any], reach: npt.NDArray[Any], dimensions: int) -> npt.NDArray[Any]:
    """How far a float32 square can be from the true one, for all crops that may lie within ``reach`` of a row.

    D rounded products of |a| and |b| are off by D · 2⁻²⁴ · |a| · |b| at most, and |b| is at most |a| + √reach: a
    longer one lies beyond the reach, whatever its square was rounded to.
    """
    lengths = 2 * np.sqrt(square_lengths) + np.sqrt(reach)
    return (dimensions + 8) * _ROUNDING * lengths**2 + _SMALLEST_SQUARE


def _in_exact_order(
    features: Table, own: Indices, columns: Indices, neighbours: int
) -> tuple[Indices, npt.NDArray[np.float64]]:
    """The nearest (rows, neighbours) of some candidates, and each row's largest square among those.

    ``own`` (rows,) are the rows' crops; ``columns`` (rows, candidates) ascend and hold them.
    """
    owners = np.repeat(own, columns.shape[1])
    squares = _square_distances(features, owners, columns.ravel()).reshape(columns.shape)
    squares[columns == own[:, None]] = -1  # its own nearest, whatever equal crop stands before it
    order = np.argsort(squares, axis=1, kind="stable")[:, :neighbours]
    return np.take_along_axis(columns, order, 1), np.take_along_axis(squares, order[:, -1:], 1)[:, 0]


def _square_distances(features: Table, rows: Indices, columns: Indices) -> npt.NDArray[np.float64]:
    """|features[row] - features[column]|² for each pair; equal features are at 0 exactly."""
    squares = np.empty(len(rows))
    pairs = max(1, _DIFFERENCE_ELEMENTS // max(1, features.shape[1]))
    for part in (slice(start, start + pairs) for start in range(0, len(rows), pairs)):
        differences = features.take(columns[part], axis=0).astype(np.float64)
        differences -= features.take(rows[part], axis=0)
        squares[part] = np.einsum("ij,ij->i", differences, differences)
    return squares


def _normalised(block: _Block, queries: int, gallery: int) -> Singles:
    """The block's distances of the first rows to the last columns, divided by the row's largest one; in [0, 1]."""
    squares = block.squares[:queries, -gallery:]
    return (squares / torch.from_numpy(block.largest[:queries, None]).to(squares)).clamp_(0, 1).cpu().numpy()


def _encode(features: Table, nearest: npt.NDArray[np.int32], largest: Singles, k1: int) -> sparse.csr_array:
    """Encodings of all crops, (N, N) float32: a row's weights of its expanded k-reciprocal neighbours add up to 1."""
    wide = _reciprocal(nearest[:, : k1 + 1])
    narrow = _reciprocal(nearest[:, : round(k1 / 2) + 1])  # a half goes to the even number, as NumPy rounds
    narrow_sizes = np.diff(narrow.indptr)
    narrow_by_member = narrow.T.tocsr()
    parts = []
    rows = max(1, _BLOCK_ELEMENTS // (4 * nearest.shape[1] ** 2))
    for start in range(0, len(features), rows):
        members = wide[start : start + rows]
        shared = (members @ narrow_by_member).multiply(members).tocsr()
        shared.data = (3 * shared.data > 2 * narrow_sizes[shared.indices]).astype(np.int32)
        shared.eliminate_zeros()
        expanded = (members + shared @ narrow).tocsr()
        expanded.sort_indices()
        owners = np.repeat(np.arange(expanded.shape[0]), np.diff(expanded.indptr))
        squares = _square_distances(features, start + owners, expanded.indices)
        weights = np.exp(-squares / largest[start + owners])
        expanded.data = (weights / np.bincount(owners, weights)[owners]).astype(np.float32)
        parts.append(expanded)
    return sparse.vstack(parts, format="csr")


def _reciprocal(nearest: npt.NDArray[np.int32]) -> sparse.csr_array:
    """(N, N), 1 where two crops stand in each other's list of nearest crops (N, k), else 0."""
    shape = (len(nearest), len(nearest))
    listed = sparse.csr_array((np.ones(nearest.size, np.int32), nearest.ravel(), _row_ends(nearest)), shape)
    return listed.multiply(listed.T).tocsr()


def _row_ends(lists: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The index pointer of a sparse matrix whose rows all hold as many entries."""
    return np.arange(len(lists) + 1) * lists.shape[1]


def _jaccard_distances(query: sparse.csr_array, gallery: sparse.csr_array) -> Iterator[Singles]:
    """1 - Σ min / Σ max of each query's encoding with all gallery crops', (G,) for query after query.

    Encodings add up to 1, hence Σ max = 2 - Σ min. Only crops that share an entry with the query are looked at.
    """
    by_entry = gallery.tocsc()
    sizes = np.diff(by_entry.indptr)
    for first, last in zip(query.indptr[:-1], query.indptr[1:], strict=True):
        entries = query.indices[first:last]
        counts = sizes[entries]
        ends = np.cumsum(counts)
        # The runs of `by_entry` that belong to the query's entries, one after the other.
        where = np.arange(ends[-1]) + np.repeat(by_entry.indptr[entries] - (ends - counts), counts)
        smaller = np.minimum(np.repeat(query.data[first:last], counts), by_entry.data[where])
        common = np.bincount(by_entry.indices[where], smaller, gallery.shape[0])
        yield (1 - common / (2 - common)).astype(np.float32)
