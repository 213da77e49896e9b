"""A generated set on disk: the manifest that says who made what, what the set is, and its place beside real crops."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from posereid.augmentation.targets import LARGEST_SEED, Drawing
from posereid.data.crops import CropTable
from posereid.data.layouts import MANIFEST
from posereid.data.readers import Disk, read_rows
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.messages import complaint, shown
from posereid.pose.files import write_keypoints
from posereid.pose.formats import name_problem
from posereid.pose.joints import Joints
from posereid.pose.names import NAME_EXAMPLES

SET_FILE = "set.json"
"""In the root of a generated set: how it was made."""

KEYPOINTS_FILE = "market-annotation-train.csv"
"""In the root of a generated set: its crops' joints, those of their target poses."""

SCHEMA_VERSION = 1
TRAIN_FOLDER = "bounding_box_train"
MSMT17_TRAIN_FOLDER = "train"
_WHOLE_NUMBER = re.compile("-?[0-9]{1,10}")
_LARGEST_MANIFEST = 2**30
_LARGEST_SET_FILE = 2**24
_DRAW_AGAIN = "draw the set again with `posereid augment`"
_Text = Annotated[str, Field(max_length=1000)]


# --- manifest ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ManifestRow:
    """One drawing of a generated set: its file, whom it shows in whose pose, and which weights drew it.

    ``checkpoint`` is the SHA-256 of the generator's weights. The other fields are those of a filtered set: scores (None
    where nothing was measured), the name of the crop that this one nearly repeats, and why the crop was left out. A
    crop that was left out has no file.
    """

    name: str
    source: str
    target_pose: str
    identity: int
    camera: int
    checkpoint: str
    identity_distance: float | None = None
    pose_score: float | None = None
    realism: float | None = None
    near_duplicate_of: str = ""
    dropped: str = ""


_COLUMNS = tuple(each.name for each in fields(ManifestRow))
_REQUIRED = _COLUMNS[: _COLUMNS.index("identity_distance")]
_SCORES = ("identity_distance", "pose_score", "realism")


def manifest_rows(crops: CropTable, drawings: Sequence[Drawing], checkpoint: str) -> list[ManifestRow]:
    """Rows of drawings whose positions count in ``crops``; ``checkpoint`` is the digest of the generator's weights."""
    return [
        ManifestRow(
            each.name,
            crops[each.source].name,
            crops[each.target].name,
            crops[each.source].identity,
            crops[each.source].camera,
            checkpoint,
        )
        for each in drawings
    ]


def manifest_text(rows: Iterable[ManifestRow]) -> str:
    """The content of ``manifest.csv``; scores are written so that they are read back as the same numbers."""
    return _csv(_COLUMNS, ((getattr(row, column) for column in _COLUMNS) for row in rows))


def read_manifest(folder: str | Path) -> list[ManifestRow]:
    """The rows of a generated set's ``manifest.csv``; columns that older versions did not write are empty.

    Raises InputError for a file that is missing, too large or no such CSV, and for a value that its column cannot hold.
    """
    path = Path(folder) / MANIFEST
    try:
        size = path.stat().st_size
    except OSError:
        raise complaint(folder, f"no {MANIFEST}", "a set that `posereid augment` wrote", "give its folder") from None
    if size > _LARGEST_MANIFEST:
        raise complaint(path, f"{size:,} bytes", f"at most {_LARGEST_MANIFEST:,}", _DRAW_AGAIN)
    rows: dict[str, ManifestRow] = {}
    for line, values in read_rows(path, _REQUIRED):
        row = _row(values, f"{path}, line {line}")
        if row.name in rows:
            raise complaint(
                f"{path}, line {line}", f"the name {shown(row.name, 80)} again", "each name once", _DRAW_AGAIN
            )
        rows[row.name] = row
    return list(rows.values())


def _row(values: dict[str, str], place: str) -> ManifestRow:
    content: dict[str, Any] = {column: values.get(column, "") for column in _COLUMNS}
    for column in ("name", "source", "target_pose"):
        if name_problem(content[column]):
            raise complaint(
                place, f"the {column} {shown(content[column], 80)}", "a file's name without folders", _DRAW_AGAIN
            )
    for column in ("identity", "camera"):
        if not _WHOLE_NUMBER.fullmatch(content[column]):
            raise complaint(
                place, f"the {column} {shown(content[column])}", "a whole number of at most ten digits", _DRAW_AGAIN
            )
        content[column] = int(content[column])
    for column in _SCORES:
        try:
            content[column] = float(content[column]) if content[column] else None
        except ValueError:
            raise complaint(
                place, f"the {column} {shown(content[column])}", "a number or nothing", _DRAW_AGAIN
            ) from None
    return ManifestRow(**content)


