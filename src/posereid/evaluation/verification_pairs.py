"""Pairs of crops that show one person or two, and what is kept of their distances: few numbers of many pairs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from posereid.data.crops import DISTRACTOR
from posereid.errors import InputError
from posereid.evaluation.distances import Distances, Table, finite_blocks
from posereid.evaluation.protocol import Indices, RankingProtocol, as_array, is_marker

Counts = npt.NDArray[np.int64]

# Steps in which resamples see the smallest impostor distances: 3 % apart in rank at MSMT17's size.
_TAIL_STEPS = 512
# So many of the smallest impostor distances are kept in any case: small sets need no approximation.
_TAIL_AT_LEAST = 2**20
# Of more than so many a sample stands for those beyond the first 2²⁰, which bounds the memory to half a gigabyte.
_TAIL_AT_MOST = 2**24
# Pairs that wait to be counted: 16 MB.
_CELLS_WAITING = 2**21


@dataclass(frozen=True, eq=False)
class LabelledPairs:
    """Queries × gallery under the protocol, and the clusters that are resampled: people, and distractor crops.

    ``splits`` holds each query's genuine and dropped positions. Clusters are numbered: people among the queries
    first (``query_people`` of them), then people in the gallery only, then each distractor crop.
    """

    source: Distances
    protocol: RankingProtocol
    splits: list[tuple[Indices, Indices]]
    query_clusters: Indices
    gallery_clusters: Indices
    query_people: int
    clusters: int
    genuine: int
    impostors: int

    @classmethod
    def of(
        cls,
        source: Distances,
        query_identities: npt.ArrayLike,
        gallery_identities: npt.ArrayLike,
        query_cameras: npt.ArrayLike | None,
        gallery_cameras: npt.ArrayLike | None,
    ) -> "LabelledPairs":
        """Sort the labels' pairs. Raises :class:`InputError` as the protocol does, and for no impostor pair."""
        protocol = RankingProtocol.of(
            source.shape, query_identities, gallery_identities, query_cameras, gallery_cameras
        )
        splits = [protocol.split(query) for query in range(source.shape[0])]
        genuine = sum(len(matches) for matches, _ in splits)
        if not genuine:
            raise InputError(protocol.why_unmatched())
        crops = len(protocol.kept)
        impostors = sum(crops - len(matches) - len(dropped) for matches, dropped in splits)
        if not impostors:
            raise InputError(
                f"All {len(splits)} queries and {crops} gallery crops show one identity (junk is not counted), so no "
                "pair is an impostor; verification needs at least two people."
            )
        codes = np.empty(crops, np.intp)
        codes[protocol.by_identity] = np.repeat(
            np.arange(len(protocol.group_starts) - 1), np.diff(protocol.group_starts)
        )
        distractors = np.flatnonzero(is_marker(as_array(gallery_identities)[protocol.kept], DISTRACTOR))
        codes[distractors] = len(protocol.group_starts) + np.arange(len(distractors))
        query_people, query_clusters = np.unique(protocol.query_codes, return_inverse=True)
        people = np.concatenate([query_people, np.setdiff1d(codes, query_people)])
        cluster_of = np.zeros(1 + people.max(), np.intp)
        cluster_of[people] = np.arange(len(people))
        return cls(
            source,
            protocol,
            splits,
            query_clusters.reshape(-1),
            cluster_of[codes],
            len(query_people),
            len(people),
            genuine,
            impostors,
        )

    def blocks(self, bar: Any) -> Iterator[tuple[int, Table, Table]]:
        """First query, impostor distances (rows, kept gallery) with infinity for other pairs, genuine distances."""
        for start, block in finite_blocks(self.source, self.protocol.kept):
            genuine = []
            for row, (matches, dropped) in zip(block, self.splits[start : start + len(block)], strict=True):
                genuine.append(row[matches])
                row[matches] = np.inf
                row[dropped] = np.inf
            yield start, block, np.concatenate(genuine)
            bar.update(len(block))


@dataclass(frozen=True, eq=False)
class GenuineDistances:
    """Distances of the genuine pairs, and the cluster that each belongs to.

    ``values`` are the distinct distances, ascending; ``accepted`` counts the pairs at most as far as each.
    """

    distances: Table
    owners: Indices
    values: Table
    accepted: Counts

    def owners_within(self, threshold: float) -> Indices:
        """The clusters of the pairs that a threshold accepts; of none where it is NaN."""
        return self.owners[self.distances <= threshold]


@dataclass(frozen=True, eq=False)
class NearestImpostors:
    """The smallest impostor distances, ascending, and how many impostor pairs lie at most as far, one float64 each.

    The first ``exact`` are all there are; those beyond are a sample of the ``share`` of them, 1 where all were kept.
    """

    distances: Table
    ranks: npt.NDArray[np.float64]
    exact: int
    share: float


