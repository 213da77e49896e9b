"""Joint training of generator, discriminators and embedder: the loop of equation 14."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from posereid.config import LossRecipe, OptimiserRecipe, Recipe
from posereid.data.batches import (
    CropImages,
    PosePairBatch,
    PosePairs,
    batch_loader,
    class_labels,
    collate,
    to_float,
)
from posereid.data.crops import CropTable
from posereid.data.sampling import PosePairSampler, ShardedBatches, batch_quartets
from posereid.discriminator import appearance_discriminator, pose_discriminator
from posereid.errors import InputError
from posereid.losses import (
    discriminator_loss,
    generator_adversarial_loss,
    identity_loss,
    quartet_loss,
    reconstruction_loss,
    semantic_consistency_loss,
    weighted_sum,
)
from posereid.pictures import save_png
from posereid.training.checkpoint import (
    Checkpoint,
    load_weights,
    new_embedder,
    new_generator,
    resume_state,
    save_checkpoint,
)
from posereid.training.loop import (
    RunLog,
    average_buffers,
    claim_run,
    due,
    launch_fabric,
    learning_rate,
    make_optimiser,
    open_run,
    optimiser_states,
    ramp,
    require_finite,
    run_facts,
    seed_step,
    set_learning_rate,
    weight_difference,
)
from posereid.training.samples import pose_pair_sheet

SAMPLE_ROWS = 8


@dataclass
class Networks:
    """The four networks, as Fabric wrapped them for training, and their optimisers by the same names.

    ``plain`` holds the modules themselves: what is saved, and what a step uses that must not gather gradients.
    """

    plain: dict[str, nn.Module]
    wrapped: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]


def train_joint(recipe: Recipe, crops: CropTable, out: Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train generator, D_I, D_P and E together on the training split of ``crops`` (equation 14).

    Each step: the generator draws I_g for a batch of pose pairs; the discriminators learn to tell I_t from I_g;
    then generator and embedder take one step on the weighted sum of all terms, the discriminators frozen.
    Writes ``out`` with recipe, log, samples and checkpoints, and returns it. Raises InputError.
    """
    train = crops.train
    labels = class_labels(train)
    sampler = PosePairSampler(train, recipe.joint.batch_size, recipe.joint.pairs_per_epoch, recipe.seed)
    _require_terms(recipe.losses)
    _require_quartets(recipe, sampler)
    checkpoint = open_run(out, recipe, "joint", train, resume=resume)
    fabric = launch_fabric(recipe.runtime)
    images = CropImages(train, recipe.data.height, recipe.data.width)
    steps = recipe.joint.epochs * sampler.batches_per_epoch
    first_step = checkpoint.step if checkpoint else 0
    batches = ShardedBatches(
        sampler, steps, first_step=first_step, rank=fabric.global_rank, world_size=fabric.world_size
    )
    loader = batch_loader(PosePairs(images, labels, recipe.joint.flip), batches, recipe.runtime.workers)
    networks = build_networks(recipe, len(labels), fabric, checkpoint)
    samples = _sample_batch(images, labels, sampler)
    claim_run(out, recipe)
    log = RunLog(out, "joint", steps, first_step, fabric, progress)
    sizes = {
        "training_crops": len(train),
        "pose_pairs": sampler.pairs,
        "pairs_per_epoch": recipe.joint.pairs_per_epoch,
    }
    log.write(first_step, run_facts(recipe, steps, fabric) | sizes)

    try:
        for step, batch in enumerate(loader, first_step + 1):
            seed_step(recipe.seed, step, fabric.global_rank)
            _set_learning_rates(networks, recipe, step - 1, steps)
            terms = training_step(networks, batch.to(fabric.device), recipe, step, fabric)
            log.step()
            saving = due(step, recipe.joint.checkpoint_every, steps)
            logging = due(step, recipe.joint.log_every, steps)
            if saving or logging:
                require_finite(terms, step)
            if logging:
                log.write_terms(
                    step,
                    terms,
                    epoch=(step - 1) // sampler.batches_per_epoch,
                    learning_rate=networks.optimisers["generator"].param_groups[0]["lr"],
                    images=recipe.joint.batch_size,
                )
            if due(step, recipe.joint.sample_every, steps):
                _save_samples(networks, samples, out, step, fabric)
            if saving:
                _save(networks, out, recipe, step, tuple(labels), train.fingerprint, fabric)
        if fabric.world_size > 1:
            log.write(steps, {"weight_difference": weight_difference(fabric, networks.plain)})
    finally:
        log.close()
    return out


