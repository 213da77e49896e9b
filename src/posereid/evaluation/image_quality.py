"""How close a generated picture comes to the real one, and what trivial answers would have scored.

Pictures are (B, 3, H, W) in [-1, 1]. SSIM and PSNR say little alone: where cameras do not move, most of them is
background. So they are also measured inside the person, and beside answers that need no generator
(:class:`TrivialAnswers`).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, LIMBS, joint_index

# The window of Wang et al. 2004: 11 × 11, σ = 1.5. The size follows from σ in torchmetrics.
_WINDOW_SIGMA = 1.5
_WINDOW_RADIUS = 5
_DATA_RANGE = 2.0

PSNR_CAP = 100.0
"""Decibels that equal pictures score: their PSNR is infinite, and one such pair would make the mean infinite too."""

# Shares of the crop's height: half a limb's width, and the radius of the head.
_LIMB_RADIUS = 0.045
_HEAD_RADIUS = 0.075

_HEAD = [joint_index(name) for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
_TRUNK_TRIANGLES = [
    [joint_index(name) for name in corners]
    for corners in (
        ("right_shoulder", "left_shoulder", "left_hip"),
        ("right_shoulder", "left_hip", "right_hip"),
        ("right_shoulder", "left_shoulder", "right_hip"),
        ("left_shoulder", "left_hip", "right_hip"),
    )
]


def similarity_map(generated: Tensor, target: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) around every pixel of each pair of pictures, in [-1, 1]. Shape (B, H, W).

    Both are (B, 3, H, W), RGB in [-1, 1], at least 6 × 6 pixels. Gaussian window 11 × 11 with σ 1.5, K1 = .01,
    K2 = .03, range fixed at 2; taken per channel, over every pixel of the picture (which is mirrored at its border),
    and averaged over the channels.

    Computed in float32 at least, whatever the inputs and autocast say: the variances are differences of nearly equal
    numbers, which half precision and TF32 spoil. Raises :class:`InputError` for shapes that disagree or are too small.
    """
    if generated.shape != target.shape or generated.ndim != 4:
        raise InputError(
            f"Pictures to compare have shapes {tuple(generated.shape)} and {tuple(target.shape)}; two equal "
            "shapes (batch, channels, height, width) are expected."
        )
    if min(generated.shape[-2:]) <= _WINDOW_RADIUS:
        raise InputError(
            f"Pictures of {generated.shape[-2]} × {generated.shape[-1]} pixels are too small for SSIM, whose "
            f"window needs {_WINDOW_RADIUS + 1} × {_WINDOW_RADIUS + 1}."
        )
    # On CUDA float32 convolutions may run in TF32, float64 ones never; on a CPU float64 costs 15 times more.
    precision = torch.float64 if generated.device.type == "cuda" else torch.float32
    with torch.autocast(generated.device.type, enabled=False):
        # The map covers the picture pixel for pixel, so a mask of the picture's size fits it.
        _, per_channel = structural_similarity_index_measure(
            generated.to(precision),
            target.to(precision),
            sigma=_WINDOW_SIGMA,
            data_range=_DATA_RANGE,
            reduction="none",
            return_full_image=True,
        )
    return per_channel.mean(1)


