import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn

from posereid.config import OptimiserRecipe, Recipe, RuntimeRecipe
from posereid.data.crops import CropTable
from posereid.training.checkpoint import checkpoint_folders
from posereid.training.networks import (
    Networks,
    compiler_works,
    gradient_norm,
    learning_rate,
    make_optimiser,
    ramp,
    seed_step,
    set_learning_rate,
    set_up,
    update,
    weight_difference,
)
from posereid.training.reid import train_reid
from posereid.training.watch import BadStepError

CPU = torch.device("cpu")
LARGEST = 100.0


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


# --- schedules ---------------------------------------------------------------------------------------------


def test_the_rate_is_constant_for_the_first_half_and_then_falls_linearly_towards_zero() -> None:
    recipe = OptimiserRecipe()
    rates = [learning_rate(recipe, step, 800) for step in range(801)]
    assert set(rates[:401]) == {2e-4}
    steps = [before - after for before, after in pairwise(rates[400:])]
    assert steps == pytest.approx([2e-4 / 400] * 400)
    assert rates[600] == pytest.approx(1e-4)
    assert rates[799] > 0
    assert rates[800] == 0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_the_share_of_constant_training_is_the_recipes(share: float) -> None:
    recipe = OptimiserRecipe(learning_rate=1.0, constant_share=share)
    rates = [learning_rate(recipe, step, 40) for step in range(40)]
    # The first step of the decay still has the full rate.
    assert sum(rate == 1.0 for rate in rates) == min(40, round(share * 40) + 1)
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert min(rates) > 0


def test_a_run_of_one_step_learns_at_the_full_rate() -> None:
    assert learning_rate(OptimiserRecipe(), 0, 1) == 2e-4


@pytest.mark.parametrize(
    ("warmup", "length", "expected"),
    [
        (0, 0, [1, 1, 1, 1, 1, 1]),
        (2, 0, [0, 0, 1, 1, 1, 1]),
        (0, 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        (2, 2, [0, 0, 0.5, 1, 1, 1]),
        (10, 3, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_a_ramp_is_zero_for_the_warmup_and_then_rises_to_one(warmup: int, length: int, expected: list[float]) -> None:
    assert [ramp(step, warmup, length) for step in range(6)] == expected


def test_setting_the_rate_reaches_every_group() -> None:
    layers = [nn.Linear(1, 1), nn.Linear(1, 1)]
    optimiser = torch.optim.Adam([{"params": layer.parameters()} for layer in layers])
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]


def test_each_network_follows_the_schedule_of_its_own_name() -> None:
    schedules = {
        "generator": OptimiserRecipe(learning_rate=1.0, constant_share=0.0),
        "embedder": OptimiserRecipe(learning_rate=2.0, constant_share=1.0),
    }
    optimisers = {name: torch.optim.Adam(nn.Linear(1, 1).parameters()) for name in schedules}
    Networks({}, {}, {}, dict(optimisers), schedules).set_learning_rates(3, 4)
    assert [optimiser.param_groups[0]["lr"] for optimiser in optimisers.values()] == [0.25, 2.0]


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimiser_is_adam_with_the_recipes_settings(fused: bool) -> None:
    recipe = OptimiserRecipe(learning_rate=0.01, betas=(0.1, 0.2), weight_decay=0.3)
    optimiser = make_optimiser(nn.Linear(1, 1), recipe, RuntimeRecipe(fused_adam=fused))
    assert type(optimiser) is torch.optim.Adam
    group = optimiser.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.01, (0.1, 0.2), 0.3)
    assert group["fused"] is fused


def test_the_fused_optimiser_takes_the_same_steps() -> None:
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        optimiser = make_optimiser(network, OptimiserRecipe(weight_decay=0.01), RuntimeRecipe(fused_adam=fused))
        for _ in range(8):
            optimiser.zero_grad()
            network(torch.randn(10, 6)).square().mean().backward()
            optimiser.step()
        ends.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))
    # Weights are below 1, each of the 8 steps at most 2e-4 of them: only the last digits may differ.
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_resume_states_hold_nothing_that_weights_only_reading_refuses(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    optimiser = make_optimiser(layer, OptimiserRecipe(), RuntimeRecipe())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    networks = Networks({"embedder": layer}, {}, {}, {"embedder": optimiser}, {})
    torch.save(networks.optimiser_states(), tmp_path / "resume.pt")
    found = torch.load(tmp_path / "resume.pt", weights_only=True)["embedder"]
    again = make_optimiser(nn.Linear(2, 2), OptimiserRecipe(), RuntimeRecipe())
    again.load_state_dict(found)
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


# --- seeds -------------------------------------------------------------------------------------------------


def test_each_step_has_random_numbers_of_its_own_that_repeat() -> None:
    def drawn(*key: int) -> float:
        seed_step(*key)
        return torch.rand(1).item()

    keys = [(seed, step) for seed in (0, 1, 2**32 - 1) for step in (0, 1, 2, 999_999)]
    values = [drawn(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert [drawn(*key) for key in keys] == values


# --- the one place where weights change --------------------------------------------------------------------


class Learning:
    """Two networks, and a third that no objective reaches, with Adam."""

    def __init__(self, fabric: Fabric) -> None:
        torch.manual_seed(1)
        self.plain = {name: nn.Linear(3, 2) for name in ("generator", "embedder", "unused")}
        self.fabric = fabric
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: make_optimiser(module, OptimiserRecipe(learning_rate=0.1), RuntimeRecipe())
            for name, module in self.plain.items()
        }
        self.rows = torch.randn(5, 3)

    def terms(self) -> dict[str, Tensor]:
        one, two = self.plain["generator"](self.rows), self.plain["embedder"](self.rows)
        return {"reconstruction": (one - two).abs().mean(), "identity": two.square().mean() - 0.3}

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten().clone() for m in self.plain.values() for p in m.parameters()])

    def update(self, objective: Tensor, terms: dict[str, Tensor]) -> dict[str, float]:
        return update(self.fabric, objective, terms, self.optimisers, LARGEST)

    def moments(self) -> list[Any]:
        return [optimiser.state_dict()["state"] for optimiser in self.optimisers.values()]


