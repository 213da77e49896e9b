"""What several processes that train together must share so that they compute what one process would.

Each process works on its own rows of every batch. Whatever looks at a whole batch – normalisation statistics,
quartets, random masks – goes through here. In a single process all of it costs nothing.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from posereid.errors import InputError


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def another_process_ended(error: RuntimeError) -> bool:
    """Whether ``error`` says that this process lost one of those that it works with."""
    # Gloo's complaints of closed and reset connections are plain RuntimeErrors.
    return process_count() > 1 and (isinstance(error, dist.DistError) or "onnection" in str(error))


def own_rows(whole: Tensor) -> Tensor:
    """The rows of this process in a tensor that every process has drawn alike for the whole batch."""
    if process_count() == 1:
        return whole
    return whole.chunk(process_count())[dist.get_rank()]


class _Sum(torch.autograd.Function):
    """The sum over processes; so is its gradient, because every process's result depends on every input."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    """All processes' rows, in the order of their ranks; the gradient sums what every process makes of a row."""

    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(process_count())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own_rows(total)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The element-wise sum of the processes' tensors, with its gradient."""
    return _Sum.apply(tensor) if process_count() > 1 else tensor


def whole_batch(rows: Float[Tensor, "b *d"]) -> Float[Tensor, "n *d"]:
    """The rows of all processes, in the order of one process's batch, with their gradient.

    A loss of the gathered rows, computed by every process alike, has the right gradient once it is averaged over
    processes, as distributed training does.
    """
    return _Gather.apply(rows) if process_count() > 1 else rows


class SharedDropout(nn.Dropout):
    """Dropout whose mask is drawn for the whole batch, so that each row's does not depend on the number of processes.

    All processes must have seeded torch's generator alike.
    """

    def forward(self, rows: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Zero each element with the given probability and scale the others up; in evaluation nothing happens."""
        if not self.training or not self.p:
            return rows
        whole = torch.rand(process_count() * len(rows), *rows.shape[1:], device=rows.device)
        kept = own_rows(whole) >= self.p
        return rows * kept / max(1 - self.p, 1e-12)


def shared_batch_norm(norm: nn.modules.batchnorm._BatchNorm, maps: Float[Tensor, "b c *space"]) -> Tensor:
    """Batch normalisation by the mean and variance of all processes' maps together.

    Two passes, the variance about the common mean: a sum of squares would lose digits where a mean is large.
    Running statistics are updated as PyTorch does, with the unbiased variance. In float32 whatever the maps' type.
    """
    values = maps.float()
    axes = [axis for axis in range(values.dim()) if axis != 1]
    shape = [1, -1] + [1] * (values.dim() - 2)
    # Every process has as many rows: the sampler sees to it.
    count = process_count() * values.numel() // values.shape[1]
    mean = sum_over_processes(values.sum(axes)) / count
    centred = values - mean.view(shape)
    # What rounding left of the mean is taken off too.
    sums = torch.stack([centred.sum(axes), centred.square().sum(axes)])
    rest, square = (sum_over_processes(sums) / count).unbind()
    centred, variance = centred - rest.view(shape), square - rest.square()
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * (count / max(count - 1, 1)), share)
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(maps.dtype)


class _SharedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, maps: Tensor) -> Tensor:
        return shared_batch_norm(self, maps) if self.training else super().forward(maps)


class _SharedBatchNorm1d(nn.BatchNorm1d):
    def forward(self, maps: Tensor) -> Tensor:
        return shared_batch_norm(self, maps) if self.training else super().forward(maps)


class _SharedBatchNormAct2d(BatchNormAct2d):
    def forward(self, maps: Tensor) -> Tensor:
        return self.act(self.drop(shared_batch_norm(self, maps))) if self.training else super().forward(maps)


_SHARED = {
    nn.BatchNorm1d: _SharedBatchNorm1d,
    nn.BatchNorm2d: _SharedBatchNorm2d,
    BatchNormAct2d: _SharedBatchNormAct2d,
}


def share_normalisation(module: nn.Module, device: torch.device) -> nn.Module:
    """Make a network's batch normalisations look at all processes' rows, where there are several.

    PyTorch's own SyncBatchNorm does it on GPUs and refuses the CPU, where :func:`shared_batch_norm` does. The names of
    weights stay, so that checkpoints do not depend on the number of processes. Raises InputError for a kind of batch
    normalisation that cannot be shared.
    """
    if process_count() == 1:
        return module
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for part in module.modules():
        if type(part) in _SHARED:
            # The same weights and buffers under another forward pass.
            part.__class__ = _SHARED[type(part)]
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and type(part) not in _SHARED.values():
            raise InputError(
                f"this network normalises batches by {type(part).__name__}, which several processes on the CPU cannot "
                "share; choose another backbone, or train in one process."
            )
    return module
