"""Which crop is drawn in whose pose: at random, all clusters of poses alike, or what an identity lacks."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posereid.config import AugmentationRecipe
from posereid.data.crops import Crop
from posereid.errors import InputError
from posereid.messages import shown
from posereid.pose.clusters import cluster_poses
from posereid.pose.joints import Joints
from posereid.pose.skeletons import DIRECTIONS, directions, normalised

CLUSTER_SEED = 0
"""Clusters belong to the set of crops: they are the same whatever the seed of a plan."""

LARGEST_SEED = 2**63

RARE = 0.1
"""Share of the crops of an average cell below which a cell is rare: mostly a direction that was told wrongly."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Drawing:
    """One crop to draw: positions of its source and of the crop whose pose it takes, and its file name."""

    name: str
    source: int
    target: int


def plan_drawings(crops: Sequence[Crop], recipe: AugmentationRecipe, seed: int) -> list[Drawing]:
    """Each crop that has a pose, in ``recipe.poses_per_crop`` poses of other crops, drawn without repetition.

    Target poses come from any identity: that is what gives a person poses that it lacks. ``recipe.target_poses`` says
    which are taken:

    - ``random``: any.
    - ``clusters``: random members of the ``recipe.pose_clusters`` clusters of all poses, each cluster equally often
      over the whole plan. A cluster too small for that without a repetition is used as often as it can be.
    - ``gaps``: cells are a cluster of poses seen from one direction, as far as the set has such crops. Each identity
      gets the cells that no crop of its own shows, those with most crops in the set first; when it lacks none, those
      that its crops and drawings show least often. An identity's cells go round its crops in turn. RARE cells are
      taken only when nothing else is left.

    Drawings are in the order of their sources. Deterministic in the seed. Raises InputError when fewer than two crops
    have a pose, or fewer others than poses asked for, or fewer than clusters.
    """
    if seed < 0:
        raise InputError(f"the seed is {seed}; it must not be negative.")
    if seed > LARGEST_SEED:
        raise InputError(f"the seed is {shown(seed)}; it must be at most 2^63.")
    posed = _posed(crops)
    if len(posed) <= recipe.poses_per_crop:
        raise InputError(
            f"augmentation.poses_per_crop is {recipe.poses_per_crop}, and only {len(posed)} of {len(crops)} training "
            "crops have both shoulders and both hips; give the keypoint files of this set, or ask for fewer poses."
        )
    if recipe.target_poses == "random":
        targets = _random_targets(posed, recipe.poses_per_crop, seed)
    elif recipe.target_poses == "clusters":
        targets = _cluster_targets(_clusters(crops, posed, recipe), recipe.poses_per_crop, seed)
    else:
        identities = [crops[position].identity for position in posed]
        targets = _gap_targets(_cells(crops, posed, recipe), identities, recipe.poses_per_crop, seed)
    # File names repeat in sets with several folders; a crop's number tells such crops apart.
    stems = Counter(crop.path.stem for crop in crops)
    names = {position: crops[position].path.stem for position in posed}
    names |= {position: f"{stem}_{position}" for position, stem in names.items() if stems[stem] > 1}
    if len(set(names.values())) < len(names):
        # One crop's number makes another's name.
        names = {position: f"{crops[position].path.stem}_{position}" for position in posed}
    drawings = []
    for position, others in zip(posed, targets, strict=True):
        stem = names[position]
        drawings += [Drawing(f"{stem}_p{number}.jpg", position, posed[other]) for number, other in enumerate(others, 1)]
    return drawings


def _posed(crops: Sequence[Crop]) -> list[int]:
    return [position for position, crop in enumerate(crops) if crop.can_pose]


def _joints(crops: Sequence[Crop], posed: Sequence[int]) -> list[Joints]:
    return [joints for position in posed if (joints := crops[position].joints) is not None]


def _clusters(crops: Sequence[Crop], posed: Sequence[int], recipe: AugmentationRecipe) -> Numbers:
    """For each posed crop the number of its cluster."""
    if len(posed) < recipe.pose_clusters:
        raise InputError(
            f"augmentation.pose_clusters is {recipe.pose_clusters}, and only {len(posed)} of {len(crops)} training "
            "crops have both shoulders and both hips; give the keypoint files of this set, or ask for fewer clusters."
        )
    return cluster_poses(_joints(crops, posed), recipe.pose_clusters, CLUSTER_SEED).cluster_of


def _cells(crops: Sequence[Crop], posed: Sequence[int], recipe: AugmentationRecipe) -> Numbers:
    """For each posed crop the number of its cell, a cluster seen from a direction; every cell has a crop."""
    seen_from = directions(normalised(_joints(crops, posed)))
    cells: Numbers = np.unique(_clusters(crops, posed, recipe) * len(DIRECTIONS) + seen_from, return_inverse=True)[1]
    return cells.astype(np.int64)


# In the following, crops are counted among those that have a pose.


def _random_targets(posed: Sequence[int], poses: int, seed: int) -> list[list[int]]:
    targets = []
    for source, position in enumerate(posed):
        random = np.random.default_rng((seed, 5, position))
        others = random.choice(len(posed) - 1, poses, replace=False)
        targets.append([int(other + (other >= source)) for other in others])
    return targets


