import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from posereid.config import OptimiserRecipe, RuntimeRecipe
from posereid.errors import InputError
from posereid.training.loop import (
    RunLog,
    learning_rate,
    make_optimiser,
    optimiser_states,
    pick_device,
    ramp,
    require_finite,
    seed_step,
    set_learning_rate,
)

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


def test_the_optimiser_is_adam_with_the_recipes_settings() -> None:
    recipe = OptimiserRecipe(learning_rate=0.01, betas=(0.1, 0.2), weight_decay=0.3)
    optimiser = make_optimiser(nn.Linear(1, 1), recipe)
    assert type(optimiser) is torch.optim.Adam
    group = optimiser.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.01, (0.1, 0.2), 0.3)


# --- seeds and checks --------------------------------------------------------------------------------------


def test_each_step_of_each_process_has_random_numbers_of_its_own_that_repeat() -> None:
    def drawn(*key: int) -> float:
        seed_step(*key)
        return torch.rand(1).item()

    keys = [(seed, step, rank) for seed in (0, 1, 2**32 - 1) for step in (0, 1, 10**7) for rank in (0, 1, 63)]
    values = [drawn(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert [drawn(*key) for key in keys] == values


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_is_named(value: float) -> None:
    with pytest.raises(InputError, match=r"step 7: the semantic loss is (nan|inf)"):
        require_finite({"identity": torch.tensor(1.0), "semantic": torch.tensor(value)}, 7)


def test_finite_losses_pass() -> None:
    require_finite({"identity": torch.tensor(-1e30)}, 7)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"runtime\.device is cuda"):
        pick_device(RuntimeRecipe(device="cuda"))
    assert pick_device(RuntimeRecipe(device="auto")).type == "cpu"


def test_auto_takes_the_accelerator_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(RuntimeRecipe(device="auto")).type == "cuda"
    assert pick_device(RuntimeRecipe(device="cpu")).type == "cpu"


# --- the run's log -------------------------------------------------------------------------------------------


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_records_are_written_as_they_come_with_their_rate(tmp_path: Path, fabric: Fabric) -> None:
    log = RunLog(tmp_path, "joint", 4, 0, fabric, show=False)
    log.write(0, {"seed": 3})
    log.write(2, {"loss_identity": 1.5}, images_per_step=8)
    assert records(tmp_path)[0] == {"step": 0, "stage": "joint", "seed": 3}
    second = records(tmp_path)[1]
    assert (second["step"], second["loss_identity"]) == (2, 1.5)
    assert second["images_per_second"] > 0
    log.close()


def test_a_resumed_log_drops_the_steps_that_are_run_again(tmp_path: Path, fabric: Fabric) -> None:
    log = RunLog(tmp_path, "joint", 4, 0, fabric, show=False)
    for step in range(4):
        log.write(step, {"loss_identity": 1.0})
    log.close()
    log = RunLog(tmp_path, "joint", 4, 2, fabric, show=False)
    log.write(3, {"loss_identity": 2.0})
    log.close()
    assert [(record["step"], record["loss_identity"]) for record in records(tmp_path)] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


def test_a_line_that_a_killed_run_left_half_written_does_not_stop_the_next(tmp_path: Path, fabric: Fabric) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "stage": "joint"}\n{"step": 2, "sta')
    log = RunLog(tmp_path, "joint", 4, 1, fabric, show=False)
    log.write(2, {})
    log.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_resume_states_hold_nothing_that_weights_only_reading_refuses(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    optimiser = make_optimiser(layer, OptimiserRecipe())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    torch.save(optimiser_states({"embedder": optimiser}), tmp_path / "resume.pt")
    found = torch.load(tmp_path / "resume.pt", weights_only=True)["embedder"]
    again = make_optimiser(nn.Linear(2, 2), OptimiserRecipe())
    again.load_state_dict(found)
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])
