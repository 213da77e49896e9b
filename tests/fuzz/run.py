"""Feed hostile files to every parser for a given time, and keep each one that brings a parser down.

``python tests/fuzz/run.py --seconds 3600 [--targets NAME …] [--seed 0] [--out runs/fuzz] [--engine auto]``

Each parser of targets.py runs in a process of its own. An error other than InputError, a crash, an input that takes
longer than 20 seconds and one that needs more than 2 GiB are failures; their inputs are kept as ``OUT/TARGET/HASH``,
and a parser that was brought down goes on with other inputs. ``OUT/summary.json`` has the figures, and is written anew
after every parser. The exit code is 1 when there were failures. With atheris the search is guided by the parsers' code
coverage; without it, inputs are random variants of valid files.
"""

import argparse
import hashlib
import importlib.util
import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

LONGEST_SECONDS = 20
"""Of processor time. A parser that waits for something may do so six times as long: the machine may be busy."""

MEMORY_BYTES = 2 * 2**30
LONGEST_INPUT = 2**20
# When the present input began, by the clock and in the processor time of its process (both 0 between two inputs);
# the number of inputs; the length of the present one.
_HEADER = struct.Struct("<ddQQ")
_LOADING_SECONDS = 120
_KEPT_PER_KIND = 3
# PyYAML too would be five times slower.
_INSTRUMENTED = ["posereid", "zipfile", "PIL", "csv"]


# --- one parser, in a process of its own -------------------------------------------------------------------


class Recorder:
    """Runs a target on inputs and keeps those that fail.

    What is being done stands in a file in memory that outlives the process, so that the input of a crash or a hang
    can be kept by whoever watches.
    """

    def __init__(self, run: Callable[[bytes], object], folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._kinds: dict[str, int] = {}
        self._watcher = os.getppid()
        with (folder / "present").open("r+b") as file:
            self._present = mmap.mmap(file.fileno(), _HEADER.size + LONGEST_INPUT)
        self.executions = _HEADER.unpack_from(self._present)[2]

    def __call__(self, content: bytes) -> None:
        if os.getppid() != self._watcher:
            os._exit(1)
        content = content[:LONGEST_INPUT]
        self.executions += 1
        self._present[_HEADER.size : _HEADER.size + len(content)] = content
        _HEADER.pack_into(self._present, 0, time.time(), time.process_time(), self.executions, len(content))
        try:
            self._run(content)
        except Exception as error:
            self._keep(content, error)
        # Making the next input takes time too.
        _HEADER.pack_into(self._present, 0, 0.0, 0.0, self.executions, 0)

    def _keep(self, content: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        kind = f"{type(error).__name__} at {place}"
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        if self._kinds[kind] <= _KEPT_PER_KIND:
            keep(self._folder, content, kind, str(error)[:300])


def keep(folder: Path, content: bytes, kind: str, message: str) -> None:
    """Write a failing input under its hash, and what happened into a list."""
    name = hashlib.sha256(content).hexdigest()[:16]
    (folder / name).write_bytes(content)
    with (folder / "failures.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, "message": message, "input": name}) + "\n")


def work(name: str, folder: Path, seconds: float, seed: int, engine: str) -> None:
    """Run one target until its time is over."""
    warnings.simplefilter("ignore")
    end = time.monotonic() + seconds
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
            from targets import TARGETS
    else:
        from targets import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    for content in seeds:
        target(content)
    recorder = Recorder(target, folder)
    # What torch's libraries occupy without using it does not count.
    occupied = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (occupied + MEMORY_BYTES, resource.RLIM_INFINITY))
    # On a busy machine loading alone may have taken all of the time.
    remaining = max(1.0, end - time.monotonic())
    if engine == "atheris":
        _guided(target, seeds, recorder, folder, remaining, seed)
    else:
        random, end = Random(seed), time.monotonic() + remaining
        while time.monotonic() < end:
            recorder(target.hostile(seeds, random))


def _guided(target: Any, seeds: list[bytes], recorder: Recorder, folder: Path, seconds: float, seed: int) -> None:
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for content in seeds:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    def mutate(content: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.5:
            return atheris.Mutate(content, most)
        return target.hostile([content] if random.random() < 0.7 else seeds, random)[:most]

    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed + 1}", f"-max_len={2**13}", "-rss_limit_mb=0",
               "-timeout=0", "-print_final_stats=0", "-verbosity=0"]  # fmt: skip
    atheris.Setup(["fuzz", *options, f"-artifact_prefix={folder}/", str(corpus)], recorder, custom_mutator=mutate)
    atheris.Fuzz()


# --- watching ----------------------------------------------------------------------------------------------


def watch(name: str, out: Path, seconds: float, seed: int, engine: str) -> dict[str, Any]:
    """Run one target in processes that may die, and return its figures."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("failures.jsonl", "present"):
        (folder / stale).unlink(missing_ok=True)
    (folder / "present").write_bytes(bytes(_HEADER.size + LONGEST_INPUT))
    begin = time.monotonic()
    deaths = 0
    while (remaining := seconds - (time.monotonic() - begin)) > 1 or not deaths:
        problem = _watch_process(name, folder, max(remaining, 1), seed + deaths, engine, begin)
        if problem is None:
            break
        deaths += 1
        *_, length = _present(folder)
        keep(folder, (folder / "present").read_bytes()[_HEADER.size :][:length], *problem)
        if problem[0] == "start" or deaths >= 50:
            break
    *_, executions, _ = _present(folder)
    spent = time.monotonic() - begin
    failures = folder / "failures.jsonl"
    return {
        "target": name,
        "engine": engine,
        "executions": executions,
        "per_second": round(executions / spent, 1),
        "seconds": round(spent, 1),
        "failures": [json.loads(line) for line in failures.read_text().splitlines()] if failures.exists() else [],
    }


def _watch_process(
    name: str, folder: Path, seconds: float, seed: int, engine: str, begin: float
) -> tuple[str, str] | None:
    """What brought the process down, as kind and message, or None when its time was over."""
    command = [sys.executable, __file__, "--worker", name, "--out", str(folder), "--seconds", str(seconds),
               "--seed", str(seed), "--engine", engine]  # fmt: skip
    *_, executions, _ = _present(folder)
    with (folder / "present").open("r+b") as file:
        file.write(_HEADER.pack(0.0, 0.0, executions, 0))
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    started = told = time.monotonic()
    while process.poll() is None:
        time.sleep(0.25)
        start, worked, executions, _ = _present(folder)
        now = time.monotonic()
        if start and (
            _processor_seconds(process.pid) - worked > LONGEST_SECONDS or time.time() - start > 6 * LONGEST_SECONDS
        ):
            process.kill()
            process.wait()
            return "hang", f"longer than {LONGEST_SECONDS} seconds"
        if not start and now - started > seconds + _LOADING_SECONDS:
            process.kill()
            process.wait()
            return "start", f"the process does not begin; see {folder}/log.txt"
        if now - told > 15:
            told = now
            print(f"{name:<16} {engine:<10} {now - begin:6.0f} s {executions:>10,} inputs", flush=True)
    start, _, executions, _ = _present(folder)
    if process.returncode == 0 and executions:
        return None
    if not executions:
        return "start", f"the process ended with {process.returncode} before the first input; see {folder}/log.txt"
    return "crash", f"the process ended with {process.returncode}{'' if start else ', between two inputs'}"


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:  # it has ended
        return 0.0


def _present(folder: Path) -> tuple[float, float, int, int]:
    with (folder / "present").open("rb") as file:
        return _HEADER.unpack(file.read(_HEADER.size))


def main() -> int:
    """Run the targets one after the other; 1 when there were failures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600, help="time for all targets together")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.out, given.seconds, given.seed, given.engine)
        return 0
    engine = given.engine
    if engine == "auto":
        engine = "atheris" if importlib.util.find_spec("atheris") else "random"
    from targets import TARGETS

    names = given.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no targets {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    summary = []
    for name in names:
        summary.append(watch(name, given.out, given.seconds / len(names), given.seed, engine))
        (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        _tell(summary[-1])
    print(f"\n{'target':<16} {'engine':<10} {'inputs':>10} {'per second':>10} {'seconds':>8} {'failures':>8}")
    for about in summary:
        _tell(about)
    return int(any(about["failures"] for about in summary))


def _tell(about: dict[str, Any]) -> None:
    print(
        f"{about['target']:<16} {about['engine']:<10} {about['executions']:>10,} {about['per_second']:>10,.0f} "
        f"{about['seconds']:>8,.0f} {len(about['failures']):>8}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
