"""How cells are done: skipped, resumed, shared between processes, and failing alone."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from posereid.ablation.grid import LOCKS, POSE, Cell, Grid, plan_grid
from posereid.ablation.locks import try_lock
from posereid.ablation.opening import open_grid
from posereid.ablation.rows import ROWS
from posereid.ablation.running import attempt, failure_file, run_grid, stoppable
from posereid.config import Recipe
from posereid.errors import InputError, Stopped

Build = Callable[..., Recipe]
Work = Callable[[Grid, Cell], None]


@pytest.fixture
def grid(tiny_recipe: Build, world: Path, tmp_path: Path) -> Grid:
    recipe = tiny_recipe(
        data={"root": str(world)},
        pose_estimator={"backbone": "test_resnet", "width": 4, "epochs": 1, "batch_size": 8, "log_every": 1},
        evaluation={"resamples": 100, "pairs": 8},
    )
    return open_grid(plan_grid(recipe, tmp_path / "grid", (0, 1), (0,), ("no-semantic", "true"))[0])


@pytest.fixture
def worked(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that were worked on, in order; the work makes a folder and nothing else."""
    names: list[str] = []

    def work(grid: Grid, cell: Cell) -> None:
        grid.folder(cell).mkdir(parents=True, exist_ok=True)
        names.append(cell.name)

    monkeypatch.setattr("posereid.ablation.running.work", work)
    return names


def test_every_cell_is_done_once_and_then_skipped(grid: Grid, worked: list[str]) -> None:
    assert run_grid(grid, 1, progress=False) == {}
    assert worked == [cell.name for cell in grid.cells()]
    assert all(map(grid.is_done, grid.cells()))
    state = grid.state(POSE)
    assert state["seconds"] >= 0
    assert state["devices"] == ["cpu"]
    assert state["began"] <= state["finished"]
    run_grid(grid, 1, progress=False)
    assert len(worked) == len(grid.cells())


def test_a_cell_whose_folder_was_deleted_is_done_again(grid: Grid, worked: list[str]) -> None:
    run_grid(grid, 1, progress=False)
    gone = grid.cells()[-1]
    grid.folder(gone).rmdir()
    worked.clear()
    run_grid(grid, 1, progress=False)
    assert worked == [gone.name]


def test_more_seeds_add_their_cells_only(grid: Grid, worked: list[str]) -> None:
    run_grid(grid, 1, progress=False)
    before = len(worked)
    run_grid(replace(grid, seeds=(0, 1, 2)), 1, progress=False)
    assert worked[before:] == [f"reid/{row}/seed-2" for row in ("real", "full", "no-semantic", "true")]


@pytest.mark.parametrize(("error", "named"), [(InputError("no disk."), "no disk."), (ZeroDivisionError("odd"), "odd")])
def test_a_failing_cell_takes_along_those_that_need_it_and_no_other(
    grid: Grid, worked: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, named: str
) -> None:
    broken = Cell("generator", "full", 0)

    def work(grid: Grid, cell: Cell) -> None:
        grid.folder(cell).mkdir(parents=True, exist_ok=True)
        if cell == broken:
            raise error
        worked.append(cell.name)

    monkeypatch.setattr("posereid.ablation.running.work", work)
    failed = run_grid(grid, 1, progress=False)
    assert named in failed[broken]
    assert failed == {broken: failed[broken]} | {
        Cell("reid", "full", seed): "it needs generators/full/seed-0" for seed in grid.seeds
    }
    assert set(worked) == {cell.name for cell in grid.cells()} - {cell.name for cell in failed}
    assert grid.state(broken)["done"] is False
    assert failure_file(grid, broken).exists() == isinstance(error, ZeroDivisionError)
    # Once the cause is gone the same call does what is left.
    monkeypatch.setattr("posereid.ablation.running.work", lambda grid, cell: worked.append(cell.name))
    assert run_grid(grid, 1, progress=False) == {}
    assert worked[-3:] == [broken.name, "reid/full/seed-0", "reid/full/seed-1"]


