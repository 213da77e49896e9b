"""Each query's figures in a CSV beside an evaluation, so that two evaluations can be compared query by query."""

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from posereid.data.readers import read_rows
from posereid.evaluation.headlines import headline_values
from posereid.messages import complaint, shown

if TYPE_CHECKING:
    from posereid.evaluation.search import Search

COLUMNS = ("query", "identity", "camera", "first_hit_rank", "average_precision", "inverse_negative_penalty")


@dataclass(frozen=True, eq=False)
class QueryFigures:
    """What each of Q queries scored.

    ``labels`` are the queries' (name, identity, camera) as text, empty where unknown; the arrays are those of
    :class:`~posereid.evaluation.ranking.RankingResult`.
    """

    labels: tuple[tuple[str, str, str], ...]
    first_hit_ranks: npt.NDArray[np.int64]
    average_precisions: npt.NDArray[np.float64]
    inverse_negative_penalties: npt.NDArray[np.float64]

    @classmethod
    def of(cls, search: "Search") -> "QueryFigures":
        """The figures of a search's queries."""
        query, result = search.query, search.result
        blank = ("",) * len(query)
        names = blank if query.names is None else query.names
        cameras = blank if query.cameras is None else tuple(map(str, query.cameras))
        return cls(
            tuple(zip(names, map(str, query.identities), cameras, strict=True)),
            result.first_hit_ranks,
            result.average_precisions,
            result.inverse_negative_penalties,
        )

    @property
    def identities(self) -> list[str]:
        """Each query's identity."""
        return [identity for _, identity, _ in self.labels]

    def headlines(self) -> dict[str, npt.NDArray[np.float64]]:
        """Each headline's value for each query."""
        return headline_values(self.first_hit_ranks, self.average_precisions, self.inverse_negative_penalties)

    def as_csv(self) -> str:
        """The CSV, every digit kept; an unmatched query has rank 0 and empty figures."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in zip(
            self.labels,
            self.first_hit_ranks.tolist(),
            self.average_precisions.tolist(),
            self.inverse_negative_penalties.tolist(),
            strict=True,
        ):
            labels, rank, *figures = row
            writer.writerow([*labels, rank, *("" if math.isnan(figure) else repr(figure) for figure in figures)])
        return text.getvalue()

    @classmethod
    def read(cls, path: Path) -> "QueryFigures":
        """Read what :meth:`as_csv` made. Raises :class:`InputError` for another file or a figure out of range."""
        labels: list[tuple[str, str, str]] = []
        ranks: list[int] = []
        precisions: list[float] = []
        penalties: list[float] = []
        for line, row in read_rows(path, COLUMNS):
            labels.append((row["query"], row["identity"], row["camera"]))
            if not re.fullmatch("[0-9]{1,9}", row["first_hit_rank"]):
                found = f"first_hit_rank {shown(row['first_hit_rank'])}"
                raise complaint(f"{path}, line {line}", found, "0, 1, 2 …", "evaluate again")
            rank = int(row["first_hit_rank"])
            ranks.append(rank)
            for name, figures in (("average_precision", precisions), ("inverse_negative_penalty", penalties)):
                figures.append(_share(path, line, name, row[name], matched=rank > 0))
        return cls(tuple(labels), np.array(ranks, np.int64), np.array(precisions), np.array(penalties))


def _share(path: Path, line: int, name: str, text: str, *, matched: bool) -> float:
    if not matched and not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (matched and 0 <= value <= 1):
        raise complaint(
            f"{path}, line {line}",
            f"{name} {shown(text)}",
            "a number from 0 to 1" if matched else "nothing, the query has no match",
            "evaluate again",
        )
    return value
