"""Which crops meet in a batch: pose pairs and quartets, drawn from the seed alone.

Each batch is a function of (seed, epoch, step): nothing is carried over, so a resumed run draws what the
uninterrupted one would have drawn, and every process draws the whole batch and keeps its own part.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from posereid.data.crops import Crop
from posereid.errors import InputError

Indices = npt.NDArray[np.int64]


def crops_by_identity(crops: Sequence[Crop], *, posed: bool = False) -> dict[int, list[int]]:
    """Positions of each identity's crops; with ``posed`` only of those that may take part in pose pairs."""
    found: dict[int, list[int]] = defaultdict(list)
    for position, crop in enumerate(crops):
        if crop.can_pose if posed else crop.identified:
            found[crop.identity].append(position)
    return dict(sorted(found.items()))


class PosePairSampler:
    """Random pose pairs in batches, identities drawn without repetition inside a batch while they last.

    First the identity is drawn, then an ordered pair of its crops: so that a batch holds the different
    identities that quartets need, and people with many crops do not crowd out the rest.
    ``identities_per_batch`` is the number of distinct identities in each batch.
    Raises InputError when fewer than three identities have two crops with both shoulders and both hips.
    """

    def __init__(self, crops: Sequence[Crop], batch_size: int, pairs_per_epoch: int, seed: int) -> None:
        groups = crops_by_identity(crops, posed=True)
        self.groups = [np.array(members) for members in groups.values() if len(members) > 1]
        self.pairs = sum(len(members) * (len(members) - 1) for members in self.groups)
        if len(self.groups) < 3:
            raise InputError(
                f"{len(self.groups)} identities have two crops with both shoulders and both hips among their "
                "keypoints; joint training needs at least 3. Check that the keypoint files belong to this data set."
            )
        self.batch_size = batch_size
        self.batches_per_epoch = max(1, pairs_per_epoch // batch_size)
        self.identities_per_batch = min(batch_size, len(self.groups))
        self.seed = seed

    def batch(self, epoch: int, step: int) -> Indices:
        """(batch_size, 2) positions of source and target crops for one step of one epoch."""
        random = np.random.default_rng((self.seed, 1, epoch, step))
        rounds = -(-self.batch_size // len(self.groups))
        chosen = np.concatenate([random.permutation(len(self.groups)) for _ in range(rounds)])[: self.batch_size]
        return np.stack([random.choice(self.groups[group], 2, replace=False) for group in chosen])


class QuartetSampler:
    """Random quartets (equation 12) from all training crops, real and generated alike (section 5.1).

    Anchor and positive are two crops of one identity, the third and fourth image belong to two further
    identities. With ``generated=False`` quartets hold real crops only, and each comes with one random generated crop
    for the identity loss, where there are any.
    Raises InputError when fewer than three identities, or none with two crops, are left.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        quartets_per_batch: int,
        quartets_per_epoch: int,
        seed: int,
        *,
        generated: bool = True,
    ) -> None:
        groups = crops_by_identity(crops)
        members = [[i for i in group if generated or not crops[i].generated] for group in groups.values()]
        self.groups = [np.array(group) for group in members if group]
        self.identity_only = [i for i, crop in enumerate(crops) if crop.generated and not generated]
        self.anchors = np.array([g for g, group in enumerate(self.groups) if len(group) > 1])
        if len(self.groups) < 3 or not len(self.anchors):
            raise InputError(
                f"the training crops hold {len(self.groups)} identities, {len(self.anchors)} of them with two crops; "
                "quartets need at least 3 identities, one of them with two crops."
            )
        self.quartets_per_batch = quartets_per_batch
        self.batches_per_epoch = max(1, quartets_per_epoch // quartets_per_batch)
        self.seed = seed

    def batch(self, epoch: int, step: int) -> Indices:
        """(quartets_per_batch, 4) positions: anchor, positive, and two negatives of different identities.

        A fifth column holds the generated crops that only the identity loss sees, where there are any.
        """
        random = np.random.default_rng((self.seed, 2, epoch, step))
        quartets = np.empty((self.quartets_per_batch, 4), np.int64)
        for row in quartets:
            own = random.choice(self.anchors)
            # Two of the other groups: numbers at or above the own one move up by one.
            others = random.choice(len(self.groups) - 1, 2, replace=False)
            others += others >= own
            row[:2] = random.choice(self.groups[own], 2, replace=False)
            row[2:] = [random.choice(self.groups[other]) for other in others]
        if self.identity_only:
            return np.column_stack([quartets, random.choice(self.identity_only, self.quartets_per_batch)])
        return quartets


class BatchSource(Protocol):
    """A sampler whose batches are functions of epoch and step."""

    batches_per_epoch: int
    seed: int

    def batch(self, epoch: int, step: int) -> Indices:
        """Positions of the crops of one batch, one row per pair or quartet."""
        ...


def require_divisible(source: BatchSource, processes: int) -> None:
    """Raise InputError unless the rows of a batch divide among so many processes."""
    rows = len(source.batch(0, 0))
    if rows % processes:
        raise InputError(
            f"a batch of {rows} does not divide among {processes} processes; choose a batch size that is a "
            f"multiple of {processes}."
        )


class ShardedBatches(Iterable[list[tuple[int, ...]]]):
    """One process's rows of every batch from ``first_step`` on to ``steps``, as a DataLoader's batch sampler.

    Raises InputError when the batch's rows do not divide among the processes.
    """

    def __init__(
        self, source: BatchSource, steps: int, *, first_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.source, self.steps, self.first_step = source, steps, first_step
        self.rank, self.world_size = rank, world_size
        require_divisible(source, world_size)

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Rows (draw, positions…): ``draw`` seeds what else is random about the row, such as its mirroring."""
        for step in range(self.first_step, self.steps):
            rows = self.source.batch(*divmod(step, self.source.batches_per_epoch))
            draws = np.random.default_rng((self.source.seed, 3, step)).integers(2**63, size=len(rows))
            share = len(rows) // self.world_size
            own = slice(self.rank * share, (self.rank + 1) * share)
            yield [(int(draw), *map(int, row)) for draw, row in zip(draws[own], rows[own], strict=True)]


def batch_quartets(labels: Sequence[int], drawable: Sequence[bool], random: np.random.Generator) -> Indices:
    """Quartets inside a batch: every drawable image is once the anchor (equation 12).

    ``labels`` holds the identity of each image, ``drawable`` whether quartets may use it. Returns (n, 4)
    positions. Anchors whose identity has no second drawable image are left out. Raises ValueError when fewer
    than three identities are drawable.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for position, (label, usable) in enumerate(zip(labels, drawable, strict=True)):
        if usable:
            members[int(label)].append(position)
    if len(members) < 3:
        raise ValueError(f"quartets need 3 identities in the batch, found {len(members)}")
    names = list(members)
    quartets = []
    for own in names:
        others = [name for name in names if name != own]
        for anchor in members[own]:
            rest = [position for position in members[own] if position != anchor]
            if not rest:
                continue
            third, fourth = random.choice(len(others), 2, replace=False)
            quartets.append(
                (
                    anchor,
                    random.choice(rest),
                    random.choice(members[others[third]]),
                    random.choice(members[others[fourth]]),
                )
            )
    return np.array(quartets, np.int64).reshape(-1, 4)
