"""Embedding crops, their mirror images, and their drawings: of each what is not there yet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor, nn

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import Crop
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.fusion.cache import PartStore, crop_keys, pose_digest
from posereid.fusion.costs import PartCost, PartCosts, timed, total
from posereid.fusion.drawings import DrawingCache, draw_pose, drawing_key, encode_crops
from posereid.fusion.table import PartTable
from posereid.generator.generator import EncodedPeople, PoseTransferGenerator
from posereid.generator.texture import LIMBS_VERSION
from posereid.pose.joints import Joints

Read = Callable[[int], UInt8[Tensor, "3 h w"]]
# An encoded crop by its position, and what it took to encode.
Appearances = dict[int, tuple[EncodedPeople, PartCost]]


class CropCache:
    """The folder in which the parts of some crops are kept, each under the settings that it depends on.

    A part depends on the networks that made it and on its pose, if any: what is kept of one embedder, one generator
    and one pose serves every call in which they occur. Raises InputError for a crop that cannot be read, ValueError
    for a network without its digest.
    """

    def __init__(
        self,
        folder: Path,
        crops: Sequence[Crop],
        networks: Mapping[str, nn.Module | None],
        digests: Mapping[str, str | None],
    ) -> None:
        self._folder = folder
        self._networks = {
            name: _settings(name, network, digests[name]) for name, network in networks.items() if network
        }
        keys = [crop_keys(crop) for crop in crops]
        self.of_files, self.of_files_and_joints = [key for key, _ in keys], [key for _, key in keys]

    def store(self, part: str, networks: Sequence[str], shape: tuple[int, ...], pose: Joints | None) -> PartStore:
        """Where a part is kept that these networks made."""
        settings = {name: self._networks[name] for name in networks}
        place = None if pose is None else pose_digest(pose)
        return PartStore(self._folder, {"part": part, "pose": place, **settings}, shape)

    def drawings(self, size: tuple[int, int]) -> DrawingCache:
        """Where the generator's drawings are kept, of one size."""
        return DrawingCache(self._folder, {"generator": self._networks["generator"]}, size)


def _settings(name: str, network: nn.Module, digest: str | None) -> dict[str, Any]:
    """What a network's answers depend on, as plain values."""
    if digest is None:
        raise ValueError(f"a cache needs the {name}'s digest")
    settings: dict[str, Any] = {"weights": digest, "device": next(network.parameters()).device.type}
    if isinstance(network, Embedder):
        settings["sizes"] = [*network.crop_size, *network.input_size]
    elif isinstance(network, PoseTransferGenerator):
        # What weights do not tell: which reading of equation 3 they were trained with, and how pixels are carried.
        settings |= {"size": list(network.crop_size), "adain": str(network.pagn.blocks[0].reading)}
        settings |= {"start": network.pagn.start, "content": network.pagn.content}
        settings |= {"limbs": LIMBS_VERSION} if network.texture is not None else {}
    return settings


