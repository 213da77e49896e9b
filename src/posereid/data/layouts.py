"""Folders of person crops -> one :class:`~posereid.data.crops.CropTable`."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from posereid.config import Layout
from posereid.data.crops import SPLITS, Crop, CropTable
from posereid.data.readers import (
    MARKET_FOLDERS,
    MSMT17_FOLDERS,
    MSMT17_LISTS,
    Disk,
    Reading,
    read_market_folders,
    read_msmt17,
    read_own_csv,
    read_rows,
)
from posereid.data.shards import INDEX, read_shards
from posereid.messages import complaint, shown
from posereid.pose.files import read_keypoints
from posereid.pose.formats import name_problem
from posereid.pose.joints import Joints
from posereid.pose.names import NAME_EXAMPLES, NameStyle, composed

MANIFEST = "manifest.csv"
"""In the root of a generated set: which crop was drawn from which source in whose pose."""

MASK_FOLDER = "foreground_masks"
CROPS_CSV = "crops.csv"
_KEYPOINT_PATTERNS = tuple(f"*annotation-{name}.csv" for name in ("train", "query", "test"))
_LIKE_KEYPOINTS = re.compile(r"(?!\.).*annotation[-_](train|query|test|gallery|val)\.\w+(\.gz)?", re.IGNORECASE)
_MARKET_SHAPE = f"the folders {', '.join(MARKET_FOLDERS)} (Market-1501, DukeMTMC-reID, CUHK03)"
_MSMT17_SHAPE = f"{' and '.join(MSMT17_FOLDERS[0])} with {', '.join(MSMT17_LISTS)} (MSMT17)"
_CSV_SHAPE = f"a {CROPS_CSV} with the columns path,identity,camera"
_SHARDS_SHAPE = f"a {INDEX} with its shards (from `posereid shard`)"
_SHAPES: dict[Layout, str] = {
    "auto": f"{_MARKET_SHAPE}, or {_MSMT17_SHAPE}, or {_CSV_SHAPE}, or {_SHARDS_SHAPE}",
    "market1501": _MARKET_SHAPE,
    "dukemtmc": _MARKET_SHAPE,
    "cuhk03": _MARKET_SHAPE,
    "msmt17": _MSMT17_SHAPE,
    "csv": _CSV_SHAPE,
    "shards": _SHARDS_SHAPE,
}


def load_crops(root: str | Path, layout: Layout = "auto", keypoints: Sequence[str | Path] | None = None) -> CropTable:
    """Read a set of crops; images are listed, not opened.

    ``root`` is the folder of the set, or the CSV file of a set of one's own. A folder that holds the set in
    its one subfolder will do. Layouts:

    - ``market1501``, ``dukemtmc``, ``cuhk03`` (the release of the 767/700 protocol, either of its folders
      ``labeled`` and ``detected``): ``bounding_box_train``, ``query``, ``bounding_box_test``, at least one of
      them; identity and camera stand in the names.
    - ``msmt17``: the lists and folders of either release, see
      :func:`~posereid.data.readers.read_msmt17` for its identities.
    - ``csv``: ``path,identity,camera[,split]``, see :func:`~posereid.data.readers.read_own_csv`.
    - ``shards``: what :func:`~posereid.data.shards.write_shards` made of any of these. The table is that of the
      set that was sharded, its ``layout`` too; joints, masks and origins of generated crops stand in the index.

    ``keypoints`` are files or folders that :func:`~posereid.pose.files.read_keypoints` reads; None takes the
    files ``*annotation-{train,query,test}.csv`` in the root (of shards the joints that they hold), an empty sequence
    none. Joints are matched by file name, or without its ending; a crop whose joints are all absent has none.
    ``manifest.csv`` in the root marks generated crops, and ``foreground_masks/<folder>/<stem>.png`` become mask paths.

    Crops are ordered by split and then by name (in the order of the lists for ``msmt17`` and ``csv``).

    What looks like a crop, mask or keypoint file and is none stands in the table's ``unparsed``. No picture or mask
    lies outside the set's folder, see :class:`~posereid.data.readers.Disk`.

    Raises InputError for anything that is wrong with the folder, the lists or the keypoint files.
    """
    if layout not in get_args(Layout):
        raise complaint("layout", repr(layout), " or ".join(get_args(Layout)), "choose one of these")
    given = Path(root)
    home, found, notes = _find_set(given, layout)
    sharded = found == "shards"
    reading, found = _read(home, found)
    folder = home.parent if home.is_file() else home
    if not reading.crops:
        unusable = f"{len(reading.missing)} listed files missing and {len(reading.unparsed)} names not understood"
        raise complaint(home, f"no crop ({unusable})", "at least one", "unpack the images beside the lists")
    crops = sorted(reading.crops, key=lambda crop: SPLITS.index(crop.split))
    if not sharded:
        crops = _with_manifest(crops, folder, reading)
        crops = _with_masks(crops, folder, reading)
    elif keypoints is not None:
        crops = [replace(crop, joints=None) for crop in crops]
    paths = [] if sharded and keypoints is None else _keypoint_paths(given, folder, keypoints, reading)
    crops = _with_joints(crops, paths, reading, names_identify=found in NAME_EXAMPLES)
    return CropTable(
        root=folder,
        layout=found,
        crops=tuple(crops),
        unparsed=tuple(reading.unparsed),
        missing=tuple(reading.missing),
        notes=(*notes, *reading.notes),
        identity_names=reading.identity_names,
        camera_names=reading.camera_names,
    )


def _find_set(root: Path, layout: Layout) -> tuple[Path, str, list[str]]:
    """The folder (or CSV file) that holds the set, its layout ("market" for either of two), and notes."""
    try:
        is_file, is_folder = root.is_file(), root.is_dir()
    except (OSError, ValueError):
        is_file = is_folder = False
    if is_file:
        if layout in ("auto", "csv") and root.suffix.lower() == ".csv":
            return root, "csv", []
        raise complaint(root, "a file", "the folder of the set, or a .csv file that lists it", "give the folder")
    if not is_folder:
        raise complaint(root, "no such folder", "the folder of a set of crops", "check the path")
    if kind := _kind(root, layout):
        return (root / CROPS_CSV if kind == "csv" else root), kind, []
    children = _subfolders(root)
    holding = [(child, kind) for child in children if (kind := _kind(child, layout))]
    if len(holding) == 1:
        child, kind = holding[0]
        note = f"The set was found in the subfolder {shown(child.name, 80)}."
        return (child / CROPS_CSV if kind == "csv" else child), kind, [note]
    if holding:
        names = " and ".join(shown(child.name) for child, _ in holding[:3])
        raise complaint(root, f"{len(holding)} sets ({names})", "one", "give the folder of one of them")
    images = len(Disk(root).images(root)[0])
    inside = f"{images} images" if images else f"{len(children)} folders"
    raise complaint(
        root,
        "an empty folder" if not any(root.iterdir()) else f"{inside} in another arrangement",
        _SHAPES[layout],
        "arrange the crops so, or name the layout that they have",
    )


def _kind(folder: Path, layout: Layout) -> str | None:
    market = any((folder / name).is_dir() for name in MARKET_FOLDERS)
    msmt17 = any((folder / name).is_dir() for pair in MSMT17_FOLDERS for name in pair) and any(
        (folder / name).is_file() for name in MSMT17_LISTS
    )
    if layout in ("auto", "shards") and (folder / INDEX).is_file():
        return "shards"
    own = (folder / CROPS_CSV).is_file()
    if own and layout in ("auto", "csv"):
        return "csv"
    if market and layout in NAME_EXAMPLES:
        return layout
    if market and layout == "auto":
        return "market"
    return "msmt17" if msmt17 and layout in ("auto", "msmt17") else None


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise complaint(
            folder,
            f"a folder that cannot be read ({error.strerror})",
            "a readable one",
            "check its permissions",
        ) from error


def _read(home: Path, kind: str) -> tuple[Reading, str]:
    if kind == "shards":
        return read_shards(home)
    if kind == "csv":
        return read_own_csv(home), kind
    if kind == "msmt17":
        return read_msmt17(home), kind
    if kind == "market":
        return read_market_folders(home, None)
    return read_market_folders(home, cast(NameStyle, kind))


def _with_manifest(crops: list[Crop], root: Path, reading: Reading) -> list[Crop]:
    """Crops that the manifest names become generated ones; names without a file are missing files."""
    path = root / MANIFEST
    if not path.is_file():
        return crops
    origin: dict[str, tuple[str, str]] = {}
    dropped: set[str] = set()
    for line, row in read_rows(path, ("name", "source", "target_pose")):
        empty = [column for column in ("name", "source", "target_pose") if not row[column]]
        if empty:
            raise complaint(f"{path}, line {line}", f"no {empty[0]}", "a name", "correct the line")
        for column in ("name", "source", "target_pose"):
            if name_problem(row[column]):
                raise complaint(
                    f"{path}, line {line}",
                    f"the {column} {shown(row[column], 80)}",
                    "a file's name without folders",
                    "correct the line",
                )
        if row["name"] in origin:
            raise complaint(
                f"{path}, line {line}",
                f"the name {shown(row['name'], 80)} again",
                "each name once",
                "delete one of the two lines",
            )
        origin[row["name"]] = (row["source"], row["target_pose"])
        # What a filter has left out has no file, and none is missing.
        if row.get("dropped"):
            dropped.add(row["name"])
    names = {crop.name for crop in crops} | dropped
    reading.missing.extend(name for name in origin if name not in names)
    return [
        replace(crop, source=origin[crop.name][0], target_pose=origin[crop.name][1]) if crop.name in origin else crop
        for crop in crops
    ]


def _with_masks(crops: list[Crop], root: Path, reading: Reading) -> list[Crop]:
    masks = root / MASK_FOLDER
    if not masks.is_dir():
        return crops
    disk = Disk(root)
    mask_of: dict[tuple[Path, str], Path] = {}
    for folder in sorted({crop.path.parent.relative_to(root) for crop in crops}):
        if not (masks / folder).is_dir():
            continue
        names, passed_over = disk.images(masks / folder)
        usable = [name for name in names if name.lower().endswith(".png")]
        mask_of |= {(folder, composed(Path(name).stem)): masks / folder / name for name in usable}
        # What lies in its subfolders are the masks of other folders of crops, or of none.
        others = [name for name in (*names, *passed_over) if name not in usable and "/" not in name]
        reading.leave_out(f"{MASK_FOLDER}/{(folder / name).as_posix()}" for name in others)
    paths = [mask_of.get((crop.path.parent.relative_to(root), composed(crop.path.stem))) for crop in crops]
    strays = sorted(set(mask_of.values()) - set(paths))
    if strays:
        example = shown(strays[0].relative_to(root).as_posix(), 80)
        reading.notes.append(f"{len(strays)} masks belong to no crop of the set, for example {example}.")
    if not any(paths):
        reading.notes.append(f"{MASK_FOLDER} holds no mask of a crop; masks are {MASK_FOLDER}/FOLDER/NAME.png.")
    return [replace(crop, mask_path=path) for crop, path in zip(crops, paths, strict=True)]


def _keypoint_paths(given: Path, home: Path, keypoints: Sequence[str | Path] | None, reading: Reading) -> list[Path]:
    if isinstance(keypoints, str | Path):  # a lone path would be taken apart into letters
        return [Path(keypoints)]
    if keypoints is not None:
        return [Path(path) for path in keypoints]
    folders = [home] if given.is_file() or given == home else [given, home]
    paths = [path for folder in folders for pattern in _KEYPOINT_PATTERNS for path in sorted(folder.glob(pattern))]
    for folder in folders:
        like = {path for path in folder.iterdir() if _LIKE_KEYPOINTS.fullmatch(path.name)}
        reading.leave_out(path.name for path in sorted(like.difference(paths)))
    return paths


def _with_joints(crops: list[Crop], paths: Sequence[Path], reading: Reading, *, names_identify: bool) -> list[Crop]:
    """Attach joints by name, or by the name without its ending, which OpenPose drops.

    A crop whose joints are all absent is one without joints.
    """
    if not paths:
        return crops
    joints_of = _merged(paths, reading)
    names = ((composed(crop.name), composed(crop.path.stem)) for crop in crops)
    keys = [next((key for key in both if key in joints_of), None) for both in names]
    used = Counter(key for key in keys if key is not None)
    if not names_identify and used:
        # Names may repeat in different folders, and one person's joints must not land on another.
        key, count = used.most_common(1)[0]
        if count > 1:
            raise complaint(
                paths[0],
                f"joints for {shown(key, 80)}, a name that {count} crops have",
                "a name of its own for each crop with joints",
                "rename the crops",
            )
    if len(used) < len(joints_of):
        example = next(name for name in joints_of if name not in used)
        reading.notes.append(
            f"{len(joints_of) - len(used)} of {len(joints_of)} names in the keypoint files belong to no "
            f"crop of the set, for example {shown(example, 80)}."
        )
    return [
        crop if key is None or not joints_of[key].present.any() else replace(crop, joints=joints_of[key])
        for crop, key in zip(crops, keys, strict=True)
    ]


def _merged(paths: Iterable[Path], reading: Reading) -> dict[str, Joints]:
    """All tables in one, by composed names; a name may stand in several files if they agree."""
    merged: dict[str, Joints] = {}
    origin: dict[str, Path] = {}
    for path in paths:
        table = read_keypoints(path)
        reading.notes.extend(table.notes)
        reading.leave_out(f"{path.name}/{name}" for name in table.unparsed)
        for name, joints in ((composed(name), joints) for name, joints in table.items()):
            if name in merged and not _same(merged[name], joints):
                raise complaint(
                    path,
                    f"other joints for {shown(name, 80)} than in {origin[name]}",
                    "the same in both",
                    "give one of the two files",
                )
            merged[name] = joints
            origin.setdefault(name, path)
    return merged


def _same(first: Joints, second: Joints) -> bool:
    return np.array_equal(first.present, second.present) and np.array_equal(first.xy, second.xy)
