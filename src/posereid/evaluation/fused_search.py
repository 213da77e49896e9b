"""Search with fused embeddings: what averaging over flips, generated poses and neighbours gains, and costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from posereid.config import EvaluationRecipe, FusionMode, FusionRecipe
from posereid.data.crops import Crop, CropTable
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.bootstrap import paired_difference
from posereid.evaluation.embeddings import Embeddings, pool_queries
from posereid.evaluation.headlines import headline_values, percent
from posereid.evaluation.search import Search
from posereid.fusion import (
    EmbeddingParts,
    canonical_targets,
    embed_parts,
    fuse_sides,
    is_transductive,
    mode_cost_ms,
    uses_poses,
)
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.joints import Joints
from posereid.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_discriminator,
    load_embedder,
    load_generator,
)

CONTROLS: tuple[FusionMode, ...] = ("off", "flip")
"""Rows that stand beside every other: where averaging with a flip gains as much, generated poses gain nothing."""


def with_controls(modes: Sequence[FusionMode]) -> tuple[FusionMode, ...]:
    """The modes in their standard order, each once, with the controls off and flip.

    >>> with_controls(["nfc", "fusion"])
    ('off', 'flip', 'fusion', 'nfc')
    """
    return tuple(mode for mode in get_args(FusionMode) if mode in {*modes, *CONTROLS})


@dataclass(frozen=True, eq=False)
class FusionNetworks:
    """The embedder and, for modes that draw, the generator and D_I (where realism counts), each with its digest.

    ``poses`` are the names and joints of the target poses, ``generator_run`` the name of the run that draws.
    """

    embedder: Embedder
    embedder_digest: str
    generator_run: str | None = None
    generator: PoseTransferGenerator | None = None
    generator_digest: str | None = None
    discriminator: PatchDiscriminator | None = None
    discriminator_digest: str | None = None
    poses: tuple[tuple[str, Joints], ...] = ()

    def embed(
        self,
        crops: Sequence[Crop],
        recipe: FusionRecipe,
        *,
        cache: Path | None = None,
        keep_drawings: bool = False,
        progress: bool = False,
    ) -> EmbeddingParts:
        """Every embedding of each crop that a mode may average; drawn in all poses if there is a generator.

        ``cache`` and ``keep_drawings`` as :func:`~posereid.fusion.embed_parts`. Raises :class:`InputError`.
        """
        return embed_parts(
            self.embedder,
            crops,
            embedder_digest=self.embedder_digest,
            generator=self.generator,
            generator_digest=self.generator_digest,
            discriminator=self.discriminator,
            discriminator_digest=self.discriminator_digest,
            poses=[joints for _, joints in self.poses],
            batch_size=recipe.batch_size,
            cache=cache,
            keep_drawings=keep_drawings,
            progress=progress,
        )


def load_networks(
    run: Path,
    checkpoint: Checkpoint,
    modes: Sequence[FusionMode],
    generator_run: Path | None,
    recipe: FusionRecipe,
    device: torch.device,
) -> FusionNetworks | None:
    """What the modes need, None without modes: ``run``'s embedder, and for modes that draw the generator, D_I with the
    recipe's ``by_realism``, of ``generator_run`` (``run`` itself without one). With the recipe's ``weight`` 0 none is
    loaded, for nothing is drawn.

    Raises :class:`InputError` for what is missing, or given and not needed, and for the recipe's poses.
    """
    drawing = [mode for mode in modes if uses_poses(mode)]
    if generator_run is not None and not drawing:
        raise InputError(
            f"--generator is {generator_run}, but no fusion mode that draws was asked for; add --fusion fusion+flip, "
            "or leave it out."
        )
    if not modes:
        return None
    if not holds(checkpoint, "embedder"):
        raise InputError(f"{run} has no embedder, whose embeddings --fusion averages; give a run of train-reid.")
    drawer = latest_checkpoint(generator_run) if generator_run else checkpoint
    if drawing and not holds(drawer, "generator"):
        raise InputError(
            f"{generator_run or run} has no generator, which --fusion {' '.join(drawing)} draws with; give --generator "
            "RUN, a run of posereid train."
        )
    embedder, digest = load_embedder(checkpoint.folder, device), checkpoint.digest("embedder")
    if drawing and not recipe.weight:
        canonical_targets(recipe, (128, 64))  # what is wrong with them is said all the same
    if not drawing or not recipe.weight:
        return FusionNetworks(embedder, digest)
    generator = load_generator(drawer.folder, device)
    return FusionNetworks(
        embedder,
        digest,
        (generator_run or run).name,
        generator,
        drawer.digest("generator"),
        load_discriminator(drawer.folder, "appearance", device) if recipe.by_realism else None,
        drawer.digest("appearance_discriminator") if recipe.by_realism else None,
        tuple(canonical_targets(recipe, generator.crop_size)),
    )


def holds(checkpoint: Checkpoint, part: str) -> bool:
    """Whether a checkpoint has the weights of a network."""
    return (checkpoint.folder / f"{part}.safetensors").is_file()


@dataclass(frozen=True, eq=False)
class SideParts:
    """All embeddings of a test's crops: ``queries`` are those of ``crops.query`` and, behind them, of ``more``, which
    multi-query search pools with them; ``gallery`` those of ``crops.gallery``.
    """

    crops: CropTable
    more: CropTable
    queries: EmbeddingParts
    gallery: EmbeddingParts

    @classmethod
    def of(
        cls,
        networks: FusionNetworks,
        crops: CropTable,
        more: CropTable,
        recipe: FusionRecipe,
        *,
        cache: Path | None = None,
        keep_drawings: bool = False,
        progress: bool = False,
    ) -> "SideParts":
        """Embed a test once for all modes. Raises :class:`InputError`, also where query or gallery is empty."""
        for name, split in (("query", crops.query), ("gallery", crops.gallery)):
            if not len(split):
                raise InputError(f"{crops.root} has no {name} crops; evaluation needs both query and gallery.")
        queries = [*crops.query, *more]
        parts = networks.embed(
            [*queries, *crops.gallery], recipe, cache=cache, keep_drawings=keep_drawings, progress=progress
        )
        border = len(queries)
        return cls(crops, more, _rows(parts, slice(border)), _rows(parts, slice(border, None)))

    def search(
        self, mode: FusionMode, settings: EvaluationRecipe, *, poses: int | None = None, device: Any = None
    ) -> Search:
        """The search in one mode, with the first ``poses`` poses (all without it). Raises :class:`InputError`."""
        return Search.of(*self.sides(mode, settings, poses=poses, device=device), settings, device=device)

    def sides(
        self, mode: FusionMode, settings: EvaluationRecipe, *, poses: int | None = None, device: Any = None
    ) -> tuple[Embeddings, Embeddings]:
        """Query and gallery in one mode, the queries pooled for multi-query search."""
        queries, gallery = fuse_sides(self.queries, self.gallery, mode, settings.fusion, poses=poses, device=device)
        count = len(self.crops.query)
        query = Embeddings.of(queries[:count], self.crops.query)
        if settings.multi_query != "none":
            query = pool_queries(query, Embeddings.of(queries[count:], self.more), settings.multi_query)
        return query, Embeddings.of(gallery, self.crops.gallery)


def _rows(parts: EmbeddingParts, rows: slice) -> EmbeddingParts:
    """Some crops' parts; the costs stay those of all."""
    arrays = ("own", "flipped", "posed", "posed_flipped", "realism", "has_pose")
    return replace(parts, **{name: getattr(parts, name)[rows] for name in arrays})