class PartsEmbedder:
    """Networks, poses and crops of one call, and all parts of those crops.

    ``drawable`` are the positions of the crops that are drawn; ``kept`` is where parts are kept, if anywhere.
    """

    def __init__(
        self,
        embedder: Embedder,
        generator: PoseTransferGenerator | None,
        discriminator: PatchDiscriminator | None,
        poses: Sequence[Joints],
        flips: bool,
        crops: Sequence[Crop],
        drawable: Sequence[int],
        kept: CropCache | None,
        keep_drawings: bool,
    ) -> None:
        self.embedder, self.generator, self.discriminator, self.poses = embedder, generator, discriminator, poses
        self.kept = kept
        size = embedder.crop_size if generator is None else generator.crop_size
        self.images = CropImages(crops, *embedder.crop_size, cache_gb=0)
        self.sources = self.images if size == embedder.crop_size else CropImages(crops, *size, cache_gb=0)
        count, dimensions = len(crops), embedder.embedding.out_features
        self.arrays = {
            "own": np.zeros((count, dimensions), np.float32),
            "flipped": np.zeros((count, dimensions), np.float32),
            "posed": np.zeros((count, len(poses), dimensions), np.float32),
            "posed_flipped": np.zeros((count, len(poses), dimensions), np.float32),
            "realism": np.full((count, len(poses)), 1 if discriminator is None else 0, np.float32),
        }
        everyone, mirrored = range(count), drawable if flips else ()
        self.own = self._table("own", ("embedder",), everyone)
        self.flipped = self._table("flipped", ("embedder",), everyone if flips else ())
        self.in_poses = [
            {
                "posed": self._table("posed", ("embedder", "generator"), drawable, number),
                "posed_flipped": self._table("posed_flipped", ("embedder", "generator"), mirrored, number),
                "realism": self._table(
                    "realism", ("generator", "discriminator"), drawable if discriminator else (), number
                ),
            }
            for number in range(len(poses))
        ]
        to_draw = any(table.lacking(drawable) for in_pose in self.in_poses for table in in_pose.values())
        self.drawings = kept.drawings(size) if kept is not None and keep_drawings and to_draw else None

    def _table(self, part: str, networks: Sequence[str], wanted: Sequence[int], number: int | None = None) -> PartTable:
        """The table of a part, in pose ``number`` where it has one; an empty one is kept nowhere."""
        values = self.arrays[part] if number is None else self.arrays[part][:, number]
        if self.kept is None or not wanted:
            return PartTable(values, wanted)
        keys = self.kept.of_files if number is None else self.kept.of_files_and_joints
        pose = None if number is None else self.poses[number]
        return PartTable(values, wanted, keys, self.kept.store(part, networks, values.shape[1:], pose))

    @property
    def tables(self) -> Iterator[PartTable]:
        """Those of all parts and poses."""
        yield from (self.own, self.flipped)
        for in_pose in self.in_poses:
            yield from in_pose.values()

    @property
    def costs(self) -> PartCosts:
        """What all parts took."""
        return PartCosts(**total(table.costs for table in self.tables), poses=len(self.poses))

    def lacking(self) -> list[int]:
        """Positions of the crops of which some part is to be made."""
        everyone = range(len(self.images))
        return sorted({position for table in self.tables for position in table.lacking(everyone)})

    def embed(self, batch: Sequence[int]) -> None:
        """Make what some crops lack."""
        image: Read = cache(self.images.image)
        source: Read = image if self.sources is self.images else cache(self.sources.image)
        if lacking := self.own.lacking(batch):
            features, cost = timed(_device(self.embedder), len(lacking), self._read_and_embedded, image, lacking)
            self.own.add(lacking, features, {"own": cost})
        if lacking := self.flipped.lacking(batch):
            pixels = _stack(image, lacking).flip(-1)
            features, cost = timed(_device(self.embedder), len(lacking), self._embedded, pixels)
            self.flipped.add(lacking, features, {"flipped": cost})
        appearances: Appearances = {}
        for pose, tables in zip(self.poses, self.in_poses, strict=True):
            self._embed_in_pose(pose, tables, batch, source, appearances)

    def _embed_in_pose(
        self, pose: Joints, tables: dict[str, PartTable], batch: Sequence[int], source: Read, appearances: Appearances
    ) -> None:
        lacking = sorted({position for table in tables.values() for position in table.lacking(batch)})
        if not lacking:
            return
        sources = _stack(source, lacking)
        drawn, drawing_costs = self._drawn(lacking, sources, pose, appearances)
        row_of = {position: row for row, position in enumerate(lacking)}
        for name, table in tables.items():
            positions = table.lacking(lacking)
            if not positions:
                continue
            rows = [row_of[position] for position in positions]
            if name == "realism":
                words, cost = timed(_device(self.discriminator), len(rows), self._judged, sources[rows], drawn[rows])
                table.add(positions, words, {"judging": cost})
                continue
            pictures = drawn[rows].flip(-1) if name == "posed_flipped" else drawn[rows]
            features, cost = timed(_device(self.embedder), len(rows), self._embedded, pictures)
            before = {each: spent.share(len(rows)) for each, spent in drawing_costs.items()} if name == "posed" else {}
            table.add(positions, features, {**before, name: cost})

    def _read_and_embedded(self, image: Read, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        return self._embedded(_stack(image, positions))

    def _embedded(self, pixels: UInt8[Tensor, "b 3 h w"]) -> npt.NDArray[np.float32]:
        images = to_float(pixels.to(_device(self.embedder)))
        if images.shape[-2:] != self.embedder.crop_size:
            images = F.interpolate(images, self.embedder.crop_size, mode="bilinear", antialias=True)
        return self.embedder.embed(images).float().cpu().numpy()

    def _drawn(
        self, positions: Sequence[int], sources: UInt8[Tensor, "b 3 h w"], pose: Joints, appearances: Appearances
    ) -> tuple[UInt8[Tensor, "b 3 h w"], dict[str, PartCost]]:
        """Crops in one pose, from the cache of drawings where it has them; and what drawing them took."""
        assert self.generator is not None
        keys: list[bytes] = []
        found: dict[bytes, npt.NDArray[np.uint8]] = {}
        costs: dict[str, PartCost] = {}
        if self.drawings is not None and self.kept is not None:
            keys = [drawing_key(self.kept.of_files_and_joints[position], pose) for position in positions]
            found = self.drawings.read(keys)
            costs = self.drawings.costs(len(found))
        drawn = torch.empty_like(sources)
        for row, key in enumerate(keys):
            if key in found:
                drawn[row] = torch.from_numpy(found[key])
        fresh = [row for row in range(len(positions)) if not keys or keys[row] not in found]
        if fresh:
            people, encoding = self._encoded([positions[row] for row in fresh], sources[fresh], appearances)
            pictures, drawing = timed(_device(self.generator), len(fresh), draw_pose, self.generator, people, pose)
            drawn[fresh] = pictures.cpu()
            new = {"encoding": encoding, "drawing": drawing}
            costs = total([costs, new])
            if self.drawings is not None:
                self.drawings.add([keys[row] for row in fresh], drawn[fresh].numpy(), new)
        return drawn, costs

    def _encoded(
        self, positions: Sequence[int], sources: UInt8[Tensor, "b 3 h w"], appearances: Appearances
    ) -> tuple[EncodedPeople, PartCost]:
        """The encoded crops and what they took, now or for an earlier pose."""
        assert self.generator is not None
        rows = [row for row, position in enumerate(positions) if position not in appearances]
        if rows:
            joints = [self.sources.joints(positions[row]) for row in rows]
            device = _device(self.generator)
            people, cost = timed(device, len(rows), encode_crops, self.generator, sources[rows], joints)
            new = zip(rows, people.apart(), strict=True)
            appearances |= {positions[row]: (each, cost.share(1)) for row, each in new}
        chosen = [appearances[position] for position in positions]
        return EncodedPeople.together([each for each, _ in chosen]), sum((cost for _, cost in chosen), PartCost())

    def _judged(self, sources: UInt8[Tensor, "b 3 h w"], drawn: UInt8[Tensor, "b 3 h w"]) -> npt.NDArray[np.float32]:
        """D_I's word on each drawing, (b,) in [0, 1]."""
        assert self.discriminator is not None
        device = _device(self.discriminator)
        logits = self.discriminator(to_float(sources.to(device)), to_float(drawn.to(device)))
        return torch.sigmoid(logits.float()).mean(dim=(1, 2, 3)).cpu().numpy()


def _stack(read: Read, positions: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
    return torch.stack([read(position) for position in positions])


def _device(network: nn.Module | None) -> torch.device:
    assert network is not None
    return next(network.parameters()).device
