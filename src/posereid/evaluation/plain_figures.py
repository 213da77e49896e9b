"""Results of verification and of image quality as plain data, ready for JSON."""

from typing import Any

import numpy as np

from posereid.config import EvaluationRecipe
from posereid.evaluation.bootstrap import clustered_mean
from posereid.evaluation.generator_quality import ImageQuality
from posereid.evaluation.verification import OperatingPoint, VerificationResult


def verification_figures(result: VerificationResult) -> dict[str, Any]:
    """Rates, thresholds and their intervals, shares in [0, 1]; None for what is not finite."""
    return {
        "genuine_pairs": result.genuine_pairs,
        "impostor_pairs": result.impostor_pairs,
        "area_under_curve": result.area_under_curve,
        "equal_error_rate": result.equal_error_rate,
        "equal_error_threshold": result.equal_error_threshold,
        "kept_share": result.kept_share,
        "operating_points": [_point_figures(point) for point in result.operating_points],
    }


def _point_figures(point: OperatingPoint) -> dict[str, Any]:
    """One operating point as plain data; JSON knows neither NaN nor infinity."""

    def plain(value: float) -> float | None:
        return value if np.isfinite(value) else None

    numbers = ("stated_false_match_rate", "threshold", "false_match_rate", "true_match_rate")
    intervals = ("threshold_interval", "false_match_rate_interval", "true_match_rate_interval")
    return {
        **{name: plain(getattr(point, name)) for name in numbers},
        **{name: [plain(bound) for bound in getattr(point, name)] for name in intervals},
        "supported": point.supported,
        "note": point.note,
    }


def quality_intervals(quality: ImageQuality, settings: EvaluationRecipe) -> dict[str, dict[str, list[float]]]:
    """Measure → region → interval of the generated pictures' mean, over the identities of the pairs."""
    intervals: dict[str, dict[str, list[float]]] = {}
    for measure, answers in quality.per_pair.items():
        for region, values in answers["generated"].items():
            if np.isnan(values).all() or len(np.unique(quality.identities)) < 2:
                continue
            found = clustered_mean(
                values,
                quality.identities,
                confidence=settings.confidence,
                resamples=settings.resamples,
                seed=settings.resampling_seed,
            )
            intervals.setdefault(measure, {})[region] = [round(found.low, 4), round(found.high, 4)]
    return intervals
