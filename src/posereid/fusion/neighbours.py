"""Neighbour feature centralisation: features that are each other's nearest are added up."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posereid.errors import InputError

# Similarities that are looked at together: 32 MB of float64, and as much again as whole numbers.
_BLOCK_ELEMENTS = 2**22
# Similarities count in steps of 2⁻³⁸, far above the rounding of a product of float64: equal crops tie whatever the
# order in which a device adds.
_STEPS = 2.0**38


def centralise(
    features: npt.ArrayLike, neighbours: int = 2, mutual_within: int = 2, device: Any = None
) -> npt.NDArray[np.float32]:
    """Each feature plus those of its mutual nearest neighbours, (n, D) to (n, D) float32 of unit length.

    NFC of Pose2ID (Yuan et al., "From Poses to Identity", CVPR 2025, arXiv 2503.00938, and its published code, with
    ``neighbours`` k1 and ``mutual_within`` k2, both 2 there): to f_i are added all f_j where j is among the k1 crops
    nearest to i and i among the k2 nearest to j, a crop being no neighbour of its own. Nearest is by cosine; of crops
    that are equally near (similarities equal to 2⁻³⁸) the one that comes first is nearer. Departures: features are
    scaled to unit length before and after, and k2 may exceed k1, which the published code cuts to k1.

    This is transductive: a crop's answer depends on which other crops are searched with it, so it cannot be stored
    with the crop, and figures with it belong beside others of that kind (re-ranking), not beside plain search.

    Memory beyond the features grows with n · (k1 + k2), never with n². ``device``, as torch names it, is where
    similarities are worked out; without one, the CPU. Raises InputError for features that are no finite table, and for
    ``neighbours`` or ``mutual_within`` below 1.
    """
    for name, value in (("neighbours", neighbours), ("mutual_within", mutual_within)):
        if value < 1:
            raise InputError(f"{name} is {value}; neighbour feature centralisation needs at least 1.")
    table = np.asarray(features, np.float64)
    if table.ndim != 2:
        raise InputError(f"features have shape {table.shape}; a table (crops, dimensions) was expected.")
    if not np.isfinite(table).all():
        row = np.flatnonzero(~np.isfinite(table).all(axis=1))[0]
        raise InputError(f"Row {row} of the features is not finite; look for NaN in the network's weights.")
    table = _unit(table)
    if len(table) > 1:
        nearest = _nearest(table, max(neighbours, mutual_within), device)
        own = np.arange(len(table))[:, None]
        total = table.copy()
        for column in nearest[:, :neighbours].T:
            mutual = (nearest[column, :mutual_within] == own).any(axis=1)
            total[mutual] += table[column[mutual]]
        table = _unit(total)
    return table.astype(np.float32)


def _nearest(table: npt.NDArray[np.float64], count: int, device: Any) -> npt.NDArray[np.int64]:
    """(n, up to ``count``) positions of each row's nearest other rows, nearest first, ties in order of position."""
    crops = len(table)
    count = min(count, crops - 1)
    place = torch.device("cpu" if device is None else device)
    # Metal knows no float64.
    points = torch.from_numpy(table).to("cpu" if place.type == "mps" else place)
    positions = torch.arange(crops, device=points.device)
    nearest = np.empty((crops, count), np.int64)
    rows = max(1, _BLOCK_ELEMENTS // crops)
    for start in range(0, crops, rows):
        own = positions[start : start + rows]
        # One whole number for similarity and position: all differ, so their order is one and the same everywhere.
        keys = (points[own] @ points.T).mul_(_STEPS).round_().to(torch.int64).mul_(crops).sub_(positions)
        keys[torch.arange(len(own), device=points.device), own] = torch.iinfo(torch.int64).min
        nearest[start : start + rows] = keys.topk(count, dim=1).indices.cpu().numpy()
    return nearest


def _unit(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(lengths > 0, lengths, 1)
