import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning_fabric import Fabric

from posereid.training.log import RunLog


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_records_are_written_as_they_come_with_their_rate(tmp_path: Path, fabric: Fabric) -> None:
    log = RunLog(tmp_path, "joint", 4, 0, fabric, show=False)
    log.write(0, {"seed": 3})
    log.write(2, {"loss_identity": 1.5}, images_per_step=8)
    assert records(tmp_path)[0] == {"step": 0, "stage": "joint", "seed": 3}
    second = records(tmp_path)[1]
    assert (second["step"], second["loss_identity"]) == (2, 1.5)
    assert second["images_per_second"] > 0
    log.close()


def test_a_resumed_log_drops_the_steps_that_are_run_again(tmp_path: Path, fabric: Fabric) -> None:
    log = RunLog(tmp_path, "joint", 4, 0, fabric, show=False)
    for step in range(4):
        log.write(step, {"loss_identity": 1.0})
    log.close()
    log = RunLog(tmp_path, "joint", 4, 2, fabric, show=False)
    log.write(3, {"loss_identity": 2.0})
    log.close()
    assert [(record["step"], record["loss_identity"]) for record in records(tmp_path)] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


@pytest.mark.parametrize(
    "rest", [b'{"step": 2, "sta', b"[]", b'{"stage": "joint"}', b'{"step": "two"}', b"\0\0\xff\xfe"]
)
def test_a_line_that_a_killed_run_left_broken_does_not_stop_the_next(
    tmp_path: Path, fabric: Fabric, rest: bytes
) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "stage": "joint"}\n' + rest)
    log = RunLog(tmp_path, "joint", 4, 1, fabric, show=False)
    log.write(2, {})
    log.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_the_share_of_time_spent_waiting_for_batches_is_counted_anew_for_each_record(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def loader() -> Iterator[int]:
        for wait in (3.0, 1.0, 0.0):
            now[0] += wait
            yield len(str(wait))

    log = RunLog(tmp_path, "joint", 3, 0, fabric, show=False)
    for step, _ in enumerate(log.batches(loader()), 1):
        now[0] += 1.0  # the step itself
        log.write(step, {}, images_per_step=8)
    log.close()
    assert [record["data_share"] for record in records(tmp_path)] == [0.75, 0.5, 0.0]
    assert [record["images_per_second"] for record in records(tmp_path)] == [2.0, 4.0, 8.0]


def test_every_batch_of_the_loader_comes_once_and_in_order(tmp_path: Path, fabric: Fabric) -> None:
    log = RunLog(tmp_path, "joint", 3, 0, fabric, show=False)
    assert list(log.batches([0, 1, 2])) == [0, 1, 2]
    log.close()


def test_a_warning_is_said_at_once_and_written_down(
    tmp_path: Path, fabric: Fabric, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, "joint", 3, 0, fabric, show=False)
    log.warn(2, "something is amiss")
    log.close()
    assert capsys.readouterr().err == "posereid: step 2: something is amiss\n"
    assert records(tmp_path) == [{"step": 2, "stage": "joint", "warning": "something is amiss"}]


def test_only_the_first_process_writes(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Fabric, "is_global_zero", False)
    log = RunLog(tmp_path, "joint", 3, 0, fabric, show=True)
    log.write(1, {"loss_identity": 1.0}, images_per_step=8)
    log.warn(2, "something is amiss")
    log.step()
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
