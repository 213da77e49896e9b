"""Joint training of generator, discriminators and embedder: the loop of equation 14."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from posereid.config import LossRecipe, Recipe
from posereid.data.batches import CropImages, PosePairBatch, PosePairs, class_labels, to_float
from posereid.data.check import require_joint_scale
from posereid.data.crops import CropTable
from posereid.data.sampling import PosePairSampler, batch_quartets, require_divisible
from posereid.discriminator import appearance_discriminator, pose_discriminator
from posereid.embedder import EMBEDDING, Embedder
from posereid.errors import InputError
from posereid.losses import (
    discriminator_loss,
    generator_adversarial_loss,
    identity_loss,
    perceptual_loss,
    quartet_loss,
    reconstruction_loss,
    semantic_consistency_loss,
    structure_loss,
    weighted_sum,
)
from posereid.pictures import save_png
from posereid.processes import own_rows, process_count, sum_over_processes, whole_batch
from posereid.training.checkpoint import Checkpoint, new_embedder, new_generator
from posereid.training.loop import Job, StepReport, open_run
from posereid.training.networks import Networks, ramp, set_up, update
from posereid.training.samples import pose_pair_sheet

SAMPLE_ROWS = 8
UNNAMED_CAMERAS = 0.1
"""Share of pairs whose camera a generator with camera codes is not told, so that it can draw for any camera."""


def train_joint(recipe: Recipe, crops: CropTable, out: Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train generator, D_I, D_P and E together on the training split of ``crops`` (equation 14).

    Each step: the generator draws I_g for a batch of pose pairs; the discriminators learn to tell I_t from I_g;
    then generator and embedder take one step on the weighted sum of all terms, the discriminators frozen.
    Writes ``out`` with recipe, log, samples and checkpoints, and returns it. Raises InputError, and Stopped where a
    signal ends it early.
    """
    train = crops.train
    require_joint_scale(train)
    labels = class_labels(train)
    settings = recipe.joint
    sampler = PosePairSampler(train, settings.batch_size, settings.pairs_per_epoch, recipe.seed)
    _require_terms(recipe.losses)
    require_divisible(sampler, recipe.runtime.devices * recipe.runtime.num_nodes)
    with open_run(out, recipe, "joint", train, resume=resume) as run:
        networks = build_networks(recipe, len(labels), run.fabric, run.checkpoint, run.state)
        images = CropImages(train, recipe.data.height, recipe.data.width, cache_gb=recipe.runtime.crop_cache_gb)
        samples = _sample_batch(images, labels, sampler)
        run.train(
            Job(
                settings=settings,
                networks=networks,
                sampler=sampler,
                dataset=PosePairs(images, labels, settings.flip, stand_ins=True),
                crops=train,
                step=lambda batch, step: training_step(networks, batch, recipe, step, run.fabric),
                images=settings.batch_size,
                identities=tuple(labels),
                facts={
                    "training_crops": len(train),
                    "pose_pairs": sampler.pairs,
                    "pairs_per_epoch": settings.pairs_per_epoch,
                },
                sample=lambda step: _save_samples(networks, samples, out, step, run.fabric),
                sample_every=settings.sample_every,
            ),
            progress=progress,
        )
    return out


def _require_terms(losses: LossRecipe) -> None:
    others = losses.reconstruction or losses.semantic or losses.quartet or losses.identity
    judged = losses.appearance_discriminator or losses.pose_discriminator
    if not others and (losses.adversarial_warmup or not (losses.adversarial and judged)):
        raise InputError(
            "losses: no term is left to learn from, at least until adversarial_warmup is over; give reconstruction, "
            "semantic, quartet or identity a weight above 0."
        )


