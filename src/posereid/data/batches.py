"""From positions in a crop table to tensors: decoded pictures and the batches that training consumes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from posereid.data.crops import Crop
from posereid.data.images import open_image
from posereid.data.sampling import ShardedBatches
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.maps import heat_maps

T = TypeVar("T")

NO_JOINTS = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))


def to_float(images: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Pixels 0 … 255 to floats in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(images: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """Floats in [-1, 1] to pixels 0 … 255, rounded; values outside are clipped."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class CropImages:
    """Decoded crops of one size, kept in memory once they have been read unless ``keep`` is false.

    A crop of 128×64 takes 24 kB: Market-1501's training split fits in 320 MB. Reading raises InputError when a
    file is not a picture.
    """

    def __init__(self, crops: Sequence[Crop], height: int, width: int, *, keep: bool = True) -> None:
        self.crops, self.height, self.width, self.keep = crops, height, width, keep
        self._decoded: dict[int, UInt8[Tensor, "3 h w"]] = {}
        self._scales: dict[int, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self.crops)

    def image(self, position: int) -> UInt8[Tensor, "3 h w"]:
        """The crop's pixels, (3, height, width) uint8."""
        if position in self._decoded:
            return self._decoded[position]
        picture = open_image(self.crops[position].path)
        self._scales[position] = (self.width / picture.width, self.height / picture.height)
        if picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        if self.keep:
            self._decoded[position] = pixels
        return pixels

    def joints(self, position: int) -> Joints:
        """The crop's joints, resized with it; all absent where it has none."""
        joints = self.crops[position].joints
        if joints is None:
            return NO_JOINTS
        if position not in self._scales:
            self.image(position)
        return joints.resized(*self._scales[position])

    def mask(self, position: int) -> Bool[Tensor, "h w"] | None:
        """The person's mask where the set has one."""
        path = self.crops[position].mask_path
        if path is None:
            return None
        picture = open_image(path).convert("L").resize((self.width, self.height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(picture) > 127)


class _Movable:
    def to(self: T, device: torch.device | str) -> T:
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(
            **{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in values.items()}
        )


@dataclass(frozen=True)
class PosePairBatch(_Movable):
    """Pairs (I_c, P_c) → (I_t, P_t) of one identity each: images uint8, joints in pixels of the image.

    ``labels`` are classifier classes (0 … number of training identities - 1).
    """

    source_images: UInt8[Tensor, "b 3 h w"]
    source_keypoints: Float[Tensor, "b 18 2"]
    source_present: Bool[Tensor, "b 18"]
    target_images: UInt8[Tensor, "b 3 h w"]
    target_keypoints: Float[Tensor, "b 18 2"]
    target_present: Bool[Tensor, "b 18"]
    labels: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def source_poses(self) -> Float[Tensor, "b 18 h w"]:
        """P_c, rendered where the batch lies."""
        return heat_maps(self.source_keypoints, self.source_present, *self.source_images.shape[-2:])

    @property
    def target_poses(self) -> Float[Tensor, "b 18 h w"]:
        """P_t, rendered where the batch lies."""
        return heat_maps(self.target_keypoints, self.target_present, *self.target_images.shape[-2:])


@dataclass(frozen=True)
class QuartetBatch(_Movable):
    """Quartets of equation 12: anchor, positive, two negatives; ``labels`` are classifier classes.

    A fifth image, where there is one, takes part in the identity loss alone.
    """

    images: UInt8[Tensor, "n images 3 h w"]
    labels: Int[Tensor, "n images"]


class PosePairs(Dataset[PosePairBatch]):
    """Pose pairs by (draw, source, target): a seed and two positions in the crop table.

    A share ``flip`` of the pairs is mirrored, both crops with their joints; ``draw`` decides which.
    """

    def __init__(self, images: CropImages, labels: dict[int, int], flip: float = 0.0) -> None:
        self.images, self.labels, self.flip = images, labels, flip

    def __getitem__(self, row: tuple[int, int, int]) -> PosePairBatch:
        """A batch of one pair."""
        draw, source, target = row
        mirrored = bool(np.random.default_rng(draw).random() < self.flip)
        return PosePairBatch(
            *self._crop(source, mirrored),
            *self._crop(target, mirrored),
            torch.tensor(self.labels[self.images.crops[source].identity]),
        )

    def _crop(self, position: int, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
        image, joints = self.images.image(position), self.images.joints(position)
        if mirrored:
            image, joints = image.flip(-1), joints.flipped(self.images.width)
        return image, torch.tensor(joints.xy), torch.tensor(joints.present)


class Quartets(Dataset[QuartetBatch]):
    """Quartets by (draw, anchor, positive, negative, other negative, …): a seed and the sampler's positions.

    Each crop is mirrored with probability ``flip`` and shifted by up to ``padding`` pixels; ``draw`` decides.
    """

    def __init__(self, images: CropImages, labels: dict[int, int], flip: float = 0.0, padding: int = 0) -> None:
        self.images, self.labels = images, labels
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(flip),
                v2.RandomCrop((images.height, images.width), padding=padding, padding_mode="edge"),
            ]
        )

    def __getitem__(self, row: tuple[int, ...]) -> QuartetBatch:
        """A batch of one quartet."""
        draw, *positions = row
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw)
            images = torch.stack([self.transform(self.images.image(position)) for position in positions])
        labels = [self.labels[self.images.crops[position].identity] for position in positions]
        return QuartetBatch(images, torch.tensor(labels))


def collate(items: Sequence[T]) -> T:
    """Stack batches of one into a batch of many, field by field."""
    first = items[0]
    return type(first)(
        **{f.name: torch.stack([getattr(item, f.name) for item in items]) for f in fields(first)}  # type: ignore[arg-type]
    )


def batch_loader(dataset: Dataset[T], batches: ShardedBatches, workers: int) -> DataLoader[T]:
    """A loader that yields one process's share of each batch, decoded by ``workers`` processes."""
    collate_items: Callable[[Sequence[T]], T] = collate
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_items,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def class_labels(crops: Sequence[Crop]) -> dict[int, int]:
    """Identity → classifier class, in ascending order of identity; junk and distractors have none."""
    return {identity: n for n, identity in enumerate(sorted({c.identity for c in crops if c.identified}))}
