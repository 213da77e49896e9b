"""What a run says while it trains: progress bar, TensorBoard, log.jsonl."""

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning_fabric import Fabric
from torch.utils.tensorboard import SummaryWriter

from posereid.files import write_atomically
from posereid.progress import progress_bar

LOG_FILE = "log.jsonl"

T = TypeVar("T")


class RunLog:
    """Progress bar, TensorBoard and ``log.jsonl`` of one run; only the first process writes.

    A resumed run drops logged steps that it is going to repeat.
    """

    def __init__(self, run: Path, stage: str, steps: int, first_step: int, fabric: Fabric, show: bool) -> None:
        self.stage, self.active = stage, fabric.is_global_zero
        self.bar = progress_bar(steps, stage, "step", show=show and self.active, first=first_step)
        self._mark = (time.perf_counter(), first_step)
        self._thread_complaint = threading.excepthook
        self.waited = 0.0
        if not self.active:
            return
        path = run / LOG_FILE
        if path.exists():
            kept = [line for line in _lines(path) if _logged_step(line) <= first_step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        threading.excepthook = self._leave_disk_errors_to_the_next_record
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def step(self) -> None:
        """One step is done."""
        self.bar.update()

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The loader's batches, the time that it keeps the trainer waiting counted."""
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def write(self, step: int, record: Mapping[str, Any], images_per_step: int = 0) -> None:
        """Write one record; with ``images_per_step`` also the rate since the last one, and the share of the time that
        was spent waiting for data.
        """
        if not self.active:
            return
        record = {"step": step, "stage": self.stage, **record}
        if images_per_step:
            now = time.perf_counter()
            elapsed, done = now - self._mark[0], step - self._mark[1]
            self._mark = (now, step)
            record["images_per_second"] = round(done * images_per_step / max(elapsed, 1e-9), 2)
            record["data_share"] = round(self.waited / max(elapsed, 1e-9), 4)
            self.waited = 0.0
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(f"{self.stage}/{name}", value, step)
        losses = {n.removeprefix("loss_"): f"{v:.3f}" for n, v in record.items() if n.startswith("loss_")}
        self.bar.set_postfix(losses, refresh=False)

    def warn(self, step: int, text: str) -> None:
        """Say something that a person should know while it happens, and write it down."""
        if self.active:
            self.bar.write(f"posereid: step {step}: {text}", file=sys.stderr)
        self.write(step, {"warning": text})

    def close(self) -> None:
        """Flush and end."""
        self.bar.close()
        if self.active:
            try:
                self._file.close()
                self._board.close()
            finally:
                threading.excepthook = self._thread_complaint

    def _leave_disk_errors_to_the_next_record(self, failure: threading.ExceptHookArgs) -> None:
        # TensorBoard writes in a thread, which raises what it met once more where the next record is handed to it.
        if not isinstance(failure.exc_value, OSError):
            self._thread_complaint(failure)


def _logged_step(line: str) -> float:
    """The step of a log line; beyond any step where the line is broken, as a killed run may leave its last one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
