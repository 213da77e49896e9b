"""Whether one run searches better than another: a paired bootstrap on the same queries."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from posereid.config import FusionMode
from posereid.errors import InputError
from posereid.evaluation.bootstrap import ENOUGH_PEOPLE, paired_difference
from posereid.evaluation.headlines import HEADLINES, percent
from posereid.evaluation.per_query import QueryFigures
from posereid.messages import shown

EVALUATION_FILE = "evaluation.json"
PLAIN, RERANKED = "reid", "reid_reranked"
QUERIES_SUFFIX = "-queries.csv"
RERANKED_SUFFIX = "-queries-reranked.csv"
FUSION_SUFFIX = "-queries-fusion-"


def queries_file(evaluation_file: Path, *, reranked: bool = False, fusion: FusionMode | None = None) -> Path:
    """Where an evaluation's per-query figures lie, plain, re-ranked or of a fusion mode: beside its JSON."""
    if fusion is not None:
        return evaluation_file.with_name(f"{evaluation_file.stem}{FUSION_SUFFIX}{fusion}.csv")
    return evaluation_file.with_name(evaluation_file.stem + (RERANKED_SUFFIX if reranked else QUERIES_SUFFIX))


def compare(
    first: Path,
    second: Path,
    *,
    reranked: bool = False,
    fusion: FusionMode | None = None,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two evaluated runs on the queries that both were asked.

    ``first`` and ``second`` are runs' folders, or the JSON files that ``posereid evaluate`` wrote; their plain searches
    are compared, the re-ranked ones with ``reranked``, or those of one mode of ``fusion``. Every headline's difference,
    second minus first, comes with its interval over identities (both runs see the same draws of people) and with
    whether it leaves zero out. Figures are in percent. Raises :class:`InputError` where a run has not been evaluated
    so, or the two were asked different queries or searched different galleries.
    """
    if reranked and fusion is not None:
        raise InputError(f"Both re-ranked searches and those of fusion {fusion} were asked for; compare one kind.")
    files = [_evaluation_file(path) for path in (first, second)]
    evaluations = [_read(file) for file in files]
    parts = [_part(evaluation, reranked, fusion) for evaluation in evaluations]
    remedy = "evaluate again" + (f" with --fusion {fusion}" if fusion else " with --rerank" if reranked else "")
    tables = [queries_file(file, reranked=reranked, fusion=fusion) for file in files]
    figures = [_queries(*known, remedy) for known in zip(files, tables, parts, strict=True)]
    _require_same_test(files, evaluations, figures, parts)
    rows = {}
    for name, before in figures[0].headlines().items():
        found = paired_difference(
            before,
            figures[1].headlines()[name],
            figures[0].identities,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        shares = {key: percent(getattr(found, key)) for key in ("first", "second", "difference", "low", "high")}
        p_value = None if math.isnan(found.p_value) else round(found.p_value, 5)
        rows[name] = shares | {"p_value": p_value, "real": found.real}
    matched = [
        identity for identity, rank in zip(figures[0].identities, figures[0].first_hit_ranks, strict=True) if rank
    ]
    return {
        "first": str(first),
        "second": str(second),
        "seeds": [_seed(evaluation) for evaluation in evaluations],
        "queries": len(matched),
        "identities": len(set(matched)),
        "searched_otherwise": _search_differences(evaluations, parts, fusion),
        "reranked": reranked,
        "fusion": fusion,
        "confidence": confidence,
        "resamples": resamples,
        "resampling_seed": seed,
        "differences": rows,
    }


def comparison_table(comparison: dict[str, Any]) -> str:
    """The figures of :func:`compare` as text."""
    share = f"{100 * comparison['confidence']:g} %"
    lines = [
        f"A: {comparison['first']}",
        f"B: {comparison['second']}",
        f"{comparison['queries']} queries of {comparison['identities']} people"
        + (", re-ranked" if comparison["reranked"] else "")
        + (f", fusion {comparison['fusion']}" if comparison.get("fusion") else ""),
        f"  {'':<10}{'A %':>8}{'B %':>8}{'B - A':>9}   {share + ' interval':<20}{'p':>8}   is it real?",
    ]
    few = comparison["identities"] < ENOUGH_PEOPLE
    for name, row in comparison["differences"].items():
        known = row["low"] is not None
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]" if known else "–"
        p_value = f"{row['p_value']:.4f}" if known else "–"
        if few:
            verdict = "too few people to say"
        elif row["real"]:
            verdict = "B is better" if row["difference"] > 0 else "A is better"
        else:
            verdict = "cannot be told apart"
        lines.append(
            f"  {HEADLINES[name]:<10}{row['first']:>8.2f}{row['second']:>8.2f}{row['difference']:>+9.2f}   "
            f"{interval:<20}{p_value:>8}   {verdict}"
        )
    lines += [f"The two searched with different {what}." for what in comparison["searched_otherwise"]]
    if few:
        lines.append(
            f"With fewer than {ENOUGH_PEOPLE} people such intervals are too narrow, so nothing is called real."
        )
    lines.append(
        "The interval says what other people in front of the same cameras would change. It does not know what another "
        "training seed would: compare several."
    )
    return "\n".join(lines)


def _evaluation_file(path: Path) -> Path:
    file = path / EVALUATION_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file} is not there; run posereid evaluate {path} first.")
    return file


def _part(evaluation: dict[str, Any], reranked: bool, fusion: FusionMode | None) -> Any:
    """What an evaluation says of the search that is compared; anything where it is none of ours."""
    if fusion is None:
        return evaluation.get(RERANKED if reranked else PLAIN)
    found: Any = evaluation.get("fusion")
    for name in ("rows", fusion):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _queries(file: Path, path: Path, part: Any, remedy: str) -> QueryFigures:
    """The figures of each query, which must be those that the evaluation was written with."""
    if not path.is_file():
        raise InputError(f"{path}, the figures of each query, is not there; {remedy}.")
    if not isinstance(part, dict) or part.get("queries_sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
        raise InputError(f"{path} does not belong to {file}, which was written with other figures; {remedy}.")
    return QueryFigures.read(path)


def _search_differences(
    evaluations: list[dict[str, Any]], parts: list[dict[str, Any]], fusion: FusionMode | None
) -> list[str]:
    """How two searches of the same test differ that may explain the difference."""
    found = [key for key in ("metric", "multi_query") if parts[0].get(key) != parts[1].get(key)]
    if fusion is not None and evaluations[0]["fusion"].get("settings") != evaluations[1]["fusion"].get("settings"):
        found.append("settings of fusion")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        evaluation = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); evaluate again.") from None
    data = evaluation.get("data") if isinstance(evaluation, dict) else None
    reasons = evaluation.get("not_measured") if isinstance(evaluation, dict) else None
    if isinstance(reasons, dict) and PLAIN in reasons:
        raise InputError(f"{file} holds no search to compare; evaluating found: {shown(reasons[PLAIN], 200)}.")
    if not isinstance(data, dict) or "schema" not in evaluation or not isinstance(data.get("test_fingerprint"), str):
        raise InputError(f"{file} was not written by posereid evaluate; give a run's folder or its evaluation.json.")
    return evaluation


def _seed(evaluation: dict[str, Any]) -> int | None:
    """The seed of the run's recipe; features of another framework have none."""
    seed = evaluation.get("seed")
    return seed if type(seed) is int else None


def _require_same_test(
    files: list[Path], evaluations: list[dict[str, Any]], figures: list[QueryFigures], parts: list[dict[str, Any]]
) -> None:
    kinds = [part.get("average_precision") for part in parts]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{files[0]} has the average precision {shown(kinds[0])} and {files[1]} {shown(kinds[1])}, which are two "
            "different figures; evaluate both with the same --average-precision."
        )
    tests = [evaluation["data"]["test_fingerprint"] for evaluation in evaluations]
    names = [[name for name, _, _ in table.labels] for table in figures]
    same_names = names[0] == names[1] or not all(names[0]) or not all(names[1])
    own = [part.get("own_crops_left_out", 0) for part in parts]
    if tests[0] != tests[1] or not same_names or figures[0].identities != figures[1].identities or own[0] != own[1]:
        raise InputError(
            f"{files[0]} and {files[1]} were measured on different tests: queries, gallery, same-camera rule or crops "
            "that are on both sides differ; only evaluations of the same test can be compared."
        )
