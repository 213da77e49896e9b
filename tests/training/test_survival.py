"""Runs that are killed, stopped or starved, and go on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interruptions import (
    Ended,
    Trainers,
    assert_clear_end,
    assert_ends_alike,
    differences,
    launch,
    logged_steps,
    records,
    wait_for,
)

from posereid.data.layouts import load_crops
from posereid.data.sampling import PosePairSampler
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint


@pytest.fixture(scope="module")
def finished(trainers: Trainers, eight_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of a command; that of train leaves copies killed in saving step 6 beside it."""
    folder = tmp_path_factory.mktemp("finished")

    def run(command: str) -> Path:
        out = folder / command
        if not out.exists():
            copies = folder / "killed-in-saving"
            faults = [["kill_everywhere_in_saving", 6, str(copies)]] if command == "train" else []
            said = trainers.train(command, eight_steps, "--out", out, faults=faults)
            assert said == Ended(0, said.said)
        return out

    return run


@pytest.fixture(scope="module")
def finished_by_two(trainers: Trainers, eight_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted joint run of two processes."""
    out = tmp_path_factory.mktemp("finished") / "two"
    ended = trainers.train_two("train", eight_steps, "--out", out)
    assert [one.code for one in ended] == [0, 0], [one.said for one in ended]
    return out


# --- kill -9 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options", "kills"),
    [
        (
            "train",
            (),
            [("kill_before_step", 2), ("kill_after_saving", 3), ("kill_before_step", 5), ("kill_before_step", 5)],
        ),
        ("train", ("--runtime.workers", 2), [("kill_before_step", 6)]),
        ("train-reid", (), [("kill_before_step", 3), ("kill_after_saving", 6)]),
        ("train-pose", (), [("kill_before_step", 1), ("kill_before_step", 8)]),
    ],
    ids=["joint, again and again", "joint with workers", "reid", "pose"],
)
def test_a_killed_run_goes_on_to_the_very_end_of_an_uninterrupted_one(
    command: str,
    options: tuple[object, ...],
    kills: list[tuple[str, int]],
    trainers: Trainers,
    eight_steps: Path,
    finished: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    for number, kill in enumerate(kills):
        resume = ["--resume"] if number else []
        ended = trainers.train(command, eight_steps, "--out", out, *options, *resume, faults=[kill])
        assert ended.code == -signal.SIGKILL
    assert trainers.train(command, eight_steps, "--out", out, *options, "--resume").code == 0
    assert_ends_alike(out, finished(command))


def test_a_run_killed_anywhere_in_saving_keeps_a_whole_checkpoint_and_goes_on(
    trainers: Trainers, eight_steps: Path, finished: Callable[[str], Path]
) -> None:
    copies = finished("train").parent / "killed-in-saving"
    killed = sorted((path for path in copies.iterdir()), key=lambda path: int(path.name))
    assert len(killed) > 20
    newest = [latest_checkpoint(copy).step for copy in killed]
    # The new checkpoint counts from one moment on, and the old one until then.
    assert newest == sorted(newest)
    assert set(newest) == {3, 6}
    for copy in (killed[len(killed) // 2], killed[newest.index(6)]):
        assert trainers.train("train", eight_steps, "--out", copy, "--resume").code == 0
        assert_ends_alike(copy, finished("train"))


@pytest.mark.parametrize("operation", [7, 13, 20])
def test_a_run_killed_while_it_begins_is_resumed(
    operation: int, trainers: Trainers, eight_steps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = [["kill_at_file_operation", operation], ["kill_before_step", 1]]
    assert trainers.train("train", eight_steps, "--out", out, faults=faults).code == -signal.SIGKILL
    stop = [["kill_before_step", 1]]
    again = trainers.train("train", eight_steps, "--out", out, "--resume", faults=stop)
    assert again.code == -signal.SIGKILL, again.said


@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_of_two_processes_is_killed_the_other_ends_with_a_clear_line(
    killed: int, trainers: Trainers, eight_steps: Path, finished_by_two: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = [[["kill_before_step", 5]] if rank == killed else [] for rank in range(2)]
    process = launch(tmp_path / "job", "train", eight_steps, "--out", out, faults=faults)
    # Both write to this pipe: it ends when both have ended.
    _, said = process.communicate(timeout=100)
    assert_clear_end(process.returncode, said, killed)
    assert [ended.code for ended in trainers.train_two("train", eight_steps, "--out", out, "--resume")] == [0, 0]
    assert_ends_alike(out, finished_by_two)


def test_a_killed_decoding_process_ends_the_run_in_one_sentence_and_leaves_it_resumable(
    trainers: Trainers, eight_steps: Path, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ("--runtime.workers", 2)
    ended = trainers.train("train", eight_steps, "--out", out, *options, faults=[["kill_a_worker_before_step", 5]])
    assert_one_sentence(ended, "a process that decodes crops", "--resume")
    assert latest_checkpoint(out).step == 3
    assert trainers.train("train", eight_steps, "--out", out, "--resume").code == 0
    assert_ends_alike(out, finished("train"))


# --- SIGTERM and Ctrl-C ------------------------------------------------------------------------------------


def assert_stopped(ended: Ended, number: int, step: int) -> None:
    name = signal.Signals(number).name
    assert ended.code == 128 + number, ended.said
    assert [line for line in ended.lines() if line.startswith("posereid")] == ended.lines()
    assert len(ended.lines()) == 1
    assert f"{name}: stopped after step {step} of 8, and saved" in ended.said


@pytest.mark.parametrize(
    ("command", "number", "options", "whole_group"),
    [
        ("train", signal.SIGTERM, (), False),
        ("train-reid", signal.SIGINT, (), False),
        ("train-pose", signal.SIGTERM, (), False),
        ("train", signal.SIGINT, ("--runtime.workers", 2), True),
        ("train", signal.SIGTERM, ("--runtime.workers", 2), True),
    ],
    ids=["SIGTERM", "SIGINT", "SIGTERM, pose", "SIGINT to all with workers", "SIGTERM to all with workers"],
)
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint_of_it(
    command: str,
    number: int,
    options: tuple[object, ...],
    whole_group: bool,
    trainers: Trainers,
    eight_steps: Path,
    finished: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    faults = [["pause_before_step", 5, str(marker)]]
    child = trainers.start(command, eight_steps, "--out", out, *options, faults=faults)
    wait_for(marker)
    (os.killpg if whole_group else os.kill)(child.pid, number)
    marker.with_name("marker.go").touch()
    assert_stopped(trainers.wait(child), number, 5)
    assert latest_checkpoint(out).step == 5
    assert trainers.train(command, eight_steps, "--out", out, *options, "--resume").code == 0
    assert_ends_alike(out, finished(command))


def test_a_second_signal_ends_a_run_at_once(
    trainers: Trainers, eight_steps: Path, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    faults = [["pause_before_step", 5, str(marker)]]
    child = trainers.start("train", eight_steps, "--out", out, faults=faults)
    wait_for(marker)
    os.kill(child.pid, signal.SIGINT)
    # Two that arrive together would count as one.
    wait_for(marker.with_name("marker.noted"))
    os.kill(child.pid, signal.SIGINT)
    ended = trainers.wait(child)
    assert ended.code == 130
    assert ended.lines() == ["posereid: stopped; --resume goes on from a run's newest checkpoint."]
    assert latest_checkpoint(out).step == 3
    assert trainers.train("train", eight_steps, "--out", out, "--resume").code == 0
    assert_ends_alike(out, finished("train"))


def test_sigterm_to_the_first_of_two_processes_stops_both_after_the_same_step(
    trainers: Trainers, eight_steps: Path, finished_by_two: Path, tmp_path: Path
) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    pause = [["pause_before_step", 5, str(marker)]]
    first, second = trainers.start_two("train", eight_steps, "--out", out, faults=(pause, ()))
    wait_for(marker)
    os.kill(first.pid, signal.SIGTERM)
    marker.with_name("marker.go").touch()
    ended = trainers.wait(first)
    assert ended.code == 143, ended.said
    assert "SIGTERM: stopped after step 5 of 8, and saved" in ended.said
    other = trainers.wait(second)
    assert other.code == 0
    assert "Traceback" not in ended.said + other.said
    assert "posereid:" not in other.said
    assert latest_checkpoint(out).step == 5
    assert [ended.code for ended in trainers.train_two("train", eight_steps, "--out", out, "--resume")] == [0, 0]
    assert_ends_alike(out, finished_by_two)


# --- a full disk -------------------------------------------------------------------------------------------


def assert_one_sentence(ended: Ended, *parts: str) -> None:
    said = [line for line in ended.lines() if line.startswith("posereid:")]
    assert ended.code == 2, ended.said
    assert len(said) == 1, ended.said
    assert "Traceback" not in ended.said
    assert all(part in said[0] for part in parts), said


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(("full_disk_at_log", 5), "No space left"), (("limit_file_size", 5, 4096), "File too large")],
    ids=["in the log", "in a checkpoint"],
)
def test_a_full_disk_ends_a_run_in_one_sentence_and_leaves_it_resumable(
    fault: tuple[object, ...],
    cause: str,
    trainers: Trainers,
    eight_steps: Path,
    finished: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    assert_one_sentence(trainers.train("train", eight_steps, "--out", out, faults=[fault]), cause, "--resume")
    assert latest_checkpoint(out).step == 3
    assert trainers.train("train", eight_steps, "--out", out, "--resume").code == 0
    assert_ends_alike(out, finished("train"))


def test_a_disk_that_fills_up_ends_a_run_in_one_sentence_and_leaves_it_resumable(
    eight_steps: Path, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    reference, disk, stderr = finished("train"), tmp_path / "disk", tmp_path / "said"
    disk.mkdir()
    size = sum(path.stat().st_size for path in checkpoint_folders(reference)[0].iterdir())
    train = f'"{sys.executable}" -m posereid.cli train "{eight_steps}" --out "{disk}/run"'
    script = f"""
        mount -t tmpfs -o size={int(1.7 * size)} tmpfs "{disk}" || exit 77
        {train} 2> "{stderr}"
        echo $? > "{tmp_path}/code"
        mount -o remount,size=100M "{disk}" || exit 78
        {train} --resume && cp -r "{disk}/run" "{tmp_path}/run"
    """
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if done.returncode in (1, 77) and not stderr.exists():
        pytest.skip(f"no file system of its own is permitted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert_one_sentence(Ended(int((tmp_path / "code").read_text()), stderr.read_text()), "--resume")
    assert_ends_alike(tmp_path / "run", reference)


# --- two at once -------------------------------------------------------------------------------------------


def test_a_run_that_is_being_trained_is_refused_to_others_and_goes_on_unharmed(
    trainers: Trainers, eight_steps: Path, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    child = trainers.start("train", eight_steps, "--out", out, faults=[["pause_before_step", 5, str(marker)]])
    wait_for(marker)
    resumed = trainers.train("train", eight_steps, "--out", out, "--resume")
    assert_one_sentence(resumed, str(out), f"is being written to by process {child.pid}")
    assert_one_sentence(trainers.train("train", eight_steps, "--out", out), str(out))
    marker.with_name("marker.go").touch()
    assert trainers.wait(child).code == 0
    assert_ends_alike(out, finished("train"))


# --- crops that only one process reads ---------------------------------------------------------------------


def test_a_crop_that_only_the_second_process_cannot_read_is_named_by_the_first(
    trainers: Trainers, eight_steps: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world, tmp_path / "world")
    train = load_crops(tmp_path / "world").train
    first, second = PosePairSampler(train, 4, 8, 0).batch(0, 0).reshape(2, -1)
    path = Path(train[next(position for position in second.tolist() if position not in first)].path)
    path.write_text("This is no picture.")
    options = ("--data.root", tmp_path / "world", "--safety.unreadable-share", 0.5)
    stop = [["kill_before_step", 2]]
    ended = trainers.train_two("train", eight_steps, "--out", tmp_path / "run", *options, faults=(stop, stop))
    assert [each.code for each in ended] == [-signal.SIGKILL] * 2
    assert [path.name in line for each in ended for line in each.lines() if "takes its place" in line] == [True]
    assert [path.name in r["warning"] for r in records(tmp_path / "run") if "warning" in r] == [True]


# --- damaged checkpoints -----------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    path = folder / "embedder.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "resume.pt", 1000)


def lose_a_file(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, lose_a_file])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_leads_to_the_same_end(
    damage: Callable[[Path], None],
    trainers: Trainers,
    eight_steps: Path,
    finished: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished("train"), out)
    damage(checkpoint_folders(out)[-1])
    ended = trainers.train("train", eight_steps, "--out", out, "--resume")
    assert ended.code == 0
    assert len(ended.lines()) == 1
    assert "damaged checkpoints, step-00000008" in ended.lines()[0]
    assert "step-00000006 is used instead" in ended.lines()[0]
    assert_ends_alike(out, finished("train"))


def test_the_comparison_would_notice_one_bit(finished: Callable[[str], Path], tmp_path: Path) -> None:
    older, newest = checkpoint_folders(finished("train"))
    shutil.copytree(newest, tmp_path / "copy")
    assert differences(newest, tmp_path / "copy") == []
    flip_a_byte(tmp_path / "copy")
    assert len(differences(newest, tmp_path / "copy")) == 1
    assert len(differences(newest, older)) > 100
    assert len(logged_steps(finished("train"))) == 8
    assert records(finished("train"))[0]["step"] == 0
