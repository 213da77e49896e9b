"""Which gallery crops count for which query: the Market-1501 protocol, and the checks of what it is given.

Junk crops (identity -1) leave the gallery; for each query the gallery crops of the same identity *and* camera
leave it too, unless no cameras are given; distractors (identity 0) stay as negatives.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posereid.data.crops import DISTRACTOR, JUNK
from posereid.errors import InputError

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class RankingProtocol:
    """The protocol, indexed for one set of queries and one gallery.

    ``kept`` are the gallery indices that are not junk, ascending. *Positions* below count within ``kept``.
    Identities and cameras are coded as whole numbers that queries and gallery share; ``by_identity`` lists
    positions grouped by identity code, ascending within a group; ``group_starts[c]:group_starts[c + 1]`` is
    the group of code c.
    """

    kept: Indices
    query_codes: Indices
    query_cameras: Indices | None
    gallery_cameras: Indices | None
    by_identity: Indices
    group_starts: Indices

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        query_identities: npt.ArrayLike,
        gallery_identities: npt.ArrayLike,
        query_cameras: npt.ArrayLike | None,
        gallery_cameras: npt.ArrayLike | None,
    ) -> "RankingProtocol":
        """Index the labels of a (queries, gallery) table of ``shape``.

        Raises :class:`InputError` where lengths or types disagree, where only one side has cameras, and for a
        query that is junk or a distractor.
        """
        if (query_cameras is None) != (gallery_cameras is None):
            given, lacking = ("gallery", "query") if query_cameras is None else ("query", "gallery")
            raise InputError(
                f"{given}_cameras is given and {lacking}_cameras is not; give both, or neither to switch the "
                "same-camera rule off."
            )
        queries = _labels(query_identities, "query_identities", shape[0])
        gallery = _labels(gallery_identities, "gallery_identities", shape[1])
        reserved = np.flatnonzero(is_marker(queries, JUNK) | is_marker(queries, DISTRACTOR))
        if len(reserved):
            raise InputError(
                f"Query {reserved[0]} has identity {queries[reserved[0]]}, which marks junk (-1) or "
                "distractors (0) and names nobody; number identities from 1 and take such crops out."
            )
        kept = np.flatnonzero(~is_marker(gallery, JUNK))
        query_codes, gallery_codes = _shared_codes(queries, gallery[kept], "identities")
        camera_codes: tuple[Indices | None, Indices | None] = (None, None)
        if query_cameras is not None and gallery_cameras is not None:
            camera_codes = _shared_codes(
                _labels(query_cameras, "query_cameras", shape[0]),
                _labels(gallery_cameras, "gallery_cameras", shape[1])[kept],
                "cameras",
            )
        by_identity = np.argsort(gallery_codes, kind="stable")
        code_count = 1 + max(query_codes.max(initial=0), gallery_codes.max(initial=0))
        starts = np.searchsorted(gallery_codes[by_identity], np.arange(code_count + 1))
        return cls(kept, query_codes, *camera_codes, by_identity, starts)

    def split(self, query: int) -> tuple[Indices, Indices]:
        """Ascending positions of the query's right crops, and of those that the same-camera rule drops."""
        code = self.query_codes[query]
        members = self.by_identity[self.group_starts[code] : self.group_starts[code + 1]]
        if self.query_cameras is None or self.gallery_cameras is None:
            return members, members[:0]
        same = self.gallery_cameras[members] == self.query_cameras[query]
        return members[~same], members[same]

    def split_block(self, start: int, stop: int) -> tuple[tuple[Indices, Indices], tuple[Indices, Indices]]:
        """:meth:`split` for the queries from ``start`` to ``stop`` at once, each part as (rows, positions).

        Rows count from ``start``; rows ascend, and positions within a row.
        """
        codes = self.query_codes[start:stop]
        first, after = self.group_starts[codes], self.group_starts[codes + 1]
        rows = np.repeat(np.arange(len(codes)), after - first)
        ends = np.cumsum(after - first)
        members = self.by_identity[np.arange(len(rows)) + (after - ends)[rows]]
        if self.query_cameras is None or self.gallery_cameras is None:
            return (rows, members), (rows[:0], members[:0])
        same = self.gallery_cameras[members] == self.query_cameras[start:stop][rows]
        return (rows[~same], members[~same]), (rows[same], members[same])

    def why_unmatched(
        self,
        dropped: str = "from their own camera only, which the protocol drops",
        remedy: str = "leave the cameras out to switch the same-camera rule off",
    ) -> str:
        """One sentence for the case that no query has a right crop.

        ``dropped`` says which crops the queries have that do not count, ``remedy`` how the caller makes them count.
        """
        queries = len(self.query_codes)
        start = f"None of the {queries} queries has a match in the gallery: "
        uncounted = sum(len(self.split(query)[1]) > 0 for query in range(queries))
        if not uncounted:
            return f"{start}{queries} have none at all; check that both sides name people alike."
        return (
            f"{start}{uncounted} have crops of their identity {dropped}, and {queries - uncounted} have none at all; "
            f"check the identities, or {remedy}."
        )


def as_array(values: Any) -> npt.NDArray[Any]:
    """Any array-like as NumPy; a torch tensor comes off its device and graph, and torch is not imported."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # unknown to NumPy
            values = values.float()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"A list, NumPy array or torch tensor was expected: {error}.") from error


def as_table(values: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    """A two-dimensional array of real numbers, or :class:`InputError`."""
    table = as_array(values)
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise InputError(
            f"{name} has shape {table.shape} and type {table.dtype}; a table of numbers with two "
            "dimensions is expected."
        )
    return table


def _labels(labels: npt.ArrayLike, name: str, expected: int) -> npt.NDArray[Any]:
    array = as_array(labels)
    if array.ndim != 1 or len(array) != expected:
        side = "queries" if name.startswith("query") else "gallery crops"
        raise InputError(f"{name} has shape {array.shape}, but there are {expected} {side}; give one value per crop.")
    if len(array) and array.dtype.kind not in "iuUS":
        raise InputError(f"{name} holds values of type {array.dtype}; whole numbers or strings are expected.")
    return array


def is_marker(identities: npt.NDArray[Any], marker: int) -> npt.NDArray[np.bool_]:
    """Where identities equal a marker; strings cut from file names write it as "-1" and "0000"."""
    if identities.dtype.kind in "US":
        return np.isin(identities.astype(str), ("0", "0000") if marker == DISTRACTOR else (str(marker),))
    return identities == marker


def _shared_codes(queries: npt.NDArray[Any], gallery: npt.NDArray[Any], what: str) -> tuple[Indices, Indices]:
    if not len(gallery):
        gallery = queries[:0]
    # NumPy would turn 7 into "7" and match it with the string.
    if (queries.dtype.kind in "US") != (gallery.dtype.kind in "US"):
        raise InputError(
            f"The {what} of queries and gallery are of types {queries.dtype} and {gallery.dtype}; give both "
            "as whole numbers or both as strings."
        )
    if queries.dtype.kind != gallery.dtype.kind and "u" in (queries.dtype.kind, gallery.dtype.kind):
        # NumPy's common type of int64 and uint64 is a float, which large numbers share.
        queries, gallery = queries.astype(object), gallery.astype(object)
    _, codes = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    codes = codes.reshape(-1).astype(np.intp)
    return codes[: len(queries)], codes[len(queries) :]