# --- the source's own layout -------------------------------------------------------------------------------


def train_folder(layout: str) -> str:
    """Where the crops of a generated set lie, by its source's layout (``CropTable.layout``)."""
    return MSMT17_TRAIN_FOLDER if layout == "msmt17" else TRAIN_FOLDER


def listing_files(layout: str, rows: Sequence[ManifestRow]) -> dict[str, str]:
    """Names and contents of the text files by which a set of these rows is read: its manifest, and a list of its crops.

    Names of Market-1501, DukeMTMC-reID and CUHK03 say whose a crop is, and their sets have no list. MSMT17's are
    ``list_train.txt`` and an empty ``list_val.txt``, its identities numbered from 0; any other set has ``crops.csv``.
    """
    files = {MANIFEST: manifest_text(rows)}
    kept = [row for row in rows if not row.dropped]
    if layout == "msmt17":
        files["list_train.txt"] = "".join(f"{row.name} {row.identity - 1}\n" for row in kept)
        files["list_val.txt"] = ""
    elif layout not in NAME_EXAMPLES:
        paths = ((f"{train_folder(layout)}/{row.name}", row.identity, row.camera, "train") for row in kept)
        files["crops.csv"] = _csv(("path", "identity", "camera", "split"), paths)
    return files


def _csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


# --- how a set was made ------------------------------------------------------------------------------------


