"""What a grid takes: its steps, and the time from a few of them on random tensors of the recipe's sizes."""

from dataclasses import dataclass

import torch

from posereid.ablation.grid import GRID_FILE, Cell, Grid, every_crop, read_json, renders_world, require_jobs
from posereid.ablation.measuring import Seconds, measure
from posereid.ablation.opening import require_agreement
from posereid.ablation.rows import FULL, ROWS
from posereid.data.validation import validation_identities
from posereid.evaluation.fusion_choice import POSES
from posereid.fusion import every_target
from posereid.training import pose
from posereid.training.devices import launch_fabric

ASSUMED = {
    "market1501": ("Market-1501", 751, 12_936, 3_368, 19_732),
    "dukemtmc": ("DukeMTMC-reID", 702, 16_522, 2_228, 17_661),
    "msmt17": ("MSMT17", 1_041, 32_621, 11_659, 82_161),
    "cuhk03": ("CUHK03, labeled", 767, 7_368, 1_400, 5_328),
}
"""Of sets that are not at hand: name, training identities, training crops, queries, gallery."""

_PASSES_FOR_QUALITY = 3


@dataclass(frozen=True)
class Counts:
    """How large a set is; ``where_from`` says how that is known."""

    identities: int
    training_crops: int
    held_out_crops: int
    test_crops: int
    where_from: str


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


# --- the plan ------------------------------------------------------------------------------------------------


def cell_seconds(grid: Grid, cell: Cell, counts: Counts, steps: dict[str, int], seconds: Seconds) -> float:
    """About how long a cell takes: its steps, and the crops that it draws and embeds."""
    recipe = grid.recipe
    if cell.kind == "pose":
        return steps["pose"] * seconds.pose
    if cell.kind == "fusion":
        searched = seconds.draw + 2 * seconds.embed
        crops = len(grid.choosers) * counts.held_out_crops
        return crops * (2 * seconds.embed + _most_poses(grid) * searched)
    row = ROWS[cell.row]
    if cell.kind == "generator":
        drawn = counts.training_crops * recipe.augmentation.poses_per_crop
        if row.drawn_by == "world":
            return drawn * seconds.render
        drawn += recipe.evaluation.pairs * _PASSES_FOR_QUALITY
        return steps["joint"] * seconds.joint[cell.row] + drawn * seconds.draw + 4 * counts.test_crops * seconds.embed
    searched_crops = counts.test_crops + counts.held_out_crops
    maker = grid.maker(cell)
    if maker is None or not row.fuses:
        return steps["reid"] * seconds.reid + searched_crops * 2 * seconds.embed
    poses = _poses(grid, maker.row)
    each = (2 + 2 * poses) * seconds.embed
    total = steps["reid"] * seconds.reid + searched_crops * each
    if row.shares is None:
        # The network that saw real crops only; it met the held-out people when fusion was set.
        total += counts.test_crops * each
        # Networks that come later with the same generator find the drawings there.
        if next(seed for seed, own in grid.partners if own == maker.seed) == cell.seed:
            total += counts.test_crops * poses * seconds.draw
    return total


def _most_poses(grid: Grid) -> int:
    """The most poses that are tried when fusion is set; in crops of any size there are as many."""
    return min(POSES[-1], len(every_target(grid.recipe.evaluation.fusion, (128, 64))))


def _poses(grid: Grid, maker: str) -> int:
    """Poses in which searches draw a crop: those set for a row's generators, or the most where none are yet."""
    if grid.chooses_fusion and not grid.is_done(Cell("fusion", maker)):
        return _most_poses(grid)
    return grid.fusion(maker).poses


def plan_text(grid: Grid, jobs: int) -> str:
    """The plan as text: rows, cells, steps, what a step takes, and how long cells and grid take.

    Raises InputError for a number of jobs below 1, and for the folder of another grid.
    """
    require_jobs(jobs)
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
        seconds = measure(grid, counts.identities)
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
        *_fusion_lines(takes),
        "",
        f"Measured on {device} with {max(1, threads // jobs)} threads, on random tensors and without pretrained "
        f"weights: joint step {seconds.joint[FULL]:.3g} s, re-ID step {seconds.reid:.3g} s, pose estimator's step "
        f"{seconds.pose:.3g} s, a crop drawn {1000 * seconds.draw:.3g} ms, embedded {1000 * seconds.embed:.3g} ms"
        + (f", rendered {1000 * seconds.render:.3g} ms." if seconds.render else "."),
    ]
    if seconds.taken_over:
        lines.append(f"Not measured, and taken to step as the full model does: {', '.join(seconds.taken_over)}.")
    lines.append(
        f"What is left takes about {_time(left)} of cells, {_time(left / jobs)} with {jobs} at a time"
        + (", were the device each one's own" if jobs > 1 and device.type != "cpu" else "")
        + ". Reading crops, image measures and ranking come on top."
    )
    return "\n".join(lines)


def _fusion_lines(takes: dict[Cell, float]) -> list[str]:
    chosen = [seconds for cell, seconds in takes.items() if cell.kind == "fusion"]
    if not chosen:
        return []
    each = _time(sum(chosen) / len(chosen))
    return [f"{'fusion set, once a generator row':<64}{len(chosen):>12}{'':>12}{each:>11}"]


def _generators(grid: Grid, key: str, takes: dict[Cell, float], steps: dict[str, int], made: set[str]) -> str:
    maker = ROWS[key].maker
    if maker is None:
        return f"{'–':>11}{'':>12}{'':>11}"
    if maker in made:
        return f"{'of ' + maker:>11}{'':>12}{'':>11}"
    made.add(maker)
    cell = Cell("generator", maker, grid.generator_seeds[0])
    if not ROWS[key].fuses:
        return f"{'rendered':>11}{'':>12}{_time(takes[cell]):>11}"
    return f"{len(grid.generator_seeds):>11}{steps['joint']:>12,}{_time(takes[cell]):>11}"


def _networks(grid: Grid, key: str, takes: dict[Cell, float], steps: dict[str, int]) -> str:
    return f"{len(grid.seeds):>12}{steps['reid']:>12,}{_time(takes[Cell('reid', key, grid.seeds[0])]):>11}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3600 * 72 else f"{seconds / 86400:.1f} days"
