import errno
import os
import re
import stat
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from posereid import files
from posereid.errors import InputError
from posereid.files import atomic_folder, is_free, partial_path, require_free, write_atomically


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


def test_the_lock_of_a_run_does_not_count_as_a_file_in_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".lock-holder.json").touch()
    require_free(tmp_path, "a run")
    (tmp_path / ".lock-other").touch()
    with pytest.raises(InputError, match="already holds files"):
        require_free(tmp_path, "a run")


def test_a_locked_folder_does_not_give_way_to_a_new_one(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with pytest.raises(InputError, match="already holds files"), atomic_folder(tmp_path, "a set"):
        pytest.fail("the block ran")
    assert (tmp_path / ".lock").exists()


# --- replacing a folder ------------------------------------------------------------------------------------


def filled(folder: Path, content: str) -> Path:
    with atomic_folder(folder, "a set", replace=True) as partial:
        (partial / "file").write_text(content)
    return folder / "file"


def test_the_old_folder_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    file = filled(tmp_path / "set", "old")
    with atomic_folder(tmp_path / "set", "a set", replace=True) as partial:
        (partial / "file").write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = filled(tmp_path / "set", "old")
    replace = Path.replace

    def fails(self: Path, target: Path):
        if "partial" in self.name:
            raise OSError("device is gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="device is gone"):
        filled(tmp_path / "set", "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_what_killed_processes_left_goes_and_what_another_may_still_fill_stays(tmp_path: Path) -> None:
    own = partial_path(tmp_path / "set").name
    place, pid = own.rpartition(f"-{os.getpid()}-")[0], os.getpid()
    ended = subprocess.Popen(["true"])
    ended.wait()
    hour = time.time() - 4000
    gone = [f"{place}-{ended.pid}-0000abcd", ".set.partial-1", ".set.partial-elsewhere.7-1-0000abcd", ".set.replaced"]
    kept = [own, ".set.partial-elsewhere.7-1-0000abce", f".set.partial-{pid}", ".setting.partial-1"]
    for name in gone + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "other").touch()
        if name in gone[1:3]:
            os.utime(tmp_path / name / "other", (hour, hour))
            os.utime(tmp_path / name, (hour, hour))
    # Only what is inside was written a moment ago.
    os.utime(tmp_path / kept[1], (hour, hour))
    filled(tmp_path / "set", "old")
    filled(tmp_path / "set", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"set", *kept}
    assert is_free(tmp_path, "set", ".setting.partial-1")


def test_machines_and_containers_never_fill_the_same_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {partial_path(tmp_path / "results.json").name for _ in range(50)}
    assert len(names) == 50
    files._place.cache_clear()
    monkeypatch.setattr("socket.gethostname", lambda: "höst-1.example " * 20)
    other = partial_path(tmp_path / "results.json")
    files._place.cache_clear()
    other.write_text("{")
    assert re.fullmatch(r"\.results\.json\.partial-[A-Za-z0-9_.]+-\d+-[0-9a-f]{8}", other.name)
    assert is_free(tmp_path)


# --- power cuts --------------------------------------------------------------------------------------------


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is put on the disk and what is renamed, in order, by name."""
    seen: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def watched_replace(self: Path, target: Path):
        seen.append(f"rename {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is synced")
def test_a_file_is_on_the_disk_before_it_is_renamed_and_its_name_after(tmp_path: Path, events: list[str]) -> None:
    write_atomically(tmp_path / "file", "content")
    partial = events[0].removeprefix("sync ")
    assert partial.startswith(".file.partial-")
    assert events == [f"sync {partial}", f"rename {partial} file", f"sync {tmp_path.name}"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is synced")
def test_all_of_a_folder_is_on_the_disk_before_it_is_renamed_and_its_name_after(
    tmp_path: Path, events: list[str]
) -> None:
    with atomic_folder(tmp_path / "set", "a set") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "deep").write_text("a")
        (partial / "file").write_text("b")
        (partial / "link").symlink_to("file")
    assert sorted(events[:4]) == sorted([f"sync {partial.name}", "sync file", "sync inner", "sync deep"])
    assert events[4:] == [f"rename {partial.name} set", f"sync {tmp_path.name}"]


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_drive_that_cannot_sync_folders_is_used_and_one_that_fails_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    sync = os.fsync

    def folders_fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", folders_fail)
    with nullcontext() if passes else pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "file", "content")
    assert (tmp_path / "file").read_text() == "content"
