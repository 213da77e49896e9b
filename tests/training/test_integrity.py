"""What becomes of a checkpoint that is not what was written."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from posereid.config import Recipe
from posereid.errors import InputError
from posereid.training.checkpoint import Checkpoint, checkpoint_folders, latest_checkpoint, save_checkpoint
from posereid.training.integrity import file_digest

FILES = ("checkpoint.json", "layer.safetensors", "resume.pt")


@pytest.fixture(scope="module")
def recipe(tiny_recipe) -> Recipe:
    return tiny_recipe()


def save(run: Path, recipe: Recipe, step: int, keep: int = 9) -> Path:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, step)
    return save_checkpoint(
        run,
        step=step,
        stage="reid",
        recipe=recipe,
        identities=(1, 4),
        training_set="abc",
        parts={"layer": layer},
        resume_state={"layer": {"moment": torch.full((2,), float(step))}},
        keep=keep,
    )


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def written_anew(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change ``checkpoint.json`` as someone who knows how its digest is made would."""
    path = folder / "checkpoint.json"
    about = json.loads(path.read_text())
    del about["sha256"]
    change(about)
    about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(about))


def names(run: Path) -> list[str]:
    return [folder.name for folder in checkpoint_folders(run)]


# --- the list of files -------------------------------------------------------------------------------------


def test_every_file_of_a_checkpoint_is_listed_with_its_size_and_digest(tmp_path: Path, recipe: Recipe) -> None:
    folder = save(tmp_path, recipe, 4)
    about = json.loads((folder / "checkpoint.json").read_text())
    assert about["format"] == 2
    assert about["files"] == {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "checkpoint.json"
    }
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_a_file_that_changed_is_digested_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    assert file_digest(path) == hashlib.sha256(b"old").hexdigest()
    path.write_bytes(b"newer")
    assert file_digest(path) == hashlib.sha256(b"newer").hexdigest()


def test_a_checkpoint_of_format_1_is_read_as_it_is(tmp_path: Path, recipe: Recipe) -> None:
    folder = save(tmp_path, recipe, 4)
    about = json.loads((folder / "checkpoint.json").read_text())
    del about["files"], about["sha256"]
    (folder / "checkpoint.json").write_text(json.dumps(about | {"format": 1}))
    flip(folder / "layer.safetensors")
    assert latest_checkpoint(tmp_path) == Checkpoint(folder, 4, "reid", recipe, (1, 4), "abc")


