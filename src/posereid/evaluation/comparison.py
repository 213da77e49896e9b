"""Whether one run searches better than another: a paired bootstrap on the same queries."""

import json
from pathlib import Path
from typing import Any

from posereid.errors import InputError
from posereid.evaluation.bootstrap import paired_difference
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.per_query import QueryFigures

EVALUATION_FILE = "evaluation.json"
QUERIES_SUFFIX = "-queries.csv"
RERANKED_SUFFIX = "-queries-reranked.csv"


def queries_file(evaluation_file: Path, *, reranked: bool = False) -> Path:
    """Where an evaluation's per-query figures lie: beside its JSON, under its name."""
    return evaluation_file.with_name(evaluation_file.stem + (RERANKED_SUFFIX if reranked else QUERIES_SUFFIX))


def compare(
    first: Path,
    second: Path,
    *,
    reranked: bool = False,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two evaluated runs on the queries that both were asked.

    ``first`` and ``second`` are runs' folders, or the JSON files that ``posereid evaluate`` wrote. Every headline's
    difference, second minus first, comes with its interval over identities (both runs see the same draws of people)
    and with whether it leaves zero out. Figures are in percent. Raises :class:`InputError` where a run has not been
    evaluated, or the two were asked different queries or searched different galleries.
    """
    files = [_evaluation_file(path) for path in (first, second)]
    evaluations = [_read(file) for file in files]
    figures = [QueryFigures.read(_existing(queries_file(file, reranked=reranked), reranked)) for file in files]
    _require_same_test(files, evaluations, figures)
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
        percent = {key: round(100 * getattr(found, key), 2) for key in ("first", "second", "difference", "low", "high")}
        rows[name] = percent | {"p_value": round(found.p_value, 5), "real": found.real}
    return {
        "first": str(first),
        "second": str(second),
        "seeds": [evaluation.get("seed") for evaluation in evaluations],
        "queries": int((figures[0].first_hit_ranks > 0).sum()),
        "identities": len(set(figures[0].identities)),
        "reranked": reranked,
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
        + (", re-ranked" if comparison["reranked"] else ""),
        f"  {'':<10}{'A %':>8}{'B %':>8}{'B - A':>9}   {share + ' interval':<20}{'p':>8}   is it real?",
    ]
    for name, row in comparison["differences"].items():
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        verdict = ("B is better" if row["difference"] > 0 else "A is better") if row["real"] else "cannot be told apart"
        lines.append(
            f"  {HEADLINES[name]:<10}{row['first']:>8.2f}{row['second']:>8.2f}{row['difference']:>+9.2f}   "
            f"{interval:<20}{row['p_value']:>8.4f}   {verdict}"
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


def _existing(path: Path, reranked: bool) -> Path:
    if not path.is_file():
        remedy = "evaluate again with --rerank" if reranked else "evaluate again"
        raise InputError(f"{path}, the figures of each query, is not there; {remedy}.")
    return path


def _read(file: Path) -> dict[str, Any]:
    try:
        evaluation = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); evaluate again.") from None
    if not isinstance(evaluation, dict) or "schema" not in evaluation:
        raise InputError(f"{file} was not written by posereid evaluate; give a run's folder or its evaluation.json.")
    return evaluation


def _require_same_test(files: list[Path], evaluations: list[dict[str, Any]], figures: list[QueryFigures]) -> None:
    tests = [(evaluation.get("data") or {}).get("test_fingerprint") for evaluation in evaluations]
    names = [[name for name, _, _ in table.labels] for table in figures]
    same_names = names[0] == names[1] or not all(names[0]) or not all(names[1])
    if tests[0] != tests[1] or not same_names or len(names[0]) != len(names[1]):
        raise InputError(
            f"{files[0]} and {files[1]} were measured on different tests: queries, gallery or same-camera rule differ; "
            "only evaluations of the same test can be compared."
        )
