"""The loop that all kinds of training share: a run folder, steps, logs, checkpoints, and what ends it early."""

import errno
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from lightning_fabric import Fabric
from pydantic import BaseModel
from torch.utils.data import Dataset

from posereid.config import (
    READ_BY,
    JointRecipe,
    PoseEstimatorRecipe,
    Recipe,
    ReidRecipe,
    Stage,
    read_recipe,
    write_recipe,
)
from posereid.data.batches import Batch, load_batches
from posereid.data.crops import Crop, CropTable
from posereid.data.sampling import BatchSource, ShardedBatches
from posereid.errors import InputError, SharedError, Stopped
from posereid.files import is_free, require_free, write_atomically
from posereid.processes import another_process_ended, process_count
from posereid.training.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    clear_left_overs,
    latest_checkpoint,
    resume_state,
    save_checkpoint,
)
from posereid.training.devices import ending_with_the_first, is_first_process, launch_fabric, pick_precision
from posereid.training.log import RunLog
from posereid.training.networks import Networks, seed_step, weight_difference
from posereid.training.run_file import RUN_FILE, RunOrigin, people_of, read_run_file, write_run_file
from posereid.training.run_folder import lock_run
from posereid.training.watch import BadStepError, CollapseWatch, ProcessorWatch, StopRequest, UnreadableCrops

RECIPE_FILE = "recipe.yaml"
BAD_STEPS_FILE = "bad-steps.jsonl"
_PLACES = {"root": None, "layout": "auto", "keypoints": None}

B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class StepReport:
    """What one step tells the log: the unweighted value of each term, a mean over processes.

    ``variety`` is how much generated crops differ from each other, as a share of how much their targets do.
    """

    losses: dict[str, float]
    variety: float | None = None


