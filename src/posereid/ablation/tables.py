"""The tables of the ablation as Markdown, all made from results.json."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from posereid.ablation.conditions import evaluation_tables, is_evaluation
from posereid.ablation.figures import BY_GENERATOR
from posereid.ablation.results import USES
from posereid.ablation.rows import FULL, REAL, TEXTURE
from posereid.ablation.wording import captioned, difference, markdown, spread
from posereid.ablation.work import FLIP, FUSED, SEARCH_ONLY
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

_MARK = re.compile(r"(<!-- figures ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def ablation_tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Every table by its name; those of which the results hold nothing are left out."""
    rows: dict[str, Any] = results["rows"]
    tables = {
        "table3": _table3(rows),
        "training": _differences(rows, FLIP, list(HEADLINES)),
        "search": _search(rows),
        "best": _best(results),
    }
    return {
        "facts": _facts(results),
        **{name: captioned(text, results) for name, text in tables.items()},
        **{name: captioned(text, results, quality=True) for name, text in _quality_tables(rows).items()},
        "seeds": _seeds(results),
        **({"search-controls": _search_controls(results)} if "search_controls" in results else {}),
    }


def _facts(results: Mapping[str, Any]) -> str:
    data, hours = results["data"], results["seconds"]["total"] / 3600
    days = dict.fromkeys(results[name][:10] for name in ("began", "finished"))
    devices = [
        f"CPU ({_listed(results['machines'])}, threads to a cell: {_listed(results['threads'])})"
        if each == "cpu"
        else each
        for each in results["devices"]
    ]
    shared = results["shared_generators"]
    lines = [
        f"`{results['command']}`",
        "",
        f"{' to '.join(days)}, {_listed(devices)}, PyTorch {_listed(results['torch'])}; {hours:.2f} hours in the "
        f"cells. Re-ID seeds {_listed(results['seeds'])}, generator seeds {_listed(results['generator_seeds'])}"
        f"{', which the re-ID seeds share in turn' if shared else ', one for each re-ID seed'}. "
        f"{data['training_crops']:,} training crops of {data['training_identities']:,} people; "
        f"{data['query']:,} queries of {data['test_identities']:,} other people, gallery of {data['gallery']:,} crops.",
    ]
    if results["fusion"]:
        lines.append(_fusion_facts(results))
    if results["note"]:
        lines.append(results["note"])
    if results["unfinished"]:
        lines.append(f"Not finished, and in no table: {', '.join(results['unfinished'])}.")
    return "\n".join(lines)


