import pytest
import torch

from posereid.config import RuntimeRecipe
from posereid.errors import InputError
from posereid.training.devices import pick_device


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
