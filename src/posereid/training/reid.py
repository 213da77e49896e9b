"""Training of E on real and generated crops: quartet and identity losses (section 3.7)."""

from pathlib import Path

import torch
from lightning_fabric import Fabric

from posereid.config import Recipe
from posereid.data.batches import CropImages, QuartetBatch, Quartets, class_labels, to_float
from posereid.data.crops import CropTable
from posereid.data.sampling import QuartetSampler, require_divisible
from posereid.errors import InputError
from posereid.losses import identity_loss, quartet_loss, weighted_sum
from posereid.training.checkpoint import latest_checkpoint, load_weights, new_embedder
from posereid.training.loop import Job, StepReport, open_run
from posereid.training.networks import Networks, set_up, update


def train_reid(
    recipe: Recipe,
    crops: CropTable,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train E on the training split of ``crops``, generated crops included where the table has them.

    Every step draws random quartets from the whole set (section 5.1) and minimises
    λ_quartet L_quartet + λ_id L_id (equations 12 and 13). ``start`` is a run whose embedder to begin from.
    Writes ``out`` with recipe, log and checkpoints, and returns it. Raises InputError, and Stopped where a signal ends
    it early.
    """
    if not recipe.losses.quartet and not recipe.losses.identity:
        raise InputError("losses.quartet and losses.identity are both 0; re-ID training needs one of them.")
    train = crops.train
    labels = class_labels(train)
    settings = recipe.reid
    sampler = QuartetSampler(
        train,
        settings.quartets_per_batch,
        settings.quartets_per_epoch,
        recipe.seed,
        generated=settings.generated_in_quartets,
    )
    require_divisible(sampler, recipe.runtime.devices * recipe.runtime.num_nodes)
    if resume and start:
        raise InputError("--start and --resume exclude each other: a resumed run goes on from its own weights.")
    with open_run(out, recipe, "reid", train, resume=resume) as run:
        torch.manual_seed(recipe.seed)
        loaded = run.checkpoint or (latest_checkpoint(start) if start else None)
        embedder = new_embedder(recipe, len(labels), pretrained=False if loaded else None)
        if loaded and not run.checkpoint:
            load_weights(embedder, loaded.folder / "embedder.safetensors")
        networks = set_up(
            {"embedder": embedder}, {"embedder": settings.optimiser}, recipe, run.fabric, run.checkpoint, run.state
        )
        images = CropImages(train, recipe.data.height, recipe.data.width, cache_gb=recipe.runtime.crop_cache_gb)
        generated = sum(crop.generated for crop in train)
        run.train(
            Job(
                settings=settings,
                networks=networks,
                sampler=sampler,
                dataset=Quartets(images, labels, settings.flip, settings.padding, stand_ins=True),
                crops=train,
                step=lambda batch, _: training_step(networks, batch, recipe, run.fabric),
                images=sampler.batch(0, 0).size,
                identities=tuple(labels),
                facts={"real_crops": len(train) - generated, "generated_crops": generated},
            ),
            progress=progress,
        )
    return out


def training_step(networks: Networks, batch: QuartetBatch, recipe: Recipe, fabric: Fabric) -> StepReport:
    """One step on quartets; reports both terms unweighted. Raises BadStepError as the joint step does."""
    images = to_float(batch.images.flatten(0, 1))
    if recipe.runtime.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    embedded = networks.wrapped["embedder"](images)
    embedding = embedded["embedding"].float().unflatten(0, tuple(batch.labels.shape))
    anchor, positive, negative, other = embedding[:, :4].unbind(1)
    losses = recipe.losses
    terms = {
        "quartet": quartet_loss(anchor, positive, negative, other, losses.margin, losses.intra_margin),
        "identity": identity_loss(embedded["logits"].float(), batch.labels.flatten()),
    }
    weights = {"quartet": losses.quartet, "identity": losses.identity}
    terms = {name: term for name, term in terms.items() if weights[name]}
    objective = weighted_sum(terms, weights)
    return StepReport(update(fabric, objective, terms, networks.optimisers, recipe.safety.largest_loss))
