"""What both training loops share: Fabric, the run folder, schedules, logs."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from posereid.config import OptimiserRecipe, Recipe, RuntimeRecipe, read_recipe, write_recipe
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.files import require_free, write_atomically
from posereid.progress import progress_bar
from posereid.training.checkpoint import Checkpoint, checkpoint_folders, latest_checkpoint

RECIPE_FILE = "recipe.yaml"
LOG_FILE = "log.jsonl"


def pick_device(runtime: RuntimeRecipe) -> torch.device:
    """The device for work in one process. Raises InputError when the recipe names one that is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if runtime.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[runtime.device]:
        raise InputError(f"runtime.device is {runtime.device}, and PyTorch finds no such device here; use auto or cpu.")
    return torch.device(runtime.device)


def launch_fabric(runtime: RuntimeRecipe) -> Fabric:
    """Fabric with its processes started: one device, or many with gradients averaged between them.

    Normalisation statistics stay each process's own while it trains: their buffers are averaged when a
    checkpoint is written (:func:`average_buffers`). The discriminators run twice before one backward pass, which
    DDP only allows without broadcasting buffers.
    """
    accelerator = pick_device(runtime).type
    strategy: str | Strategy = "auto"
    if runtime.devices * runtime.num_nodes > 1:
        strategy = DDPStrategy(
            broadcast_buffers=False,
            find_unused_parameters=True,
            process_group_backend="nccl" if accelerator == "cuda" else "gloo",
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        precision=runtime.precision,
        strategy=strategy,
    )
    fabric.launch()
    return fabric


def is_first_process() -> bool:
    """Whether this process is the one that writes; launchers tell the others their rank."""
    return not getattr(rank_zero_only, "rank", 0)


def open_run(out: Path, recipe: Recipe, stage: str, train: CropTable, *, resume: bool) -> Checkpoint | None:
    """Look whether a run may be written to ``out``: new or empty, or with ``resume`` begun by the same recipe.

    ``stage`` and ``train`` are what the run trains and on which crops; a checkpoint must agree with both.
    Returns the checkpoint to go on from, None to begin at the first step. Writes nothing. Raises InputError.
    """
    if not resume:
        if is_first_process():
            require_free(out, "a new run (without --resume)")
        return None
    if not (out / RECIPE_FILE).is_file():
        raise InputError(f"{out} holds no run to resume; leave --resume out to begin one.")
    if difference := _first_difference(read_recipe(out / RECIPE_FILE), recipe):
        raise InputError(
            f"{out} was begun with another recipe than the one given ({difference}); resume with its own "
            f"{out / RECIPE_FILE}, or choose another folder."
        )
    if not checkpoint_folders(out):
        return None
    checkpoint = latest_checkpoint(out)
    if checkpoint.stage != stage:
        raise InputError(f"{out} is a {checkpoint.stage} run and cannot go on as a {stage} run; choose another folder.")
    if checkpoint.training_set != train.fingerprint:
        raise InputError(
            f"{out} was begun on other training crops than the {len(train)} given, "
            f"{sum(crop.generated for crop in train)} of them generated; resume with the data set, and the generated "
            "set, that it was begun on."
        )
    return checkpoint


def claim_run(out: Path, recipe: Recipe) -> None:
    """Write the recipe into a run folder, once nothing is left that could refuse the run."""
    if is_first_process():
        write_atomically(out / RECIPE_FILE, write_recipe(recipe))


def _first_difference(own: Recipe, given: Recipe) -> str | None:
    for section in type(own).model_fields:
        if section == "runtime":
            continue
        old, new = getattr(own, section), getattr(given, section)
        if old == new:
            continue
        if not isinstance(old, BaseModel):
            return f"{section} is {new}, was {old}"
        name = next(name for name in type(old).model_fields if getattr(old, name) != getattr(new, name))
        return f"{section}.{name} is {getattr(new, name)}, was {getattr(old, name)}"
    return None


def make_optimiser(module: nn.Module, recipe: OptimiserRecipe) -> torch.optim.Adam:
    """Adam with the recipe's settings."""
    return torch.optim.Adam(
        module.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )


def learning_rate(recipe: OptimiserRecipe, step: int, steps: int) -> float:
    """Constant for ``constant_share`` of the run, then linear to zero (section 4: 400 of 800 epochs)."""
    constant = recipe.constant_share * steps
    if step < constant:
        return recipe.learning_rate
    return recipe.learning_rate * (steps - step) / (steps - constant)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = value