class _Smallest:
    """The ``size`` smallest of many numbers that come in parts, in memory for a quarter more."""

    def __init__(self, size: int) -> None:
        self._size, self._waiting, self._limit = size, list[Table](), np.inf

    def add(self, values: Table) -> None:
        self._waiting.append(values[values < self._limit])
        if sum(map(len, self._waiting)) > self._size + self._size // 4:
            self._waiting = [np.partition(np.concatenate(self._waiting), self._size - 1)[: self._size].copy()]
            self._limit = self._waiting[0].max()

    def ascending(self) -> Table:
        return np.sort(np.concatenate(self._waiting))[: self._size]


def nearest_pairs(
    pairs: LabelledPairs, greatest_rate: float, seed: int, bar: Any
) -> tuple[GenuineDistances, NearestImpostors]:
    """The genuine distances, and the smallest impostor distances, sampled by ``seed`` where they are very many."""
    size = min(pairs.impostors, max(_TAIL_AT_LEAST, math.ceil(2 * greatest_rate * pairs.impostors)))
    share = min(1.0, _TAIL_AT_MOST / size)
    head, sample = _Smallest(size if share == 1 else _TAIL_AT_LEAST), _Smallest(min(size, _TAIL_AT_MOST))
    rng = np.random.default_rng((seed, 1))
    genuine: list[Table] = []
    for _, block, block_genuine in pairs.blocks(bar):
        genuine.append(block_genuine)
        head.add(block)
        if share < 1:
            sample.add(block[rng.random(block.shape, np.float32) < share])
    tail = head.ascending()
    exact, ranks = len(tail), np.arange(1.0, len(tail) + 1)
    if share < 1:
        drawn = sample.ascending()
        beyond = np.flatnonzero(drawn > tail[-1])
        tail = np.concatenate([tail, drawn[beyond]])
        ranks = np.concatenate([ranks, np.maximum((beyond + 1) / share, exact + 1)])
    distances = np.concatenate(genuine)
    owners = np.repeat(pairs.query_clusters, [len(matches) for matches, _ in pairs.splits])
    values, here = np.unique(distances, return_counts=True)
    return GenuineDistances(distances, owners, values, here.cumsum()), NearestImpostors(tail, ranks, exact, share)


@dataclass(frozen=True)
class Cut:
    """The threshold for a stated rate, how many impostor pairs the rate allows, and how many kept ones are accepted.

    The threshold is NaN where none is accepted; ``last`` is the greatest accepted distance.
    """

    rate: float
    allowed: int
    accepted: int = 0
    threshold: float = math.nan
    last: float = math.nan


def cut_for(rate: float, nearest: NearestImpostors, impostors: int) -> Cut:
    """The largest threshold whose false-match rate is at most ``rate``, as well as the nearest impostors tell it."""
    allowed, tail = _allowed(rate, impostors), nearest.distances
    first_rejected = int(np.searchsorted(nearest.ranks, allowed, "right"))
    rejected = tail[first_rejected]
    accepted = int(np.searchsorted(tail, rejected, "left"))
    if not accepted:
        return Cut(rate, allowed)
    last = tail[accepted - 1]
    # In the distances' own precision, where a caller will compare; there may be no number between neighbours.
    halfway = (tail[accepted - 1 : accepted] / 2 + tail[first_rejected : first_rejected + 1] / 2)[0]
    # In a sample others lie between the two.
    between = last <= halfway < rejected and (nearest.share == 1 or first_rejected < nearest.exact)
    return Cut(rate, allowed, accepted, float(halfway if between else last), float(last))


def _allowed(rate: float, impostors: int) -> int:
    """The greatest number of impostor pairs whose share is at most ``rate``."""
    allowed = math.floor(rate * impostors)
    # The product may be off by a rounding, on either side.
    if (allowed + 1) / impostors <= rate:
        return allowed + 1
    return allowed if allowed / impostors <= rate else allowed - 1


def tail_steps(nearest: NearestImpostors, cuts: list[Cut]) -> Table:
    """Distances of the tail that resamples count up to, ascending: all, or a choice with every cut and the end."""
    tail = nearest.distances
    distinct = tail[np.append(True, tail[1:] > tail[:-1])]
    if len(distinct) <= _TAIL_STEPS:
        return distinct
    ranks = np.rint(np.geomspace(1, len(tail), _TAIL_STEPS)).astype(np.intp)
    needed = np.array([len(tail), nearest.exact, *(cut.accepted for cut in cuts if cut.accepted)])
    return np.unique(tail[np.concatenate([ranks, needed]) - 1])