def _require_terms(losses: LossRecipe) -> None:
    others = losses.reconstruction or losses.semantic or losses.quartet or losses.identity
    judged = losses.appearance_discriminator or losses.pose_discriminator
    if not others and (losses.adversarial_warmup or not (losses.adversarial and judged)):
        raise InputError(
            "losses: no term is left to learn from, at least until adversarial_warmup is over; give reconstruction, "
            "semantic, quartet or identity a weight above 0."
        )


def _require_quartets(recipe: Recipe, sampler: PosePairSampler) -> None:
    processes = recipe.runtime.devices * recipe.runtime.num_nodes
    share = recipe.joint.batch_size // processes
    if recipe.losses.quartet and min(share, sampler.identities_per_batch) < 3:
        raise InputError(
            f"joint.batch_size is {recipe.joint.batch_size}, {share} pairs for each of {processes} processes, and "
            f"quartets need 3 identities in each; choose at least {3 * processes}."
        )


def training_step(
    networks: Networks, batch: PosePairBatch, recipe: Recipe, step: int, fabric: Fabric
) -> dict[str, Tensor]:
    """One step of equation 14; returns the unweighted value of every term that took part."""
    losses = recipe.losses
    source, target = (_image(pixels, recipe) for pixels in (batch.source_images, batch.target_images))
    source_pose, target_pose = (_ordered(pose, recipe) for pose in (batch.source_poses, batch.target_poses))
    generated = networks.wrapped["generator"](source, source_pose, target_pose)

    conditions = {
        name: condition
        for name, condition in (("appearance_discriminator", source), ("pose_discriminator", target_pose))
        if name in networks.plain
    }
    adversarial_weight = losses.adversarial * ramp(step - 1, losses.adversarial_warmup, losses.adversarial_ramp)
    if not adversarial_weight:
        conditions = {}
    logged = discriminator_step(networks, conditions, target, generated.detach(), fabric)
    terms = joint_terms(networks, batch, conditions, source, target, generated, recipe, step, fabric)
    weights = {
        "adversarial": adversarial_weight,
        "reconstruction": losses.reconstruction,
        "semantic": losses.semantic * ramp(step - 1, losses.semantic_warmup, losses.semantic_ramp),
        "quartet": losses.quartet,
        "identity": losses.identity,
    }
    learners = [networks.optimisers[name] for name in ("generator", "embedder") if name in networks.optimisers]
    for optimiser in learners:
        optimiser.zero_grad(set_to_none=True)
    fabric.backward(weighted_sum(terms, weights))
    for optimiser in learners:
        optimiser.step()
    return logged | {name: term.detach() for name, term in terms.items()}


def discriminator_step(
    networks: Networks, conditions: dict[str, Tensor], target: Tensor, generated: Tensor, fabric: Fabric
) -> dict[str, Tensor]:
    """D_I and D_P learn to tell (condition, I_t) from (condition, I_g): equations 7 and 8."""
    terms = {}
    for name, condition in conditions.items():
        judge = networks.wrapped[name]
        loss = discriminator_loss(judge(condition, target).float(), judge(condition, generated).float())
        networks.optimisers[name].zero_grad(set_to_none=True)
        fabric.backward(loss)
        networks.optimisers[name].step()
        terms[name] = loss.detach()
    return terms


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
    if conditions:
        judges = [networks.plain[name] for name in conditions]
        with fabric.autocast(), _frozen(judges):
            terms["adversarial"] = torch.stack(
                [
                    generator_adversarial_loss(judge(condition, generated).float(), saturating=losses.saturating)
                    for judge, condition in zip(judges, conditions.values(), strict=True)
                ]
            ).sum()
    if "embedder" in networks.plain:
        # One pass over the three kinds of image: normalisation sees real and generated crops together.
        embedded = networks.wrapped["embedder"](torch.cat([source, target, generated.to(source.dtype)]))
        embedding, logits = embedded["embedding"].float(), embedded["logits"].float()
        source_embedding, _, generated_embedding = embedding.chunk(3)
        labels = batch.labels.repeat(3)
        if losses.semantic:
            terms["semantic"] = semantic_consistency_loss(source_embedding, generated_embedding)
        if losses.quartet:
            terms["quartet"] = _batch_quartet_loss(embedding, labels, losses, recipe.seed, step, fabric.global_rank)
        if losses.identity:
            terms["identity"] = identity_loss(logits, labels)
    return terms


