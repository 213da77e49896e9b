"""What each kind of cell does, from where an earlier attempt left it."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posereid.ablation.grid import FUSION_FILE, POSE, Cell, Grid, every_crop
from posereid.ablation.rows import REAL, ROWS, joint_recipe, reid_recipe
from posereid.ablation.sheets import generator_sheet
from posereid.augmentation.drawing import augment
from posereid.augmentation.sets import with_generated
from posereid.augmentation.true_renders import write_true_renders
from posereid.config import EvaluationRecipe, FusionMode, Recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.validation import validation_search
from posereid.evaluation.comparison import EVALUATION_FILE
from posereid.evaluation.evaluate import FEATURES_FOLDER, Evaluation, evaluate_run
from posereid.evaluation.fusion_choice import tune_fusion
from posereid.evaluation.generator_quality import ImageQuality
from posereid.evaluation_report import write_evaluation
from posereid.files import atomic_folder, write_atomically
from posereid.pictures import save_png
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint, load_generator
from posereid.training.devices import pick_device
from posereid.training.integrity import RESUME_FILE, read_verified, write_about
from posereid.training.joint import train_joint
from posereid.training.loop import RECIPE_FILE
from posereid.training.pose import train_pose_estimator
from posereid.training.reid import train_reid

GENERATED = "generated"
"""In a generator's cell: the set that it drew."""

SHEET_FILE = "sheet.png"
QUALITY_FILE = "quality.npz"
"""Every test pair's value of every measure of image quality."""

TRAINED_FILE = "trained"
"""In a run's folder once its training has come to its end."""

SEARCH_ONLY_FILE = "search-only.json"
"""In a re-ID cell: how the network of the same seed that saw real crops only searches with the row's generator."""

VALIDATION_FILE = "validation.json"
"""In a re-ID cell: mAP on the held-out people in every use, by which the best use is chosen."""

SEARCH_ONLY = "search only"
"""The search of a network that saw real crops only, with the row's generator: generated crops without training use."""

FUSED: FusionMode = "fusion+flip"
FLIP: FusionMode = "flip"


def work(grid: Grid, cell: Cell) -> None:
    """Do one cell, or what is left of it. Raises InputError, and Stopped where a signal ends training early."""
    kinds: Mapping[str, Callable[[Grid, Cell], None]] = {
        "pose": _pose,
        "generator": _generator,
        "fusion": _fusion,
        "reid": _reid,
    }
    kinds[cell.kind](grid, cell)


def begun(run: Path) -> bool:
    """Whether a run is to be taken up; of a finished one that is nothing but a look at its checkpoint."""
    return (run / RECIPE_FILE).exists()


def _train(train: Callable[..., Path], recipe: Recipe, crops: CropTable, run: Path) -> None:
    """Train what is left of a run; a trained one is not opened again, since its optimisers' state may be gone."""
    if (run / TRAINED_FILE).exists():
        return
    if not begun(run):
        # What was ended before its first step may have left a lock or half a run, which no new run may overwrite.
        shutil.rmtree(run, ignore_errors=True)
    train(recipe, crops, run, resume=begun(run), progress=False)
    write_atomically(run / TRAINED_FILE, "")


def _pose(grid: Grid, cell: Cell) -> None:
    run = grid.folder(cell)
    _train(train_pose_estimator, reid_recipe(ROWS[REAL], grid.recipe, grid.recipe.seed), grid.crops, run)
    _slim(run)


def _generator(grid: Grid, cell: Cell) -> None:
    """Train, draw the training crops, measure on the test pairs, and make a sheet; or render what the world knows."""
    run, row = grid.folder(cell), ROWS[cell.row]
    settings = grid.recipe.augmentation
    if row.drawn_by == "world":
        if not (run / GENERATED).exists():
            write_true_renders(grid.crops, run / GENERATED, settings, seed=cell.seed, progress=False)
        return
    _train(train_joint, joint_recipe(row, grid.recipe, cell.seed), grid.crops, run)
    checkpoint = latest_checkpoint(run)
    generator = load_generator(checkpoint.folder, pick_device(grid.recipe.runtime))
    if not (run / GENERATED).exists():
        augment(
            generator,
            grid.crops,
            run / GENERATED,
            settings,
            seed=cell.seed,
            checkpoint=checkpoint.digest("generator"),
            progress=False,
        )
    if not (run / QUALITY_FILE).exists():
        evaluation = evaluate_run(
            run,
            grid.recipe.evaluation,
            crops=grid.crops,
            judge=grid.folder(grid.judge),
            pose_estimator=grid.folder(POSE),
        )
        write_evaluation(evaluation, run / EVALUATION_FILE)
        if evaluation.quality is not None:
            write_arrays(run / QUALITY_FILE, quality_arrays(evaluation.quality))
    if (run / QUALITY_FILE).exists():
        save_png(run / SHEET_FILE, generator_sheet(generator, grid.crops, grid.recipe.evaluation))
    _slim(run)


def quality_arrays(quality: ImageQuality) -> dict[str, npt.NDArray[Any]]:
    """Image quality pair by pair as named arrays: ``measure/answer/region``, and the pairs' ``identities``."""
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{measure}/{answer}/{region}": values
        for measure, answers in quality.per_pair.items()
        for answer, regions in answers.items()
        for region, values in regions.items()
    }
    return arrays | {"identities": quality.identities}


