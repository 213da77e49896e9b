"""What fusion at search time brings, in words and rows, for the printed table and for the report."""

from collections.abc import Iterator, Mapping
from typing import Any

from posereid.evaluation.bootstrap import ENOUGH_PEOPLE
from posereid.evaluation.headlines import HEADLINES
from posereid.fusion import uses_poses

FUSION_LABELS = {
    "off": "off: a crop's own embedding",
    "flip": "flip: with its mirror image (control)",
    "fusion": "fusion: with generated poses",
    "fusion+flip": "fusion+flip: both",
    "nfc": "nfc: own, centralised over neighbours",
    "all": "all: fusion+flip, then nfc",
}
"""How tables call each mode."""

_SHOWN = ("rank1", "rank5", "rank10", "mAP", "mINP")
_MEASURED = ("rank1", "mAP")


def fusion_text(fusion: Mapping[str, Any]) -> str:
    """What the rows are, and what to mind about them, as paragraphs."""
    settings, rows = fusion["settings"], fusion["rows"]
    first = (
        "Each row searches the same gallery for the same queries, by other embeddings of the crops. flip averages a "
        "crop's embedding with that of its mirror image and is the control: what generated poses bring beyond it is "
        "what they are worth. Costs are milliseconds for each crop, query or gallery, as measured when it was "
        "embedded; the look-up of neighbours is not in them."
    )
    paragraphs = [first]
    drawn = [row for row in rows.values() if row["draws"]]
    if drawn:
        weighed = "weighed by D_I's word on each" if settings["by_realism"] else "all weighed alike"
        poses = f"poses of {settings['pose_file']}" if settings["pose_file"] else "named poses"
        paragraphs.append(
            f"Generated poses: {settings['poses']} {poses}, {weighed}, drawn by {fusion['generator']}; their mean has "
            f"the weight {settings['weight']:g}. {drawn[0]['crops_without_pose']:,} of {drawn[0]['crops']:,} crops "
            "have no usable pose and keep their own embedding."
        )
    elif fused := [mode for mode in rows if uses_poses(mode)]:
        paragraphs.append(
            "Nothing was fused: the weight of generated poses is 0, as it is until it is tuned, so "
            f"{' and '.join(fused)} drew nothing and equal the rows without poses. `posereid tune-fusion` chooses a "
            "weight on people whom both runs held out (data.validation_share), and --fusion.weight sets one."
        )
    if transductive := [mode for mode, row in rows.items() if row["transductive"]]:
        pooled = (
            "with queries and gallery pooled, so that queries are each other's and the gallery's neighbours"
            if settings["pool_sides"]
            else "among the queries and among the gallery apart"
        )
        paragraphs.append(
            f"{' and '.join(transductive)} {'are' if len(transductive) > 1 else 'is'} transductive: neighbour feature "
            f"centralisation looks at other crops of the test set, here {pooled}. A search for one person alone cannot "
            "do that, so such figures belong beside re-ranked ones, not beside the other rows."
        )
    return "\n\n".join(paragraphs)


def headline_cells(fusion: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each mode's headlines in percent, and its cost for each crop."""
    header = ["", *(f"{HEADLINES[name]} %" for name in _SHOWN), "ms per crop"]
    rows = [
        [
            FUSION_LABELS[mode],
            *(_number(row[name], ".2f") for name in _SHOWN),
            _number(row["cost_ms_per_crop"], ".2f"),
        ]
        for mode, row in fusion["rows"].items()
    ]
    return header, rows


def difference_cells(fusion: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: how far each mode's rank-1 and mAP lie from each control's, with intervals."""
    header = ["", *(f"{HEADLINES[name]} - {control}'s" for control in ("off", "flip") for name in _MEASURED)]
    rows = [
        [
            FUSION_LABELS[mode],
            *(
                _difference(row["differences"].get(control, {}).get(name))
                for control in ("off", "flip")
                for name in _MEASURED
            ),
        ]
        for mode, row in fusion["rows"].items()
        if row["differences"] and mode != "off"
    ]
    return header, rows


def difference_caption(fusion: Mapping[str, Any], confidence: float) -> str:
    """What the differences are, and when they are real."""
    people = next(iter(fusion["rows"].values()))["query_identities"]
    caption = (
        f"Percentage points; in brackets {100 * confidence:g} % intervals over people, both searches seeing the same "
        "draws; * where the interval leaves zero out."
    )
    if people < ENOUGH_PEOPLE:
        caption += f" With fewer than {ENOUGH_PEOPLE} people they are too narrow, so nothing is called real."
    return caption


def fusion_lines(fusion: Mapping[str, Any], confidence: float) -> Iterator[str]:
    """The section of the printed table."""
    yield "fusion at search time, the same queries and gallery for each row"
    yield from _aligned(*headline_cells(fusion))
    yield from _aligned(*difference_cells(fusion))
    yield f"  {difference_caption(fusion, confidence)}"
    yield from (f"  {paragraph}" for paragraph in fusion_text(fusion).split("\n\n")[1:])


def _aligned(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    for label, *cells in (header, *rows):
        texts = (f"{text:>{width}}" for text, width in zip(cells, widths[1:], strict=True))
        yield f"  {label:<{widths[0]}}" + "".join(texts)


def _difference(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["low"] is None:
        return f"{row['difference']:+.2f}"
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]{'*' if row['real'] else ''}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
