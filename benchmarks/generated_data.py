"""What generated crops are worth, in re-ID training and at search time, over several seeds.

    python benchmarks/generated_data.py recipes/bench_cpu.yaml --seeds 0 1 2 3 4 --jobs 2

Renders the recipe's world (or takes its data.root), holds a share of the training identities out of everything, trains
the generator, draws the training crops under each policy of target poses, filters them, and trains the re-ID network on
real crops, on real and generated crops in every way that posereid offers, and on real crops and true renders of the
same poses, which is what a perfect generator would give. Each network then searches the test set with and without
fusion, whose settings are chosen on the held-out identities by the networks that saw real crops only.

What is finished in the output folder is kept, so that the command goes on where it was stopped. Writes results.json
there, from which generated_data_tables.py makes the tables and the picture of docs/generated-data.md.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from posereid.ablation.running import be_a_worker
from posereid.ablation.work import begun, choose, write_arrays
from posereid.augmentation.drawing import augment, draw
from posereid.augmentation.filters import filter_set
from posereid.augmentation.sets import read_manifest, read_set, with_generated
from posereid.augmentation.true_renders import write_true_renders
from posereid.config import (
    AugmentationRecipe,
    FilteringRecipe,
    FusionMode,
    FusionRecipe,
    Recipe,
    read_recipe,
    write_recipe,
)
from posereid.data.batches import CropImages, to_float
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.data.validation import validation_search, without_validation
from posereid.errors import InputError
from posereid.evaluation.evaluate import versions
from posereid.evaluation.fused_search import SideParts, load_networks
from posereid.evaluation.fusion_choice import tune_fusion
from posereid.evaluation.seeds import mean_over_seeds
from posereid.files import write_atomically
from posereid.fusion import uses_poses
from posereid.progress import progress_bar
from posereid.training.checkpoint import latest_checkpoint, load_embedder, load_generator
from posereid.training.devices import pick_device, set_threads
from posereid.training.joint import train_joint
from posereid.training.reid import train_reid

MODES: tuple[FusionMode, ...] = get_args(FusionMode)
FIXED_MODE: FusionMode = "fusion+flip"
MOST_POSES = 8
OWN_POSE = "own pose"
FIXED_WEIGHTS = (0.1, 0.25, 0.5)
"""Weights that are tried on the test too, beside the chosen one, so that a choice of zero does not hide them."""


@dataclass(frozen=True)
class Arm:
    """One way to train: the generated set that joins the real crops, and how the re-ID recipe differs."""

    title: str
    generated: str | None = None
    reid: Mapping[str, Any] = field(default_factory=dict)


PAPER: dict[str, Any] = {
    "generated_labels": "source",
    "generated_in_quartets": True,
    "generated_share": None,
    "generated_warmup": 0,
}
"""What every arm departs from, whatever the defaults are."""

ARMS = {
    "real": Arm("real crops only"),
    "generated": Arm("+ generated (the paper's way)", "random"),
    "clusters": Arm("+ generated, target poses: clusters", "clusters"),
    "gaps": Arm("+ generated, target poses: gaps", "gaps"),
    "smoothed": Arm("+ generated, labels smoothed", "random", {"generated_labels": "smoothed"}),
    "uniform": Arm("+ generated, labels uniform (LSRO)", "random", {"generated_labels": "uniform"}),
    "identity-loss": Arm("+ generated, not in quartets", "random", {"generated_in_quartets": False}),
    "share": Arm("+ generated, a quarter of each batch", "random", {"generated_share": 0.25}),
    "warm-up": Arm("+ generated, alone for the first 3 epochs", "random", {"generated_warmup": 3}),
    "filter-identity": Arm("+ generated, filter: identity", "filter-identity"),
    "filter-pose": Arm("+ generated, filter: pose (D_P)", "filter-pose"),
    "filter-realism": Arm("+ generated, filter: realism (D_I)", "filter-realism"),
    "true": Arm("+ true renders of the same poses (ceiling)", "true"),
}
FILTERS = {
    "filter-identity": FilteringRecipe(identity=0.5, pose=1, realism=1),
    "filter-pose": FilteringRecipe(identity=1, pose=0.5, pose_by="discriminator", realism=1),
    "filter-realism": FilteringRecipe(identity=1, pose=1, realism=0.5),
}
"""Each keeps the better half of twice as many crops, so that every arm adds equally many."""


@dataclass(frozen=True)
class Experiment:
    """Where everything lies and how it is made; the same in every process."""

    recipe: Recipe
    out: Path

    @cached_property
    def crops(self) -> CropTable:
        """Real crops without the identities that are held out."""
        data = self.recipe.data
        assert data.root is not None
        return without_validation(load_crops(data.root, data.layout, data.keypoints), data.validation_share)

    @cached_property
    def validation(self) -> CropTable:
        """The held-out identities as a search."""
        data = self.recipe.data
        assert data.root is not None
        return validation_search(load_crops(data.root, data.layout, data.keypoints), data.validation_share)

    @property
    def joint(self) -> Path:
        """The run of the generator."""
        return self.out / "joint"

    @property
    def cache(self) -> Path:
        """Embeddings, and the drawings that all networks embed."""
        return self.out / "features"

    def run(self, arm: str, seed: int) -> Path:
        """The folder of one re-ID training."""
        return self.out / "runs" / arm / f"seed-{seed}"

    def set(self, name: str) -> Path:
        """The folder of one generated set."""
        return self.out / "sets" / name

    # --- what is made before the re-ID networks --------------------------------------------------------------

    def prepare(self) -> None:
        """The generator and the sets that it draws."""
        train_joint(self.recipe, self.crops, self.joint, resume=begun(self.joint))
        checkpoint = latest_checkpoint(self.joint)
        generator = load_generator(checkpoint.folder, pick_device(self.recipe.runtime))
        for name, settings in self.drawn.items():
            if not self.set(name).exists():
                augment(
                    generator,
                    self.crops,
                    self.set(name),
                    settings,
                    seed=self.recipe.seed,
                    checkpoint=checkpoint.digest("generator"),
                )
        if self.is_synthetic and not self.set("true").exists():
            write_true_renders(self.crops, self.set("true"), self.drawn["random"], seed=self.recipe.seed)

    @property
    def drawn(self) -> dict[str, AugmentationRecipe]:
        """The sets that the generator draws; ``twice`` is what filters choose from."""
        plain = self.recipe.augmentation.changed(target_poses="random")
        return {
            "random": plain,
            "clusters": plain.changed(target_poses="clusters"),
            "gaps": plain.changed(target_poses="gaps"),
            "twice": plain.changed(poses_per_crop=2 * plain.poses_per_crop),
        }

    def filter(self, judge: Path) -> None:
        """The filtered sets; ``judge`` is a run that saw real crops only."""
        for name, settings in FILTERS.items():
            if not self.set(name).exists():
                filter_set(
                    self.set("twice"),
                    self.set(name),
                    self.crops,
                    settings,
                    run=self.joint,
                    judge=judge,
                    pose_estimator=None,
                )

    @property
    def is_synthetic(self) -> bool:
        """Whether true renders can be had."""
        return (self.crops.root / "world.json").is_file()

    @property
    def exact(self) -> Recipe:
        """In float32: what is compared by its figures must not depend on what a machine has units for."""
        return self.recipe.model_copy(update={"runtime": self.recipe.runtime.changed(precision="32-true")})

    # --- one re-ID network ------------------------------------------------------------------------------------

    def train(self, arm: str, seed: int) -> Path:
        """Train one cell of the grid, or what is left of it."""
        settings = ARMS[arm]
        crops = self.crops
        if settings.generated:
            crops = with_generated(crops, load_crops(self.set(settings.generated)))
        exact = self.exact
        recipe = exact.model_copy(update={"seed": seed, "reid": exact.reid.changed(**PAPER | dict(settings.reid))})
        out = self.run(arm, seed)
        train_reid(recipe, crops, out, resume=begun(out), progress=False)
        return out

    def parts(self, run: Path, fusion: FusionRecipe) -> SideParts:
        """What fusion fuses, of query and gallery, by the embedder of ``run``."""
        device = pick_device(self.recipe.runtime)
        networks = load_networks(run, latest_checkpoint(run), ("all",), self.joint, fusion, device)
        assert networks is not None
        none = self.crops.with_crops(())
        return SideParts.of(networks, self.crops, none, fusion, cache=self.cache, keep_drawings=True)

    def in_own_pose(self, run: Path, parts: SideParts) -> SideParts:
        """The same parts, but each crop drawn in the pose that it has: what redrawing gains without a new pose."""
        device = pick_device(self.recipe.runtime)
        generator = load_generator(latest_checkpoint(self.joint).folder, device)
        embedder = load_embedder(latest_checkpoint(run).folder, device)
        sides = []
        for side, table in ((parts.queries, self.crops.query), (parts.gallery, self.crops.gallery)):
            images = CropImages(table, *generator.crop_size)
            posed, mirrored = (np.zeros((len(table), 1, side.own.shape[1]), np.float32) for _ in range(2))
            drawable = np.flatnonzero(side.has_pose)
            for batch in (drawable[start : start + 64] for start in range(0, len(drawable), 64)):
                joints = [images.joints(position) for position in batch]
                drawn = draw(generator, images.images(batch), joints, joints).to(device)
                with torch.no_grad():
                    posed[batch, 0] = embedder.embed(to_float(drawn)).cpu().numpy()
                    mirrored[batch, 0] = embedder.embed(to_float(drawn.flip(-1))).cpu().numpy()
            sides.append(replace(side, posed=posed, posed_flipped=mirrored, realism=np.ones_like(posed[..., 0])))
        return replace(parts, queries=sides[0], gallery=sides[1])

    def grid(self, run: Path) -> list[dict[str, Any]]:
        """mAP on the held-out identities for every setting of fusion, smallest weight and fewest poses first."""
        path = run / "validation.json"
        if not path.exists():
            choice = tune_fusion(
                run,
                self.joint,
                settings=self.recipe.evaluation,
                most_poses=MOST_POSES,
                cache=self.cache,
                keep_drawings=True,
            )
            points = sorted(choice.grid, key=lambda point: (point.weight, point.poses, point.by_realism))
            rows = [
                {
                    "weight": point.weight,
                    "poses": point.poses,
                    "by_realism": point.by_realism,
                    "mAP": point.mean_average_precision,
                }
                for point in points
            ]
            write_atomically(path, json.dumps(rows))
        return json.loads(path.read_text(encoding="utf-8"))

    def evaluate(self, arm: str, seed: int, fusion: FusionRecipe) -> None:
        """Write each query's rank-1 and average precision under each mode beside the run, once for these settings."""
        path = self.run(arm, seed) / "search.npz"
        most = fusion.changed(poses=MOST_POSES) if arm == "real" else fusion
        rows: dict[str, tuple[FusionMode, FusionRecipe]] = {str(mode): (mode, fusion) for mode in MODES}
        if arm == "real":
            rows |= {f"weight {weight:g}": (FIXED_MODE, most.changed(weight=weight)) for weight in FIXED_WEIGHTS}
            rows[OWN_POSE] = (FIXED_MODE, fusion.changed(poses=1, by_realism=False))
        settings = json.dumps({name: (mode, chosen.model_dump(mode="json")) for name, (mode, chosen) in rows.items()})
        if path.exists() and str(np.load(path)["settings"]) == settings:
            return
        parts = self.parts(self.run(arm, seed), most)
        redrawn = self.in_own_pose(self.run(arm, seed), parts) if arm == "real" else parts
        arrays: dict[str, npt.NDArray] = {
            "identities": self.crops.query.identities,
            "settings": np.array(settings),
        }
        for name, (mode, chosen) in rows.items():
            result = (
                (redrawn if name == OWN_POSE else parts)
                .search(
                    mode,
                    self.recipe.evaluation.changed(fusion=chosen),
                    poses=chosen.poses if uses_poses(mode) else None,
                )
                .result
            )
            found = np.where(result.first_hit_ranks > 0, result.first_hit_ranks == 1, np.nan)
            arrays[f"{name}/rank1"] = found.astype(np.float64)
            arrays[f"{name}/mAP"] = np.asarray(result.average_precisions, np.float64)
        write_arrays(path, arrays)


