"""A run's evaluation as plain data, and as one table for people."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import posereid
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError
from posereid.evaluation.evaluate import FOREGROUND, chance_rank1, has_pose_pairs, measure_generator, search_gallery
from posereid.training.checkpoint import latest_checkpoint, load_embedder, load_generator
from posereid.training.loop import pick_device

SCHEMA = 1

ANSWERS = {
    "ssim": "generated",
    "ssim_copy_source": "copy the source",
    "ssim_mean_image": "mean training image",
    "ssim_camera_mean": "mean image of the target's camera",
    "ssim_wrong_source": "generated from a wrong source",
    "ssim_wrong_pose": "generated in a wrong pose",
}


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    return {"posereid": posereid.__version__, "torch": torch.__version__, "python": platform.python_version()}


def evaluate_run(
    run: Path,
    *,
    root: Path | None = None,
    pairs: int | None = None,
    crops: CropTable | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate what a run trained: its embedder by search, its generator by image quality.

    ``root`` is another data set than the run's own, ``crops`` one that has been read already; ``pairs`` overrides
    the number of test pairs. Raises InputError.
    """
    checkpoint = latest_checkpoint(run)
    recipe = checkpoint.recipe
    settings = recipe.evaluation
    if pairs is not None:
        settings = settings.changed(pairs=pairs)
    if crops is None:
        data = recipe.data
        if root is None and data.root is None:
            raise InputError(f"{run} does not say which data set it was trained on; give --root FOLDER.")
        crops = load_crops(root) if root else load_crops(data.root or "", data.layout, data.keypoints)
    device = pick_device(recipe.runtime)
    evaluation: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run.name,
        "stage": checkpoint.stage,
        "step": checkpoint.step,
        "seed": recipe.seed,
        "data": {
            "root": crops.root.name,
            "layout": crops.layout,
            "query": len(crops.query),
            "gallery": len(crops.gallery),
            "fingerprint": crops.fingerprint,
            "files_left_out": len(crops.unparsed) + len(crops.missing),
        },
        "device": str(device),
        "versions": versions(),
    }
    if (checkpoint.folder / "embedder.safetensors").is_file():
        embedder = load_embedder(checkpoint.folder, device)
        search = search_gallery(embedder, crops, settings, progress=progress)
        chance = {"chance_rank1": round(100 * chance_rank1(crops), 2)}
        evaluation["reid"] = search.summary() | chance | {"average_precision": search.result.average_precision}
    if (checkpoint.folder / "generator.safetensors").is_file():
        if settings.pairs_file is None and not has_pose_pairs([*crops.query, *crops.gallery]):
            evaluation["generator"] = None
            evaluation["generator_note"] = "no test identity has two crops with both shoulders and both hips"
            return evaluation
        generator = load_generator(checkpoint.folder, device)
        quality = measure_generator(generator, crops, settings, progress=progress)
        evaluation["generator"] = {
            "ssim": quality.scores,
            "pairs": quality.pairs,
            "pairs_seed": settings.pairs_seed,
            "foreground_from": quality.foreground_from,
            "ssim_recipe": "RGB, window 11, sigma 1.5, range 2 of [-1, 1]",
            "targets_of_unseen_cameras": quality.unseen_cameras,
        }
    return evaluation


def evaluation_table(evaluation: Mapping[str, Any]) -> str:
    """The figures of :func:`evaluate_run` as text."""
    lines = []
    if left_out := evaluation["data"]["files_left_out"]:
        lines.append(f"{left_out} files of the set are left out; `posereid check` names them.")
    if reid := evaluation.get("reid"):
        left_out = reid["queries_without_match"]
        note = f"; {left_out} queries have no match and are left out" if left_out else ""
        lines += [
            f"re-identification over {reid['queries']} queries{note}",
            *(
                f"  {label:<36}{reid[key]:8.2f} %"
                for key, label in (
                    ("rank1", "rank-1"),
                    ("rank5", "rank-5"),
                    ("rank10", "rank-10"),
                    ("mAP", "mAP"),
                    ("mINP", "mINP"),
                    ("chance_rank1", "rank-1 of a random order"),
                )
            ),
        ]
    if reason := evaluation.get("generator_note"):
        lines.append(f"image quality was not measured: {reason}.")
    if generator := evaluation.get("generator"):
        scores = generator["ssim"]
        lines += [
            f"SSIM over {generator['pairs']} test pairs (foreground from {generator['foreground_from']})",
            f"  {'':<36}{'image':>8}  {'foreground':>10}",
            *(f"  {label:<36}{scores[k]:8.3f}  {scores[FOREGROUND + k]:10.3f}" for k, label in ANSWERS.items()),
        ]
    return "\n".join(lines)
