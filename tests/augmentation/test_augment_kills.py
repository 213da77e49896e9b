"""Drawing that is killed, interrupted or starved, and the set that the next call makes of what is left."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posereid.augmentation import drawing, unfinished
from posereid.augmentation.drawing import GeneratedSet, augment
from posereid.config import AugmentationRecipe, Recipe
from posereid.data.crops import CropTable
from posereid.errors import InputError, SharedError, Stopped
from posereid.generator.generator import PoseTransferGenerator
from posereid.training.checkpoint import new_generator
from posereid.training.joint import train_joint
from posereid.training.run_folder import lock_run

Call = Callable[..., GeneratedSet]
RECIPE = AugmentationRecipe(poses_per_crop=2, batch_size=3)
DRAWN = 8
BATCHES = 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked process must not wait for OpenMP's threads, which stay behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def call(crops: CropTable, tiny_recipe: Callable[..., Recipe]) -> Call:
    """Draws four crops in two poses each, in batches of three."""
    torch.manual_seed(0)
    generator = new_generator(tiny_recipe()).eval()
    some = crops.with_crops([crop for crop in crops.train if crop.can_pose][: DRAWN // 2])

    def drawn(out: Path, recipe: AugmentationRecipe = RECIPE, **changes: Any) -> GeneratedSet:
        arguments = {"seed": 3, "checkpoint": "abc", "progress": False} | changes
        return augment(generator, some, out, recipe, **arguments)

    return drawn


@pytest.fixture(scope="module")
def reference(call: Call, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a set that nothing disturbed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = call(tmp_path_factory.mktemp("undisturbed") / "set").folder
    torch.set_num_threads(before)
    return files_in(out)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_finished(out: Path, reference: dict[str, bytes]) -> None:
    assert files_in(out) == reference
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def left(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def crops_left(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each crop that an ended call left."""
    folder = left(out) / "set" / "bounding_box_train"
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.jpg")}


def forked(action: Callable[[], object]) -> int:
    """A child process that does something and ends: with 0, or with 1 where that fails."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        action()
        code = 0
    except SharedError:
        code = 3
    except InputError as error:
        code = 4 if "another of the 2 processes" in str(error) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int, patience: float = 60) -> int:
    """The exit code of a child, negative for a signal; one that hangs fails the test."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pytest.fail("a process hangs")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_file_operation(number: int) -> None:
    """Die before the so-manieth change of the file system."""
    count = 0

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            count += 1
            if count == number:
                kill()

    sys.addaudithook(heard)


