"""What a useful generator must reach on held-out people, and what ``posereid evaluate`` found of it, as tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posereid.ablation.wording import markdown
from posereid.evaluation.picture_measures import ANSWERS, FOREGROUND, IMAGE, MEASURES

REGION_LABELS = {IMAGE: "whole crop", FOREGROUND: "person"}

_MEASURES = ("ssim", "psnr", "mask_ssim", "pckh", "identity")
_SHARES = ("pckh", "identity")


@dataclass(frozen=True)
class Condition:
    """A measure in which generated crops must be ``wanted`` better than another answer, or that share of it."""

    measure: str
    region: str
    other: str
    wanted: float
    share: bool = False


CONDITIONS = (
    Condition("ssim", IMAGE, "copy_source", 0.20),
    Condition("ssim", FOREGROUND, "copy_source", 0.20),
    Condition("ssim", IMAGE, "camera_mean", 0.10),
    Condition("ssim", FOREGROUND, "camera_mean", 0.10),
    Condition("ssim", FOREGROUND, "wrong_source", 0.10),
    Condition("pckh", IMAGE, "target", 0.9, share=True),
    Condition("identity", IMAGE, "target", 0.8, share=True),
)
"""That the source is used, the pose followed and the person kept; what each figure is compared with is in ANSWERS."""


def is_evaluation(results: Mapping[str, Any]) -> bool:
    """Whether results are those of ``posereid evaluate`` with a generator, not those of a grid."""
    return bool(results.get("generator"))


def evaluation_tables(report: Mapping[str, Any]) -> dict[str, str]:
    """The tables of one evaluation by name: ``facts``, ``conditions`` and ``answers``."""
    generator = report["generator"]
    return {
        "facts": _facts(report),
        "conditions": _conditions(generator["scores"]),
        "answers": _answers(generator),
    }


def _facts(report: Mapping[str, Any]) -> str:
    generator = report["generator"]
    return (
        f"{report['device']} ({report['machine']}, threads: {report['threads']}), PyTorch "
        f"{report['versions']['torch']}; seed {report['seed']}, {report['step']:,} steps; {generator['pairs']:,} pairs "
        f"of test people, drawn with seed {generator['pairs_seed']}. Identity judged by the run "
        f"{generator['identity_judged_by']}, joints found by {generator['joints_found_by']}."
    )


def _conditions(scores: Mapping[str, Any]) -> str:
    lines = []
    for condition in CONDITIONS:
        answers = scores[condition.measure]
        drawn, other = answers["generated"][condition.region], answers[condition.other][condition.region]
        found = drawn / other if condition.share else drawn - other
        # The file's figures have four digits; a difference of two must not miss its limit by the binary rest.
        reached = round(found, 4) >= condition.wanted
        lines.append(
            [
                f"{MEASURES[condition.measure].label}, {REGION_LABELS[condition.region]}",
                ANSWERS[condition.other],
                f"{drawn:.3f}",
                f"{other:.3f}",
                f"{found:.3f} of it" if condition.share else f"{found:+.3f}",
                f"≥ {condition.wanted:.2f}" + (" of it" if condition.share else ""),
                "yes" if reached else "**no**",
            ]
        )
    return markdown(["figure", "beside", "generated", "other", "found", "wanted", "reached"], lines)


def _answers(generator: Mapping[str, Any]) -> str:
    """Every answer's figures; generated crops with their intervals over people."""
    scores, intervals = generator["scores"], generator["intervals"]
    columns = [
        (measure, region)
        for measure in _MEASURES
        for region in REGION_LABELS
        if region in scores.get(measure, {}).get("generated", {})
    ]
    lines = []
    for answer, label in ANSWERS.items():
        cells = []
        for measure, region in columns:
            value = scores[measure].get(answer, {}).get(region)
            digits = 2 if measure == "psnr" else 3
            text = "–" if value is None else f"{value:.{digits}f}"
            limits = intervals.get(measure, {}).get(region) if answer == "generated" else None
            cells.append(text + (f" [{limits[0]:.{digits}f}, {limits[1]:.{digits}f}]" if limits else ""))
        if any(cell != "–" for cell in cells):
            lines.append([label, *cells])
    shares = [
        f"{scores[measure]['generated'][region] / scores[measure]['target'][region]:.3f}" if measure in _SHARES else "–"
        for measure, region in columns
    ]
    lines.append(["generated, as a share of the real target", *shares])
    labels = [f"{MEASURES[measure].label}, {REGION_LABELS[region]}" for measure, region in columns]
    return markdown(["answer", *labels], lines)