def training_step(networks: Networks, batch: PosePairBatch, recipe: Recipe, step: int, fabric: Fabric) -> StepReport:
    """One step of equation 14; reports the unweighted value of every term that took part.

    Raises BadStepError, with the weights that would have learnt from it unchanged, when a term or gradient is not
    finite or a term larger than ``safety.largest_loss``.
    """
    losses, largest = recipe.losses, recipe.safety.largest_loss
    source, target = (_image(pixels, recipe) for pixels in (batch.source_images, batch.target_images))
    source_pose, target_pose = (_ordered(pose, recipe) for pose in (batch.source_poses, batch.target_poses))
    generated = networks.wrapped["generator"](source, source_pose, target_pose, _told_cameras(batch, recipe))

    conditions = {
        name: condition
        for name, condition in (("appearance_discriminator", source), ("pose_discriminator", target_pose))
        if name in networks.plain
    }
    adversarial_weight = losses.adversarial * ramp(step - 1, losses.adversarial_warmup, losses.adversarial_ramp)
    if not adversarial_weight:
        conditions = {}
    logged = discriminator_step(networks, conditions, target, generated.detach(), fabric, largest)
    terms = joint_terms(networks, batch, conditions, source, target, generated, recipe, step, fabric)
    later = ramp(step - 1, losses.semantic_warmup, losses.semantic_ramp)
    # A sum is its mean times the number of elements; the terms themselves stay means, so that logs can be compared.
    pixels, dimensions = (target[0].numel(), EMBEDDING) if losses.norms == "sum" else (1, 1)
    weights = {
        "adversarial": adversarial_weight,
        "reconstruction": losses.reconstruction * pixels,
        "structure": losses.structure * losses.reconstruction,
        "semantic": losses.semantic * later * dimensions,
        "perceptual": losses.perceptual * later,
        "quartet": losses.quartet,
        "identity": losses.identity,
    }
    learners = {name: each for name, each in networks.optimisers.items() if name in ("generator", "embedder")}
    logged |= update(fabric, weighted_sum(terms, weights), terms, learners, largest)
    return StepReport(logged, _variety(generated, target))


def _told_cameras(batch: PosePairBatch, recipe: Recipe) -> Tensor | None:
    """The targets' cameras, 0 for a random share of them; None for a generator that does not look at them."""
    if not recipe.generator.cameras:
        return None
    cameras = batch.target_cameras
    draws = own_rows(torch.rand(process_count() * len(cameras), device=cameras.device))
    return torch.where(draws < UNNAMED_CAMERAS, 0, cameras)


@torch.no_grad()
def _variety(generated: Tensor, target: Tensor) -> float:
    """How much generated crops differ from each other, as a share of how much their targets do; over all processes."""
    drawn, wanted = (_deviation(images.float()) for images in (generated, target))
    return (drawn / wanted.clamp(min=1e-6)).item()


def _deviation(images: Tensor) -> Tensor:
    """The standard deviation over a batch of each pixel, its mean over pixels."""
    sums = torch.stack([images.sum(0), images.square().sum(0)])
    mean, square = (sum_over_processes(sums) / (process_count() * len(images))).unbind()
    return (square - mean.square()).clamp(min=0).sqrt().mean()


def discriminator_step(
    networks: Networks,
    conditions: dict[str, Tensor],
    target: Tensor,
    generated: Tensor,
    fabric: Fabric,
    largest_loss: float,
) -> dict[str, float]:
    """D_I and D_P learn to tell (condition, I_t) from (condition, I_g): equations 7 and 8."""
    if not conditions:
        return {}
    terms = {}
    for name, condition in conditions.items():
        judge = networks.wrapped[name]
        terms[name] = discriminator_loss(judge(condition, target).float(), judge(condition, generated).float())
    learners = {name: networks.optimisers[name] for name in conditions}
    return update(fabric, torch.stack(list(terms.values())).sum(), terms, learners, largest_loss)


def joint_terms(
    networks: Networks,
    batch: PosePairBatch,
    conditions: dict[str, Tensor],
    source: Tensor,
    target: Tensor,
    generated: Tensor,
    recipe: Recipe,
    step: int,
    fabric: Fabric,
) -> dict[str, Tensor]:
    """The terms of equation 14, unweighted, for one batch and its generated images."""
    losses = recipe.losses
    terms = {}
    if losses.reconstruction:
        terms["reconstruction"] = reconstruction_loss(generated.float(), target)
    if losses.structure:
        with torch.autocast(target.device.type, enabled=False):
            terms["structure"] = structure_loss(generated.float(), target)
    if conditions:
        judges = [networks.bare[name] for name in conditions]
        with fabric.autocast(), _frozen(judges):
            terms["adversarial"] = torch.stack(
                [
                    generator_adversarial_loss(judge(condition, generated).float(), saturating=losses.saturating)
                    for judge, condition in zip(judges, conditions.values(), strict=True)
                ]
            ).sum()
    if "embedder" in networks.plain:
        # One pass over the three kinds of image: normalisation sees real and generated crops together. Row by row
        # I_c, I_t, I_g, so that several processes' rows follow each other as one process's do.
        images = torch.stack([source, target, generated.to(source.dtype)], dim=1).flatten(0, 1)
        images = _ordered(images, recipe)
        embedded = networks.wrapped["embedder"](images)
        embedding, logits = embedded["embedding"].float(), embedded["logits"].float()
        labels = batch.labels.repeat_interleave(3)
        if losses.semantic:
            sources, drawings = embedding[0::3], embedding[2::3]
            if not losses.semantic_teaches_embedder:
                # The same batch again, because normalisation makes an embedding depend on its neighbours.
                embedder = networks.bare["embedder"]
                with fabric.autocast(), _frozen([embedder]), _statistics_kept(embedder):
                    sources, drawings = sources.detach(), embedder(images)["embedding"].float()[2::3]
            terms["semantic"] = semantic_consistency_loss(sources, drawings)
        if losses.perceptual:
            terms["perceptual"] = _perceptual(
                cast(Embedder, networks.plain["embedder"]), generated.to(source.dtype), target, recipe, fabric
            )
        if losses.quartet:
            terms["quartet"] = _batch_quartet_loss(embedding, labels, losses, recipe.seed, step)
        if losses.identity:
            learned = torch.arange(len(labels), device=labels.device) % 3 < (
                3 if losses.embedder_learns_generated else 2
            )
            terms["identity"] = identity_loss(logits[learned], labels[learned])
    return terms