@dataclass(frozen=True)
class Job(Generic[B]):
    """What one kind of training brings to the loop.

    ``step`` learns from one batch and raises BadStepError before it changes a weight by what it cannot learn from.
    ``crops`` are those that the sampler's positions count, ``images`` the images of a step over all processes.
    ``before_saving`` may add to the log; ``sample`` is called every ``sample_every`` steps.
    """

    settings: JointRecipe | ReidRecipe | PoseEstimatorRecipe
    networks: Networks
    sampler: BatchSource
    dataset: Dataset[B]
    crops: Sequence[Crop]
    step: Callable[[B, int], StepReport]
    images: int
    identities: tuple[int, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    before_saving: Callable[[], Mapping[str, Any]] | None = None
    sample: Callable[[int], None] | None = None
    sample_every: int = 0


@dataclass
class TrainingRun:
    """A run folder that this process may write to, the processes that train, and the checkpoint to go on from.

    ``started_from`` is the run, if any, whose weights this one began with, then or now.
    """

    out: Path
    recipe: Recipe
    stage: Stage
    train_crops: CropTable
    fabric: Fabric
    checkpoint: Checkpoint | None
    started_from: RunOrigin | None
    state: Mapping[str, Any]
    stop: StopRequest
    skipped: int = 0
    step: int = 0

    def train(self, job: Job[B], *, progress: bool = True) -> None:
        """Take the job's steps from the checkpoint on, writing recipe, log and checkpoints.

        Raises InputError when a step cannot be learnt from, too many crops cannot be read or the disk is full, and
        Stopped (a KeyboardInterrupt) after SIGINT or SIGTERM. In each of these cases a checkpoint remains from which
        ``--resume`` goes on.
        """
        steps = job.settings.epochs * job.sampler.batches_per_epoch
        first = self.checkpoint.step if self.checkpoint else 0
        batches = ShardedBatches(
            job.sampler, steps, first_step=first, rank=self.fabric.global_rank, world_size=self.fabric.world_size
        )
        pinned = self.fabric.device.type == "cuda"
        loader = load_batches(job.dataset, batches, self.recipe.runtime.workers, pinned=pinned)
        self.skipped, self.step = int(self.state.get("skipped", 0)), first
        try:
            if is_first_process():
                begun = RunOrigin(
                    stage=self.stage,
                    training_set=self.train_crops.fingerprint,
                    started_from=self.started_from,
                    people=people_of(self.train_crops),
                )
                write_run_file(self.out, begun)
                write_atomically(self.out / RECIPE_FILE, write_recipe(self.recipe))
            log = RunLog(self.out, self.stage, steps, first, self.fabric, progress)
            try:
                log.write(first, self._facts(steps) | dict(job.facts))
                try:
                    self._steps(job, log, log.batches(loader), first, steps)
                except (InputError, Stopped) as error:
                    with suppress(OSError):
                        log.write(self.step, {"stopped": str(error)})
                    raise
                if self.fabric.world_size > 1:
                    log.write(steps, {"weight_difference": weight_difference(job.networks.plain)})
            finally:
                with suppress(OSError):  # of a full disk, which has been complained about
                    log.close()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            raise InputError(
                f"{self.out} cannot be written to ({error.strerror}); the newest checkpoint there is whole: make room "
                "and go on with --resume."
            ) from error

    def _steps(self, job: Job[B], log: RunLog, batches: Iterator[B], first: int, steps: int) -> None:
        collapse = CollapseWatch(self.recipe.safety.collapse_steps)
        unreadable = UnreadableCrops(job.crops, self.recipe.safety.unreadable_share)
        processor = ProcessorWatch(torch.get_num_threads()) if self.fabric.device.type == "cpu" else None
        settings = job.settings
        for number, batch in enumerate(batches, first + 1):
            for line in unreadable.note(batch.unreadable):
                log.warn(number, line)
            self.step = number
            seed_step(self.recipe.seed, number)
            job.networks.set_learning_rates(number - 1, steps)
            report = self._one_step(job, log, batch, number)
            log.step()
            logging, saving = (due(number, every, steps) for every in (settings.log_every, settings.checkpoint_every))
            if logging or saving:
                for line in unreadable.exchange():
                    log.warn(number, line)
                if unreadable.too_many():
                    self._save(job, log, number)
                    unreadable.complain()
            if logging and processor and (starved := processor.observe(log.waited)):
                log.warn(number, starved)
            if report:
                for line in collapse.observe(report.losses, report.variety):
                    log.warn(number, line)
                if logging:
                    self._log(job, log, report, number, len(unreadable.found))
            if job.sample and due(number, job.sample_every, steps):
                job.sample(number)
            asked = self.stop.agreed(self.fabric)
            if saving or asked:
                self._save(job, log, number)
            if asked and number < steps:
                name = signal.Signals(asked).name
                raise Stopped(
                    asked, f"{name}: stopped after step {number} of {steps}, and saved; --resume goes on in {self.out}."
                )

    def _one_step(self, job: Job[B], log: RunLog, batch: B, number: int) -> StepReport | None:
        """One step; None where it could not be learnt from and the recipe allows to leave it out."""
        statistics = job.networks.buffers()
        before = [buffer.clone() for buffer in statistics]
        try:
            return job.step(batch.to(self.fabric.device), number)
        except BadStepError as bad:
            with torch.no_grad():
                for buffer, value in zip(statistics, before, strict=True):
                    buffer.copy_(value)
            names = self._crop_names(job, number)
            self._note_bad_step(number, bad, names)
            some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            if self.skipped < self.recipe.safety.skip_steps:
                self.skipped += 1
                log.warn(number, f"{bad}; left out, {self.skipped} of {self.recipe.safety.skip_steps} times ({some})")
                return None
            self._save(job, log, number)
            raise SharedError(
                f"training stopped at step {number}: {bad} on the crops {some}; {self.out / BAD_STEPS_FILE} names all, "
                "and the state without this step is saved: look at these crops and go on with --resume, let some "
                "steps be left out with --safety.skip-steps, or begin anew with a lower learning rate."
            ) from None

    def _crop_names(self, job: Job[B], number: int) -> list[str]:
        rows = job.sampler.batch(*divmod(number - 1, job.sampler.batches_per_epoch))
        return list(dict.fromkeys(job.crops[position].name for position in rows.flatten().tolist()))

    def _note_bad_step(self, number: int, bad: BadStepError, names: list[str]) -> None:
        if is_first_process():
            record = {"step": number, "what": bad.what, "value": str(bad.value), "crops": names}
            with (self.out / BAD_STEPS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _log(self, job: Job[B], log: RunLog, report: StepReport, number: int, unreadable: int) -> None:
        record: dict[str, Any] = {f"loss_{name}": round(value, 6) for name, value in report.losses.items()}
        record["epoch"] = (number - 1) // job.sampler.batches_per_epoch
        record |= {
            f"learning_rate_{name}": optimiser.param_groups[0]["lr"]
            for name, optimiser in job.networks.optimisers.items()
        }
        if report.variety is not None:
            record["variety"] = round(report.variety, 4)
        record |= {name: count for name, count in (("skipped", self.skipped), ("unreadable", unreadable)) if count}
        log.write(number, record, images_per_step=job.images)

    def _save(self, job: Job[B], log: RunLog, number: int) -> None:
        if job.before_saving:
            log.write(number, job.before_saving())
        problem = None
        if self.fabric.is_global_zero:
            try:
                save_checkpoint(
                    self.out,
                    step=number,
                    stage=self.stage,
                    recipe=self.recipe,
                    identities=job.identities,
                    training_set=self.train_crops.fingerprint,
                    parts=job.networks.plain,
                    resume_state=job.networks.optimiser_states() | {"skipped": self.skipped},
                    keep=job.settings.keep_checkpoints,
                )
            except InputError as error:
                problem = str(error)
        # The others wait here for the first, and would wait on if only it gave up.
        if problem := self.fabric.broadcast(problem):
            raise SharedError(problem)

    def _facts(self, steps: int) -> dict[str, Any]:
        """What the first record of every log says."""
        return {
            "seed": self.recipe.seed,
            "device": str(self.fabric.device),
            "precision": pick_precision(self.recipe.runtime),
            "processes": self.fabric.world_size,
            "steps": steps,
            "resumed": bool(self.checkpoint),
        }


@contextmanager
def open_run(
    out: Path, recipe: Recipe, stage: Stage, train: CropTable, *, resume: bool, started_from: RunOrigin | None = None
) -> Iterator[TrainingRun]:
    """A run that may be written to ``out``: new or empty, or with ``resume`` perhaps begun, by the same recipe.

    ``stage`` and ``train`` are what the run trains and on which crops; a checkpoint must agree with both.
    ``started_from`` is where a new run has its weights from; one that is resumed has that on record. The folder
    is locked against other writers while the block lasts, and SIGINT and SIGTERM become requests to stop. Starts the
    other processes. Raises InputError.
    """
    _checkpoint_to_go_on_from(out, recipe, stage, train, resume=resume)
    stop = StopRequest()
    with stop.listening(), lock_run(out) if is_first_process() else nullcontext(), ending_with_the_first():
        if is_first_process():
            clear_left_overs(out)
        fabric = launch_fabric(recipe.runtime)
        # Once more, under the lock and in every process: another may have written until a moment ago, and a checkpoint
        # that was set aside is back in its place.
        checkpoint = _checkpoint_to_go_on_from(out, recipe, stage, train, resume=resume)
        state = resume_state(checkpoint) if checkpoint else {}
        if resume and (begun := read_run_file(out)):
            started_from = begun.started_from
        if resume and not checkpoint and is_first_process():
            print(
                f"posereid: {out} holds no checkpoint yet; training begins at its first step.",
                file=sys.stderr,
            )
        try:
            yield TrainingRun(out, recipe, stage, train, fabric, checkpoint, started_from, state, stop)
        except RuntimeError as error:
            if sentence := _ended_by_another(error, out):
                raise InputError(sentence) from error
            raise


def _ended_by_another(error: RuntimeError, out: Path) -> str | None:
    """What to say where the end of another process is what ends this one."""
    if another_process_ended(error):
        return (
            f"another of the {process_count()} processes that train {out} has ended, and this one with it; its "
            "own message says why. --resume goes on from the newest checkpoint."
        )
    if str(error).startswith("DataLoader worker"):
        return (
            f"{out}: a process that decodes crops has been ended from outside, often for want of memory (the system's "
            "log may say), and training with it; lower runtime.workers and go on with --resume."
        )
    return None


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and after the last one, happens after ``step``."""
    return step % every == 0 or step == steps


def _checkpoint_to_go_on_from(
    out: Path, recipe: Recipe, stage: Stage, train: CropTable, *, resume: bool
) -> Checkpoint | None:
    """None where the run begins at its first step, be it new or stopped before its first checkpoint."""
    if not resume:
        if is_first_process():
            require_free(out, "a new run (without --resume)")
        return None
    if not (out / RECIPE_FILE).is_file():
        # A queue that gives the same command again may have killed it before it wrote its recipe.
        if is_free(out, RUN_FILE):
            return None
        raise InputError(f"{out} holds no run to resume, but something else; choose a new or empty folder to begin in.")
    if difference := _first_difference(read_recipe(out / RECIPE_FILE), recipe, stage):
        raise InputError(
            f"{out} was begun with another recipe than the one given ({difference}); resume with its own "
            f"{out / RECIPE_FILE}, or choose another folder."
        )
    checkpoint = latest_checkpoint(out) if checkpoint_folders(out) else None
    # What a run was that has no checkpoint yet, its run.json says, unless it was killed before it said so.
    begun = checkpoint or read_run_file(out)
    if begun is None:
        return None
    if begun.stage != stage:
        raise InputError(f"{out} is a {begun.stage} run and cannot go on as a {stage} run; choose another folder.")
    if begun.training_set != train.fingerprint:
        raise InputError(
            f"{out} was begun on other training crops than the {len(train)} given, "
            f"{sum(crop.generated for crop in train)} of them generated; resume with the data set, and the generated "
            "set, that it was begun on."
        )
    return checkpoint


def _first_difference(own: Recipe, given: Recipe, stage: Stage) -> str | None:
    """The first thing that decides this stage's weights in which two recipes differ, as ``field is NEW, was OLD``."""
    for place in READ_BY[stage]:
        section, _, field_alone = place.partition(".")
        if section in ("runtime", "safety"):
            continue
        old, new = getattr(own, section), getattr(given, section)
        if field_alone:
            old, new = getattr(old, field_alone), getattr(new, field_alone)
        if section == "data":
            # The set may have been moved or packed into shards; whether it is the same, its fingerprint tells.
            old, new = (recipe.data.model_copy(update=_PLACES) for recipe in (own, given))
        if old == new:
            continue
        if not isinstance(old, BaseModel):
            return f"{place} is {new}, was {old}"
        name = next(name for name in type(old).model_fields if getattr(old, name) != getattr(new, name))
        return f"{section}.{name} is {getattr(new, name)}, was {getattr(old, name)}"
    return None