def _batch_quartet_loss(
    embedding: Tensor, labels: Tensor, losses: LossRecipe, seed: int, step: int, rank: int
) -> Tensor:
    real = len(labels) // 3 * 2
    drawable = [losses.quartets_with_generated or position < real for position in range(len(labels))]
    quartets = batch_quartets(labels.tolist(), drawable, np.random.default_rng((seed, 4, step, rank)))
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


def _ordered(maps: Tensor, recipe: Recipe) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last) if recipe.runtime.channels_last else maps


def _image(pixels: Tensor, recipe: Recipe) -> Tensor:
    return _ordered(to_float(pixels), recipe)


def build_networks(recipe: Recipe, identities: int, fabric: Fabric, checkpoint: Checkpoint | None) -> Networks:
    """The recipe's networks that have a term to learn from, seeded or from a checkpoint, set up for training."""
    torch.manual_seed(recipe.seed)
    losses = recipe.losses
    plain: dict[str, nn.Module] = {"generator": new_generator(recipe)}
    if losses.adversarial and losses.appearance_discriminator:
        plain["appearance_discriminator"] = appearance_discriminator(
            recipe.discriminator.base_width, recipe.discriminator.layers
        )
    if losses.adversarial and losses.pose_discriminator:
        plain["pose_discriminator"] = pose_discriminator(recipe.discriminator.base_width, recipe.discriminator.layers)
    if losses.semantic or losses.quartet or losses.identity:
        pretrained = False if checkpoint else None
        plain["embedder"] = new_embedder(recipe, identities, pretrained=pretrained)
    state = resume_state(checkpoint) if checkpoint else {}
    wrapped: dict[str, nn.Module] = {}
    optimisers: dict[str, torch.optim.Optimizer] = {}
    for name, module in plain.items():
        if checkpoint:
            load_weights(module, checkpoint.folder / f"{name}.safetensors")
        if recipe.runtime.channels_last:
            module.to(memory_format=torch.channels_last)
        module.train()
        optimiser = make_optimiser(module, _optimiser_recipe(recipe, name))
        wrapped[name], optimisers[name] = fabric.setup(module, optimiser)
        if checkpoint:
            optimisers[name].load_state_dict(state[name])
    return Networks(plain, wrapped, optimisers)


def _optimiser_recipe(recipe: Recipe, network: str) -> OptimiserRecipe:
    joint = recipe.joint
    return {"generator": joint.generator, "embedder": joint.embedder}.get(network, joint.discriminators)


def _set_learning_rates(networks: Networks, recipe: Recipe, step: int, steps: int) -> None:
    for name, optimiser in networks.optimisers.items():
        set_learning_rate(optimiser, learning_rate(_optimiser_recipe(recipe, name), step, steps))


def _save(
    networks: Networks,
    out: Path,
    recipe: Recipe,
    step: int,
    identities: tuple[int, ...],
    training_set: str,
    fabric: Fabric,
) -> None:
    average_buffers(fabric, networks.plain)
    if fabric.is_global_zero:
        save_checkpoint(
            out,
            step=step,
            stage="joint",
            recipe=recipe,
            identities=identities,
            training_set=training_set,
            parts=networks.plain,
            resume_state=optimiser_states(networks.optimisers),
            keep=recipe.joint.keep_checkpoints,
        )
    fabric.barrier()


def _sample_batch(images: CropImages, labels: dict[int, int], sampler: PosePairSampler) -> PosePairBatch:
    rows = sampler.batch(0, 0)[:SAMPLE_ROWS]
    pairs = PosePairs(images, labels)
    return collate([pairs[(0, int(source), int(target))] for source, target in rows])


@torch.no_grad()
def _save_samples(networks: Networks, batch: PosePairBatch, out: Path, step: int, fabric: Fabric) -> None:
    if not fabric.is_global_zero:
        return
    generator = networks.plain["generator"].eval()
    device_batch = batch.to(fabric.device)
    drawn = generator(to_float(device_batch.source_images), device_batch.source_poses, device_batch.target_poses)
    generator.train()
    save_png(out / "samples" / f"step-{step:08d}.png", pose_pair_sheet(batch, drawn))
