"""Networks set up for training, their optimisers and schedules, and the one place where weights change."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from posereid.config import OptimiserRecipe, Recipe, RuntimeRecipe
from posereid.errors import InputError
from posereid.processes import process_count, share_normalisation, sum_over_processes, whole_batch
from posereid.training.checkpoint import Checkpoint, load_weights
from posereid.training.narrow_maps import spare_narrow_maps
from posereid.training.watch import BadStepError


@dataclass(frozen=True)
class Networks:
    """Networks by name, their optimisers and learning-rate schedules by the same names.

    ``plain`` holds the modules themselves: what is saved. ``bare`` may be compiled and gathers no gradients between
    processes; ``wrapped`` does and belongs to its optimiser.
    """

    plain: dict[str, nn.Module]
    bare: dict[str, nn.Module]
    wrapped: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    schedules: dict[str, OptimiserRecipe]

    def set_learning_rates(self, step: int, steps: int) -> None:
        """Give every optimiser its rate for the step after ``step``."""
        for name, optimiser in self.optimisers.items():
            set_learning_rate(optimiser, learning_rate(self.schedules[name], step, steps))

    def optimiser_states(self) -> dict[str, Any]:
        """Resume state of the optimisers, tensors and plain values only."""
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def buffers(self) -> list[Tensor]:
        """Normalisation statistics and whatever else a forward pass changes."""
        return [buffer for module in self.plain.values() for buffer in module.buffers()]


def set_up(
    plain: Mapping[str, nn.Module],
    schedules: Mapping[str, OptimiserRecipe],
    recipe: Recipe,
    fabric: Fabric,
    checkpoint: Checkpoint | None = None,
    optimiser_states: Mapping[str, Any] | None = None,
) -> Networks:
    """Modules made ready to train: filled from a checkpoint, laid out, compiled, distributed, each with its Adam.

    ``optimiser_states`` are those that go with the checkpoint. Raises InputError when it does not fit.
    """
    networks = Networks(dict(plain), {}, {}, {}, dict(schedules))
    compiling = recipe.runtime.compile and compiler_works(fabric.device)
    for name, module in plain.items():
        if checkpoint:
            load_weights(module, checkpoint.folder / f"{name}.safetensors")
        if recipe.runtime.channels_last:
            module.to(memory_format=torch.channels_last)
        share_normalisation(module, fabric.device)
        spare_narrow_maps(module)
        optimiser = make_optimiser(module.train(), schedules[name], recipe.runtime)
        bare = cast(nn.Module, torch.compile(module)) if compiling else module
        wrapped, networks.optimisers[name] = fabric.setup(bare, optimiser)
        networks.bare[name], networks.wrapped[name] = bare, wrapped
        if checkpoint:
            _fill(networks.optimisers[name], (optimiser_states or {}).get(name), checkpoint, name)
    return networks


def _fill(optimiser: torch.optim.Optimizer, state: Any, checkpoint: Checkpoint, name: str) -> None:
    try:
        optimiser.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{checkpoint.folder}: the state of the {name}'s optimiser does not fit its weights "
            f"({type(error).__name__}); go on from another checkpoint."
        ) from error


def compiler_works(device: torch.device) -> bool:
    """Whether ``torch.compile`` can make code here; says so where it cannot, and training goes on without."""
    try:
        torch.compile(lambda values: values.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler, headers or backend each raise something else
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(
            f"runtime.compile: torch.compile does not work here ({reason}); training goes on without.", file=sys.stderr
        )
        return False
    # What compiles here may still meet an operation that does not: that part then runs as it is written.
    torch._dynamo.config.suppress_errors = True
    return True


def make_optimiser(module: nn.Module, recipe: OptimiserRecipe, runtime: RuntimeRecipe) -> torch.optim.Adam:
    """Adam with the recipe's settings."""
    return torch.optim.Adam(
        module.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=runtime.fused_adam,
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
    return min(1.0, (step - warmup + 1) / length) if length else 1.0


def seed_step(seed: int, step: int) -> None:
    """Seed torch for one step, alike in every process, so that dropout does not depend on what came before."""
    torch.manual_seed(seed * 1_000_003 + step)


def update(
    fabric: Fabric,
    objective: Tensor,
    terms: Mapping[str, Tensor],
    optimisers: Mapping[str, torch.optim.Optimizer],
    largest_loss: float,
) -> dict[str, float]:
    """One step of ``optimisers`` down the gradient of ``objective``; returns ``terms``, means over the processes.

    Nothing is changed, and BadStepError raised in every process, when a term or a gradient is not finite or a term is
    larger than ``largest_loss``. To look at the values it waits for the device.
    """
    for optimiser in optimisers.values():
        optimiser.zero_grad(set_to_none=True)
    fabric.backward(objective)
    norms = {f"gradient of the {name}": gradient_norm(optimiser) for name, optimiser in optimisers.items()}
    means = torch.stack([value.detach().float().to(objective.device) for value in (*terms.values(), *norms.values())])
    values = dict(zip((*terms, *norms), (sum_over_processes(means) / process_count()).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value) or (name in terms and abs(value) > largest_loss):
            raise BadStepError(name if name in norms else f"{name} loss", value)
    for optimiser in optimisers.values():
        optimiser.step()
    return {name: values[name] for name in terms}


def gradient_norm(optimiser: torch.optim.Optimizer) -> Tensor:
    """Length of the gradient of all weights of an optimiser; 0 where none has any."""
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


@torch.no_grad()
def weight_difference(modules: Mapping[str, nn.Module]) -> float:
    """Largest difference of any weight or buffer between two processes; 0 when they agree."""
    flat = torch.cat([v.float().flatten() for m in modules.values() for v in m.state_dict().values()])
    gathered = whole_batch(flat[None])
    return (gathered - gathered[0]).abs().max().item()
