"""Training processes that are killed, stopped or starved on purpose, and the comparison of what they leave.

``Trainers`` starts this file as a program that imports everything once and then forks one process for each command
line, so that a test of ten kills does not import PyTorch ten times. A fault is a list, the name of a function below and
its arguments; the forked process applies it to itself before it runs the command.
"""

import atexit
import errno
import gc
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file

from posereid import cli
from posereid.training import checkpoint, joint, log, loop, pose, reid

# Imported before the fork, for all that is forked.
_ = joint, pose, reid

Fault = Sequence[Any]

PATIENCE = 120
"""Seconds after which a process that should have ended counts as hanging, on a busy machine too."""

_BAR = re.compile(r"\d%\|.*\[.*step|: \d+ of \d+, .* left")

RATES = ("images_per_second", "data_share")


# --- the test's side ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it said."""

    code: int
    said: str

    def lines(self) -> list[str]:
        """What it said on stderr, without progress bars."""
        return [line.strip() for line in self.said.splitlines() if line.strip() and not _BAR.search(line)]


@dataclass(frozen=True)
class Child:
    """A forked process, the first of a process group of its own."""

    pid: int
    stderr: Path


class Trainers:
    """Forks processes that run posereid's command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, __file__, "serve"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: object, faults: Sequence[Fault] = (), env: dict[str, str] | None = None) -> Child:
        """Fork a process that runs ``posereid ARGUMENTS``."""
        self._count += 1
        stderr = self.folder / f"stderr-{self._count}"
        request = {"arguments": list(map(str, arguments)), "faults": faults, "env": env or {}, "stderr": str(stderr)}
        return Child(self._ask(request), stderr)

    def wait(self, child: Child, patience: float = PATIENCE) -> Ended:
        """Wait for it; fails when that takes too long."""
        code = self._ask({"wait": child.pid, "patience": patience})
        said = child.stderr.read_text()
        assert code is not None, f"process {child.pid} did not end in {patience} s: {said}"
        return Ended(code, said)

    def train(self, *arguments: object, faults: Sequence[Fault] = ()) -> Ended:
        """Start and wait."""
        return self.wait(self.start(*arguments, faults=faults))

    def start_two(self, *arguments: object, faults: Sequence[Sequence[Fault]] = ((), ())) -> list[Child]:
        """Two processes that train together, told who they are as torchrun would; ``faults`` are those of each."""
        port = free_port()
        return [
            self.start(*arguments, "--devices", 2, faults=own, env=torchrun_environment(rank, port))
            for rank, own in enumerate(faults)
        ]

    def train_two(self, *arguments: object, faults: Sequence[Sequence[Fault]] = ((), ())) -> list[Ended]:
        """Start two and wait for both."""
        return [self.wait(child) for child in self.start_two(*arguments, faults=faults)]

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the server, whose processes have ended."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells one of two processes."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }


def launch(folder: Path, *arguments: object, faults: Sequence[Sequence[Fault]] = ((), ())) -> subprocess.Popen[str]:
    """``posereid ARGUMENTS --devices 2`` as a user starts it; ``faults`` are those of the first and second process."""
    folder.mkdir(exist_ok=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"arguments": [*map(str, arguments), "--devices", "2"], "faults": faults}))
    return subprocess.Popen(
        [sys.executable, __file__, str(job)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, patience: float = PATIENCE) -> None:
    """Until a file exists."""
    end = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear in {patience} s"
        time.sleep(0.01)


def records(run: Path) -> list[dict[str, Any]]:
    """All records of a run's log."""
    return [json.loads(line) for line in (run / log.LOG_FILE).read_text().splitlines()]


def logged_steps(run: Path) -> list[dict[str, Any]]:
    """The records of losses, without what depends on the clock."""
    return [
        {name: value for name, value in record.items() if name not in RATES}
        for record in records(run)
        if any(name.startswith("loss_") for name in record)
    ]