def _perceptual(embedder: Embedder, generated: Tensor, target: Tensor, recipe: Recipe, fabric: Fabric) -> Tensor:
    """How far E, as it stands, sees drawn crops from their targets; E itself does not learn from it."""
    training = embedder.training
    # With running statistics: those of drawn crops alone would take out what sets them apart.
    embedder.eval()
    with fabric.autocast(), _frozen([embedder]):
        drawn = embedder.perceived(_ordered(generated, recipe))
        with torch.no_grad():
            wanted = embedder.perceived(_ordered(target, recipe))
    embedder.train(training)
    return perceptual_loss([maps.float() for maps in drawn], [maps.float() for maps in wanted])


def _batch_quartet_loss(embedding: Tensor, labels: Tensor, losses: LossRecipe, seed: int, step: int) -> Tensor:
    """Equation 12 over quartets drawn from the whole batch, all processes' rows, in the order I_c, I_t, I_g."""
    embedding, labels = whole_batch(embedding), whole_batch(labels)
    generated = losses.quartets_with_generated and losses.embedder_learns_generated
    drawable = [generated or position % 3 < 2 for position in range(len(labels))]
    quartets = batch_quartets(labels.tolist(), drawable, np.random.default_rng((seed, 4, step)))
    anchor, positive, negative, other = embedding[torch.from_numpy(quartets).to(embedding.device)].unbind(1)
    return quartet_loss(anchor, positive, negative, other, losses.margin, losses.intra_margin)


@contextmanager
def _frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalisation by the batch's own statistics, from which the running ones do not learn."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _ordered(maps: Tensor, recipe: Recipe) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last) if recipe.runtime.channels_last else maps


def _image(pixels: Tensor, recipe: Recipe) -> Tensor:
    return _ordered(to_float(pixels), recipe)


def build_networks(
    recipe: Recipe,
    identities: int,
    fabric: Fabric,
    checkpoint: Checkpoint | None = None,
    state: Mapping[str, Any] | None = None,
) -> Networks:
    """The recipe's networks that have a term to learn from, seeded or from a checkpoint, set up for training."""
    torch.manual_seed(recipe.seed)
    losses, joint = recipe.losses, recipe.joint
    width, layers = recipe.discriminator.base_width, recipe.discriminator.layers
    plain: dict[str, nn.Module] = {"generator": new_generator(recipe)}
    if losses.adversarial and losses.appearance_discriminator:
        plain["appearance_discriminator"] = appearance_discriminator(width, layers)
    if losses.adversarial and losses.pose_discriminator:
        plain["pose_discriminator"] = pose_discriminator(width, layers)
    if losses.semantic or losses.perceptual or losses.quartet or losses.identity:
        plain["embedder"] = new_embedder(recipe, identities, pretrained=False if checkpoint else None)
    schedules = {
        name: {"generator": joint.generator, "embedder": joint.embedder}.get(name, joint.discriminators)
        for name in plain
    }
    return set_up(plain, schedules, recipe, fabric, checkpoint, state)


def _sample_batch(images: CropImages, labels: dict[int, int], sampler: PosePairSampler) -> PosePairBatch:
    rows = sampler.batch(0, 0)[:SAMPLE_ROWS]
    pairs = PosePairs(images, labels, stand_ins=True)
    return pairs[[(0, int(source), int(target)) for source, target in rows]]


@torch.no_grad()
def _save_samples(networks: Networks, batch: PosePairBatch, out: Path, step: int, fabric: Fabric) -> None:
    if not fabric.is_global_zero:
        return
    generator = networks.plain["generator"].eval()
    device_batch = batch.to(fabric.device)
    drawn = generator(
        to_float(device_batch.source_images),
        device_batch.source_poses,
        device_batch.target_poses,
        device_batch.target_cameras,
    )
    generator.train()
    save_png(out / "samples" / f"step-{step:08d}.png", pose_pair_sheet(batch, drawn))
