"""What may go wrong while a run trains, noticed while it happens: bad steps, collapse, unreadable crops, signals."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

from posereid.data.crops import Crop
from posereid.errors import SharedError
from posereid.processes import process_count

_WON = 0.02
"""A discriminator's loss below this means that it is never wrong; it begins at 2 log 2 = 1.39."""

_ALIKE = 0.1
"""Generated crops that differ from each other less than this share of what the targets do are all alike."""

_STARVED = 0.6
"""Threads that get less than this share of the time are kept waiting; alone, steps keep them busier."""

_LONG_ENOUGH = 30.0
"""Seconds over which the share is taken."""


class BadStepError(Exception):
    """A step whose losses or gradients cannot be learnt from; no weight was changed by them."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(what, value)
        self.what, self.value = what, value

    def __str__(self) -> str:
        return f"the {self.what} is {self.value:g}"


class StopRequest:
    """Whether SIGINT (Ctrl-C) or SIGTERM has arrived; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals as requests inside this block; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def agreed(self, fabric: Fabric) -> int:
        """The signal that any of the processes has received, 0 for none; every process learns the same."""
        if process_count() == 1:
            return self.signal_number
        number = torch.tensor(float(self.signal_number), device=fabric.device)
        return int(cast(Tensor, fabric.all_reduce(number, reduce_op="max")).item())


class CollapseWatch:
    """Tells when a GAN has collapsed, once each time and for each way in which it has.

    Two signs, each over ``steps`` steps without a break: a discriminator's loss at zero, so that it has nothing left to
    tell the generator; and generated crops that are all alike.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._since: dict[str, int] = {}

    def observe(self, losses: Mapping[str, float], variety: float | None) -> list[str]:
        """What has lasted for ``steps`` steps now, a sentence each.

        ``losses`` are a step's terms, ``variety`` how much generated crops differ from each other, as a share of how
        much their targets do; None where nothing was generated.
        """
        found = []
        for name in ("appearance_discriminator", "pose_discriminator"):
            if self._lasts(name, name in losses and losses[name] < _WON):
                found.append(
                    f"the {name.replace('_', ' ')}'s loss has been below {_WON} for {self.steps} steps: it is never "
                    "wrong and teaches the generator nothing; lower joint.discriminators.learning_rate or begin with a "
                    "longer losses.adversarial_warmup"
                )
        if self._lasts("variety", variety is not None and variety < _ALIKE):
            found.append(
                f"for {self.steps} steps generated crops have differed from each other by less than {_ALIKE:.0%} of "
                "what their targets do: the generator draws the same picture for everybody; lower losses.adversarial "
                "or raise losses.reconstruction"
            )
        return found

    def _lasts(self, name: str, present: bool) -> bool:
        self._since[name] = self._since.get(name, 0) + 1 if present else 0
        return self._since[name] == self.steps


class ProcessorWatch:
    """Tells, once, when a run on the CPU gets far less processor time than its threads ask for.

    ``wall`` and ``processor`` are clocks in seconds, the second one of all of this process's threads.
    """

    def __init__(
        self,
        threads: int,
        *,
        wall: Callable[[], float] = time.perf_counter,
        processor: Callable[[], float] = time.process_time,
    ) -> None:
        self.threads, self._wall, self._processor = threads, wall, processor
        self._mark, self._waited, self._told = (wall(), processor()), 0.0, False

    def observe(self, waited: float) -> str | None:
        """The sentence, if it is time for it; ``waited`` are seconds since the last call in which data were awaited."""
        self._waited += waited
        now = self._wall(), self._processor()
        asked = now[0] - self._mark[0] - self._waited
        if self._told or asked < _LONG_ENOUGH:
            return None
        share = (now[1] - self._mark[1]) / (asked * self.threads)
        self._mark, self._waited = now, 0.0
        if share >= _STARVED:
            return None
        self._told = True
        return (
            f"in the last {asked:.0f} s training got {share:.0%} of the processor time that its {self.threads} threads "
            "ask for: other programs or a virtual machine's host (column st of vmstat) take the rest, or this process "
            "may use fewer processors than it has threads; end the others, or set OMP_NUM_THREADS to the processors "
            "that are free"
        )


class UnreadableCrops:
    """Counts the training crops that could not be read, and ends a run that loses too many."""

    def __init__(self, crops: Sequence[Crop], largest_share: float) -> None:
        self.crops, self.largest_share = crops, largest_share
        self.found: dict[int, str] = {}

    def note(self, unreadable: Mapping[int, str]) -> list[str]:
        """Take a batch's unreadable crops, by position; returns a sentence for each that is new."""
        new = {position: problem for position, problem in unreadable.items() if position not in self.found}
        self.found |= new
        return [f"{problem} Another crop of its identity takes its place." for problem in new.values()]

    def exchange(self) -> list[str]:
        """Tell every process what the others have found; returns a sentence for each crop that is new here.

        All must call it together.
        """
        if process_count() == 1:
            return []
        everybody: list[Any] = [None] * process_count()
        dist.all_gather_object(everybody, self.found)
        return [line for found in everybody for line in self.note(found)]

    def too_many(self) -> bool:
        """Whether more than the allowed share of the training crops is unreadable."""
        return len(self.found) > self.largest_share * len(self.crops)

    def complain(self) -> NoReturn:
        """Raise an InputError about them, in every process alike."""
        examples = ", ".join(self.crops[position].name for position in sorted(self.found)[:3])
        raise SharedError(
            f"{len(self.found)} of {len(self.crops)} training crops cannot be read, for example {examples}, and "
            f"safety.unreadable_share allows {self.largest_share:.2%}; the state is saved: repair the files (posereid "
            "check names them all) and go on with --resume, or allow more."
        )