def fusion_figures(
    parts: SideParts, searches: Mapping[FusionMode, Search], settings: EvaluationRecipe
) -> dict[FusionMode, dict[str, Any]]:
    """Each mode's headlines, cost and differences to the controls, ready for JSON.

    Headlines and intervals are those of :meth:`Search.summary`, in percent; ``cost_ms_per_crop`` is what one crop
    took, query or gallery, as measured when it was embedded; a difference is the mode's figure minus the control's,
    paired over identities. ``searches`` hold both controls.
    """
    rows: dict[FusionMode, dict[str, Any]] = {}
    for mode, search in searches.items():
        cost = mode_cost_ms(parts.queries.costs, mode, settings.fusion)
        rows[mode] = search.summary(settings) | {
            "cost_ms_per_crop": None if math.isnan(cost) else round(cost, 3),
            "multi_query": settings.multi_query,
            "draws": (draws := uses_poses(mode) and settings.fusion.weight > 0),
            "crops": len(parts.crops.query) + len(parts.crops.gallery) + len(parts.more),
            "crops_without_pose": parts.queries.without_pose + parts.gallery.without_pose if draws else 0,
            "transductive": is_transductive(mode),
            "differences": {
                control: differences(searches[control], search, settings) for control in CONTROLS if control != mode
            },
        }
    return rows


def differences(before: Search, after: Search, settings: EvaluationRecipe) -> dict[str, dict[str, Any]]:
    """Each headline of ``after`` minus ``before``, in percentage points, with its interval over identities."""
    values = [
        headline_values(
            search.result.first_hit_ranks, search.result.average_precisions, search.result.inverse_negative_penalties
        )
        for search in (before, after)
    ]
    rows = {}
    for name in values[0]:
        found = paired_difference(
            values[0][name],
            values[1][name],
            before.query.identities,
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.resampling_seed,
        )
        shares = {key: percent(getattr(found, key)) for key in ("difference", "low", "high")}
        p_value = None if math.isnan(found.p_value) else round(found.p_value, 5)
        rows[name] = shares | {"p_value": p_value, "real": found.real}
    return rows
