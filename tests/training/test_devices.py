import pytest
import torch

from posereid.config import RuntimeRecipe
from posereid.errors import InputError
from posereid.training.devices import launch_fabric, pick_device, pick_precision


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


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_processes_that_a_launcher_started_must_be_the_recipes(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(InputError, match=f"{variable} says that 4 processes were started, and the recipe wants 1"):
        launch_fabric(RuntimeRecipe(device="cpu"))


def test_more_processes_than_a_cpu_can_use_are_refused() -> None:
    with pytest.raises(InputError, match="4000 processes were asked for on the CPU"):
        launch_fabric(RuntimeRecipe(device="cpu", devices=4000))


def test_the_precision_follows_the_device_when_it_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_precision(RuntimeRecipe(device="cpu", precision="bf16-mixed")) == "bf16-mixed"
    native = {"avx512_bf16": True}, {"amx_bf16": True}
    for abilities, expected in (({}, "32-true"), *((each, "bf16-mixed") for each in native)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda abilities=abilities: abilities)
        assert pick_precision(RuntimeRecipe(device="cpu", precision="auto")) == expected
