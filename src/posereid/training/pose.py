"""Training of the pose estimator on real crops and the keypoints that came with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from posereid.config import Recipe
from posereid.data.batches import CropImages, batch_loader, collate, to_float
from posereid.data.crops import Crop, CropTable
from posereid.data.sampling import Indices, ShardedBatches
from posereid.errors import InputError
from posereid.evaluation.keypoint_accuracy import pckh
from posereid.pose.maps import flip_keypoints
from posereid.pose_estimator import PoseEstimator
from posereid.training.checkpoint import load_weights, new_pose_estimator, resume_state, save_checkpoint
from posereid.training.loop import (
    RunLog,
    average_buffers,
    claim_run,
    due,
    launch_fabric,
    learning_rate,
    make_optimiser,
    open_run,
    optimiser_states,
    require_finite,
    run_facts,
    seed_step,
    set_learning_rate,
)

HELD_OUT_SHARE = 0.1
"""Share of the training identities that choose the threshold and tell the PCKh of the log."""

_PEAK_WEIGHT = 4
_LARGEST_SCALE = 0.08
_LARGEST_SHIFT = 0.06
_BLURRED_SHARE = 0.3


@dataclass(frozen=True)
class PosedCropBatch:
    """Crops with their joints: images uint8, keypoints (x, y) in pixels of the image."""

    images: UInt8[Tensor, "b 3 h w"]
    keypoints: Float[Tensor, "b 18 2"]
    present: Bool[Tensor, "b 18"]


class PosedCrops(Dataset[PosedCropBatch]):
    """Crops and their joints by (draw, position); the draw is not used, variation comes by the batch."""

    def __init__(self, crops: Sequence[Crop], height: int, width: int) -> None:
        self.images = CropImages(crops, height, width)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: tuple[int, ...]) -> PosedCropBatch:
        """A batch of one crop."""
        *_, position = row
        joints = self.images.joints(position)
        return PosedCropBatch(self.images.image(position), torch.tensor(joints.xy), torch.tensor(joints.present))


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
    learned, held_out = split_posed_crops(crops.train, recipe.seed)
    checkpoint = open_run(out, recipe, "pose", crops.train, resume=resume)
    fabric = launch_fabric(recipe.runtime)
    settings = recipe.pose_estimator
    height, width = recipe.data.height, recipe.data.width
    sampler = ShuffledCrops(len(learned), settings.batch_size, recipe.seed)
    steps = settings.epochs * sampler.batches_per_epoch
    first_step = checkpoint.step if checkpoint else 0
    batches = ShardedBatches(
        sampler, steps, first_step=first_step, rank=fabric.global_rank, world_size=fabric.world_size
    )
    loader = batch_loader(PosedCrops(learned, height, width), batches, recipe.runtime.workers)
    validation = PosedCrops(held_out, height, width)

    torch.manual_seed(recipe.seed)
    estimator = new_pose_estimator(recipe, pretrained=False if checkpoint else None)
    if checkpoint:
        load_weights(estimator, checkpoint.folder / "pose_estimator.safetensors")
    if recipe.runtime.channels_last:
        estimator.to(memory_format=torch.channels_last)
    network, optimiser = fabric.setup(estimator.train(), make_optimiser(estimator, settings.optimiser))
    if checkpoint:
        optimiser.load_state_dict(resume_state(checkpoint)["pose_estimator"])

    claim_run(out, recipe)
    log = RunLog(out, "pose", steps, first_step, fabric, progress)
    sizes = {"crops": len(learned), "held_out_crops": len(held_out)}
    log.write(first_step, run_facts(recipe, steps, fabric) | sizes)
    try:
        for step, batch in enumerate(loader, first_step + 1):
            seed_step(recipe.seed, step, fabric.global_rank)
            set_learning_rate(optimiser, learning_rate(settings.optimiser, step - 1, steps))
            images, keypoints, present = vary(
                to_float(batch.images.to(fabric.device)),
                batch.keypoints.to(fabric.device),
                batch.present.to(fabric.device),
            )
            maps = network(images).float()
            terms = {"heat_maps": heat_map_loss(maps, estimator.target_maps(keypoints, present))}
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(terms["heat_maps"])
            optimiser.step()
            log.step()
            saving = due(step, settings.checkpoint_every, steps)
            logging = due(step, settings.log_every, steps)
            if saving or logging:
                require_finite(terms, step)
            if logging:
                log.write_terms(
                    step,
                    terms,
                    epoch=(step - 1) // sampler.batches_per_epoch,
                    learning_rate=optimiser.param_groups[0]["lr"],
                    images=fabric.world_size * len(batch.images),
                )
            if saving:
                average_buffers(fabric, {"pose_estimator": estimator})
                log.write(step, validate(estimator, validation, settings.batch_size))
                if fabric.is_global_zero:
                    save_checkpoint(
                        out,
                        step=step,
                        stage="pose",
                        recipe=recipe,
                        identities=tuple(sorted({crop.identity for crop in learned})),
                        training_set=crops.train.fingerprint,
                        parts={"pose_estimator": estimator},
                        resume_state=optimiser_states({"pose_estimator": optimiser}),
                        keep=settings.keep_checkpoints,
                    )
                fabric.barrier()
    finally:
        log.close()
    return out


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
    # Drawn on the CPU: equal on every device.
    mirrored = (torch.rand(count) < 0.5).to(device)
    scale = (1 + _LARGEST_SCALE * (2 * torch.rand(count) - 1)).to(device)
    shift = _LARGEST_SHIFT * (2 * torch.rand(count, 2) - 1).to(device)
    contrast = (0.85 + 0.3 * torch.rand(count, 1, 1, 1)).to(device)
    tint = (0.2 * torch.rand(count, 3, 1, 1) - 0.1).to(device)
    blurred = (torch.rand(count) < _BLURRED_SHARE).to(device)
    sigma = ((0.3 + 1.2 * torch.rand(count)) * height / 64).to(device)

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
    for start in range(0, len(crops), batch_size):
        batch = collate([crops[(position,)] for position in range(start, min(start + batch_size, len(crops)))])
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
