"""An evaluation's figures as one table for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from posereid.evaluation.bootstrap import ENOUGH_PEOPLE
from posereid.evaluation.fused_table import fusion_lines
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.picture_measures import ANSWERS, FOREGROUND, IMAGE, MEASURES

_LABEL_WIDTH = 36


def evaluation_table(figures: Mapping[str, Any]) -> str:
    """The figures of :class:`~posereid.evaluation.evaluate.Evaluation` as text."""
    return "\n".join(
        [
            *_data_lines(figures),
            *_search_lines(figures),
            *_fusion_lines(figures),
            *_verification_lines(figures),
            *_generator_lines(figures),
            *(f"{what} was not measured: {reason}" for what, reason in not_measured(figures)),
        ]
    )


_PARTS = {
    "reid": "re-identification",
    "reid_reranked": "re-ranked re-identification",
    "fusion": "search by fused embeddings",
    "verification": "same person or not",
    "generator": "image quality",
    "foreground": "image quality of the person alone",
}


def not_measured(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an evaluation lacks, as tables call it, and why, a sentence each."""
    labels = _PARTS | {name: measure.label for name, measure in MEASURES.items()} | ANSWERS
    return [(labels[part], reason) for part, reason in figures.get("not_measured", {}).items()]


def own_crop_notes(reid: Mapping[str, Any]) -> list[str]:
    """What to know of queries that are, or seem to be, in the gallery too; a sentence each."""
    notes = []
    if own := reid.get("own_crops_left_out"):
        notes.append(f"{own:,} queries are in the gallery too; each is left out of its own ranking.")
    if same := reid.get("same_features"):
        notes.append(
            f"{same:,} queries have a right crop with exactly their own features, most likely themselves, which makes "
            "the search look better than it is; give names, by which a query is left out of its own ranking, or take "
            "the queries out of the gallery."
        )
    return notes


def _data_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    if left_out := figures["data"].get("files_left_out"):
        yield f"{left_out} files of the set are left out; `posereid check` names them."


def _search_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    share = f"{100 * figures['confidence']:g} % interval"
    for key, name in (("reid", "re-identification"), ("reid_reranked", "re-identification, re-ranked")):
        if not (reid := figures.get(key)):
            continue
        unmatched = reid["queries_without_match"]
        notes = [f"{reid['queries']} queries of {reid['query_identities']} people, gallery of {reid['gallery']}"]
        notes += [f"{unmatched} queries have no match and are left out"] if unmatched else []
        notes += [] if reid["same_camera_rule"] else ["without the same-camera rule"]
        notes += [f"among each query's nearest {nearest} crops"] if (nearest := reid.get("reranked_candidates")) else []
        notes += ["trapezoid AP"] if reid["average_precision"] == "trapezoid" else []
        notes += [f"multi-query, {reid['multi_query']}"] if reid.get("multi_query", "none") != "none" else []
        yield f"{name}: {'; '.join(notes)}"
        yield from (f"  {note}" for note in own_crop_notes(reid))
        yield f"  {'':<{_LABEL_WIDTH}}{'':>10}   {share}"
        for headline, label in HEADLINES.items():
            yield f"  {label:<{_LABEL_WIDTH}}{reid[headline]:8.2f} %   {_bounds(reid['intervals'][headline], '.2f')}"
        yield f"  {'rank-1 of a random order':<{_LABEL_WIDTH}}{reid['chance_rank1']:8.2f} %"
        if reid["query_identities"] < ENOUGH_PEOPLE:
            yield f"  Intervals over fewer than {ENOUGH_PEOPLE} people are too narrow; do not rely on them."


def _fusion_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    if fusion := figures.get("fusion"):
        yield from fusion_lines(fusion, figures["confidence"])


def _verification_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    if not (found := figures.get("verification")):
        return
    metric = figures["reid"]["metric"]
    yield (
        f"same person or not, by {metric} distance: {found['genuine_pairs']:,} genuine and "
        f"{found['impostor_pairs']:,} impostor pairs"
    )
    yield f"  {'equal error rate':<{_LABEL_WIDTH}}{100 * found['equal_error_rate']:8.2f} %   at distance " + (
        f"{found['equal_error_threshold']:.4f}"
    )
    yield f"  {'area under the ROC curve':<{_LABEL_WIDTH}}{found['area_under_curve']:8.4f}"
    yield f"  {'false-match rate':<18}{'threshold and interval':<32}{'true-match rate and interval'}"
    for point in found["operating_points"]:
        rate = f"  {point['stated_false_match_rate']:<18g}"
        if point["threshold"] is None:
            yield f"{rate}{point['note']}"
            continue
        threshold = f"{point['threshold']:.4f} {_bounds(point['threshold_interval'], '.4f')}"
        true = [None if bound is None else 100 * bound for bound in point["true_match_rate_interval"]]
        yield f"{rate}{threshold:<32}{100 * point['true_match_rate']:.2f} % {_bounds(true, '.2f')}"
        if point["note"]:
            yield f"  {'':<18}{point['note']}"
    if found.get("kept_share", 1) < 1:
        yield f"  {sampled_sentence(found['kept_share'])}"


def sampled_sentence(share: float) -> str:
    """That thresholds are those of a sample."""
    return (
        f"Thresholds and intervals are from a random sample of {100 * share:.3g} % of the smallest impostor distances, "
        "which are too many to keep; rates are counted over all pairs."
    )


def _generator_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    if not (generator := figures.get("generator")):
        return
    scores = generator["scores"]
    yield (
        f"image quality over {generator['pairs']} test pairs; each cell: whole image / person alone "
        f"(foreground from {generator['foreground_from']})"
    )
    for chunk in _chunks(list(scores), 4):
        width = max(18, *(len(MEASURES[measure].label) + 4 for measure in chunk))
        yield f"  {'':<{_LABEL_WIDTH}}" + "".join(
            f"{MEASURES[measure].label + (' ↑' if MEASURES[measure].higher_is_better else ' ↓'):>{width}}"
            for measure in chunk
        )
        for answer, label in ANSWERS.items():
            if any(answer in scores[measure] for measure in chunk):
                cells = (cell(scores[measure].get(answer)) for measure in chunk)
                yield f"  {label:<{_LABEL_WIDTH}}" + "".join(f"{text:>{width}}" for text in cells)
    if "identity" in scores:
        yield f"  identity judged by {generator['identity_judged_by']}"
    if unseen := generator["targets_of_unseen_cameras"]:
        yield f"  {unseen:,} targets come from cameras without a training crop; the mean image of all stands for theirs"


def cell(regions: Mapping[str, float | None] | None) -> str:
    """One answer's score as tables show it, whole image / foreground; a dash for what has no value.

    >>> cell({"image": 0.1234, "foreground": 0.5}), cell({"image": 21.3}), cell(None)
    ('.123 / .500', '21.30', '–')
    """
    if regions is None:
        return "–"
    texts = [_number(regions[region]) for region in (IMAGE, FOREGROUND) if region in regions]
    return " / ".join(texts)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _bounds(bounds: list[float | None], form: str) -> str:
    if bounds[0] is None and bounds[1] is None:
        return "–"
    low, high = (("-∞" if index == 0 else "∞") if b is None else format(b, form) for index, b in enumerate(bounds))
    return f"[{low}, {high}]"


def _chunks(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
