"""Embeddings on disk, by the content of what was embedded and of what embedded it."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

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
from posereid.fusion.costs import COSTS, Costs, PartCost, total
from posereid.messages import shown
from posereid.pose.joints import Joints

T = TypeVar("T")

# Raise it with any change after which the same files give other embeddings, drawings or words of D_I, or are kept in
# another form: how crops are decoded, resized and mirrored, how poses become heat maps, what the networks compute from
# their weights, what is stored. What was kept before is then made again instead of being mixed with what is new.
CACHE_FORMAT = 2

_LIBRARIES = ("torch", "timm", "pillow", "numpy")
# What safetensors and its users raise on a file that is not what it claims. An OSError is not among it: too many open
# files say nothing about what is in them.
_DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, RecursionError)


def crop_keys(crop: Crop) -> tuple[bytes, bytes]:
    """SHA-256 of a crop's file, and of it and the joints that it is drawn from; 32 bytes each.

    The same for a folder and for the shards made of it. Raises InputError when the file cannot be read.
    """
    digest = hashlib.sha256(read_bytes(crop.path, crop.place))
    of_file = digest.digest()
    if crop.joints is not None:
        digest.update(_joint_bytes(crop.joints))
    return of_file, digest.digest()


def pose_digest(pose: Joints) -> str:
    """SHA-256 of a target pose, as hexadecimal digits."""
    return hashlib.sha256(_joint_bytes(pose)).hexdigest()


def _joint_bytes(joints: Joints) -> bytes:
    return joints.xy.astype("<f4").tobytes() + joints.present.tobytes()


def settings_text(settings: Mapping[str, Any]) -> str:
    """What a cache file was made with, as a line of JSON; it is the file's metadata and its name's source."""
    libraries = {"posereid": posereid.__version__, **{name: version(name).split(".")[0] for name in _LIBRARIES}}
    return json.dumps({"format": CACHE_FORMAT, "libraries": libraries, **settings}, sort_keys=True)


def settings_name(settings: str) -> str:
    """The part of a cache file's name that stands for its settings."""
    return hashlib.sha256(settings.encode()).hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
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


def read_trusted(path: Path, read: Callable[[Any], T]) -> T | None:
    """What ``read`` makes of an open cache file.

    None where there is no file, or one that is damaged: it is set aside, with a word on stderr. Raises InputError
    where the system does not let it be read, which says nothing about the file.
    """
    try:
        # safetensors says of any file that it cannot open that it is not there.
        path.open("rb").close()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        with safe_open(path, framework="np") as file:
            return read(file)
    except _DAMAGE as error:
        _set_aside(path, shown(str(error), 150))
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _set_aside(path: Path, problem: str) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    print(
        f"posereid: the cache file {path} cannot be used ({problem}); it is set aside as {aside.name} and what it held "
        "is made again.",
        file=sys.stderr,
    )
    try:
        path.replace(aside)
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"The cache file {path} cannot be read ({error.strerror or error}); see to that, choose another folder, or go "
        "without a cache."
    )


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder} cannot be written to as a cache ({error.strerror or error}); make room there, choose another "
        "folder, or go without a cache."
    )


def open_folder(folder: Path) -> None:
    """Make the cache's folder if need be. Raises InputError where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises InputError."""
    try:
        write_atomically(path, save(arrays, metadata))
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def read_keys(file: Any) -> npt.NDArray[np.uint8]:
    """The (m, 32) keys in an open cache file. Raises ValueError where they are none."""
    keys = file.get_tensor("keys")
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != 32:
        raise ValueError(f"its keys are {keys.dtype} of shape {keys.shape}")
    if len({bytes(key) for key in keys}) < len(keys):
        raise ValueError("it has a key twice")
    return keys


def key_table(keys: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Keys as they are written, (m, 32)."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def read_metadata(file: Any, settings: str) -> dict[str, str]:
    """An open cache file's metadata. Raises ValueError where it is of other settings."""
    metadata = file.metadata() or {}
    if metadata.get("settings") != settings:
        raise ValueError("it was made with other settings than its name says")
    return metadata


def cost_text(costs: Costs) -> str:
    """Costs as metadata."""
    return json.dumps({name: [float(cost.seconds), cost.pictures] for name, cost in costs.items()})


def read_costs(text: str) -> dict[str, PartCost]:
    """What :func:`cost_text` wrote. Raises ValueError or TypeError for anything else."""
    content = json.loads(text)
    if not isinstance(content, dict) or not content.keys() <= set(COSTS):
        raise ValueError(f"its costs are {shown(content)}")
    costs = {}
    for name, (seconds, pictures) in content.items():
        if type(seconds) is not float or not 0 <= seconds < math.inf or type(pictures) is not int or pictures < 0:
            raise ValueError(f"its cost of {name} is {shown(content[name])}")
        costs[name] = PartCost(seconds, pictures)
    return costs


class PartStore:
    """One part of crops under the settings that it depends on, in one file of ``folder``.

    ``shape`` is the part's for one crop, float32 in [-1, 1]. Processes may share the file: each adds what it lacks by
    then.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        self._settings = settings_text(settings)
        self._shape = shape
        self._path = folder / f"embeddings-{settings_name(self._settings)}.safetensors"
        open_folder(folder)

    def read(self) -> tuple[list[bytes], npt.NDArray[np.float32], dict[str, PartCost]]:
        """The m keys and parts (m, …) that are there, and what they cost. Raises InputError."""
        with _locked(self._path):
            keys, values, costs = self._read()
        return [bytes(key) for key in keys], values, costs

    def add(self, keys: Sequence[bytes], values: npt.NDArray[np.float32], costs: Costs) -> dict[str, PartCost]:
        """Write some crops' parts (m, …) beside what others have put there since; all different.

        ``costs`` is what they took; what all that is there then took comes back. Raises InputError.
        """
        with _locked(self._path):
            known, there, earlier = self._read()
            have = {bytes(key) for key in known}
            fresh = [row for row, key in enumerate(keys) if key not in have]
            merged = {
                "keys": np.concatenate([known, key_table(keys)[fresh]]),
                "values": np.concatenate([there, values[fresh]]),
            }
            sums = total([earlier, costs])
            metadata = {"settings": self._settings, "content": _content_digest(merged), "costs": cost_text(sums)}
            write_arrays(self._path, merged, metadata)
        return sums

    def _read(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], dict[str, PartCost]]:
        nothing = np.empty((0, 32), np.uint8), np.empty((0, *self._shape), np.float32), dict[str, PartCost]()
        return read_trusted(self._path, self._checked) or nothing

    def _checked(self, file: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], dict[str, PartCost]]:
        metadata = read_metadata(file, self._settings)
        keys, values = read_keys(file), file.get_tensor("values")
        if values.dtype != np.float32 or values.shape != (len(keys), *self._shape):
            raise ValueError(f"its values are {values.dtype} of shape {values.shape}")
        # NaN compares as false.
        if not (np.abs(values) <= 1 + 1e-3).all():
            raise ValueError("its values are not all in [-1, 1]")
        if metadata.get("content") != _content_digest({"keys": keys, "values": values}):
            raise ValueError("its content is not what was written")
        return keys, values, read_costs(metadata["costs"])


def _content_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()
