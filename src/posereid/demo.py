"""The whole job on the synthetic world, from nothing to a report.

Stages that an earlier call finished in the same folder are kept, so that an interrupted demo goes on where it was.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posereid.augmentation.drawing import augment
from posereid.augmentation.sets import with_generated
from posereid.config import FusionMode, Recipe, bundled_recipes, read_recipe, write_recipe
from posereid.curves import read_log
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.demo_report import write_demo_report
from posereid.errors import InputError
from posereid.evaluation.comparison import EVALUATION_FILE, compare, comparison_table
from posereid.evaluation.evaluate import FEATURES_FOLDER, evaluate_run, versions
from posereid.evaluation.tables import evaluation_table
from posereid.evaluation_report import write_evaluation
from posereid.files import require_free, write_atomically
from posereid.training.checkpoint import latest_checkpoint, load_generator
from posereid.training.devices import pick_device, pick_precision
from posereid.training.joint import train_joint
from posereid.training.log import LOG_FILE
from posereid.training.loop import RECIPE_FILE
from posereid.training.pose import train_pose_estimator
from posereid.training.reid import train_reid

STAGES_FILE = "stages.json"
TRAINED = {
    "joint training": "joint",
    "re-ID training, real crops only": "reid-real",
    "re-ID training, real and generated crops": "reid-generated",
    "pose estimator training": "pose-estimator",
}
REID_RUNS = {
    "joint": "embedder of the joint training",
    "reid-real": "real crops only",
    "reid-generated": "real and generated crops",
}

FUSION: tuple[FusionMode, ...] = ("fusion+flip",)
"""How the re-ID networks search besides, with the controls that belong to it."""

JUDGE = "reid-real"
"""The run that says whether generated pictures keep their identity: it never saw one."""


@dataclass
class Stages:
    """What is done, how long it took and how much memory the processes used, on disk for a later call."""

    path: Path
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_gb: float = 0.0

    def run(self, name: str, output: Path, work: Callable[[], object]) -> None:
        """Do one stage unless it is done and its ``output`` is still there; interrupted time counts, too."""
        if name in self.done and output.exists():
            print(f"{name}: kept from an earlier run.")
            return
        start, before = time.perf_counter(), 0.0 if name in self.done else self.seconds.get(name, 0.0)
        self.done = [other for other in self.done if other != name]
        try:
            work()
            self.done.append(name)
        finally:
            self.seconds[name] = round(before + time.perf_counter() - start, 1)
            self.save()

    def save(self) -> None:
        """Write the state, with this process's peak memory if it is the highest yet."""
        # Linux counts kilobytes here, macOS bytes.
        unit = 2**30 if sys.platform == "darwin" else 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.peak_memory_gb = round(max(self.peak_memory_gb, peak), 2)
        state = {"done": self.done, "seconds": self.seconds, "peak_memory_gb": self.peak_memory_gb}
        write_atomically(self.path, json.dumps(state, indent=1) + "\n")


