"""How long a step of each training takes, on random tensors of a recipe's sizes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric

from posereid.ablation.grid import Grid
from posereid.ablation.rows import FULL, REAL, ROWS, joint_recipe, reid_recipe
from posereid.augmentation.drawing import draw
from posereid.config import Recipe
from posereid.data.batches import PosedCropBatch, PosePairBatch, QuartetBatch, to_float
from posereid.data.synthetic.crop import render_shot
from posereid.data.synthetic.plan import TRAIN
from posereid.data.synthetic.world import World
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.training import joint, pose, reid
from posereid.training.checkpoint import new_embedder, new_generator, new_pose_estimator
from posereid.training.devices import launch_fabric
from posereid.training.networks import set_up

_SLOW_STEP = 15.0
_MEASURING_SECONDS = 45.0
_BATCH = 16


@dataclass(frozen=True)
class Seconds:
    """What was measured: a joint step of each row, a step of the other trainings, and one crop drawn, embedded or
    rendered.

    ``taken_over`` are rows for whose joint step that of the full model stands, so that a plan takes no minutes.
    """

    joint: dict[str, float]
    reid: float
    pose: float
    draw: float
    embed: float
    render: float
    taken_over: tuple[str, ...]


def measure(grid: Grid, identities: int) -> Seconds:
    """A few real steps of the real networks, without their pretrained weights, on the device that would be used."""
    recipe = _from_scratch(grid.recipe)
    exact = reid_recipe(ROWS[REAL], recipe, recipe.seed)
    fabrics = launch_fabric(recipe.runtime), launch_fabric(exact.runtime)
    start = time.perf_counter()
    drawing = [row.key for row in grid.rows if row.fuses and row.shares is None]
    joint_steps = {FULL: _joint_step(joint_recipe(ROWS[FULL], recipe, 0), identities, fabrics[0])}
    others = (
        _reid_step(exact, identities, fabrics[1]),
        _pose_step(exact, fabrics[1]),
        *_crop_seconds(exact, identities, fabrics[1].device),
        _render_seconds(grid) if any(row.drawn_by == "world" for row in grid.rows) else 0.0,
    )
    taken_over = []
    for key in drawing:
        if key in joint_steps:
            continue
        if time.perf_counter() - start > _MEASURING_SECONDS:
            taken_over.append(key)
            joint_steps[key] = joint_steps[FULL]
        else:
            joint_steps[key] = _joint_step(joint_recipe(ROWS[key], recipe, 0), identities, fabrics[0])
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


def _render_seconds(grid: Grid) -> float:
    """Seconds of one true render, by a world as hard and as high as the grid's."""
    root, recipe = grid.recipe.data.root, grid.recipe
    if root is not None:
        world = World.read(root)
    else:
        world = World(recipe.seed, **recipe.world.model_dump(), height=recipe.data.height)
    planned = next(crop for crop in world.crops if crop.folder == TRAIN)
    person, camera = world.person(planned.identity), world.camera(planned.camera)
    return _timed(lambda: render_shot(person, world.pose(planned), camera, world.shot(planned)))


def _pixels(recipe: Recipe, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    shape = (count, 3, recipe.data.height, recipe.data.width)
    return torch.randint(256, shape, generator=random, dtype=torch.uint8)


def _posed_crops(recipe: Recipe, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size = np.array([recipe.data.width, recipe.data.height])
    keypoints = np.random.default_rng(0).random((count, JOINT_COUNT, 2)) * size
    present = torch.ones(count, JOINT_COUNT, dtype=torch.bool)
    return _pixels(recipe, count), torch.from_numpy(keypoints.astype(np.float32)), present
