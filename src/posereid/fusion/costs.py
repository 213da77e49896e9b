"""What the parts of a fused embedding cost in time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class PartCost:
    """Wall-clock seconds that one part took, and the crops that it was made for."""

    seconds: float = 0.0
    crops: int = 0

    @property
    def milliseconds(self) -> float:
        """For one crop; NaN where none was counted."""
        return 1000 * self.seconds / self.crops if self.crops else float("nan")

    def __add__(self, other: "PartCost") -> "PartCost":
        return PartCost(self.seconds + other.seconds, self.crops + other.crops)


@dataclass(frozen=True)
class PartCosts:
    """What each part of the embeddings cost; crops without a pose count for the first two alone.

    ``own`` is decoding and embedding a crop, ``flipped`` embedding its mirror image, ``drawing`` drawing it in all
    poses, ``judging`` D_I's word on the drawings, ``posed`` embedding them, ``posed_flipped`` their mirror images.
    """

    own: PartCost = PartCost()
    flipped: PartCost = PartCost()
    drawing: PartCost = PartCost()
    judging: PartCost = PartCost()
    posed: PartCost = PartCost()
    posed_flipped: PartCost = PartCost()

    def __add__(self, other: "PartCosts") -> "PartCosts":
        return PartCosts(**{part: getattr(self, part) + getattr(other, part) for part in PARTS})


PARTS: tuple[str, ...] = tuple(field.name for field in fields(PartCosts))


class Stopwatch:
    """Adds up what parts cost; waits for the device before it looks at the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._costs = PartCosts()

    @contextmanager
    def part(self, name: str, crops: int) -> Iterator[None]:
        """Count the block's time as one part of ``crops`` crops."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.add(name, PartCost(time.perf_counter() - start, crops))

    def add(self, name: str, cost: PartCost) -> None:
        """Count what a part cost at another time."""
        self._costs += PartCosts(**{name: cost})

    def take(self) -> PartCosts:
        """What was counted since this was last asked for."""
        taken, self._costs = self._costs, PartCosts()
        return taken

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