def ramp(step: int, warmup: int, length: int) -> float:
    """0 before ``warmup``, then linear to 1 over ``length`` steps (at once when 0)."""
    if step < warmup:
        return 0.0
    return 1.0 if length == 0 else min(1.0, (step - warmup + 1) / length)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step of one process, so that dropout does not depend on what came before."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + rank)


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and after the last one, happens after ``step``."""
    return step % every == 0 or step == steps


def run_facts(recipe: Recipe, steps: int, fabric: Fabric) -> dict[str, Any]:
    """What the first record of every log says."""
    return {
        "seed": recipe.seed,
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "steps": steps,
    }


def require_finite(terms: Mapping[str, torch.Tensor], step: int) -> None:
    """Raise InputError naming the step and the first loss term that is not a finite number."""
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise InputError(
                f"training stopped at step {step}: the {name} loss is {value.item()}; begin a new run with "
                "a lower learning rate or weight for it."
            )


@torch.no_grad()
def average_buffers(fabric: Fabric, modules: Mapping[str, nn.Module]) -> None:
    """Replace each process's normalisation statistics by their mean over the processes."""
    if fabric.world_size == 1:
        return
    for module in modules.values():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(cast(Tensor, fabric.all_reduce(buffer, reduce_op="mean")))


@torch.no_grad()
def weight_difference(fabric: Fabric, modules: Mapping[str, nn.Module]) -> float:
    """Largest difference of any weight or buffer between two processes; 0 when they agree."""
    flat = torch.cat([v.float().flatten() for m in modules.values() for v in m.state_dict().values()])
    gathered = cast(Tensor, fabric.all_gather(flat)).reshape(fabric.world_size, -1)
    return (gathered - gathered[0]).abs().max().item()


class RunLog:
    """Progress bar, TensorBoard and ``log.jsonl`` of one run; only the first process writes.

    A resumed run drops logged steps that it is going to repeat.
    """

    def __init__(self, run: Path, stage: str, steps: int, first_step: int, fabric: Fabric, show: bool) -> None:
        self.stage, self.active = stage, fabric.is_global_zero
        self.bar = progress_bar(steps, stage, "step", show=show and self.active, first=first_step)
        self._mark = (time.perf_counter(), first_step)
        if not self.active:
            return
        path = run / LOG_FILE
        if path.exists():
            kept = [line for line in _lines(path) if _logged_step(line) <= first_step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step or None)

    def step(self) -> None:
        """One step is done."""
        self.bar.update()

    def write(self, step: int, record: Mapping[str, Any], images_per_step: int = 0) -> None:
        """Write one record; with ``images_per_step`` also the rate since the last one."""
        if not self.active:
            return
        record = {"step": step, "stage": self.stage, **record}
        if images_per_step:
            now = time.perf_counter()
            elapsed, done = now - self._mark[0], step - self._mark[1]
            self._mark = (now, step)
            record["images_per_second"] = round(done * images_per_step / max(elapsed, 1e-9), 2)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(f"{self.stage}/{name}", value, step)
        losses = {n.removeprefix("loss_"): f"{v:.3f}" for n, v in record.items() if n.startswith("loss_")}
        self.bar.set_postfix(losses, refresh=False)

    def write_terms(
        self, step: int, terms: Mapping[str, Tensor], *, epoch: int, learning_rate: float, images: int
    ) -> None:
        """Write the loss terms of a step of ``images`` images."""
        record: dict[str, Any] = {f"loss_{name}": round(term.item(), 6) for name, term in terms.items()}
        self.write(step, record | {"epoch": epoch, "learning_rate": learning_rate}, images_per_step=images)

    def close(self) -> None:
        """Flush and end."""
        self.bar.close()
        if self.active:
            self._file.close()
            self._board.close()


def _logged_step(line: str) -> float:
    """The step of a log line; beyond any step where the line is broken, as a killed run may leave its last one."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from path.read_text(encoding="utf-8").splitlines()


def optimiser_states(optimisers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """Resume state of several optimisers, tensors and plain values only."""
    return {name: optimiser.state_dict() for name, optimiser in optimisers.items()}


def set_threads() -> None:
    """Use as many threads as the process may run on; containers often show more cores than they grant."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
