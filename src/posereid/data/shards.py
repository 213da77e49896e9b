"""Sets of crops in a few large files: uncompressed tar files in the convention of WebDataset, and an index of them.

A sharded set is a folder of ``shard-000000.tar``, ``shard-000001.tar``, … and ``shards.json``. In the tar files the
members of one crop lie together and share a key without dots: ``KEY.jpg`` (the image file's bytes unchanged, with its
own ending), ``KEY.json`` (what the crop table says of it) and, where there is a mask, ``KEY.mask.png``; so any reader
of that convention (https://github.com/webdataset/webdataset) can stream them. The index repeats the descriptions and
says at which byte each image lies: posereid draws crops at random, reads the index alone to list them, and then each
image by one seek. Tar headers play no part in that.
"""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from posereid.data.crops import Crop, CropTable, ShardPlace, Split
from posereid.data.images import MAX_IMAGE_BYTES, decode_image, decode_mask, read_bytes
from posereid.data.readers import Disk, Reading
from posereid.errors import InputError
from posereid.files import atomic_folder, read_limited, write_atomically
from posereid.messages import complaint, shown
from posereid.pose.formats import MAX_COORDINATE
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.names import IMAGE_SUFFIXES
from posereid.progress import progress_bar

INDEX = "shards.json"
SHARD_BYTES = 500_000_000
MAX_INDEX_BYTES = 2**30
"""Larger indexes are refused before they are parsed; this is enough for two million crops with joints."""

_FORMAT = 1
_MAX_NUMBER = 2**53
_WRITE_AGAIN = "copy the folder again or write it again with `posereid shard`"

OriginLayout = Literal["market1501", "dukemtmc", "cuhk03", "msmt17", "csv"]


# --- the index ---------------------------------------------------------------------------------------------


def _is_plain(name: str) -> bool:
    return name.isprintable() and not {"/", "\\"} & set(name) and name not in ("", ".", "..")


def _plain_name(name: str) -> str:
    if not _is_plain(name):
        raise ValueError("a plain file name")
    return name


def _inner_folder(folder: str) -> str:
    if folder and not all(_is_plain(part) for part in folder.split("/")):
        raise ValueError("a folder inside the set")
    return folder


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
Name = Annotated[str, Field(max_length=255), AfterValidator(_plain_name)]
Span = tuple[Annotated[int, Field(ge=0, le=_MAX_NUMBER)], Annotated[int, Field(ge=1, le=MAX_IMAGE_BYTES)]]


class _Description(_Strict):
    """What the crop table says of one crop; also the content of its ``KEY.json``.

    ``size`` is the upright image's (width, height), which the joints' (x, y) refer to; an absent joint is None.
    """

    name: Name
    folder: Annotated[str, Field(max_length=4096), AfterValidator(_inner_folder)]
    split: Split
    identity: int = Field(ge=-1, le=_MAX_NUMBER)
    camera: int = Field(ge=-_MAX_NUMBER, le=_MAX_NUMBER)
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    joints: (
        Annotated[list[tuple[Coordinate, Coordinate] | None], Field(min_length=JOINT_COUNT, max_length=JOINT_COUNT)]
        | None
    )
    source: str | None
    target_pose: str | None


class _Entry(_Strict):
    """A crop and where it lies: number of its shard, (offset, size) of image and mask in bytes."""

    crop: _Description
    shard: int = Field(ge=0)
    image: Span
    mask: Span | None


class _Shard(_Strict):
    name: str
    size: int = Field(ge=1, le=_MAX_NUMBER)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    crops: int


class _Index(_Strict):
    format: int = Field(ge=_FORMAT, le=_FORMAT)
    layout: OriginLayout
    notes: list[Annotated[str, Field(max_length=2000, pattern=r"^[^\x00-\x1f\x7f]*$")]] = Field(max_length=100)
    counts: dict[str, int]
    identity_names: dict[int, str] = {}
    camera_names: dict[int, str] = {}
    shards: Annotated[list[_Shard], FailFast(), Field(min_length=1)]
    crops: Annotated[list[_Entry], FailFast(), Field(min_length=1)]


