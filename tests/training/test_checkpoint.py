import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from posereid.config import Recipe
from posereid.errors import InputError
from posereid.training.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    latest_checkpoint,
    load_embedder,
    load_generator,
    load_weights,
    new_embedder,
    new_generator,
    resume_state,
    save_checkpoint,
)


def save(run: Path, recipe: Recipe, step: int = 3, keep: int = 5, **changes) -> Path:
    torch.manual_seed(step)
    settings = {
        "stage": "joint",
        "identities": (2, 5, 9),
        "training_set": "abc",
        "parts": {
            "generator": new_generator(recipe),
            "embedder": new_embedder(recipe, 3, pretrained=False),
        },
        "resume_state": {"generator": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]}},
    }
    return save_checkpoint(run, step=step, recipe=recipe, keep=keep, **(settings | changes))


@pytest.fixture
def recipe(tiny_recipe) -> Recipe:
    return tiny_recipe()


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


# --- there and back ----------------------------------------------------------------------------------------


def test_what_was_saved_is_what_is_found(tmp_path: Path, recipe: Recipe) -> None:
    folder = save(tmp_path, recipe, step=12)
    found = latest_checkpoint(tmp_path)
    assert found == Checkpoint(folder, 12, "joint", recipe, (2, 5, 9), "abc")
    assert resume_state(found)["generator"]["param_groups"] == [{"lr": 0.1}]
    assert resume_state(found)["generator"]["state"][0]["step"] == 4


def test_weights_and_statistics_come_back_bit_for_bit_ready_to_use(tmp_path: Path, recipe: Recipe) -> None:
    torch.manual_seed(1)
    generator, embedder = new_generator(recipe), new_embedder(recipe, 3)
    images, poses = torch.randn(4, 3, 64, 32), torch.rand(4, 18, 64, 32)
    generator(images, poses, poses)  # moves the running statistics off their start
    embedder(images)
    save(tmp_path, recipe, parts={"generator": generator, "embedder": embedder})
    loaded_generator, loaded_embedder = load_generator(tmp_path), load_embedder(tmp_path)
    assert_same_weights(loaded_generator, generator)
    assert_same_weights(loaded_embedder, embedder)
    assert not loaded_generator.training
    assert not loaded_embedder.training
    assert loaded_generator.crop_size == loaded_embedder.crop_size == (64, 32)


def test_channels_last_weights_are_saved_like_any_other(tmp_path: Path, recipe: Recipe) -> None:
    torch.manual_seed(1)
    generator = new_generator(recipe).to(memory_format=torch.channels_last)
    save(tmp_path, recipe, parts={"generator": generator})
    assert_same_weights(load_generator(tmp_path), generator)


def test_loading_an_embedder_asks_for_no_pretrained_weights(
    tmp_path: Path, tiny_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(embedder={"pretrained": True})
    save(tmp_path, recipe, parts={"embedder": new_embedder(recipe, 3, pretrained=False)})
    create, asked = timm.create_model, []

    def watched(name: str, **settings):
        asked.append(settings["pretrained"])
        return create(name, **(settings | {"pretrained": False}))

    monkeypatch.setattr(timm, "create_model", watched)
    load_embedder(tmp_path)
    assert asked == [False]


def test_the_digest_follows_the_weights(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path / "a", recipe, step=1)
    save(tmp_path / "b", recipe, step=1)
    save(tmp_path / "c", recipe, step=2)
    first, same, other = (latest_checkpoint(tmp_path / run).digest("generator") for run in "abc")
    assert first == same != other
    assert len(first) == 64


# --- which checkpoints there are ---------------------------------------------------------------------------


def test_only_the_newest_checkpoints_stay(tmp_path: Path, recipe: Recipe) -> None:
    for step in (9, 10, 100, 1000):
        save(tmp_path, recipe, step=step, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000100", "step-00001000"]
    assert latest_checkpoint(tmp_path).step == 1000
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_checkpoint_of_the_same_step_is_written_anew(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path, recipe, step=4, identities=(1, 2, 3))
    save(tmp_path, recipe, step=4, identities=(4, 5, 6))
    assert latest_checkpoint(tmp_path).identities == (4, 5, 6)


def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path, recipe, step=4)

    class Fails(nn.Module):
        def state_dict(self, *_, **__):
            raise KeyError("no such module")

    with pytest.raises(KeyError, match="no such module"):
        save(tmp_path, recipe, step=8, parts={"generator": new_generator(recipe), "embedder": Fails()})
    assert latest_checkpoint(tmp_path).step == 4
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_checkpoints_own_folder_is_taken_as_it_is(tmp_path: Path, recipe: Recipe) -> None:
    older = save(tmp_path, recipe, step=4)
    save(tmp_path, recipe, step=8)
    assert latest_checkpoint(older).step == 4


# --- damage ------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_or_has_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        latest_checkpoint(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no checkpoint"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about[:50],
        lambda about: "[]",
        lambda about: "null",
        lambda about: json.dumps({**json.loads(about), "identities": None}),
        lambda about: json.dumps({**json.loads(about), "step": None}),
        lambda about: json.dumps({k: v for k, v in json.loads(about).items() if k != "recipe"}),
        lambda about: json.dumps({**json.loads(about), "recipe": []}),
        lambda about: json.dumps({**json.loads(about), "recipe": {"joint": {"epochs": -1}}}),
    ],
    ids=["cut off", "list", "null", "identities", "step", "no recipe", "recipe", "value in recipe"],
)
def test_a_damaged_description_is_refused_by_name(tmp_path: Path, recipe: Recipe, change) -> None:
    path = save(tmp_path, recipe) / "checkpoint.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r"checkpoint\.json"):
        latest_checkpoint(tmp_path)


