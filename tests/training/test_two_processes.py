"""Runs of two processes against runs of one: the same batches give the same losses.

Two real processes run :func:`work`, once for the module, joined as under torchrun.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from posereid.config import Recipe, read_recipe, write_recipe
from posereid.data import batches
from posereid.data.crops import Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError
from posereid.training import networks
from posereid.training.devices import launch_fabric
from posereid.training.joint import train_joint
from posereid.training.networks import update, weight_difference
from posereid.training.pose import train_pose_estimator
from posereid.training.reid import train_reid
from posereid.training.watch import BadStepError, StopRequest, UnreadableCrops

Build = Callable[..., Recipe]
Logs = dict[str, list[dict]]

RATE = {"learning_rate": 0.01}
CHANGES: dict[str, dict[str, Any]] = {
    "joint with Adam": {"joint": {"pairs_per_epoch": 16}},
    # The optimiser's recipes all give the one rate of plain gradient descent.
    "joint": {"joint": {"pairs_per_epoch": 16} | dict.fromkeys(("generator", "discriminators", "embedder"), RATE)},
    "reid": {"reid": {"quartets_per_epoch": 8, "optimiser": RATE}},
    "pose": {
        "pose_estimator": {
            "backbone": "test_resnet",
            "width": 8,
            "map_stride": 2,
            "epochs": 2,
            "batch_size": 8,
            "log_every": 1,
            "checkpoint_every": 6,
            "optimiser": RATE,
        }
    },
}
TRAINERS: dict[str, Callable[..., Path]] = {"joint": train_joint, "reid": train_reid, "pose": train_pose_estimator}


def descent(module: nn.Module, *_: Any) -> torch.optim.Optimizer:
    """Adam divides by the gradient's size, and what is only rounding in a gradient near zero becomes a step."""
    return torch.optim.SGD(module.parameters(), lr=0.01)


@contextmanager
def double_precision() -> Iterator[None]:
    """Computes in float64 even where float32 is asked for.

    A relative change of 1e-7 in the weights grows about thirtyfold with each step of so small a GAN on so small
    batches: in float32 nothing could be compared after four steps.
    """
    to_float, draw = Tensor.float, batches.heat_maps
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[method-assign, assignment]
    batches.heat_maps = lambda *joints: draw(*joints).double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = to_float  # type: ignore[method-assign]
        batches.heat_maps = draw


def train(name: str, recipe: Recipe, crops: CropTable, out: Path) -> None:
    """One of the runs of ``CHANGES``: those without Adam by gradient descent in double precision."""
    trainer = TRAINERS[name.split()[0]]
    if "Adam" in name:
        trainer(recipe, crops, out, progress=False)
        return
    adam = networks.make_optimiser
    networks.make_optimiser = descent  # type: ignore[assignment]
    runtime = recipe.runtime.model_copy(update={"precision": "64-true"})
    try:
        with double_precision():
            trainer(recipe.model_copy(update={"runtime": runtime}), crops, out, progress=False)
    finally:
        networks.make_optimiser = adam


