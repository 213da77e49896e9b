"""What goes wrong inside a run: steps that cannot be learnt from, collapse, crops that cannot be read."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import assert_ends_alike, differences, logged_steps, records
from torch import Tensor

from posereid.config import Recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.sampling import PosePairSampler
from posereid.errors import InputError
from posereid.training import joint
from posereid.training.checkpoint import latest_checkpoint, load_weights, resume_state
from posereid.training.joint import train_joint
from posereid.training.watch import ProcessorWatch

Build = Callable[..., Recipe]
JUDGES = ("appearance_discriminator", "pose_discriminator")


@pytest.fixture
def recipe(tiny_recipe: Build) -> Build:
    """Six steps of joint training, saved after the last."""

    def build(**changes: Any) -> Recipe:
        return tiny_recipe(joint={"epochs": 3, "checkpoint_every": 6, "sample_every": 6}, **changes)

    return build


class _NotANumberOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.nan


def spoil(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    steps: Iterable[int],
    change: Callable[[Tensor], Tensor] = lambda value: value * torch.nan,
) -> None:
    """Change what a loss function of joint training returns in some steps."""
    function, training_step, now = getattr(joint, name), joint.training_step, [0]

    def at_step(networks: Any, batch: Any, recipe: Any, step: int, fabric: Any) -> Any:
        now[0] = step
        return training_step(networks, batch, recipe, step, fabric)

    def changed(*arguments: Any) -> Tensor:
        value = function(*arguments)
        return change(value) if now[0] in steps else value

    monkeypatch.setattr(joint, "training_step", at_step)
    monkeypatch.setattr(joint, name, changed)


def state_before(monkeypatch: pytest.MonkeyPatch, step: int) -> dict[str, Any]:
    """Filled, when the step begins, with the networks' and optimisers' state."""
    found: dict[str, Any] = {}
    training_step = joint.training_step

    def noting(networks: Any, batch: Any, recipe: Any, number: int, fabric: Any) -> Any:
        if number == step:
            found["weights"] = {name: deepcopy(module.state_dict()) for name, module in networks.plain.items()}
            found["optimisers"] = deepcopy(networks.optimiser_states())
        return training_step(networks, batch, recipe, number, fabric)

    monkeypatch.setattr(joint, "training_step", noting)
    return found


def saved_weights(run: Path, recipe: Recipe) -> dict[str, dict[str, Tensor]]:
    checkpoint = latest_checkpoint(run)
    networks = {
        "generator": joint.new_generator(recipe),
        "embedder": joint.new_embedder(recipe, 4),
        "appearance_discriminator": joint.appearance_discriminator(4, 2),
        "pose_discriminator": joint.pose_discriminator(4, 2),
    }
    for name, network in networks.items():
        load_weights(network, checkpoint.folder / f"{name}.safetensors")
    return {name: network.state_dict() for name, network in networks.items()}


def unlike(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def crop_names(crops: CropTable, step: int) -> list[str]:
    """The crops of one step of the six."""
    rows = PosePairSampler(crops.train, 4, 8, 0).batch(*divmod(step - 1, 2))
    return list(dict.fromkeys(crops.train[position].name for position in rows.flatten().tolist()))


def warnings(run: Path) -> list[tuple[int, str]]:
    return [(record["step"], record["warning"]) for record in records(run) if "warning" in record]


# --- steps that cannot be learnt from ----------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run_before_a_weight_learns_from_it(
    crops: CropTable, recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "reconstruction_loss", [5])
    before = state_before(monkeypatch, 5)
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"stopped at step 5: the reconstruction loss is nan") as raised:
        train_joint(recipe(), crops, run, progress=False)
    names = crop_names(crops, 5)
    assert all(name in str(raised.value) for name in names[:4])
    assert [json.loads(line) for line in (run / "bad-steps.jsonl").read_text().splitlines()] == [
        {"step": 5, "what": "reconstruction loss", "value": "nan", "crops": names}
    ]
    assert latest_checkpoint(run).step == 5
    after, state = saved_weights(run, recipe()), resume_state(latest_checkpoint(run))
    # Weights and normalisation statistics of the learners of the spoilt term are those after step 4 ...
    for name in ("generator", "embedder"):
        assert unlike(after[name], before["weights"][name]) == set()
        steps = {entry["step"].item() for entry in state[name]["state"].values()}
        assert steps == {4}
    # ... and the discriminators, which learn first, have taken their step and kept their statistics.
    for name in JUDGES:
        changed = unlike(after[name], before["weights"][name])
        assert changed
        assert not any("running" in key or "num_batches" in key for key in changed)
        assert {entry["step"].item() for entry in state[name]["state"].values()} == {5}
    assert all(value.isfinite().all() for weights in after.values() for value in weights.values())

    monkeypatch.undo()
    train_joint(recipe(), crops, run, resume=True, progress=False)
    assert latest_checkpoint(run).step == 6
    assert [record["step"] for record in logged_steps(run)] == [1, 2, 3, 4, 6]


def test_a_discriminator_loss_that_is_no_number_leaves_everything_as_it_was(
    crops: CropTable, recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "discriminator_loss", [5])
    before = state_before(monkeypatch, 5)
    with pytest.raises(InputError, match=r"step 5: the appearance_discriminator loss is nan"):
        train_joint(recipe(), crops, tmp_path / "run", progress=False)
    after = saved_weights(tmp_path / "run", recipe())
    assert {name: unlike(after[name], before["weights"][name]) for name in after} == {name: set() for name in after}


def test_a_gradient_that_is_no_number_ends_the_run_though_its_loss_is_one(
    crops: CropTable, recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "reconstruction_loss", [3], _NotANumberOnTheWayBack.apply)
    before = state_before(monkeypatch, 3)
    with pytest.raises(InputError, match=r"step 3: the gradient of the generator is nan"):
        train_joint(recipe(), crops, tmp_path / "run", progress=False)
    after = saved_weights(tmp_path / "run", recipe())
    assert unlike(after["generator"], before["weights"]["generator"]) == set()


def test_a_loss_beyond_the_largest_allowed_ends_the_run(
    crops: CropTable, recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "identity_loss", [2], lambda value: value + 600)
    with pytest.raises(InputError, match=r"step 2: the identity loss is 60\d"):
        train_joint(recipe(safety={"largest_loss": 500}), crops, tmp_path / "run", progress=False)


def test_so_many_bad_steps_as_allowed_are_left_out_and_counted_and_one_more_ends_the_run(
    crops: CropTable,
    recipe: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, "reconstruction_loss", [2, 4, 6])
    run = tmp_path / "run"
    with pytest.raises(InputError, match="stopped at step 6"):
        train_joint(recipe(safety={"skip_steps": 2}), crops, run, progress=False)
    steps = logged_steps(run)
    assert [(record["step"], record.get("skipped")) for record in steps] == [(1, None), (3, 1), (5, 2)]
    assert [step for step, _ in warnings(run)] == [2, 4]
    assert "left out, 2 of 2 times" in warnings(run)[1][1]
    assert capsys.readouterr().err.count("left out") == 2
    assert len((run / "bad-steps.jsonl").read_text().splitlines()) == 3
    assert latest_checkpoint(run).step == 6


def test_a_resumed_run_remembers_how_many_steps_were_left_out(
    crops: CropTable, recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    spoil(monkeypatch, "reconstruction_loss", [2, 4, 6])
    with pytest.raises(InputError, match="stopped at step 4"):
        train_joint(recipe(safety={"skip_steps": 1}), crops, run, progress=False)
    assert resume_state(latest_checkpoint(run))["skipped"] == 1
    with pytest.raises(InputError, match="stopped at step 6"):
        train_joint(recipe(safety={"skip_steps": 1}), crops, run, resume=True, progress=False)
    train_joint(recipe(safety={"skip_steps": 2}), crops, run, resume=True, progress=False)
    assert latest_checkpoint(run).step == 6


# --- collapse ----------------------------------------------------------------------------------------------


def test_discriminators_that_are_never_wrong_are_told_of_once_while_it_happens(
    crops: CropTable,
    recipe: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, "discriminator_loss", range(2, 7), lambda value: value * 0.001)
    run = train_joint(recipe(safety={"collapse_steps": 3}), crops, tmp_path / "run", progress=False)
    told = warnings(run)
    assert [step for step, _ in told] == [4, 4]
    assert all(name.replace("_", " ") in text for name, (_, text) in zip(JUDGES, told, strict=True))
    assert capsys.readouterr().err.count("never wrong") == 2


def test_a_generator_that_draws_the_same_for_everybody_is_told_of_once(
    crops: CropTable,
    recipe: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new_generator = joint.new_generator

    def constant(recipe: Recipe) -> torch.nn.Module:
        generator = new_generator(recipe)
        generator.register_forward_hook(lambda _, __, drawn: 0 * drawn + 0.3)
        return generator

    monkeypatch.setattr(joint, "new_generator", constant)
    run = train_joint(recipe(safety={"collapse_steps": 3}), crops, tmp_path / "run", progress=False)
    told = [text for _, text in warnings(run) if "same picture" in text]
    assert len(told) == 1
    assert [step for step, text in warnings(run) if text in told] == [3]
    assert capsys.readouterr().err.count("same picture") == 1


def test_a_run_in_which_nothing_is_wrong_warns_of_nothing(
    crops: CropTable, recipe: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_joint(recipe(safety={"collapse_steps": 2}), crops, tmp_path / "run", progress=False)
    assert warnings(run) == []
    assert capsys.readouterr().err == ""


# --- crops that cannot be read -----------------------------------------------------------------------------


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> CropTable:
    """A set of the test's own, to be damaged once it is listed."""
    shutil.copytree(world, tmp_path / "world")
    return load_crops(tmp_path / "world")


