"""Contact sheets of the grid: the same test pairs, drawn by the generators of several rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from posereid.augmentation.drawing import draw
from posereid.config import EvaluationRecipe
from posereid.data.batches import CropImages
from posereid.data.crops import CropTable
from posereid.evaluation.generator_quality import has_pose_pairs, pick_test_pairs
from posereid.generator.generator import PoseTransferGenerator
from posereid.pictures import contact_sheet
from posereid.pose.drawing import draw_skeleton

PAIRS = 8
"""Pairs on a sheet, each of another person as far as there are people."""

_BATCH = 16
_BLANK = np.full((1, 12, 3), 255, np.uint8)


class SheetPairs:
    """Test pairs to look at, the same for every generator of a set."""

    def __init__(self, crops: CropTable, settings: EvaluationRecipe, size: tuple[int, int], count: int) -> None:
        test = [*crops.query, *crops.gallery]
        pairs = pick_test_pairs(test, settings) if settings.pairs_file or has_pose_pairs(test) else []
        order = np.random.default_rng((settings.pairs_seed, 9)).permutation(len(pairs))
        seen: dict[int, int] = {}
        ranked: list[tuple[int, int, tuple[int, int]]] = []
        for number in order:
            identity = test[pairs[number][0]].identity
            seen[identity] = seen.get(identity, 0) + 1
            ranked.append((seen[identity], len(ranked), pairs[number]))
        self.pairs = [pair for *_, pair in sorted(ranked)[:count]]
        self.images = CropImages(test, *size, cache_gb=0)

    def drawn(self, generator: PoseTransferGenerator) -> list[npt.NDArray[np.uint8]]:
        """What a generator makes of the sources in the targets' poses, (H, W, 3) uint8 each."""
        found: list[npt.NDArray[np.uint8]] = []
        for start in range(0, len(self.pairs), _BATCH):
            sources, targets = zip(*self.pairs[start : start + _BATCH], strict=True)
            own, wanted = ([self.images.joints(position) for position in side] for side in (sources, targets))
            pixels = torch.stack([self.images.image(position) for position in sources])
            cameras = [self.images.crops[position].camera for position in targets]
            found += [_picture(each) for each in draw(generator.eval(), pixels, own, wanted, cameras)]
        return found

    def real(self) -> dict[str, list[npt.NDArray[np.uint8]]]:
        """Source, both skeletons and target of every pair, by how a sheet calls them."""
        height, width = self.images.height, self.images.width
        sources, targets = ([pair[column] for pair in self.pairs] for column in (0, 1))
        return {
            "source": [_picture(self.images.image(position)) for position in sources],
            "source pose": [draw_skeleton(self.images.joints(position), height, width) for position in sources],
            "target pose": [draw_skeleton(self.images.joints(position), height, width) for position in targets],
            "target": [_picture(self.images.image(position)) for position in targets],
        }


def _picture(pixels: Tensor) -> npt.NDArray[np.uint8]:
    return pixels.permute(1, 2, 0).cpu().numpy()


def sheet(columns: Mapping[str, Sequence[npt.NDArray[np.uint8]]], groups: int = 1) -> Image.Image:
    """A sheet whose columns are given by their headers, pairs in ``groups`` side by side with a gap between them."""
    rows = list(zip(*columns.values(), strict=True))
    rows = rows[: len(rows) // groups * groups] or rows
    groups = min(groups, len(rows))
    headers = [*columns, *(["", *columns] * (groups - 1))]
    lines = [
        [*rows[start], *(cell for row in rows[start + 1 : start + groups] for cell in (_BLANK, *row))]
        for start in range(0, len(rows), groups)
    ]
    return contact_sheet(lines, headers, scale=2 if len(rows[0][0]) < 100 else 1)


def generator_sheet(generator: PoseTransferGenerator, crops: CropTable, settings: EvaluationRecipe) -> Image.Image:
    """Source, poses, what one generator draws, and target. Raises InputError where no test pair has a pose."""
    pairs = SheetPairs(crops, settings, generator.crop_size, PAIRS)
    real = pairs.real()
    target = real.pop("target")
    return sheet(real | {"generated": pairs.drawn(generator), "target": target})