def _counts(entries: Sequence[_Entry]) -> dict[str, int]:
    """Crops by split, and how many crops are generated and how many have masks."""
    splits = Counter(entry.crop.split for entry in entries)
    return {
        "train": splits["train"],
        "query": splits["query"],
        "gallery": splits["gallery"],
        "generated": sum(entry.crop.source is not None for entry in entries),
        "masks": sum(entry.mask is not None for entry in entries),
    }


def _shard_name(number: int) -> str:
    return f"shard-{number:06}.tar"


def _wrong(where: object, error: ValidationError, remedy: str) -> InputError:
    """The first thing that is wrong, in one sentence."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    expected = re.sub(r"^(Value error, |\w+ should (be|have|match) )| after validation.*", "", first["msg"])
    if first["type"] == "json_invalid":
        return complaint(where, f"text that is not JSON ({expected})", "JSON", remedy)
    if first["type"] == "missing":
        return complaint(where, f"no {field}", "one", remedy)
    if first["loc"] == ("format",):
        return complaint(
            where,
            f"the format {shown(first['input'])}",
            str(_FORMAT),
            "read the shards with the version of posereid that wrote them, or write them again",
        )
    return complaint(where, f"{shown(first['input'], 80)} as {field}", expected, remedy)


# --- writing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardedSet:
    """What :func:`write_shards` wrote."""

    folder: Path
    crops: int
    masks: int
    shards: int


def write_shards(crops: CropTable, out: Path, *, shard_bytes: int = SHARD_BYTES, progress: bool = False) -> ShardedSet:
    """Write a set of crops as shards into the new or empty folder ``out``, which appears complete or not at all.

    A shard is closed once it holds ``shard_bytes``. Crops keep the table's order; equal tables of equal files give
    equal bytes. Every image and mask is decoded before its bytes are copied: the size is written, and damage should
    not travel on. That takes more than half of the time, some 0.6 ms for a crop of 128 × 64 and its mask. Files that
    the reader of ``crops`` left out are not in the shards; a note in the index counts them.

    Raises InputError for an ``out`` that holds files, an image that cannot be read, or a table without crops.
    """
    if shard_bytes < 1:
        raise complaint("shard size", f"{shard_bytes} bytes", "at least 1", "give a larger one")
    if not len(crops):
        raise complaint(crops.root, "no crop", "at least one", "give a set that holds some")
    entries: list[_Entry] = []
    shards: list[_Shard] = []
    with (
        atomic_folder(out, "a sharded set") as partial,
        progress_bar(len(crops), "writing shards", "crop", show=progress) as bar,
    ):
        while len(entries) < len(crops):
            path = partial / _shard_name(len(shards))
            first = len(entries)
            with (
                path.open("wb") as handle,
                tarfile.TarFile(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                while len(entries) < len(crops) and handle.tell() < shard_bytes:
                    entries.append(_add(tar, handle, crops, len(entries), len(shards)))
                    bar.update()
            size, digest = path.stat().st_size, _sha256(path)
            shards.append(_Shard(name=path.name, size=size, sha256=digest, crops=len(entries) - first))
        write_atomically(partial / INDEX, _index_text(crops, shards, entries))
    return ShardedSet(out, len(entries), sum(entry.mask is not None for entry in entries), len(shards))


def _add(tar: tarfile.TarFile, handle: BinaryIO, crops: CropTable, number: int, shard: int) -> _Entry:
    """Append one crop's members to a shard, sorted by their names."""
    crop = crops[number]
    content = read_bytes(crop.path, crop.place)
    members = {_suffix(crop.name): content}
    size = decode_image(content, crop.path).size
    if crop.mask_path is not None:
        members[".mask.png"] = read_bytes(crop.mask_path, crop.mask_place)
        decode_mask(members[".mask.png"], crop.mask_path)
    try:
        described = _describe(crop, crops, size)
        about = {**described.model_dump(), "layout": crops.layout}
        members[".json"] = json.dumps(about, ensure_ascii=False, allow_nan=False).encode()
        # The number tells crops of equal names apart; a key must not hold a dot.
        key = f"{number:08}-{re.sub('[^A-Za-z0-9_-]', '_', Path(crop.name).stem)[:64]}"
        spans = {suffix: _append(tar, handle, key + suffix, members[suffix]) for suffix in sorted(members)}
        return _Entry(crop=described, shard=shard, image=spans[_suffix(crop.name)], mask=spans.get(".mask.png"))
    except ValidationError as error:
        raise _wrong(crop.path, error, "correct the set") from error


