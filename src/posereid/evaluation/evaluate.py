"""A run, or features from elsewhere, on a test set: how well people are found, how good generated pictures are."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import posereid
from posereid.config import EvaluationRecipe, FusionMode
from posereid.data.check import require_joint_scale
from posereid.data.crops import Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.embeddings import Embeddings, pool_queries, read_embeddings
from posereid.evaluation.fused_search import (
    FusionNetworks,
    SideParts,
    fusion_figures,
    holds,
    load_networks,
    with_controls,
)
from posereid.evaluation.generator_quality import MEASURES, ImageQuality, measure_generator, pick_test_pairs
from posereid.evaluation.learned_metrics import find_learned_metrics
from posereid.evaluation.picture_measures import KeypointEstimator
from posereid.evaluation.plain_figures import quality_intervals, verification_figures
from posereid.evaluation.reranking import CANDIDATES, RerankedHeads
from posereid.evaluation.search import Search, require_matches
from posereid.evaluation.verification import VerificationResult
from posereid.features import embed_crops, read_image_folder
from posereid.fusion import can_be_drawn, uses_poses
from posereid.fusion.cache import open_folder
from posereid.generator.generator import PoseTransferGenerator
from posereid.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_embedder,
    load_generator,
    load_pose_estimator,
)
from posereid.training.devices import pick_device

SCHEMA = 2

FEATURES_FOLDER = "features"
"""Where a run's folder keeps embeddings for the next evaluation."""

MULTI_QUERY_FOLDER = "gt_bbox"
"""Where Market-1501 keeps more crops of the queries' people, for multi-query search."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured: ``figures`` as plain data, and what they were made of.

    ``search`` and ``reranked`` are None where there was nothing to search with, or re-ranking was not asked for;
    ``verification`` where there is no search; ``quality`` where there was no generator or no test pair. ``crops`` are
    None for features from elsewhere. ``fused`` holds the searches in the fusion modes that were asked for.
    """

    figures: dict[str, Any]
    crops: CropTable | None = None
    search: Search | None = None
    reranked: Search | None = None
    verification: VerificationResult | None = None
    quality: ImageQuality | None = None
    fused: Mapping[FusionMode, Search] = field(default_factory=dict)

    def require(self, *parts: str) -> "Evaluation":
        """The evaluation itself. Raises InputError with the reason for the first of ``parts`` that was not measured."""
        for part in parts:
            if reason := self.figures["not_measured"].get(part):
                raise InputError(reason)
        return self


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    libraries = ("numpy", "scipy", "scikit-image", "torchmetrics")
    return {
        "posereid": posereid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in libraries},
    }


