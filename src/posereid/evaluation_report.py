"""An evaluation as a page: who is found, at which threshold, where it fails, and how good the pictures are."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from posereid.config import FusionMode
from posereid.curves import MatchCurve, decimal_rate, match_curves, precision_histogram, receiver_curve
from posereid.data.batches import CropImages
from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError
from posereid.evaluation.comparison import PLAIN, RERANKED, queries_file
from posereid.evaluation.embeddings import Embeddings
from posereid.evaluation.evaluate import Evaluation
from posereid.evaluation.fused_table import difference_caption, difference_cells, fusion_text, headline_cells
from posereid.evaluation.headlines import HEADLINES, RANKS
from posereid.evaluation.per_query import QueryFigures
from posereid.evaluation.picture_measures import ANSWERS, MEASURES
from posereid.evaluation.search import Search
from posereid.evaluation.tables import cell, not_measured, own_crop_notes, sampled_sentence
from posereid.evaluation.verification import OperatingPoint, VerificationResult
from posereid.files import write_atomically
from posereid.pictures import RankedRow, ranked_list_sheet
from posereid.report import Cell, ReportPicture, Section, Table, write_report

FOUND_SHOWN = 10
"""Gallery crops shown for a query."""

# An interval does not break over two lines.
_TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"
_PICTURE_HEIGHT = 128
_CONTROLS = ("wrong_source", "wrong_pose")
_KEY_MEASURES = ("ssim", "lpips", "fid", "identity")


def write_evaluation(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write an evaluation's JSON to ``path``, and its report and each query's figures beside it; return all paths.

    The JSON holds the hash of each file of queries, so that figures of two evaluations never pass for one. Raises
    :class:`InputError` as :func:`evaluation_sections` does.
    """
    written = []
    figures = dict(evaluation.figures)
    for search, reranked in ((evaluation.search, False), (evaluation.reranked, True)):
        file = queries_file(path, reranked=reranked)
        if search is None:
            # An earlier evaluation's queries must not pass for this one's.
            file.unlink(missing_ok=True)
        else:
            content = QueryFigures.of(search).as_csv()
            part = RERANKED if reranked else PLAIN
            figures[part] = figures[part] | {"queries_sha256": hashlib.sha256(content.encode()).hexdigest()}
            write_atomically(file, content)
            written.append(file)
    written += _write_fused(evaluation, figures, path)
    report = path.with_suffix(".html")
    write_evaluation_report(report, evaluation)
    write_atomically(path, json.dumps(figures, indent=1) + "\n")
    return [path, report, *written]


def _write_fused(evaluation: Evaluation, figures: dict[str, Any], path: Path) -> list[Path]:
    """Each query's figures in each fusion mode, their hashes added to the figures; an earlier evaluation's go."""
    written = []
    rows: dict[str, Any] = {}
    for mode in get_args(FusionMode):
        file = queries_file(path, fusion=mode)
        if (search := evaluation.fused.get(mode)) is None:
            file.unlink(missing_ok=True)
            continue
        content = QueryFigures.of(search).as_csv()
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        rows[mode] = figures["fusion"]["rows"][mode] | {"queries_sha256": sha256}
        write_atomically(file, content)
        written.append(file)
    if rows:
        figures["fusion"] = figures["fusion"] | {"rows": rows}
    return written


def write_evaluation_report(path: Path | str, evaluation: Evaluation, *, examples: int = 5) -> None:
    """Write an evaluation as one self-contained HTML page, whole or not at all; missing folders are made.

    The key figures come first, then :func:`evaluation_sections`. Raises :class:`InputError` as there.
    """
    sections = evaluation_sections(evaluation, examples=examples)
    title = f"posereid: evaluation of {evaluation.figures['run']}"
    write_report(path, title=title, summary=_key_figures(evaluation), sections=sections)


def evaluation_sections(evaluation: Evaluation, *, examples: int = 5) -> list[Section]:
    """All there is to say of an evaluation, for a report page: search, generated pictures, circumstances.

    Parts that were not evaluated have no section; where the figures say why, that stands in a table of its own. Raises
    :class:`InputError` as :func:`search_sections` does.
    """
    figures = evaluation.figures
    sections = search_sections(evaluation, examples=examples)
    if figures.get("generator"):
        sections.append(quality_section(figures["generator"], confidence=figures["confidence"]))
    if reasons := not_measured(figures):
        sections.append(Section("What was not measured", tables=[Table(("what", "why"), reasons)]))
    return [*sections, _circumstances(figures)]


