from pathlib import Path

import pytest

from posereid.errors import InputError
from posereid.files import atomic_folder, require_free, write_atomically


class InterruptionError(Exception):
    pass


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "expected"), [("Grüße\n", "Grüße\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_is_written_as_utf8_and_bytes_as_they_are(tmp_path: Path, content, expected: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, content)
    assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a much longer text than the new one")
    write_atomically(path, "short")
    assert path.read_text() == "short"


@pytest.mark.parametrize("method", ["replace", "open"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, method, fails)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_does_not_change_before_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path):
        seen.append((self.read_text(), target.read_text()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_atomically(path, "new")
    assert seen == [("new", "old")]


# --- folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_takes_its_place_when_the_block_ends(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "deep" / "set"
    if exists:
        folder.mkdir(parents=True)
    with atomic_folder(folder, "a set") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("content")
        assert not (folder / "inner").exists()
    assert (folder / "inner" / "file").read_text() == "content"
    assert list(folder.parent.iterdir()) == [folder]


def fill_and_fail(folder: Path) -> None:
    with atomic_folder(folder, "a set") as partial:
        (partial / "file").write_text("half")
        raise InterruptionError


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_inside_the_block_leaves_nothing_behind(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "set"
    if exists:
        folder.mkdir()
    with pytest.raises(InterruptionError):
        fill_and_fail(folder)
    assert folder.exists() == exists
    assert [path for path in tmp_path.rglob("*") if path != folder] == []


def test_the_folder_can_be_written_after_a_failed_attempt(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with pytest.raises(InterruptionError):
        fill_and_fail(folder)
    with atomic_folder(folder, "a set") as partial:
        (partial / "file").write_text("whole")
    assert (folder / "file").read_text() == "whole"


def test_a_folder_that_holds_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "set" / "precious"
    kept.parent.mkdir()
    kept.write_text("mine")
    with (
        pytest.raises(InputError, match=r"set already holds files; a generated set is only written"),
        atomic_folder(kept.parent, "a generated set"),
    ):
        pytest.fail("the block ran")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.write_text("a file")
    with pytest.raises(InputError, match="already holds files"):
        require_free(path, "a run")


def test_an_absent_or_empty_folder_is_free(tmp_path: Path) -> None:
    require_free(tmp_path / "absent", "a run")
    require_free(tmp_path, "a run")
    assert not (tmp_path / "absent").exists()