def _fusion(grid: Grid, cell: Cell) -> None:
    """Choose weight and number of poses for a row's generators by mAP on the held-out identities.

    The networks that saw real crops only search, each with its generator; D_I has no word, since not every row has one.
    """
    crops = every_crop(grid.recipe.data)
    grids = []
    for seed, generator_seed in grid.choosers:
        generator = Cell("generator", cell.row, generator_seed)
        choice = tune_fusion(
            grid.folder(Cell("reid", REAL, seed)),
            grid.folder(generator),
            crops=crops,
            settings=grid.recipe.evaluation,
            try_realism=False,
            cache=grid.drawings(generator),
            keep_drawings=True,
        )
        points = sorted(choice.grid, key=lambda point: (point.weight, point.poses))
        grids.append(
            [{"weight": point.weight, "poses": point.poses, "mAP": point.mean_average_precision} for point in points]
        )
    chosen, means = choose(grids, ("weight", "poses"))
    seeds, generator_seeds = zip(*grid.choosers, strict=True)
    record = {"chosen": chosen, "seeds": seeds, "generator_seeds": generator_seeds, "validation": means}
    write_atomically(grid.folder(cell) / FUSION_FILE, json.dumps(record, indent=1) + "\n")


def choose(grids: list[list[dict[str, Any]]], names: tuple[str, ...]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The setting of the best mean ``mAP`` over several networks' equal grids, the first of equals, and all the means.

    ``names`` are the fields that make up a setting.
    """
    rows = [
        {**same[0], "mAP": float(np.mean([row["mAP"] for row in same])), "seeds": [row["mAP"] for row in same]}
        for same in zip(*grids, strict=True)
    ]
    best = max(rows, key=lambda row: row["mAP"])
    return {name: best[name] for name in names}, rows


def _reid(grid: Grid, cell: Cell) -> None:
    """Train on real crops and the row's generated ones, then search: alone, with flips, and with the row's generator.

    Where the generator is the row's own, the network that saw real crops only searches with it, too. All of it once
    more among the held-out people, if there are any.
    """
    run, row, maker = grid.folder(cell), ROWS[cell.row], grid.maker(cell)
    crops = real = grid.crops
    if maker is not None:
        crops = with_generated(real, load_crops(grid.folder(maker) / GENERATED))
    _train(train_reid, reid_recipe(row, grid.recipe, cell.seed), crops, run)
    drawer = maker if row.fuses else None
    settings = grid.recipe.evaluation
    if drawer is not None:
        settings = settings.changed(fusion=grid.fusion(drawer.row))
    networks = {EVALUATION_FILE: run}
    if drawer is not None and row.shares is None:
        networks[SEARCH_ONLY_FILE] = grid.folder(Cell("reid", REAL, cell.seed))
    for name, network in networks.items():
        if not (run / name).exists():
            write_evaluation(_searched(grid, run, network, drawer, settings, real), run / name)
    if grid.chooses_fusion and not (run / VALIDATION_FILE).exists():
        _validate(grid, run, networks, drawer, settings)
    # Embeddings of the whole test would fill the disk, cell by cell.
    shutil.rmtree(run / FEATURES_FOLDER, ignore_errors=True)
    _slim(run)


def _searched(
    grid: Grid, run: Path, network: Path, drawer: Cell | None, settings: EvaluationRecipe, crops: CropTable
) -> Evaluation:
    return evaluate_run(
        network,
        settings,
        crops=crops,
        fusion=(FUSED,) if drawer else (FLIP,),
        generator_run=grid.folder(drawer) if drawer else None,
        cache=grid.drawings(drawer) if drawer else run / FEATURES_FOLDER,
        keep_drawings=True,
    ).require("reid", "fusion")


def _validate(
    grid: Grid, run: Path, networks: Mapping[str, Path], drawer: Cell | None, settings: EvaluationRecipe
) -> None:
    """Search the held-out people in every use of the cell, and write the mAP of each, in [0, 1]."""
    held = validation_search(every_crop(grid.recipe.data), grid.recipe.data.validation_share)
    precisions: dict[str, float] = {}
    for name, network in networks.items():
        fused = _searched(grid, run, network, drawer, settings, held).fused
        found = {str(mode): search.result.mean_average_precision for mode, search in fused.items()}
        precisions |= found if name == EVALUATION_FILE else {SEARCH_ONLY: found[FUSED]}
    record = {
        "mAP": precisions,
        "queries": len(held.query),
        "gallery": len(held.gallery),
        "identities": len({crop.identity for crop in held.query}),
    }
    write_atomically(run / VALIDATION_FILE, json.dumps(record, indent=1) + "\n")


def clear_drawings(grid: Grid, cell: Cell) -> None:
    """Remove the drawings that the cell, now done, was the last to search with."""
    if cell.kind == "fusion":
        makers = [Cell("generator", cell.row, seed) for _, seed in grid.choosers]
    else:
        maker = grid.maker(cell) if cell.kind == "reid" else None
        makers = [] if maker is None else [maker]
    for maker in makers:
        if not grid.drawings_needed(maker):
            shutil.rmtree(grid.drawings(maker), ignore_errors=True)


def _slim(run: Path) -> None:
    """Keep the newest whole checkpoint only, without the optimisers' state, which takes twice what weights do."""
    newest = latest_checkpoint(run).folder
    for folder in checkpoint_folders(run):
        if folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
    about = read_verified(newest)
    with atomic_folder(newest, "a checkpoint", replace=True) as partial:
        for weights in newest.glob("*.safetensors"):
            shutil.copyfile(weights, partial / weights.name)
        torch.save({}, partial / RESUME_FILE)
        write_about(partial, about)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray]) -> None:
    """An .npz that is there whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