def search_sections(evaluation: Evaluation, *, examples: int = 5) -> list[Section]:
    """Who is found, at which threshold crops show one person, and where the search fails; nothing without a search.

    ``examples`` queries that were answered worst, and as many that were answered best, are named, and shown with the
    crops found for them where the evaluation has crops. Raises :class:`InputError` for ``examples`` below 1 and for
    crops that cannot be read.
    """
    if examples < 1:
        raise InputError(f"examples is {examples}; a report shows at least 1 query.")
    if evaluation.search is None:
        return []
    sections = [_found(evaluation, evaluation.search)]
    if fusion := evaluation.figures.get("fusion"):
        sections.append(_fused(fusion, evaluation.figures["confidence"]))
    if evaluation.verification is not None:
        sections.append(_verified(evaluation.verification, evaluation.figures["reid"]["metric"]))
    return [*sections, _failures(evaluation, evaluation.search, examples)]


def _key_figures(evaluation: Evaluation) -> dict[str, Cell]:
    figures, found = evaluation.figures, evaluation.verification
    share = _confidence(figures).replace(" ", "\N{NO-BREAK SPACE}")
    facts: dict[str, Cell] = {}
    for key, addition in (("reid", ""), ("reid_reranked", ", re-ranked")):
        if reid := figures.get(key):
            for headline in ("rank1", "mAP"):
                spread = _span(reid["intervals"][headline], ".1f")
                facts[f"{HEADLINES[headline]}{addition} ({share}: {spread})"] = f"{_number(reid[headline], '.1f')} %"
    if found is not None:
        facts["equal error rate"] = f"{100 * found.equal_error_rate:.2f} %"
    if generator := figures.get("generator"):
        for measure in _KEY_MEASURES:
            score = generator["scores"].get(measure, {}).get("generated", {}).get("image")
            if score is not None:
                bounds = generator["intervals"].get(measure, {}).get("image")
                spread = f" ({share}: {_score_span(bounds)})" if bounds else ""
                facts[f"generated: {MEASURES[measure].label}{spread}"] = cell({"image": score})
    return facts


def _found(evaluation: Evaluation, search: Search) -> Section:
    figures = evaluation.figures
    reid, reranked = figures["reid"], figures.get("reid_reranked")
    curves = {"by distance": _match_curve(search, reid)}
    if evaluation.reranked is not None and reranked:
        curves["re-ranked"] = _match_curve(evaluation.reranked, reranked)
    share = _confidence(figures)
    header = ["", "by distance %", f"{share} interval", *(["re-ranked %", f"{share} interval"] if reranked else [])]
    tables = [row for row in (reid, reranked) if row]
    rows: list[list[Cell]] = [
        [label, *(text for row in tables for text in _headline(row, name))] for name, label in HEADLINES.items()
    ]
    rows.append(["rank-1 of a random order", f"{reid['chance_rank1']:.2f}", *[None] * (len(header) - 2)])
    picture = ReportPicture(
        match_curves(curves, chance_rank1=reid["chance_rank1"] / 100),
        f"Cumulative match characteristic (CMC). Thick bars are {share} intervals at ranks "
        f"{_listed([str(rank) for rank in RANKS])}; the cross is what a random order of the gallery would reach.",
    )
    return Section("Who is found", _search_text(figures), [Table(header, rows)], [picture])


def _fused(fusion: Mapping[str, Any], confidence: float) -> Section:
    tables = [Table(*headline_cells(fusion)), Table(*difference_cells(fusion), difference_caption(fusion, confidence))]
    return Section("What fusion at search time brings", fusion_text(fusion), tables)


def _match_curve(search: Search, reid: Mapping[str, Any]) -> MatchCurve:
    intervals = {rank: reid["intervals"][f"rank{rank}"] for rank in RANKS}
    known = {rank: (low / 100, high / 100) for rank, (low, high) in intervals.items() if None not in (low, high)}
    return MatchCurve(search.result.cmc, known)


def _headline(reid: Mapping[str, Any], name: str) -> tuple[str, str]:
    return _number(reid[name], ".2f"), _span(reid["intervals"][name], ".2f")


