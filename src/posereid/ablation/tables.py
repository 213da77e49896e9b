"""The tables of the ablation as Markdown, all made from results.json."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from posereid.ablation.results import SEARCH_ONLY
from posereid.ablation.rows import FULL, REAL, TEXTURE
from posereid.ablation.work import FUSED
from posereid.errors import InputError
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.picture_measures import ANSWERS

QUALITY_LABELS = {
    "ssim": "SSIM",
    "foreground_ssim": "foreground SSIM",
    "mask_ssim": "mask-SSIM",
    "pckh": "PCKh",
    "identity": "identity preserved",
    "foreground_identity": "identity, foreground",
}
SEARCH_LABELS = {"off": "off", "flip": "flip", FUSED: FUSED, SEARCH_ONLY: f"{FUSED} of the network that saw real crops"}

_MARK = re.compile(r"(<!-- figures ([^\n]*?) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def ablation_tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its name; those of which the results hold nothing are left out."""
    rows: dict[str, Any] = results["rows"]
    return {
        "facts": _facts(results),
        "table3": _table3(rows),
        "training": _differences(rows, "flip", list(HEADLINES)),
        "search": _search(rows),
        "best": _best(rows),
        **_quality_tables(rows),
        "seeds": _seeds(results),
    }


def _facts(results: Mapping[str, Any]) -> str:
    data, seconds = results["data"], results["seconds"]
    hours = seconds["total"] / 3600
    device = results["device"] if results["device"] != "cpu" else f"CPU, {results['threads']} threads"
    lines = [
        f"`{results['command']}`",
        "",
        f"{results['date']}, {device} ({results['machine']}), PyTorch {results['versions']['torch']}, "
        f"{results['jobs']} cell{'s' * (results['jobs'] > 1)} at a time; {hours:.2f} hours in the cells. Re-ID seeds "
        f"{_listed(results['seeds'])}, generator seeds {_listed(results['generator_seeds'])}. "
        f"{data['training_crops']:,} training crops of {data['training_identities']:,} people; "
        f"{data['query']:,} queries of {data['test_identities']:,} other people, gallery of {data['gallery']:,} crops.",
    ]
    if (fusion := results["fusion"]["settings"]) is not None:
        chosen = results["fusion"]["chosen"]
        lines.append(
            f"Fusion: weight {fusion['weight']:g}, {fusion['poses']} pose{'s' * (fusion['poses'] > 1)}, "
            + ("chosen on held-out people." if chosen else "as the recipe says.")
        )
    if results["unfinished"]:
        lines.append(f"Not finished, and in no table: {', '.join(results['unfinished'])}.")
    return "\n".join(lines)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _table3(rows: Mapping[str, Any]) -> str:
    return markdown(
        ["", *(f"{label} %" for label in HEADLINES.values()), "rank-1 − full", "the paper's rank-1 % (− full)"],
        (
            [
                row["label"],
                *(spread(row["reid"]["flip"][name]) for name in HEADLINES),
                difference(row["reid"]["flip"]["rank1"], "minus_full"),
                _published(row, rows),
            ]
            for row in rows.values()
        ),
    )