def _suffix(name: str) -> str:
    """The image's own ending, by which other readers choose a decoder; ``.json`` and the like are not one."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ".img"


def _append(tar: tarfile.TarFile, handle: BinaryIO, name: str, content: bytes) -> tuple[int, int]:
    """Offset and size of a new member's content."""
    about = tarfile.TarInfo(name)  # time, user and group are 0
    about.size = len(content)
    offset = handle.tell() + tarfile.BLOCKSIZE
    tar.addfile(about, BytesIO(content))
    return offset, len(content)


def _describe(crop: Crop, crops: CropTable, size: tuple[int, int]) -> _Description:
    folder = PurePosixPath(crops.path_in_set(crop)).parent.as_posix()
    return _Description(
        name=crop.name,
        folder="" if folder == "." else folder,
        split=crop.split,
        identity=crop.identity,
        camera=crop.camera,
        size=size,
        joints=None if crop.joints is None else _joint_list(crop.joints),
        source=crop.source,
        target_pose=crop.target_pose,
    )


def _joint_list(joints: Joints) -> list[tuple[float, float] | None]:
    # The shortest text that gives the same float32 again: 3.3 and not 3.299999952316284.
    return [
        (float(str(x)), float(str(y))) if present else None
        for (x, y), present in zip(joints.xy, joints.present, strict=True)
    ]


def _index_text(crops: CropTable, shards: list[_Shard], entries: list[_Entry]) -> str:
    notes = list(crops.notes)
    left_out = (*crops.unparsed, *crops.missing)
    if left_out:
        notes.append(
            f"{len(left_out)} files of the set that was sharded are not in the shards, because their names were not "
            f"understood or they were missing, for example {shown(left_out[0], 80)}."
        )
    try:
        index = _Index(
            format=_FORMAT,
            layout=crops.layout,  # type: ignore[arg-type]  # any text; checked here
            notes=notes,
            counts=_counts(entries),
            identity_names=dict(crops.identity_names),
            camera_names=dict(crops.camera_names),
            shards=shards,
            crops=entries,
        )
    except ValidationError as error:
        raise _wrong(crops.root, error, "read the set with posereid's readers") from error
    text = index.model_dump_json() + "\n"
    if len(text.encode()) > MAX_INDEX_BYTES:
        raise complaint(
            crops.root, f"{len(entries)} crops, too many for one index", f"up to {MAX_INDEX_BYTES} bytes of it",
            "shard the set in parts",
        )  # fmt: skip
    return text


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --- reading -----------------------------------------------------------------------------------------------


