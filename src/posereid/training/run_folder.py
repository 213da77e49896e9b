"""One writer at a time in a run folder."""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from posereid.errors import InputError
from posereid.files import LOCK_FILE, LOCK_HOLDER_FILE, write_atomically

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Keep every other writer out of a run folder for as long as the block lasts, this process included.

    The folder is made if need be, and removed at the end if nothing but the lock came to be in it. The system
    frees the lock when the process ends, however it ends; processes forked from this one hold nothing. Raises
    InputError at once when another holds the lock, naming it. On a file system without locks it says so on stderr
    and goes on. Of many processes that train one run together only the first may call it.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; a run needs a folder, so choose another.")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    # A file in place of a lock, as filelock would make it where locks are unknown, would outlive a killed process.
    lock = FileLock(out / LOCK_FILE, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{out} is being written to{_holder(out)}; wait for it, or stop it.") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        print(
            f"posereid: the file system of {out} knows no locks; take care that no other process writes there.",
            file=sys.stderr,
        )
        yield
        return
    pid = os.getpid()
    try:
        _write_holder(out)
        yield
    finally:
        # A forked process that leaves the block by the same way must not undo what its parent holds.
        if os.getpid() == pid:
            _unlock(lock, out, made)


def _unlock(lock: FileLock, out: Path, made: bool) -> None:
    (out / LOCK_HOLDER_FILE).unlink(missing_ok=True)
    unused = made and out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK_FILE}
    if unused:
        # Windows does not remove what is open; an empty folder that stays does no harm.
        with suppress(OSError):
            (out / LOCK_FILE).unlink()
    lock.release()
    if unused:
        with suppress(OSError):
            out.rmdir()


def _write_holder(out: Path) -> None:
    record = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }
    write_atomically(out / LOCK_HOLDER_FILE, json.dumps(record) + "\n")


def _holder(out: Path) -> str:
    """Who holds the lock, as the complaint goes on; nothing when the record is missing or makes no sense."""
    try:
        record = json.loads((out / LOCK_HOLDER_FILE).read_text(encoding="utf-8"))
        pid, host, since = record["pid"], record["host"], datetime.fromisoformat(record["since"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    if (
        type(pid) is not int
        or not 0 < pid < 2**63
        or not isinstance(host, str)
        or not host.isprintable()
        or len(host) > 255
    ):
        return ""
    elsewhere = "" if host == socket.gethostname() else " (another machine that shares this folder)"
    return f" by process {pid} on {host}{elsewhere} since {since:%Y-%m-%d %H:%M:%S %z}".rstrip()