def evaluate_run(
    run: Path,
    settings: EvaluationRecipe | None = None,
    *,
    root: Path | None = None,
    crops: CropTable | None = None,
    judge: Path | None = None,
    pose_estimator: Path | None = None,
    fusion: Sequence[FusionMode] = (),
    generator_run: Path | None = None,
    cache: Path | None = None,
    keep_drawings: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Evaluate what a run trained: its embedder by search, its generator by image quality.

    ``settings`` replace the run's own, ``root`` is another data set than its own, ``crops`` one that has been read
    already. ``judge`` is a run whose embedder says whether generated pictures keep their identity (the run's own
    embedder otherwise, which learned together with them), ``pose_estimator`` one that finds their joints; without it
    PCKh is not measured. ``fusion`` are modes in which to search too, with off and flip beside them as controls;
    ``generator_run`` is the run that draws for them (the run itself otherwise), ``cache`` the folder in which their
    embeddings are kept (otherwise ``features`` in the run's folder), the drawn pictures too with ``keep_drawings``.
    A part that cannot be had is left out alone, and ``figures["not_measured"]`` says why. Raises InputError for
    arguments that are wrong, before anything is computed, and where no part at all can be had.
    """
    checkpoint = latest_checkpoint(run)
    recipe = checkpoint.recipe
    settings = settings or recipe.evaluation
    crops = crops or _read_crops(checkpoint, run, root)
    device = pick_device(recipe.runtime)
    # All that is asked for is loaded first: a wrong path must not end a long evaluation.
    judging = latest_checkpoint(judge) if judge else checkpoint
    embedder = load_embedder(checkpoint.folder, device) if holds(checkpoint, "embedder") else None
    generator = load_generator(checkpoint.folder, device) if holds(checkpoint, "generator") else None
    if embedder is None and generator is None:
        raise InputError(
            f"{run} has neither an embedder nor a generator to evaluate; give a run of train or train-reid."
        )
    if generator is None and (judge or pose_estimator):
        raise InputError(
            f"{run} has no generator, whose pictures --judge and --pose-estimator look at; leave them out."
        )
    if generator is not None and settings.pairs_file is not None:
        pick_test_pairs([*crops.query, *crops.gallery], settings)
    networks = load_networks(run, checkpoint, fusion, generator_run, settings.fusion, device)
    if generator is not None or networks is not None:
        require_joint_scale(crops.with_crops([*crops.query, *crops.gallery]))
    judging_embedder = load_embedder(judging.folder, device) if judge or embedder is not None else None
    estimator = load_pose_estimator(pose_estimator, device) if pose_estimator else None
    evaluation = Evaluation(_figures_of(run, checkpoint, crops, settings, device), crops)
    figures = evaluation.figures
    drawing = [mode for mode in fusion if uses_poses(mode)]
    tested = (*crops.query, *crops.gallery)
    if networks is not None and networks.generator is not None and not any(map(can_be_drawn, tested)):
        figures["not_measured"]["fusion"] = (
            f"None of the {len(tested)} query and gallery crops has both shoulders and both hips among its keypoints, "
            f"so there is nobody to draw for {' and '.join(drawing)}; give the set's keypoint files by --keypoints."
        )
        fusion = [mode for mode in fusion if mode not in drawing]
        networks = load_networks(run, checkpoint, fusion, None, settings.fusion, device)
    kept = cache or run / FEATURES_FOLDER
    if networks is not None:
        open_folder(kept)
    if embedder is not None:
        with _part(figures, "reid"):
            _require_searchable(crops, settings)
            parts = None
            if networks is not None:
                with _part(figures, "fusion"):
                    parts = SideParts.of(
                        networks,
                        crops,
                        _more_queries(crops, settings),
                        settings.fusion,
                        cache=kept,
                        keep_drawings=keep_drawings,
                        progress=progress,
                    )
            sides = parts.sides("off", settings) if parts else embed_test(embedder, crops, settings, progress=progress)
            evaluation = _searched(evaluation, *sides, settings, device=device, progress=progress)
            if networks is not None and parts is not None:
                with _part(figures, "fusion"):
                    evaluation = _fused(evaluation, parts, networks, fusion, settings, device)
    if generator is not None:
        figures["generator"] = None
        with _part(figures, "generator"):
            quality = _measured(generator, crops, settings, judging_embedder, estimator, progress)
            judges = {
                "identity_judged_by": judge.name
                if judge
                else "the run's own embedder, trained together with the generator",
                "joints_found_by": pose_estimator.name if pose_estimator else None,
            }
            figures["generator"] = _quality_figures(quality, settings) | judges
            figures["not_measured"] |= quality.not_measured
            evaluation = replace(evaluation, quality=quality)
    if evaluation.search is None and evaluation.quality is None:
        reasons = figures["not_measured"]
        raise InputError(reasons.get("reid") or reasons["generator"])
    return evaluation


@contextmanager
def _part(figures: dict[str, Any], name: str) -> Iterator[None]:
    """A part of an evaluation: what keeps it from being had ends it alone, and is written down as the reason."""
    try:
        yield
    except InputError as error:
        figures["not_measured"][name] = str(error)
    except MemoryError as error:
        figures["not_measured"][name] = f"The memory does not suffice ({error or 'no more is to be had'})."


def evaluate_features(
    paths: Sequence[Path], settings: EvaluationRecipe | None = None, *, device: Any = None, progress: bool = False
) -> Evaluation:
    """Evaluate a search with features that any framework wrote; see :func:`read_embeddings` for the files."""
    settings = settings or EvaluationRecipe()
    query, gallery = read_embeddings(paths)
    figures = {
        "schema": SCHEMA,
        "run": " ".join(path.name for path in paths),
        "stage": "features",
        "data": {"query": len(query), "gallery": len(gallery)},
        **_circumstances(settings, str(device or "cpu")),
        "not_measured": {},
    }
    if settings.multi_query != "none":
        query = pool_queries(query, pooling=settings.multi_query)
    return _searched(Evaluation(figures), query, gallery, settings, device=device, progress=progress)


def embed_test(
    embedder: Embedder, crops: CropTable, settings: EvaluationRecipe, *, progress: bool = False
) -> tuple[Embeddings, Embeddings]:
    """Embeddings of query and gallery; for multi-query search the queries pooled by person and camera.

    Raises InputError where either split is empty.
    """
    for name, split in (("query", crops.query), ("gallery", crops.gallery)):
        if not len(split):
            raise InputError(f"{crops.root} has no {name} crops; evaluation needs both query and gallery.")
    more = _more_queries(crops, settings)
    wanted: list[Crop] = [*crops.query, *crops.gallery, *more]
    features = embed_crops(embedder, wanted, batch_size=settings.batch_size, progress=progress)
    ends = np.cumsum([len(crops.query), len(crops.gallery)])
    query, gallery, others = np.split(features, ends)
    queries = Embeddings.of(query, crops.query)
    if settings.multi_query != "none":
        queries = pool_queries(queries, Embeddings.of(others, more), settings.multi_query)
    return queries, Embeddings.of(gallery, crops.gallery)


def _more_queries(crops: CropTable, settings: EvaluationRecipe) -> CropTable:
    """Crops beside the set that show a query's person in the query's camera, for multi-query search."""
    folder = crops.root / MULTI_QUERY_FOLDER
    if settings.multi_query == "none" or not folder.is_dir():
        return crops.with_crops(())
    asked = {(crop.identity, crop.camera) for crop in crops.query}
    queries = set(crops.query.names)
    return crops.with_crops(
        crop
        for crop in read_image_folder(folder).crops
        if (crop.identity, crop.camera) in asked and crop.name not in queries
    )


def _require_searchable(crops: CropTable, settings: EvaluationRecipe) -> None:
    """Raise :class:`InputError`, before anything is embedded, where the labels leave nothing to search for."""
    sides = []
    for name, split in (("query", crops.query), ("gallery", crops.gallery)):
        if not len(split):
            raise InputError(f"{crops.root} has no {name} crops; evaluation needs both query and gallery.")
        # Whether crops of one name are one crop their features will say.
        sides.append(Embeddings(np.empty((len(split), 0), np.float32), split.identities, split.cameras))
    require_matches(sides[0], sides[1], settings)


def _searched(
    evaluation: Evaluation,
    query: Embeddings,
    gallery: Embeddings,
    settings: EvaluationRecipe,
    *,
    device: Any,
    progress: bool,
) -> Evaluation:
    """The evaluation with its search, re-ranked if asked for, and verification."""
    search = Search.of(query, gallery, settings, device=device)
    figures = evaluation.figures
    figures["data"]["test_fingerprint"] = search.fingerprint
    figures["reid"] = search.summary(settings) | {"multi_query": settings.multi_query}
    reranked = verification = None
    if settings.rerank:
        with _part(figures, "reid_reranked"):
            reranked = search.reranked(settings, device=device, progress=progress)
            figures["reid_reranked"] = reranked.summary(settings) | {
                "multi_query": settings.multi_query,
                "reranking": settings.reranking.model_dump(),
                "reranked_candidates": CANDIDATES if isinstance(reranked.distances, RerankedHeads) else None,
            }
    # One person alone can be ranked, but nobody is there to be mistaken for.
    with _part(figures, "verification"):
        verification = search.verify(settings, progress=progress)
        figures["verification"] = verification_figures(verification)
    return replace(evaluation, search=search, reranked=reranked, verification=verification)


def _fused(
    evaluation: Evaluation,
    parts: SideParts,
    networks: FusionNetworks,
    modes: Sequence[FusionMode],
    settings: EvaluationRecipe,
    device: torch.device,
) -> Evaluation:
    """The evaluation with the searches in the modes and their controls; its plain one is the mode off."""
    assert evaluation.search is not None
    fused = {
        mode: evaluation.search if mode == "off" else parts.search(mode, settings, device=device)
        for mode in with_controls(modes)
    }
    evaluation.figures["fusion"] = {
        "settings": settings.fusion.model_dump(mode="json"),
        "generator": networks.generator_run,
        "poses": [name for name, _ in networks.poses],
        "rows": fusion_figures(parts, fused, settings),
    }
    return replace(evaluation, fused=fused)


def _measured(
    generator: PoseTransferGenerator,
    crops: CropTable,
    settings: EvaluationRecipe,
    embedder: Embedder | None,
    pose_estimator: KeypointEstimator | None,
    progress: bool,
) -> ImageQuality:
    return measure_generator(
        generator,
        crops,
        settings,
        embedder=embedder,
        pose_estimator=pose_estimator,
        learned=find_learned_metrics(next(generator.parameters()).device),
        progress=progress,
    )


def _quality_figures(quality: ImageQuality, settings: EvaluationRecipe) -> dict[str, Any]:
    scores = quality.scores()
    return {
        "pairs": quality.pairs,
        "pairs_seed": settings.pairs_seed,
        "foreground_from": quality.foreground_from,
        "targets_of_unseen_cameras": quality.unseen_cameras,
        "scores": scores,
        "intervals": quality_intervals(quality, settings),
        "recipes": {measure: MEASURES[measure].recipe for measure in scores},
        "not_measured": dict(quality.not_measured),
    }


def _figures_of(
    run: Path, checkpoint: Checkpoint, crops: CropTable, settings: EvaluationRecipe, device: torch.device
) -> dict[str, Any]:
    """What an evaluation says of a run before anything is measured."""
    return {
        "schema": SCHEMA,
        "run": run.name,
        "stage": checkpoint.stage,
        "step": checkpoint.step,
        "seed": checkpoint.recipe.seed,
        "data": {
            "root": crops.root.name,
            "layout": crops.layout,
            "query": len(crops.query),
            "gallery": len(crops.gallery),
            "fingerprint": crops.fingerprint,
            "files_left_out": len(crops.unparsed) + len(crops.missing),
        },
        **_circumstances(settings, str(device)),
        "not_measured": {},
    }


def _circumstances(settings: EvaluationRecipe, device: str) -> dict[str, Any]:
    return {
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "resampling_seed": settings.resampling_seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }


def _read_crops(checkpoint: Checkpoint, run: Path, root: Path | None) -> CropTable:
    data = checkpoint.recipe.data
    if root is not None:
        return load_crops(root)
    if data.root is None:
        raise InputError(f"{run} does not say which data set it was trained on; give --root FOLDER.")
    return load_crops(data.root, data.layout, data.keypoints)