def state(folder: Path) -> dict[str, Any]:
    """Every tensor and every plain value that a checkpoint holds, weights and optimisers' state, by its place."""
    found: dict[str, Any] = {}

    def collect(place: str, value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{place}/{key}", part)
        else:
            found[place] = value

    for path in sorted(folder.glob("*.safetensors")):
        collect(path.stem, load_file(path))
    collect("resume", torch.load(folder / "resume.pt", weights_only=True))
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Places in which two checkpoints are not the same bit for bit."""
    first, second = state(one), state(other)
    assert any(isinstance(value, torch.Tensor) and place.startswith("resume") for place, value in first.items())

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return [
        place
        for place in sorted(first.keys() | second.keys())
        if place not in first or place not in second or not same(first[place], second[place])
    ]


def assert_ends_alike(run: Path, reference: Path) -> None:
    """Both runs ended at the same step with the same state, and logged the same steps, each once and in order."""
    one, other = checkpoint.latest_checkpoint(run), checkpoint.latest_checkpoint(reference)
    assert one.step == other.step
    assert differences(one.folder, other.folder) == []
    steps = logged_steps(run)
    assert [record["step"] for record in steps] == list(range(1, one.step + 1))
    assert steps == logged_steps(reference)
    assert not list((run / "checkpoints").glob(".*"))


def assert_clear_end(code: int, said: str, killed: int) -> None:
    """How the other of two processes ends, and the first's exit code, where one of them is killed."""
    # Every five seconds Fabric looks whether a process that it started has ended, says so and kills the first, which
    # may just have noticed by itself.
    assert code == -signal.SIGKILL or (killed, code) == (1, 2), said
    ours, fabrics = said.count("another of the 2 processes"), said.count("Child process with PID")
    assert ours == 1 if killed == 0 else (ours, fabrics) in ((1, 0), (0, 1), (1, 1)), said
    assert "Traceback" not in said, said


# --- faults, each applied by a process to itself -----------------------------------------------------------


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _before_step(number: int, action: Callable[[], None]) -> None:
    seed_step = loop.seed_step

    def changed(seed: int, step: int) -> None:
        if step == number:
            action()
        seed_step(seed, step)

    loop.seed_step = changed


def kill_before_step(number: int) -> None:
    """Die once everything before a step is done."""
    _before_step(number, _kill)


def pause_before_step(number: int, marker: str) -> None:
    """Make the file ``marker`` before a step and go on when ``marker.go`` exists.

    ``marker.noted`` appears once Ctrl-C has been taken as a request.
    """

    def pause() -> None:
        handler = signal.getsignal(signal.SIGINT)
        Path(marker).touch()
        end = time.monotonic() + PATIENCE
        while not Path(f"{marker}.go").exists() and time.monotonic() < end:
            time.sleep(0.01)
            if signal.getsignal(signal.SIGINT) is not handler:
                Path(f"{marker}.noted").touch()

    _before_step(number, pause)


def kill_before_joining() -> None:
    """Die before the processes of a run find each other."""

    def die(_: object) -> Any:
        _kill()

    loop.launch_fabric = die


def pause_before_joining(marker: str) -> None:
    """Make the file ``marker`` before the processes of a run find each other and go on when ``marker.go`` exists."""
    launch_fabric = loop.launch_fabric

    def paused(runtime: Any) -> Any:
        Path(marker).touch()
        wait_for(Path(f"{marker}.go"))
        return launch_fabric(runtime)

    loop.launch_fabric = paused


def kill_a_worker_before_step(number: int) -> None:
    """Kill one of the processes that decode crops."""

    def kill() -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        # Until the trainer is told so.
        time.sleep(PATIENCE)

    _before_step(number, kill)


def kill_after_saving(number: int) -> None:
    """Die right after the checkpoint of a step."""
    save = loop.save_checkpoint

    def changed(run: Path, **what: Any) -> Path:
        folder = save(run, **what)
        if what["step"] == number:
            _kill()
        return folder

    loop.save_checkpoint = changed


def kill_after_seconds(seconds: float) -> None:
    """Die so long after the first step began, wherever that is."""
    first = threading.Event()

    def die() -> None:
        first.wait()
        time.sleep(seconds)
        _kill()

    threading.Thread(target=die, daemon=True).start()
    seed_step = loop.seed_step

    def changed(seed: int, step: int) -> None:
        first.set()
        seed_step(seed, step)

    loop.seed_step = changed


def kill_at_file_operation(number: int, counted: str = "") -> None:
    """Die before the so-manieth change of the file system; where there are fewer, ``counted`` says how many."""
    count = 0

    def note(half: Callable[[], None] | None = None) -> None:
        nonlocal count
        count += 1
        if count == number:
            if half:
                half()
            _kill()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            note()

    sync, save_file, save = os.fsync, checkpoint.save_file, torch.save

    def synced(descriptor: int) -> None:
        note()
        sync(descriptor)

    def saved_file(tensors: dict[str, Any], path: Path) -> None:
        def half() -> None:
            save_file(tensors, path)
            os.truncate(path, path.stat().st_size // 2)

        note()
        note(half)
        save_file(tensors, path)

    def saved(value: object, handle: Any) -> None:
        def half() -> None:
            handle.write(b"PK\3\4 and no more")
            handle.flush()

        note(half)
        save(value, handle)

    os.fsync, checkpoint.save_file, torch.save = synced, saved_file, saved
    sys.addaudithook(heard)
    if counted:
        atexit.register(lambda: Path(counted).write_text(str(count)))


def kill_everywhere_in_saving(number: int, copies: str) -> None:
    """When a step is saved, save it first in copies of the run, by forked processes that die at each file operation.

    Leaves ``copies/1``, ``copies/2``, …, each as a killed process left it, and goes on unharmed.
    """
    save = loop.save_checkpoint

    def changed(run: Path, **what: Any) -> Path:
        if what["step"] == number:
            for operation in range(1, 1000):
                copy = Path(copies) / str(operation)
                shutil.copytree(run, copy)
                if not _dies(lambda copy=copy: save(copy, **what), operation):
                    shutil.rmtree(copy)
                    break
        return save(run, **what)

    loop.save_checkpoint = changed


def _dies(action: Callable[[], object], operation: int) -> bool:
    pid = os.fork()
    if not pid:
        kill_at_file_operation(operation)
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def full_disk_at_log(number: int) -> None:
    """The log cannot be written from a step on."""
    write = log.RunLog.write

    def changed(self: log.RunLog, step: int, record: Any, images_per_step: int = 0) -> None:
        if step >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, step, record, images_per_step)

    log.RunLog.write = changed  # type: ignore[method-assign]


def limit_file_size(number: int, size: int) -> None:
    """From a step on no file can grow beyond so many bytes."""
    _before_step(number, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


FAULTS = {
    each.__name__: each
    for each in (
        kill_before_step,
        kill_before_joining,
        pause_before_joining,
        pause_before_step,
        kill_a_worker_before_step,
        kill_after_saving,
        kill_after_seconds,
        kill_at_file_operation,
        kill_everywhere_in_saving,
        full_disk_at_log,
        limit_file_size,
    )
}


# --- the program's side ------------------------------------------------------------------------------------


def _serve() -> dict[str, Any] | None:
    """Answer requests until the input ends; in a forked process, what it is to run."""
    # What the forked processes need not look through need not be copied for them.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: int | None = _waited(request["wait"], request["patience"])
        elif pid := os.fork():
            answer = pid
        else:
            return request
        print(json.dumps(answer), flush=True)
    return None


def _waited(pid: int, patience: float) -> int | None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@contextmanager
def _replaced_streams(stderr: str) -> Iterator[None]:
    with open(os.devnull, "r+b") as nothing, open(stderr, "wb") as said:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
        os.dup2(said.fileno(), 2)
    yield


def _run(request: dict[str, Any], faults: Sequence[Fault]) -> None:
    for name, *arguments in faults:
        FAULTS[name](*arguments)
    cli.main(request["arguments"])


def _program() -> None:
    if sys.argv[1] != "serve":
        request = json.loads(Path(sys.argv[1]).read_text())
        _run(request, request["faults"][int(os.environ.get("LOCAL_RANK", 0))])
        return
    request = _serve()
    if request is None:
        return
    os.setsid()
    # Left frozen, it would count as leaked in the end.
    atexit.register(gc.unfreeze)
    with _replaced_streams(request["stderr"]):
        os.environ.update(request["env"])
        rank_zero_only.rank = int(os.environ.get("RANK", 0))
        _run(request, request["faults"])


if __name__ == "__main__":
    _program()
