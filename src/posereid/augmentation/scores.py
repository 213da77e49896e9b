"""How good each drawing is by itself: whose person it shows, in which pose, how real, and what it nearly repeats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from posereid.augmentation.judges import Judges
from posereid.data.batches import CropImages, stacked, to_float
from posereid.data.crops import Crop
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.features import embed_crops
from posereid.pose.maps import heat_maps
from posereid.pose_estimator import PoseEstimator
from posereid.progress import progress_bar

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """The measures of n drawings, each (n,) float64 in their order, or None where nobody judged.

    ``identity_distance`` is the cosine distance to the source, 0 … 2, lower is better. ``pose_score`` and ``realism``
    are better the higher they are, at most 1. NaN where a drawing cannot be scored. ``near_duplicate_of`` is the
    position of an earlier drawing of the same source, or -1; ``copies`` says which drawings nearly are their source.
    """

    identity_distance: Values | None
    pose_score: Values | None
    realism: Values | None
    near_duplicate_of: npt.NDArray[np.int64]
    copies: npt.NDArray[np.bool_]


def score_drawings(
    drawings: Sequence[Crop],
    sources: Sequence[Crop],
    judges: Judges,
    size: tuple[int, int],
    *,
    near_duplicate: float,
    batch_size: int,
    progress: bool = False,
) -> Scores:
    """Score every drawing against the source in the same place of ``sources``.

    Discriminators and pose estimator see pictures of ``size`` (height, width), the embedder those of its own
    ``crop_size``. Drawings of one source are compared when they follow each other; pictures of one batch and of one
    source's drawings are in memory at a time. Raises InputError naming the first file that is no picture.
    """
    count = len(drawings)
    distances = None
    if judges.embedder is not None:
        distances = _identity_distances(judges.embedder, drawings, sources, batch_size, progress)
    pose = None if judges.pose is None else np.empty(count)
    realism = None if judges.realism is None else np.empty(count)
    duplicates, copies = np.full(count, -1, np.int64), np.zeros(count, bool)
    if pose is None and realism is None and not near_duplicate:
        return Scores(distances, pose, realism, duplicates, copies)
    earlier = _Earlier(near_duplicate)
    images, originals = (CropImages(crops, *size, cache_gb=0) for crops in (drawings, sources))
    with progress_bar(count, "scoring", "crop", show=progress) as bar:
        for start in range(0, count, batch_size):
            positions = range(start, min(start + batch_size, count))
            pixels = images.images(positions)
            if judges.pose is not None and pose is not None:
                keypoints, present = stacked([images.joints(position) for position in positions])
                pose[start : positions.stop] = _pose_scores(judges.pose, pixels, keypoints, present)
            if judges.realism is not None or near_duplicate:
                source_pixels = torch.stack(list(_decoded_once(originals, positions)))
            if judges.realism is not None and realism is not None:
                realism[start : positions.stop] = patch_score(judges.realism, to_float(source_pixels), pixels)
            if near_duplicate:
                copies[start : positions.stop] = _differences(pixels, source_pixels) < near_duplicate
                for position, picture in zip(positions, pixels, strict=True):
                    duplicates[position] = earlier.add(position, picture, sources[position])
            bar.update(len(positions))
    return Scores(distances, pose, realism, duplicates, copies)


def _decoded_once(originals: CropImages, positions: Sequence[int]) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """The sources' pixels in turn; drawings of one source stand together."""
    before: Crop | None = None
    for position in positions:
        if originals.crops[position] is not before:
            before, pixels = originals.crops[position], originals.image(position)
        yield pixels


def _identity_distances(
    embedder: Embedder, drawings: Sequence[Crop], sources: Sequence[Crop], batch_size: int, progress: bool
) -> Values:
    distinct = list(dict.fromkeys(sources))
    row = {source: number for number, source in enumerate(distinct)}
    drawn, real = (
        embed_crops(embedder, crops, batch_size=batch_size, progress=progress).astype(np.float64)
        for crops in (drawings, distinct)
    )
    return 1 - np.einsum("nd,nd->n", drawn, real[[row[source] for source in sources]])


@torch.no_grad()
def patch_score(
    discriminator: PatchDiscriminator, condition: Float[Tensor, "b c h w"], pixels: UInt8[Tensor, "b 3 h w"]
) -> Values:
    """The mean over patches of how likely D takes (condition, picture) for real, (B,) in [0, 1]."""
    device = next(discriminator.parameters()).device
    logits = discriminator(condition.to(device), to_float(pixels.to(device)))
    # In float32, surely real patches would all score exactly 1 and could not be ranked.
    return logits.cpu().double().sigmoid().mean((1, 2, 3)).numpy()


@torch.no_grad()
def _pose_scores(
    judge: PatchDiscriminator | PoseEstimator,
    pixels: UInt8[Tensor, "b 3 h w"],
    keypoints: Float[Tensor, "b 18 2"],
    present: Bool[Tensor, "b 18"],
) -> Values:
    """D_P's score of (P_t, I_g), or 1 less the mean error of the target's joints as a share of the crop's height.

    Each joint of the target is looked for where the estimator finds it likeliest, however unsure. NaN where the
    target has no joint.
    """
    height, width = pixels.shape[-2:]
    if isinstance(judge, PatchDiscriminator):
        scores = patch_score(judge, heat_maps(keypoints, present, height, width), pixels)
    else:
        device = next(judge.parameters()).device
        found, _ = judge.find_joints(to_float(pixels.to(device)))
        errors = (found.cpu().double() - keypoints).norm(dim=-1) / height
        scores = 1 - (torch.where(present, errors, 0).sum(1) / present.sum(1)).numpy()
    return np.where(present.any(1).numpy(), scores, np.nan)


def _differences(first: UInt8[Tensor, "b 3 h w"], second: UInt8[Tensor, "b 3 h w"]) -> Values:
    """Mean absolute difference of two pictures, 0 … 255; (B,)."""
    return (first.short() - second.short()).abs().double().mean((1, 2, 3)).numpy()


class _Earlier:
    """The drawings so far of the source that is being looked at."""

    def __init__(self, near_duplicate: float) -> None:
        self.near_duplicate = near_duplicate
        self.source: Crop | None = None
        self.positions: list[int] = []
        self.pictures: list[Tensor] = []

    def add(self, position: int, picture: UInt8[Tensor, "3 h w"], source: Crop) -> int:
        """The first earlier drawing of ``source`` that nearly is this one, or -1; this one is remembered."""
        if source is not self.source:
            self.source, self.positions, self.pictures = source, [], []
        found = -1
        for earlier, other in zip(self.positions, self.pictures, strict=True):
            if _differences(picture[None], other[None])[0] < self.near_duplicate:
                found = earlier
                break
        self.positions.append(position)
        self.pictures.append(picture)
        return found
