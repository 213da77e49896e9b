"""Training of E on real and generated crops: quartet and identity losses (section 3.7)."""

from pathlib import Path

import torch

from posereid.config import Recipe
from posereid.data.batches import CropImages, Quartets, batch_loader, class_labels, to_float
from posereid.data.crops import CropTable
from posereid.data.sampling import QuartetSampler, ShardedBatches
from posereid.errors import InputError
from posereid.losses import identity_loss, quartet_loss, weighted_sum
from posereid.training.checkpoint import (
    latest_checkpoint,
    load_weights,
    new_embedder,
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
    require_finite,
    run_facts,
    seed_step,
    set_learning_rate,
    weight_difference,
)


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
    Writes ``out`` with recipe, log and checkpoints, and returns it. Raises InputError.
    """
    weights = {"quartet": recipe.losses.quartet, "identity": recipe.losses.identity}
    if not any(weights.values()):
        raise InputError("losses.quartet and losses.identity are both 0; re-ID training needs one of them.")
    train = crops.train
    labels = class_labels(train)
    sampler = QuartetSampler(
        train,
        recipe.reid.quartets_per_batch,
        recipe.reid.quartets_per_epoch,
        recipe.seed,
        generated=recipe.reid.generated_in_quartets,
    )
    if resume and start:
        raise InputError("--start and --resume exclude each other: a resumed run goes on from its own weights.")
    checkpoint = open_run(out, recipe, "reid", train, resume=resume)
    fabric = launch_fabric(recipe.runtime)
    steps = recipe.reid.epochs * sampler.batches_per_epoch
    first_step = checkpoint.step if checkpoint else 0
    batches = ShardedBatches(
        sampler, steps, first_step=first_step, rank=fabric.global_rank, world_size=fabric.world_size
    )
    images = CropImages(train, recipe.data.height, recipe.data.width)
    loader = batch_loader(
        Quartets(images, labels, recipe.reid.flip, recipe.reid.padding), batches, recipe.runtime.workers
    )

    torch.manual_seed(recipe.seed)
    loaded = checkpoint or (latest_checkpoint(start) if start else None)
    embedder = new_embedder(recipe, len(labels), pretrained=False if loaded else None)
    if loaded:
        load_weights(embedder, loaded.folder / "embedder.safetensors")
    if recipe.runtime.channels_last:
        embedder.to(memory_format=torch.channels_last)
    network, optimiser = fabric.setup(embedder.train(), make_optimiser(embedder, recipe.reid.optimiser))
    if checkpoint:
        optimiser.load_state_dict(resume_state(checkpoint)["embedder"])

    claim_run(out, recipe)
    log = RunLog(out, "reid", steps, first_step, fabric, progress)
    generated = sum(crop.generated for crop in train)
    sizes = {"real_crops": len(train) - generated, "generated_crops": generated}
    log.write(first_step, run_facts(recipe, steps, fabric) | sizes)
    try:
        for step, batch in enumerate(loader, first_step + 1):
            seed_step(recipe.seed, step, fabric.global_rank)
            set_learning_rate(optimiser, learning_rate(recipe.reid.optimiser, step - 1, steps))
            batch = batch.to(fabric.device)
            embedded = network(to_float(batch.images.flatten(0, 1)))
            embedding = embedded["embedding"].float().unflatten(0, tuple(batch.labels.shape))
            anchor, positive, negative, other = embedding[:, :4].unbind(1)
            terms = {
                "quartet": quartet_loss(
                    anchor, positive, negative, other, recipe.losses.margin, recipe.losses.intra_margin
                ),
                "identity": identity_loss(embedded["logits"].float(), batch.labels.flatten()),
            }
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(weighted_sum({n: t for n, t in terms.items() if weights[n]}, weights))
            optimiser.step()
            log.step()
            saving = due(step, recipe.reid.checkpoint_every, steps)
            logging = due(step, recipe.reid.log_every, steps)
            if saving or logging:
                require_finite(terms, step)
            if logging:
                log.write_terms(
                    step,
                    terms,
                    epoch=(step - 1) // sampler.batches_per_epoch,
                    learning_rate=optimiser.param_groups[0]["lr"],
                    images=fabric.world_size * batch.labels.numel(),
                )
            if saving:
                average_buffers(fabric, {"embedder": embedder})
                if fabric.is_global_zero:
                    save_checkpoint(
                        out,
                        step=step,
                        stage="reid",
                        recipe=recipe,
                        identities=tuple(labels),
                        training_set=train.fingerprint,
                        parts={"embedder": embedder},
                        resume_state=optimiser_states({"embedder": optimiser}),
                        keep=recipe.reid.keep_checkpoints,
                    )
                fabric.barrier()
        if fabric.world_size > 1:
            log.write(steps, {"weight_difference": weight_difference(fabric, {"embedder": embedder})})
    finally:
        log.close()
    return out