def cell(recipe: Recipe, out: Path, arm: str, seed: int, fusion: FusionRecipe | None) -> str:
    """Train one network and let it search."""
    experiment = Experiment(recipe, out)
    run = experiment.train(arm, seed)
    if fusion is None:
        experiment.grid(run)
    else:
        experiment.evaluate(arm, seed, fusion)
    return f"{arm}, seed {seed}"


def spread(experiment: Experiment, cells: list[tuple[str, int]], fusion: FusionRecipe | None, jobs: int) -> None:
    """All cells, one after the other with all threads, or several at a time in processes of one thread each."""
    what = "re-ID networks" if fusion else "re-ID networks on real crops"
    work = [(experiment.recipe, experiment.out, arm, seed, fusion) for arm, seed in cells]
    with progress_bar(len(work), what, "cell", show=True) as bar:
        if jobs == 1:
            for each in work:
                bar.set_postfix_str(cell(*each))
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=be_a_worker, initargs=(os.getpid(), 1))
        try:
            for done in as_completed([pool.submit(cell, *each) for each in work]):
                bar.set_postfix_str(done.result())
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


# --- from what was measured to results.json ----------------------------------------------------------------------


def summarise(experiment: Experiment, arms: Iterable[str], seeds: list[int]) -> dict[str, Any]:
    """Means over seeds, and differences with intervals over seeds and people, of every arm under every mode."""
    arrays = {arm: [np.load(experiment.run(arm, seed) / "search.npz") for seed in seeds] for arm in arms}
    identities = arrays["real"][0]["identities"]

    def table(arm: str, mode: str, figure: str) -> npt.NDArray[np.float64]:
        return np.stack([found[f"{mode}/{figure}"] for found in arrays[arm]])

    def interval(values: npt.NDArray[np.float64]) -> list[float]:
        found = mean_over_seeds(values, identities)
        return [round(100 * number, 2) for number in (found.estimate, found.low, found.high)]

    result: dict[str, Any] = {}
    for arm in arms:
        modes = sorted({name.partition("/")[0] for name in arrays[arm][0].files if "/" in name})
        rows: dict[str, Any] = {}
        for mode in modes:
            rows[mode] = {}
            for figure in ("rank1", "mAP"):
                values = table(arm, mode, figure)
                row = {"mean": interval(values), "seeds": [round(100 * float(np.nanmean(v)), 2) for v in values]}
                if arm != "real" and mode in MODES:
                    row["minus_real"] = interval(values - table("real", mode, figure))
                if arm not in ("real", "generated") and "generated" in arrays and mode in MODES:
                    row["minus_paper"] = interval(values - table("generated", mode, figure))
                if mode != "off":
                    row["minus_off"] = interval(values - table(arm, "off", figure))
                if mode not in ("off", "flip"):
                    row["minus_flip"] = interval(values - table(arm, "flip", figure))
                rows[mode][figure] = row
        result[arm] = {"title": ARMS[arm].title, "modes": rows}
    return result


