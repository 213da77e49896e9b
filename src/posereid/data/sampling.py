"""Which crops meet in a batch: pose pairs and quartets, drawn from the seed alone.

Each batch is a function of (seed, epoch, step): nothing is carried over, so a resumed run draws what the
uninterrupted one would have drawn, and every process draws the whole batch and keeps its own part.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _People:
    """Positions of each identity's crops, and the numbers of the identities with two: those that can be anchors."""

    groups: list[Indices]
    anchors: Indices

    @classmethod
    def of(cls, groups: Iterable[Sequence[int]], what: str) -> "_People":
        """Those with any crop. Raises InputError where they cannot make up a quartet; ``what`` names the crops."""
        people = [np.array(group, np.int64) for group in groups if len(group)]
        anchors = np.array([number for number, group in enumerate(people) if len(group) > 1])
        if len(people) < 3 or not len(anchors):
            raise InputError(
                f"the {what} hold {len(people)} identities, {len(anchors)} of them with two crops; "
                "quartets need at least 3 identities, one of them with two crops."
            )
        return cls(people, anchors)

    def draw(self, random: np.random.Generator) -> tuple[int, Indices]:
        """An anchor's identity and two others, as numbers of groups."""
        own = random.choice(self.anchors)
        # Two of the other groups: numbers at or above the own one move up by one.
        others = random.choice(len(self.groups) - 1, 2, replace=False)
        others += others >= own
        return own, others


class QuartetSampler:
    """Random quartets (equation 12) from all training crops, real and generated alike (section 5.1).

    Anchor and positive are two crops of one identity, the third and fourth image belong to two further
    identities. With ``generated=False`` quartets hold real crops only, and each comes with random generated crops
    for the identity loss, where there are any.

    ``share`` is the share of generated images in a batch; without it, generated crops enter quartets as often as
    they come in the set, or one comes with each quartet. In quartets the share is exact to the nearest image, unless
    the identities drawn have too few crops of a kind: no crop is drawn twice for that, the other kind steps in. Beside
    quartets it is the nearest that a whole number of crops for each quartet, one at least, allows.
    In epochs before ``warmup`` quartets hold generated crops only, whatever the share.
    ``identities_without_generated`` counts the identities that have no generated crop.
    Raises InputError when fewer than three identities, or none with two crops, are left, and when a share is asked
    for and no crop is generated.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        quartets_per_batch: int,
        quartets_per_epoch: int,
        seed: int,
        *,
        generated: bool = True,
        share: float | None = None,
        warmup: int = 0,
    ) -> None:
        groups = list(crops_by_identity(crops).values())
        drawn = [[i for i in group if crops[i].generated] for group in groups]
        self.identities_without_generated = sum(not group for group in drawn)
        if share is not None and not any(drawn):
            raise InputError(
                f"a share of {share:g} generated crops is asked for, and none of the {len(crops)} training crops is "
                "generated; train with a generated set, or without reid.generated_share."
            )
        taken = groups if generated else [[i for i in group if not crops[i].generated] for group in groups]
        self.people = _People.of(taken, "training crops")
        self.warmup = warmup
        self.generated_people = _People.of(drawn, "generated training crops of the warm-up") if warmup else None
        self.share = share if generated else None
        self.is_generated = np.array([crop.generated for crop in crops])
        self.identity_only = np.array([] if generated else sorted(i for group in drawn for i in group), np.int64)
        self.extra = 1 if share is None else max(1, round(4 * share / (1 - share)))
        self.quartets_per_batch = quartets_per_batch
        self.batches_per_epoch = max(1, quartets_per_epoch // quartets_per_batch)
        self.seed = seed

    def batch(self, epoch: int, step: int) -> Indices:
        """(quartets_per_batch, 4) positions: anchor, positive, and two negatives of different identities.

        Further columns hold the generated crops that only the identity loss sees, where there are any.
        """
        random = np.random.default_rng((self.seed, 2, epoch, step))
        if self.generated_people and epoch < self.warmup:
            return self._as_they_come(self.generated_people, random)
        if self.share is not None:
            return self._by_share(self.share, random)
        quartets = self._as_they_come(self.people, random)
        if len(self.identity_only):
            extra = random.choice(self.identity_only, (self.quartets_per_batch, self.extra))
            return np.column_stack([quartets, extra])
        return quartets

    def _as_they_come(self, people: _People, random: np.random.Generator) -> Indices:
        quartets = np.empty((self.quartets_per_batch, 4), np.int64)
        for row in quartets:
            own, others = people.draw(random)
            row[:2] = random.choice(people.groups[own], 2, replace=False)
            row[2:] = [random.choice(people.groups[other]) for other in others]
        return quartets

    def _by_share(self, share: float, random: np.random.Generator) -> Indices:
        """Quartets of which so many images are generated; which ones, is decided once all identities are known."""
        quartets = np.empty((self.quartets_per_batch, 4), np.int64)
        places: list[tuple[Indices, Indices, Indices]] = []
        forced: list[int] = []
        possible: list[int] = []
        for row in range(self.quartets_per_batch):
            own, others = self.people.draw(random)
            for group, columns in ((own, [0, 1]), (others[0], [2]), (others[1], [3])):
                members = self.people.groups[group]
                generated = members[self.is_generated[members]]
                real = members[~self.is_generated[members]]
                slots = 4 * row + random.permutation(columns)
                fewest = max(0, len(slots) - len(real))
                forced += slots[:fewest].tolist()
                possible += slots[fewest : len(generated)].tolist()
                places.append((slots, generated, real))
        wanted = round(share * quartets.size) - len(forced)
        chosen = np.zeros(quartets.size, bool)
        chosen[forced] = True
        chosen[random.choice(np.array(possible, np.int64), min(max(wanted, 0), len(possible)), replace=False)] = True
        for slots, generated, real in places:
            for slots_of_kind, candidates in ((slots[chosen[slots]], generated), (slots[~chosen[slots]], real)):
                quartets.flat[slots_of_kind] = random.choice(candidates, len(slots_of_kind), replace=False)
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
