"""Which drawings of a generated set are worth training on: the best by each measure, as a set of their own."""

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from posereid.augmentation.judges import MEASURES, JudgeRuns, load_judges, open_judges
from posereid.augmentation.scores import Scores, Values, score_drawings
from posereid.augmentation.sets import (
    GeneratedSetInfo,
    ManifestRow,
    check_generated_set,
    read_set,
    train_folder,
    with_generated,
    write_side_files,
)
from posereid.config import FilteringRecipe
from posereid.data.check import require_joint_scale
from posereid.data.crops import Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError
from posereid.files import atomic_folder, require_free
from posereid.messages import complaint, shown

UNSCORED = "unscored"
"""Why a drawing is left out that some measure could give no finite score."""

_WHAT = "a filtered set"


@dataclass(frozen=True)
class FilteredSet:
    """What :func:`filter_set` wrote.

    ``dropped`` counts the drawings left out by reason (:data:`MEASURES` and :data:`UNSCORED`); one that was left out
    for several counts under each. ``left_out`` are these drawings each counted once, ``left_out_before`` those that an
    earlier filter had left out. ``near_duplicates`` and ``copies_of_source`` count over all drawings looked at, kept or
    not; None where nobody asked. ``thresholds`` are the scores of the worst drawings that passed each measure.
    """

    folder: Path
    kept: int
    left_out: int
    left_out_before: int
    dropped: Mapping[str, int]
    near_duplicates: int | None
    copies_of_source: int | None
    thresholds: Mapping[str, float]

    @property
    def unscored(self) -> int:
        """Drawings that some measure could give no finite score."""
        return self.dropped[UNSCORED]

    def lines(self) -> list[str]:
        """What was kept and left out, a sentence each."""
        total = self.kept + self.left_out
        lines = [f"{self.folder}: {self.kept} of {total} drawings kept, {self.left_out} left out."]
        for measure in MEASURES:
            if measure in self.thresholds:
                lines.append(f"{measure}: {self.dropped[measure]} left out, beyond {self.thresholds[measure]:.4g}.")
        if self.unscored:
            lines.append(f"{self.unscored} drawings could not be scored and are left out.")
        if self.left_out_before:
            lines.append(f"{self.left_out_before} more were left out by an earlier filter.")
        if self.near_duplicates is not None:
            lines.append(
                f"Of the {total} drawings looked at, {self.near_duplicates} nearly repeat another of the same source "
                f"and {self.copies_of_source} nearly are their source."
            )
        return lines