def _search_text(figures: Mapping[str, Any]) -> str:
    reid = figures["reid"]
    pooled = {"mean": "averaged", "max": "pooled by their largest values"}
    metric = reid["metric"]
    protocol = [
        f"Each of {reid['queries']:,} queries of {reid['query_identities']:,} people orders a gallery of "
        f"{reid['gallery']:,} crops by {metric} distance. Rank-k is the share of queries with a right crop among the "
        "first k."
    ]
    if reid["same_camera_rule"]:
        protocol.append("Crops that the query's own camera took of the query's person do not count.")
    else:
        protocol.append("Cameras play no part: crops that the query's own camera took of the query's person count too.")
    if _is_pooled(reid):
        protocol.append(
            f"This is multi-query search: the features of all crops of a person in a camera are "
            f"{pooled[reid['multi_query']]} into one query."
        )
    if unmatched := reid["queries_without_match"]:
        protocol.append(f"Queries without any right crop in the gallery are left out of every figure: {unmatched:,}.")
    protocol += own_crop_notes(reid)
    if reid["average_precision"] == "trapezoid":
        protocol.append(
            "mAP is the mean over queries of the average precision by trapezoids, as in the original Market-1501 code."
        )
    else:
        protocol.append("mAP is the mean over queries of the average precision, which averages the precision at hits.")
    protocol.append("mINP asks how far down the last right crop stands.")
    paragraphs = [" ".join(protocol)]
    if reranked := figures.get("reid_reranked"):
        settings = reranked["reranking"]
        paragraphs.append(
            f"Re-ranking (k-reciprocal, Zhong et al. 2017; k1 = {settings['k1']}, k2 = {settings['k2']}, λ = "
            f"{settings['lambda_value']:g}) compares neighbourhoods too. It looks at all queries together, which a "
            "search for one person cannot."
        )
        if nearest := reranked.get("reranked_candidates"):
            paragraphs[-1] += f" In a gallery of this size each query's nearest {nearest:,} crops are re-ranked alone."
    paragraphs.append(
        f"The {_confidence(figures)} intervals are over people: the queries' identities were drawn again with "
        f"replacement {figures['resamples']:,} times. They say what other people before the same cameras would change, "
        "and do not know what another training seed would."
    )
    return "\n\n".join(paragraphs)


def _is_pooled(reid: Mapping[str, Any]) -> bool:
    return reid["multi_query"] != "none"


def _verified(found: VerificationResult, metric: str) -> Section:
    share = f"{100 * found.confidence:g} %"
    text = (
        f"Every query was compared with every gallery crop that the search leaves it: {found.genuine_pairs:,} genuine "
        f"pairs, which show one person, and {found.impostor_pairs:,} impostor pairs, which show two. The area under "
        f"the curve is {found.area_under_curve:.4f}; false matches and misses are equally frequent, "
        f"{100 * found.equal_error_rate:.2f} %, at the distance {found.equal_error_threshold:.4f}."
        "\n\n"
        "How to use a threshold: pick the share of impostor pairs that you can bear to accept, and call two crops the "
        f"same person where the {metric} distance of their embeddings is at most the threshold of that row."
        "\n\n"
        "Other cameras and other people may have other rates at the same threshold: measure some of your own pairs "
        "before you rely on it."
    )
    if found.kept_share < 1:
        text += f"\n\n{sampled_sentence(found.kept_share)}"
    header = [
        "stated false-match rate",
        f"threshold ({metric} distance)",
        "measured false-match rate",
        "true-match rate %",
    ]
    rows: list[list[Cell]] = [_operating_row(point) for point in found.operating_points]
    if any(point.note for point in found.operating_points):
        header.append("note")
        rows = [[*row, point.note] for row, point in zip(rows, found.operating_points, strict=True)]
    caption = (
        f"In brackets: {share} intervals over people, from {found.resamples:,} draws of people on both sides of a pair."
    )
    picture = ReportPicture(
        receiver_curve(found),
        f"Receiver operating characteristic (ROC). Thick bars are {share} intervals of the true-match rate; a hollow "
        "mark is a threshold for which pairs or people are too few.",
    )
    return Section("Same person or not", text, [Table(header, rows, caption)], [picture])


def _operating_row(point: OperatingPoint) -> list[Cell]:
    stated = decimal_rate(point.stated_false_match_rate)
    if math.isnan(point.threshold):
        return [stated, "none", "–", "–"]
    true_matches = [100 * bound for bound in point.true_match_rate_interval]
    return [
        stated,
        f"{point.threshold:.4f} ({_span(point.threshold_interval, '.4f')})",
        f"{decimal_rate(point.false_match_rate)} ({_TO.join(map(decimal_rate, point.false_match_rate_interval))})",
        f"{100 * point.true_match_rate:.2f} ({_span(true_matches, '.2f')})",
    ]