def structural_similarity(generated: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """SSIM of each pair of pictures: the mean of :func:`similarity_map`. Shape (B,), 1 for equal pictures.

    With ``mask``, (B, H, W) bool, only pixels inside it count: foreground SSIM. Raises :class:`InputError` as there.
    """
    return map_mean(similarity_map(generated, target), mask)


def map_mean(per_pixel: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of each (H, W) map of a batch, inside ``mask`` (B, H, W) bool where given. Shape (B,), float32.

    NaN where a mask is empty. Raises :class:`InputError` for a mask of another shape or type.
    """
    if mask is None:
        return per_pixel.mean((1, 2)).to(torch.float32)
    if mask.shape != per_pixel.shape or mask.dtype != torch.bool:
        raise InputError(
            f"The mask is {tuple(mask.shape)} {mask.dtype}; {tuple(per_pixel.shape)} torch.bool is expected."
        )
    total = torch.where(mask, per_pixel, 0).sum((1, 2))
    return (total / mask.sum((1, 2))).to(torch.float32)


def signal_to_noise(generated: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """PSNR of each pair of pictures, 10 log₁₀(2² / mean squared error) in dB, at most :data:`PSNR_CAP`. Shape (B,).

    Both are (B, C, H, W) in [-1, 1]: the peak is 2, as it is 255 for pixels. The error is the mean over pixels and
    channels; with ``mask``, (B, H, W) bool, over the pixels inside it only, and NaN where a mask is empty. Raises
    :class:`InputError` for shapes that disagree.
    """
    if generated.shape != target.shape or generated.ndim != 4:
        raise InputError(
            f"Pictures to compare have shapes {tuple(generated.shape)} and {tuple(target.shape)}; two equal "
            "shapes (batch, channels, height, width) are expected."
        )
    error = map_mean((generated - target).square().mean(1), mask)
    return (10 * torch.log10(_DATA_RANGE**2 / error)).clamp(max=PSNR_CAP)


def grey_background(pictures: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] with mid-grey, 0, outside of ``mask``, (B, H, W) bool."""
    return torch.where(mask[:, None], pictures, torch.zeros((), dtype=pictures.dtype, device=pictures.device))


def pose_mask(keypoints: Tensor, present: Tensor, height: int, width: int) -> Tensor:
    """A person's rough foreground drawn from the joints, (B, height, width) bool; empty without joints.

    ``keypoints`` is (B, 18, 2), (x, y) in pixels of the height × width crop; ``present`` is (B, 18) bool. The
    union of a capsule around every limb and every lone joint (radius 4.5 % of the height), the trunk between
    shoulders and hips, and a disc (radius 7.5 %) around the joints of the face. For sets without foreground
    masks, in the manner of the mask-SSIM of Ma et al. 2017 (pose guided person image generation).
    """
    if keypoints.shape[1:] != (JOINT_COUNT, 2) or present.shape != keypoints.shape[:2]:
        raise InputError(
            f"keypoints and present have shapes {tuple(keypoints.shape)} and {tuple(present.shape)}; "
            f"(batch, {JOINT_COUNT}, 2) and (batch, {JOINT_COUNT}) are expected."
        )
    keypoints, present = keypoints.to(torch.float32), present.to(torch.bool)
    rows = torch.arange(height, dtype=torch.float32, device=keypoints.device)
    columns = torch.arange(width, dtype=torch.float32, device=keypoints.device)
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (H, W, 2) as (x, y)
    mask = torch.zeros(len(keypoints), height, width, dtype=torch.bool, device=keypoints.device)
    limb_radius, head_radius = _LIMB_RADIUS * height, _HEAD_RADIUS * height
    # A joint is a limb from itself to itself.
    for first, second in (*LIMBS, *((joint, joint) for joint in range(JOINT_COUNT))):
        near = _squared_distance(pixels, keypoints[:, first], keypoints[:, second]) <= limb_radius**2
        mask |= near & (present[:, first] & present[:, second])[:, None, None]
    for corners in _TRUNK_TRIANGLES:
        mask |= _in_triangle(pixels, keypoints[:, corners]) & present[:, corners].all(1)[:, None, None]
    seen = present[:, _HEAD].to(keypoints.dtype)[..., None]
    centre = (keypoints[:, _HEAD] * seen).sum(1) / seen.sum(1).clamp(min=1)
    near = _squared_distance(pixels, centre, centre) <= head_radius**2
    return mask | (near & present[:, _HEAD].any(1)[:, None, None])


class TrivialAnswers:
    """What one can answer without a generator, learned from training crops: their mean, and each camera's
    mean.

    Feed every training batch to :meth:`update` once. ``unseen_camera_answers`` counts the crops for which
    :meth:`camera_mean` fell back on the mean of all crops, their camera never having been seen.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}
        self.unseen_camera_answers = 0

    def update(self, images: Tensor, cameras: Tensor | Iterable[int]) -> None:
        """Take in a batch: (B, 3, H, W) pictures in [-1, 1] and their (B,) cameras.

        Raises :class:`InputError` where the numbers of pictures and cameras differ, or the size changed.
        """
        numbers = _numbers(cameras)
        if images.ndim != 4 or len(numbers) != len(images):
            raise InputError(f"{len(numbers)} cameras came with pictures of shape {tuple(images.shape)}.")
        expected = next(iter(self._sums.values())).shape if self._sums else images.shape[1:]
        if images.shape[1:] != expected:
            raise InputError(
                f"Pictures have shape {tuple(images.shape[1:])}, earlier ones {tuple(expected)}; resize all "
                "to one size."
            )
        chosen = torch.tensor(numbers, dtype=torch.int64)
        pictures = images.detach().cpu()
        for camera in sorted(set(numbers)):
            batch_sum = pictures[chosen == camera].sum(0, dtype=torch.float64)
            self._sums[camera] = self._sums.get(camera, torch.zeros_like(batch_sum)) + batch_sum
            self._counts[camera] = self._counts.get(camera, 0) + numbers.count(camera)

    @property
    def cameras(self) -> frozenset[int]:
        """The cameras of the crops that were taken in."""
        return frozenset(self._sums)

    @property
    def mean_image(self) -> Tensor:
        """The mean of all training crops, (3, H, W) float32; :class:`InputError` before any update."""
        if not self._sums:
            raise InputError("The mean training picture was asked for before any training picture was given.")
        total = torch.stack(list(self._sums.values())).sum(0)
        return (total / sum(self._counts.values())).to(torch.float32)

    def camera_mean(self, cameras: Tensor | Iterable[int]) -> Tensor:
        """The mean crop of each given camera, (B, 3, H, W) float32; the overall mean for an unknown one."""
        fallback = self.mean_image
        answers = []
        for camera in _numbers(cameras):
            if camera in self._sums:
                answers.append((self._sums[camera] / self._counts[camera]).to(torch.float32))
            else:
                self.unseen_camera_answers += 1
                answers.append(fallback)
        return torch.stack(answers) if answers else fallback.new_empty(0, *fallback.shape)


def _numbers(cameras: Tensor | Iterable[int]) -> list[int]:
    values: Iterator[int] = iter(cameras.tolist() if isinstance(cameras, Tensor) else cameras)
    return [int(value) for value in values]


def _squared_distance(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Squared distances (B, H, W) of pixels (H, W, 2) to segments from ``start`` to ``end``, (B, 2)."""
    along = end - start
    from_start = pixels - start[:, None, None]
    length = (along**2).sum(1)[:, None, None].clamp(min=1e-12)
    share = ((from_start * along[:, None, None]).sum(-1) / length).clamp(0, 1)
    return ((from_start - share[..., None] * along[:, None, None]) ** 2).sum(-1)


def _in_triangle(pixels: Tensor, corners: Tensor) -> Tensor:
    """Whether pixels (H, W, 2) lie in the triangles with ``corners`` (B, 3, 2), as (B, H, W) bool."""
    sides = []
    for first, second in ((0, 1), (1, 2), (2, 0)):
        origin, along = corners[:, first], corners[:, second] - corners[:, first]
        offset = pixels - origin[:, None, None]
        sides.append(along[:, 0, None, None] * offset[..., 1] - along[:, 1, None, None] * offset[..., 0])
    stacked = torch.stack(sides)
    # Three points in one line enclose nothing, yet every pixel on that line is on no wrong side of it.
    encloses = stacked.sum(0).abs() > 1e-3
    return encloses & ((stacked >= 0).all(0) | (stacked <= 0).all(0))
