"""Embeddings on disk, by the content of what was embedded and of what embedded it."""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import posereid
from posereid.data.crops import Crop
from posereid.data.images import read_bytes
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.fusion.costs import PARTS, PartCost, PartCosts
from posereid.messages import shown
from posereid.pose.joints import Joints

Arrays = dict[str, npt.NDArray[Any]]

_FORMAT = 1
_LIBRARIES = ("torch", "timm", "pillow", "numpy")
# Of what safetensors and its users raise on a file that is not what it claims.
DAMAGE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)


def libraries() -> dict[str, str]:
    """Major versions of what decodes, draws and embeds, and posereid's own."""
    return {"posereid": posereid.__version__, **{name: version(name).split(".")[0] for name in _LIBRARIES}}


def crop_key(crop: Crop, *, drawn: bool) -> bytes:
    """SHA-256 of a crop's file, and of its joints where it is drawn from them; 32 bytes.

    The same for a folder and for the shards made of it. Raises InputError when the file cannot be read.
    """
    digest = hashlib.sha256(read_bytes(crop.path, crop.place))
    if drawn and crop.joints is not None:
        digest.update(_joint_bytes(crop.joints))
    return digest.digest()


def poses_digest(poses: Sequence[Joints]) -> str:
    """SHA-256 of target poses in their order, as hexadecimal digits."""
    return hashlib.sha256(b"".join(map(_joint_bytes, poses))).hexdigest()


def _joint_bytes(joints: Joints) -> bytes:
    return joints.xy.astype("<f4").tobytes() + joints.present.tobytes()


def settings_text(settings: Mapping[str, Any]) -> str:
    """What a cache file was made with, as a line of JSON; it is the file's metadata and its name's source."""
    return json.dumps({"format": _FORMAT, "libraries": libraries(), **settings}, sort_keys=True)


def settings_name(settings: str) -> str:
    """The part of a cache file's name that stands for its settings."""
    return hashlib.sha256(settings.encode()).hexdigest()[:32]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing a cache file for as long as the block lasts; waits for them first."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        # Without locks the worst is that another process's embeddings are made twice: files are replaced whole.
        yield
        return
    try:
        yield
    finally:
        lock.release()


def set_aside(path: Path, problem: str) -> None:
    """Take a file that cannot be trusted out of the cache, and say so on stderr."""
    aside = path.with_name(f"{path.name}.damaged")
    print(
        f"posereid: the cache file {path} cannot be used ({problem}); it is set aside as {aside.name} and what it held "
        "is made again.",
        file=sys.stderr,
    )
    try:
        path.replace(aside)
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> InputError:
    """The error to raise where the cache's folder does not take a file."""
    return InputError(
        f"{path.parent} cannot be written to as a cache ({error.strerror or error}); make room there, choose another "
        "folder, or go without a cache."
    )


def open_folder(folder: Path) -> None:
    """Make the cache's folder if need be. Raises InputError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder / "file", error) from None


def write_arrays(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises InputError."""
    try:
        write_atomically(path, save(arrays, metadata))
    except OSError as error:
        raise unwritable(path, error) from None


def read_keys(file: Any) -> npt.NDArray[np.uint8]:
    """The (m, 32) keys in an open cache file. Raises ValueError where they are none."""
    keys = file.get_tensor("keys")
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != 32:
        raise ValueError(f"its keys are {keys.dtype} of shape {keys.shape}")
    if len({bytes(key) for key in keys}) < len(keys):
        raise ValueError("it has a key twice")
    return keys


class PartsCache:
    """The embedded parts of crops under one set of settings, in one file of ``folder``.

    ``shapes`` are the parts' shapes for one crop, all float32. Values lie in [-1, 1]. Processes may share the file:
    each adds what the file lacks by then.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._settings = settings_text(settings)
        self._shapes = shapes
        self._path = folder / f"embeddings-{settings_name(self._settings)}.safetensors"
        self._keys: list[bytes] = []
        self._rows: list[Arrays] = []
        self.costs = PartCosts()
        """What all that lies in the file has cost, as of the last reading or writing."""
        open_folder(folder)

    def fill(self, keys: Sequence[bytes], arrays: Arrays) -> list[int]:
        """Fill the rows of ``arrays`` whose keys are known; the positions of the others, in order."""
        with locked(self._path):
            known, rows, self.costs = self._read()
        row_of = {bytes(key): row for row, key in enumerate(known)}
        found = [position for position, key in enumerate(keys) if key in row_of]
        places = [row_of[keys[position]] for position in found]
        for name in self._shapes:
            arrays[name][found] = rows[name][places]
        return [position for position, key in enumerate(keys) if key not in row_of]

    def add(self, keys: Sequence[bytes], rows: Arrays) -> None:
        """Remember some crops' parts, (m, …) each, until :meth:`save`."""
        self._keys += keys
        self._rows.append(rows)

    def save(self, costs: PartCosts) -> None:
        """Write what was added into the file, beside what others have put there since; ``costs`` is what it took."""
        if not self._keys:
            return
        with locked(self._path):
            known, rows, earlier = self._read()
            have = {bytes(key) for key in known}
            fresh = [place for place, key in enumerate(self._keys) if key not in have]
            new_keys = np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 32)
            merged: Arrays = {"keys": np.concatenate([known, new_keys[fresh]])}
            for name in self._shapes:
                added = np.concatenate([part[name] for part in self._rows])
                merged[name] = np.concatenate([rows[name], added[fresh]])
            self.costs = earlier + costs
            metadata = {"settings": self._settings, "content": _content_digest(merged), "costs": _cost_text(self.costs)}
            write_arrays(self._path, merged, metadata)
        self._keys, self._rows = [], []

    def _read(self) -> tuple[npt.NDArray[np.uint8], Arrays, PartCosts]:
        """Keys (m, 32), parts and costs; nothing where there is no file, or none that can be trusted."""
        if self._path.exists():
            try:
                return self._checked()
            except DAMAGE as error:
                set_aside(self._path, shown(str(error), 150))
        empty = {name: np.empty((0, *shape), np.float32) for name, shape in self._shapes.items()}
        return np.empty((0, 32), np.uint8), empty, PartCosts()

    def _checked(self) -> tuple[npt.NDArray[np.uint8], Arrays, PartCosts]:
        with safe_open(self._path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != self._settings:
                raise ValueError("it was made with other settings than its name says")
            keys = read_keys(file)
            rows = {name: file.get_tensor(name) for name in self._shapes}
        for name, shape in self._shapes.items():
            values = rows[name]
            if values.dtype != np.float32 or values.shape != (len(keys), *shape):
                raise ValueError(f"its {name} is {values.dtype} of shape {values.shape}")
            # NaN compares as false.
            if not (np.abs(values) <= 1 + 1e-3).all():
                raise ValueError(f"its {name} holds numbers outside [-1, 1]")
        if metadata.get("content") != _content_digest({"keys": keys, **rows}):
            raise ValueError("its content is not what was written")
        return keys, rows, _read_costs(metadata["costs"])


def _content_digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()


def _cost_text(costs: PartCosts) -> str:
    return json.dumps({part: [getattr(costs, part).seconds, getattr(costs, part).crops] for part in PARTS})


def _read_costs(text: str) -> PartCosts:
    content = json.loads(text)
    costs = {}
    for field in fields(PartCosts):
        seconds, crops = content[field.name]
        if type(seconds) is not float or not 0 <= seconds < math.inf or type(crops) is not int or crops < 0:
            raise ValueError(f"its cost of {field.name} is {shown(content[field.name])}")
        costs[field.name] = PartCost(seconds, crops)
    return PartCosts(**costs)