def filter_set(
    generated: Path,
    out: Path,
    real: CropTable,
    recipe: FilteringRecipe,
    *,
    run: Path | None,
    judge: Path | None,
    pose_estimator: Path | None,
    progress: bool = True,
) -> FilteredSet:
    """Write the drawings of the set ``generated`` that are among the best by every measure asked for to ``out``.

    A measure with a share below 1 keeps that share of the drawings, rounded up, ties by name. Identity consistency is
    the distance between the embeddings of drawing and source by the embedder of ``judge``, a re-ID run trained on the
    real training crops alone; pose consistency is D_P's score of ``run``, or how near the joints lie that the run
    ``pose_estimator`` finds; realism is D_I's score of ``run``. A drawing that cannot be scored is left out.
    Drawings of one source that differ by less than ``near_duplicate`` are pointed out, not left out.

    The manifest written accounts for every drawing of the set, with its scores and why it was left out; what an earlier
    filter left out stays so. ``out`` appears complete or not at all. Raises InputError for a measure without its run, a
    set that is damaged or was drawn by another generator or from other crops than ``real``, a judge that has seen
    drawings, and where no drawing would be left.
    """
    runs = open_judges(recipe, real, run=run, judge=judge, pose_estimator=pose_estimator)
    table = load_crops(generated)
    with_generated(real, table)
    for crops in (real.train, table):
        require_joint_scale(crops)
    if any(crop.place is not None for crop in table.train):
        raise complaint(generated, "a set in shards", "its folder", "filter the folder, then shard what is kept")
    generator = runs.drawn_by.digest("generator") if runs.drawn_by is not None else None
    rows = check_generated_set(table.root, checkpoint=generator)
    info = read_set(table.root)
    # Drawings of one source must follow each other to be compared.
    candidates = sorted((row for row in rows if not row.dropped), key=_source_key)
    drawings, sources = _drawings(table, candidates), _sources(real, candidates)
    require_free(out, _WHAT)
    scores = score_drawings(
        drawings,
        sources,
        load_judges(recipe, runs),
        runs.picture_size(drawings),
        near_duplicate=recipe.near_duplicate,
        batch_size=recipe.batch_size,
        progress=progress,
    )
    reasons, thresholds = choose(candidates, scores, recipe)
    if all(reasons):
        counted = Counter(reason for each in reasons for reason in each)
        told = ", ".join(f"{count} by {reason}" for reason, count in counted.items())
        raise InputError(
            f"{generated}: the filter would leave out all of its {len(candidates)} drawings"
            f"{' that an earlier filter kept' if len(candidates) < len(rows) else ''} ({told}); "
            + (
                "raise the shares (--identity, --pose, --realism)."
                if set(counted) - {UNSCORED}
                else "they lack joints (the keypoint file of the set) or finite scores, so draw the set again."
            )
        )
    judged = {row.name: row for row in _scored(candidates, scores, reasons, recipe)}
    written = [judged.get(row.name, row) for row in rows]
    result = FilteredSet(
        folder=out,
        kept=sum(not row.dropped for row in written),
        left_out=sum(map(bool, reasons)),
        left_out_before=len(rows) - len(candidates),
        dropped={name: sum(name in each for each in reasons) for name in (*MEASURES, UNSCORED)},
        near_duplicates=int((scores.near_duplicate_of >= 0).sum()) if recipe.near_duplicate else None,
        copies_of_source=int(scores.copies.sum()) if recipe.near_duplicate else None,
        thresholds=thresholds,
    )
    filtering = _statement(recipe, runs, result)
    if info.filtering:
        filtering["filtered_before"] = info.filtering
    _write(table, written, out, info.model_copy(update={"filtering": filtering}))
    return result


# --- drawings and their sources ----------------------------------------------------------------------------


def _source_key(row: ManifestRow) -> tuple[str, int, int]:
    return row.source, row.identity, row.camera


def _drawings(table: CropTable, rows: Sequence[ManifestRow]) -> list[Crop]:
    found = {crop.name: crop for crop in table.train}
    if not rows:
        raise complaint(table.root, "no drawing that was not left out already", "some", "give the unfiltered set")
    if absent := [row.name for row in rows if row.name not in found]:
        raise InputError(
            f"{table.root}: {len(absent)} drawings of its manifest.csv are not among the crops that are read from it, "
            f"for example {shown(absent[0], 80)}; draw the set again with `posereid augment`."
        )
    return [found[row.name] for row in rows]


def _sources(real: CropTable, rows: Sequence[ManifestRow]) -> list[Crop]:
    known: dict[tuple[str, int, int], list[Crop]] = {}
    for crop in real.train:
        if not crop.generated:
            known.setdefault((crop.name, crop.identity, crop.camera), []).append(crop)
    absent = sorted({row.source for row in rows if _source_key(row) not in known})
    if absent:
        raise InputError(
            f"{real.root}: {len(absent)} sources of the generated set are not among its training crops of the same "
            f"person and camera, for example {shown(absent[0], 80)}; give --root, the data set from which it was drawn."
        )
    if several := next((row.source for row in rows if len(known[_source_key(row)]) > 1), None):
        raise complaint(
            real.root,
            f"several training crops of one person named {shown(several, 80)}",
            "one, to tell a drawing's source",
            "rename the crops and draw the set again",
        )
    return [known[_source_key(row)][0] for row in rows]


# --- choice ------------------------------------------------------------------------------------------------


