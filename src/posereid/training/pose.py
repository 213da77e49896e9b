"""Training of the pose estimator on real crops and the keypoints that came with them."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lightning_fabric import Fabric
from torch import Tensor

from posereid.config import Recipe
from posereid.data.batches import CropImages, PosedCropBatch, PosedCrops, to_float
from posereid.data.check import require_joint_scale
from posereid.data.crops import Crop, CropTable
from posereid.data.sampling import Indices, require_divisible
from posereid.errors import InputError
from posereid.evaluation.keypoint_accuracy import pckh
from posereid.pose.maps import flip_keypoints
from posereid.pose_estimator import PoseEstimator
from posereid.processes import own_rows, process_count
from posereid.training.checkpoint import new_pose_estimator
from posereid.training.loop import Job, StepReport, open_run
from posereid.training.networks import Networks, set_up, update

HELD_OUT_SHARE = 0.1
"""Share of the training identities that choose the threshold and tell the PCKh of the log."""

_PEAK_WEIGHT = 4
_LARGEST_SCALE = 0.08
_LARGEST_SHIFT = 0.06
_BLURRED_SHARE = 0.3


class ShuffledCrops:
    """Every crop once in an epoch, in an order drawn from the seed; what fills no batch waits for the next epoch."""

    def __init__(self, crops: int, batch_size: int, seed: int) -> None:
        self.crops, self.batch_size, self.seed = crops, min(batch_size, crops), seed
        self.batches_per_epoch = crops // self.batch_size

    def batch(self, epoch: int, step: int) -> Indices:
        """(batch_size, 1) positions for one step of one epoch."""
        order = np.random.default_rng((self.seed, 7, epoch)).permutation(self.crops)
        return order[step * self.batch_size : (step + 1) * self.batch_size, None]


def train_pose_estimator(
    recipe: Recipe, crops: CropTable, out: Path, *, resume: bool = False, progress: bool = True
) -> Path:
    """Train the pose estimator on the real training crops of ``crops`` that have joints.

    A tenth of the identities is held out: at every checkpoint they choose the presence threshold that is right about
    the most joints, which is saved with the weights, and the log says their PCKh. The others are mirrored, moved,
    recoloured and blurred at random, and :func:`heat_map_loss` is minimised; a joint that a crop lacks teaches an empty
    map. Writes ``out`` with recipe, log and checkpoints, and returns it. Raises InputError.
    """
    require_joint_scale(crops.train)
    learned, held_out = split_posed_crops(crops.train, recipe.seed)
    settings = recipe.pose_estimator
    size = recipe.data.height, recipe.data.width
    sampler = ShuffledCrops(len(learned), settings.batch_size, recipe.seed)
    require_divisible(sampler, recipe.runtime.devices * recipe.runtime.num_nodes)
    with open_run(out, recipe, "pose", crops.train, resume=resume) as run:
        torch.manual_seed(recipe.seed)
        estimator = new_pose_estimator(recipe, pretrained=False if run.checkpoint else None)
        networks = set_up(
            {"pose_estimator": estimator},
            {"pose_estimator": settings.optimiser},
            recipe,
            run.fabric,
            run.checkpoint,
            run.state,
        )
        images = CropImages(learned, *size, cache_gb=recipe.runtime.crop_cache_gb)
        validation = PosedCrops(CropImages(held_out, *size, cache_gb=recipe.runtime.crop_cache_gb), stand_ins=True)
        run.train(
            Job(
                settings=settings,
                networks=networks,
                sampler=sampler,
                dataset=PosedCrops(images, stand_ins=True),
                crops=learned,
                step=lambda batch, _: training_step(networks, batch, recipe, run.fabric),
                images=sampler.batch_size,
                identities=tuple(sorted({crop.identity for crop in learned})),
                facts={"crops": len(learned), "held_out_crops": len(held_out)},
                before_saving=lambda: validate(estimator, validation, settings.batch_size),
            ),
            progress=progress,
        )
    return out


def training_step(networks: Networks, batch: PosedCropBatch, recipe: Recipe, fabric: Fabric) -> StepReport:
    """One step on varied crops. Raises BadStepError as the joint step does."""
    images, keypoints, present = vary(to_float(batch.images), batch.keypoints, batch.present)
    if recipe.runtime.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    maps = networks.wrapped["pose_estimator"](images).float()
    target = cast(PoseEstimator, networks.plain["pose_estimator"]).target_maps(keypoints, present)
    terms = {"heat_maps": heat_map_loss(maps, target)}
    return StepReport(update(fabric, terms["heat_maps"], terms, networks.optimisers, recipe.safety.largest_loss))


def heat_map_loss(maps: Float[Tensor, "b 18 h w"], target: Float[Tensor, "b 18 h w"]) -> Float[Tensor, ""]:
    """The mean squared error of heat maps, weighted by ``1 + 4 · target``.

    Nearly all of a map is 0, which unweighted is all that is learned for a long time; a joint's own place counts
    five times.
    """
    return ((1 + _PEAK_WEIGHT * target) * (maps - target) ** 2).mean()


def split_posed_crops(train: CropTable, seed: int) -> tuple[list[Crop], list[Crop]]:
    """The real crops with any joint to learn from, and those of the held-out identities.

    Raises InputError when fewer than two identities have such crops.
    """
    posed = [crop for crop in train if not crop.generated and crop.joints is not None and crop.joints.present.any()]
    identities = sorted({crop.identity for crop in posed})
    if len(identities) < 2:
        raise InputError(
            f"{train.root}: {len(identities)} identities have real training crops with keypoints, and the pose "
            "estimator needs two, one of them held out; check that the keypoint files belong to this data set."
        )
    count = max(1, round(HELD_OUT_SHARE * len(identities)))
    chosen = set(np.random.default_rng((seed, 8)).choice(identities, count, replace=False).tolist())
    return [c for c in posed if c.identity not in chosen], [c for c in posed if c.identity in chosen]


def vary(
    images: Float[Tensor, "b 3 h w"], keypoints: Float[Tensor, "b 18 2"], present: Bool[Tensor, "b 18"]
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
    """Mirror half of the images, scale, shift and recolour each, blur some, as torch's generator draws.

    Images are in [-1, 1]; joints go with them, and those that leave the image are absent from then on. Blur,
    because generated pictures are less sharp than those to learn from.
    """
    count, (height, width), device = len(images), images.shape[-2:], images.device

    def drawn(*shape: int) -> Tensor:
        # On the CPU and for the whole batch: equal on every device and for any number of processes.
        return own_rows(torch.rand(process_count() * count, *shape)).to(device)

    mirrored = drawn() < 0.5
    scale = 1 + _LARGEST_SCALE * (2 * drawn() - 1)
    shift = _LARGEST_SHIFT * (2 * drawn(2) - 1)
    contrast = 0.85 + 0.3 * drawn(1, 1, 1)
    tint = 0.2 * drawn(3, 1, 1) - 0.1
    blurred = drawn() < _BLURRED_SHARE
    sigma = (0.3 + 1.2 * drawn()) * height / 64

    flipped_keypoints, flipped_present = flip_keypoints(keypoints, present, width)
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    keypoints = torch.where(mirrored[:, None, None], flipped_keypoints, keypoints)
    present = torch.where(mirrored[:, None], flipped_present, present)

    images, keypoints = scale_and_shift(images, keypoints, scale, shift)
    size = keypoints.new_tensor([width, height])
    present = present & ((keypoints >= -0.5) & (keypoints <= size - 0.5)).all(-1)

    images = images * contrast + tint
    if blurred.any():
        images[blurred] = blur(images[blurred], sigma[blurred])
    return images.clamp(-1, 1), keypoints, present


def scale_and_shift(
    images: Float[Tensor, "b 3 h w"],
    keypoints: Float[Tensor, "b 18 2"],
    scale: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 18 2"]]:
    """Enlarge each image about its centre by ``scale``, then move it by ``shift``, (x, y) in shares of its size.

    Beyond the border its edge is repeated.
    """
    height, width = images.shape[-2:]
    # The grid says where each pixel comes from, in units of half the image: the way back.
    grid = images.new_zeros(len(images), 2, 3)
    grid[:, 0, 0] = grid[:, 1, 1] = 1 / scale
    grid[:, :, 2] = -2 * shift / scale[:, None]
    moved = F.grid_sample(
        images,
        F.affine_grid(grid, list(images.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    size = keypoints.new_tensor([width, height])
    centre = (size - 1) / 2
    return moved, (keypoints - centre) * scale[:, None, None] + centre + (shift * size)[:, None]


def blur(images: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur, each image with its own standard deviation in pixels, its edge repeated beyond the border."""
    reach = max(1, int(2 * sigma.max()))
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernels = torch.exp(-(steps**2) / (2 * sigma[:, None] ** 2))
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    planes = images.flatten(0, 1)[None]
    planes = F.pad(planes, (reach,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernels[..., None, :], groups=len(kernels))
    planes = F.conv2d(planes, kernels[..., None], groups=len(kernels))
    return planes[0].unflatten(0, images.shape[:2])


@torch.no_grad()
def validate(estimator: PoseEstimator, crops: PosedCrops, batch_size: int) -> dict[str, Any]:
    """Set the estimator's threshold by the crops, and say its PCKh and how often it is right about presence."""
    device = next(estimator.parameters()).device
    estimator.eval()
    found = []
    count = len(crops.images)
    unreadable: dict[int, str] = {}
    for start in range(0, count, batch_size):
        batch = crops[[(0, position) for position in range(start, min(start + batch_size, count))]]
        unreadable |= batch.unreadable
        keypoints, confidence = (t.cpu() for t in estimator.find_joints(to_float(batch.images.to(device))))
        found.append((keypoints, confidence, batch.keypoints, batch.present))
    estimator.train()
    keypoints, confidence, target, target_present = (torch.cat(parts) for parts in zip(*found, strict=True))
    estimator.threshold.fill_(choose_threshold(confidence.flatten(), target_present.flatten()))
    present = confidence > estimator.threshold.cpu()
    record = {
        "presence_threshold": round(estimator.threshold.item(), 4),
        "presence_accuracy": round((present == target_present).float().mean().item(), 4),
    }
    if unreadable:
        record["held_out_unreadable"] = len(unreadable)
    accuracy = pckh(keypoints, present, target, target_present)
    return record | ({"pckh": round(accuracy.overall, 4)} if accuracy.joints else {})


def choose_threshold(confidence: Float[Tensor, " n"], present: Bool[Tensor, " n"]) -> float:
    """The threshold under which most joints are told rightly from absent ones, midway between two confidences.

    A joint counts as present when its confidence is above it.
    """
    order = confidence.argsort()
    values, truth = confidence[order].double(), present[order].double()
    # Below position k all is said to be absent, from k on all present.
    right = F.pad((1 - truth).cumsum(0), (1, 0)) + F.pad(truth.flip(0).cumsum(0), (1, 0)).flip(0)
    edges = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    # Between equal confidences there is no threshold.
    possible = torch.cat([values.new_ones(1).bool(), values[1:] > values[:-1], values.new_ones(1).bool()])
    return edges[torch.where(possible, right, -torch.ones_like(right)).argmax()].item()
