"""Checkpoints on full and failing disks, and in processes that are killed."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from posereid.config import Recipe
from posereid.errors import InputError
from posereid.training import checkpoint as checkpoint_module
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint, load_weights, save_checkpoint

# The same in this process and in those that are killed: a layer whose every number is its step.
SAVING = """
import json, os, random, resource, shutil, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from posereid.config import Recipe
from posereid.errors import InputError
from posereid.training.checkpoint import (
    checkpoint_folders, latest_checkpoint, load_weights, resume_state, save_checkpoint)

torch.set_num_threads(1)
recipe = Recipe()

def save(run, step, width=64, keep=2):
    layer = nn.Linear(width, width)
    for weight in layer.parameters():
        nn.init.constant_(weight, step)
    return save_checkpoint(
        run, step=step, stage="reid", recipe=recipe, identities=(1, 2), training_set="abc", parts={"layer": layer},
        resume_state={"layer": {"moment": torch.full((width, width), float(step))}}, keep=keep)

def found(run):
    "The step of the newest checkpoint, its numbers checked; 0 when there is none."
    if not checkpoint_folders(run):
        return 0
    checkpoint = latest_checkpoint(run)
    layer = nn.Linear(64, 64)
    load_weights(layer, checkpoint.folder / "layer.safetensors")
    assert all((weight == checkpoint.step).all() for weight in layer.parameters())
    assert (resume_state(checkpoint)["layer"]["moment"] == checkpoint.step).all()
    return checkpoint.step
"""


def save(run: Path, step: int, width: int = 64) -> Path:
    layer = nn.Linear(width, width)
    nn.init.constant_(layer.weight, step)
    return save_checkpoint(
        run,
        step=step,
        stage="reid",
        recipe=Recipe(),
        identities=(1, 2),
        training_set="abc",
        parts={"layer": layer},
        resume_state={"layer": {"moment": torch.full((width, width), float(step))}},
        keep=2,
    )


def run_python(code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*before, sys.executable, "-c", SAVING + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def assert_step_4_is_all_there_is(run: Path) -> None:
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    layer = nn.Linear(64, 64)
    load_weights(layer, latest_checkpoint(run).folder / "layer.safetensors")
    assert (layer.weight == 4).all()


# --- full and failing disks --------------------------------------------------------------------------------


def failing(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "name", "error", "cause"),
    [
        (checkpoint_module, "save_file", SafetensorError("Error while serializing: I/O error: No space"), "No space"),
        (checkpoint_module, "save_file", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (torch, "save", OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded"),
        (
            torch,
            "save",
            RuntimeError(
                "[enforce fail at x.cc:8] . PytorchStreamWriter failed writing file data/0: file write failed"
            ),
            r"resume\.pt was cut short",
        ),
        (checkpoint_module, "write_about", OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (os, "fsync", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (Path, "mkdir", OSError(errno.ENOSPC, "No space left on device"), "No space left"),
    ],
    ids=["safetensors", "io", "quota", "zip writer", "description", "sync", "folder"],
)
@pytest.mark.parametrize("step", [4, 8])
def test_a_disk_that_fails_is_reported_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place, name: str, error: Exception, cause: str, step: int
) -> None:
    save(tmp_path, 4)
    monkeypatch.setattr(place, name, failing(error))
    with pytest.raises(
        InputError,
        match=rf"step-0000000{step} cannot be written \(.*{cause}.*\): it takes 0\.1 MB and [\d.]+ MB are free; "
        r"make room, or see to the disk, then go on with --resume\.$",
    ):
        save(tmp_path, step)
    monkeypatch.undo()
    assert_step_4_is_all_there_is(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("device-side assert"), SystemExit(1)])
def test_what_is_no_failure_of_the_disk_is_raised_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save(tmp_path, 4)
    monkeypatch.setattr(torch, "save", failing(error))
    with pytest.raises(type(error)) as raised:
        save(tmp_path, 8)
    assert raised.value is error
    monkeypatch.undo()
    assert_step_4_is_all_there_is(tmp_path)


def test_a_disk_without_room_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 4)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 30_000, 30_000))
    monkeypatch.setattr(Path, "mkdir", failing(AssertionError("something was written")))
    with pytest.raises(InputError, match=r"\(the disk is full\): it takes 0\.1 MB and 0\.0 MB are free; make room"):
        save(tmp_path, 8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    monkeypatch.setattr(Path, "mkdir", failing(OSError(errno.EIO, "reached")))
    with pytest.raises(InputError, match="reached"):
        save(tmp_path, 8)
    monkeypatch.undo()
    assert_step_4_is_all_there_is(tmp_path)


def test_the_room_asked_for_is_no_less_than_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(checkpoint_module, "_require_space", lambda _, needed: asked.append(needed))
    for step, width in enumerate((1, 64, 500), 1):
        written = sum(path.stat().st_size for path in save(tmp_path, step, width).iterdir())
        assert written <= asked[-1] <= written + 2**17


def test_a_full_file_system_is_reported_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    mount = ("unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size=2m none "{tmp_path}" && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this system lets users mount nothing, not even for themselves")
    done = run_python(
        """
