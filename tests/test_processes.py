"""Two processes on the halves of a batch against one process on the whole of it.

Two real processes run :func:`work`, once for the module, and leave what they computed in a file.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from posereid import processes
from posereid.errors import InputError
from posereid.processes import (
    SharedDropout,
    another_process_ended,
    own_rows,
    process_count,
    share_normalisation,
    shared_batch_norm,
    sum_over_processes,
    whole_batch,
)

Shape = tuple[int, ...]
Tensors = dict[str, Tensor]
CPU = torch.device("cpu")

NORMS: dict[str, tuple[Callable[[], nn.Module], Shape, float]] = {
    "of maps": (lambda: nn.BatchNorm2d(3), (8, 3, 4, 5), 0),
    "of vectors": (lambda: nn.BatchNorm1d(6), (8, 6), 0),
    "of sequences": (lambda: nn.BatchNorm1d(6), (8, 6, 7), 0),
    "with its activation": (lambda: BatchNormAct2d(3), (8, 3, 4, 5), 0),
    "averaging all steps alike": (lambda: nn.BatchNorm2d(3, momentum=None), (8, 3, 4, 5), 0),
    "with a momentum of its own": (lambda: nn.BatchNorm2d(3, momentum=0.7, eps=0.01), (8, 3, 4, 5), 0),
    "without weights": (lambda: nn.BatchNorm2d(3, affine=False), (8, 3, 4, 5), 0),
    "without running statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (8, 3, 4, 5), 0),
    "of one row each": (lambda: nn.BatchNorm1d(6), (2, 6), 0),
    "of a large mean": (lambda: nn.BatchNorm2d(3), (8, 3, 4, 5), 1e4),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def summed(tensor: Tensor) -> Tensor:
    """Over the processes, by hand."""
    total = tensor.detach().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return total


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, by hand."""
    if process_count() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(process_count())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def normalised(name: str) -> Tensors:
    """Three steps of one normalisation: outputs, all gradients and its state, for the whole batch."""
    make, shape, mean = NORMS[name]
    norm = make()
    for n, parameter in enumerate(norm.parameters()):
        parameter.data = drawn(*parameter.shape, seed=50 + n)
    norm = share_normalisation(norm, CPU)
    found = {}
    for step in range(3):
        rows = own_rows(mean + (step + 1) * drawn(*shape, seed=step)).requires_grad_()
        output = norm(rows)
        (output * own_rows(drawn(*shape, seed=9))).sum().backward()
        assert rows.grad is not None
        found |= {f"output {step}": gathered(output), f"gradient {step}": gathered(rows.grad)}
    found |= {f"gradient of {n}": summed(p.grad) for n, p in norm.named_parameters() if p.grad is not None}
    return found | norm.state_dict()


def network() -> nn.Module:
    """Something with every kind of normalisation."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4)),
        nn.Flatten(),
        nn.Linear(4 * 4, 5),
        nn.BatchNorm1d(5),
        SharedDropout(0.5),
        nn.Linear(5, 2),
    )


def networks_outputs() -> Tensors:
    """What the network says while it learns, and afterwards of half a batch."""
    shared = share_normalisation(network(), CPU)
    torch.manual_seed(11)
    rows = own_rows(drawn(8, 3, 4, 4))
    learning = gathered(shared(rows))
    return {"learning": learning, "evaluation": shared.eval()(drawn(4, 3, 4, 4, seed=2))} | shared.state_dict()


def dropped() -> Tensors:
    """Dropout and its gradient for the whole batch."""
    torch.manual_seed(5)
    rows = own_rows(1 + drawn(8, 3, 2).square()).requires_grad_()
    output = SharedDropout(0.4)(rows)
    output.sum().backward()
    assert rows.grad is not None
    return {"output": gathered(output), "gradient": gathered(rows.grad)}


def gathering() -> Tensors:
    """A loss of pairs of rows, with its gradients as distributed training averages them."""
    weight = drawn(4, 3, seed=1).requires_grad_()
    rows = own_rows(drawn(6, 4)).requires_grad_()
    # Transposed: neither the rows nor their gradient are contiguous.
    whole = whole_batch((weight.t() @ rows.t()).t())
    loss = ((whole @ whole.t()).tanh() * drawn(6, 6, seed=3)).sum()
    loss.backward()
    assert rows.grad is not None
    return {
        "whole": whole.detach(),
        "loss": loss.detach(),
        "gradient of the weight": summed(weight.grad) / process_count(),
        "gradient of the rows": gathered(rows.grad) / process_count(),
    }


def summing() -> Tensors:
    """Sums over processes from which each makes another part of the loss, with their gradients."""
    rows = own_rows(drawn(6, 4)).requires_grad_()
    total = sum_over_processes((rows.t() ** 3).sum(1))
    loss = (own_rows(drawn(6, 4, seed=8)) * total.exp().log1p()).sum()
    loss.backward()
    assert rows.grad is not None
    return {"total": total.detach(), "loss": summed(loss), "gradient": gathered(rows.grad)}


def everything() -> dict[str, Tensors]:
    results = {"network": networks_outputs(), "dropout": dropped(), "gathering": gathering(), "summing": summing()}
    return results | {name: normalised(name) for name in NORMS}


def work(rank: int, out: Path) -> None:
    """One of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{out}.meeting", rank=rank, world_size=2)
    results = everything()
    results["ranks"] = {"gathered": whole_batch(torch.full((1, 2), rank))}
    if rank == 0:
        torch.save(results, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensors]:
    out = tmp_path_factory.mktemp("processes") / "results.pt"
    both = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said[0][-2000:] + said[1][-2000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def of_one() -> dict[str, Tensors]:
    return everything()


def assert_alike(two: Tensors, one: Tensors, tolerance: float = 1e-5) -> None:
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# --- two processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NORMS if "large" not in name])
def test_normalising_two_halves_is_normalising_the_whole(name: str, of_two: dict, of_one: dict) -> None:
    assert_alike(of_two[name], of_one[name])


def test_a_large_mean_costs_no_more_digits_than_float32_lacks_for_it(of_two: dict, of_one: dict) -> None:
    two, one = of_two["of a large mean"], of_one["of a large mean"]
    # A mean of 1e4 is known to 2^-24 of itself at best, and summing and rounding it takes a few of these in both; the
    # variance about it is not touched. Deviations are 1 to 3.
    assert_alike(two, one, 4 * 2**-22 * 1e4)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=0)


