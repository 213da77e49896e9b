"""Keypoint files: reading and writing them, and the pose pairs they give."""

import json
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from posereid.errors import InputError
from posereid.files import MAX_TEXT_BYTES, atomic_folder, read_limited, write_atomically
from posereid.messages import complaint, shown
from posereid.pose.formats import (
    CSV_HEADER,
    coco_document,
    csv_text,
    load_json,
    name_problem,
    openpose_document,
    parse_coco,
    parse_csv,
    parse_openpose,
)
from posereid.pose.joints import Joints
from posereid.pose.names import NAME_EXAMPLES, parse_crop_name

KeypointFormat = Literal["csv", "openpose", "coco"]


class KeypointTable(Mapping[str, Joints]):
    """The joints of many crops by crop name, in the file's order; neither table nor arrays can be changed.

    ``path`` is the file or folder that was read. ``notes`` are sentences on what the reader had to decide,
    such as which of several people it took; ``unparsed`` are names in the folder that look like OpenPose's files and
    are not read. Tables from OpenPose files have names without the image's ending,
    because OpenPose drops it.
    """

    def __init__(
        self,
        path: Path,
        joints: Mapping[str, Joints],
        notes: tuple[str, ...] = (),
        unparsed: tuple[str, ...] = (),
    ) -> None:
        self._path = path
        self._joints = MappingProxyType(dict(joints))
        self._notes = notes
        self.unparsed = unparsed

    @property
    def path(self) -> Path:
        """The file or folder that the table was read from."""
        return self._path

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader had to decide, one sentence each."""
        return self._notes

    def __getitem__(self, name: str) -> Joints:
        return self._joints[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._joints)

    def __len__(self) -> int:
        return len(self._joints)

    def __repr__(self) -> str:
        return f"KeypointTable({str(self._path)!r}, {len(self)} crops)"


def read_keypoints(path: str | Path) -> KeypointTable:
    """Read the joints of many crops from a file or a folder; the format is told by the content.

    - The field's CSV: header ``name:keypoints_y:keypoints_x``, one crop per line, two JSON lists of 18
      numbers, y first, -1 where a joint is absent.
    - OpenPose JSON of 18 or 25 joints: a file, or a folder of files, one per crop; the crop's name is the
      file's without ``_keypoints.json``.
    - COCO JSON of 17 joints; the neck is the mean of the shoulders.

    A joint is absent where either coordinate is negative or the file says that it was not seen. Coordinates
    are pixels of the crop.

    Raises InputError for anything that cannot be read, with the file, the line and the remedy.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_openpose_folder(path)
        text = _read_text(path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise complaint(
            f"Keypoints {shown(str(path), 200)}",
            f"no readable file ({reason})",
            "a CSV or JSON file or a folder of OpenPose files",
            "check the path",
        ) from error
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        return _read_json(path, text)
    return KeypointTable(path, parse_csv(text, str(path)))


def _read_text(path: Path) -> str:
    data = read_limited(path, MAX_TEXT_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise complaint(
            f"{path}, line {line}",
            "bytes that are not UTF-8 text",
            "a UTF-8 CSV or JSON file",
            "save the file as UTF-8",
        ) from error
    if not text.strip():
        raise complaint(path, "an empty file", f"{CSV_HEADER!r} and one line per crop, or JSON", "write the file again")
    return text


def _read_json(path: Path, text: str) -> KeypointTable:
    document = load_json(text, str(path))
    keys = set(document) if isinstance(document, dict) else set()
    if "people" in keys:
        name = _openpose_name(path)
        joints, people = parse_openpose(document, str(path))
        return KeypointTable(path, {name: joints}, _people_notes([name] if people > 1 else []))
    if {"images", "annotations"} <= keys:
        table, crowded = parse_coco(document, str(path))
        return KeypointTable(path, table, _people_notes(crowded))
    raise complaint(
        path,
        f"{shown(document)} without 'people' or 'images' and 'annotations'",
        "OpenPose or COCO keypoints",
        "give a file that one of the two wrote",
    )


def _read_openpose_folder(folder: Path) -> KeypointTable:
    visible = sorted((file for file in folder.iterdir() if file.name[0] != "."), key=lambda file: file.name)
    files = [file for file in visible if file.suffix.lower() == ".json" and not file.is_dir()]
    # OpenPose can write YAML and XML too; and pictures that it draws have other names.
    unparsed = tuple(
        file.name
        for file in visible
        if file not in files
        and (file.stem.endswith("_keypoints") or (file.is_dir() and any(file.glob("*.[jJ][sS][oO][nN]"))))
    )
    if not files:
        raise complaint(
            folder,
            f"a folder without .json files{f', which holds {shown(unparsed[0], 80)}' if unparsed else ''}",
            "one OpenPose file per crop",
            "give the folder that OpenPose wrote, or the keypoint file itself",
        )
    table: dict[str, Joints] = {}
    file_of: dict[str, str] = {}
    crowded: list[str] = []
    for file in files:
        name = _openpose_name(file)
        document = load_json(_read_text(file), str(file))
        if not isinstance(document, dict) or "people" not in document:
            raise complaint(
                file,
                f"{shown(document)} without 'people'",
                "an OpenPose file like the others of the folder",
                "move it elsewhere",
            )
        if name in table:
            raise complaint(
                file,
                f"the name {shown(name, 80)} again after {file_of[name]}",
                "one file per crop",
                "delete one of the two files",
            )
        table[name], people = parse_openpose(document, str(file))
        file_of[name] = file.name
        if people > 1:
            crowded.append(name)
    return KeypointTable(folder, table, _people_notes(crowded), unparsed)


def _openpose_name(path: Path) -> str:
    name = path.stem.removesuffix("_keypoints")
    if problem := name_problem(name):
        raise complaint(path.parent, f"{problem} of an OpenPose file", "a crop's name", "rename the file")
    return name


def _people_notes(crowded: list[str]) -> tuple[str, ...]:
    if not crowded:
        return ()
    return (
        f"{len(crowded)} images hold more than one person, of whom the surest was taken, for example "
        f"{shown(crowded[0], 80)}.",
    )


def write_keypoints(table: Mapping[str, Joints], path: str | Path, format: KeypointFormat = "csv") -> None:
    """Write joints by crop name to ``path``, all or nothing: an interrupted call leaves the old state.

    What each format loses on the way back:

    - ``"csv"`` rounds to whole pixels, and a joint left of or above the crop becomes absent;
    - ``"openpose"`` writes a folder with one file per crop and drops the ending of the crop's name;
    - ``"coco"`` has no neck: the reader puts it between the shoulders where both are present.

    Raises InputError for a name that the format cannot hold, a folder that is not empty, a place that cannot
    be written.
    """
    path = Path(path)
    for name, joints in table.items():
        if problem := name_problem(name):
            raise complaint(
                path, f"{problem} among the crops to write", "file names without folders", "rename the crop"
            )
        if not (abs(joints.xy[joints.present]) < float("inf")).all():
            raise complaint(
                path,
                f"a joint of {shown(name, 80)} that is not a finite number",
                "pixels",
                "mark the joint as absent",
            )
    try:
        if format == "openpose":
            _write_openpose_folder(table, path)
        elif format == "coco":
            write_atomically(path, json.dumps(coco_document(table)))
        elif format == "csv":
            write_atomically(path, csv_text(table))
        else:
            raise complaint("format", f"{format!r}", "csv, openpose or coco", "choose one of these")
    except OSError as error:
        raise complaint(
            path,
            f"that it cannot be written ({error.strerror or error})",
            "a place to write to",
            "choose another path",
        ) from error


def _write_openpose_folder(table: Mapping[str, Joints], folder: Path) -> None:
    stems = [Path(name).stem for name in table]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise complaint(
            folder,
            f"two crops named {shown(twice, 80)} that differ only in their endings",
            "one file per crop",
            "rename one or write CSV",
        )
    with atomic_folder(folder, "OpenPose files") as partial:
        for stem, joints in zip(stems, table.values(), strict=True):
            (partial / f"{stem}_keypoints.json").write_text(json.dumps(openpose_document(joints)), "utf-8")


def pose_pairs(table: KeypointTable) -> list[tuple[str, str]]:
    """All ordered pairs (source, target) of two different crops of one person that show both torsos.

    Each crop has both shoulders and both hips; junk (-1) and distractors (0) are left out. Pairs are ordered
    by identity, then by source name, then by target name, whatever the order of the file.

    Raises InputError for a name that does not say whose crop it is.
    """
    crops_of: dict[int, list[str]] = {}
    for name, joints in table.items():
        parsed = parse_crop_name(name)
        if parsed is None:
            raise complaint(
                table.path,
                f"the name {shown(name, 80)}, which does not say whose crop it is",
                f"names like {' or '.join(NAME_EXAMPLES.values())}",
                "rename the crops or pair them from a crop table",
            )
        if parsed.identity > 0 and joints.has_torso:
            crops_of.setdefault(parsed.identity, []).append(name)
    return [pair for identity in sorted(crops_of) for pair in permutations(sorted(crops_of[identity]), 2)]
