"""How the tables of the ablation word figures, differences and what their intervals are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posereid.errors import InputError

_DIFFERENCE = re.compile(r"(?<!\d)[+-]\d+\.\d+ \[[+-]")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(document: str, tables: Mapping[str, str], place: str = "The document") -> str:
    """The document with each table between its marks ``<!-- NAME -->`` and ``<!-- end -->``.

    Raises InputError, which calls the document ``place``, for a table whose marks are missing.
    """
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not mark.search(document):
            raise InputError(f"{place} has no marks <!-- {name} --> and <!-- end --> for a table; write them there.")
        literal = table.replace("\\", r"\\")
        document = mark.sub(rf"\g<1>{literal}\n\g<2>", document)
    return document


def difference(row: Mapping[str, Any], against: str, digits: int = 1) -> str:
    """A difference ``[mean, low, high]`` with its interval, in bold where the interval leaves zero out."""
    if against not in row or None in row[against]:
        return "–"
    middle, low, high = row[against]
    text = f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def spread(row: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A mean with its interval, ``[mean, low, high]`` under ``mean``."""
    if row is None or row["mean"][0] is None:
        return "–"
    middle, low, high = row["mean"]
    return f"{middle:.{digits}f}" + ("" if None in (low, high) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def captioned(table: str, results: Mapping[str, Any], *, quality: bool = False) -> str:
    """A table with what its intervals are, how many they are, and what bold means; ``quality`` is that of images."""
    # What is said above a table is in it, too.
    count = sum(len(_DIFFERENCE.findall(line)) for line in table.splitlines() if line.startswith("|"))
    generators, seeds = len(set(results["generator_of_seed"].values())), len(results["seeds"])
    if quality:
        scope = f"over {generators} generators and people" if generators > 1 else "over people, for this one generator"
    elif generators > 1:
        scope = f"over {generators} generators, each with its re-ID seeds, and people"
    else:
        scope = f"over {'re-ID seeds and ' if seeds > 1 else ''}people, for this one generator"
    caption = f"Intervals of {100 * results['confidence']:g} % {scope}."
    if count:
        caption += (
            f" This table has {count} difference{'s' * (count > 1)} with an interval, about "
            f"{count * (1 - results['confidence']):.1f} of which would leave zero out by chance alone; bold where the "
            "interval does."
        )
    return f"{table}\n\n{caption}"