def test_what_is_stopped_keeps_its_time_and_goes_on(
    grid: Grid, worked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(grid: Grid, cell: Cell) -> None:
        grid.folder(cell).mkdir(parents=True, exist_ok=True)
        time.sleep(0.2)
        raise Stopped(signal.SIGTERM, "asked to")

    with monkeypatch.context() as patch:
        patch.setattr("posereid.ablation.running.work", stop)
        with pytest.raises(Stopped, match="the same command goes on there") as stopped, stoppable(grid.out):
            run_grid(grid, 1, progress=False)
    assert stopped.value.signal_number == signal.SIGTERM
    state = grid.state(POSE)
    assert state["done"] is False
    assert state["seconds"] >= 0.2
    assert run_grid(grid, 1, progress=False) == {}
    assert grid.state(POSE)["seconds"] >= state["seconds"]


def test_a_cell_that_another_process_is_at_is_come_back_to(
    grid: Grid, worked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posereid.ablation.running._BUSY_SECONDS", 0.1)
    other = Cell("reid", "real", 0)
    thread = threading.Thread(target=run_grid, args=(grid, 1), kwargs={"progress": False})
    with try_lock(grid.out / LOCKS / other.name) as mine:
        assert mine
        thread.start()
        time.sleep(0.5)
        # All that needs nothing of the cell was done meanwhile, and nothing that does.
        assert "reid/real/seed-1" in worked
        assert not [name for name in worked if "full" in name or name == other.name]
    thread.join(timeout=60)
    assert sorted(worked) == sorted(cell.name for cell in grid.cells())


def test_what_the_other_process_finished_is_not_done_again(
    grid: Grid, worked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posereid.ablation.running._BUSY_SECONDS", 0.1)
    thread = threading.Thread(target=run_grid, args=(grid, 1), kwargs={"progress": False})
    with try_lock(grid.out / LOCKS / POSE.name):
        thread.start()
        time.sleep(0.3)
        grid.folder(POSE).mkdir()
        grid.record(POSE).parent.mkdir(exist_ok=True)
        grid.record(POSE).write_text(json.dumps({"done": True}))
    thread.join(timeout=60)
    assert POSE.name not in worked
    assert len(worked) == len(grid.cells()) - 1


def test_two_calls_on_one_folder_share_the_cells(
    grid: Grid, worked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(grid: Grid, cell: Cell) -> None:
        grid.folder(cell).mkdir(parents=True, exist_ok=True)
        time.sleep(0.02)
        worked.append(f"{threading.current_thread().name} {cell.name}")

    monkeypatch.setattr("posereid.ablation.running.work", work)
    monkeypatch.setattr("posereid.ablation.running._BUSY_SECONDS", 0.05)
    threads = [
        threading.Thread(target=run_grid, args=(grid, 1), kwargs={"progress": False}, name=name) for name in "AB"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(line.split()[1] for line in worked) == sorted(cell.name for cell in grid.cells())
    assert {line.split()[0] for line in worked} == {"A", "B"}


def test_sigterm_ends_a_grid_as_ctrl_c_does(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command goes on there") as stopped, stoppable(tmp_path):
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("left", ["nothing", "locks", "half a run"])
def test_a_cell_that_failed_before_its_first_step_is_tried_again(
    grid: Grid, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real training: what went wrong leaves nothing that a new run stumbles over."""
    if left != "nothing":
        grid.folder(POSE).mkdir()
        (grid.folder(POSE) / ".lock").write_text("")
        (grid.folder(POSE) / ".lock-holder.json").write_text("{}")
    if left == "half a run":
        (grid.folder(POSE) / "run.json").write_text("{}")

    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no memory while the networks are built")

    with monkeypatch.context() as patch:
        patch.setattr("posereid.training.pose.new_pose_estimator", broken)
        for _ in range(2):
            assert attempt(grid, POSE).why.startswith("MemoryError: no memory while")
    assert failure_file(grid, POSE).exists()
    assert grid.state(POSE)["done"] is False
    assert attempt(grid, POSE).end == "done"
    assert not failure_file(grid, POSE).exists()
    assert grid.is_done(POSE)


def test_a_cell_s_record_names_every_place_where_it_was_worked_on(
    grid: Grid, worked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = {"done": False, "seconds": 5.0, "began": "2026-01-01T00:00:00+00:00", "devices": ["A GPU"]}
    grid.record(POSE).parent.mkdir()
    grid.record(POSE).write_text(json.dumps(earlier))
    attempt(grid, POSE)
    state = grid.state(POSE)
    assert state["devices"] == ["A GPU", "cpu"]
    assert state["began"] == earlier["began"]
    assert state["seconds"] >= 5


def test_fewer_than_one_job_is_refused(grid: Grid) -> None:
    with pytest.raises(InputError, match="--jobs is 0"):
        run_grid(grid, 0, progress=False)


def test_a_process_that_the_system_kills_takes_nothing_else_along(grid: Grid) -> None:
    """Two cells at a time in real processes: one is killed at once, the other trains and searches."""
    small = replace(grid, rows=(ROWS["real"],), seeds=(0,))
    assert small.cells() == [POSE, Cell("reid", "real", 0)]
    killed = threading.Event()

    def kill() -> None:
        while not killed.is_set():
            for child in multiprocessing.active_children():
                if child.name == POSE.name and child.pid:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.set()
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    failed = run_grid(small, 2, progress=False)
    killer.join()
    assert list(failed) == [POSE]
    assert "signal 9" in failed[POSE]
    assert small.is_done(Cell("reid", "real", 0))
    assert small.state(Cell("reid", "real", 0))["threads"] == [1]
