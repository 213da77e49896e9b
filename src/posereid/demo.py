"""The whole job on the synthetic world, from nothing to a report.

Stages that an earlier call finished in the same folder are kept, so that an interrupted demo goes on where it was.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posereid.augment import augment, with_generated
from posereid.config import Recipe, bundled_recipes, read_recipe, write_recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.demo_report import write_demo_report
from posereid.errors import InputError
from posereid.evaluation.summary import evaluate_run, evaluation_table, versions
from posereid.files import require_free, write_atomically
from posereid.training.checkpoint import latest_checkpoint, load_generator
from posereid.training.joint import train_joint
from posereid.training.loop import LOG_FILE, RECIPE_FILE, pick_device
from posereid.training.reid import train_reid

STAGES_FILE = "stages.json"
REID_RUNS = {
    "joint": "embedder of the joint training",
    "reid-real": "real crops only",
    "reid-generated": "real and generated crops",
}


@dataclass
class Stages:
    """Seconds of each finished stage, on disk, so that a later call knows what is done."""

    path: Path
    seconds: dict[str, float]

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Do one stage unless it is done."""
        if name in self.seconds:
            print(f"{name}: kept from an earlier run.")
            return
        start = time.perf_counter()
        work()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        write_atomically(self.path, json.dumps(self.seconds, indent=1) + "\n")


def run_demo(out: Path, recipe_file: Path | None = None) -> Path:
    """Synthesize, train jointly, augment, train re-ID with and without generated crops, evaluate, report.

    Writes ``out`` with every stage's folder, ``report.html`` and ``summary.json``; returns the report's path.
    Raises InputError when ``out`` holds something else, or a demo of another recipe.
    """
    recipe = read_recipe(recipe_file or bundled_recipes() / "demo.yaml")
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"root": out / "world", "layout": "market1501"})}
    )
    stages = _open(out, recipe)
    print(f"Seed {recipe.seed}, device {pick_device(recipe.runtime)}; everything goes to {out}.")

    world = recipe.world
    stages.run(
        "synthesize",
        lambda: synthesize(
            out / "world",
            identities=world.identities,
            crops_per_identity=world.crops_per_identity,
            cameras=world.cameras,
            height=recipe.data.height,
            seed=recipe.seed,
            progress=True,
        ),
    )
    crops = load_crops(out / "world")
    joint, generated = out / "joint", out / "generated"
    stages.run("joint training", lambda: train_joint(recipe, crops, joint, resume=joint.exists()))
    stages.run("augment", lambda: _augment(recipe, crops, joint, generated))
    both = with_generated(crops, load_crops(generated))
    for run, table in (("reid-real", crops), ("reid-generated", both)):
        folder = out / run
        train = partial(train_reid, recipe, table, folder, resume=folder.exists())
        stages.run(f"re-ID training, {REID_RUNS[run]}", train)
    stages.run("evaluate", lambda: _evaluate(out, crops))

    evaluations = {run: json.loads((out / run / "evaluation.json").read_text()) for run in REID_RUNS}
    summary = _summary(recipe, stages.seconds, evaluations)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    report = write_demo_report(
        out / "report.html",
        summary,
        crops,
        recipe,
        generator_run=joint,
        search_run=out / "reid-real",
        logs=[out / run / LOG_FILE for run in REID_RUNS],
    )
    for run, evaluation in evaluations.items():
        print(f"\n{REID_RUNS[run]}\n{evaluation_table(evaluation)}")
    total = sum(stages.seconds.values())
    print(f"\n{total:.0f} s in all, at most {summary['peak_memory_gb']} GB. Open {report} in a browser.")
    return report


def _open(out: Path, recipe: Recipe) -> Stages:
    path = out / STAGES_FILE
    if path.is_file() and (out / RECIPE_FILE).is_file():
        if read_recipe(out / RECIPE_FILE) != recipe:
            raise InputError(
                f"{out} holds a demo of another recipe; choose another folder with --out, or move this one away."
            )
        return Stages(path, json.loads(path.read_text(encoding="utf-8")))
    require_free(out, "a demo")
    write_atomically(out / RECIPE_FILE, write_recipe(recipe))
    write_atomically(path, "{}\n")
    return Stages(path, {})


def _augment(recipe: Recipe, crops: CropTable, joint: Path, generated: Path) -> None:
    checkpoint = latest_checkpoint(joint)
    augment(
        load_generator(checkpoint.folder, pick_device(recipe.runtime)),
        crops,
        generated,
        recipe.augmentation,
        seed=recipe.seed,
        checkpoint=checkpoint.digest("generator"),
    )


def _evaluate(out: Path, crops: CropTable) -> None:
    for run in REID_RUNS:
        evaluation = evaluate_run(out / run, crops=crops, progress=True)
        write_atomically(out / run / "evaluation.json", json.dumps(evaluation, indent=1) + "\n")


def _summary(recipe: Recipe, seconds: dict[str, float], evaluations: dict[str, Any]) -> dict[str, Any]:
    # Linux counts kilobytes here, macOS bytes.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    generator = evaluations["joint"]["generator"]
    return {
        "reid": {REID_RUNS[run]: evaluation["reid"] for run, evaluation in evaluations.items()},
        "generator": generator["ssim"] | {"pairs": generator["pairs"], "pairs_seed": generator["pairs_seed"]},
        "seconds": seconds,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2),
        "seed": recipe.seed,
        "device": evaluations["joint"]["device"],
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }
