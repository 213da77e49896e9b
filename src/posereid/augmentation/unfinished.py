"""A generated set while it is drawn: a folder beside its place keeps what is done, so that a killed call can go on.

``.NAME.unfinished`` holds ``plan.json``, which says what decides every byte of the set, the lock of the process that
draws it, and ``set``, which becomes the set ``NAME`` by one rename.
"""

import errno
import json
import shutil
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from posereid.augmentation.sets import SET_FILE
from posereid.errors import InputError
from posereid.files import LOCK_FILE, LOCK_HOLDER_FILE, move_into_place, partial_path, write_atomically
from posereid.messages import shown

PLAN_FILE = "plan.json"
JPEG_QUALITY = 95
_SET_FOLDER = "set"
_LARGEST_PLAN = 2**20
_END_OF_JPEG = b"\xff\xd9"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

Plan = dict[str, Any]
"""What decides every byte of a set, as plain JSON values, and with how many ``threads`` it was begun."""


class UnfinishedSet:
    """The folder in which ``out`` is drawn; ``crops`` in it is where crops go, named ``train_folder`` in the set.

    Any number of processes may write crops there; all else is for the one that holds the lock
    (:func:`posereid.training.run_folder.lock_run` of ``folder``).
    """

    def __init__(self, out: Path, train_folder: str) -> None:
        self.out = out
        place = out.resolve()
        if not place.name:
            raise InputError(f"{out} is the root of a drive; a generated set needs a folder of its own, so choose one.")
        self.folder = place.with_name(f".{place.name}.unfinished")
        self.set = self.folder / _SET_FOLDER
        self.crops = self.set / train_folder

    def begin(self, plan: Plan, *, restart: bool) -> Plan:
        """Make the folder ready to go on with ``plan``; returns it with the ``threads`` that it was begun with.

        ``restart`` forgets what an earlier call left. Raises InputError when ``out`` holds anything, unless it is the
        set of this plan (see :attr:`complete`), and when the folder was begun with another plan.
        """
        if restart:
            (self.folder / PLAN_FILE).unlink(missing_ok=True)
        begun = self._begun()
        difference = _difference(begun, plan) if begun else None
        if begun and self.complete and not difference:
            return plan | {"threads": begun["threads"]}
        self._require_free()
        if begun and self.crops.is_dir():
            if difference:
                raise InputError(
                    f"{self.folder} holds a set that was begun with {difference}; give what it was begun with to go "
                    "on, or --restart (or delete that folder) to begin anew."
                )
            _remove(path for path in (*self.set.iterdir(), *self._left_over()) if path.is_file())
            return plan | {"threads": begun["threads"]}
        self._remove_set()
        _remove(self._left_over())
        self.crops.mkdir(parents=True)
        # Last, so that where a plan is and no set, the set has got its name.
        write_atomically(self.folder / PLAN_FILE, json.dumps(plan, indent=1) + "\n")
        return plan

    def _remove_set(self) -> None:
        try:
            shutil.rmtree(self.set)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(
                f"{self.set} holds what an earlier call drew, and cannot be removed ({error.strerror or error}); "
                "remove it by hand and give the same command again."
            ) from error

    def _left_over(self) -> list[Path]:
        """What killed processes were writing here."""
        kept = (LOCK_FILE, LOCK_HOLDER_FILE, PLAN_FILE)
        return [path for path in self.folder.iterdir() if path.is_file() and path.name not in kept]

    @property
    def complete(self) -> bool:
        """Whether the set has got its name, and only clearing up is left to do."""
        return (self.folder / PLAN_FILE).is_file() and not self.set.exists() and (self.out / SET_FILE).is_file()

    def _require_free(self) -> None:
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError(
                f"{self.out} already holds files; a generated set is only written to a new or empty folder, so choose "
                "another or move this one away."
            )

    def _begun(self) -> Plan | None:
        path = self.folder / PLAN_FILE
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_PLAN + 1)
            plan = json.loads(content) if len(content) <= _LARGEST_PLAN else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            plan = None
        if not isinstance(plan, dict) or type(plan.get("threads")) is not int or not 0 < plan["threads"] < 2**12:
            raise InputError(f"{path} is damaged; give --restart to draw the set anew.")
        return plan

    def written(self, names: Iterable[str], size: tuple[int, int], workers: int) -> frozenset[str]:
        """Those of ``names`` whose crops are there whole; ``size`` is their (height, width).

        What a power cut left damaged is not: a file must end as a JPEG ends, and decode.
        """
        present = {path.name for path in self.crops.iterdir()}
        candidates = [name for name in names if name in present]
        with ThreadPoolExecutor(workers) as readers:
            whole = readers.map(lambda name: _is_whole(self.crops / name, size), candidates)
            return frozenset(name for name, good in zip(candidates, whole, strict=True) if good)

    def finish(self) -> None:
        """Give the set its name, all of it on the disk."""
        move_into_place(self.set, self.out.resolve())

    def remove(self) -> None:
        """Remove what is left once the set has got its name and the lock was given back."""
        if self.set.exists() or not self.folder.is_dir():
            return
        _remove(self._left_over())
        # The plan last: where a call is killed before that, the next one finds that the set is complete.
        _remove(self.folder / name for name in (LOCK_HOLDER_FILE, LOCK_FILE, PLAN_FILE))
        with suppress(OSError):
            self.folder.rmdir()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _difference(begun: Plan, given: Plan) -> str | None:
    """The first thing, in words, in which two plans differ; how many threads draw is not for the caller to choose."""
    for name in [*given, *begun]:
        was, now = begun.get(name), given.get(name)
        if name == "threads" or was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            inner = _difference(was, now)
            return f"{name}.{inner}" if inner else None
        return f"{name} {shown(was, 80)}, and not {shown(now, 80)}"
    return None


