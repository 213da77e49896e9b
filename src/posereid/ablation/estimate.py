"""What a grid takes: its steps, and the time from a few of them on random tensors of the recipe's sizes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric

from posereid.ablation.grid import GRID_FILE, Cell, Grid, every_crop, read_json, renders_world, require_agreement
from posereid.ablation.rows import FULL, REAL, ROWS, joint_recipe, reid_recipe
from posereid.augmentation.drawing import draw
from posereid.config import Recipe
from posereid.data.batches import PosedCropBatch, PosePairBatch, QuartetBatch, to_float
from posereid.data.validation import validation_identities
from posereid.errors import InputError
from posereid.evaluation.fusion_choice import POSES
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.training import joint, pose, reid
from posereid.training.checkpoint import new_embedder, new_generator, new_pose_estimator
from posereid.training.devices import launch_fabric
from posereid.training.networks import set_up

ASSUMED = {
    "market1501": ("Market-1501", 751, 12_936, 3_368, 19_732),
    "dukemtmc": ("DukeMTMC-reID", 702, 16_522, 2_228, 17_661),
    "msmt17": ("MSMT17", 1_041, 32_621, 11_659, 82_161),
    "cuhk03": ("CUHK03, labeled", 767, 7_368, 1_400, 5_328),
}
"""Of sets that are not at hand: name, training identities, training crops, queries, gallery."""

_SLOW_STEP = 15.0
_MEASURING_SECONDS = 45.0
_PASSES_FOR_QUALITY = 3
_BATCH = 16


@dataclass(frozen=True)
class Counts:
    """How large a set is; ``where_from`` says how that is known."""

    identities: int
    training_crops: int
    held_out_crops: int
    test_crops: int
    where_from: str


@dataclass(frozen=True)
class Seconds:
    """What was measured: a joint step of each row, a step of the other trainings, and one crop drawn or embedded.

    ``taken_over`` are rows for whose joint step that of the full model stands, so that a plan takes no minutes.
    """

    joint: dict[str, float]
    reid: float
    pose: float
    draw: float
    embed: float
    taken_over: tuple[str, ...]


def count_crops(grid: Grid) -> Counts:
    """The set's size: counted, computed from the recipe's world, or the published one of a set that is not at hand."""
    recipe = grid.recipe
    share = recipe.data.validation_share
    if recipe.data.root is not None:
        whole = every_crop(recipe.data)
        held = validation_identities(whole, share)
        held_out = sum(crop.identity in held for crop in whole.train)
        known = {crop.identity for crop in whole.train if crop.identified} - held
        tests = len(whole.query) + len(whole.gallery)
        return Counts(len(known), len(whole.train) - held_out, held_out, tests, f"the set in {recipe.data.root}")
    if renders_world(recipe):
        world = recipe.world
        identities, crops = world.identities // 2, world.identities // 2 * world.crops_per_identity
        tests = (world.identities - identities) * world.crops_per_identity
        where = f"the recipe's world of {world.identities} people, which would be rendered"
    else:
        name, identities, crops, *test = ASSUMED.get(recipe.data.layout, ASSUMED["market1501"])
        tests = sum(test)
        where = f"no data.root is given: assumed are the {identities:,} identities and {crops:,} crops of {name}"
    held_out = round(share * identities)
    held_out_crops = round(crops * held_out / identities)
    return Counts(identities - held_out, crops - held_out_crops, held_out_crops, tests, where)


def steps_of(grid: Grid, counts: Counts) -> dict[str, int]:
    """Steps of one training of each kind."""
    recipe = grid.recipe
    joint_settings, reid_settings, pose_settings = recipe.joint, recipe.reid, recipe.pose_estimator
    learned = round((1 - pose.HELD_OUT_SHARE) * counts.training_crops)
    return {
        "joint": joint_settings.epochs * max(1, joint_settings.pairs_per_epoch // joint_settings.batch_size),
        "reid": reid_settings.epochs * max(1, reid_settings.quartets_per_epoch // reid_settings.quartets_per_batch),
        "pose": pose_settings.epochs * (learned // min(pose_settings.batch_size, max(learned, 1))),
    }


# --- measuring -----------------------------------------------------------------------------------------------


def measure(grid: Grid, counts: Counts) -> Seconds:
    """A few real steps of the real networks, without their pretrained weights, on the device that would be used."""
    recipe = _from_scratch(grid.recipe)
    exact = reid_recipe(ROWS[REAL], recipe, recipe.seed)
    fabrics = launch_fabric(recipe.runtime), launch_fabric(exact.runtime)
    start = time.perf_counter()
    drawing = [row.key for row in grid.rows if row.fuses and row.shares is None]
    joint_steps = {FULL: _joint_step(joint_recipe(ROWS[FULL], recipe, 0), counts.identities, fabrics[0])}
    others = (
        _reid_step(exact, counts.identities, fabrics[1]),
        _pose_step(exact, fabrics[1]),
        *_crop_seconds(exact, counts.identities, fabrics[1].device),
    )
    taken_over = []
    for key in drawing:
        if key in joint_steps:
            continue
        if time.perf_counter() - start > _MEASURING_SECONDS:
            taken_over.append(key)
            joint_steps[key] = joint_steps[FULL]
        else:
            joint_steps[key] = _joint_step(joint_recipe(ROWS[key], recipe, 0), counts.identities, fabrics[0])
    return Seconds(joint_steps, *others, taken_over=tuple(taken_over))


def _from_scratch(recipe: Recipe) -> Recipe:
    sections = {name: getattr(recipe, name).changed(pretrained=False) for name in ("embedder", "pose_estimator")}
    return recipe.model_copy(update=sections)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of one call: the shortest of one or two after a first one, or a slow first one itself."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
        if found[0] > _SLOW_STEP or (len(found) > 1 and found[-1] > 1):
            break
    return min(found[1:], default=found[0])


def _joint_step(recipe: Recipe, identities: int, fabric: Fabric) -> float:
    losses, count = recipe.losses, recipe.joint.batch_size
    networks = joint.build_networks(recipe, identities, fabric)
    sides = [_posed_crops(recipe, count) for _ in range(2)]
    labels = torch.arange(count) % identities
    batch = PosePairBatch(*sides[0], *sides[1], target_cameras=torch.ones_like(labels), labels=labels).to(fabric.device)
    # Past every warm-up, so that all terms count.
    late = 1 + max(losses.adversarial_warmup + losses.adversarial_ramp, losses.semantic_warmup + losses.semantic_ramp)
    return _timed(lambda: joint.training_step(networks, batch, recipe, late, fabric))


def _reid_step(recipe: Recipe, identities: int, fabric: Fabric) -> float:
    quartets = recipe.reid.quartets_per_batch
    embedder = new_embedder(recipe, identities, pretrained=False)
    networks = set_up({"embedder": embedder}, {"embedder": recipe.reid.optimiser}, recipe, fabric)
    labels = torch.arange(4 * quartets).view(quartets, 4) % identities
    images = _pixels(recipe, 4 * quartets).unflatten(0, (quartets, 4))
    batch = QuartetBatch(images, labels, torch.zeros_like(labels, dtype=torch.bool)).to(fabric.device)
    return _timed(lambda: reid.training_step(networks, batch, recipe, fabric))


def _pose_step(recipe: Recipe, fabric: Fabric) -> float:
    settings = recipe.pose_estimator
    estimator = new_pose_estimator(recipe, pretrained=False)
    networks = set_up({"pose_estimator": estimator}, {"pose_estimator": settings.optimiser}, recipe, fabric)
    batch = PosedCropBatch(*_posed_crops(recipe, settings.batch_size)).to(fabric.device)
    return _timed(lambda: pose.training_step(networks, batch, recipe, fabric))


def _crop_seconds(recipe: Recipe, identities: int, device: torch.device) -> tuple[float, float]:
    """Seconds to draw a crop and to embed one."""
    images, keypoints, present = _posed_crops(recipe, _BATCH)
    joints = [Joints(xy.numpy(), found.numpy()) for xy, found in zip(keypoints, present, strict=True)]
    generator = new_generator(recipe).to(device).eval()
    embedder = new_embedder(recipe, identities, pretrained=False).to(device).eval()
    with torch.no_grad():
        drawing = _timed(lambda: draw(generator, images, joints, joints))
        embedding = _timed(lambda: embedder.embed(to_float(images.to(device))).cpu())
    return drawing / _BATCH, embedding / _BATCH


def _pixels(recipe: Recipe, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    shape = (count, 3, recipe.data.height, recipe.data.width)
    return torch.randint(256, shape, generator=random, dtype=torch.uint8)


def _posed_crops(recipe: Recipe, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size = np.array([recipe.data.width, recipe.data.height])
    keypoints = np.random.default_rng(0).random((count, JOINT_COUNT, 2)) * size
    present = torch.ones(count, JOINT_COUNT, dtype=torch.bool)
    return _pixels(recipe, count), torch.from_numpy(keypoints.astype(np.float32)), present


# --- the plan ------------------------------------------------------------------------------------------------


def cell_seconds(grid: Grid, cell: Cell, counts: Counts, steps: dict[str, int], seconds: Seconds) -> float:
    """About how long a cell takes: its steps, and the crops that it draws and embeds."""
    recipe = grid.recipe
    poses = recipe.evaluation.fusion.poses
    if cell.kind == "pose":
        return steps["pose"] * seconds.pose
    if cell.kind == "fusion":
        crops = len(grid.seeds) * counts.held_out_crops
        return crops * (2 * seconds.embed + POSES[-1] * (seconds.draw + 2 * seconds.embed))
    row = ROWS[cell.row]
    if cell.kind == "generator":
        if row.drawn_by == "world":
            return 0.0
        drawn = counts.training_crops * recipe.augmentation.poses_per_crop
        drawn += recipe.evaluation.pairs * _PASSES_FOR_QUALITY
        return steps["joint"] * seconds.joint[cell.row] + drawn * seconds.draw + 4 * counts.test_crops * seconds.embed
    each = 2 * seconds.embed
    if row.fuses:
        networks = 2 if row.shares is None else 1
        each = networks * (2 + 2 * poses) * seconds.embed + poses * seconds.draw
    return steps["reid"] * seconds.reid + counts.test_crops * each


def plan_text(grid: Grid, jobs: int) -> str:
    """The plan as text: rows, cells, steps, what a step takes, and how long cells and grid take.

    Raises InputError for a number of jobs below 1, and for the folder of another grid.
    """
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; at least one cell at a time is needed.")
    done = 0
    cells = grid.cells()
    if (grid.out / GRID_FILE).exists():
        require_agreement(grid, read_json(grid.out / GRID_FILE))
        done = sum(map(grid.is_done, cells))
    counts = count_crops(grid)
    steps = steps_of(grid, counts)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // jobs))
    try:
        seconds = measure(grid, counts)
    finally:
        torch.set_num_threads(threads)
    takes = {cell: cell_seconds(grid, cell, counts, steps, seconds) for cell in cells}
    left = sum(takes[cell] for cell in cells if not grid.is_done(cell))
    device = launch_fabric(grid.recipe.runtime).device
    named = f"{len(grid.seeds)} re-ID and {len(grid.generator_seeds)} generator seeds"
    lines = [
        f"{len(grid.rows)} rows with {named}: {len(cells)} cells, {done} of them done.",
        f"Crops: {counts.where_from}; {counts.training_crops:,} to train on, {counts.held_out_crops:,} held out, "
        f"{counts.test_crops:,} to search with and among.",
        "",
        f"{'row':<30}{'generators':>11}{'steps each':>12}{'time each':>11}{'re-ID runs':>12}{'steps each':>12}"
        f"{'time each':>11}",
    ]
    made: set[str] = set()
    for row in grid.rows:
        lines.append(
            f"{row.key:<30}{_generators(grid, row.key, takes, steps, made)}{_networks(grid, row.key, takes, steps)}"
        )
    lines += [
        f"{'pose estimator':<30}{'':>34}{1:>12}{steps['pose']:>12,}{_time(takes[cells[0]]):>11}",
        "",
        f"Measured on {device} with {max(1, threads // jobs)} threads, on random tensors and without pretrained "
        f"weights: joint step {seconds.joint[FULL]:.3g} s, re-ID step {seconds.reid:.3g} s, pose estimator's step "
        f"{seconds.pose:.3g} s, a crop drawn {1000 * seconds.draw:.3g} ms, embedded {1000 * seconds.embed:.3g} ms.",
    ]
    if seconds.taken_over:
        lines.append(f"Not measured, and taken to step as the full model does: {', '.join(seconds.taken_over)}.")
    lines.append(
        f"What is left takes about {_time(left)} of cells, {_time(left / jobs)} with {jobs} at a time"
        + (", were the device each one's own" if jobs > 1 and device.type != "cpu" else "")
        + ". Reading crops, image measures and ranking come on top."
    )
    return "\n".join(lines)


def _generators(grid: Grid, key: str, takes: dict[Cell, float], steps: dict[str, int], made: set[str]) -> str:
    maker = ROWS[key].maker
    if maker is None:
        return f"{'–':>11}{'':>12}{'':>11}"
    if maker in made:
        return f"{'of ' + maker:>11}{'':>12}{'':>11}"
    made.add(maker)
    cell = Cell("generator", maker, grid.generator_seeds[0])
    if not ROWS[key].fuses:
        return f"{'rendered':>11}{'':>12}{'':>11}"
    return f"{len(grid.generator_seeds):>11}{steps['joint']:>12,}{_time(takes[cell]):>11}"


def _networks(grid: Grid, key: str, takes: dict[Cell, float], steps: dict[str, int]) -> str:
    return f"{len(grid.seeds):>12}{steps['reid']:>12,}{_time(takes[Cell('reid', key, grid.seeds[0])]):>11}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3600 * 72 else f"{seconds / 86400:.1f} days"