def _published(row: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    own, full = row["published_rank1"], rows.get(FULL, {}).get("published_rank1")
    if own is None:
        return "–"
    return f"{own:.1f}" if full is None or row is rows[FULL] else f"{own:.1f} ({own - full:+.1f})"


def _differences(rows: Mapping[str, Any], search: str, figures: Sequence[str]) -> str:
    """Differences to ``full`` and to ``real`` of the networks by themselves, under flip averaging on both sides."""
    return markdown(
        [
            "trained on",
            *(f"{HEADLINES[name]} − full" for name in figures),
            *(f"{HEADLINES[name]} − real" for name in figures),
        ],
        (
            [
                row["label"],
                *(
                    difference(row["reid"][search][name], against)
                    for against in ("minus_full", "minus_real")
                    for name in figures
                ),
            ]
            for row in rows.values()
        ),
    )


def _search(rows: Mapping[str, Any]) -> str:
    """Every search's rank-1 and mAP, and what they gain over real crops only with flips."""
    lines = []
    for row in rows.values():
        for search, figures in row["reid"].items():
            lines.append(
                [
                    row["label"],
                    SEARCH_LABELS[search],
                    *(spread(figures[name]) for name in ("rank1", "mAP")),
                    *(difference(figures[name], "minus_real") for name in ("rank1", "mAP")),
                    difference(figures["mAP"], "minus_full"),
                ]
            )
    control = "real, flip (off beside off)"
    return markdown(
        ["generated crops", "search", "rank-1 %", "mAP %", f"rank-1 − {control}", f"mAP − {control}", "mAP − full"],
        lines,
    )


def _best(rows: Mapping[str, Any]) -> str:
    """Each row's three uses of generated crops against real crops only, flip averaging on both sides."""
    uses = {"flip": "in training", SEARCH_ONLY: "at search time", FUSED: "in both"}
    return markdown(
        ["mAP − real crops only with flips", *uses.values()],
        (
            [row["label"], *(difference(row["reid"].get(search, {}).get("mAP", {}), "minus_real") for search in uses)]
            for key, row in rows.items()
            if key != REAL
        ),
    )


def _quality_tables(rows: Mapping[str, Any]) -> dict[str, str]:
    measured = {key: row for key, row in rows.items() if row["quality"]}
    found = {}
    if measured:
        figures = [name for name in QUALITY_LABELS if any(name in row["quality"] for row in measured.values())]
        found["quality"] = markdown(
            ["generator", *(QUALITY_LABELS[name] for name in figures)],
            ([row["label"], *(spread(row["quality"].get(name), 3) for name in figures)] for row in measured.values()),
        )
        found["quality-differences"] = markdown(
            ["generator, minus full", *(QUALITY_LABELS[name] for name in figures)],
            (
                [row["label"], *(difference(row["quality"].get(name, {}), "minus_full", 3) for name in figures)]
                for key, row in measured.items()
                if key != FULL
            ),
        )
    for key in (FULL, TEXTURE):
        if key in measured:
            found[f"controls-{key}"] = _controls(measured[key]["quality"])
    return found


def _controls(quality: Mapping[str, Any]) -> str:
    """What answers without the generator, or with wrong inputs, score, and how much better the generated crops are."""
    figures = [name for name in QUALITY_LABELS if name in quality]
    lines = [["generated", *(spread(quality[name], 3) for name in figures)]]
    for answer, label in ANSWERS.items():
        known = {name: quality[name]["answers"].get(answer) for name in figures}
        if any(known.values()):
            lines.append([label, *(spread(known[name], 3) for name in figures)])
            lines.append(
                [f"generated − {label}", *(difference(known[name] or {}, "generated_minus", 3) for name in figures)]
            )
    shares = []
    for name in figures:
        target = (quality[name]["answers"].get("target") or {"mean": [None]})["mean"][0]
        shares.append(f"{quality[name]['mean'][0] / target:.2f}" if target else "–")
    if any(share != "–" for share in shares):
        lines.append(["generated, as a share of the real target", *shares])
    return markdown(["answer", *(QUALITY_LABELS[name] for name in figures)], lines)


def _seeds(results: Mapping[str, Any]) -> str:
    """Rank-1 / mAP under flip averaging, seed by seed."""
    return markdown(
        ["rank-1 / mAP %, flip", *(f"seed {seed}" for seed in results["seeds"])],
        (
            [
                row["label"],
                *(
                    f"{rank1:.1f} / {precision:.1f}"
                    for rank1, precision in zip(
                        *(row["reid"]["flip"][name]["seeds"] for name in ("rank1", "mAP")), strict=True
                    )
                ),
            ]
            for row in results["rows"].values()
        ),
    )


def filled(document: str, grids: Mapping[str, Mapping[str, Any]], place: str = "The document") -> str:
    """The document with the table ``NAME TABLE`` after every ``<!-- figures NAME TABLE -->``, up to ``<!-- end -->``.

    ``grids`` are results by name. Raises InputError for a mark that names no table, and where there is no mark.
    """
    known = {
        f"{name} {table}": text for name, results in grids.items() for table, text in ablation_tables(results).items()
    }

    def replaced(mark: re.Match[str]) -> str:
        if mark[2] not in known:
            raise InputError(
                f"{place} has the mark <!-- figures {mark[2]} -->, and there is no such table; there are "
                f"{', '.join(known)}."
            )
        return mark[1] + known[mark[2]] + mark[3]

    text, count = _MARK.subn(replaced, document)
    if not count:
        raise InputError(f"{place} has no marks <!-- figures NAME TABLE --> and <!-- end -->; write them there.")
    return text
