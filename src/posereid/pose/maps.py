"""Heat maps of joints, rendered on the device that asks for them, and the mirror that keeps sides right."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from posereid.pose.joints import FLIP_ORDER, JOINT_COUNT

SIGMA_PER_HEIGHT = 6 / 128
"""Standard deviation of a joint's bump as a share of the crop's height: 6 px at 128."""


def heat_maps(
    keypoints: Float[Tensor, "batch 18 2"],
    present: Bool[Tensor, "batch 18"],
    height: int = 128,
    width: int = 64,
    sigma: float | None = None,
) -> Float[Tensor, "batch 18 height width"]:
    """Render 18 joints as un-normalised Gaussians, ``exp(-d² / 2σ²)``, all zero where a joint is absent.

    ``keypoints`` are (x, y) in pixels of a ``height`` × ``width`` crop. Values lie in [0, 1] and are 1 at the
    joint. ``sigma`` is in pixels and defaults to 6 at height 128, in proportion to the height. The result has
    the device and the floating type of ``keypoints``.
    """
    if keypoints.shape[-2:] != (JOINT_COUNT, 2):
        raise ValueError(f"keypoints must end in ({JOINT_COUNT}, 2), got {tuple(keypoints.shape)}")
    spread = SIGMA_PER_HEIGHT * height if sigma is None else sigma
    columns = torch.arange(width, device=keypoints.device, dtype=keypoints.dtype)
    rows = torch.arange(height, device=keypoints.device, dtype=keypoints.dtype)
    # A Gaussian of the distance is the product of one over x and one over y: two short vectors per joint.
    across = torch.exp(-((columns - keypoints[..., 0, None]) ** 2) / (2 * spread**2))
    down = torch.exp(-((rows - keypoints[..., 1, None]) ** 2) / (2 * spread**2))
    down = torch.where(present[..., None], down, torch.zeros_like(down))
    across = torch.where(present[..., None], across, torch.zeros_like(across))
    return down[..., :, None] * across[..., None, :]


def flip_keypoints(
    keypoints: Float[Tensor, "batch 18 2"], present: Bool[Tensor, "batch 18"], width: int
) -> tuple[Float[Tensor, "batch 18 2"], Bool[Tensor, "batch 18"]]:
    """Mirror joints with their crop, ``width`` pixels wide: x becomes ``width - 1 - x``, left becomes right."""
    order = torch.tensor(FLIP_ORDER, device=keypoints.device)
    mirrored = keypoints[..., order, :].clone()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return mirrored, present[..., order]


def flip_heat_maps(maps: Float[Tensor, "batch 18 height width"]) -> Float[Tensor, "batch 18 height width"]:
    """Mirror heat maps in space and exchange the channels of left and right joints."""
    return maps[:, torch.tensor(FLIP_ORDER, device=maps.device)].flip(-1)