def test_weights_of_another_width_name_the_first_tensor_that_differs(
    tmp_path: Path, recipe: Recipe, tiny_recipe
) -> None:
    folder = save(tmp_path, recipe)
    wider = new_generator(tiny_recipe(generator={"base_width": 8}))
    with pytest.raises(
        InputError, match=r"appearance_encoder\.layers\.0\.0\.weight' is \(4, 3, 3, 3\) there and \(8, 3, 3, 3\) in"
    ):
        load_weights(wider, folder / "generator.safetensors")


@pytest.mark.parametrize(("blocks", "wording"), [(3, "absent there and"), (2, "there and absent in")])
def test_weights_of_more_or_fewer_blocks_name_what_is_absent(
    tmp_path: Path, tiny_recipe, blocks: int, wording: str
) -> None:
    folder = save(tmp_path, tiny_recipe(generator={"blocks": 5 - blocks, "max_width": 4, "base_width": 4}))
    with pytest.raises(InputError, match=rf"is .*{wording}"):
        load_weights(
            new_generator(tiny_recipe(generator={"blocks": blocks, "max_width": 4, "base_width": 4})),
            folder / "generator.safetensors",
        )


def test_a_number_that_one_side_lacks_is_called_absent_there_only(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(2)
    state = {name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"num_batches_tracked' is absent there and \(\) in"):
        load_weights(norm, tmp_path / "part.safetensors")


def test_refused_weights_leave_the_module_as_it_was(tmp_path: Path, recipe: Recipe, tiny_recipe) -> None:
    folder = save(tmp_path, recipe)
    wider = new_generator(tiny_recipe(generator={"base_width": 8}))
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(InputError):
        load_weights(wider, folder / "generator.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"not weights",
        lambda data: (2**63).to_bytes(8, "little") + data[8:],
        lambda data: (99_999_999).to_bytes(8, "little") + data[8:],
        lambda data: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=["cut off", "empty", "text", "absurd header", "header beyond the end", "deep header"],
)
def test_damaged_weights_are_refused_by_name(tmp_path: Path, recipe: Recipe, damage) -> None:
    path = save(tmp_path, recipe) / "generator.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"generator\.safetensors is not a safetensors file"):
        load_weights(new_generator(recipe), path)
    with pytest.raises(InputError, match=r"step-00000003 \(generator\.safetensors (has|is not what)"):
        load_generator(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_a_type_that_no_network_has_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": torch.zeros(1, 2).to(dtype), "bias": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=rf"part\.safetensors: weight is of type {dtype}, torch\.float32 was expected"):
        load_weights(nn.Linear(2, 1), tmp_path / "part.safetensors")


def test_weights_of_another_precision_are_loaded(tmp_path: Path) -> None:
    save_file(nn.Linear(2, 1).bfloat16().state_dict(), tmp_path / "part.safetensors")
    layer = nn.Linear(2, 1)
    load_weights(layer, tmp_path / "part.safetensors")
    assert layer.weight.dtype == torch.float32


def test_a_part_that_the_run_did_not_train_is_said_so(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path, recipe, parts={"embedder": new_embedder(recipe, 3)})
    with pytest.raises(InputError, match="has not trained a generator"):
        load_generator(tmp_path)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    "write",
    [
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
        lambda content, path: torch.save({"generator": content}, path),
    ],
    ids=["plain pickle", "torch file"],
)
def test_a_resume_state_that_would_run_code_is_refused_and_not_run(tmp_path: Path, recipe: Recipe, write) -> None:
    save(tmp_path, recipe)
    checkpoint = latest_checkpoint(tmp_path)
    trace = tmp_path / "trace"
    write(Malicious(trace), checkpoint.folder / "resume.pt")
    with pytest.raises(InputError, match=r"resume\.pt cannot be read"):
        resume_state(checkpoint)
    assert not trace.exists()


def test_a_missing_resume_state_is_named(tmp_path: Path, recipe: Recipe) -> None:
    folder = save(tmp_path, recipe)
    checkpoint = latest_checkpoint(tmp_path)
    (folder / "resume.pt").unlink()
    with pytest.raises(InputError, match=r"resume\.pt cannot be read"):
        resume_state(checkpoint)
    with pytest.raises(InputError, match=r"only damaged checkpoints, step-00000003 \(resume\.pt is missing\)"):
        latest_checkpoint(tmp_path)