def run_demo(out: Path, recipe_file: Path | None = None) -> Path:
    """Synthesize, train jointly, augment, train re-ID with and without generated crops, evaluate, report.

    Writes ``out`` with every stage's folder, ``report.html`` and ``summary.json``; returns the report's path.
    Raises InputError when ``out`` holds something else, or a demo of another recipe.
    """
    recipe = read_recipe(recipe_file or bundled_recipes() / "demo.yaml")
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"root": (out / "world").absolute(), "layout": "market1501"})}
    )
    stages = _open(out, recipe)
    print(f"Seed {recipe.seed}, device {pick_device(recipe.runtime)}; everything goes to {out}.")

    stages.run(
        "synthesize",
        out / "world",
        lambda: synthesize(
            out / "world",
            **recipe.world.model_dump(),
            height=recipe.data.height,
            seed=recipe.seed,
            progress=True,
        ),
    )
    crops = load_crops(out / "world")
    joint, generated = out / "joint", out / "generated"
    stages.run("joint training", joint, lambda: train_joint(recipe, crops, joint, resume=joint.exists()))
    stages.run("augment", generated, lambda: _augment(recipe, crops, joint, generated))
    both = with_generated(crops, load_crops(generated))
    # What is compared by its figures trains in float32: they must not depend on what a machine has units for.
    exact = recipe.model_copy(update={"runtime": recipe.runtime.changed(precision="32-true")})
    for run, table in (("reid-real", crops), ("reid-generated", both)):
        folder = out / run
        train = partial(train_reid, exact, table, folder, resume=folder.exists())
        stages.run(f"re-ID training, {REID_RUNS[run]}", folder, train)
    estimator = out / "pose-estimator"
    stages.run(
        "pose estimator training",
        estimator,
        lambda: train_pose_estimator(exact, crops, estimator, resume=estimator.exists()),
    )
    for run, name in REID_RUNS.items():
        work = partial(_evaluate, out / run, crops)
        if run == "joint":
            work = partial(work, judge=out / JUDGE, pose_estimator=estimator)
        else:
            work = partial(work, fusion=FUSION, generator_run=joint, cache=out / FEATURES_FOLDER)
        stages.run(f"evaluate, {name}", out / run / EVALUATION_FILE, work)
    evaluations = {run: _read_json(out / run / EVALUATION_FILE) for run in REID_RUNS}
    comparison = compare(out / "reid-real", out / "reid-generated")
    summary = _summary(recipe, stages, evaluations) | {"comparison": comparison}
    write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    report = write_demo_report(
        out / "report.html",
        summary,
        crops,
        recipe,
        generator_run=joint,
        search_run=out / JUDGE,
        cache=out / FEATURES_FOLDER,
        logs=[out / run / LOG_FILE for run in REID_RUNS],
    )
    for run, evaluation in evaluations.items():
        print(f"\n{REID_RUNS[run]}\n{evaluation_table(evaluation)}")
    print(f"\nWhat generated crops are worth here\n{comparison_table(comparison)}")
    total = sum(stages.seconds.values())
    print("\nWhere the time goes")
    for name, seconds in stages.seconds.items():
        waited = summary["waiting_for_data"].get(name)
        aside = "" if waited is None else f", {waited:.1%} of it waiting for data"
        print(f"  {seconds:6.1f} s  {seconds / total:4.0%}  {name}{aside}")
    print(f"\n{total:.0f} s in the stages, at most {summary['peak_memory_gb']} GB. Open {report} in a browser.")
    return report


def _open(out: Path, recipe: Recipe) -> Stages:
    path = out / STAGES_FILE
    if path.is_file() and (out / RECIPE_FILE).is_file():
        # The world's place follows from ``out``, which may have been moved.
        own = read_recipe(out / RECIPE_FILE)
        if own.model_dump(exclude={"data": {"root"}}) != recipe.model_dump(exclude={"data": {"root"}}):
            raise InputError(
                f"{out} holds a demo of another recipe; choose another folder with --out, or move this one away."
            )
        state = _read_json(path)
        try:
            return Stages(path, list(state["done"]), dict(state["seconds"]), float(state["peak_memory_gb"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path} is damaged; choose another folder with --out, or move this one away.") from None
    require_free(out, "a demo")
    write_atomically(out / RECIPE_FILE, write_recipe(recipe))
    stages = Stages(path)
    stages.save()
    return stages


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it and run the demo again.") from None


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


def _evaluate(run: Path, crops: CropTable, **options: Any) -> None:
    evaluation = evaluate_run(run, crops=crops, progress=True, **options).require("reid", "fusion", "verification")
    write_evaluation(evaluation, run / EVALUATION_FILE)


def _waiting_share(log: Path) -> float:
    """The share of a training run's time that its steps waited for data, the mean over its log."""
    shares = [record["data_share"] for record in read_log(log) if isinstance(record.get("data_share"), float)]
    if not shares:
        raise InputError(f"{log} does not say how long its steps waited; delete its folder and run the demo again.")
    return round(sum(shares) / len(shares), 4)


def _summary(recipe: Recipe, stages: Stages, evaluations: dict[str, Any]) -> dict[str, Any]:
    return {
        "reid": {REID_RUNS[run]: evaluation["reid"] for run, evaluation in evaluations.items()},
        "verification": {REID_RUNS[run]: evaluation["verification"] for run, evaluation in evaluations.items()},
        "fusion": {REID_RUNS[run]: found["fusion"] for run, found in evaluations.items() if "fusion" in found},
        "generator": evaluations["joint"]["generator"],
        "seconds": stages.seconds,
        "waiting_for_data": {
            stage: _waiting_share(stages.path.parent / run / LOG_FILE) for stage, run in TRAINED.items()
        },
        "peak_memory_gb": stages.peak_memory_gb,
        "seed": recipe.seed,
        "device": evaluations["joint"]["device"],
        "precision": pick_precision(recipe.runtime),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }
