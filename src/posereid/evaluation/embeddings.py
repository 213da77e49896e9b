"""Embeddings with what is known of each crop, and the file in which other frameworks hand them over."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.evaluation.distances import Table, feature_table, unit_length
from posereid.evaluation.protocol import as_array
from posereid.messages import shown

Pooling = Literal["mean", "max"]

SIDES = ("query", "gallery")
REQUIRED = ("features", "identities")
OPTIONAL = ("cameras", "names")

# Savers do not compress arrays of random-looking numbers a hundredfold; who claims so wants our memory.
_LARGEST_EXPANSION = 100
_SMALL_BYTES = 2**24

# How many arrays of a file a message names, and how much of each name.
_NAMES_SHOWN, _NAME_SHOWN = 12, 32


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One side of a search, n crops in order.

    ``features`` is (n, D) float32 or float64; ``identities`` (n,), whole numbers or strings; ``cameras`` the same, or
    None where they are unknown; ``names`` n strings, or None.
    """

    features: Table
    identities: npt.NDArray[Any]
    cameras: npt.NDArray[Any] | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, features: Table, crops: CropTable) -> "Embeddings":
        """The embeddings of a table's crops, in its order."""
        return cls(features, crops.identities, crops.cameras, crops.names)

    def __len__(self) -> int:
        return len(self.identities)

    def without_cameras(self) -> "Embeddings":
        """The same crops with their cameras forgotten, which switches the same-camera rule off."""
        return replace(self, cameras=None)


