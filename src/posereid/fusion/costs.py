"""What the parts of a fused embedding cost in time."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class PartCost:
    """Wall-clock seconds that one part took, and the pictures (crops or drawings) that it was made of."""

    seconds: float = 0.0
    pictures: int = 0

    @property
    def milliseconds(self) -> float:
        """For one picture; NaN where none was counted."""
        return 1000 * self.seconds / self.pictures if self.pictures else float("nan")

    def share(self, pictures: int) -> "PartCost":
        """What so many of the pictures cost; nothing where none was counted."""
        return PartCost(self.seconds / self.pictures * pictures, pictures) if self.pictures else PartCost()

    def __add__(self, other: "PartCost") -> "PartCost":
        return PartCost(self.seconds + other.seconds, self.pictures + other.pictures)


Costs = Mapping[str, PartCost]


@dataclass(frozen=True)
class PartCosts:
    """What each part of the embeddings cost, and in how many ``poses`` crops were drawn.

    For each crop: ``own`` is decoding and embedding it, ``flipped`` embedding its mirror image, ``encoding`` what the
    generator does once for all its poses. For each drawing: ``drawing`` is the rest of the generator, ``judging`` D_I's
    word, ``posed`` embedding it, ``posed_flipped`` embedding its mirror image.
    """

    own: PartCost = PartCost()
    flipped: PartCost = PartCost()
    encoding: PartCost = PartCost()
    drawing: PartCost = PartCost()
    judging: PartCost = PartCost()
    posed: PartCost = PartCost()
    posed_flipped: PartCost = PartCost()
    poses: int = 0


COSTS: tuple[str, ...] = tuple(field.name for field in fields(PartCosts) if field.name != "poses")
"""What is timed, by name."""


def total(costs: Iterable[Costs]) -> dict[str, PartCost]:
    """Costs added up, name by name."""
    added: dict[str, PartCost] = {}
    for each in costs:
        for name, cost in each.items():
            added[name] = added.get(name, PartCost()) + cost
    return added


def timed(
    device: torch.device, pictures: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> tuple[T, PartCost]:
    """What ``work`` gives of so many pictures and what that took; waits for the device before it looks at the clock."""
    _wait(device)
    start = time.perf_counter()
    result = work(*args, **kwargs)
    _wait(device)
    return result, PartCost(time.perf_counter() - start, pictures)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
