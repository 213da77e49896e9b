"""Embedding the crops of a batch, their mirror images, and their drawings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import Crop
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.fusion.cache import Arrays, poses_digest
from posereid.fusion.costs import Stopwatch
from posereid.fusion.drawings import DrawingCache, draw_poses
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.joints import Joints

# Drawings embedded at a time; their number for each batch of crops grows with the poses.
_EMBEDDED_TOGETHER = 128


class PartsEmbedder:
    """Networks, poses and crops of one call, and the parts of a batch."""

    def __init__(
        self,
        embedder: Embedder,
        generator: PoseTransferGenerator | None,
        discriminator: PatchDiscriminator | None,
        poses: Sequence[Joints],
        flips: bool,
        crops: Sequence[Crop],
    ) -> None:
        self.embedder, self.generator, self.discriminator = embedder, generator, discriminator
        self.poses, self.flips = poses, flips
        self.device = next(embedder.parameters()).device
        self.drawn_size = embedder.crop_size if generator is None else generator.crop_size
        self.images = CropImages(crops, *embedder.crop_size, cache_gb=0)
        self.sources = (
            self.images if self.drawn_size == embedder.crop_size else CropImages(crops, *self.drawn_size, cache_gb=0)
        )
        self.drawings: DrawingCache | None = None
        self.watch = Stopwatch(self.device)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parts of one crop."""
        count, dimensions = len(self.poses), self.embedder.embedding.out_features
        posed = (count, dimensions)
        return {
            "own": (dimensions,),
            "flipped": (dimensions,),
            "posed": posed,
            "posed_flipped": posed,
            "realism": (count,),
        }

    def settings(self, digests: dict[str, str | None]) -> dict[str, Any]:
        """All that an embedding depends on but its crop, as plain values. Raises ValueError for a missing digest."""
        for name, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            if network is None:
                digests = {**digests, name: None}
            elif digests[name] is None:
                raise ValueError(f"a cache needs the {name}'s digest")
        return {
            **digests,
            "embedder_sizes": [*self.embedder.crop_size, *self.embedder.input_size],
            "generator_size": list(self.drawn_size),
            # Weights do not tell which of the two readings of equation 3 they were trained with.
            "adain": None if self.generator is None else str(self.generator.pagn.blocks[0].reading),
            "poses": [len(self.poses), poses_digest(self.poses)],
            "flips": self.flips,
            "device": self.device.type,
        }

    def embed(self, batch: Sequence[int], has_pose: npt.NDArray[np.bool_], keys: Sequence[bytes] | None) -> Arrays:
        """The parts of some crops, by name; ``keys`` are theirs in the cache of drawings."""
        rows: Arrays = {name: np.zeros((len(batch), *shape), np.float32) for name, shape in self.shapes.items()}
        rows["realism"][:] = 1 if self.discriminator is None else 0
        with self.watch.part("own", len(batch)):
            pixels = torch.stack([self.images.image(position) for position in batch])
            rows["own"][:] = self._embedded(pixels)
        if self.flips:
            with self.watch.part("flipped", len(batch)):
                rows["flipped"][:] = self._embedded(pixels.flip(-1))
        drawable = np.flatnonzero(has_pose).tolist()
        if self.generator is None or not len(drawable):
            return rows
        chosen = [batch[place] for place in drawable]
        sources = (
            pixels[drawable]
            if self.sources is self.images
            else torch.stack([self.sources.image(position) for position in chosen])
        )
        drawn = self._drawn(chosen, sources, None if keys is None else [keys[place] for place in drawable])
        if self.discriminator is not None:
            with self.watch.part("judging", len(chosen)):
                rows["realism"][drawable] = self._judged(sources, drawn)
        pictures = drawn.flatten(0, 1)
        for name, flipped in (("posed", False), ("posed_flipped", True))[: 1 + self.flips]:
            with self.watch.part(name, len(chosen)):
                features = self._embedded(pictures.flip(-1) if flipped else pictures)
                rows[name][drawable] = features.reshape(len(chosen), len(self.poses), -1)
        return rows

    def _embedded(self, pixels: UInt8[Tensor, "b 3 h w"]) -> npt.NDArray[np.float32]:
        features = []
        for part in pixels.split(_EMBEDDED_TOGETHER):
            images = to_float(part.to(self.device))
            if images.shape[-2:] != self.embedder.crop_size:
                images = F.interpolate(images, self.embedder.crop_size, mode="bilinear", antialias=True)
            features.append(self.embedder.embed(images).float().cpu())
        return torch.cat(features).numpy()

    def _drawn(
        self, positions: Sequence[int], pixels: UInt8[Tensor, "b 3 h w"], keys: Sequence[bytes] | None
    ) -> UInt8[Tensor, "b poses 3 h w"]:
        """Crops in all poses: from the cache of drawings where it has them."""
        assert self.generator is not None
        cache = self.drawings if keys is not None else None
        found = cache.read(keys) if cache is not None and keys is not None else {}
        fresh = [n for n in range(len(positions)) if keys is None or keys[n] not in found]
        new = torch.empty(0, len(self.poses), *pixels.shape[1:], dtype=torch.uint8)
        if fresh:
            spent = Stopwatch(next(self.generator.parameters()).device)
            with spent.part("drawing", len(fresh)):
                joints = [self.sources.joints(positions[n]) for n in fresh]
                new = draw_poses(self.generator, pixels[fresh], joints, self.poses)
            cost = spent.take().drawing
            self.watch.add("drawing", cost)
            if len(fresh) == len(positions) and cache is None:
                return new
            new = new.cpu()
            if cache is not None and keys is not None:
                cache.add([keys[n] for n in fresh], new.numpy(), cost)
        drawn = torch.empty(len(positions), *new.shape[1:], dtype=torch.uint8)
        drawn[fresh] = new
        for n in range(len(positions)):
            if keys is not None and keys[n] in found:
                drawn[n] = torch.from_numpy(found[keys[n]])
        if cache is not None and found:
            self.watch.add("drawing", cache.cost(len(found)))
        return drawn

    def _judged(
        self, sources: UInt8[Tensor, "b 3 h w"], drawn: UInt8[Tensor, "b poses 3 h w"]
    ) -> npt.NDArray[np.float32]:
        """D_I's word on each drawing, (b, poses) in [0, 1]."""
        assert self.discriminator is not None
        device = next(self.discriminator.parameters()).device
        conditions = sources.repeat_interleave(drawn.shape[1], dim=0)
        scores = []
        for condition, picture in zip(
            conditions.split(_EMBEDDED_TOGETHER), drawn.flatten(0, 1).split(_EMBEDDED_TOGETHER), strict=True
        ):
            logits = self.discriminator(to_float(condition.to(device)), to_float(picture.to(device)))
            scores.append(torch.sigmoid(logits.float()).mean(dim=(1, 2, 3)).cpu())
        return torch.cat(scores).unflatten(0, drawn.shape[:2]).numpy()
