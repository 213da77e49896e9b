"""Training of E on real and generated crops: quartet and identity losses (section 3.7)."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from posereid.config import Recipe, ReidRecipe
from posereid.data.batches import CropImages, QuartetBatch, Quartets, class_labels, to_float
from posereid.data.crops import CropTable
from posereid.data.sampling import QuartetSampler, require_divisible
from posereid.errors import InputError
from posereid.losses import identity_loss, quartet_loss, weighted_sum
from posereid.messages import complaint
from posereid.training.checkpoint import Checkpoint, latest_checkpoint, load_weights, new_embedder
from posereid.training.loop import Job, StepReport, open_run
from posereid.training.networks import Networks, set_up, update
from posereid.training.run_file import RunOrigin, crop_mark


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
    λ_quartet L_quartet + λ_id L_id (equations 12 and 13). What generated crops are labelled, how many there are in a
    batch and whether training begins with them alone, ``recipe.reid`` says; the labels say nothing to a set without
    generated crops. ``start`` is a run whose embedder to begin from, which ``run.json`` puts on record; a run that is
    resumed from a checkpoint must have begun from it, and no longer needs it.
    Writes ``out`` with recipe, log and checkpoints, and returns it. Raises InputError, and Stopped where a signal ends
    it early.
    """
    if not recipe.losses.quartet and not recipe.losses.identity:
        raise InputError("losses.quartet and losses.identity are both 0; re-ID training needs one of them.")
    train = crops.train
    labels = class_labels(train)
    settings = recipe.reid
    _require_possible_warmup(settings)
    sampler = QuartetSampler(
        train,
        settings.quartets_per_batch,
        settings.quartets_per_epoch,
        recipe.seed,
        # Who may be anybody is nobody's positive.
        generated=settings.generated_in_quartets and settings.generated_labels != "uniform",
        share=settings.generated_share,
        warmup=settings.generated_warmup,
    )
    require_divisible(sampler, recipe.runtime.devices * recipe.runtime.num_nodes)
    beginning = _start_from(start, recipe, train) if start else None
    origin = RunOrigin.of(beginning) if beginning else None
    with open_run(out, recipe, "reid", train, resume=resume, started_from=origin) as run:
        begun = run.started_from
        if origin and not (begun and (begun.stage, begun.training_set) == (origin.stage, origin.training_set)):
            raise InputError(
                f"{out} was begun from {'another run' if begun else 'fresh weights'}, not from {start}; "
                "leave --start out to go on with it."
            )
        if run.started_from and not (run.checkpoint or beginning):
            raise InputError(
                f"{out} was stopped before its first checkpoint and had started from another run, whose weights are "
                "not here; give --start, as at first, beside --resume."
            )
        torch.manual_seed(recipe.seed)
        loaded = run.checkpoint or beginning
        embedder = new_embedder(recipe, len(labels), pretrained=False if loaded else None)
        if beginning and not run.checkpoint:
            load_weights(embedder, beginning.folder / "embedder.safetensors")
        networks = set_up(
            {"embedder": embedder}, {"embedder": settings.optimiser}, recipe, run.fabric, run.checkpoint, run.state
        )
        images = CropImages(train, recipe.data.height, recipe.data.width, cache_gb=recipe.runtime.crop_cache_gb)
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
                facts=_facts(train, sampler),
            ),
            progress=progress,
        )
    return out


def _start_from(start: Path, recipe: Recipe, train: CropTable) -> Checkpoint:
    """The checkpoint to begin from. Raises InputError for one that saw people of this set whom this run holds out."""
    checkpoint = latest_checkpoint(start)
    if not recipe.data.validation_share:
        return checkpoint
    marks = [crop_mark(train, crop) for crop in train]
    origin = RunOrigin.of(checkpoint)
    strangers: set[str] = set()
    for run in (origin, *origin.starts()):
        shared = run.people_in(marks)
        # Whoever has nobody in common with this run saw another set, whatever its numbers are.
        if shared:
            strangers |= set(run.people) - shared
    here, there = (root.resolve() if root else None for root in (recipe.data.root, checkpoint.recipe.data.root))
    if not origin.people and here == there:
        # A checkpoint that was copied out of its run, or an older one, knows its people by number alone.
        strangers |= {str(identity) for identity in set(checkpoint.identities) - {crop.identity for crop in train}}
    if strangers:
        raise InputError(
            f"{start} was trained on {len(strangers)} identities that this run does not train on, for example "
            f"{min(strangers, key=int)}, and data.validation_share is {recipe.data.validation_share:g}: it would bring "
            "along what it learnt of people who are held out; start from a run of the same share."
        )
    return checkpoint


def _require_possible_warmup(settings: ReidRecipe) -> None:
    """Raise InputError where the warm-up on generated crops contradicts the other settings."""
    place, found = "reid.generated_warmup", f"{settings.generated_warmup} epochs on generated crops alone"
    if not settings.generated_warmup:
        return
    if settings.generated_labels == "uniform":
        remedy = 'set reid.generated_labels to "source" or "smoothed", or the warm-up to 0'
        raise complaint(place, f"{found} whose labels are uniform", "labels to learn from", remedy)
    if not settings.generated_in_quartets:
        remedy = "set reid.generated_in_quartets, or the warm-up to 0"
        raise complaint(place, f"{found}, which stay out of quartets", "generated crops in quartets", remedy)
    if settings.generated_warmup >= settings.epochs:
        raise complaint(place, found, f"fewer than the {settings.epochs} of reid.epochs", "shorten the warm-up")


def _facts(train: CropTable, sampler: QuartetSampler) -> dict[str, int | float]:
    """What the log's first record says of generated crops; their number per batch is a mean, the warm-up left out."""
    generated = sum(crop.generated for crop in train)
    facts: dict[str, int | float] = {"real_crops": len(train) - generated, "generated_crops": generated}
    if generated:
        batches = [sampler.batch(sampler.warmup, step) for step in range(min(sampler.batches_per_epoch, 50))]
        facts["generated_per_batch"] = round(float(np.mean([sampler.is_generated[b].sum() for b in batches])), 2)
        facts["identities_without_generated"] = sampler.identities_without_generated
    return facts


def _label_smoothing(batch: QuartetBatch, settings: ReidRecipe) -> Float[Tensor, " b"] | None:
    """The ε of each image's label: real crops keep theirs, generated ones as ``generated_labels`` says."""
    if settings.generated_labels == "source":
        return None
    return batch.generated.flatten() * (1.0 if settings.generated_labels == "uniform" else settings.label_smoothing)


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
        "identity": identity_loss(
            embedded["logits"].float(), batch.labels.flatten(), _label_smoothing(batch, recipe.reid)
        ),
    }
    weights = {"quartet": losses.quartet, "identity": losses.identity}
    terms = {name: term for name, term in terms.items() if weights[name]}
    objective = weighted_sum(terms, weights)
    return StepReport(update(fabric, objective, terms, networks.optimisers, recipe.safety.largest_loss))
