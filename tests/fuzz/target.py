"""What a target is, and the names and poses that several of them need."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import mutations
import numpy as np

from posereid.errors import InputError
from posereid.pose.joints import Joints

NAMES = ("0002_c1s1_000451_03.jpg", "0002_c2s1_000451_01.jpg", "0007_c3s2_000001_01.png")
LONGEST_MESSAGE = 1000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A file system in memory: millions of small files need no disk."""


@dataclass(frozen=True)
class Target:
    """One parser. ``prepare`` writes the bytes, and valid files beside them, into a folder; ``read`` parses what it
    returned and asserts what its callers rely on.
    """

    name: str
    prepare: Callable[[bytes, Path], Any]
    read: Callable[[Any], object]
    seeds: Callable[[], list[bytes]]
    variant: Callable[[bytes, Random], bytes]

    def __call__(self, content: bytes) -> bool:
        """Whether the parser takes ``content``. Raises whatever it raises but a well-worded InputError."""
        with TemporaryDirectory(prefix="posereid-fuzz-", dir=MEMORY) as outer:
            home = Path(outer, "home")
            home.mkdir()
            outside = Path(outer, "outside")
            outside.mkdir()
            (outside / "x.jpg").write_bytes(b"no picture")
            argument = self.prepare(content, home)
            before = _state(Path(outer))
            try:
                self.read(argument)
                accepted = True
            except InputError as error:
                _require_sentence(str(error).replace(str(home), ""))
                accepted = False
            assert _state(Path(outer)) == before, "the parser wrote, changed or deleted files"
        return accepted

    def hostile(self, seeds: list[bytes], random: Random) -> bytes:
        """A variant of a seed: its document changed, its bytes damaged, or one after the other."""
        content = random.choice(seeds)
        kind = random.randrange(4)
        if kind < 3:
            # A document that is too deep for the mutator is hostile enough as it is.
            with suppress(RecursionError):
                content = self.variant(content, random)
        return mutations.damaged(content, seeds, random) if kind > 1 else content


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (about.st_size, about.st_mtime_ns) for path in folder.rglob("*") for about in [path.lstat()]}


def _require_sentence(message: str) -> None:
    assert message.strip()
    assert "\n" not in message, "more than one line"
    assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"


def file_named(name: str) -> Callable[[bytes, Path], Path]:
    """A ``prepare`` that writes one file."""

    def prepare(content: bytes, home: Path) -> Path:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return prepare


def encoded(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


def poses() -> dict[str, Joints]:
    """Joints of each of ``NAMES``, two of 18 absent."""
    xy = np.stack(np.broadcast_arrays(np.arange(18) * 1.5, np.arange(18)[::-1] * 3), -1).astype(np.float32)
    present = np.arange(18) % 7 != 6
    return {name: Joints(np.where(present[:, None], xy, 0).astype(np.float32), present) for name in NAMES}