def read_shards(folder: Path) -> tuple[Reading, OriginLayout]:
    """The crops of a sharded set in the order of the set that was sharded, and that set's layout.

    Each shard must be there with the size that the index gives; contents are not read (see
    :func:`damaged_shards`). Raises InputError for an index that is damaged, contradicts itself or points outside of
    its shards, and for a shard that is missing, of another size, or a link out of the folder.
    """
    index = _read_index(folder)
    disk = Disk(folder)
    tars = [_checked_shard(disk, number, shard) for number, shard in enumerate(index.shards)]
    path = folder / INDEX
    seen: set[tuple[str, str, str]] = set()
    reading = Reading(notes=list(index.notes), identity_names=index.identity_names, camera_names=index.camera_names)
    for number, entry in enumerate(index.crops):
        where = f"{path}, crop {number}"
        identity = (entry.crop.split, entry.crop.folder, entry.crop.name)
        if identity in seen:
            raise complaint(where, f"{shown(entry.crop.name, 80)} again", "each crop once", _WRITE_AGAIN)
        seen.add(identity)
        if entry.shard >= len(tars):
            raise complaint(where, f"the shard {entry.shard}", f"one below {len(tars)}", _WRITE_AGAIN)
        for span in (entry.image, entry.mask):
            if span is not None and sum(span) > index.shards[entry.shard].size:
                raise complaint(
                    where,
                    f"bytes {span[0]} to {sum(span)}",
                    f"some inside {tars[entry.shard].name}, which ends at {index.shards[entry.shard].size}",
                    _WRITE_AGAIN,
                )
        reading.crops.append(_crop(entry, tars[entry.shard]))
    counted = Counter(entry.shard for entry in index.crops)
    per_shard = [counted[number] for number in range(len(tars))]
    if index.counts != _counts(index.crops) or [shard.crops for shard in index.shards] != per_shard:
        raise complaint(path, "counts that differ from its crops", "the crops' own", _WRITE_AGAIN)
    return reading, index.layout


def damaged_shards(folder: Path, *, progress: bool = False) -> tuple[str, ...]:
    """Names of shards whose content is not what was written; reads every byte. Raises InputError."""
    shards = _read_index(folder).shards
    damaged = []
    with progress_bar(len(shards), "comparing shards", "shard", show=progress) as bar:
        for shard in shards:
            if _sha256(folder / shard.name) != shard.sha256:
                damaged.append(shard.name)
            bar.update()
    return tuple(damaged)


def _read_index(folder: Path) -> _Index:
    path = folder / INDEX
    try:
        index = _Index.model_validate_json(read_limited(path, MAX_INDEX_BYTES))
    except OSError as error:
        raise complaint(
            path, f"a file that cannot be read ({error.strerror})", "a readable one", "check its permissions"
        ) from error
    except ValidationError as error:
        raise _wrong(path, error, _WRITE_AGAIN) from error
    for number, shard in enumerate(index.shards):
        # Names are known beforehand: no other is followed, wherever it may lead.
        if shard.name != _shard_name(number):
            raise complaint(path, f"the shard name {shown(shard.name, 80)}", _shard_name(number), _WRITE_AGAIN)
    return index


def _checked_shard(disk: Disk, number: int, shard: _Shard) -> Path:
    path = disk.root / shard.name
    if disk.find(shard.name) is None:
        raise complaint(path, "no such file", f"shard {number} of the set", _WRITE_AGAIN)
    size = path.stat().st_size
    if size != shard.size:
        raise complaint(path, f"{size} bytes", f"{shard.size} as the index says", _WRITE_AGAIN)
    return path


def _crop(entry: _Entry, tar: Path) -> Crop:
    about = entry.crop
    home = tar / about.folder
    return Crop(
        path=home / about.name,
        name=about.name,
        identity=about.identity,
        camera=about.camera,
        split=about.split,
        joints=_joints(about.joints) if about.joints and any(about.joints) else None,
        source=about.source,
        target_pose=about.target_pose,
        mask_path=None if entry.mask is None else home / f"{Path(about.name).stem}.mask.png",
        place=ShardPlace(tar, *entry.image),
        mask_place=None if entry.mask is None else ShardPlace(tar, *entry.mask),
    )


def _joints(points: Sequence[tuple[float, float] | None]) -> Joints:
    xy = np.array([point or (0, 0) for point in points], np.float32)
    xy.setflags(write=False)
    return Joints(xy, np.array([point is not None for point in points]))
