"""What a row's networks and generators scored: means over seeds, intervals, and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posereid.ablation.grid import Cell, Grid, read_json
from posereid.ablation.rows import FULL, REAL, Row
from posereid.ablation.work import (
    FLIP,
    FUSED,
    QUALITY_FILE,
    SEARCH_ONLY,
    SEARCH_ONLY_FILE,
    VALIDATION_FILE,
)
from posereid.errors import InputError
from posereid.evaluation.bootstrap import clustered_mean
from posereid.evaluation.comparison import EVALUATION_FILE, queries_file
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.per_query import QueryFigures
from posereid.evaluation.picture_measures import ANSWERS
from posereid.evaluation.seeds import mean_over_seeds

QUALITY = {
    "ssim": ("ssim", "image"),
    "foreground_ssim": ("ssim", "foreground"),
    "mask_ssim": ("mask_ssim", "foreground"),
    "pckh": ("pckh", "image"),
    "identity": ("identity", "image"),
    "foreground_identity": ("identity", "foreground"),
}
"""Figures of image quality by their keys: the measure and the region that each is."""

BY_GENERATOR = "_by_generator"
"""What a difference's key ends in where it is given for each generator seed."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Searches:
    """What every query scored under every seed, in every search: search → headline → (S, Q), in [0, 1]."""

    tables: Mapping[str, Mapping[str, Values]]
    identities: npt.NDArray[Any]


# --- searches ------------------------------------------------------------------------------------------------


def read_searches(grid: Grid, row: Row) -> Searches:
    """All searches of a row's networks over the grid's seeds. Raises InputError where they asked different queries."""
    places = {"off": (EVALUATION_FILE, "off"), "flip": (EVALUATION_FILE, FLIP)}
    if row.fuses:
        places[FUSED] = (EVALUATION_FILE, FUSED)
    if row.fuses and row.shares is None:
        places[SEARCH_ONLY] = (SEARCH_ONLY_FILE, FUSED)
    tables: dict[str, dict[str, Values]] = {}
    labels: set[tuple[tuple[str, str, str], ...]] = set()
    for search, (name, mode) in places.items():
        found = [
            QueryFigures.read(queries_file(grid.folder(Cell("reid", row.key, seed)) / name, fusion=mode))
            for seed in grid.seeds
        ]
        labels |= {each.labels for each in found}
        tables[search] = {key: np.stack([each.headlines()[key] for each in found]) for key in HEADLINES}
    if len(labels) > 1:
        raise InputError(
            f"{grid.out / 'reid' / row.key}: its networks were asked different queries; delete this folder and go on."
        )
    return Searches(tables, np.array([identity for _, identity, _ in next(iter(labels))]))


def reid_figures(
    own: Searches,
    full: Searches | None,
    real: Searches | None,
    row: Row,
    confidence: float,
    generator_seeds: Sequence[int],
) -> dict[str, Any]:
    """Every search's headlines in percent, and their differences.

    ``mean``, ``minus_full`` and ``minus_real`` are [mean, low, high]; beside each difference stands its mean by the
    generator's seed. ``generator_seeds`` are those of the S networks' generators, the outer level of intervals. A
    search is compared with the same search of ``full``; with real crops only
    without any averaging where it does none itself, and under flip averaging otherwise, so that what a mirrored crop
    gains counts on both sides.
    """

    def differences(values: Values, name: str) -> dict[str, Any]:
        of_generators = {
            str(seed): percent(float(np.nanmean(values[[generator == seed for generator in generator_seeds]])))
            for seed in dict.fromkeys(generator_seeds)
        }
        bounds = interval(values, own.identities, confidence, generator_seeds)
        return {name: bounds, f"{name}{BY_GENERATOR}": of_generators}

    found: dict[str, Any] = {}
    for search, table in own.tables.items():
        found[search] = {}
        for name, values in table.items():
            figure: dict[str, Any] = {
                "mean": interval(values, own.identities, confidence, generator_seeds if row.maker else None),
                "seeds": [percent(float(np.nanmean(seed))) for seed in values],
            }
            if full is not None and row.key != FULL and search in full.tables:
                figure |= differences(values - full.tables[search][name], "minus_full")
            control = search if search == "off" else FLIP
            if real is not None and not (row.key == REAL and search == control):
                figure |= differences(values - real.tables[control][name], "minus_real")
            found[search][name] = figure
    return found


def interval(
    values: Values, identities: npt.NDArray[Any], confidence: float, generators: Sequence[int] | None = None
) -> list[float | None]:
    """Mean of (S, Q) shares and its interval, in percent. ``generators`` are the seeds of the S rows' generators.

    Over generators and people; where one generator served all, over re-ID seeds and people; for one seed, over people.
    """
    return [percent(bound) for bound in _bounds(values, identities, confidence, generators)]