def test_updates_are_backward_passes_and_steps_of_adam(fabric: Fabric) -> None:
    learning, naive = Learning(fabric), Learning(fabric)
    for _ in range(4):
        terms = learning.terms()
        found = learning.update(terms["reconstruction"] + 2 * terms["identity"], terms)
        assert found == {name: term.item() for name, term in terms.items()}

        terms = naive.terms()
        for module in naive.plain.values():
            module.zero_grad()
        (terms["reconstruction"] + 2 * terms["identity"]).backward()
        for optimiser in naive.optimisers.values():
            optimiser.step()
        assert torch.equal(learning.weights(), naive.weights())


def test_a_network_that_the_objective_does_not_reach_keeps_its_weights_even_after_it_had_a_gradient(
    fabric: Fabric,
) -> None:
    learning = Learning(fabric)
    learning.plain["unused"](learning.rows).sum().backward()
    before = learning.plain["unused"].weight.detach().clone()
    terms = learning.terms()
    learning.update(terms["identity"], terms)
    assert torch.equal(learning.plain["unused"].weight, before)
    assert learning.plain["unused"].weight.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, LARGEST * 1.01, -LARGEST * 1.01])
@pytest.mark.parametrize("name", ["reconstruction", "identity"])
def test_a_term_that_is_no_number_or_too_large_changes_nothing_and_is_named(
    fabric: Fabric, name: str, value: float
) -> None:
    learning = Learning(fabric)
    before = learning.weights()
    terms = learning.terms()
    terms[name] = terms[name] * 0 + value
    with pytest.raises(BadStepError) as bad:
        learning.update(terms["reconstruction"] + terms["identity"], terms)
    assert bad.value.what == f"{name} loss"
    assert bad.value.value == pytest.approx(value, nan_ok=True)
    assert torch.equal(learning.weights(), before)
    assert learning.moments() == [{}, {}, {}]


