"""One reader per layout: folders and lists on disk -> crops, without opening an image."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from posereid.data.crops import DISTRACTOR, JUNK, SPLITS, Crop, Split
from posereid.errors import InputError
from posereid.files import MAX_TEXT_BYTES, read_limited
from posereid.messages import complaint, shown
from posereid.pose.names import IMAGE_SUFFIXES, NAME_EXAMPLES, NameStyle, composed, looks_like_crop, parse_crop_name

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
_MARKERS = {str(marker): marker for marker in (JUNK, DISTRACTOR)}
WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(?:\.0+)?", re.ASCII)
"""A label that is a number, whose group is the number; 64 bits hold it."""

NUMBERED = "are numbered from 1 in sorted order"
_NOTHING = frozenset({"", "nan", "none", "null", "<na>", "n/a", "#n/a", "nat"})
"""What programs write, in any case, for a field of a table that is empty."""

DUKE_NOTE = (
    "DukeMTMC-reID was withdrawn by its authors in 2019 because the people in it had not consented; posereid "
    "reads a copy that you have and never downloads it."
)


@dataclass
class Reading:
    """What a reader found: crops, and what it could not use (paths relative to the root).

    ``identity_names`` and ``camera_names`` are what the list says in place of the crops' numbers, where it says
    otherwise.
    """

    crops: list[Crop] = field(default_factory=list)
    unparsed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    identity_names: dict[int, str] = field(default_factory=dict)
    camera_names: dict[int, str] = field(default_factory=dict)

    def leave_out(self, places: Iterable[str]) -> None:
        """Count files or folders as unparsed."""
        # Names are shown to people: bytes that are no text, or line ends, would spoil that.
        self.unparsed.extend(place if place.isprintable() else shown(place, 120) for place in places)


# --- Market-1501, DukeMTMC-reID, CUHK03 ------------------------------------------------------------------------


def read_market_folders(root: Path, style: NameStyle | None) -> tuple[Reading, NameStyle]:
    """``bounding_box_train``, ``query`` and ``bounding_box_test``, as many of them as exist.

    Identity and camera are read from the file names; -1 is junk and 0 a distractor in Market-1501's.
    ``style`` None chooses the style that more of the names follow.
    """
    disk = Disk(root)
    names = {folder: disk.images(root / folder) for folder in MARKET_FOLDERS if (root / folder).is_dir()}
    if style is None:
        parsed = [parse_crop_name(name) for listed, _ in names.values() for name in listed]
        found_styles = Counter(each.style for each in parsed if each)
        style = found_styles.most_common(1)[0][0] if found_styles else "market1501"
    reading = Reading()
    for folder, (listed, passed_over) in names.items():
        for name in listed:
            found = parse_crop_name(name, style)
            if found is None:
                reading.leave_out([f"{folder}/{name}"])
                continue
            path = root / folder / name
            reading.crops.append(Crop(path, name, found.identity, found.camera, MARKET_FOLDERS[folder]))
        reading.leave_out(f"{folder}/{name}" for name in passed_over)
    if not reading.crops:
        example = f" such as {shown(reading.unparsed[0], 120)}" if reading.unparsed else ""
        raise complaint(
            root,
            f"{len(reading.unparsed)} images{example} and none with a name and ending of the layout {style}",
            f"names like {NAME_EXAMPLES[style]} in {', '.join(MARKET_FOLDERS)}",
            "unpack the set completely, rename the crops, or list them in crops.csv",
        )
    reading.leave_out(f"{folder}/ (no crop)" for folder, listings in names.items() if not any(listings))
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
    disk = Disk(root)
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
            elif (path := disk.find(place)) is None:
                reading.missing.append(place)
            else:
                identity = number + 1 + (0 if split == "train" else MSMT17_TEST_OFFSET)
                reading.crops.append(Crop(path, path.name, identity, int(camera[1]), split))
            seen.add(key)
    filled = {key.partition(" ")[0] for key in seen}
    reading.leave_out(f"{name} (no crop)" for name in lists if MSMT17_LISTS[name] not in filled)
    if repeated:
        reading.notes.append(f"{repeated} crops are listed twice and counted once.")
    reading.notes.extend(disk.unlisted(reading.crops, "the lists"))
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

    Without a ``split`` column every crop is for training. Identity -1 is junk and 0 a distractor, as everywhere, and
    the notes count them. Other identities, and cameras, that are all whole numbers from 1 are kept; anything else
    (names, a camera 0) is numbered from 1 in sorted order, and the numbering stands in the notes. Raises InputError
    with file and line for what says nothing, such as the nan or None of a table's empty field.
    """
    rows = read_rows(path, ("path", "identity", "camera"))
    reading = Reading()
    disk = Disk(path.parent)
    labels = {
        column: [_label(row[column], column, f"{path}, line {line}") for line, row in rows]
        for column in ("identity", "camera")
    }
    identities, reading.identity_names = _numbered(labels["identity"], "Identities", _MARKERS, reading.notes)
    cameras, reading.camera_names = _numbered(labels["camera"], "Cameras", {}, reading.notes)
    reading.notes.extend(_marker_notes(labels["identity"], path.name))
    line_of: dict[Path | str, int] = {}
    for (line, row), identity, camera in zip(rows, labels["identity"], labels["camera"], strict=True):
        place = f"{path}, line {line}"
        relative = checked_relative(row["path"], place)
        split = row.get("split", "train")
        if split not in SPLITS:
            raise complaint(place, f"the split {shown(split)}", " or ".join(SPLITS), "correct the line")
        where = disk.find(relative, place)
        if (where or relative) in line_of:
            raise complaint(
                place,
                f"the path {shown(relative, 80)} again after line {line_of[where or relative]}",
                "each path once",
                "delete one of the two lines",
            )
        line_of[where or relative] = line
        if where is None:
            reading.missing.append(relative)
            continue
        reading.crops.append(Crop(where, where.name, identities[identity], cameras[camera], split))
    reading.notes.extend(disk.unlisted(reading.crops, path.name))
    return reading