def test_networks_with_shared_normalisation_keep_their_weights_names_and_say_what_one_process_would(
    of_two: dict, of_one: dict
) -> None:
    assert of_two["network"].keys() - {"learning", "evaluation"} == network().state_dict().keys()
    assert_alike(of_two["network"], of_one["network"])


def test_dropout_drops_what_one_process_would(of_two: dict, of_one: dict) -> None:
    assert 0 < (of_two["dropout"]["gradient"] == 0).sum() < 48
    assert_alike(of_two["dropout"], of_one["dropout"], 0)


@pytest.mark.parametrize("name", ["gathering", "summing"])
def test_what_is_gathered_and_summed_has_the_gradient_of_one_process(name: str, of_two: dict, of_one: dict) -> None:
    assert_alike(of_two[name], of_one[name])


def test_rows_are_gathered_in_the_order_of_ranks(of_two: dict) -> None:
    assert of_two["ranks"]["gathered"].tolist() == [[0, 0], [1, 1]]


# --- one process -------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=2), st.integers(0, 9))
def test_in_one_process_shared_normalisation_is_pytorchs(
    batch: int, channels: int, space: list[int], seed: int
) -> None:
    rows = drawn(batch + 1, channels, *space, seed=seed)
    own, other = ((nn.BatchNorm2d if len(space) == 2 else nn.BatchNorm1d)(channels) for _ in range(2))
    torch.testing.assert_close(shared_batch_norm(own, rows), other(rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-6)


def test_in_one_process_nothing_is_gathered_and_no_module_changed() -> None:
    rows, plain = drawn(4, 2), network()
    assert process_count() == 1
    assert all(each(rows) is rows for each in (whole_batch, sum_over_processes, own_rows))
    types = [type(part) for part in plain.modules()]
    assert share_normalisation(plain, CPU) is plain
    assert [type(part) for part in plain.modules()] == types


@given(st.floats(0, 1), st.integers(0, 9))
def test_dropout_zeroes_some_and_scales_the_others_up(share: float, seed: int) -> None:
    torch.manual_seed(seed)
    dropped = SharedDropout(share)(torch.ones(50, 40))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], torch.full((int(kept.sum()),), 1 / max(1 - share, 1e-12)))
    # Five standard deviations of a binomial distribution of 2,000 draws.
    assert abs(kept.float().mean().item() - (1 - share)) <= 5 * (share * (1 - share) / 2000) ** 0.5 + 5e-4


def test_dropout_rests_in_evaluation_and_without_a_share() -> None:
    rows = drawn(4, 3)
    assert SharedDropout(0.5).eval()(rows) is rows
    assert SharedDropout(0.0)(rows) is rows


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))


def test_a_normalisation_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.BatchNorm2d):
        pass

    monkeypatch.setattr(processes, "process_count", lambda: 2)
    with pytest.raises(InputError, match="normalises batches by Own"):
        share_normalisation(nn.Sequential(nn.BatchNorm2d(2), Own(2)), torch.device("cpu"))


def test_only_where_several_work_together_does_a_lost_connection_mean_that_another_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = [RuntimeError("Connection closed by peer [127.0.0.1]:1"), dist.DistError("timed out")]
    assert [another_process_ended(error) for error in lost] == [False, False]
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    assert [another_process_ended(error) for error in lost] == [True, True]
    assert not another_process_ended(RuntimeError("out of memory"))
