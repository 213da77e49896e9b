"""Which devices and how many processes training runs on."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy
from lightning_fabric.utilities.rank_zero import rank_zero_only

from posereid.config import RuntimeRecipe
from posereid.errors import InputError

_FIRST = "POSEREID_FIRST_PROCESS"
_FEW_PROCESSES = 8


def pick_device(runtime: RuntimeRecipe) -> torch.device:
    """The device for work in one process. Raises InputError when the recipe names one that is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if runtime.device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if not available[runtime.device]:
        raise InputError(f"runtime.device is {runtime.device}, and PyTorch finds no such device here; use auto or cpu.")
    return torch.device(runtime.device)


def pick_precision(runtime: RuntimeRecipe) -> Literal["32-true", "bf16-mixed"]:
    """The recipe's precision; for auto bf16-mixed on GPUs and CPUs with bfloat16 units, else float32.

    A CPU without them emulates bfloat16 and is slower with it than without.
    """
    if runtime.precision != "auto":
        return runtime.precision
    device = pick_device(runtime).type
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        abilities = torch.cpu.get_capabilities() if device == "cpu" else {}
        native = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def launch_fabric(runtime: RuntimeRecipe) -> Fabric:
    """Fabric with its processes started: one device, or many with gradients averaged between them.

    Under torchrun or SLURM the processes are there already and are joined. Normalisation statistics are those of the
    whole batch (:func:`posereid.processes.share_normalisation`), so no buffers are broadcast; the discriminators run
    twice before one backward pass, which DDP would not allow with broadcasting.
    """
    _require_as_many_as_started(runtime)
    accelerator = pick_device(runtime).type
    if accelerator == "cpu":
        _require_few_enough(runtime.devices)
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
        precision=pick_precision(runtime),
        strategy=strategy,
    )
    fabric.launch()
    return fabric


def _require_as_many_as_started(runtime: RuntimeRecipe) -> None:
    """Processes that a launcher started must be the recipe's, or each would train by itself in the same folder."""
    for variable in ("WORLD_SIZE", "SLURM_NTASKS"):
        count = os.environ.get(variable, "")
        if variable == "SLURM_NTASKS" and os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
            continue  # as Fabric sees it: an interactive shell, whose tasks are not ours
        if count.isdecimal() and int(count) > 1 and int(count) != runtime.devices * runtime.num_nodes:
            raise InputError(
                f"{variable} says that {count} processes were started, and the recipe wants {runtime.devices} on each "
                f"of {runtime.num_nodes} machines; give --devices and --num-nodes (--num-processes, when drawing) so "
                "that both agree."
            )


def _require_few_enough(processes: int) -> None:
    """Each process takes a gigabyte; a number too large by mistake would take the machine down."""
    most = max(_FEW_PROCESSES, os.cpu_count() or 1)
    if processes > most:
        raise InputError(
            f"{processes} processes were asked for on the CPU, and this machine has {os.cpu_count()} cores; ask for at "
            f"most {most}."
        )


@contextmanager
def ending_with_the_first() -> Iterator[None]:
    """End this process if the one that started it ends inside this block: it might wait half an hour for it."""
    joined = threading.Event()

    def watch(first: int) -> None:
        while not joined.wait(1):
            if os.getppid() != first:
                print("posereid: the first process of this run has ended, and this one with it.", file=sys.stderr)
                os._exit(2)

    if is_first_process():
        # Those that it starts inherit this; torchrun and SLURM look after their processes themselves.
        os.environ[_FIRST] = str(os.getpid())
    elif _FIRST in os.environ:
        threading.Thread(target=watch, args=(int(os.environ[_FIRST]),), daemon=True).start()
    try:
        yield
    finally:
        joined.set()
        if is_first_process():
            # What this process starts later is none of this run's.
            os.environ.pop(_FIRST, None)


def is_first_process() -> bool:
    """Whether this process is the one that writes; launchers tell the others their rank."""
    return not getattr(rank_zero_only, "rank", 0)


def set_threads() -> None:
    """Use as many threads as the process may run on; containers often show more cores than they grant."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
