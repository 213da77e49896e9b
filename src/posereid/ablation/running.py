"""Doing a grid's cells, one after the other or several at a time, in this process or beside others on the same grid."""

import json
import multiprocessing
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import torch

from posereid.ablation.grid import LOCKS, Cell, Grid, require_jobs
from posereid.ablation.locks import try_lock
from posereid.ablation.work import clear_drawings, work
from posereid.errors import InputError, Stopped
from posereid.files import write_atomically
from posereid.progress import progress_bar
from posereid.training.devices import pick_device

_BUSY_SECONDS = 3.0


@dataclass(frozen=True)
class Attempt:
    """How an attempt at a cell ended: it is done, another process works on it, or it failed, and why."""

    cell: Cell
    end: Literal["done", "busy", "failed"]
    why: str = ""


def attempt(grid: Grid, cell: Cell) -> Attempt:
    """Do a cell, unless it is done or another process is at it. An error that is not the user's end is the cell's."""
    with try_lock(grid.out / LOCKS / cell.name) as mine:
        if not mine:
            return Attempt(cell, "busy")
        if grid.is_done(cell):
            return Attempt(cell, "done")
        state, failure = grid.state(cell), failure_file(grid, cell)
        began, start = _now(), time.perf_counter()
        done = False
        try:
            work(grid, cell)
            done = True
        except InputError as error:
            return Attempt(cell, "failed", str(error))
        except Exception as error:
            write_atomically(failure, traceback.format_exc())
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Attempt(cell, "failed", f"{type(error).__name__}: {first} ({failure} says where)")
        finally:
            here = {
                "devices": _device(grid),
                "machines": platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            record = {
                "done": done,
                "began": state.get("began", began),
                "finished": _now(),
                "seconds": round(state.get("seconds", 0.0) + time.perf_counter() - start, 1),
                # A cell may be begun here and finished there.
                **{name: list(dict.fromkeys([*state.get(name, []), own])) for name, own in here.items()},
            }
            write_atomically(grid.record(cell), json.dumps(record, indent=1) + "\n")
        failure.unlink(missing_ok=True)
        clear_drawings(grid, cell)
        return Attempt(cell, "done")


def failure_file(grid: Grid, cell: Cell) -> Path:
    """Of a cell that failed for a reason that is no user's mistake: what Python says of it."""
    return grid.record(cell).with_suffix(".txt")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device(grid: Grid) -> str:
    device = pick_device(grid.recipe.runtime)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@dataclass
class Schedule:
    """Which cell comes next. ``failed`` says of each cell that will not be done, why."""

    grid: Grid
    waiting: list[Cell]
    failed: dict[Cell, str] = field(default_factory=dict)
    _busy: dict[Cell, float] = field(default_factory=dict)

    def take(self) -> Cell | None:
        """The first cell that can begin, now no longer waiting; None where all that wait depend on others."""
        for cell in list(self.waiting):
            needs = self.grid.needs(cell)
            if lost := next((need for need in needs if need in self.failed), None):
                self.waiting.remove(cell)
                self.failed[cell] = f"it needs {lost.name}"
            elif self._busy.get(cell, 0.0) <= time.monotonic() and all(map(self.grid.is_done, needs)):
                self.waiting.remove(cell)
                return cell
        return None

    def note(self, attempt: Attempt) -> bool:
        """Take account of an attempt; whether the cell has come to its end."""
        if attempt.end == "busy":
            self.waiting.append(attempt.cell)
            self._busy[attempt.cell] = time.monotonic() + _BUSY_SECONDS
            return False
        if attempt.end == "failed":
            self.failed[attempt.cell] = attempt.why
        return True


def run_grid(grid: Grid, jobs: int, *, progress: bool = True) -> dict[Cell, str]:
    """Do every cell that is not done, ``jobs`` at a time; return those that could not be done, and why.

    What fails takes along the cells that need it, and no other. Cells that another process works on are come back to.
    Raises InputError, and KeyboardInterrupt after Ctrl-C; what is begun goes on with the next call.
    """
    require_jobs(jobs)
    cells = grid.cells()
    left = [cell for cell in cells if not grid.is_done(cell)]
    schedule = Schedule(grid, left)
    total, first = len(cells), len(cells) - len(left)
    with progress_bar(total, "ablation", "cell", show=progress, first=first) as bar:
        for each in _one_by_one(schedule) if jobs == 1 else _several(schedule, jobs):
            bar.set_postfix_str(each.cell.name)
            bar.update()
    return schedule.failed


@contextmanager
def stoppable(out: Path) -> Iterator[None]:
    """Let SIGTERM end this block as Ctrl-C does, after which :class:`Stopped` says how to go on."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number, "SIGTERM")

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        yield
    except KeyboardInterrupt as stopped:
        number = stopped.signal_number if isinstance(stopped, Stopped) else signal.SIGINT
        said = f"stopped; what is done stays in {out}, and the same command goes on there."
        raise Stopped(number, said) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _one_by_one(schedule: Schedule) -> Iterator[Attempt]:
    while schedule.waiting:
        cell = schedule.take()
        if cell is None:
            time.sleep(0.2)
            continue
        found = attempt(schedule.grid, cell)
        if schedule.note(found):
            yield found


def _several(schedule: Schedule, jobs: int) -> Iterator[Attempt]:
    """A process for each cell: one that the system ends takes nothing else along."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    running: dict[BaseProcess, tuple[Cell, Connection]] = {}
    try:
        while schedule.waiting or running:
            while len(running) < jobs and (cell := schedule.take()):
                own, other = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child, args=(schedule.grid, cell, threads, os.getpid(), other), name=cell.name
                )
                process.start()
                other.close()
                running[process] = cell, own
            # Not for ever: other processes' cells may have come to their end meanwhile.
            wait([process.sentinel for process in running], timeout=0.5)
            for ended in [each for each in running if not each.is_alive()]:
                cell, own = running.pop(ended)
                found = _answer(ended, cell, own)
                if schedule.note(found):
                    yield found
    finally:
        # Training saves its state before it ends; a request more to one that has been asked already does no harm.
        for left in running:
            left.terminate()
        for left in running:
            left.join()


def _answer(process: BaseProcess, cell: Cell, own: Connection) -> Attempt:
    process.join()
    try:
        return own.recv() if own.poll() else Attempt(cell, "failed", _ending(process.exitcode))
    except EOFError:
        return Attempt(cell, "failed", _ending(process.exitcode))
    finally:
        own.close()


def _ending(code: int | None) -> str:
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"its process ended with {how}, for want of memory perhaps; the same command goes on where it was"


def _child(grid: Grid, cell: Cell, threads: int, parent: int, answer: Connection) -> None:
    be_a_worker(parent, threads)
    try:
        answer.send(attempt(grid, cell))
    except KeyboardInterrupt:
        os._exit(130)


def be_a_worker(parent: int, threads: int) -> None:
    """So many threads for this process, and its end when the one that started it is gone."""
    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