def set_facts(experiment: Experiment) -> dict[str, dict[str, int | None]]:
    """Of each generated set: crops, crops that a filter left out, and near duplicates where they were looked for."""
    found = {}
    for path in sorted((experiment.out / "sets").glob("*/set.json")):
        rows = read_manifest(path.parent)
        dropped, alike = (sum(bool(getattr(row, name)) for row in rows) for name in ("dropped", "near_duplicate_of"))
        filtered = bool(read_set(path.parent).filtering)
        found[path.parent.name] = {
            "crops": len(rows) - dropped,
            "left_out": dropped if filtered else None,
            "near_duplicates": alike if filtered else None,
        }
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of the re-ID training")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--validation-share", type=float, default=0.2, help="training identities that are held out")
    parser.add_argument("--jobs", type=int, default=1, help="networks trained at a time, with one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/generated-data"))
    return parser.parse_args()


def open_experiment(arguments: argparse.Namespace) -> Experiment:
    """The experiment in its folder; InputError for the folder of another one."""
    recipe, out = read_recipe(arguments.recipe), arguments.out.absolute()
    root = recipe.data.root
    if root is None:
        root = out / "world"
        if not root.exists():
            synthesize(
                root,
                **recipe.world.model_dump(),
                height=recipe.data.height,
                seed=recipe.seed,
                progress=True,
            )
    data = recipe.data.changed(root=root.absolute(), validation_share=arguments.validation_share)
    recipe = recipe.model_copy(update={"data": data})
    path = out / "recipe.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != write_recipe(recipe):
        raise InputError(f"{out} holds an experiment on another recipe; choose another folder with --out.")
    write_atomically(path, write_recipe(recipe))
    return Experiment(recipe, out)