def _failures(evaluation: Evaluation, search: Search, examples: int) -> Section:
    crops = evaluation.crops
    precisions = search.result.average_precisions
    worst, best = _ordered(precisions)[:examples], _ordered(-precisions)[:examples]
    perfect = int((precisions == 1).sum())
    text = (
        "The average precision (AP) of a query is 100 % where all its right crops come before every other crop. "
        f"{perfect:,} of {search.result.evaluated_queries:,} queries reach that."
    )
    ties = ""
    if perfect > len(best):
        ties = f" {perfect:,} queries tie for the best with an AP of 100 %; these come first in the queries' order."
    tables = [
        Table(_QUERY_HEADER, _query_rows(search, worst), "Worst answered queries."),
        Table(_QUERY_HEADER, _query_rows(search, best), f"Best answered queries.{ties}"),
    ]
    pictures = [ReportPicture(precision_histogram(precisions), "Average precision of all queries that have a match.")]
    queries = None if crops is None else _crops_of(search.query, crops.query)
    gallery = None if crops is None else _crops_of(search.gallery, crops.gallery)
    if queries is not None and gallery is not None:
        legend = "A solid green frame is right, a dashed red one is wrong; cameras stand below."
        if _is_pooled(evaluation.figures["reid"]):
            legend += " A pooled query stands with its first crop."
        for rows, which in ((worst, "worst"), (best, "best")):
            caption = f"The queries that were answered {which}, row by row as in the table. {legend}"
            pictures.append(ReportPicture(_sheet(search, queries, gallery, rows), caption))
    return Section("Where it fails", text, tables, pictures)


def _ordered(values: npt.NDArray[np.float64]) -> list[int]:
    """Positions of ascending values, ties in their order; NaN are left out."""
    known = np.flatnonzero(~np.isnan(values))
    return known[np.argsort(values[known], kind="stable")].tolist()


_QUERY_HEADER = ("query", "identity", "camera", "AP %", "rank of the first right crop")


def _query_rows(search: Search, positions: Sequence[int]) -> list[list[Cell]]:
    labels, result = QueryFigures.of(search).labels, search.result
    return [
        [
            labels[position][0] or f"number {position + 1}",
            labels[position][1],
            labels[position][2] or "–",
            f"{100 * result.average_precisions[position]:.2f}",
            int(result.first_hit_ranks[position]),
        ]
        for position in positions
    ]


def _crops_of(side: Embeddings, split: CropTable) -> Sequence[Crop] | None:
    """The crop of each row, None where rows are not a split's crops; pooled queries go by their first crop's name."""
    if side.names == split.names:
        return split
    by_name = {crop.name: crop for crop in split}
    if side.names is None or not set(side.names) <= set(by_name):
        return None
    return [by_name[name] for name in side.names]