def _label(text: str, column: str, place: str) -> str:
    """An identity or camera as it is compared: 007 and 7.0, which pandas makes of 7 beside gaps, are 7."""
    if text.lower() in _NOTHING or text == "NA":
        raise complaint(
            place,
            f"the {column} {shown(text)}, an empty field" if text else f"no {column}",
            "a number or a name",
            "correct or delete the line",
        )
    whole = WHOLE_NUMBER.fullmatch(text)
    return str(int(whole[1])) if whole else composed(text)


def _numbered(
    labels: Sequence[str], what: str, markers: dict[str, int], notes: list[str]
) -> tuple[dict[str, int], dict[int, str]]:
    """A number from 1 for every label but ``markers``, which have theirs; and the label of each that was changed."""
    distinct = set(labels) - set(markers)
    kept = {label: int(label) for label in distinct if WHOLE_NUMBER.fullmatch(label)}
    if len(kept) == len(distinct) and all(1 <= number <= _LARGEST_LABEL for number in kept.values()):
        return kept | markers, {}
    # Whole numbers first and by value, then names, so that the numbering does not depend on the rows' order.
    ordered = sorted(distinct, key=lambda label: (label not in kept, kept.get(label, 0), label))
    numbers = {label: number for number, label in enumerate(ordered, 1)}
    told = ", ".join(f"{shown(label)} is {number}" for label, number in list(numbers.items())[:20])
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    notes.append(f"{what} {NUMBERED}: {told}{more}.")
    return numbers | markers, dict(enumerate(ordered, 1))


def _marker_notes(labels: Sequence[str], name: str) -> Iterator[str]:
    counts = Counter(labels)
    if junk := counts[str(JUNK)]:
        yield f"{junk} crops of identity -1 are junk: nobody is trained on them, and search leaves them out."
    if distractors := counts[str(DISTRACTOR)]:
        yield (
            f"{distractors} crops of identity 0 are distractors: nobody's, and not trained on; if 0 is a "
            f"person in {name}, number people from 1."
        )


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


@dataclass
class _Folder:
    """Entries of one folder; ``links`` are also among the others, unless they lead nowhere."""

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    outside: bool = False
    error: OSError | None = None

    @cached_property
    def spellings(self) -> dict[str, str]:
        """Names beyond ASCII by their composed form."""
        return {composed(name): name for name in (*self.files, *self.folders) if not name.isascii()}


