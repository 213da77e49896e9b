from pathlib import Path

import pytest

from posereid.errors import InputError
from posereid.training.run_file import RUN_FILE, RunOrigin, read_run_file, write_run_file

JOINT = RunOrigin(stage="joint", training_set="a")
TUNED = RunOrigin(stage="reid", training_set="b", started_from=JOINT)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    begun = RunOrigin(stage="reid", training_set="c", started_from=TUNED)
    write_run_file(tmp_path, begun)
    assert read_run_file(tmp_path) == begun
    assert list(begun.starts()) == [TUNED, JOINT]
    assert list(JOINT.starts()) == []


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert read_run_file(tmp_path) is None


def test_a_run_of_an_older_version_was_not_started_from_another(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text('{"stage": "joint", "training_set": "a"}')
    assert read_run_file(tmp_path) == JOINT


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"stage": 1, "training_set": "a"}',
        b'{"stage": "joint", "training_set": null}',
        b'{"stage": "a\\nb", "training_set": "a"}',
        b'{"stage": "joint", "training_set": "a", "started_from": []}',
        b'{"stage": "joint", "training_set": "a", "started_from": {"stage": "joint"}}',
        b'{"stage": "joint", "training_set": "a", "started_from": ' * 300 + b"null" + b"}" * 300,
        b"[" * 60_000,
        b" " * 70_000,
    ],
)
def test_a_hostile_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json cannot be used") as refused:
        read_run_file(tmp_path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))