class GeneratedSetInfo(BaseModel):
    """What ``set.json`` says of a generated set; sets of older versions leave all but the first four fields empty.

    ``source_fingerprint`` is that of the training crops that were drawn (``CropTable.fingerprint``), ``layout`` their
    set's. ``recipe`` holds the augmentation section without its number of workers, and the height and width of crops;
    ``recipe_sha256`` is its digest. ``plan`` says what the target poses came from, ``creation`` which versions, device
    and precision drew them, ``filtering`` how a filtered set was chosen from another.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    source_root: _Text
    checkpoint: _Text
    seed: int = Field(ge=0, le=LARGEST_SEED)
    drawn: int = Field(ge=0)
    schema_version: int = Field(0, ge=0, le=SCHEMA_VERSION)
    source_fingerprint: _Text = ""
    layout: _Text = ""
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    recipe_sha256: _Text = ""
    training_crops_without_pose: int = Field(0, ge=0)
    identities: int = Field(0, ge=0)
    plan: dict[str, JsonValue] = Field(default_factory=dict)
    creation: dict[str, JsonValue] = Field(default_factory=dict)
    filtering: dict[str, JsonValue] = Field(default_factory=dict)


def set_text(info: GeneratedSetInfo) -> str:
    """The content of ``set.json``."""
    return json.dumps(info.model_dump(mode="json"), indent=1) + "\n"


def write_side_files(
    folder: Path, layout: str, rows: Sequence[ManifestRow], joints: Mapping[str, Joints], info: GeneratedSetInfo
) -> None:
    """Write what lies beside the crops of a set in ``folder``: joints where there are any, listings, ``set.json``.

    ``layout`` is the source's, which ``info`` of older versions does not say; ``joints`` are those of the crops that
    have some, by name, in pixels of the crop.
    """
    if joints:
        write_keypoints(joints, folder / KEYPOINTS_FILE)
    for name, text in listing_files(layout, rows).items():
        write_atomically(folder / name, text)
    # Last: where it is, the set is whole.
    write_atomically(folder / SET_FILE, set_text(info))


def read_set(folder: str | Path) -> GeneratedSetInfo:
    """What a generated set's ``set.json`` says. Raises InputError when it is missing, damaged or of a later version."""
    path = Path(folder) / SET_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_SET_FILE + 1)
    except OSError as error:
        raise complaint(path, f"no readable file ({error.strerror})", "what the set is", _DRAW_AGAIN) from None
    if len(content) > _LARGEST_SET_FILE:
        raise complaint(path, f"more than {_LARGEST_SET_FILE:,} bytes", "fewer", _DRAW_AGAIN)
    try:
        return GeneratedSetInfo.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: ValidationError) -> InputError:
    """The first thing that is wrong, in one sentence."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"][:3])
    if first["type"] == "json_invalid":
        return complaint(path, "text that is not JSON, or cut short", "what `posereid augment` wrote", _DRAW_AGAIN)
    if first["type"] == "missing":
        return complaint(path, f"no {shown(field, 80)}", "one", _DRAW_AGAIN)
    if field == "schema_version" and first["type"] == "less_than_equal":
        return complaint(
            path,
            f"the schema version {shown(first['input'])}",
            f"at most {SCHEMA_VERSION}",
            "read the set with the version of posereid that wrote it",
        )
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return complaint(path, f"{shown(first['input'])} as {shown(field or 'the whole', 80)}", expected, _DRAW_AGAIN)


# --- use ---------------------------------------------------------------------------------------------------


def check_generated_set(folder: str | Path, *, checkpoint: str | None = None) -> list[ManifestRow]:
    """The manifest's rows, once files, manifest and ``set.json`` are found to agree.

    Files are listed, not opened. ``checkpoint`` is the digest of the generator that must have drawn the set, if that
    matters. Raises InputError for crops that the manifest names and that are not there, images that it does not name or
    says were left out, other weights in the manifest than in ``set.json`` or than ``checkpoint``, and files that cannot
    be read. A set without ``set.json`` is checked by its manifest alone.
    """
    folder = Path(folder)
    rows = read_manifest(folder)
    kept = {row.name for row in rows if not row.dropped}
    places = [folder / name for name in (TRAIN_FOLDER, MSMT17_TRAIN_FOLDER) if (folder / name).is_dir()]
    present = {name for place in places for name in Disk(place).images(place)[0]}
    if missing := sorted(kept - present):
        raise InputError(
            f"{folder / MANIFEST} names {len(missing)} crops whose files are missing, for example "
            f"{shown(missing[0], 80)}; copy the whole set again, or {_DRAW_AGAIN}."
        )
    if strangers := sorted(present - kept):
        raise InputError(
            f"{folder} holds {len(strangers)} images that its {MANIFEST} does not account for, for example "
            f"{shown(strangers[0], 80)}; move them away, or {_DRAW_AGAIN}."
        )
    makers = {row.checkpoint for row in rows}
    if (folder / SET_FILE).is_file():
        info = read_set(folder)
        if others := makers - {info.checkpoint}:
            raise complaint(
                folder / MANIFEST,
                f"crops drawn by the checkpoint {shown(min(others), 80)}",
                f"{shown(info.checkpoint, 80)} as its {SET_FILE} says",
                _DRAW_AGAIN,
            )
    if checkpoint is not None and (others := makers - {checkpoint}):
        raise complaint(
            folder,
            f"crops drawn by the checkpoint {shown(min(others), 80)}",
            f"{shown(checkpoint, 80)}",
            "give the set that this checkpoint drew, or draw one",
        )
    return rows


def with_generated(crops: CropTable, generated: CropTable) -> CropTable:
    """A table of real and generated training crops.

    Raises InputError when the generated set is not one, does not pass :func:`check_generated_set`, or holds identities
    that the real training split lacks. Of a set in shards, whose index accounts for every crop, there is no more to
    check.
    """
    drawn = generated.train
    if not len(drawn) or not all(crop.generated for crop in drawn):
        # What the manifest leaves unsaid is said better by its own check, where there is a manifest.
        if any(crop.generated for crop in drawn) and (generated.root / MANIFEST).is_file():
            check_generated_set(generated.root)
        raise InputError(
            f"{generated.root} is no generated set: its manifest.csv does not account for its training crops; give the "
            "folder that `posereid augment` wrote."
        )
    if any(crop.place is None for crop in drawn):
        check_generated_set(generated.root)
    strangers = {crop.identity for crop in drawn} - {crop.identity for crop in crops.train}
    if strangers:
        raise InputError(
            f"{generated.root} holds {len(strangers)} identities that {crops.root} does not train on, for example "
            f"{min(strangers)}; the two folders belong to different data sets, or data.validation_share holds these "
            "identities out."
        )
    return crops.with_crops([*crops, *drawn])
