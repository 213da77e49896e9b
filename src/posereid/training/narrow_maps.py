"""Convolutions that bfloat16 gets wrong on CPUs, done in float32."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def spare_narrow_maps(module: nn.Module) -> nn.Module:
    """Let strided convolutions on the CPU compute in float32 where autocast would have bfloat16 maps of one column.

    The column is the output's, or a transposed convolution's input's. Changes the module and returns it. On CPUs with
    AMX, oneDNN's kernels for such maps read memory that nobody wrote: the result is wrong by any amount, or NaN, and
    another one in every run (https://github.com/pytorch/pytorch/issues/169688); those for AVX-512 can leave weight
    gradients unwritten. Crops of 64×32 end in such maps in any network that halves them five times. Weights, their
    names and float32 results stay as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.stride[1] > 1:
            part.forward = partial(_convolved, part.forward, part)  # type: ignore[method-assign]
    return module


def _convolved(
    convolve: Callable[..., Tensor], part: nn.Conv2d | nn.ConvTranspose2d, maps: Tensor, *arguments: object
) -> Tensor:
    if maps.device.type == "cpu" and torch.is_autocast_enabled("cpu") and _is_narrow(part, maps.shape[-1]):
        with torch.autocast("cpu", enabled=False):
            return convolve(maps.float(), *arguments)
    return convolve(maps, *arguments)


def _is_narrow(part: nn.Conv2d | nn.ConvTranspose2d, width: int) -> bool:
    if isinstance(part, nn.ConvTranspose2d):
        return width == 1
    reach = part.dilation[1] * (part.kernel_size[1] - 1)
    padding = 0 if isinstance(part.padding, str) else part.padding[1]
    return width <= part.stride[1] + reach - 2 * padding