# --- killed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_killed_before_any_file_operation_the_next_call_ends_with_the_same_bytes_and_rewrites_nothing(
    every: int, call: Call, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = drawing.draw

    def counted(generator: PoseTransferGenerator, images: torch.Tensor, *poses: Any) -> torch.Tensor:
        drawn.append(len(images))
        return draw(generator, images, *poses)

    monkeypatch.setattr(drawing, "draw", counted)
    kills = 0
    for number in range(1, 1000, every):
        out = tmp_path / str(number) / "set"
        out.parent.mkdir()

        def killed(number: int = number, out: Path = out) -> None:
            kill_at_file_operation(number)
            call(out)

        code = ended(forked(killed))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        before, named = crops_left(out), out.exists()
        drawn.clear()
        if named and not (left(out) / "plan.json").exists():
            # Only an empty folder was still to be removed; a complete set is not drawn again.
            assert list(left(out).iterdir()) == []
            assert files_in(out) == reference
            continue
        made = call(out)
        assert_finished(out, reference)
        after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.jpg")}
        assert {name: after[name] for name in before} == before
        assert made.found == (DRAWN if named else len(before))
        # At most one batch more than what is missing is drawn, and none twice that was finished.
        assert DRAWN - made.found <= sum(drawn) <= min(DRAWN, DRAWN - made.found + 2 * RECIPE.batch_size)
    # Each crop is opened and renamed, and so are the plan and the files beside the crops.
    assert kills > 2 * DRAWN / every


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["write", "draw", "interrupt"]), st.integers(1, BATCHES + 3)), max_size=4))
def test_however_often_it_fails_each_crop_is_written_once_and_the_set_is_the_same(
    call: Call, reference: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, faults: list[tuple[str, int]]
) -> None:
    out = tmp_path_factory.mktemp("failing") / "set"
    written: list[str] = []
    write_crop, draw = unfinished.write_crop, drawing.draw
    for kind, number in [*faults, ("none", 0)]:
        counts = {"write": 0, "draw": 0}

        def writing(path: Path, *rest: Any, kind: str = kind, number: int = number, counts: Any = counts) -> None:
            counts["write"] += 1
            if kind == "write" and counts["write"] == number:
                raise InputError("the disk is full")
            write_crop(path, *rest)
            written.append(path.name)

        def drawing_(*arguments: Any, kind: str = kind, number: int = number, counts: Any = counts) -> torch.Tensor:
            counts["draw"] += 1
            if kind in ("draw", "interrupt") and counts["draw"] == number:
                raise KeyboardInterrupt if kind == "interrupt" else RuntimeError("out of memory")
            return draw(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unfinished, "write_crop", writing)
            patch.setattr(drawing, "draw", drawing_)
            # A fault may lie beyond what is left to do, and then the set is complete.
            with suppress(InputError, Stopped, RuntimeError):
                call(out)
        if out.exists():
            break
    assert_finished(out, reference)
    assert len(written) == len(set(written)) == DRAWN


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros at the end", "another picture's size"])
def test_a_crop_that_a_power_cut_damaged_is_drawn_again(
    damage: str, call: Call, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drawing._Augmentation, "_finish", interrupted)
        with pytest.raises(Stopped):
            call(out)
    assert len(crops_left(out)) == DRAWN
    path = sorted((left(out) / "set" / "bounding_box_train").iterdir())[4]
    content = path.read_bytes()
    if damage == "another picture's size":
        unfinished.write_crop(path, torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "scratch")
    else:
        kept = {"cut": content[:-40], "empty": b"", "zeros at the end": content[:-60] + bytes(60)}[damage]
        path.write_bytes(kept)
    assert call(out).found == DRAWN - 1
    assert_finished(out, reference)


# --- stopped and refused -----------------------------------------------------------------------------------


