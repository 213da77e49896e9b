"""Crops drawn in several poses, and those drawings on disk, where several embedders find them."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from safetensors import safe_open
from torch import Tensor

from posereid.data.batches import stacked, to_float, to_pixels
from posereid.fusion.cache import (
    DAMAGE,
    open_folder,
    read_keys,
    set_aside,
    settings_name,
    settings_text,
    write_arrays,
)
from posereid.fusion.costs import PartCost
from posereid.generator.generator import PoseTransferGenerator
from posereid.messages import shown
from posereid.pose.joints import Joints
from posereid.pose.maps import heat_maps

# While a file is written its pictures lie in memory three times.
_SHARD_BYTES = 2**27


@torch.no_grad()
def draw_poses(
    generator: PoseTransferGenerator,
    images: UInt8[Tensor, "b 3 h w"],
    sources: Sequence[Joints],
    targets: Sequence[Joints],
) -> UInt8[Tensor, "b poses 3 h w"]:
    """Each crop in each of the poses, on the generator's device; joints in pixels of h × w, its ``crop_size``.

    What :func:`posereid.augmentation.drawing.draw` gives for each pair, but that a crop's appearance is encoded once
    for all its poses.
    """
    device = next(generator.parameters()).device
    height, width = images.shape[-2:]

    def maps(poses: Sequence[Joints]) -> Tensor:
        keypoints, present = stacked(poses)
        return heat_maps(keypoints.to(device), present.to(device), height, width)

    source = generator.pose_encoder(maps(sources))
    appearance, _ = generator.paan(generator.appearance_encoder(to_float(images.to(device))), source)
    drawn = generator.pagn(
        appearance.repeat_interleave(len(targets), dim=0), maps(targets).repeat(len(images), 1, 1, 1)
    )
    return to_pixels(drawn).unflatten(0, (len(images), len(targets)))


class DrawingCache:
    """Drawings of crops, ``shape`` (poses, 3, h, w) uint8 each, under one set of settings, in files of ``folder``.

    Files hold up to 128 MiB and are named by what is in them, so that processes that share the folder never want
    the same name for different drawings. Only keys are held in memory; a drawing is checked when it is read.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        self._folder, self._shape = folder, shape
        self._settings = settings_text(settings)
        self._prefix = f"drawings-{settings_name(self._settings)}"
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._keys: list[bytes] = []
        self._pictures: list[npt.NDArray[np.uint8]] = []
        self._cost = PartCost()
        self._unsaved_cost = PartCost()
        open_folder(folder)
        for path in sorted(folder.glob(f"{self._prefix}-*.safetensors")):
            try:
                self._index(path)
            except DAMAGE as error:
                set_aside(path, shown(str(error), 150))

    def cost(self, crops: int) -> PartCost:
        """What drawing ``crops`` of the crops in the cache took when they were drawn."""
        if not self._cost.crops:
            return PartCost()
        return PartCost(self._cost.seconds / self._cost.crops * crops, crops)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.uint8]]:
        """Those of the drawings that are there and whole, by key."""
        wanted: dict[Path, list[tuple[bytes, int]]] = {}
        for key in keys:
            if key in self._places:
                path, row = self._places[key]
                wanted.setdefault(path, []).append((key, row))
        found: dict[bytes, npt.NDArray[np.uint8]] = {}
        for path, rows in wanted.items():
            try:
                found |= self._read_rows(path, rows)
            except DAMAGE as error:
                self._places = {key: place for key, place in self._places.items() if place[0] != path}
                if path.exists():
                    set_aside(path, shown(str(error), 150))
        return found

    def add(self, keys: Sequence[bytes], pictures: npt.NDArray[np.uint8], cost: PartCost) -> None:
        """Keep some crops' drawings (m, poses, 3, h, w); written when a file is full, or by :meth:`save`."""
        self._keys += keys
        self._pictures.append(pictures)
        self._unsaved_cost += cost
        if sum(part.nbytes for part in self._pictures) >= _SHARD_BYTES:
            self.save()

    def save(self) -> None:
        """Write the drawings that are not on disk yet. Raises InputError."""
        if not self._keys:
            return
        pictures = np.concatenate(self._pictures)
        arrays = {
            "keys": np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 32),
            "pictures": pictures,
            "checks": np.stack([_check(picture) for picture in pictures]),
        }
        content = hashlib.sha256(b"".join(self._keys)).hexdigest()[:32]
        path = self._folder / f"{self._prefix}-{content}.safetensors"
        cost = self._unsaved_cost
        metadata = {"settings": self._settings, "seconds": repr(float(cost.seconds)), "crops": str(cost.crops)}
        write_arrays(path, arrays, metadata)
        self._places |= {key: (path, row) for row, key in enumerate(self._keys)}
        self._cost += cost
        self._keys, self._pictures, self._unsaved_cost = [], [], PartCost()

    def _index(self, path: Path) -> None:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != self._settings:
                raise ValueError("it was made with other settings than its name says")
            seconds, crops = float(metadata["seconds"]), int(metadata["crops"])
            if not 0 <= seconds < math.inf or crops < 0:
                raise ValueError(f"it says that {crops} crops took {seconds} seconds")
            keys = read_keys(file)
            for name, shape in (("pictures", self._shape), ("checks", (32,))):
                values = file.get_slice(name)
                if values.get_dtype() != "U8" or tuple(values.get_shape()) != (len(keys), *shape):
                    raise ValueError(f"its {name} are {values.get_dtype()} of shape {values.get_shape()}")
        self._places |= {bytes(key): (path, row) for row, key in enumerate(keys)}
        self._cost += PartCost(seconds, crops)

    def _read_rows(self, path: Path, rows: Sequence[tuple[bytes, int]]) -> dict[bytes, npt.NDArray[np.uint8]]:
        found = {}
        with safe_open(path, framework="np") as file:
            pictures, checks = file.get_slice("pictures"), file.get_slice("checks")
            for key, row in rows:
                picture = pictures[row : row + 1][0]
                if not np.array_equal(checks[row : row + 1][0], _check(picture)):
                    raise ValueError(f"its drawing {row} is not what was written")
                found[key] = picture
        return found


def _check(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(picture).data).digest(), np.uint8)
