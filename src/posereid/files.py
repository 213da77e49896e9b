"""Writing to disk so that nothing is ever half there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posereid.errors import InputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under another name first and move it into place once it is complete."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_free(folder: Path, what: str) -> None:
    """Raise InputError when ``folder`` holds anything already; ``what`` names what was to be written there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} already holds files; {what} is only written to a new or empty folder, so choose another or "
            "move this one away."
        )


@contextmanager
def atomic_folder(folder: Path, what: str) -> Iterator[Path]:
    """A folder to fill that takes its place as ``folder`` when the block ends well, and is removed otherwise.

    Raises InputError when ``folder`` holds anything already.
    """
    require_free(folder, what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
