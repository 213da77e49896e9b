"""How the tables of the ablation word figures, differences and what their intervals are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posereid.ablation.figures import one_sign
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


def difference(row: Mapping[str, Any], against: str, digits: int = 1, *, every_generator: bool = False) -> str:
    """A difference ``[mean, low, high]`` with its interval, in bold where the interval leaves zero out.

    With ``every_generator`` the mean difference of each generator seed must have the same sign, too.
    """
    if against not in row or None in row[against]:
        return "–"
    middle, low, high = row[against]
    text = f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    real = (low > 0 or high < 0) and (not every_generator or one_sign(row, against))
    return f"**{text}**" if real else text


def spread(row: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A mean with its interval, ``[mean, low, high]`` under ``mean``."""
    if row is None or row["mean"][0] is None:
        return "–"
    middle, low, high = row["mean"]
    return f"{middle:.{digits}f}" + ("" if None in (low, high) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def captioned(table: str, results: Mapping[str, Any], *, quality: bool = False) -> str:
    """A table with what its intervals are, how many they are, and what bold means.

    Intervals of image ``quality`` are over people alone.
    """
    # What is said above a table is in it, too.
    count = sum(len(_DIFFERENCE.findall(line)) for line in table.splitlines() if line.startswith("|"))
    shared = results["shared_generators"]
    seeds = len(results["generator_seeds"])
    share = f"{100 * results['confidence']:g} %"
    if quality or shared:
        whose = "over people" if quality else "over re-ID seeds and people"
        scope = f"for these {seeds} generators" if seeds > 1 else "for this one generator"
        scope = f"{whose}, {scope} and no others"
        also = " and the mean differences of all generator seeds have one sign"
    else:
        scope, also = "over seeds, each with a generator of its own, and people", ""
    if len(results["seeds"]) == 1 and not quality:
        scope = "over people, for this one seed"
    caption = f"Intervals of {share} {scope}."
    if count:
        caption += (
            f" This table has {count} difference{'s' * (count > 1)} with an interval, about "
            f"{count * (1 - results['confidence']):.1f} of which would leave zero out by chance alone; bold where the "
            f"interval does{also}."
        )
    return f"{table}\n\n{caption}"