class _Members:
    """The crops of each group, and how many of them are still free for each source."""

    def __init__(self, group_of: Numbers) -> None:
        self.group_of = group_of
        self.sizes = np.bincount(group_of)
        self.groups = np.split(np.argsort(group_of, kind="stable"), np.cumsum(self.sizes)[:-1])
        self.targets: list[list[int]] = [[] for _ in group_of]

    def is_free(self, source: int) -> npt.NDArray[np.bool_]:
        """(groups,) whether a group has a crop besides the source and its targets so far."""
        left = self.sizes.copy()
        np.subtract.at(left, self.group_of[[source, *self.targets[source]]], 1)
        return left > 0

    def take(self, source: int, group: int, random: np.random.Generator) -> None:
        """Give the source a random crop of a group that is free for it."""
        members, taken = self.groups[group], (source, *self.targets[source])
        while (target := int(members[random.integers(len(members))])) in taken:
            pass
        self.targets[source].append(target)


def _cluster_targets(cluster_of: Numbers, poses: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng((seed, 11))
    members = _Members(cluster_of)
    used = np.zeros(len(members.sizes), np.int64)
    # Members of small clusters can use these least, so they choose while the others can still make up for it.
    order = np.lexsort((random.random(len(cluster_of)), members.sizes[cluster_of]))
    for source in order.tolist():
        for _ in range(poses):
            uses = np.where(members.is_free(source), used, np.iinfo(np.int64).max)
            cluster = int(random.choice(np.flatnonzero(uses == uses.min())))
            members.take(source, cluster, random)
            used[cluster] += 1
    return members.targets


def _gap_targets(cell_of: Numbers, identities: Sequence[int], poses: int, seed: int) -> list[list[int]]:
    random = np.random.default_rng((seed, 12))
    members = _Members(cell_of)
    sources_of: dict[int, list[int]] = defaultdict(list)
    for source, identity in enumerate(identities):
        sources_of[identity].append(source)
    rare = _is_rare(members.sizes)
    for _, sources in sorted(sources_of.items()):
        shown = np.bincount(cell_of[sources], minlength=len(members.sizes))
        shown[rare] += len(cell_of) * (poses + 1)
        common_first = np.lexsort((random.random(len(members.sizes)), -members.sizes))
        for _ in range(poses):
            for source in random.permutation(sources).tolist():
                times = np.where(members.is_free(source), shown, np.iinfo(np.int64).max)
                cell = int(common_first[times[common_first].argmin()])
                members.take(source, cell, random)
                shown[cell] += 1
    return members.targets


def _is_rare(sizes: Numbers) -> npt.NDArray[np.bool_]:
    """(cells,) whether a cell has too few crops to be worth aiming at."""
    return sizes < RARE * sizes.mean()


def plan_facts(crops: Sequence[Crop], drawings: Sequence[Drawing], recipe: AugmentationRecipe) -> dict[str, Any]:
    """What a plan of :func:`plan_drawings` aims at, ready for JSON; ``crops`` and ``recipe`` are the plan's own.

    ``target_poses`` is the policy and ``directions`` how many targets show each direction. Policies other than
    ``random`` add ``clusters``, for each cluster, largest first, its ``crops`` and how many drawings take its pose
    (``targets``). ``gaps`` adds ``gaps``: how many ``cells`` the set has besides ``rare_cells``, how many of these
    identities ``lacked`` in sum, and how many of those were ``filled``.
    """
    posed = _posed(crops)
    place = {position: number for number, position in enumerate(posed)}
    targets = np.array([place[drawing.target] for drawing in drawings], np.int64)
    seen_from = directions(normalised(_joints(crops, posed)))[targets]
    counts = np.bincount(seen_from, minlength=len(DIRECTIONS)).tolist()
    facts: dict[str, Any] = {
        "target_poses": recipe.target_poses,
        "directions": dict(zip(DIRECTIONS, counts, strict=True)),
    }
    if recipe.target_poses == "random":
        return facts
    clusters = _clusters(crops, posed, recipe)
    uses = np.bincount(clusters[targets], minlength=recipe.pose_clusters).tolist()
    facts["clusters"] = [
        {"crops": size, "targets": count} for size, count in zip(np.bincount(clusters).tolist(), uses, strict=True)
    ]
    if recipe.target_poses == "gaps":
        facts["gaps"] = _gap_facts(crops, posed, drawings, _cells(crops, posed, recipe))
    return facts


def _gap_facts(
    crops: Sequence[Crop], posed: Sequence[int], drawings: Sequence[Drawing], cells: Numbers
) -> dict[str, int]:
    rare = _is_rare(np.bincount(cells))
    aimed_at = [(position, cell) for position, cell in zip(posed, cells.tolist(), strict=True) if not rare[cell]]
    shown = {(crops[position].identity, cell) for position, cell in aimed_at}
    cell_of = dict(aimed_at)
    drawn = {
        (crops[drawing.source].identity, cell_of[drawing.target]) for drawing in drawings if drawing.target in cell_of
    }
    people = len({crops[position].identity for position in posed})
    common = int((~rare).sum())
    return {
        "cells": common,
        "rare_cells": int(rare.sum()),
        "lacked": people * common - len(shown),
        "filled": len(drawn - shown),
    }
