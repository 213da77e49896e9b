"""The training identities drawn in new poses: a generated set on disk, with a manifest of who made what."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from posereid.augmentation.sets import TRAIN_FOLDER, manifest_text, own_csv_text
from posereid.augmentation.targets import Drawing, plan_drawings
from posereid.config import AugmentationRecipe
from posereid.data.batches import CropImages, to_float, to_pixels
from posereid.data.crops import CropTable
from posereid.files import atomic_folder, write_atomically
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.files import write_keypoints
from posereid.pose.joints import Joints
from posereid.pose.maps import heat_maps
from posereid.pose.names import NAME_EXAMPLES
from posereid.progress import progress_bar

JPEG_QUALITY = 95


@dataclass(frozen=True)
class GeneratedSet:
    """What :func:`augment` wrote: the folder, crops drawn, and training crops without a usable pose."""

    folder: Path
    drawn: int
    without_pose: int


@torch.no_grad()
def draw(
    generator: PoseTransferGenerator, images: torch.Tensor, source: Sequence[Joints], target: Sequence[Joints]
) -> torch.Tensor:
    """Redraw people: (B, 3, H, W) uint8 pixels and joints in pixels of H × W to (B, 3, H, W) uint8 pixels.

    Runs where the generator's weights lie; H × W is its ``crop_size``.
    """
    device = next(generator.parameters()).device
    height, width = images.shape[-2:]

    def maps(poses: Sequence[Joints]) -> torch.Tensor:
        xy = torch.from_numpy(np.stack([pose.xy for pose in poses])).to(device)
        present = torch.from_numpy(np.stack([pose.present for pose in poses])).to(device)
        return heat_maps(xy, present, height, width)

    return to_pixels(generator(to_float(images.to(device)), maps(source), maps(target))).cpu()


def augment(
    generator: PoseTransferGenerator,
    crops: CropTable,
    out: Path,
    recipe: AugmentationRecipe,
    *,
    seed: int,
    checkpoint: str,
    progress: bool = True,
) -> GeneratedSet:
    """Draw the training split of ``crops`` in new poses and write the result as a set of its own.

    ``out`` gets the crops (in ``bounding_box_train``, or listed in ``crops.csv`` where the source set's names do
    not say whose they are), their keypoints, ``manifest.csv`` and ``set.json``; it appears complete or not at
    all. ``checkpoint`` is the digest of the generator's weights. Raises InputError.
    """
    train = crops.train
    drawings = plan_drawings(train, recipe.poses_per_crop, seed)
    result = GeneratedSet(out, len(drawings), sum(not crop.can_pose for crop in train))
    with atomic_folder(out, "a generated set") as partial:
        folder = partial / TRAIN_FOLDER
        folder.mkdir()
        joints: dict[str, Joints] = {}
        for drawing, pixels, pose in _drawn(generator, train, drawings, recipe.batch_size, progress):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(
                folder / drawing.name, quality=JPEG_QUALITY, subsampling=0
            )
            joints[drawing.name] = pose
        write_keypoints(joints, partial / "market-annotation-train.csv")
        write_atomically(partial / "manifest.csv", manifest_text(train, drawings, checkpoint))
        if crops.layout not in NAME_EXAMPLES:
            write_atomically(partial / "crops.csv", own_csv_text(train, drawings))
        about = {
            "source_root": crops.root.name,
            "checkpoint": checkpoint,
            "seed": seed,
            "poses_per_crop": recipe.poses_per_crop,
            "drawn": result.drawn,
            "training_crops_without_pose": result.without_pose,
        }
        write_atomically(partial / "set.json", json.dumps(about, indent=1) + "\n")
    return result


def _drawn(
    generator: PoseTransferGenerator,
    crops: CropTable,
    drawings: Sequence[Drawing],
    batch_size: int,
    progress: bool,
) -> Iterator[tuple[Drawing, torch.Tensor, Joints]]:
    generator.eval()
    images = CropImages(crops, *generator.crop_size)
    with progress_bar(len(drawings), "augment", "crop", show=progress) as bar:
        for start in range(0, len(drawings), batch_size):
            batch = drawings[start : start + batch_size]
            targets = [images.joints(drawing.target) for drawing in batch]
            sources = [images.joints(drawing.source) for drawing in batch]
            pixels = torch.stack([images.image(drawing.source) for drawing in batch])
            yield from zip(batch, draw(generator, pixels, sources, targets), targets, strict=True)
            bar.update(len(batch))