from posereid.training import checkpoint
run = Path(sys.argv[1])
save(run, 4)
for early in (True, False):
    if not early:
        checkpoint._require_space = lambda *_: None
    for width in (520, 760):  # the weights still fit at first, then not even they
        try:
            save(run, 8, width)
        except InputError as error:
            print(error)
        assert found(run) == 4
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
save(run, 8)
assert found(run) == 8
""",
        tmp_path,
        before=mount,
    )
    assert done.returncode == 0, done.stderr
    causes = ["the disk is full"] * 2 + ["No space left on device"] * 2
    for line, cause in zip(done.stdout.splitlines(), causes, strict=True):
        assert f"step-00000008 cannot be written ({cause}" in line
        assert re.search(r"it takes [24]\.\d MB and 2\.\d MB are free; make room", line)
    assert list(tmp_path.iterdir()) == []


# --- killed processes --------------------------------------------------------------------------------------

FORKING = """
root = Path(sys.argv[1])

# A process whose files may not grow beyond 10 kB.
run = root / "limited"
save(run, 4)
limited = os.fork()
if not limited:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        save(run, 8)
    except InputError as error:
        print(error, file=sys.stderr)
    os._exit(0)
os.waitpid(limited, 0)

# Killed before its first, second, third ... opening, renaming or removal: of the next step, or the same one anew.
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
start = root / "start"
save(start, 2)
save(start, 4)
at_changes = []
for second in (4, 6):
    for point in range(1000):
        run = root / f"{second}-{point}"
        shutil.copytree(start, run)
        child = os.fork()
        if not child:
            left = point
            def strike(event, arguments):
                global left
                if event in CHANGES and str(run) in str(arguments[0]):
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
            sys.addaudithook(strike)
            save(run, second)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        step = found(run)
        save(run, second)  # clears up what the killed process left
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        at_changes.append((second, bool(status), step, names))
        if not status:
            break

# Killed after a chance time, again and again.
run, chance = root / "chance", random.Random(0)
at_moments = []
for _ in range(12):
    child = os.fork()
    if not child:
        step = found(run)
        while True:
            step += 1
            save(run, step)
            save(run, step)
    time.sleep(chance.uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    at_moments.append((os.waitpid(child, 0)[1], found(run)))
print(json.dumps([at_changes, at_moments]))
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """What became of many processes that save checkpoints; forks of one, as torch takes seconds to import."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    root = tmp_path_factory.mktemp("forked")
    done = run_python(FORKING, root)
    assert done.returncode == 0, done.stderr
    return root, done


def test_files_beyond_the_allowed_size_are_reported(forked: tuple[Path, subprocess.CompletedProcess]) -> None:
    root, done = forked
    assert f"{root}/limited/checkpoints/step-00000008 cannot be written (File too large" in done.stderr
    assert done.stderr.count("\n") == 1  # and nothing else was complained of
    assert_step_4_is_all_there_is(root / "limited")


def test_a_process_killed_at_any_change_it_makes_leaves_whole_checkpoints(
    forked: tuple[Path, subprocess.CompletedProcess],
) -> None:
    outcomes = json.loads(forked[1].stdout)[0]
    for second, steps in ((4, [2, 4]), (6, [4, 6])):
        assert sum(killed for step, killed, *_ in outcomes if step == second) > 20
        left = {tuple(names) for step, *_, names in outcomes if step == second}
        assert left == {tuple(f"step-{step:08d}" for step in steps)}
    assert {tuple(outcome[:3]) for outcome in outcomes} == {
        (4, True, 4),
        (4, False, 4),
        (6, True, 4),
        (6, True, 6),
        (6, False, 6),
    }


def test_a_process_killed_at_any_moment_leaves_whole_checkpoints(
    forked: tuple[Path, subprocess.CompletedProcess],
) -> None:
    moments = json.loads(forked[1].stdout)[1]
    assert [status for status, _ in moments] == [signal.SIGKILL] * 12
    steps = [step for _, step in moments]
    assert steps == sorted(steps)
    assert steps[-1] > 0


def test_what_a_killed_process_set_aside_is_found_and_put_back(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    aside = folder.with_name(".step-00000004.replaced")
    folder.rename(aside)
    assert checkpoint_folders(tmp_path) == [aside]
    assert latest_checkpoint(tmp_path).folder == aside
    save(tmp_path, 8)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000004", "step-00000008"]


def test_left_overs_of_killed_processes_go_with_the_next_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    for name in (".step-00000005.partial-1", f".step-00000008.partial-{os.getpid()}", ".step-00000004.replaced"):
        shutil.copytree(folder, folder.with_name(name))
        for path in (*folder.with_name(name).iterdir(), folder.with_name(name)):
            os.utime(path, (1e9, 1e9))
    (folder.parent / "notes").mkdir()
    assert checkpoint_folders(tmp_path) == [folder]
    save(tmp_path, 8)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["notes", "step-00000004", "step-00000008"]
