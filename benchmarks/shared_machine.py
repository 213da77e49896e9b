"""What company on the same machine costs a joint training step: alone, and beside each of several kinds of other work.

    python benchmarks/shared_machine.py recipes/demo.yaml --rounds 2 --out runs/shared

Company is started here and bounded: busy threads, short wake-ups, copies of arrays larger than the caches, a second
training. Each measurement is a process of ``training_step.py``; those of a round follow each other, the idle ones
first, so that whatever else the machine does hits all alike, and each is given as a ratio to the idle one of its round
and setting. Settings are of the measured training: all threads or one, OpenMP threads that sleep while they wait, a
lower priority for the company. Prints a Markdown table of medians over the rounds, writes shared_machine.json. On Linux
each measurement says what share of the processors the host of a virtual machine kept for itself meanwhile ("stolen"):
where that is more than a few percent, the host is the company, and the ratios say nothing.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training_step import AS_IT_IS

from posereid.config import read_recipe
from posereid.data.synthetic import synthesize
from posereid.evaluation.evaluate import versions
from posereid.files import write_atomically

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STEP = Path(__file__).with_name("training_step.py")

# Each program ends by itself after argv[1] seconds, should this script be killed.
BUSY = "import sys, time\nend = time.time() + float(sys.argv[1])\nwhile time.time() < end: pass"
WAKE_UPS = (
    "import sys, time\nend = time.time() + float(sys.argv[1])\n"
    "while time.time() < end:\n    time.sleep(0.0005)\n    sum(range(2000))"
)
COPIES = (
    "import sys, time\nimport numpy as np\nend = time.time() + float(sys.argv[1])\n"
    "one = np.ones(2**25)\nother = np.empty_like(one)\nwhile time.time() < end: np.copyto(other, one)"
)
COMPANY: dict[str, list[str]] = {
    "idle": [],
    "1 busy loop": [BUSY],
    "2 runnable threads": [BUSY] * 2,
    "4 runnable threads": [BUSY] * 4,
    "8 processes of short wake-ups": [WAKE_UPS] * 8,
    "copies of 256 MB": [COPIES],
    "a second training, 1 thread": ["1"],
    "a second training, all threads": [str(THREADS)],
}
SETTINGS: dict[str, tuple[dict[str, str], int]] = {
    "all threads": ({"OMP_NUM_THREADS": str(THREADS)}, 0),
    "1 thread": ({"OMP_NUM_THREADS": "1"}, 0),
    "all threads, passive waits": ({"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}, 0),
    "all threads, company at nice 10": ({"OMP_NUM_THREADS": str(THREADS)}, 10),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=12, help="steps of each measurement; the first does not count")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300, help="longest life of company, and of a measurement")
    parser.add_argument("--company", nargs="+", choices=[*COMPANY], default=[*COMPANY], metavar="KIND")
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS], metavar="SETTING")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-shared-machine"))
    arguments = parser.parse_args()
    # Ratios are to the idle one.
    arguments.company = list(dict.fromkeys(["idle", *arguments.company]))
    return arguments


@contextmanager
def company(kind: str, nice: int, arguments: argparse.Namespace, data: Path) -> Iterator[None]:
    """Other work beside the block, and its end."""
    second = data.parent / "second"
    shutil.rmtree(second, ignore_errors=True)
    commands: list[tuple[Sequence[object], str]] = []
    for program in COMPANY[kind]:
        if program.isdecimal():
            train = [sys.executable, "-m", "posereid", "train", arguments.recipe, "--data.root", data, "--out", second]
            commands.append(([*train, "--embedder.no-pretrained", "--joint.epochs", 10**6], program))
        else:
            commands.append(([sys.executable, "-c", program, arguments.seconds], "1"))

    def bounded() -> None:
        limit = int(arguments.seconds * THREADS) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        os.nice(nice)

    started = [
        subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=bounded,
        )
        for command, threads in commands
    ]
    try:
        until = time.monotonic() + arguments.seconds
        while "training" in kind and not (second / "log.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.2)
        yield
        if any(process.poll() is not None for process in started):
            sys.exit(f"{kind}: the company ended before the measurement did; raise --seconds")
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(setting: str, kind: str, arguments: argparse.Namespace, data: Path) -> float:
    """Seconds of a step, the median of all but the first."""
    environment, nice = SETTINGS[setting]
    given = [arguments.recipe, "--data", data, "--steps", arguments.steps, "--from-scratch", "--one", AS_IT_IS]
    with company(kind, nice, arguments, data):
        child = subprocess.run(
            [sys.executable, str(STEP), *map(str, given)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=arguments.seconds,
        )
    seconds = json.loads(child.stdout.splitlines()[-1])["seconds"]
    return statistics.median(seconds[1:] or seconds)


def stolen() -> float:
    """Processor seconds that a virtual machine's host has kept for itself since the start; 0 where nobody counts."""
    counts = Path("/proc/stat")
    # proc(5): the eighth figure of the first line, in hundredths of a second.
    return int(counts.read_text(encoding="ascii").split()[8]) / os.sysconf("SC_CLK_TCK") if counts.exists() else 0.0


def table(runs: list[dict[str, Any]], kinds: list[str], settings: list[str]) -> str:
    def cell(kind: str, setting: str) -> str:
        own = [run for run in runs if (run["company"], run["setting"]) == (kind, setting)]
        if kind == "idle":
            return f"{statistics.median(run['step_seconds'] for run in own):.3g} s"
        return f"{statistics.median(run['ratio'] for run in own):.2f}×"

    head = [f"| company | {' | '.join(settings)} |", "|---" * (len(settings) + 1) + "|"]
    return "\n".join([*head, *(f"| {kind} | {' | '.join(cell(kind, s) for s in settings)} |" for kind in kinds)])


def main() -> None:
    arguments = parse()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = synthesize(Path(scratch) / "world", identities=64, height=read_recipe(arguments.recipe).data.height)
        for number in range(arguments.rounds):
            for setting in arguments.settings:
                idle = 0.0
                for kind in arguments.company:
                    begun, stolen_before = time.monotonic(), stolen()
                    seconds = measure(setting, kind, arguments, data)
                    idle = idle or seconds
                    share = (stolen() - stolen_before) / (time.monotonic() - begun) / THREADS
                    run = {"round": number + 1, "setting": setting, "company": kind, "step_seconds": round(seconds, 4)}
                    runs.append(run | {"ratio": round(seconds / idle, 3), "stolen": round(share, 3)})
                    place = f"round {number + 1}, {setting}, {kind}"
                    print(f"{place}: {seconds:.3g} s, {share:.0%} stolen by the host", file=sys.stderr)
    result = {
        "recipe": arguments.recipe.name,
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "threads": THREADS,
        "versions": versions(),
        "runs": runs,
    }
    write_atomically(arguments.out / "shared_machine.json", json.dumps(result, indent=1) + "\n")
    print(
        f"{arguments.recipe.name}, {THREADS} threads, medians of {arguments.rounds} rounds of {arguments.steps} steps"
    )
    print(table(runs, arguments.company, arguments.settings))


if __name__ == "__main__":
    main()
