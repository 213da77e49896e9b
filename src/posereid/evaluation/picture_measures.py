"""What is measured of a generated picture: the measures, the answers they are taken of, and the regions.

Each measure compares pictures with the real targets of their pairs; :mod:`posereid.evaluation.generator_quality`
gathers them over a test split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from posereid.data.batches import CropImages, to_float
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.identity_preservation import RealCrops
from posereid.evaluation.image_quality import grey_background, map_mean, pose_mask, signal_to_noise, similarity_map
from posereid.evaluation.keypoint_accuracy import pckh_hits
from posereid.evaluation.learned_metrics import LearnedMetrics
from posereid.evaluation.published_ssim import GFLA_WINDOW, gfla_ssim, mask_ssim, patn_ssim

IMAGE, FOREGROUND = "image", "foreground"
REGIONS = (IMAGE, FOREGROUND)

ANSWERS = {
    "generated": "generated",
    "any_camera": "generated for any camera",
    "copy_source": "copy the source",
    "mean_image": "mean training image",
    "camera_mean": "mean image of the target's camera",
    "wrong_source": "generated from a wrong source",
    "wrong_pose": "generated in a wrong pose",
    "target": "the real target",
}
"""What is measured, and how tables call it: the generator, told the target's camera and, if it can be told one at all,
told none; three trivial answers, two controls, and the ceiling."""

WITH_TRIVIAL = ("generated", "copy_source", "mean_image", "camera_mean")
WITH_CONTROLS = (*WITH_TRIVIAL, "any_camera", "wrong_source", "wrong_pose")
WITH_CEILING = (*WITH_TRIVIAL, "target")
WITH_BOTH_DRAWINGS = (*WITH_CEILING, "any_camera")


@dataclass(frozen=True)
class Measure:
    """One figure of image quality: how tables call it, which way is better, for which answers, and how it is made."""

    label: str
    higher_is_better: bool
    answers: tuple[str, ...]
    recipe: str


MEASURES = {
    "ssim": Measure(
        "SSIM", True, WITH_CONTROLS, "RGB, each channel; Gaussian window 11, sigma 1.5; range 2 of [-1, 1]"
    ),
    "ssim_patn": Measure(
        "SSIM (PATN)",
        True,
        WITH_TRIVIAL,
        "RGB, each channel; Gaussian window 11, sigma 1.5; range of the generated picture",
    ),
    "ssim_gfla": Measure(
        "SSIM (GFLA, DPTN)",
        True,
        WITH_TRIVIAL,
        "RGB, each channel; uniform window 51; range 1 of [0, 1]; sample covariance",
    ),
    "mask_ssim": Measure(
        "mask-SSIM", True, WITH_TRIVIAL, "SSIM (PATN) of the whole pictures, black outside the target's mask"
    ),
    "psnr": Measure("PSNR (dB)", True, WITH_CONTROLS, "per picture, peak 2 of [-1, 1], at most 100 dB"),
    "lpips": Measure("LPIPS", False, WITH_TRIVIAL, "AlexNet, version 0.1, pictures in [-1, 1] at their own size"),
    "pckh": Measure(
        "PCKh", True, WITH_BOTH_DRAWINGS, "as PATN counts joints; the mean over pairs of the share that is found"
    ),
    "identity": Measure(
        "identity preserved",
        True,
        WITH_BOTH_DRAWINGS,
        "share of pictures whose nearest real test crop shows the same person",
    ),
    "fid": Measure("FID", False, WITH_TRIVIAL, "Inception, 2048 features, against the real targets of the pairs"),
    "inception_score": Measure("Inception Score", True, WITH_CEILING, "Inception, 10 splits"),
}
"""Every measure by its key."""


class KeypointEstimator(Protocol):
    """Finds a person's joints in a picture. One that is a network is given pictures where its weights lie."""

    def estimate(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
        """Joints (x, y) in pixels of pictures in [-1, 1], and which were found."""
        ...


@dataclass(frozen=True, eq=False)
class Targets:
    """The real targets of a batch of pairs.

    ``pairs`` are the positions of sources and targets among the test crops, ``pixels`` (B, 3, H, W) uint8,
    ``keypoints`` (B, 18, 2) in pixels, ``present`` (B, 18) bool, ``masks`` (B, H, W) bool.
    """

    pairs: Sequence[tuple[int, int]]
    pixels: UInt8[Tensor, "b 3 h w"]
    keypoints: Float[Tensor, "b 18 2"]
    present: Bool[Tensor, "b 18"]
    masks: Bool[Tensor, "b h w"]

    @cached_property
    def pictures(self) -> Float[Tensor, "b 3 h w"]:
        """The same in [-1, 1]."""
        return to_float(self.pixels)

    @cached_property
    def has_mask(self) -> Bool[Tensor, " b"]:
        """Where there is any foreground."""
        return self.masks.flatten(1).any(1)


PairMeasure = Callable[[UInt8[Tensor, "b 3 h w"], Targets], Mapping[str, npt.ArrayLike]]
"""From pictures and their targets to (B,) values per region."""


def foreground_masks(images: CropImages, positions: Sequence[int], by_masks: bool) -> Bool[Tensor, "b h w"]:
    """Where the person is in each crop: the set's mask, or without one (or ``by_masks``) what the joints suggest."""
    masks = [images.mask(position) if by_masks else None for position in positions]
    known = [mask for mask in masks if mask is not None]
    if len(known) == len(masks):
        return torch.stack(known)
    joints = [images.joints(position) for position in positions]
    drawn = pose_mask(
        torch.from_numpy(np.stack([each.xy for each in joints])),
        torch.from_numpy(np.stack([each.present for each in joints])),
        images.height,
        images.width,
    )
    return torch.stack([rough if own is None else own for own, rough in zip(masks, drawn, strict=True)])


def pair_measures(
    images: CropImages,
    by_masks: bool,
    *,
    embedder: Embedder | None = None,
    pose_estimator: KeypointEstimator | None = None,
    learned: LearnedMetrics | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[dict[str, PairMeasure], dict[str, str]]:
    """The measures that can be taken pair by pair, and for every other measure of any kind one sentence why not.

    ``images`` are the test crops, from which those of an identity are looked up; ``by_masks`` as in
    :func:`foreground_masks`.
    """
    height, width = images.height, images.width
    measures: dict[str, PairMeasure] = {
        "ssim": _ssim,
        "ssim_patn": lambda pixels, targets: {IMAGE: patn_ssim(pixels, targets.pixels)},
        "mask_ssim": lambda pixels, targets: {FOREGROUND: mask_ssim(pixels, targets.pixels, targets.masks)},
        "psnr": _psnr,
    }
    learned = learned or LearnedMetrics(
        not_measured=dict.fromkeys(("lpips", "fid", "inception_score"), "No network was given to judge pictures.")
    )
    not_measured = dict(learned.not_measured)
    size = f"Pictures of {height} × {width} pixels are smaller than"
    if min(height, width) >= GFLA_WINDOW:
        measures["ssim_gfla"] = lambda pixels, targets: {IMAGE: gfla_ssim(pixels, targets.pixels)}
    else:
        not_measured["ssim_gfla"] = f"{size} its window, {GFLA_WINDOW} × {GFLA_WINDOW}."
    if learned.lpips is not None:
        smallest = getattr(learned.lpips, "smallest_side", 1)
        if min(height, width) >= smallest:
            measures["lpips"] = _lpips(learned.lpips)
        else:
            not_measured["lpips"] = f"{size} its network takes, {smallest} × {smallest}."
    if pose_estimator is not None:
        measures["pckh"] = _share_of_joints_found(pose_estimator)
    else:
        not_measured["pckh"] = "No pose estimator was given to find joints in pictures (--pose-estimator)."
    if embedder is not None:
        try:
            measures["identity"] = _identity_preserved(embedder, images, by_masks, batch_size, progress)
        except InputError as error:  # all test crops are read for it, not only those of the pairs
            not_measured["identity"] = str(error)
    else:
        not_measured["identity"] = "No embedder was given to tell identities."
    return measures, not_measured


def _ssim(pixels: Tensor, targets: Targets) -> Mapping[str, npt.ArrayLike]:
    per_pixel = similarity_map(to_float(pixels), targets.pictures)
    return {IMAGE: map_mean(per_pixel), FOREGROUND: map_mean(per_pixel, targets.masks)}


def _psnr(pixels: Tensor, targets: Targets) -> Mapping[str, npt.ArrayLike]:
    pictures = to_float(pixels)
    return {
        IMAGE: signal_to_noise(pictures, targets.pictures),
        FOREGROUND: signal_to_noise(pictures, targets.pictures, targets.masks),
    }


def _share_of_joints_found(estimator: KeypointEstimator) -> PairMeasure:
    device = _device_of(estimator)

    def measure(pixels: Tensor, targets: Targets) -> Mapping[str, npt.ArrayLike]:
        keypoints, present = estimator.estimate(to_float(pixels).to(device))
        hits, counted = pckh_hits(keypoints.cpu(), present.cpu(), targets.keypoints, targets.present)
        # 0 / 0, where no joint counts, is NaN.
        return {IMAGE: (hits & counted).sum(1) / counted.sum(1)}

    return measure


def _lpips(network: nn.Module) -> PairMeasure:
    device = _device_of(network)

    def distances(pictures: Tensor, targets: Tensor) -> Tensor:
        return network(pictures.to(device), targets.to(device)).float().cpu()

    def measure(pixels: Tensor, targets: Targets) -> Mapping[str, npt.ArrayLike]:
        pictures, masks = to_float(pixels), targets.masks
        alone = distances(grey_background(pictures, masks), grey_background(targets.pictures, masks))
        return {
            IMAGE: distances(pictures, targets.pictures),
            FOREGROUND: torch.where(targets.has_mask, alone, torch.nan),
        }

    return measure


def _identity_preserved(
    embedder: Embedder, images: CropImages, by_masks: bool, batch_size: int, progress: bool
) -> PairMeasure:
    # Every test crop is looked at once here; most are in no pair and need not stay in memory.
    passing = CropImages(images.crops, images.height, images.width, cache_gb=0)

    def masks_of(positions: Sequence[int]) -> Tensor:
        return foreground_masks(passing, positions, by_masks)

    real = RealCrops(embedder, passing, masks_of, batch_size=batch_size, progress=progress)

    def measure(pixels: Tensor, targets: Targets) -> Mapping[str, npt.ArrayLike]:
        pictures = to_float(pixels)
        return {
            IMAGE: real.preserved(pictures, targets.pairs),
            FOREGROUND: real.preserved(pictures, targets.pairs, targets.masks),
        }

    return measure


def _device_of(network: object) -> torch.device:
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))
