"""What the generator draws from: batches of pictures and poses, read ahead while others are drawn."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import UInt8
from torch import Tensor

from posereid.augmentation.targets import Drawing
from posereid.data.batches import CropImages
from posereid.data.crops import Crop, CropTable
from posereid.data.images import picture_size
from posereid.pose.joints import Joints

_AHEAD = 2


@dataclass(frozen=True)
class DrawingBatch:
    """Drawings, their sources' pixels and joints, their targets' joints; all in pixels of the generator's crops."""

    drawings: Sequence[Drawing]
    images: UInt8[Tensor, "b 3 h w"]
    source_poses: list[Joints]
    target_poses: list[Joints]


class PosesBySize:
    """Joints of crops in pixels of ``height`` × ``width``.

    How large the pictures are that they were marked in stands in the heads of the files; each is looked at once.
    """

    def __init__(self, crops: Sequence[Crop], height: int, width: int) -> None:
        self.crops, self.height, self.width = crops, height, width
        self._resized: dict[int, Joints] = {}

    def joints(self, position: int) -> Joints:
        """The joints of a crop that has some. Raises InputError when its file is no picture."""
        if position not in self._resized:
            crop = self.crops[position]
            assert crop.joints is not None, f"{crop.name} has no joints"
            width, height = picture_size(crop)
            self._resized[position] = crop.joints.resized(self.width / width, self.height / height)
        return self._resized[position]


def read_batches(batches: Sequence[Sequence[Drawing]], crops: CropTable, poses: PosesBySize) -> Iterator[DrawingBatch]:
    """Batches of drawings, read by a thread of which this one is at most two batches behind.

    Drawings of one source must follow each other: each source is decoded once, and only the last is kept. Raises
    InputError when a file is no picture.
    """
    source = _LastPicture(CropImages(crops, poses.height, poses.width, cache_gb=0))

    def read(batch: Sequence[Drawing]) -> DrawingBatch:
        images = torch.stack([source.pixels(each.source) for each in batch])
        targets = [poses.joints(each.target) for each in batch]
        return DrawingBatch(batch, images, [poses.joints(each.source) for each in batch], targets)

    rest = iter(batches)
    with ThreadPoolExecutor(1) as reader:
        ahead = deque(reader.submit(read, batch) for batch in islice(rest, _AHEAD))
        while ahead:
            current = ahead.popleft().result()
            ahead.extend(reader.submit(read, batch) for batch in islice(rest, 1))
            yield current


class _LastPicture:
    """The pixels of the crop that was asked for last, and of no other."""

    def __init__(self, images: CropImages) -> None:
        self._images = images
        self._last: tuple[int, UInt8[Tensor, "3 h w"]] | None = None

    def pixels(self, position: int) -> UInt8[Tensor, "3 h w"]:
        if self._last is None or self._last[0] != position:
            self._last = position, self._images.image(position)
        return self._last[1]
