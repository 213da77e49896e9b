"""From positions in a crop table to tensors: decoded pictures and the batches that training consumes."""

import mmap
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from posereid.data.crops import Crop
from posereid.data.images import open_crop, open_mask
from posereid.data.sampling import ShardedBatches
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.maps import heat_maps

T = TypeVar("T")
Rows = Sequence[tuple[int, ...]]

NO_JOINTS = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))

CACHE_GB = 2.0
"""Memory that decoded crops may take unless a recipe says otherwise."""


def to_float(images: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Pixels 0 … 255 to floats in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_pixels(images: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """Floats in [-1, 1] to pixels 0 … 255, rounded; values outside are clipped."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def _shared_zeros(shape: tuple[int, ...], kind: type[np.generic]) -> npt.NDArray[Any]:
    """Zeros in anonymous memory that forked processes share; a page exists once something is written to it."""
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * np.dtype(kind).itemsize))
    return np.frombuffer(memory, kind, count).reshape(shape)


class CropImages:
    """Decoded crops of one size, kept in at most ``cache_gb`` of memory once they have been read.

    A crop of 128×64 takes 24 kB: Market-1501's training split fits in 320 MB. Of a set that does not fit, the first
    crops are kept and the others decoded each time: draws are random, so no choice serves them better. Processes
    forked from this one share the memory. Reading raises InputError when a file is not a picture.
    """

    def __init__(self, crops: Sequence[Crop], height: int, width: int, *, cache_gb: float = CACHE_GB) -> None:
        self.crops, self.height, self.width = crops, height, width
        self.kept = min(len(crops), int(cache_gb * 1e9 / (3 * height * width)))
        self._allocate()

    def _allocate(self) -> None:
        self._pixels = torch.from_numpy(_shared_zeros((self.kept, 3, self.height, self.width), np.uint8))
        self._decoded = _shared_zeros((self.kept,), np.bool_)
        self._scales = _shared_zeros((len(self.crops), 2), np.float64)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is started afresh instead of forked cannot see this memory and begins with its own.
        return {"crops": self.crops, "height": self.height, "width": self.width, "kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()

    def __len__(self) -> int:
        return len(self.crops)

    def image(self, position: int) -> UInt8[Tensor, "3 h w"]:
        """The crop's pixels, (3, height, width) uint8."""
        if position < self.kept and self._decoded[position]:
            return self._pixels[position]
        picture = open_crop(self.crops[position])
        self._scales[position] = (self.width / picture.width, self.height / picture.height)
        if picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        if position < self.kept:
            self._pixels[position] = pixels
            self._decoded[position] = True
        return pixels

    def images(self, positions: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        """The pixels of several crops, in the order of ``positions``."""
        wanted = np.asarray(positions, np.int64)
        if len(wanted) and wanted.max() < self.kept and self._decoded[wanted].all():
            return self._pixels[torch.from_numpy(wanted)]
        return torch.stack([self.image(position) for position in positions])

    def joints(self, position: int) -> Joints:
        """The crop's joints, resized with it; all absent where it has none."""
        joints = self.crops[position].joints
        if joints is None:
            return NO_JOINTS
        if not self._scales[position, 0]:
            self.image(position)
        return joints.resized(*self._scales[position])

    def mask(self, position: int) -> Bool[Tensor, "h w"] | None:
        """The person's mask where the set has one."""
        crop = self.crops[position]
        if crop.mask_path is None:
            return None
        picture = open_mask(crop).resize((self.width, self.height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(picture) > 127)


class StandIns:
    """Who takes the place of a crop that cannot be read: another of the same identity, real or generated as it was.

    ``usable`` says which crops may stand in. The choice depends on the row's draw and on what is readable alone, so
    that a resumed run makes the same one.
    """

    def __init__(self, images: CropImages, usable: Callable[[Crop], bool]) -> None:
        self.images = images
        self._groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for position, crop in enumerate(images.crops):
            if usable(crop):
                self._groups[crop.identity, crop.generated].append(position)

    def replace(self, rows: Rows) -> tuple[Rows, dict[int, str]]:
        """Rows (draw, positions…) of readable crops, and what was wrong with the others by position.

        Raises InputError when an identity has no readable crop left.
        """
        unreadable: dict[int, str] = {}
        return [(draw, *self._row(draw, positions, unreadable)) for draw, *positions in rows], unreadable

    def _row(self, draw: int, positions: list[int], unreadable: dict[int, str]) -> list[int]:
        found = list(positions)
        for column, position in enumerate(positions):
            for candidate in self._candidates(draw, column, position, found):
                try:
                    self.images.image(candidate)
                except InputError as error:
                    unreadable[candidate] = str(error)
                else:
                    found[column] = candidate
                    break
            else:
                identity = self.images.crops[position].identity
                raise InputError(f"identity {identity}: none of its crops can be read; {unreadable[position]}")
        return found

    def _candidates(self, draw: int, column: int, position: int, taken: Sequence[int]) -> Iterator[int]:
        yield position
        crop = self.images.crops[position]
        others = np.random.default_rng((draw, column)).permutation(self._groups[crop.identity, crop.generated])
        # Twice the same crop in a row is better than none.
        yield from sorted((int(other) for other in others if other != position), key=lambda other: other in taken)


def _read(
    images: CropImages, rows: Rows, stand_ins: StandIns | None
) -> tuple[Rows, UInt8[Tensor, "b columns 3 h w"], dict[int, str]]:
    """The rows' crops; where one cannot be read, of rows that stand-ins have made readable."""
    unreadable: dict[int, str] = {}
    try:
        pixels = images.images([position for _, *positions in rows for position in positions])
    except InputError:
        if stand_ins is None:
            raise
        rows, unreadable = stand_ins.replace(rows)
        pixels = images.images([position for _, *positions in rows for position in positions])
    return rows, pixels.unflatten(0, (len(rows), -1)), unreadable


class Batch:
    """A batch of tensors; ``unreadable`` says what was wrong with files in whose place others stand, by position."""

    unreadable: Mapping[int, str]

    def pin_memory(self: T) -> T:
        """The same batch in page-locked memory, from which a GPU copies while the CPU goes on."""
        return self._each(lambda tensor: tensor.pin_memory())  # type: ignore[attr-defined]

    def to(self: T, device: torch.device | str) -> T:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))  # type: ignore[attr-defined]

    def _each(self: T, change: Callable[[Tensor], Tensor]) -> T:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})


