"""Many kills at random places; ``POSEREID_KILL_SEED`` repeats those of an earlier run, whose seed is printed."""

import os
import random
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from interruptions import Ended, Trainers, assert_clear_end, assert_ends_alike, launch, records, wait_for

from posereid.config import parse_recipe, read_recipe, write_recipe
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint

pytestmark = pytest.mark.long

STEPS = 8
ROUNDS = 20
ROUNDS_OF_TWO = 5


@dataclass
class Summary:
    """Where the kills of a test hit."""

    seed: int
    places: Counter[str] = field(default_factory=Counter)

    def note(self, run: Path) -> None:
        """One kill, by what it left."""
        steps = [record["step"] for record in records(run)] if (run / "log.jsonl").exists() else []
        last = f"after the record of step {steps[-1]}" if steps else "before the first record"
        saving = any((run / "checkpoints").glob(".step-*"))
        self.places[f"{last}, {'in' if saving else 'not in'} saving"] += 1


@pytest.fixture(scope="module")
def summary() -> Iterator[Summary]:
    given = os.environ.get("POSEREID_KILL_SEED")
    found = Summary(int(given) if given else secrets.randbelow(2**32))
    print(f"\nPOSEREID_KILL_SEED={found.seed}")
    yield found
    print(f"\n{found.places.total()} kills with POSEREID_KILL_SEED={found.seed}:")
    for place, count in sorted(found.places.items()):
        print(f"  {count:3} {place}")


@pytest.fixture(scope="module")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe, saved every second step."""
    smoke = read_recipe(Path(__file__).parents[2] / "recipes" / "smoke.yaml").model_dump(mode="json")
    smoke["data"]["root"], smoke["runtime"]["device"] = str(world), "cpu"
    smoke["joint"] |= {"checkpoint_every": 2, "sample_every": 3}
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    path.write_text(write_recipe(parse_recipe(smoke, "the test's recipe")))
    return path


@pytest.fixture(scope="module")
def finished(trainers: Trainers, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert trainers.train("train", recipe, "--out", out).code == 0
    return out


def begun_or_resumed(trainers: Trainers, recipe: Path, out: Path, faults: list[list[object]]) -> Ended:
    """Train as a queue would that does not know how far the last attempt came."""
    return trainers.train("train", recipe, "--out", out, "--resume", faults=faults)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_any_number_of_kills_at_any_time_changes_nothing_about_the_end(
    number: int, trainers: Trainers, recipe: Path, finished: Path, summary: Summary, tmp_path: Path
) -> None:
    draw, out = random.Random(f"{summary.seed} {number}"), tmp_path / "run"
    start = time.perf_counter()
    assert trainers.train("train", recipe, "--out", tmp_path / "measured").code == 0
    usual = time.perf_counter() - start
    for _ in range(draw.randint(1, 5)):
        by_time = ["kill_after_seconds", draw.uniform(0, usual)]
        ended = begun_or_resumed(
            trainers, recipe, out, [draw.choice([by_time, ["kill_before_step", draw.randint(1, STEPS)]])]
        )
        assert ended.code in (0, -signal.SIGKILL), ended.said
        if ended.code:
            summary.note(out)
    ended = begun_or_resumed(trainers, recipe, out, [])
    assert ended.code == 0, ended.said
    assert_ends_alike(out, finished)


@pytest.mark.parametrize("step", [2, 6, 8])
def test_a_kill_at_every_file_operation_of_saving_changes_nothing_about_the_end(
    step: int, trainers: Trainers, recipe: Path, finished: Path, summary: Summary, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    faults = [["kill_everywhere_in_saving", step, str(copies)]]
    assert trainers.train("train", recipe, "--out", tmp_path / "run", faults=faults).code == 0
    _all_go_on(copies, trainers, recipe, finished, summary)


def test_a_kill_at_every_file_operation_of_replacing_a_damaged_checkpoint_changes_nothing_about_the_end(
    trainers: Trainers, recipe: Path, finished: Path, summary: Summary, tmp_path: Path
) -> None:
    run, copies = tmp_path / "run", tmp_path / "copies"
    shutil.copytree(finished, run)
    (checkpoint_folders(run)[-1] / "generator.safetensors").write_bytes(b"damaged")
    faults = [["kill_everywhere_in_saving", STEPS, str(copies)]]
    assert trainers.train("train", recipe, "--out", run, "--resume", faults=faults).code == 0
    assert_ends_alike(run, finished)
    _all_go_on(copies, trainers, recipe, finished, summary)


def _all_go_on(copies: Path, trainers: Trainers, recipe: Path, finished: Path, summary: Summary) -> None:
    killed = sorted(copies.iterdir(), key=lambda path: int(path.name))
    assert len(killed) > 20
    for copy in killed:
        summary.note(copy)
        if checkpoint_folders(copy):
            assert latest_checkpoint(copy).step > 0
        assert begun_or_resumed(trainers, recipe, copy, []).code == 0
        assert_ends_alike(copy, finished)


def test_a_kill_at_every_file_operation_before_the_first_step_leaves_a_run_that_can_be_begun_or_resumed(
    trainers: Trainers, recipe: Path, summary: Summary, tmp_path: Path
) -> None:
    stop = ["kill_before_step", 1]
    counted = tmp_path / "counted"
    counting = [["kill_at_file_operation", 10**6, str(counted)]]
    assert trainers.train("train", recipe, "--out", tmp_path / "whole", faults=counting).code == 0
    for operation in range(1, int(counted.read_text())):
        out = tmp_path / str(operation)
        faults = [["kill_at_file_operation", operation], stop]
        assert trainers.train("train", recipe, "--out", out, faults=faults).code == -signal.SIGKILL
        summary.note(out)
        assert begun_or_resumed(trainers, recipe, out, [stop]).code == -signal.SIGKILL
        if (out / "log.jsonl").exists():
            break


@pytest.fixture(scope="module")
def finished_by_two(trainers: Trainers, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "two"
    assert [ended.code for ended in trainers.train_two("train", recipe, "--out", out)] == [0, 0]
    return out


@pytest.mark.parametrize("number", range(ROUNDS_OF_TWO))
def test_a_kill_of_one_of_two_processes_ends_the_other_and_changes_nothing_about_the_end(
    number: int, trainers: Trainers, recipe: Path, finished_by_two: Path, summary: Summary, tmp_path: Path
) -> None:
    draw, out = random.Random(f"{summary.seed} {number}"), tmp_path / "run"
    killed = draw.randrange(2)
    fault = draw.choice([["kill_before_step", draw.randint(1, STEPS)], ["kill_after_seconds", draw.uniform(0, 3)]])
    faults = [[fault] if rank == killed else [] for rank in range(2)]
    process = launch(tmp_path / "job", "train", recipe, "--out", out, faults=faults)
    _, said = process.communicate(timeout=120)
    if process.returncode:
        summary.note(out)
        assert_clear_end(process.returncode, said, killed)
    assert [ended.code for ended in trainers.train_two("train", recipe, "--out", out, "--resume")] == [0, 0]
    assert_ends_alike(out, finished_by_two)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_kill_before_two_processes_have_met_ends_the_other_within_a_minute(
    killed: int, recipe: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    faults = [[], [["kill_before_joining"] if killed else ["pause_before_joining", str(marker)]]]
    process = launch(tmp_path / "job", "train", recipe, "--out", tmp_path / "run", faults=faults)
    if killed == 0:
        wait_for(marker)
        process.kill()
        marker.with_name("marker.go").touch()
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert "has ended" in said or "Child process with PID" in said