# --- falling back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "wording"),
    [
        (Path.unlink, "is missing"),
        (cut, "(has .* bytes instead of|cannot be used)"),
        (flip, "(is not what was written|cannot be used)"),
        (lambda path: path.write_bytes(b""), "(has 0 bytes instead of|cannot be used)"),
    ],
    ids=["missing", "cut off", "flipped", "empty"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_is_named(
    tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture, file: str, damage, wording: str
) -> None:
    save(tmp_path, recipe, 4)
    damage(save(tmp_path, recipe, 8) / file)
    assert latest_checkpoint(tmp_path).step == 4
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith(f"posereid: {tmp_path}/checkpoints has damaged checkpoints, step-00000008 ({file} ")
    assert message.endswith("; step-00000004 is used instead.\n")
    assert re.search(wording, message)


def test_the_same_damage_is_told_once(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path, recipe, 4)
    flip(save(tmp_path, recipe, 8) / "resume.pt")
    assert [latest_checkpoint(tmp_path).step for _ in range(3)] == [4, 4, 4]
    assert capsys.readouterr().err.count("is used instead") == 1


def test_a_whole_run_is_read_without_a_word(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path, recipe, 4)
    assert latest_checkpoint(tmp_path).step == 4
    assert capsys.readouterr() == ("", "")


def test_when_none_is_whole_all_are_named(tmp_path: Path, recipe: Recipe) -> None:
    (save(tmp_path, recipe, 4) / "resume.pt").unlink()
    flip(save(tmp_path, recipe, 8) / "layer.safetensors")
    with pytest.raises(
        InputError,
        match=r"only damaged checkpoints, step-00000008 \(layer\.safetensors is not what was written\), "
        r"step-00000004 \(resume\.pt is missing\); bring one back",
    ):
        latest_checkpoint(tmp_path)


def test_a_checkpoints_own_folder_never_gives_way(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path, recipe, 4)
    folder = save(tmp_path, recipe, 8)
    flip(folder / "layer.safetensors")
    with pytest.raises(InputError, match=r"step-00000008 cannot be used: layer\.safetensors is not what was written"):
        latest_checkpoint(folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_changes_a_checkpoint_is_refused_or_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, data: st.DataObject
) -> None:
    folder = save(tmp_path_factory.mktemp("run"), recipe, 4)
    expected = latest_checkpoint(folder)
    path = folder / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(content) != path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    try:
        found = latest_checkpoint(folder)
    except InputError:
        assert changed
    else:
        # White space between the fields of the JSON means nothing.
        assert found == expected
        assert not changed or path.name == "checkpoint.json"


# --- which ones stay ---------------------------------------------------------------------------------------


def test_damaged_checkpoints_push_no_whole_one_out(tmp_path: Path, recipe: Recipe) -> None:
    save(tmp_path, recipe, 2)
    save(tmp_path, recipe, 4)
    cut(save(tmp_path, recipe, 6) / "resume.pt")
    save(tmp_path, recipe, 8, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000008"]
    save(tmp_path, recipe, 10, keep=2)
    assert names(tmp_path) == ["step-00000008", "step-00000010"]


def test_a_damaged_checkpoint_of_a_later_step_pushes_no_whole_one_out(tmp_path: Path, recipe: Recipe) -> None:
    cut(save(tmp_path, recipe, 8) / "resume.pt")
    save(tmp_path, recipe, 4, keep=1)
    assert names(tmp_path) == ["step-00000004", "step-00000008"]
    assert latest_checkpoint(tmp_path).step == 4
    save(tmp_path, recipe, 8, keep=1)
    assert names(tmp_path) == ["step-00000008"]
    assert latest_checkpoint(tmp_path).step == 8


# --- hostile descriptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../layer", "/etc/passwd", "a/b", "a\\b", "..", "", "c:x", "a\0", 3, None])
def test_a_part_or_file_that_is_no_plain_name_is_refused(tmp_path: Path, recipe: Recipe, name: Any) -> None:
    folder = save(tmp_path, recipe, 4)
    written_anew(folder, lambda about: about.update(parts=[name]))
    with pytest.raises(InputError, match=r"checkpoint\.json cannot be used: its parts are"):
        latest_checkpoint(folder)
    written_anew(folder, lambda about: about.update(parts=["layer"]))
    assert latest_checkpoint(folder).step == 4
    if isinstance(name, str):
        written_anew(folder, lambda about: about["files"].update({name: {"bytes": 0, "sha256": ""}}))
        with pytest.raises(InputError, match=r"checkpoint\.json cannot be used: it lists a file .*, not a plain name"):
            latest_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "wording"),
    [
        (lambda about: about["files"].pop("resume.pt"), r"its files lack resume\.pt"),
        (lambda about: about["files"].pop("layer.safetensors"), r"its files lack layer\.safetensors"),
        (lambda about: about.update(files=[]), "its files are a JSON list of 0 entries, not a JSON object"),
        (lambda about: about.update(files={"resume.pt": 3, "layer.safetensors": 4}), "cannot be used"),
        (lambda about: about["files"].update({"resume.pt": {"bytes": 10**9, "sha256": 3}}), "instead of 1000000000"),
        (lambda about: about.update(step=-1), "its step is -1"),
        (lambda about: about.update(step=True), "its step is True"),
        (lambda about: about.update(step=1.5), r"its step is 1\.5"),
        (lambda about: about.update(stage=[]), "its stage is a JSON list"),
        (lambda about: about.update(identities=["1"]), "its identities are"),
        (lambda about: about.update(format=3), "its format is 3, this version reads 1 and 2"),
        (lambda about: about.update(format=1), "its format is 1"),
        (lambda about: about.pop("training_set"), "lacks 'training_set'"),
        (lambda about: about.update(recipe=3), "checkpoint.json"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, recipe: Recipe, change, wording: str) -> None:
    folder = save(tmp_path, recipe, 4)
    written_anew(folder, change)
    with pytest.raises(InputError, match=wording):
        latest_checkpoint(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "[]",
        "3",
        "null",
        "\ufeff{}",
        '{"format": ' + "9" * 5000 + "}",
        '{"format": Infinity}',
        '{"format": 2, "sha256": "", "step": NaN}',
        '{"format": 1, "step": 1, "stage": "", "training_set": "", "identities": [], "parts": [], "recipe": '
        + '{"a":' * 900
        + "3"
        + "}" * 901,
    ],
)
def test_a_description_of_another_shape_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "checkpoint.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be used: checkpoint\.json"):
        latest_checkpoint(tmp_path)


def test_a_description_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"cannot be used: checkpoint\.json"):
        latest_checkpoint(tmp_path)