def main() -> None:
    arguments = parse()
    set_threads()
    started = time.perf_counter()
    experiment = open_experiment(arguments)
    experiment.prepare()
    seeds = arguments.seeds
    spread(experiment, [("real", seed) for seed in seeds], None, arguments.jobs)
    grids = [experiment.grid(experiment.run("real", seed)) for seed in seeds]
    best, grid = choose(grids, ("weight", "poses", "by_realism"))
    chosen = experiment.recipe.evaluation.fusion.changed(**best)
    print(f"Chosen on the held-out identities: {chosen.poses} poses, weight {chosen.weight:g}.")
    arms = [arm for arm in ARMS if arm == "real" or arm in arguments.arms]
    if set(arms) & set(FILTERS):
        experiment.filter(experiment.run("real", seeds[0]))
    if not experiment.is_synthetic and "true" in arms:
        arms.remove("true")
        print("True renders of this set cannot be had: no ceiling row.")
    # The first one draws the test crops in all poses, which the others then share.
    experiment.evaluate("real", seeds[0], chosen)
    # Seed by seed, so that what there is when it is stopped is as even as can be.
    spread(experiment, [(arm, seed) for seed in seeds for arm in arms], chosen, arguments.jobs)
    table = experiment.crops
    results = {
        "command": " ".join(["python", *sys.argv]),
        "date": str(datetime.datetime.now(tz=datetime.UTC).date()),
        "machine": platform.machine(),
        "jobs": arguments.jobs,
        "device": str(pick_device(experiment.recipe.runtime)),
        "versions": versions(),
        "seed": experiment.recipe.seed,
        "seeds": seeds,
        "minutes_of_this_call": round((time.perf_counter() - started) / 60, 1),
        "data": {
            "root": table.root.name,
            "training_crops": len(table.train),
            "training_identities": len({crop.identity for crop in table.train}),
            "validation_identities": len({c.identity for c in experiment.validation.gallery if c.identified}),
            "query": len(table.query),
            "gallery": len(table.gallery),
            "test_identities": len({crop.identity for crop in table.query}),
        },
        "sets": set_facts(experiment),
        "fusion": {"chosen": chosen.model_dump(include={"weight", "poses", "by_realism"}), "validation": grid},
        "arms": summarise(experiment, arms, seeds),
    }
    write_atomically(experiment.out / "results.json", json.dumps(results, indent=1) + "\n")
    print(
        f"Written: {experiment.out / 'results.json'}. Next: python benchmarks/generated_data_tables.py {experiment.out}"
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"generated_data: {error}")