def test_ctrl_c_says_that_the_same_command_goes_on(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(drawing, "draw", interrupted)
    # A shell's background jobs begin with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(
            Stopped, match=r"SIGINT: stopped.*\.set\.unfinished, and the same command goes on"
        ) as stopped:
            call(tmp_path / "set")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.signal_number == signal.SIGINT
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_an_input_error_and_the_crops_before_it_stay(
    call: Call, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, count = Path.write_bytes, 0

    def full(self: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"\.jpg cannot be written \(No space left on device\); make room"):
            call(tmp_path / "set", RECIPE.changed(workers=1))
    assert 5 <= len(crops_left(tmp_path / "set")) < DRAWN
    call(tmp_path / "set")
    assert_finished(tmp_path / "set", reference)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "seed 3, and not 4"),
        ({"checkpoint": "other"}, "checkpoint 'abc', and not 'other'"),
        ({"recipe": RECIPE.changed(batch_size=4)}, "recipe.augmentation.batch_size 3, and not 4"),
    ],
)
def test_other_arguments_do_not_go_on_but_may_begin_anew(
    changes: dict[str, Any], said: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    draw, count = drawing.draw, 0

    def stopping(*arguments: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw", stopping)
        with pytest.raises(Stopped):
            call(out)
    before = crops_left(out)
    with pytest.raises(InputError) as refused:
        call(out, **changes)
    assert said in str(refused.value)
    assert "--restart" in str(refused.value)
    assert crops_left(out) == before
    call(out, restart=True, **changes)
    call(tmp_path / "fresh", **changes)
    assert_finished_alike(out, tmp_path / "fresh")


def assert_finished_alike(one: Path, other: Path) -> None:
    assert files_in(one) == files_in(other)
    assert not left(one).exists()


def test_how_many_threads_write_does_not_matter(call: Call, reference: dict[str, bytes], tmp_path: Path) -> None:
    call(tmp_path / "set", RECIPE.changed(workers=7))
    assert_finished(tmp_path / "set", reference)


def test_a_damaged_plan_is_an_input_error(call: Call, tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", '{"threads": true}', '{"threads": 0}', "[" * 100_000)):
        out = tmp_path / str(number) / "set"
        left(out).mkdir(parents=True)
        (left(out) / "plan.json").write_text(text)
        with pytest.raises(InputError, match=r"plan\.json is damaged; give --restart"):
            call(out)
        call(out, restart=True)
        assert out.is_dir()


def test_left_overs_that_cannot_be_removed_are_one_sentence(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "set"
    left(out).mkdir()
    (left(out) / "set").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"cannot be removed .*remove it by hand"):
        call(out)


def test_the_root_of_a_drive_is_refused(call: Call) -> None:
    with pytest.raises(InputError, match="root of a drive"):
        call(Path("/"))


def test_a_folder_that_holds_something_is_refused_and_nothing_is_left_beside_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").touch()
    with pytest.raises(InputError, match="already holds files"):
        call(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_second_process_is_refused_while_one_draws(call: Call, tmp_path: Path) -> None:
    with lock_run(left(tmp_path / "set")), pytest.raises(InputError, match=f"written to by process {os.getpid()}"):
        call(tmp_path / "set")


# --- several processes -------------------------------------------------------------------------------------


def joined(rank: int, meeting: Path, action: Callable[[], object]) -> Callable[[], None]:
    """``action`` as one of two processes that found each other."""

    def together() -> None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        action()
        dist.destroy_process_group()

    return together


def test_two_processes_draw_the_set_of_one_and_use_as_many_threads(
    call: Call, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = drawing.draw
    (tmp_path / "drawn").mkdir()

    def noted(*arguments: Any) -> torch.Tensor:
        number = len(list((tmp_path / "drawn").glob(f"{dist.get_rank()}-*")))
        (tmp_path / "drawn" / f"{dist.get_rank()}-{number}").write_text(str(torch.get_num_threads()))
        return draw(*arguments)

    monkeypatch.setattr(drawing, "draw", noted)

    def work(rank: int) -> None:
        torch.set_num_threads(1 + rank)
        call(tmp_path / "sets" / "set")

    children = [forked(joined(rank, tmp_path / "meeting", lambda rank=rank: work(rank))) for rank in (0, 1)]
    assert [ended(child) for child in children] == [0, 0]
    assert_finished(tmp_path / "sets" / "set", reference)
    # Of three batches the first and the last are drawn by the first process; both use its number of threads.
    found = {path.name: path.read_text() for path in (tmp_path / "drawn").iterdir()}
    assert found == {"0-0": "1", "0-1": "1", "1-0": "1"}


@pytest.mark.parametrize("doomed", [0, 1])
def test_where_one_of_two_is_killed_the_other_ends_and_a_later_call_goes_on(
    doomed: int, call: Call, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = drawing.draw

    def fatal(*arguments: Any) -> torch.Tensor:
        if dist.get_rank() == doomed:
            time.sleep(0.1)
            kill()
        return draw(*arguments)

    out = tmp_path / "sets" / "set"
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "draw", fatal)
        children = [forked(joined(rank, tmp_path / "meeting", lambda: call(out))) for rank in (0, 1)]
        codes = [ended(child) for child in children]
    assert codes[doomed] == -signal.SIGKILL
    assert codes[1 - doomed] == 4
    assert 0 < call(out).found < DRAWN
    assert_finished(out, reference)


def test_what_the_first_of_two_refuses_both_refuse(call: Call, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").touch()
    children = [forked(joined(rank, tmp_path / "meeting", lambda: call(tmp_path / "set"))) for rank in (0, 1)]
    assert [ended(child) for child in children] == [3, 3]


@pytest.mark.long
def test_the_command_draws_alike_with_one_and_with_two_processes(
    world: Path, crops: CropTable, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = train_joint(tiny_recipe(data={"root": str(world)}), crops, tmp_path / "run", progress=False)
    for count in (1, 2):
        command = [sys.executable, "-m", "posereid", "augment", run, "--out", tmp_path / f"set-{count}"]
        done = subprocess.run([*command, "--num-processes", str(count)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("crops drawn") == 1
    assert files_in(tmp_path / "set-1") == files_in(tmp_path / "set-2")
    assert json.loads((tmp_path / "set-1" / "set.json").read_text())["creation"]["device"] == "cpu"