def drawn_paths(crops: CropTable, step: int) -> list[Path]:
    by_name = {crop.name: Path(crop.path) for crop in crops.train}
    return [by_name[name] for name in crop_names(crops, step)]


def damage_three(crops: CropTable) -> list[Path]:
    """Cut one picture short, remove one and write text into one, of the crops of step 2."""
    cut, gone, text = paths = drawn_paths(crops, 2)[:3]
    cut.write_bytes(cut.read_bytes()[:200])
    gone.unlink()
    text.write_text("This is no picture.")
    return paths


def test_crops_that_cannot_be_read_are_named_once_and_replaced(
    own_world: CropTable, recipe: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = damage_three(own_world)
    runs = {}
    for workers in (0, 2):
        changes = {"safety": {"unreadable_share": 0.2}, "runtime": {"workers": workers}}
        runs[workers] = train_joint(recipe(**changes), own_world, tmp_path / f"run-{workers}", progress=False)
        said = capsys.readouterr().err
        told = [text for _, text in warnings(runs[workers])]
        for path in damaged:
            assert sum(path.name in line for line in said.splitlines()) == 1
            assert sum(path.name in text for text in told) == 1
        assert len(told) == 3
        assert logged_steps(runs[workers])[-1]["unreadable"] == 3
    assert warnings(runs[0]) == warnings(runs[2])
    assert_ends_alike(runs[2], runs[0])


def test_too_many_crops_that_cannot_be_read_end_the_run_until_they_are_repaired(
    own_world: CropTable, recipe: Build, tmp_path: Path
) -> None:
    run, path = tmp_path / "run", drawn_paths(own_world, 3)[0]
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 32 training crops cannot be read, for example .*unreadable_share"):
        train_joint(recipe(), own_world, run, progress=False)
    stopped = latest_checkpoint(run).step
    assert 1 <= stopped <= 3
    path.write_bytes(content)
    train_joint(recipe(), own_world, run, resume=True, progress=False)
    assert [record["step"] for record in logged_steps(run)][-1] == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_an_identity_without_any_readable_crop_ends_the_run_in_one_sentence(
    workers: int, own_world: CropTable, recipe: Build, tmp_path: Path
) -> None:
    lost = next(crop for crop in own_world.train if crop.name == crop_names(own_world, 3)[0])
    for crop in own_world.train:
        if crop.identity == lost.identity:
            Path(crop.path).write_bytes(b"nothing")
    changes = {"safety": {"unreadable_share": 1.0}, "runtime": {"workers": workers}}
    with pytest.raises(InputError, match=rf"^identity {lost.identity}: none of its crops can be read; ") as raised:
        train_joint(recipe(**changes), own_world, tmp_path / "run", progress=False)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_the_bad_step_helpers_change_what_they_say(
    crops: CropTable, recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a spoilt step the runs of these tests are the plain run."""
    plain = train_joint(recipe(), crops, tmp_path / "plain", progress=False)
    spoil(monkeypatch, "reconstruction_loss", [7])
    state_before(monkeypatch, 7)
    patched = train_joint(recipe(), crops, tmp_path / "patched", progress=False)
    assert differences(latest_checkpoint(plain).folder, latest_checkpoint(patched).folder) == []


def test_a_run_that_is_starved_of_processors_says_so_once_and_in_its_log(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(0, 3600)
    starved = partial(ProcessorWatch, wall=lambda: next(hours), processor=lambda: 0.0)
    monkeypatch.setattr("posereid.training.loop.ProcessorWatch", starved)
    run = train_joint(tiny_recipe(), crops, tmp_path / "run", progress=False)
    warnings = [record["warning"] for record in records(run) if "warning" in record]
    assert len(warnings) == 1
    assert "training got 0% of the processor time" in warnings[0]