def _is_whole(path: Path, size: tuple[int, int]) -> bool:
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content), formats=("JPEG",)) as picture:
            if picture.size != (size[1], size[0]):
                return False
            picture.load()
    except Exception:  # on damaged files Pillow's decoders raise errors of almost any type
        return False
    # Some decoders take a file that lacks its end, or whose end is zeros, for a whole one.
    return content.endswith(_END_OF_JPEG)


# --- crops -------------------------------------------------------------------------------------------------


def write_crop(path: Path, pixels: UInt8[Tensor, "3 h w"], scratch: Path) -> None:
    """Write one crop as JPEG; the file appears whole or not at all, though perhaps not yet on the disk.

    ``scratch`` is a path on the same drive that nobody else writes to. Raises InputError when the disk is full or
    fails.
    """
    content = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    try:
        scratch.write_bytes(content.getvalue())
        scratch.replace(path)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise InputError(
            f"{path} cannot be written ({error.strerror}); make room, or see to the disk, and give the same command "
            "again: it goes on from the crops that are written."
        ) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


class CropWriter:
    """Encodes and writes crops in ``workers`` threads, at most ``waiting`` of them ahead of the disk.

    Leaving the block waits for all; where it is left by an error, only for those that are being written. What goes
    wrong in a thread is raised by a later :meth:`put`, or on leaving the block.
    """

    def __init__(self, unfinished: UnfinishedSet, workers: int, waiting: int) -> None:
        self._unfinished, self._waiting = unfinished, waiting
        self._threads = ThreadPoolExecutor(workers)
        self._pending: deque[Future[None]] = deque()

    def put(self, name: str, pixels: UInt8[Tensor, "3 h w"]) -> None:
        """Write a crop soon."""
        while self._pending and (len(self._pending) >= self._waiting or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._threads.submit(self._write, name, pixels))

    def _write(self, name: str, pixels: UInt8[Tensor, "3 h w"]) -> None:
        write_crop(self._unfinished.crops / name, pixels, partial_path(self._unfinished.folder / name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            self._threads.shutdown(cancel_futures=True)