def labels_fingerprint(query: Embeddings, gallery: Embeddings) -> str:
    """SHA-256 over both sides' identities and cameras, in order: equal for the same test under the same rule."""
    lines = []
    for name, side in zip(SIDES, (query, gallery), strict=True):
        lines.append(name)
        cameras = [""] * len(side) if side.cameras is None else side.cameras
        lines += [f"{identity}\t{camera}" for identity, camera in zip(side.identities, cameras, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pool_queries(query: Embeddings, more: Embeddings | None = None, pooling: Pooling = "mean") -> Embeddings:
    """Multi-query search: one query for each person and camera, from all crops that show the one in the other.

    ``more`` holds further crops of the queries' people (Market-1501 keeps them in ``gt_bbox``); those of a person and
    camera that no query has are ignored. ``"mean"`` averages features of unit length, ``"max"`` takes each dimension's
    largest value; both are the two poolings of Zheng et al. 2015 (section 4.3). Queries keep their order of first
    appearance, and the name of their first crop. Raises :class:`InputError` where cameras are unknown, or the
    dimensions of ``more`` differ.
    """
    if query.cameras is None or (more is not None and more.cameras is None):
        raise InputError(
            "Multi-query search pools the crops of one person in one camera, but the cameras are unknown; give "
            "them, or go without --multi-query."
        )
    keys = list(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    groups: dict[tuple[Any, Any], int] = {}
    owners = [groups.setdefault(key, len(groups)) for key in keys]
    first = np.unique(owners, return_index=True)[1]
    features = feature_table(query.features, "query_features")
    if more is not None and more.cameras is not None and len(more):
        extra = feature_table(more.features, "the further crops' features")
        if extra.shape[1] != features.shape[1]:
            raise InputError(
                f"Query features have {features.shape[1]} numbers each and the further crops' {extra.shape[1]}; both "
                "must come from the same network."
            )
        known = [groups.get(key, -1) for key in zip(more.identities.tolist(), more.cameras.tolist(), strict=True)]
        used = [position for position, group in enumerate(known) if group >= 0]
        owners += [known[position] for position in used]
        features = np.concatenate([features, extra[used]])
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(np.asarray(owners)[order], np.arange(len(groups)))
    if pooling == "max":
        pooled = np.maximum.reduceat(features[order], starts)
    else:
        pooled = np.add.reduceat(unit_length(features)[order], starts) / np.diff([*starts, len(order)])[:, None]
    names = None if query.names is None else tuple(query.names[position] for position in first)
    return Embeddings(pooled.astype(features.dtype), query.identities[first], query.cameras[first], names)


def read_embeddings(paths: Sequence[Path]) -> tuple[Embeddings, Embeddings]:
    """Query and gallery embeddings from one or two ``.npz`` files, as any framework can write them.

    One file holds ``query_features`` (Q, D) and ``gallery_features`` (G, D), floating point; ``query_identities`` (Q,)
    and ``gallery_identities`` (G,), whole numbers or strings; and, both or neither, ``query_cameras`` and
    ``gallery_cameras``, and ``query_names`` and ``gallery_names``. Two files, query first, hold the same arrays
    without the prefix, as ``posereid embed`` writes them. Nothing is unpickled. Raises :class:`InputError` for a file
    that is no such archive, lacks an array, or whose arrays differ in length.

    >>> import io, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "features.npz"
    >>> np.savez(path, query_features=[[1.0]], query_identities=[7], gallery_features=[[2.0]], gallery_identities=[7])
    >>> query, gallery = read_embeddings([path])
    >>> len(query), len(gallery), query.cameras is None
    (1, 1, True)
    """
    if len(paths) not in (1, 2):
        raise InputError(f"{len(paths)} feature files were given; give one, or two with the query's first.")
    held = [_read_arrays(path) for path in paths]
    prefixes = ("",) if len(paths) == 2 else tuple(f"{side}_" for side in SIDES)
    wanted = [f"{prefix}{name}" for prefix in prefixes for name in REQUIRED]
    for path, arrays in zip(paths, held, strict=True):
        if lacking := [name for name in wanted if name not in arrays]:
            raise _lacks(path, arrays, lacking, wanted)
    if len(paths) == 1:
        query, gallery = (_side(paths[0], _of_side(held[0], prefix), prefix) for prefix in prefixes)
    else:
        query, gallery = (_side(path, arrays, "") for path, arrays in zip(paths, held, strict=True))
    for what in OPTIONAL:
        if (getattr(query, what) is None) != (getattr(gallery, what) is None):
            raise InputError(
                f"{' and '.join(map(str, paths))}: {what} are given on one side only; give both sides', or neither."
            )
    identities, cameras = _alike(query.identities, gallery.identities), _alike(query.cameras, gallery.cameras)
    return (
        replace(query, identities=identities[0], cameras=cameras[0]),
        replace(gallery, identities=identities[1], cameras=cameras[1]),
    )


def _alike(query: Any, gallery: Any) -> tuple[Any, Any]:
    """Labels of both sides, whole numbers as text where the other side is text that writes its numbers the same way.

    ``posereid embed`` writes 7 as a number where a CSV has numbers alone, and as text beside names. Where text has
    leading zeros nothing is changed: what it means is not ours to guess.
    """
    if query is None or gallery is None or (query.dtype.kind == "U") == (gallery.dtype.kind == "U"):
        return query, gallery
    text = query if query.dtype.kind == "U" else gallery
    numbers = [label for label in text.tolist() if label.removeprefix("-").isdecimal()]
    if any(str(int(label)) != label for label in numbers):
        return query, gallery
    return query.astype(str), gallery.astype(str)


def _read_arrays(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an .npz file of features.")
    claimed, name = 0, ""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            # zipfile never unpacks more of a member than it claims.
            claimed = sum(member.file_size for member in members)
            if claimed <= (most := max(_SMALL_BYTES, _LARGEST_EXPANSION * path.stat().st_size)):
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    with archive.open(member) as content:
                        arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
                return arrays
    except Exception as error:  # on damaged files zipfile and NumPy's parser of headers raise errors of almost any type
        place = f"array {shown(name, 80)}: " if name else ""
        raise InputError(
            f"{path} cannot be read as an .npz file of plain arrays ({place}{shown(str(error), 100)}); write it with "
            "numpy.savez, numbers or strings alone."
        ) from None
    raise InputError(
        f"{path} claims to unpack to {claimed / 2**20:,.0f} MiB, more than the {most / 2**20:,.0f} MiB that features "
        "in a file of its size need; write it again without compression."
    )


def _of_side(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _lacks(path: Path, arrays: Mapping[str, Any], lacking: Sequence[str], wanted: Sequence[str]) -> InputError:
    """The error for a file without some arrays: which it needs, which it holds, and what to do."""
    names = [shown(name, _NAME_SHOWN)[1:-1] for name in list(arrays)[:_NAMES_SHOWN]]
    more = f" and {len(arrays) - len(names)} more" if len(arrays) > len(names) else ""
    remedy = "write them under these names"
    if set(REQUIRED) <= set(arrays):
        remedy = "give two such files, the query's first"
    elif all(f"{side}_{name}" in arrays for side in SIDES for name in REQUIRED):
        remedy = "give it alone, it holds both sides"
    return InputError(
        f"{path} lacks the array{'s' * (len(lacking) > 1)} {', '.join(lacking)}; it needs {', '.join(wanted)}, and "
        f"holds {', '.join(names) + more if names else 'none'}; {remedy}."
    )


def _side(path: Path, arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> Embeddings:
    try:
        features = feature_table(arrays["features"], f"{prefix}features")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not features.shape[1]:  # of no numbers there can be any number of crops
        raise InputError(f"{path}: {prefix}features has shape {features.shape}; at least one number each is expected.")
    labels = {name: as_array(arrays[name]) for name in ("identities", *OPTIONAL) if name in arrays}
    for name, array in labels.items():
        if array.shape != (len(features),):
            raise InputError(
                f"{path}: {prefix}{name} has shape {array.shape}, but there are {len(features)} features; one value "
                "for each is expected."
            )
        if array.dtype.kind not in "iuUS":
            raise InputError(
                f"{path}: {prefix}{name} holds values of type {array.dtype}; whole numbers or strings are expected."
            )
    for name, array in labels.items():
        try:
            labels[name] = array.astype(str) if array.dtype.kind == "S" else array
            "".join(map(str, labels[name].tolist())).encode()
        except (UnicodeError, ValueError, SystemError):  # a SystemError for numbers beyond Unicode's last character
            raise InputError(f"{path}: {prefix}{name} holds bytes that are no text; write text.") from None
    names = tuple(map(str, labels["names"].tolist())) if "names" in labels else None
    return Embeddings(features, labels["identities"], labels.get("cameras"), names)