@dataclass(frozen=True)
class PosePairBatch(Batch):
    """Pairs (I_c, P_c) → (I_t, P_t) of one identity each: images uint8, joints in pixels of the image.

    ``labels`` are classifier classes (0 … number of training identities - 1), ``target_cameras`` numbers from 1,
    below 0 where the pair is mirrored: a mirrored backdrop is another one.
    """

    source_images: UInt8[Tensor, "b 3 h w"]
    source_keypoints: Float[Tensor, "b 18 2"]
    source_present: Bool[Tensor, "b 18"]
    target_images: UInt8[Tensor, "b 3 h w"]
    target_keypoints: Float[Tensor, "b 18 2"]
    target_present: Bool[Tensor, "b 18"]
    target_cameras: Int[Tensor, " b"]
    labels: Int[Tensor, " b"]
    unreadable: Mapping[int, str] = field(default_factory=dict)

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
class QuartetBatch(Batch):
    """Quartets of equation 12: anchor, positive, two negatives; ``labels`` are classifier classes.

    Images after the fourth, where there are any, take part in the identity loss alone. ``generated`` says which
    images a generator drew.
    """

    images: UInt8[Tensor, "n images 3 h w"]
    labels: Int[Tensor, "n images"]
    generated: Bool[Tensor, "n images"]
    unreadable: Mapping[int, str] = field(default_factory=dict)


