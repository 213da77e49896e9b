"""Distances between queries and a gallery, given as a table or worked out from features block by block."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt

from posereid.errors import InputError
from posereid.evaluation.protocol import Indices, as_array, as_table

Metric = Literal["cosine", "euclidean"]
Table = npt.NDArray[np.floating[Any]]
Answer = TypeVar("Answer")

# Distances that are looked at together: 4 MB of float32, which a core's cache may hold. A matrix product wants more.
_BLOCK_ELEMENTS = 2**20
_PRODUCT_BLOCKS = 4
# Blocks in work at once, so that memory stays bounded on machines of many cores.
_MOST_WORKERS = 16


class Distances(Protocol):
    """Q × G distances that can be asked for some rows at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery crops)."""
        ...

    def select(self, kept: Indices) -> "Distances":
        """The distances to some gallery crops only, in that order."""
        ...

    def rows(self, start: int, stop: int) -> Table:
        """Distances of some queries, (stop - start, G), as a new floating-point array."""
        ...

    @property
    def block_rows(self) -> int:
        """How many rows are best asked for together."""
        ...


@dataclass(frozen=True, eq=False)
class DistanceTable:
    """Distances that lie in memory, (Q, G); ``kept`` says which columns count."""

    table: npt.NDArray[Any]
    kept: Indices | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery crops)."""
        return len(self.table), self.table.shape[1] if self.kept is None else len(self.kept)

    def select(self, kept: Indices) -> "DistanceTable":
        """The same table with some columns only."""
        return DistanceTable(self.table, kept if self.kept is None else self.kept[kept])

    @property
    def block_rows(self) -> int:
        """How many rows are best asked for together."""
        return max(1, _BLOCK_ELEMENTS // max(1, self.shape[1]))

    def rows(self, start: int, stop: int) -> Table:
        """A copy of some rows; float32 and float64 stay as they are, so that ties stay ties."""
        part = self.table[start:stop]
        dtype = part.dtype if part.dtype in (np.float32, np.float64) else np.float64
        every = self.kept is None or len(self.kept) == part.shape[1]
        return np.array(part if every else part[:, self.kept], dtype, order="C")


@dataclass(frozen=True, eq=False)
class FeatureDistances:
    """Distances between features, worked out row by row and never held together.

    ``query`` is (Q, D) and ``gallery`` (G, D), prepared by :meth:`of`: NumPy arrays, or torch tensors where a device
    works them out.
    """

    query: Any
    gallery: Any
    metric: Metric
    dtype: np.dtype[np.floating[Any]]

    @classmethod
    def of(
        cls,
        query_features: npt.ArrayLike,
        gallery_features: npt.ArrayLike,
        metric: Metric = "cosine",
        *,
        device: Any = None,
    ) -> "FeatureDistances":
        """Check and prepare features (Q, D) and (G, D).

        ``"cosine"`` is 1 - cosine similarity, in [0, 2], and 1 where a feature is all zero; ``"euclidean"`` is the
        plain L2 distance. float64 where one of the two is, else float32. ``device``, as torch names it, is where
        blocks are multiplied; without one, NumPy does it. Raises :class:`InputError` for features that are not
        finite, not two-dimensional or of different length.
        """
        query, gallery = feature_tables(query_features, gallery_features, metric)
        dtype = np.result_type(query, gallery)
        if metric == "cosine":
            query, gallery = (unit_length(part).astype(dtype, copy=False) for part in (query, gallery))
        else:
            # |a|² + |b|² - 2ab loses the digits of a small distance, hence double precision.
            query, gallery = query.astype(np.float64), gallery.astype(np.float64)
        if device is not None and str(device) != "cpu":
            import torch

            on_device = [torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (query, gallery)]
            return cls(on_device[0], on_device[1], metric, dtype)
        return cls(query, gallery, metric, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery crops)."""
        return len(self.query), len(self.gallery)

    def select(self, kept: Indices) -> "FeatureDistances":
        """The distances to some gallery crops only."""
        if len(kept) == len(self.gallery):
            return self
        return FeatureDistances(self.query, self.gallery[kept], self.metric, self.dtype)

    @property
    def block_rows(self) -> int:
        """How many rows are best asked for together."""
        return max(1, _PRODUCT_BLOCKS * _BLOCK_ELEMENTS // max(1, self.shape[1]))

    def rows(self, start: int, stop: int) -> Table:
        """Distances of some queries, (stop - start, G)."""
        if self.metric == "cosine":
            similarities = _on_host(self.query[start:stop] @ self.gallery.T)
            np.subtract(1, similarities, out=similarities)
            return np.clip(similarities, 0, 2, out=similarities)
        block = self.query[start:stop]
        squares = (block**2).sum(1)[:, None] + self._gallery_squares - 2 * (block @ self.gallery.T)
        return np.sqrt(np.maximum(_on_host(squares), 0)).astype(self.dtype)

    @cached_property
    def _gallery_squares(self) -> Any:
        """|b|² of every gallery feature, (G,), which all blocks need."""
        return (self.gallery**2).sum(1)


def as_distances(distances: "npt.ArrayLike | Distances") -> "Distances":
    """A (Q, G) table, or what is :class:`Distances` already. Raises :class:`InputError` for no query or no table."""
    if hasattr(distances, "block_rows"):
        source = cast(Distances, distances)
        if not source.shape[0]:
            raise InputError("There is no query to evaluate.")
        return source
    array = as_array(distances)
    if array.shape[:1] == (0,):
        raise InputError("distances has no rows: there is no query to evaluate.")
    return DistanceTable(as_table(array, "distances"))


def finite_blocks(distances: Distances, kept: Indices) -> Iterator[tuple[int, Table]]:
    """Blocks of rows, each with the number of its first query and without the columns that are not ``kept``.

    Raises :class:`InputError` for a distance that is not finite.
    """
    chosen = distances.select(kept)
    queries, rows = chosen.shape[0], chosen.block_rows
    for start in range(0, queries, rows):
        yield start, finite_block(chosen, kept, start, min(start + rows, queries))


def map_blocks(distances: Distances, kept: Indices, work: Callable[[int, Table], Answer]) -> list[Answer]:
    """``work(first query, block)`` for each of :func:`finite_blocks`, in order, on every core.

    NumPy lets other threads run while it sorts and multiplies; each core holds one block. Raises as there.
    """
    chosen = distances.select(kept)
    queries, rows = chosen.shape[0], chosen.block_rows

    def one(start: int) -> Answer:
        return work(start, finite_block(chosen, kept, start, min(start + rows, queries)))

    with ThreadPoolExecutor(_workers()) as pool:
        return list(pool.map(one, range(0, queries, rows)))


def _workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def finite_block(chosen: Distances, kept: Indices, start: int, stop: int) -> Table:
    """Some rows of distances that were selected to be ``kept``, checked to be finite."""
    block = chosen.rows(start, stop)
    if not np.isfinite(block).all():
        row, column = np.argwhere(~np.isfinite(block))[0]
        raise InputError(
            f"The distance of query {start + row} to gallery crop {kept[column]} is {block[row, column]}; "
            "distances must be finite, so look for NaN in the features."
        )
    return block


def distance_matrix(
    query_features: npt.ArrayLike, gallery_features: npt.ArrayLike, metric: Metric = "cosine", *, device: Any = None
) -> Table:
    """All distances (Q, G) between features (Q, D) and (G, D), as :meth:`FeatureDistances.of` defines them.

    Worked out in blocks of queries, so that little memory beyond the answer is used. Raises :class:`InputError`.

    >>> distance_matrix([[1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]]).tolist()
    [[0.0, 1.0]]
    >>> distance_matrix([[0.0, 0.0]], [[3.0, 4.0]], "euclidean").tolist()
    [[5.0]]
    """
    source = FeatureDistances.of(query_features, gallery_features, metric, device=device)
    distances = np.empty(source.shape, source.dtype)
    for start in range(0, len(distances), source.block_rows):
        stop = start + source.block_rows
        distances[start:stop] = source.rows(start, stop)
    return distances


def feature_tables(
    query_features: npt.ArrayLike, gallery_features: npt.ArrayLike, metric: Metric
) -> tuple[Table, Table]:
    """Both sides' :func:`feature_table`. Raises :class:`InputError` where D differs, and for an unknown metric."""
    if metric not in get_args(Metric):
        raise InputError(f"metric is {metric!r}; choose {' or '.join(get_args(Metric))}.")
    query = feature_table(query_features, "query_features")
    gallery = feature_table(gallery_features, "gallery_features")
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            f"Query features have {query.shape[1]} numbers each and gallery features {gallery.shape[1]}; "
            "both must come from the same network."
        )
    return query, gallery


def feature_table(features: npt.ArrayLike, name: str) -> Table:
    """Features (n, D) as float32 or float64. Raises :class:`InputError` naming the first row that is not finite."""
    table = as_table(features, name)
    table = table.astype(np.float64 if table.dtype == np.float64 else np.float32, copy=False)
    if not np.isfinite(table).all():
        crop = np.flatnonzero(~np.isfinite(table).all(1))[0]
        raise InputError(f"Row {crop} of {name} is not finite; look for NaN in the network's weights.")
    return table


def unit_length(features: Table) -> Table:
    """Features (n, D) divided by their length, float64; an all-zero one stays."""
    # In double precision: squares of large or small float32 would leave its range.
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def _on_host(values: Any) -> Table:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