def work(rank: int, folder: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    crops = load_crops(folder / "world")
    for name in CHANGES:
        train(name, read_recipe(folder / f"{name}.yaml"), crops, folder / name)
    recipe = read_recipe(folder / "joint.yaml")
    found = {"odd batch": odd_batch(recipe, crops, folder / "odd"), **agreements(rank, recipe)}
    (folder / f"rank {rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def odd_batch(recipe: Recipe, crops: CropTable, out: Path) -> str:
    odd = recipe.model_copy(update={"joint": recipe.joint.model_copy(update={"batch_size": 5})})
    try:
        train_joint(odd, crops, out, progress=False)
    except InputError as error:
        return str(error)
    return "trained"


def agreements(rank: int, recipe: Recipe) -> dict[str, Any]:
    """What each process learns of something that has happened to one of them alone."""
    fabric = launch_fabric(recipe.runtime)
    stop = StopRequest()
    stop.signal_number = 15 * rank
    unreadable = UnreadableCrops([Crop(Path("x"), "x", 1, 1, "train")] * 4, 0.4)
    unreadable.note({2 * rank: f"broken in {rank}"})
    alone = unreadable.too_many()
    unreadable.exchange()

    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    wrapped, optimiser = fabric.setup(layer, descent(layer))
    rows = torch.full((3, 2), 1.0 + rank)
    terms = {"identity": wrapped(rows).square().mean()}
    means = update(fabric, terms["identity"], terms, {"embedder": optimiser}, 1e4)
    before = layer.weight.detach().clone()
    try:
        bad = {"identity": wrapped(rows).square().mean(), "quartet": torch.tensor(float("nan") if rank else 1.0)}
        update(fabric, bad["identity"], bad, {"embedder": optimiser}, 1e4)
        complaint = None
    except BadStepError as error:
        complaint = error.what
    apart = nn.BatchNorm1d(2)
    same = weight_difference({"one": layer, "two": apart})
    apart.running_var[1] += 0.25 * rank
    return {
        "signal": stop.agreed(fabric),
        "unreadable": [alone, sorted(unreadable.found), unreadable.too_many()],
        "own loss": terms["identity"].item(),
        "mean loss": means["identity"],
        "complaint": complaint,
        "unchanged": torch.equal(layer.weight, before),
        "differences": [same, weight_difference({"one": layer, "two": apart})],
    }


@pytest.fixture(scope="module")
def folder(world: Path, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained and left what they found."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "world").symlink_to(world)
    for name, changes in CHANGES.items():
        recipe = tiny_recipe(runtime={"device": "cpu", "devices": 2}, **changes)
        (folder / f"{name}.yaml").write_text(write_recipe(recipe))
    both = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said[0][-2500:] + said[1][-2500:]
    return folder


def losses(run: Path) -> list[dict[str, float]]:
    """The terms of each step."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    terms = [{name: value for name, value in record.items() if name.startswith("loss_")} for record in records]
    return [each for each in terms if each]


@pytest.fixture
def compared(
    request: pytest.FixtureRequest, folder: Path, crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The losses of one run by one process and by two."""
    name: str = request.param
    train(name, tiny_recipe(**CHANGES[name]), crops, tmp_path / "run")
    return losses(tmp_path / "run"), losses(folder / name)


@pytest.mark.parametrize("compared", ["joint", "reid", "pose"], indirect=True)
def test_gradient_descent_in_two_processes_follows_that_in_one(compared: tuple) -> None:
    one, two = compared
    assert len(one) == len(two) > 5
    for alone, together in zip(one, two, strict=True):
        # The log rounds to six decimals.
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("compared", ["joint with Adam"], indirect=True)
def test_adam_in_two_processes_begins_as_in_one(compared: tuple) -> None:
    one, two = compared
    terms = {"adversarial", "reconstruction", "semantic", "quartet", "identity"}
    assert one[0].keys() == {f"loss_{name}" for name in terms | {"appearance_discriminator", "pose_discriminator"}}
    # The log rounds to six decimals, so that neighbours may differ by one in the last.
    assert two[0] == pytest.approx(one[0], rel=1e-5, abs=1.5e-6)
    for alone, together in zip(one[:3], two[:3], strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", CHANGES)
def test_both_processes_end_with_the_same_weights_and_statistics(folder: Path, name: str) -> None:
    records = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    assert records[0]["processes"] == 2
    assert records[-1]["weight_difference"] == 0


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict]:
    """What each process found."""
    return [json.loads((folder / f"rank {rank}.json").read_text()) for rank in range(2)]


def test_a_batch_that_does_not_divide_among_processes_is_a_mistake_to_each_of_them(found: list[dict]) -> None:
    for each in found:
        assert each["odd batch"] == (
            "a batch of 5 does not divide among 2 processes; choose a batch size that is a multiple of 2."
        )


def test_a_signal_to_one_process_stops_both(found: list[dict]) -> None:
    assert [each["signal"] for each in found] == [15, 15]


def test_unreadable_crops_are_counted_over_both_processes(found: list[dict]) -> None:
    assert [each["unreadable"] for each in found] == [[False, [0, 2], True]] * 2


def test_both_processes_log_the_mean_of_their_losses(found: list[dict]) -> None:
    own = [each["own loss"] for each in found]
    assert own[0] != own[1]
    assert [each["mean loss"] for each in found] == pytest.approx([sum(own) / 2] * 2)


def test_a_bad_step_of_one_process_is_one_of_both_and_changes_nothing(found: list[dict]) -> None:
    assert [(each["complaint"], each["unchanged"]) for each in found] == [("quartet loss", True)] * 2


def test_weights_or_statistics_that_differ_are_noticed_by_both(found: list[dict]) -> None:
    assert [each["differences"] for each in found] == [[0, 0.25]] * 2


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