def _sheet(search: Search, queries: Sequence[Crop], gallery: Sequence[Crop], positions: Sequence[int]) -> Image.Image:
    rows = []
    for position in positions:
        found = search.ranked(position, FOUND_SHOWN)
        crops = [queries[position], *(gallery[int(index)] for index in found.gallery_indices)]
        images = CropImages(crops, _PICTURE_HEIGHT, _PICTURE_HEIGHT // 2, cache_gb=0)
        query, *answers = [images.image(number).permute(1, 2, 0).numpy() for number in range(len(crops))]
        rows.append(RankedRow(query, answers, found.right, crops[0].camera, [crop.camera for crop in crops[1:]]))
    return ranked_list_sheet(rows, scale=1)


def quality_section(generator: Mapping[str, Any], *, confidence: float = 0.95) -> Section:
    """How good generated pictures are, beside trivial answers and controls, and how each measure is made.

    ``generator`` are those figures of an evaluation, ``confidence`` that of its intervals.
    """
    scores, share = generator["scores"], f"{100 * confidence:g} %"
    text = (
        f"Over {generator['pairs']:,} pairs of test crops, the source was redrawn in the pose of the target and "
        "compared with the real target. Cells hold the whole image / the person alone, cut out by the "
        f"{_FOREGROUND[generator['foreground_from']]}. ↑ marks measures of which more is better, ↓ those of which "
        f"less is. The {share} intervals are over people. Beside the generator stand answers that need none, and what "
        "the real target itself would reach."
    )
    if unseen := generator["targets_of_unseen_cameras"]:
        text += (
            f" {unseen:,} targets come from cameras without a training crop; the mean image of all stands for theirs."
        )
    if "identity" in scores:
        text += f" Identity is judged by {generator['identity_judged_by']}."
    if generator.get("joints_found_by") and "pckh" in scores:
        text += f" Joints are found by {generator['joints_found_by']}."
    controlled = [measure for measure in scores if any(answer in scores[measure] for answer in _CONTROLS)]
    tables = [_scores_table(scores, generator["intervals"], share)]
    if controlled:
        text += (
            "\n\nControls: a wrong source is the picture of somebody else, a wrong pose that of another pair. A score "
            "that hardly falls says that the generator makes little use of what it was given."
        )
        header = ["measure", *(ANSWERS[answer] for answer in ("generated", *_CONTROLS))]
        rows = [
            [_measure_label(measure), *(cell(scores[measure].get(answer)) for answer in ("generated", *_CONTROLS))]
            for measure in controlled
        ]
        tables.append(Table(header, rows))
    tables.append(Table(("measure", "how it is made"), list(_recipes(generator))))
    return Section("How good the pictures are", text, tables)


_FOREGROUND = {"masks": "set's masks", "joints": "shape that its joints suggest, since not all targets have masks"}


def _scores_table(
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    intervals: Mapping[str, Mapping[str, Sequence[float]]],
    share: str,
) -> Table:
    others = [
        answer
        for answer in ANSWERS
        if answer not in ("generated", *_CONTROLS) and any(answer in scores[measure] for measure in scores)
    ]
    header = ["measure", ANSWERS["generated"], f"{share} interval", *(ANSWERS[answer] for answer in others)]
    rows: list[list[Cell]] = []
    for measure, answers in scores.items():
        known = intervals.get(measure, {})
        spans = [_score_span(known[region]) for region in answers["generated"] if region in known]
        cells = [cell(answers.get(answer)) for answer in others]
        rows.append([_measure_label(measure), cell(answers["generated"]), " / ".join(spans) or "–", *cells])
    return Table(header, rows)


def _recipes(generator: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for measure, known in MEASURES.items():
        if measure in generator["scores"]:
            yield known.label, known.recipe
        elif reason := generator["not_measured"].get(measure):
            yield known.label, f"not measured: {reason}"


def _measure_label(measure: str) -> str:
    return f"{MEASURES[measure].label}\N{NO-BREAK SPACE}{'↑' if MEASURES[measure].higher_is_better else '↓'}"


def _circumstances(figures: Mapping[str, Any]) -> Section:
    data, reid, generator = figures["data"], figures.get("reid"), figures.get("generator")
    facts = {
        "run": figures["run"],
        "stage and step": " ".join(str(figures[key]) for key in ("stage", "step") if figures.get(key) is not None),
        "training seed": figures.get("seed"),
        "data set": " ".join(f"{data[key]}" for key in ("root", "layout") if key in data),
        "query and gallery crops": f"{data['query']:,} and {data['gallery']:,}",
        "files left out": data.get("files_left_out"),
        "fingerprint of the data": data.get("fingerprint"),
        "fingerprint of the test": data.get("test_fingerprint"),
        "metric": reid and reid["metric"],
        "seed of the test pairs": generator and generator["pairs_seed"],
        "confidence": _confidence(figures),
        "resamples and their seed": f"{figures['resamples']:,}, {figures['resampling_seed']}",
        "device": f"{figures['device']}, {figures['threads']} threads, {figures['machine']}",
        **{f"version of {name}": version for name, version in figures["versions"].items()},
    }
    rows = [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
    return Section("Circumstances", tables=[Table(("fact", "value"), rows)])


def _confidence(figures: Mapping[str, Any]) -> str:
    return f"{100 * figures['confidence']:g} %"


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return format(value, form)


def _span(bounds: Sequence[float | None], form: str) -> str:
    """An interval as text, a dash where there is none."""
    if all(bound is None or math.isnan(bound) for bound in bounds):
        return "–"
    return _TO.join(_number(bound, form) for bound in bounds)


def _score_span(bounds: Sequence[float]) -> str:
    return _TO.join(cell({"image": bound}) for bound in bounds)


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