def _bounds(
    values: Values, identities: npt.NDArray[Any], confidence: float, generators: Sequence[int] | None
) -> tuple[float, float, float]:
    valued = ~np.isnan(values).any(0)
    if len(values) > 1 and len(np.unique(identities[valued])) > 1:
        groups = generators if generators is not None and len(set(generators)) > 1 else None
        nested = mean_over_seeds(values, identities, confidence=confidence, groups=groups)
        return nested.estimate, nested.low, nested.high
    people = clustered_mean(values.mean(0), identities, confidence=confidence)
    return people.estimate, people.low, people.high


def percent(share: float) -> float | None:
    """A share in percent, to two digits; None for what is no number."""
    return round(100 * share, 2) if np.isfinite(share) else None


def read_validation(grid: Grid, row: Row) -> dict[str, Any] | None:
    """How well every use finds the held-out people, mAP in percent: the mean and the seeds; None without any.

    Raises InputError for a damaged file.
    """
    if not grid.chooses_fusion:
        return None
    seeds: dict[str, list[float]] = {}
    for seed in grid.seeds:
        path = grid.folder(Cell("reid", row.key, seed)) / VALIDATION_FILE
        found = read_json(path)
        precisions = found.get("mAP")
        if not isinstance(precisions, dict) or not all(type(value) is float for value in precisions.values()):
            raise InputError(f"{path} holds no mAP of the held-out people; delete its folder and go on.")
        for use, precision in precisions.items():
            seeds.setdefault(use, []).append(precision)
    uses = {
        use: {"mean": percent(float(np.mean(found))), "seeds": [percent(each) for each in found]}
        for use, found in seeds.items()
    }
    return {"mAP": uses, **{name: found.get(name) for name in ("queries", "gallery", "identities")}}


# --- pictures ------------------------------------------------------------------------------------------------


def read_quality(grid: Grid, row: Row) -> dict[str, Values]:
    """Every measure of the row's generators pair by pair, (generator seeds, pairs), and the pairs' ``identities``.

    Empty where no test pair has a pose. Raises InputError for a damaged file.
    """
    arrays: list[dict[str, Values]] = []
    for seed in grid.generator_seeds:
        path = grid.folder(Cell("generator", row.key, seed)) / QUALITY_FILE
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays.append({name: file[name] for name in file.files})
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}); delete its folder and go on.") from None
    shared = [name for name in arrays[0] if all(name in each for each in arrays)]
    return {name: np.stack([each[name] for each in arrays]) for name in shared}


def quality_figures(own: Mapping[str, Values], full: Mapping[str, Values] | None, grid: Grid) -> dict[str, Any] | None:
    """Each figure of every answer, and of the generated crops the differences to ``full`` and to the other answers.

    Means are over pairs and generator seeds, intervals over generators and people; what each seed gives stands under
    ``seeds``, and beside each difference by the generator's seed. Shares, in [0, 1]. None where nothing
    was measured.
    """
    if not own:
        return None
    identities = own["identities"][0]

    def spread(values: Values) -> list[float | None]:
        confidence = grid.recipe.evaluation.confidence
        return [_rounded(bound) for bound in _bounds(values, identities, confidence, grid.generator_seeds)]

    def differences(values: Values, name: str) -> dict[str, Any]:
        means = [_rounded(float(np.nanmean(each))) for each in values]
        of_generators = dict(zip(map(str, grid.generator_seeds), means, strict=True))
        return {name: spread(values), f"{name}{BY_GENERATOR}": of_generators}

    found: dict[str, Any] = {"pairs": len(identities)}
    for name, (measure, region) in QUALITY.items():
        answers = {answer: own.get(f"{measure}/{answer}/{region}") for answer in ANSWERS}
        drawn = answers["generated"]
        if drawn is None or np.isnan(drawn).all():
            continue
        figure: dict[str, Any] = {
            "mean": spread(drawn),
            "seeds": [_rounded(float(np.nanmean(seed))) for seed in drawn],
            "answers": {},
        }
        for answer, values in answers.items():
            if answer != "generated" and values is not None and not np.isnan(values).all():
                figure["answers"][answer] = {"mean": spread(values), **differences(drawn - values, "generated_minus")}
        others = (full or {}).get(f"{measure}/generated/{region}")
        if full is not own and others is not None:
            figure |= differences(drawn - others, "minus_full")
        found[name] = figure
    return found


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
