"""One reader per layout: folders and lists on disk -> crops, without opening an image."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from posereid.data.crops import SPLITS, Crop, Split
from posereid.errors import InputError
from posereid.files import MAX_TEXT_BYTES, read_limited
from posereid.messages import complaint, shown
from posereid.pose.names import IMAGE_SUFFIXES, NAME_EXAMPLES, NameStyle, parse_crop_name

MARKET_FOLDERS: dict[str, Split] = {
    "bounding_box_train": "train",
    "query": "query",
    "bounding_box_test": "gallery",
}
MSMT17_FOLDERS: tuple[tuple[str, str], ...] = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
"""Training and test folder of the first and of the second release."""

MSMT17_LISTS: dict[str, Split] = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
MSMT17_TEST_OFFSET = 10_000
"""Added to MSMT17's test identities, whose numbers mean other people than the same numbers in training."""

_LARGEST_LABEL = 10**9
DUKE_NOTE = (
    "DukeMTMC-reID was withdrawn by its authors in 2019 because the people in it had not consented; posereid "
    "reads a copy that you have and never downloads it."
)


@dataclass
class Reading:
    """What a reader found: crops, and what it could not use (paths relative to the root)."""

    crops: list[Crop] = field(default_factory=list)
    unparsed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def image_names(folder: Path) -> list[str]:
    """Names of the image files right in ``folder``, sorted; hidden files and others are left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
                and _is_file(entry)
            )
    except OSError as error:
        raise complaint(
            folder,
            f"a folder that cannot be read ({error.strerror})",
            "a readable one",
            "check its permissions",
        ) from error


# --- Market-1501, DukeMTMC-reID, CUHK03 ------------------------------------------------------------------------


def read_market_folders(root: Path, style: NameStyle | None) -> tuple[Reading, NameStyle]:
    """``bounding_box_train``, ``query`` and ``bounding_box_test``, as many of them as exist.

    Identity and camera are read from the file names; -1 is junk and 0 a distractor in Market-1501's.
    ``style`` None chooses the style that more of the names follow.
    """
    names = {folder: image_names(root / folder) for folder in MARKET_FOLDERS if (root / folder).is_dir()}
    if style is None:
        parsed = [parse_crop_name(name) for listed in names.values() for name in listed]
        found_styles = Counter(each.style for each in parsed if each)
        style = found_styles.most_common(1)[0][0] if found_styles else "market1501"
    reading = Reading()
    for folder, listed in names.items():
        for name in listed:
            found = parse_crop_name(name, style)
            if found is None:
                place = f"{folder}/{name}"
                # Names are shown to people: bytes that are no text, or line ends, would spoil that.
                reading.unparsed.append(place if place.isprintable() else shown(place, 120))
                continue
            path = root / folder / name
            reading.crops.append(Crop(path, name, found.identity, found.camera, MARKET_FOLDERS[folder]))
    if not reading.crops:
        example = f" such as {shown(reading.unparsed[0], 120)}" if reading.unparsed else ""
        raise complaint(
            root,
            f"{len(reading.unparsed)} images{example} and none with a name of the layout {style}",
            f"names like {NAME_EXAMPLES[style]} in {', '.join(MARKET_FOLDERS)}",
            "unpack the set completely, rename the crops, or list them in crops.csv",
        )
    if style == "dukemtmc":
        reading.notes.append(DUKE_NOTE)
    return reading, style


# --- MSMT17 ------------------------------------------------------------------------------------------------


def read_msmt17(root: Path) -> Reading:
    """``list_{train,val,query,gallery}.txt`` beside ``train`` and ``test`` (the second release: masked).

    Validation crops count as training. MSMT17 numbers people from 0, and its training and test numbers
    overlap: a training identity is its number + 1, a test identity its number + 1 +
    :data:`MSMT17_TEST_OFFSET`.
    """
    reading = Reading()
    complete = [pair for pair in MSMT17_FOLDERS if all((root / folder).is_dir() for folder in pair)]
    partial = [pair for pair in MSMT17_FOLDERS if any((root / folder).is_dir() for folder in pair)]
    lists = [name for name in MSMT17_LISTS if (root / name).is_file()]
    if not partial or not lists:
        raise complaint(
            root,
            "no MSMT17",
            f"{' or '.join('/ and '.join(pair) + '/' for pair in MSMT17_FOLDERS)} beside {', '.join(MSMT17_LISTS)}",
            "unpack the set completely",
        )
    train_folder, test_folder = (complete or partial)[0]
    if len(partial) > 1:
        reading.notes.append(f"Both releases of MSMT17 are here; {train_folder} and {test_folder} are read.")
    disk = _Disk()
    seen: set[str] = set()
    repeated = 0
    for list_name in lists:
        split = MSMT17_LISTS[list_name]
        folder = train_folder if split == "train" else test_folder
        for relative, number in _msmt17_lines(root / list_name):
            place = f"{folder}/{relative}"
            camera = re.fullmatch(r"[^_]+_[^_]+_([0-9]{2})_.+", PurePosixPath(relative).name)
            key = f"{split} {place}"
            if key in seen:  # some copies list the validation crops under training as well
                repeated += 1
            elif camera is None or int(camera[1]) == 0:
                reading.unparsed.append(place)
            elif not disk.has(root / folder / relative):
                reading.missing.append(place)
            else:
                identity = number + 1 + (0 if split == "train" else MSMT17_TEST_OFFSET)
                path = root / folder / relative
                reading.crops.append(Crop(path, path.name, identity, int(camera[1]), split))
            seen.add(key)
    if repeated:
        reading.notes.append(f"{repeated} crops are listed twice and counted once.")
    return reading


def _msmt17_lines(path: Path) -> Iterable[tuple[str, int]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        relative, identity, *_ = *line.rsplit(None, 1), ""
        if not re.fullmatch("[0-9]{1,4}", identity):
            raise complaint(
                f"{path}, line {number}",
                shown(line.strip(), 80),
                f"a path and an identity from 0 to {MSMT17_TEST_OFFSET - 1}",
                "correct or delete the line",
            )
        yield checked_relative(relative.strip(), f"{path}, line {number}"), int(identity)


# --- own data ----------------------------------------------------------------------------------------------


def read_own_csv(path: Path) -> Reading:
    """A CSV file ``path,identity,camera[,split]``, paths relative to its folder; other columns are ignored.

    Without a ``split`` column every crop is for training. Identities and cameras that are all whole numbers
    from 1 are kept; anything else (names, a 0 or -1, which mean nobody here) is numbered from 1 in sorted
    order, and the numbering stands in the notes.
    """
    rows = read_rows(path, ("path", "identity", "camera"))
    reading = Reading()
    folder = path.parent
    disk = _Disk(within=folder.resolve())
    identities = _numbered([row["identity"] for _, row in rows], "Identities", reading.notes)
    cameras = _numbered([row["camera"] for _, row in rows], "Cameras", reading.notes)
    line_of: dict[str, int] = {}
    for line, row in rows:
        place = f"{path}, line {line}"
        relative = checked_relative(row["path"], place)
        split = row.get("split", "train")
        if split not in SPLITS:
            raise complaint(place, f"the split {shown(split)}", " or ".join(SPLITS), "correct the line")
        for column in ("identity", "camera"):
            if not row[column]:
                raise complaint(place, f"no {column}", "a number or a name", "correct or delete the line")
        if relative in line_of:
            raise complaint(
                place,
                f"the path {shown(relative, 80)} again after line {line_of[relative]}",
                "each path once",
                "delete one of the two lines",
            )
        line_of[relative] = line
        where = folder / relative
        if disk.escapes(where):
            raise complaint(
                place,
                f"the path {shown(relative, 80)}, a link to somewhere else",
                f"files inside {folder}",
                "copy the file there",
            )
        if not disk.has(where):
            reading.missing.append(relative)
            continue
        reading.crops.append(Crop(where, where.name, identities[row["identity"]], cameras[row["camera"]], split))
    return reading


def _numbered(labels: Sequence[str], what: str, notes: list[str]) -> dict[str, int]:
    """A number from 1 for every label."""
    distinct = set(labels)
    kept = {label: int(label) for label in distinct if re.fullmatch("[0-9]{1,10}", label)}
    if len(kept) == len(distinct) == len(set(kept.values())) and all(
        1 <= number <= _LARGEST_LABEL for number in kept.values()
    ):
        return kept
    # Whole numbers first and by value, then names, so that the numbering does not depend on the rows' order.
    ordered = sorted(distinct, key=lambda label: (label not in kept, kept.get(label, 0), label))
    numbers = {label: number for number, label in enumerate(ordered, 1)}
    told = ", ".join(f"{shown(label)} is {number}" for label, number in list(numbers.items())[:20])
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    notes.append(f"{what} are numbered from 1 in sorted order: {told}{more}.")
    return numbers


# --- shared ------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A UTF-8 text file of at most :data:`MAX_TEXT_BYTES`; anything else raises InputError."""
    try:
        return read_limited(path, MAX_TEXT_BYTES).decode("utf-8-sig")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not UTF-8"
        raise complaint(
            path, f"a file that cannot be read ({reason})", "a UTF-8 text file", "check its path and encoding"
        ) from error