@dataclass(frozen=True, eq=False)
class ImpostorTail:
    """The smallest impostor distances, counted by step and by the two clusters of a pair.

    Step s holds distances in (steps[s - 1], steps[s]]. ``counts`` is (steps · query people, clusters): row
    ``s * query_people + person`` has that person's pairs. ``reached`` (steps,) are the pairs up to each step, all of
    them, where ``counts`` may be made from a sample.
    """

    steps: Table
    reached: Counts
    counts: sparse.csr_matrix
    query_people: int

    def by_step(self) -> list[sparse.csr_matrix]:
        """The pairs of each step, (query people, clusters), in the memory of ``counts``."""
        parts = []
        for row in range(0, self.counts.shape[0], self.query_people):
            ends = self.counts.indptr[row : row + self.query_people + 1]
            inside = slice(ends[0], ends[-1])
            rows = (self.counts.data[inside], self.counts.indices[inside], ends - ends[0])
            parts.append(sparse.csr_matrix(rows, shape=(self.query_people, self.counts.shape[1])))
        return parts

    def step_of(self, cut: Cut) -> int:
        """The last step whose pairs a cut accepts."""
        return int(np.searchsorted(self.steps, cut.last, "left"))

    def people_within(self, cut: Cut) -> float:
        """How many clusters, equally involved, would make the false matches of a cut (Kish's effective size)."""
        within = self.counts[: (self.step_of(cut) + 1) * self.query_people]
        involved = np.asarray(within.sum(0), np.float64).reshape(-1)
        involved[: self.query_people] += np.asarray(within.sum(1)).reshape(-1, self.query_people).sum(0)
        return float(involved.sum() ** 2 / (involved**2).sum())


@dataclass(frozen=True, eq=False)
class ImpostorCounts:
    """Impostor pairs nearer than each distinct genuine distance, and at most as far; the greatest of all distances."""

    below: Counts
    at_most: Counts
    greatest: float
    tail: ImpostorTail


def count_impostors(
    pairs: LabelledPairs, values: Table, steps: Table, nearest: NearestImpostors, seed: int, bar: Any
) -> ImpostorCounts:
    """Walk all distances once more and count impostors against genuine ``values`` and the tail's ``steps``.

    Beyond the exact part of the ``nearest`` only their share of the pairs is counted by clusters, each for several.
    """
    rng, last_exact = np.random.default_rng((seed, 2)), nearest.distances[nearest.exact - 1]
    reached = np.zeros(len(steps), np.int64)
    below, at_most = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
    greatest = values[-1]
    shape = (len(steps) * pairs.query_people, pairs.clusters)
    counts = sparse.csr_matrix(shape, dtype=np.float32)
    waiting: list[npt.NDArray[np.int64]] = []
    columns = len(pairs.protocol.kept)
    for start, block, _ in pairs.blocks(bar):
        flat = block.reshape(-1)
        near = np.flatnonzero(flat <= steps[-1])
        if nearest.share < 1:
            near = near[(flat[near] <= last_exact) | (rng.random(len(near), np.float32) < nearest.share)]
        cells = np.searchsorted(steps, flat[near], "left").astype(np.int64)
        cells = cells * pairs.query_people + pairs.query_clusters[start + near // columns]
        waiting.append(cells * pairs.clusters + pairs.gallery_clusters[near % columns])
        if sum(map(len, waiting)) > _CELLS_WAITING:
            counts, waiting = counts + _cell_counts(waiting, shape), []
        flat.sort()
        reached += np.searchsorted(flat, steps, "right")
        below += np.searchsorted(flat, values, "left")
        at_most += np.searchsorted(flat, values, "right")
        impostors = int(np.searchsorted(flat, np.inf, "left"))
        greatest = max(greatest, flat[impostors - 1]) if impostors else greatest
    counts = counts + _cell_counts(waiting, shape)
    sampled_from = (int(np.searchsorted(steps, last_exact, "left")) + 1) * pairs.query_people
    counts.data[counts.indptr[min(sampled_from, shape[0])] :] /= nearest.share
    return ImpostorCounts(below, at_most, float(greatest), ImpostorTail(steps, reached, counts, pairs.query_people))


def _cell_counts(cells: list[npt.NDArray[np.int64]], shape: tuple[int, int]) -> sparse.csr_matrix:
    """How often each cell, numbered row by row, occurs."""
    distinct, counts = np.unique(np.concatenate([np.empty(0, np.int64), *cells]), return_counts=True)
    return sparse.csr_matrix((counts.astype(np.float32), np.divmod(distinct, shape[1])), shape=shape)
