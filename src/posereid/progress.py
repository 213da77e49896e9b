"""One look for every progress bar: what is done, the rate, the time that is left."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} since the start, {remaining} left{postfix}"


def progress_bar(total: int, what: str, unit: str, *, show: bool, first: int = 0) -> "tqdm[Any]":
    """A bar over ``total`` units of which ``first`` are done; where stderr is no terminal, a line a minute instead."""
    if show and not sys.stderr.isatty():
        return ProgressLines(total, what, unit, first)
    return tqdm(total=total, initial=first, desc=what, unit=unit, disable=not show, mininterval=0.5, dynamic_ncols=True)


def with_progress(items: Iterable[T], total: int, what: str, unit: str, *, show: bool) -> Iterator[T]:
    """The items, each counted by a :func:`progress_bar` once the next one is asked for."""
    with progress_bar(total, what, unit, show=show) as bar:
        for item in items:
            yield item
            bar.update()


class ProgressLines(tqdm):
    """What stands in a file or a queue's log in place of a bar: a line a minute, and one at the end.

    To tqdm it is a bar switched off, which draws nothing; ``clock`` gives seconds.
    """

    def __init__(
        self, total: int, what: str, unit: str, first: int = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(total=total, initial=first, disable=True)
        self.postfix = ""
        self._what, self._unit, self._first, self._clock = what, unit, first, clock
        self._began = self._said = clock()
        self._open = True

    def update(self, n: float | None = 1) -> None:
        """``n`` more units are done."""
        self.n += n
        if self._clock() - self._said >= _SECONDS_BETWEEN_LINES:
            self._say()

    def close(self) -> None:
        """The last line; only once."""
        if self._open and self.n > self._first:
            self._say()
        self._open = False

    def _say(self) -> None:
        self._said = self._clock()
        line = self.format_meter(
            self.n,
            self.total,
            self._said - self._began,
            prefix=self._what,
            unit=self._unit,
            bar_format=_LINE,
            postfix=self.postfix,
            initial=self._first,
        )
        # tqdm pads rates for its columns.
        print(" ".join(line.split()), file=sys.stderr, flush=True)
