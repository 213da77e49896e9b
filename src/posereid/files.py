"""Writing to disk so that nothing is ever half there, not even after a power cut; reading no more than fits."""

import errno
import glob
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from posereid.errors import InputError
from posereid.messages import complaint

MAX_TEXT_BYTES = 2**31
"""Lists and keypoint files of more bytes are not read: ten million rows of 200 bytes are fewer."""

LOCK_FILE = ".lock"
LOCK_HOLDER_FILE = ".lock-holder.json"
# The place may be missing: older versions named the process alone.
_PARTIAL = re.compile(r"\..+\.partial-(?:(?P<place>[\w.]+)-)?(?P<pid>\d{1,9})(?:-[0-9a-f]{8})?", re.ASCII)
_FORSAKEN_SECONDS = 3600.0


def read_limited(path: Path, most: int) -> bytes:
    """The bytes of a regular file. Raises InputError where they are more than ``most``, otherwise OSError."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "it is not a regular file")
    with path.open("rb") as handle:
        # What grows while it is read is not read on; what is too large already is not read at all.
        data = b"" if (size := path.stat().st_size) > most else handle.read(size + 1)
    if max(size, len(data)) > most:
        raise complaint(path, f"a file of {max(size, len(data)):,} bytes", f"at most {most:,}", "divide or replace it")
    return data


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under another name first and move it into place once it is complete and on the disk."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def require_free(folder: Path, what: str, *besides: str) -> None:
    """Raise InputError when ``folder`` is not free (:func:`is_free`); ``what`` names what was to be written there."""
    if not is_free(folder, *besides):
        raise _occupied(folder, what)


def is_free(folder: Path, *besides: str) -> bool:
    """Whether ``folder`` is absent or holds nothing, files of the names ``besides`` left aside.

    The lock of a run folder (:func:`posereid.training.run_folder.lock_run`) does not count, nor what a killed process
    left half-written.
    """
    if not folder.is_dir():
        return not folder.exists()
    names = {path.name for path in folder.iterdir()} - {LOCK_FILE, LOCK_HOLDER_FILE, *besides}
    return all(map(_PARTIAL.fullmatch, names))


@contextmanager
def atomic_folder(folder: Path, what: str, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill that takes its place as ``folder`` when the block ends well, and is removed otherwise.

    By then all of it is on the disk. Raises InputError when ``folder`` holds anything already, a lock included;
    with ``replace`` that old folder gives way instead. It stays until the new one is complete and is out of its
    place, under :func:`set_aside_path`, only between two renames.
    """
    # A lock in there would go with the folder that gives way, and its holder would never know.
    if not replace and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _occupied(folder, what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_partials(folder.parent, glob.escape(folder.name))
    partial = partial_path(folder)
    partial.mkdir()
    try:
        yield partial
        _sync_tree(partial)
        if folder.exists() and replace:
            _exchange(folder, partial)
        else:
            if folder.exists():
                folder.rmdir()
            partial.replace(folder)
        _sync_folder(folder.parent)
        if replace:
            shutil.rmtree(set_aside_path(folder), ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(complete: Path, folder: Path) -> None:
    """Put a folder on the disk and give it its place, which is free or an empty folder; both lie on one drive."""
    _sync_tree(complete)
    if folder.exists():
        folder.rmdir()
    complete.replace(folder)
    _sync_folder(folder.parent)


def _exchange(folder: Path, partial: Path) -> None:
    aside = set_aside_path(folder)
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)
    try:
        partial.replace(folder)
    except OSError:
        aside.replace(folder)
        raise


def partial_path(path: Path) -> Path:
    """Where this process fills a file or folder before it takes its place: a name that no other call has, anywhere."""
    return path.with_name(f".{path.name}.partial-{_place()}-{os.getpid()}-{secrets.token_hex(4)}")


def clear_partials(parent: Path, name: str) -> None:
    """Remove what killed processes left half-written of ``name``, which is escaped or a pattern of glob, in ``parent``.

    A partial that another process may still fill stays: one of this machine (and container) goes once its process has
    ended, any other once nothing in it was written for an hour.
    """
    for partial in parent.glob(f".{name}.partial-*"):
        match = _PARTIAL.fullmatch(partial.name)
        # Windows ends a process that is asked whether it lives.
        ours = match and match["place"] == _place() and os.name != "nt"
        if match and (_has_ended(int(match["pid"])) if ours else _is_forsaken(partial)):
            shutil.rmtree(partial, ignore_errors=True)


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's process
        return False
    return False


def _is_forsaken(partial: Path) -> bool:
    with suppress(OSError):
        newest = max(path.stat().st_mtime for path in (partial, *partial.rglob("*")))
        return time.time() - newest > _FORSAKEN_SECONDS
    return False


@cache
def _place() -> str:
    """The machine, and in it the container, whose process numbers are this process's."""
    host = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:32]
    with suppress(OSError):
        # Containers may share a host's name, but not its numbers.
        return f"{host}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return host


def set_aside_path(folder: Path) -> Path:
    """Where a folder stands while another takes its place; a process killed just then leaves it there."""
    return folder.with_name(f".{folder.name}.replaced")


def _occupied(folder: Path, what: str) -> InputError:
    return InputError(
        f"{folder} already holds files; {what} is only written to a new or empty folder, so choose another or "
        "move this one away."
    )


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_symlink():
                continue
            # Windows only flushes what is open for writing.
            with path.open("r+b" if os.name == "nt" else "rb") as handle:
                os.fsync(handle.fileno())
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, where the system can: Windows and some network drives cannot."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