class PosePairs(Dataset[PosePairBatch]):
    """Batches of pose pairs by rows of (draw, source, target): a seed and two positions in the crop table.

    A share ``flip`` of the pairs is mirrored, both crops with their joints; ``draw`` decides which. With ``stand_ins``
    another crop of the identity takes the place of one that cannot be read; without, that raises InputError.
    """

    def __init__(
        self, images: CropImages, labels: dict[int, int], flip: float = 0.0, *, stand_ins: bool = False
    ) -> None:
        self.images, self.labels, self.flip = images, labels, flip
        self._stand_ins = StandIns(images, lambda crop: crop.can_pose) if stand_ins else None

    def __getitem__(self, rows: Rows) -> PosePairBatch:
        """The batch of these rows, in their order."""
        rows, pixels, unreadable = _read(self.images, rows, self._stand_ins)
        mirrored = np.array([np.random.default_rng(draw).random() < self.flip for draw, *_ in rows])
        pixels[mirrored] = pixels[mirrored].flip(-1)
        source, target = (self._joints([row[column] for row in rows], mirrored) for column in (1, 2))
        labels = torch.tensor([self.labels[self.images.crops[source].identity] for _, source, _ in rows])
        cameras = torch.tensor([self.images.crops[target].camera for _, _, target in rows])
        cameras[mirrored] *= -1
        return PosePairBatch(pixels[:, 0], *source, pixels[:, 1], *target, cameras, labels, unreadable)

    def _joints(
        self, positions: Sequence[int], mirrored: Bool[np.ndarray, " b"]
    ) -> tuple[Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
        joints = [self.images.joints(position) for position in positions]
        return stacked(
            [j.flipped(self.images.width) if mirror else j for j, mirror in zip(joints, mirrored, strict=True)]
        )


def stacked(joints: Sequence[Joints]) -> tuple[Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
    """Several people's joints as tensors: (x, y) in pixels, and which are present."""
    xy = np.stack([j.xy for j in joints]).astype(np.float32)
    return torch.from_numpy(xy), torch.from_numpy(np.stack([j.present for j in joints]))


def pose_maps(
    joints: Sequence[Joints], size: tuple[int, int], device: torch.device | str = "cpu"
) -> Float[Tensor, "b 18 h w"]:
    """Heat maps of several people's joints, in pixels of ``size`` (height, width), rendered on ``device``."""
    xy, present = stacked(joints)
    return heat_maps(xy.to(device), present.to(device), *size)


@dataclass(frozen=True)
class PosedCropBatch(Batch):
    """Crops with their joints: images uint8, keypoints (x, y) in pixels of the image."""

    images: UInt8[Tensor, "b 3 h w"]
    keypoints: Float[Tensor, "b 18 2"]
    present: Bool[Tensor, "b 18"]
    unreadable: Mapping[int, str] = field(default_factory=dict)


class PosedCrops(Dataset[PosedCropBatch]):
    """Batches of crops and their joints by rows of (draw, position); variation comes by the batch, not the draw.

    ``stand_ins`` is as in :class:`PosePairs`.
    """

    def __init__(self, images: CropImages, *, stand_ins: bool = False) -> None:
        self.images = images
        self._stand_ins = StandIns(images, lambda _: True) if stand_ins else None

    def __getitem__(self, rows: Rows) -> PosedCropBatch:
        """The batch of these rows, in their order."""
        rows, pixels, unreadable = _read(self.images, rows, self._stand_ins)
        joints = stacked([self.images.joints(position) for _, position in rows])
        return PosedCropBatch(pixels[:, 0], *joints, unreadable)


class Quartets(Dataset[QuartetBatch]):
    """Batches of quartets by rows of (draw, anchor, positive, negative, other negative, …).

    ``draw`` is a seed, the others positions in the crop table. Each crop is mirrored with probability ``flip`` and
    shifted by up to ``padding`` pixels each way, its edge repeated; ``draw`` decides. ``stand_ins`` is as in
    :class:`PosePairs`.
    """

    def __init__(
        self,
        images: CropImages,
        labels: dict[int, int],
        flip: float = 0.0,
        padding: int = 0,
        *,
        stand_ins: bool = False,
    ) -> None:
        self.images, self.labels, self.flip, self.padding = images, labels, flip, padding
        self._stand_ins = StandIns(images, lambda crop: crop.identified) if stand_ins else None

    def __getitem__(self, rows: Rows) -> QuartetBatch:
        """The batch of these rows, in their order."""
        rows, pixels, unreadable = _read(self.images, rows, self._stand_ins)
        variation = [np.random.default_rng(draw).random((pixels.shape[1], 3)) for draw, *_ in rows]
        images = shifted(pixels.flatten(0, 1), np.concatenate(variation), self.flip, self.padding)
        crops = [[self.images.crops[position] for position in row[1:]] for row in rows]
        labels = torch.tensor([[self.labels[crop.identity] for crop in row] for row in crops])
        generated = torch.tensor([[crop.generated for crop in row] for row in crops])
        return QuartetBatch(images.view_as(pixels), labels, generated, unreadable)


def shifted(
    images: UInt8[Tensor, "b 3 h w"], variation: Float[np.ndarray, "b 3"], flip: float, padding: int
) -> UInt8[Tensor, "b 3 h w"]:
    """Mirror images with probability ``flip`` and shift them by up to ``padding`` pixels, their edges repeated.

    ``variation`` holds three numbers in [0, 1) for each image: whether it is mirrored, how far it moves down, how far
    to the right.
    """
    height, width = images.shape[-2:]
    mirrored = torch.from_numpy(variation[:, 0] < flip)
    moves = torch.from_numpy(np.floor(variation[:, 1:] * (2 * padding + 1)).astype(np.int64) - padding)
    rows = (torch.arange(height) - moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) - moves[:, 1:]).clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    each, channels = torch.arange(len(images)), torch.arange(3)
    return images[each[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def load_batches(dataset: Dataset[T], batches: ShardedBatches, workers: int, *, pinned: bool = False) -> Iterator[T]:
    """One process's share of each batch, in order, decoded by ``workers`` processes or by this one.

    ``pinned`` batches lie where a GPU copies from while the CPU goes on. Raises InputError where the dataset does.
    """
    loader: DataLoader[T] = DataLoader(
        dataset,
        # Each "sample" is a whole batch: the dataset gathers it in one go.
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_leave_signals_to_the_trainer,
        # Only forked processes share the cache of decoded crops.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=pinned,
    )
    try:
        yield from loader
    except InputError as error:
        # From a worker it arrives wrapped in that process's stack trace.
        raise InputError(str(error).strip().rpartition(f"{InputError.__name__}: ")[2]) from None


def _unchanged(batch: T) -> T:
    return batch


def _leave_signals_to_the_trainer(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer saves its state first and needs its workers for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What ends a batch job or a container sends SIGTERM to all processes too; a second one is the trainer's own.
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


def class_labels(crops: Sequence[Crop]) -> dict[int, int]:
    """Identity → classifier class, in ascending order of identity; junk and distractors have none."""
    return {identity: n for n, identity in enumerate(sorted({c.identity for c in crops if c.identified}))}