def test_a_term_of_exactly_the_largest_size_is_learnt_from(fabric: Fabric) -> None:
    learning = Learning(fabric)
    before = learning.weights()
    terms = learning.terms()
    assert learning.update(terms["identity"], terms | {"identity": torch.tensor(LARGEST)})["identity"] == LARGEST
    assert not torch.equal(learning.weights(), before)


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        # The gradient of a root is infinite at 0, and times 0 it is no number.
        (lambda rows: (rows - rows.detach()).sum().sqrt(), math.inf),
        (lambda rows: (0 * rows.sum()).sqrt(), math.nan),
    ],
    ids=["inf", "nan"],
)
def test_a_gradient_that_is_no_number_changes_nothing_though_the_loss_is_one(
    fabric: Fabric, spoil: Callable[[Tensor], Tensor], value: float
) -> None:
    learning = Learning(fabric)
    before = learning.weights()
    terms = learning.terms()
    spoilt = spoil(learning.plain["embedder"].bias)
    assert spoilt.item() == 0
    with pytest.raises(BadStepError) as bad:
        learning.update(terms["reconstruction"] + spoilt, terms)
    assert bad.value.what == "gradient of the embedder"
    assert repr(bad.value.value) == repr(value)
    assert torch.equal(learning.weights(), before)


def test_after_a_bad_step_the_next_is_taken_as_if_it_had_not_been(fabric: Fabric) -> None:
    learning, naive = Learning(fabric), Learning(fabric)
    terms = learning.terms()
    with pytest.raises(BadStepError):
        learning.update(terms["identity"] * math.nan, terms | {"identity": torch.tensor(math.nan)})
    for each in (learning, naive):
        terms = each.terms()
        each.update(terms["identity"], terms)
    assert torch.equal(learning.weights(), naive.weights())


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4), max_size=4), st.booleans())
def test_the_gradients_length_is_that_of_all_weights_together(gradients: list[list[float]], more: bool) -> None:
    weights = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.tensor(gradient)
    groups = [{"params": [weight]} for weight in weights]
    if more or not groups:
        groups.append({"params": [nn.Parameter(torch.ones(3))]})
    expected = math.sqrt(sum(value * value for gradient in gradients for value in gradient))
    assert gradient_norm(torch.optim.SGD(groups)).item() == pytest.approx(expected, rel=1e-5)


def test_in_one_process_weights_do_not_differ() -> None:
    assert weight_difference({"one": nn.BatchNorm1d(2), "two": nn.Linear(2, 2)}) == 0


# --- compiling ---------------------------------------------------------------------------------------------


def failing_at_once(_: Any) -> Any:
    raise RuntimeError("Compiler: g++ is not found\nand a long explanation")


def failing_when_called(_: Any) -> Any:
    def call(*_: Any) -> None:
        raise ImportError

    return call


@pytest.mark.parametrize(
    ("compile", "reason"), [(failing_at_once, "Compiler: g++ is not found"), (failing_when_called, "ImportError")]
)
def test_where_nothing_can_be_compiled_one_line_says_so(
    compile: Callable, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", compile)
    assert not compiler_works(CPU)
    assert capsys.readouterr().err == (
        f"runtime.compile: torch.compile does not work here ({reason}); training goes on without.\n"
    )


def test_where_nothing_can_be_compiled_training_goes_on_as_if_it_had_not_been_asked_for(
    crops: CropTable, tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", failing_at_once)
    runs = [
        train_reid(tiny_recipe(runtime={"compile": compile}), crops, tmp_path / str(compile), progress=False)
        for compile in (False, True)
    ]
    contents = [(checkpoint_folders(run)[-1] / "embedder.safetensors").read_bytes() for run in runs]
    assert contents[0] == contents[1]


def test_a_compiled_network_learns_and_the_plain_one_is_saved(
    fabric: Fabric, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without generating code, which takes a minute: as far as set_up can tell it is the same.
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **_: real(module, backend="eager"))
    plain = nn.Linear(3, 2)
    recipe = tiny_recipe(runtime={"compile": True})
    networks = set_up({"embedder": plain}, {"embedder": OptimiserRecipe()}, recipe, fabric)
    assert networks.plain["embedder"] is plain
    assert networks.bare["embedder"] is not plain
    before = plain.weight.detach().clone()
    rows = torch.ones(4, 3)
    assert torch.equal(networks.bare["embedder"](rows), plain(rows))
    objective = networks.wrapped["embedder"](rows).square().mean()
    update(fabric, objective, {"identity": objective}, networks.optimisers, LARGEST)
    assert not torch.equal(plain.weight, before)
    assert set(networks.plain["embedder"].state_dict()) == {"weight", "bias"}