def read_rows(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a comma-separated file with their line numbers; every row has as many fields as the header."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    try:
        for fields in reader:
            values = [value.strip() for value in fields]
            if not any(values):
                continue
            if not header:
                header = values
                absent = [name for name in required if name not in header]
                if absent or len(set(header)) < len(header):
                    raise complaint(
                        f"{path}, line {reader.line_num}",
                        f"the header {shown(','.join(header), 80)}",
                        f"the columns {', '.join(required)}, each once",
                        "correct the header",
                    )
            elif len(values) != len(header):
                raise complaint(
                    f"{path}, line {reader.line_num}",
                    f"{len(values)} fields",
                    f"{len(header)} as in the header",
                    "correct the line",
                )
            else:
                rows.append((reader.line_num, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise complaint(
            f"{path}, line {reader.line_num}", f"text that is not CSV ({error})", "CSV", "correct the line"
        ) from error
    if not rows:
        raise complaint(path, "no rows", f"a header {','.join(required)} and rows", "write the file again")
    return rows


def checked_relative(text: str, place: str) -> str:
    """``text`` as a relative path that stays inside its folder."""
    path = PurePosixPath(text.replace("\\", "/"))
    drive = re.match("[A-Za-z]:", text)
    if not text or path.is_absolute() or drive or ".." in path.parts or not path.name or not text.isprintable():
        raise complaint(
            place,
            f"the path {shown(text, 80)}",
            "a path inside the folder, without '..' and relative to it",
            "correct the line or move the file into the folder",
        )
    return str(path)


class _Disk:
    """Which files exist, asked of each folder once: a look-up per file is slow on network disks."""

    def __init__(self, within: Path | None = None) -> None:
        self._within = within
        self._files: dict[Path, set[str]] = {}
        self._links: dict[Path, set[str]] = {}
        self._outside: dict[Path, bool] = {}

    def _list(self, folder: Path) -> None:
        self._files[folder], self._links[folder] = set(), set()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_file(entry):
                        self._files[folder].add(entry.name)
                    if entry.is_symlink():
                        self._links[folder].add(entry.name)
        except OSError:
            pass  # a folder that is not there holds no files

    def has(self, path: Path) -> bool:
        if path.parent not in self._files:
            self._list(path.parent)
        return path.name in self._files[path.parent]

    def escapes(self, path: Path) -> bool:
        """Whether links lead from ``path`` out of the folder given at the start."""
        assert self._within is not None
        folder = path.parent
        if folder not in self._outside:
            self._outside[folder] = not _resolved(folder).is_relative_to(self._within)
            self._list(folder)
        return self._outside[folder] or (
            path.name in self._links[folder] and not _resolved(path).is_relative_to(self._within)
        )


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle lead to no file, and so nowhere outside
        return path
