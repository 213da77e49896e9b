"""A crop's own embedding and those of its generated poses, made into one."""

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from posereid.config import FusionMode, FusionRecipe
from posereid.errors import InputError
from posereid.fusion.costs import PartCosts
from posereid.fusion.neighbours import centralise
from posereid.fusion.parts import EmbeddingParts

Features = npt.NDArray[np.float32]

_FLIPPED: tuple[FusionMode, ...] = ("flip", "fusion+flip", "all")
_POSED: tuple[FusionMode, ...] = ("fusion", "fusion+flip", "all")
_CENTRALISED: tuple[FusionMode, ...] = ("nfc", "all")


def uses_flips(mode: FusionMode) -> bool:
    """Whether a mode averages mirror images in."""
    return mode in _FLIPPED


def uses_poses(mode: FusionMode) -> bool:
    """Whether a mode needs a generator: it averages drawings in other poses in."""
    return mode in _POSED


def is_transductive(mode: FusionMode) -> bool:
    """Whether a crop's embedding then depends on the other crops of the search."""
    return mode in _CENTRALISED


def fuse(parts: EmbeddingParts, mode: FusionMode, recipe: FusionRecipe, *, poses: int | None = None) -> Features:
    """One embedding for each crop, (n, D) float32 of unit length.

    With a the crop's own embedding and p_k those of its drawings in the first ``poses`` poses (all without it):
    normalise((1 - w) · a + w · g), g = Σ r_k p_k / Σ r_k, w the recipe's ``weight`` and r_k 1, or D_I's word in [0, 1]
    with ``by_realism``. In modes with flips a and p_k are first averaged with their mirror images' embeddings and
    normalised. A crop without a pose, or of whose drawings D_I says 0, keeps a. Centralisation by generated poses is
    from Pose2ID (Yuan et al., CVPR 2025, arXiv 2503.00938), where the unit of g is a sum; ``"flip"`` is its control.

    ``"nfc"`` and ``"all"`` are what neighbours are looked for among, ``"off"`` and ``"fusion+flip"``: the rest depends
    on the other crops and is :func:`fuse_sides`'s. Raises InputError for a mode whose parts were not embedded.
    """
    if mode not in get_args(FusionMode):
        raise InputError(f"the fusion mode is {mode!r}; choose one of {', '.join(get_args(FusionMode))}.")
    flips = uses_flips(mode)
    if flips and not parts.flips:
        raise InputError(f"Fusion mode {mode} averages mirror images, and these crops were embedded without theirs.")
    own = _unit(parts.own + parts.flipped) if flips else parts.own
    if not uses_poses(mode) or not recipe.weight:
        return own
    _check_poses(parts, mode, recipe, poses)
    posed, posed_flipped, realism = (values[:, :poses] for values in (parts.posed, parts.posed_flipped, parts.realism))
    if flips:
        posed = _unit(posed + posed_flipped)
    weights = realism if recipe.by_realism else np.ones_like(realism)
    totals = weights.sum(axis=1, keepdims=True)
    usable = parts.has_pose & (totals[:, 0] > 0)
    if not usable.any():
        return own
    fused = own.copy()
    mean = np.einsum("np,npd->nd", weights[usable], posed[usable]) / totals[usable]
    fused[usable] = _unit((1 - recipe.weight) * own[usable] + recipe.weight * mean)
    return fused


def _check_poses(parts: EmbeddingParts, mode: FusionMode, recipe: FusionRecipe, poses: int | None) -> None:
    drawn = parts.posed.shape[1]
    if not 1 <= (drawn if poses is None else poses) <= drawn:
        wanted = "at least one" if poses is None else poses
        raise InputError(
            f"Fusion mode {mode} needs {wanted} of each crop's generated poses, and {drawn} were embedded."
        )
    if recipe.by_realism and not parts.judged:
        raise InputError("fusion.by_realism weighs poses by D_I's word, and no D_I looked at these crops' drawings.")


def fuse_sides(
    query: EmbeddingParts,
    gallery: EmbeddingParts,
    mode: FusionMode,
    recipe: FusionRecipe,
    *,
    poses: int | None = None,
    device: Any = None,
) -> tuple[Features, Features]:
    """The fused embeddings of both sides of a search, (Q, D) and (G, D) float32 of unit length.

    :func:`fuse` of each side; modes ``"nfc"`` and ``"all"`` then centralise over neighbours
    (:func:`posereid.fusion.neighbours.centralise`), within each side as Pose2ID's code does, or over both together
    with the recipe's ``pool_sides``. ``device`` is where neighbours are looked for. Raises InputError as :func:`fuse`.
    """
    sides = [fuse(side, mode, recipe, poses=poses) for side in (query, gallery)]
    if is_transductive(mode):
        settings = (recipe.neighbours, recipe.mutual_within, device)
        if recipe.pool_sides:
            sides = np.split(centralise(np.concatenate(sides), *settings), [len(sides[0])])
        else:
            sides = [centralise(side, *settings) for side in sides]
    return sides[0], sides[1]


def mode_cost_ms(costs: PartCosts, mode: FusionMode, recipe: FusionRecipe | None = None) -> float:
    """Milliseconds that one crop with a pose costs in a mode, drawn in the recipe's ``poses`` poses.

    Without a recipe in all poses that were embedded. NaN where a part that the mode needs was never timed. With the
    recipe's ``by_realism`` D_I's time counts too. The search for neighbours is not in it: it grows with the crops
    searched, not with each.
    """
    of_crop, of_drawing = ["own"], list[str]()
    if uses_flips(mode):
        of_crop.append("flipped")
    if uses_poses(mode) and (recipe is None or recipe.weight):
        of_crop.append("encoding")
        of_drawing += ["drawing", "posed"]
        if uses_flips(mode):
            of_drawing.append("posed_flipped")
        if recipe is not None and recipe.by_realism:
            of_drawing.append("judging")
    poses = costs.poses if recipe is None else recipe.poses
    crop, drawing = (sum(getattr(costs, part).milliseconds for part in parts) for parts in (of_crop, of_drawing))
    return crop + poses * drawing


def _unit(features: Features) -> Features:
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)
