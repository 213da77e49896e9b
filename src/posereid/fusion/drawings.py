"""Crops drawn in several poses, and those drawings on disk, where several embedders find them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from torch import Tensor

from posereid.data.batches import pose_maps, to_float, to_pixels
from posereid.fusion.cache import (
    cost_text,
    key_table,
    open_folder,
    pose_digest,
    read_costs,
    read_keys,
    read_metadata,
    read_trusted,
    settings_name,
    settings_text,
    write_arrays,
)
from posereid.fusion.costs import Costs, PartCost, total
from posereid.generator.generator import EncodedPeople, PoseTransferGenerator
from posereid.pose.joints import Joints

Picture = npt.NDArray[np.uint8]

# While a file is written its pictures lie in memory three times.
_SHARD_BYTES = 2**27


@torch.no_grad()
def encode_crops(
    generator: PoseTransferGenerator, images: UInt8[Tensor, "b 3 h w"], sources: Sequence[Joints]
) -> EncodedPeople:
    """What the generator keeps of crops, which serves all poses; joints in pixels of h × w, the ``crop_size``."""
    device = next(generator.parameters()).device
    maps = pose_maps(sources, (images.shape[-2], images.shape[-1]), device)
    return generator.encode(to_float(images.to(device)), maps)


@torch.no_grad()
def draw_pose(generator: PoseTransferGenerator, people: EncodedPeople, pose: Joints) -> UInt8[Tensor, "b 3 h w"]:
    """Encoded crops in one pose, on the generator's device.

    What :func:`posereid.augmentation.drawing.draw` gives, but that a crop is encoded once for all its poses. A
    generator that knows cameras draws for any camera, so that all crops come out as if seen by one.
    """
    maps = pose_maps([pose], generator.crop_size, people.appearance[-1].device)
    return to_pixels(generator.draw(people, maps.expand(len(people), -1, -1, -1)))


def drawing_key(crop: bytes, pose: Joints) -> bytes:
    """The key of a crop's drawing in a pose; ``crop`` is the key of its file and joints."""
    return hashlib.sha256(crop + bytes.fromhex(pose_digest(pose))).digest()


class DrawingCache:
    """Drawings, (3, h, w) uint8 each, by one generator in any pose, in files of ``folder``.

    Files hold up to 128 MiB and are named by what is in them, so that processes that share the folder never want
    the same name for different drawings. Only keys are held in memory; a drawing is checked when it is read. Raises
    InputError where the folder cannot be used.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], size: tuple[int, int]) -> None:
        self._folder, self._shape = folder, (3, *size)
        self._settings = settings_text(settings)
        self._prefix = f"drawings-{settings_name(self._settings)}"
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._unsaved: dict[bytes, Picture] = {}
        self._unsaved_costs: dict[str, PartCost] = {}
        self._costs: dict[str, PartCost] = {}
        open_folder(folder)
        for path in sorted(folder.glob(f"{self._prefix}-*.safetensors")):
            index = read_trusted(path, self._index)
            if index is not None:
                keys, costs = index
                self._places |= {bytes(key): (path, row) for row, key in enumerate(keys)}
                self._costs = total([self._costs, costs])

    def costs(self, drawings: int) -> dict[str, PartCost]:
        """What so many of the drawings in the cache took when they were drawn."""
        return {name: cost.share(drawings) for name, cost in self._costs.items()}

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Picture]:
        """Those of the drawings that are there and whole, by key. Raises InputError."""
        found = {key: self._unsaved[key] for key in keys if key in self._unsaved}
        wanted: dict[Path, list[tuple[bytes, int]]] = {}
        for key in keys:
            if key in self._places:
                path, row = self._places[key]
                wanted.setdefault(path, []).append((key, row))
        for path, rows in wanted.items():
            pictures = read_trusted(path, lambda file, rows=rows: _read_rows(file, rows))  # type: ignore[misc]
            if pictures is None:
                self._places = {key: place for key, place in self._places.items() if place[0] != path}
            else:
                found |= pictures
        return found

    def add(self, keys: Sequence[bytes], pictures: UInt8[np.ndarray, "m 3 h w"], costs: Costs) -> None:
        """Keep some drawings; written when a file is full, or by :meth:`save`. Raises InputError."""
        self._unsaved |= zip(keys, pictures, strict=True)
        self._unsaved_costs = total([self._unsaved_costs, costs])
        if sum(picture.nbytes for picture in self._unsaved.values()) >= _SHARD_BYTES:
            self.save()

    def save(self) -> None:
        """Write the drawings that are not on disk yet. Raises InputError."""
        if not self._unsaved:
            return
        arrays = {
            "keys": key_table(list(self._unsaved)),
            "pictures": np.stack(list(self._unsaved.values())),
            "checks": np.stack([_check(picture) for picture in self._unsaved.values()]),
        }
        content = hashlib.sha256(arrays["keys"].data).hexdigest()[:32]
        path = self._folder / f"{self._prefix}-{content}.safetensors"
        write_arrays(path, arrays, {"settings": self._settings, "costs": cost_text(self._unsaved_costs)})
        self._places |= {key: (path, row) for row, key in enumerate(self._unsaved)}
        self._costs = total([self._costs, self._unsaved_costs])
        self._unsaved, self._unsaved_costs = {}, {}

    def _index(self, file: Any) -> tuple[npt.NDArray[np.uint8], dict[str, PartCost]]:
        metadata = read_metadata(file, self._settings)
        keys = read_keys(file)
        for name, shape in (("pictures", self._shape), ("checks", (32,))):
            values = file.get_slice(name)
            if values.get_dtype() != "U8" or tuple(values.get_shape()) != (len(keys), *shape):
                raise ValueError(f"its {name} are {values.get_dtype()} of shape {values.get_shape()}")
        return keys, read_costs(metadata["costs"])


def _read_rows(file: Any, rows: Sequence[tuple[bytes, int]]) -> dict[bytes, Picture]:
    pictures, checks = file.get_slice("pictures"), file.get_slice("checks")
    found = {}
    for key, row in rows:
        picture = pictures[row : row + 1][0]
        if not np.array_equal(checks[row : row + 1][0], _check(picture)):
            raise ValueError(f"its drawing {row} is not what was written")
        found[key] = picture
    return found


def _check(picture: Picture) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(picture).data).digest(), np.uint8)