def choose(
    rows: Sequence[ManifestRow], scores: Scores, recipe: FilteringRecipe
) -> tuple[list[list[str]], dict[str, float]]:
    """For each drawing the reasons to leave it out, none for most, and each measure's worst score that passed.

    A drawing without a finite score is ranked last by that measure, and is left out as :data:`UNSCORED` however large
    the share.
    """
    reasons: list[list[str]] = [[] for _ in rows]
    thresholds = {}
    unscored = np.zeros(len(rows), bool)
    names = np.array([row.name for row in rows])
    for measure in MEASURES:
        share = getattr(recipe, measure)
        badness = _badness(measure, scores)
        if share == 1 or badness is None:
            continue
        passed = _best(badness, names, share)
        finite = np.isfinite(badness)
        unscored |= ~finite
        for position in np.flatnonzero(finite & ~passed):
            reasons[position].append(measure)
        if (passed & finite).any():
            worst = float(badness[passed & finite].max())
            thresholds[measure] = worst if measure == "identity" else -worst
    for position in np.flatnonzero(unscored):
        reasons[position].append(UNSCORED)
    return reasons, thresholds


def _badness(measure: str, scores: Scores) -> Values | None:
    """A measure with its sign so that lower is better."""
    if measure == "identity":
        return scores.identity_distance
    values = scores.pose_score if measure == "pose" else scores.realism
    return None if values is None else -values


def _best(badness: Values, names: npt.NDArray[np.str_], share: float) -> npt.NDArray[np.bool_]:
    """Which ``share`` of the drawings is lowest, rounded up to whole drawings, ties by name; not finite is highest."""
    # A share such as 0.1 of 30 must not become 4 by a rounding error.
    count = math.ceil(share * len(badness) - 1e-9)
    order = np.lexsort((names, np.where(np.isfinite(badness), badness, np.inf)))
    best = np.zeros(len(badness), bool)
    best[order[:count]] = True
    return best


def _scored(
    rows: Sequence[ManifestRow], scores: Scores, reasons: Sequence[Sequence[str]], recipe: FilteringRecipe
) -> list[ManifestRow]:
    """The rows with what was measured; what was not keeps the value of an earlier filter."""
    judged = []
    columns = (
        ("identity_distance", scores.identity_distance),
        ("pose_score", scores.pose_score),
        ("realism", scores.realism),
    )
    for position, row in enumerate(rows):
        measured: dict[str, float | None] = {}
        for column, values in columns:
            if values is not None:
                measured[column] = float(values[position]) if np.isfinite(values[position]) else None
        row = replace(row, **measured, dropped="; ".join(reasons[position]))  # type: ignore[arg-type]
        if recipe.near_duplicate:
            other = scores.near_duplicate_of[position]
            row = replace(row, near_duplicate_of=rows[other].name if other >= 0 else "")
        judged.append(row)
    return judged


# --- writing -----------------------------------------------------------------------------------------------


def _statement(recipe: FilteringRecipe, runs: JudgeRuns, result: FilteredSet) -> dict[str, JsonValue]:
    """How the set was chosen, for ``set.json``."""
    return {
        "settings": recipe.model_dump(mode="json", exclude={"batch_size"}),
        "judges": dict(runs.digests(recipe)),
        "thresholds": dict(result.thresholds),
        "counts": {
            "drawings": result.kept + result.left_out + result.left_out_before,
            "kept": result.kept,
            "left_out": result.left_out,
            "left_out_before": result.left_out_before,
            **{f"left_out_by_{reason}": count for reason, count in result.dropped.items()},
            "near_duplicates": result.near_duplicates,
            "copies_of_source": result.copies_of_source,
        },
    }


def _write(table: CropTable, rows: Sequence[ManifestRow], out: Path, info: GeneratedSetInfo) -> None:
    crops = {crop.name: crop for crop in table.train}
    kept = [crops[row.name] for row in rows if not row.dropped]
    with atomic_folder(out, _WHAT) as partial:
        folder = partial / train_folder(table.layout)
        folder.mkdir()
        for crop in kept:
            shutil.copy2(crop.path, folder / crop.name)
        joints = {crop.name: crop.joints for crop in kept if crop.joints is not None}
        write_side_files(partial, table.layout, rows, joints, info)