class Disk:
    """What the folders of a set hold, each asked once: a look-up per file is slow on network disks.

    No picture, mask or shard of a set lies outside its root, whatever the layout: a link that leads out of ``root`` is
    refused (InputError), be it a file or a folder on the way to it. The root itself may be a link, and links inside it
    are followed.
    """

    def __init__(self, root: Path) -> None:
        self.root, self._within = root, _resolved(root)
        self._folders: dict[Path, _Folder] = {}

    def images(self, folder: Path) -> tuple[list[str], list[str]]:
        """Names of the image files right in ``folder``, and what looks like some and is passed over; both sorted.

        The second are files with other endings, links that lead nowhere, and pictures in subfolders, as paths from
        ``folder``. Hidden files are in neither.
        """
        listing = self._list(folder)
        if listing.error is not None:
            raise complaint(
                folder,
                f"a folder that cannot be read ({listing.error.strerror})",
                "a readable one",
                "check its permissions",
            ) from listing.error
        names = [name for name in listing.files if _is_image(name)]
        for name in names:
            self.require_inside(folder / name)
        passed_over = [name for name in listing.files if _is_passed_over(name)]
        passed_over += [name for name in listing.links - listing.files if _is_image(name)]
        for child in listing.folders:
            for place, _, files in os.walk(folder / child):
                below = Path(place).relative_to(folder)
                if not any(part[0] == "." for part in below.parts):
                    passed_over += [f"{below.as_posix()}/{n}" for n in files if _is_image(n) or _is_passed_over(n)]
        return sorted(names), sorted(set(passed_over))

    def find(self, relative: str, place: str | None = None) -> Path | None:
        """The file of that path in the root; its names may be in another Unicode form on the disk.

        ``place`` is the line that names it, for the message on a link.
        """
        path = self.root / relative
        if not relative.isascii():
            path = self.root
            for part in PurePosixPath(relative).parts:
                listing = self._list(path)
                exact = part in listing.files or part in listing.folders
                path /= part if exact else listing.spellings.get(composed(part), part)
        self.require_inside(path, place)
        return path if path.name in self._list(path.parent).files else None

    def require_inside(self, path: Path, place: str | None = None) -> None:
        """Raise InputError where links lead from ``path`` out of the root."""
        listing = self._list(path.parent)
        if listing.outside or (path.name in listing.links and not _resolved(path).is_relative_to(self._within)):
            name = shown(path.relative_to(self.root).as_posix(), 80)
            raise complaint(
                place or path,
                f"the path {name}, a link to somewhere else" if place else "a link to somewhere else",
                f"files inside {self.root}",
                "copy there what it leads to, or give the folder that holds it",
            )

    def unlisted(self, crops: Iterable[Crop], lists: str) -> Iterator[str]:
        """A note on pictures in the folders that were looked at which are none of ``crops``."""
        used = {crop.path for crop in crops}
        others = sorted(
            path
            for folder, listing in self._folders.items()
            for name in listing.files
            if (_is_image(name) or _is_passed_over(name)) and (path := folder / name) not in used
        )
        if others:
            example = shown(others[0].relative_to(self.root).as_posix(), 80)
            yield f"{len(others)} pictures beside those that are listed are not in {lists}, for example {example}."

    def _list(self, folder: Path) -> _Folder:
        if folder in self._folders:
            return self._folders[folder]
        listing = self._folders[folder] = _Folder(outside=not _resolved(folder).is_relative_to(self._within))
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_file(entry):
                        listing.files.add(entry.name)
                    elif _is_folder(entry):
                        listing.folders.add(entry.name)
                    if entry.is_symlink():
                        listing.links.add(entry.name)
        except OSError as error:
            listing.error = error  # a folder that is not there holds no files
        return listing


def _is_image(name: str) -> bool:
    return name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _is_passed_over(name: str) -> bool:
    return name[0] != "." and not _is_image(name) and looks_like_crop(name)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle lead to no file, and so nowhere outside
        return path
