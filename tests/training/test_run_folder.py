import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from posereid.errors import InputError
from posereid.files import require_free
from posereid.training.run_folder import lock_run

HOLDING = """
import sys
from pathlib import Path
from posereid.training.run_folder import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(out: Path) -> subprocess.Popen:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def refusal(out: Path) -> str:
    with pytest.raises(InputError) as raised, lock_run(out):
        pytest.fail("the lock was given twice")
    return str(raised.value)


def assert_free(out: Path) -> None:
    entered = False
    with lock_run(out):
        entered = True
    assert entered


# --- one writer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path: Path, killed: bool) -> None:
    out = tmp_path / "run"
    process = holding(out)
    try:
        message = refusal(out)
        assert message.startswith(f"{out} is being written to by process {process.pid} on {socket.gethostname()} since")
        assert message.endswith("; wait for it, or stop it.")
        assert "another machine" not in message
    finally:
        if killed:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == (-signal.SIGKILL if killed else 0)
    assert_free(out)


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        assert f"by process {os.getpid()} on" in refusal(tmp_path)
        assert f"by process {os.getpid()} on" in refusal(tmp_path)
    assert_free(tmp_path)


def test_the_lock_is_free_after_an_error_inside_the_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_run(tmp_path):
        raise ZeroDivisionError
    assert_free(tmp_path)


def test_two_runs_side_by_side_are_no_concern_of_each_other(tmp_path: Path) -> None:
    with lock_run(tmp_path / "a"), lock_run(tmp_path / "b"):
        assert refusal(tmp_path / "a") != refusal(tmp_path / "b")


def _refused_in_child(out: Path, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(refusal(out))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_refused_and_frees_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with lock_run(tmp_path):
        child = context.Process(target=_refused_in_child, args=(tmp_path, answers))
        child.start()
        assert f"by process {os.getpid()} on" in answers.get()
        child.join()
        assert f"by process {os.getpid()} on" in refusal(tmp_path)
    assert_free(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_that_leaves_the_block_or_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    """As a data loader's worker might: forked inside the block."""
    code = """
import os, sys, time
from pathlib import Path
from posereid.training.run_folder import lock_run
out, stays = Path(sys.argv[1]), sys.argv[2] == "stays"
with lock_run(out):
    child = os.fork()
    if child and not stays:
        os.waitpid(child, 0)
    if child or stays:
        print(os.getpid(), flush=True)
        sys.stdin.read() if child else time.sleep(600)
"""
    for conduct in ("leaves", "stays"):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), conduct],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        assert process.stdout
        pids = [int(process.stdout.readline()) for _ in range(2 if conduct == "stays" else 1)]
        assert f"by process {process.pid} on" in refusal(tmp_path)
        process.kill()
        process.wait()
        assert_free(tmp_path)
        for pid in pids:
            if pid != process.pid:
                os.kill(pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


# --- who holds it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        None,
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 200_000,
        {"pid": "1", "host": "a", "since": "2026-01-02 03:04:05+00:00"},
        {"pid": 0, "host": "a", "since": "2026-01-02 03:04:05+00:00"},
        {"pid": 10**400, "host": "a", "since": "2026-01-02 03:04:05+00:00"},
        {"pid": 1, "host": "a\n\x1b[2J", "since": "2026-01-02 03:04:05+00:00"},
        {"pid": 1, "host": None, "since": "2026-01-02 03:04:05+00:00"},
        {"pid": 1, "host": "a", "since": "yesterday"},
        {"pid": 1, "host": "a", "since": 3},
    ],
)
def test_a_holder_that_is_not_known_is_left_out(tmp_path: Path, record) -> None:
    with lock_run(tmp_path):
        path = tmp_path / ".lock-holder.json"
        path.unlink()
        if record is not None:
            path.write_bytes(record if isinstance(record, bytes) else json.dumps(record).encode())
        assert refusal(tmp_path) == f"{tmp_path} is being written to; wait for it, or stop it."


def test_a_holder_on_another_machine_is_said_to_be_there(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        record = {"pid": 12, "host": "elsewhere", "since": "2026-01-02 03:04:05+01:00"}
        (tmp_path / ".lock-holder.json").write_text(json.dumps(record))
        assert refusal(tmp_path) == (
            f"{tmp_path} is being written to by process 12 on elsewhere (another machine that shares this folder) "
            "since 2026-01-02 03:04:05 +0100; wait for it, or stop it."
        )


# --- the folder --------------------------------------------------------------------------------------------


def test_a_locked_folder_is_still_free_for_a_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with lock_run(out):
        assert {path.name for path in out.iterdir()} == {".lock", ".lock-holder.json"}
        require_free(out, "a run")
        (out / "recipe.yaml").write_text("")
    assert {path.name for path in out.iterdir()} == {".lock", "recipe.yaml"}
    with lock_run(out), pytest.raises(InputError, match="already holds files"):
        require_free(out, "a run")


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with lock_run(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    with lock_run(tmp_path):
        pass
    require_free(tmp_path, "a run")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="run is a file; a run needs a folder"), lock_run(tmp_path / "run"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said_so_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: int
) -> None:
    def unknown(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert_free(tmp_path)
    assert capsys.readouterr().err == (
        f"posereid: the file system of {tmp_path} knows no locks; take care that no other process writes there.\n"
    )


def test_other_failures_of_the_lock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output error"), lock_run(tmp_path):
        pytest.fail("the block ran")


def test_a_record_that_cannot_be_written_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space left"), lock_run(tmp_path):
        pytest.fail("the block ran")
    monkeypatch.undo()
    assert_free(tmp_path)