def _fusion_facts(results: Mapping[str, Any]) -> str:
    """The settings of fusion with each row's generators, and with which seeds they were chosen."""
    settings = []
    for key, found in results["fusion"].items():
        poses = found["settings"]["poses"]
        settings.append(f"{key} weight {found['settings']['weight']:g}, {poses} pose{'s' * (poses > 1)}")
    chosen = next(iter(results["fusion"].values()))["chosen"]
    if not chosen:
        return f"Fusion, as the recipe says: {'; '.join(settings)}."
    text = f"Fusion, chosen on held-out people by the networks of seeds {_listed(chosen['seeds'])}"
    if chosen["seeds"] != results["seeds"]:
        text += " (those of the first call; other seeds keep that choice)"
    return f"{text}: {'; '.join(settings)}."


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _table3(rows: Mapping[str, Any]) -> str:
    return markdown(
        ["", *(f"{label} %" for label in HEADLINES.values()), "rank-1 − full", "the paper's rank-1 % (− full)"],
        (
            [
                row["label"],
                *(spread(row["reid"][FLIP][name]) for name in HEADLINES),
                difference(row["reid"][FLIP]["rank1"], "minus_full"),
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


def _best(results: Mapping[str, Any]) -> str:
    """The use of generated crops that the held-out people chose, and every row's uses, against real crops only."""
    rows = results["rows"]
    lines = []
    for key, row in rows.items():
        precisions = (row["validation"] or {"mAP": {}})["mAP"]
        for use, label in USES.items():
            if key != REAL and use in row["reid"]:
                mean = precisions.get(use, {}).get("mean")
                tested = row["reid"][use]
                lines.append(
                    [
                        row["label"],
                        label,
                        "–" if mean is None else f"{mean:.2f}",
                        *(difference(tested[name], "minus_real") for name in ("mAP", "rank1")),
                    ]
                )
    control = "− real crops only"
    header = ["generated crops", "used", "held-out mAP %", f"test mAP {control}", f"test rank-1 {control}"]
    return f"{_chosen(results)}\n\n{markdown(header, lines)}"


def _chosen(results: Mapping[str, Any]) -> str:
    """Which use was chosen before the test was looked at, and what it gains there: the claim."""
    best = results["best"]
    if best is None:
        return (
            "Nothing was chosen: without held-out people (data.validation_share), or a row with a generator, no row "
            "and use is the best beforehand, and the largest of the differences below is no claim."
        )
    tested = results["rows"][best["row"]]["reid"][best["use"]]
    gains = [f"{difference(tested[name], 'minus_real')} {HEADLINES[name]}" for name in ("mAP", "rank1")]
    beside = "" if best["real_mAP"] is None else f"; real crops only reach {best['real_mAP']:.2f} %"
    return (
        f"Chosen by mAP on the held-out people ({best['queries']} queries of {best['identities']}), flip averaging on, "
        f"of {best['compared']} rows and uses: {results['rows'][best['row']]['label']}, {USES[best['use']]} "
        f"({best['mAP']:.2f} %{beside}). The claim is its difference to real crops only on the test, flip averaging on "
        f"both sides: {' and '.join(gains)}."
    )


def _search_controls(results: Mapping[str, Any]) -> str:
    """Searches with one thing changed at a time, as benchmarks/search_controls.py measured them."""
    controls = results["search_controls"]
    table = markdown(
        ["search, flip averaging on", "weight", "held-out mAP %", "rank-1 %", "mAP %", "rank-1 − flip", "mAP − flip"],
        (
            [
                row["label"],
                "–" if row["weight"] is None else f"{row['weight']:g}",
                f"{row['held_out']:.2f}",
                *(spread(row[name]) for name in ("rank1", "mAP")),
                *(difference(row, f"{name}_minus_flip") if number else "–" for name in ("rank1", "mAP")),
            ]
            for number, row in enumerate(controls["rows"])
        ),
    )
    seeds = f"seeds {_listed(controls['seeds'])}"
    share = 100 * results["confidence"]
    return f"{table}\n\nIntervals of {share:g} % over {seeds}, each with a generator of its own, and people."


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
    """Rank-1 / mAP under flip averaging, seed by seed, and the paired differences by the generators' seeds."""
    rows = results["rows"]
    figures = markdown(
        ["rank-1 / mAP %, flip", *(f"seed {seed}" for seed in results["seeds"])],
        (
            [
                row["label"],
                *(
                    f"{rank1:.1f} / {precision:.1f}"
                    for rank1, precision in zip(
                        *(row["reid"][FLIP][name]["seeds"] for name in ("rank1", "mAP")), strict=True
                    )
                ),
            ]
            for row in rows.values()
        ),
    )
    of_generators = list(dict.fromkeys(map(str, results["generator_of_seed"].values())))
    lines = []
    for key, row in rows.items():
        for search, label in USES.items() if key != REAL else ():
            figure = row["reid"].get(search, {}).get("mAP", {})
            for against, name in (("minus_full", "full"), ("minus_real", "real crops only")):
                if means := figure.get(f"{against}{BY_GENERATOR}"):
                    cells = [means.get(seed) for seed in of_generators]
                    shown = ["–" if mean is None else f"{mean:+.1f}" for mean in cells]
                    lines.append([f"{row['label']}, {label} − {name}", *shown])
    header = ["mAP, paired difference", *(f"generator seed {seed}" for seed in of_generators)]
    return f"{figures}\n\n{markdown(header, lines)}"


def filled(document: str, results: Mapping[str, Mapping[str, Any]], place: str = "The document") -> str:
    """The document with the table ``NAME TABLE`` after every ``<!-- figures NAME TABLE -->``, up to ``<!-- end -->``.

    ``results`` are what ``posereid ablate`` or ``posereid evaluate`` wrote, by name. Raises InputError for a mark that
    names no table, and where there is no mark.
    """
    known = {
        f"{name} {table}": text
        for name, found in results.items()
        for table, text in (evaluation_tables(found) if is_evaluation(found) else ablation_tables(found)).items()
    }

    def replaced(mark: re.Match[str]) -> str:
        if mark[2] not in known:
            raise InputError(
                f"{place} has the mark <!-- figures {mark[2]} -->, and there is no such table; there are "
                f"{', '.join(known)}."
            )
        return f"{mark[1]}{known[mark[2]]}\n{mark[3]}"

    text, count = _MARK.subn(replaced, document)
    if not count:
        raise InputError(f"{place} has no marks <!-- figures NAME TABLE --> and <!-- end -->; write them there.")
    return text
