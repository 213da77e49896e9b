"""The training identities drawn in new poses: a generated set on disk, with a manifest of who made what."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from posereid.config import AugmentationRecipe
from posereid.data.batches import CropImages, to_float, to_pixels
from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError
from posereid.files import atomic_folder, write_atomically
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.files import write_keypoints
from posereid.pose.joints import Joints
from posereid.pose.maps import heat_maps
from posereid.pose.names import NAME_EXAMPLES
from posereid.progress import progress_bar

MANIFEST_COLUMNS = ("name", "source", "target_pose", "identity", "camera", "checkpoint")
TRAIN_FOLDER = "bounding_box_train"
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Drawing:
    """One crop to draw: positions of its source and of the crop whose pose it takes, and its file name."""

    name: str
    source: int
    target: int


@dataclass(frozen=True)
class GeneratedSet:
    """What :func:`augment` wrote: the folder, crops drawn, and training crops without a usable pose."""

    folder: Path
    drawn: int
    without_pose: int


def plan_drawings(crops: Sequence[Crop], poses_per_crop: int, seed: int) -> list[Drawing]:
    """Each crop that has a pose, in ``poses_per_crop`` poses of other crops, drawn without repetition.

    Target poses come from any identity: that is what gives a person poses that it lacks. Deterministic in the
    seed. Raises InputError when fewer than two crops have a pose, or fewer others than poses asked for.
    """
    if seed < 0:
        raise InputError(f"the seed is {seed}; it must not be negative.")
    posed = [position for position, crop in enumerate(crops) if crop.can_pose]
    # File names repeat in sets with several folders; a crop's number tells such crops apart.
    stems = Counter(crop.path.stem for crop in crops)
    if len(posed) <= poses_per_crop:
        raise InputError(
            f"augmentation.poses_per_crop is {poses_per_crop}, and only {len(posed)} training crops have both "
            "shoulders and both hips; read the keypoint files that belong to this set, or ask for fewer poses."
        )
    drawings = []
    for position in posed:
        random = np.random.default_rng((seed, 5, position))
        others = random.choice(len(posed) - 1, poses_per_crop, replace=False)
        for number, other in enumerate(others, 1):
            target = posed[other + (posed[other] >= position)]
            stem = crops[position].path.stem
            stem = stem if stems[stem] == 1 else f"{stem}_{position}"
            drawings.append(Drawing(f"{stem}_p{number}.jpg", position, target))
    return drawings


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
        write_atomically(partial / "manifest.csv", _manifest(train, drawings, checkpoint))
        if crops.layout not in NAME_EXAMPLES:
            write_atomically(partial / "crops.csv", _own_csv(train, drawings))
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


def _manifest(crops: CropTable, drawings: Sequence[Drawing], checkpoint: str) -> str:
    rows = (
        (
            d.name,
            crops[d.source].name,
            crops[d.target].name,
            crops[d.source].identity,
            crops[d.source].camera,
            checkpoint,
        )
        for d in drawings
    )
    return _csv(MANIFEST_COLUMNS, rows)


def _own_csv(crops: CropTable, drawings: Sequence[Drawing]) -> str:
    rows = ((f"{TRAIN_FOLDER}/{d.name}", crops[d.source].identity, crops[d.source].camera, "train") for d in drawings)
    return _csv(("path", "identity", "camera", "split"), rows)


def _csv(header: Sequence[str], rows: Iterator[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def with_generated(crops: CropTable, generated: CropTable) -> CropTable:
    """A table of real and generated training crops.

    Raises InputError when the generated set is not one, or holds identities that the real training split lacks.
    """
    drawn = generated.train
    if not len(drawn) or not all(crop.generated for crop in drawn):
        raise InputError(
            f"{generated.root} is no generated set: its manifest.csv does not account for its training crops; give the "
            "folder that `posereid augment` wrote."
        )
    strangers = {crop.identity for crop in drawn} - {crop.identity for crop in crops.train}
    if strangers:
        raise InputError(
            f"{generated.root} holds {len(strangers)} identities that {crops.root} does not train on, for example "
            f"{min(strangers)}; the two folders belong to different data sets."
        )
    return crops.with_crops([*crops, *drawn])
