"""How fusion is set: on identities that neither embedder nor generator saw, never on the test."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from posereid.config import EvaluationRecipe, FusionMode, FusionRecipe
from posereid.data.check import require_joint_scale
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.validation import validation_identities, validation_search
from posereid.errors import InputError
from posereid.evaluation.bootstrap import ENOUGH_PEOPLE
from posereid.evaluation.fused_search import FusionNetworks, SideParts, differences, holds, load_networks
from posereid.evaluation.headlines import percent
from posereid.evaluation.search import Search
from posereid.fusion import every_target
from posereid.progress import progress_bar
from posereid.training.checkpoint import Checkpoint, latest_checkpoint
from posereid.training.devices import pick_device
from posereid.training.run_file import RunOrigin, crop_mark

MODE: FusionMode = "fusion+flip"
CONTROL: FusionMode = "flip"

WEIGHTS = tuple(step / 10 for step in range(11))
POSES = (1, 2, 4, 8)
SHOWN = 5


@dataclass(frozen=True)
class GridPoint:
    """One setting of the grid and its search; ``mean_average_precision`` and ``rank1`` in [0, 1]."""

    weight: float
    poses: int
    by_realism: bool
    mean_average_precision: float
    rank1: float


@dataclass(frozen=True, eq=False)
class FusionChoice:
    """The settings chosen and what they were chosen from.

    ``grid`` holds every point, the best first; ``control`` is the search with flips alone, which weight 0 equals, and
    ``best`` that of the first point. ``about`` says on which identities, as :attr:`CropTable.notes` does.
    """

    run: str
    generator: str
    share: float
    settings: FusionRecipe
    grid: tuple[GridPoint, ...]
    control: Search
    best: Search
    evaluation: EvaluationRecipe
    about: tuple[str, ...]

    @property
    def figures(self) -> dict[str, Any]:
        """All of it as plain data, figures in percent, ready for JSON."""
        return {
            "run": self.run,
            "generator": self.generator,
            "validation_share": self.share,
            "about": list(self.about),
            "mode": MODE,
            "settings": self.settings.model_dump(mode="json"),
            "best": self.best.summary(self.evaluation),
            "control": {"mode": CONTROL} | self.control.summary(self.evaluation),
            "difference_to_control": differences(self.control, self.best, self.evaluation),
            "confidence": self.evaluation.confidence,
            "test_fingerprint": self.best.fingerprint,
            "grid": [
                {
                    "weight": point.weight,
                    "poses": point.poses,
                    "by_realism": point.by_realism,
                    "mAP": percent(point.mean_average_precision),
                    "rank1": percent(point.rank1),
                }
                for point in self.grid
            ],
        }

    def as_recipe(self) -> str:
        """The chosen settings as the YAML of a recipe's section ``evaluation.fusion``."""
        chosen: dict[str, Any] = {
            "weight": self.settings.weight,
            "poses": self.settings.poses,
            "by_realism": self.settings.by_realism,
        }
        if self.settings.pose_file is not None:
            chosen["pose_file"] = str(self.settings.pose_file.absolute())
        return yaml.safe_dump({"evaluation": {"fusion": chosen}}, sort_keys=False, allow_unicode=True)

    def as_json(self) -> str:
        """:attr:`figures` as text."""
        return json.dumps(self.figures, indent=1, allow_nan=False) + "\n"


def tune_fusion(
    run: Path,
    generator_run: Path | None = None,
    *,
    share: float | None = None,
    crops: CropTable | None = None,
    settings: EvaluationRecipe | None = None,
    most_poses: int | None = None,
    try_realism: bool = True,
    cache: Path | None = None,
    keep_drawings: bool = False,
    progress: bool = False,
) -> FusionChoice:
    """Choose weight, poses and by_realism of ``fusion+flip`` by mAP on the identities held out for validation.

    ``run`` has the embedder, ``generator_run`` (the same run without it) the generator, and neither may have trained
    on the held-out identities; ``share`` is how many there are, otherwise what the run's recipe says; ``crops`` is its
    whole set, read already. ``settings`` replace the run's own. ``most_poses`` is the most that is tried, otherwise 8
    or all that there are. Of equal mAP the smallest weight, then fewest poses, then equal weighing wins, so that weight
    0, plain flips, is the answer where drawings bring nothing. D_I's word is tried where the generator's run trained
    one, unless ``try_realism`` is False. Everything is embedded once, and with a folder ``cache`` kept for the next
    time. Raises InputError.
    """
    checkpoint = latest_checkpoint(run)
    drawer = latest_checkpoint(generator_run) if generator_run else checkpoint
    data = checkpoint.recipe.data
    settings = settings or checkpoint.recipe.evaluation
    share = data.validation_share if share is None else share
    if not data.validation_share:
        raise InputError(
            f"{run} held no identities out: its data.validation_share is 0, and settings are not chosen on people that "
            "a run has seen; train it, and the run that draws, again with --data.validation-share 0.1, or go without "
            "fusion (flip)."
        )
    if not share:
        raise InputError(
            f"--validation-share is 0, which leaves nobody to choose on; give at most the {data.validation_share:g} "
            f"that {run} held out, or leave it out."
        )
    if crops is None:
        if data.root is None:
            raise InputError(f"{run} does not say which data set it was trained on; give --root FOLDER.")
        crops = load_crops(data.root, data.layout, data.keypoints)
    held = validation_identities(crops, share)
    for folder, known in ((run, checkpoint), (generator_run or run, drawer)):
        _require_unseen(folder, known, held, share, crops)
    search = validation_search(crops, share)
    require_joint_scale(crops)
    realism = try_realism and holds(drawer, "appearance_discriminator")
    # In crops of any size there are as many.
    most = min(POSES[-1], len(every_target(settings.fusion, (128, 64)))) if most_poses is None else most_poses
    settings = settings.changed(fusion=settings.fusion.changed(poses=most))
    # Whatever the recipe's weight, the drawings are there to be weighed.
    fusion = settings.fusion.changed(by_realism=realism, weight=WEIGHTS[-1])
    networks = load_networks(run, checkpoint, [MODE], generator_run, fusion, pick_device(checkpoint.recipe.runtime))
    assert networks is not None
    none = search.with_crops(())
    parts = SideParts.of(networks, search, none, fusion, cache=cache, keep_drawings=keep_drawings, progress=progress)
    chosen, grid, control, best = _best_of_grid(parts, networks, settings, realism, progress)
    return FusionChoice(
        run.name, networks.generator_run or run.name, share, chosen, grid, control, best, settings, search.notes
    )


def _require_unseen(run: Path, checkpoint: Checkpoint, held: frozenset[int], share: float, crops: CropTable) -> None:
    origin = RunOrigin.of(checkpoint)
    marks = [crop_mark(crops, crop) for crop in crops.train if crop.identity in held]
    # A checkpoint that was copied out of its run, or an older one, knows its people by number alone.
    seen = set() if origin.people else set(map(str, held & set(checkpoint.identities)))
    seen = seen.union(*(run.people_in(marks) for run in (origin, *origin.starts())))
    if seen:
        raise InputError(
            f"{run} trained on {len(seen)} of the {len(held)} identities that are held out for validation, itself or "
            f"through the run that it began from, for example {min(seen, key=int)}; "
            + (
                f"give --validation-share {own:g} or less."
                if (own := checkpoint.recipe.data.validation_share) and own < share
                else "train it again with the --data.validation-share of the other run."
            )
        )


def _best_of_grid(
    parts: SideParts, networks: FusionNetworks, settings: EvaluationRecipe, realism: bool, progress: bool
) -> tuple[FusionRecipe, tuple[GridPoint, ...], Search, Search]:
    """The settings, the grid with the best first, the control's search and the best one."""
    device = next(networks.embedder.parameters()).device
    most = settings.fusion.poses
    counts = [*(poses for poses in POSES if poses < most), most]
    control = parts.search(CONTROL, settings, device=device)
    best, chosen = control, settings.fusion.changed(weight=0.0, poses=counts[0], by_realism=False)
    points = [_point(chosen, control)]
    others = [
        (weight, poses, by_realism)
        for weight, poses, by_realism in product(WEIGHTS[1:], counts, (False, True))
        # Of a single pose any word is the whole word.
        if not by_realism or (realism and poses > 1)
    ]
    with progress_bar(len(others), "choosing", "setting", show=progress) as bar:
        for weight, poses, by_realism in others:
            recipe = settings.fusion.changed(weight=weight, poses=poses, by_realism=by_realism)
            search = parts.search(MODE, settings.changed(fusion=recipe), poses=poses, device=device)
            points.append(_point(recipe, search))
            if min(points, key=_order) is points[-1]:
                best, chosen = search, recipe
            bar.update(1)
    return chosen, tuple(sorted(points, key=_order)), control, best


def _point(recipe: FusionRecipe, search: Search) -> GridPoint:
    result = search.result
    return GridPoint(recipe.weight, recipe.poses, recipe.by_realism, result.mean_average_precision, result.rank1)


def _order(point: GridPoint) -> tuple[float, float, int, bool]:
    return -point.mean_average_precision, point.weight, point.poses, point.by_realism


def choice_table(choice: FusionChoice) -> str:
    """The choice, and the grid's best rows beside the control, as text."""
    return "\n".join(_lines(choice))


def _lines(choice: FusionChoice) -> Iterator[str]:
    figures = choice.figures
    yield from choice.about
    yield f"{MODE} by {choice.run}, drawn by {choice.generator}; the {len(choice.grid)} settings' best by mAP:"
    yield f"  {'weight':>6}{'poses':>7}{'by realism':>12}{'mAP %':>9}{'rank-1 %':>10}"
    for row in figures["grid"][:SHOWN]:
        realism = "yes" if row["by_realism"] else "no"
        yield f"  {row['weight']:>6.1f}{row['poses']:>7}{realism:>12}{row['mAP']:>9.2f}{row['rank1']:>10.2f}"
    control = figures["control"]
    yield f"  {CONTROL + ' alone (weight 0)':<25}{control['mAP']:>9.2f}{control['rank1']:>10.2f}"
    if choice.settings.weight == 0:
        yield "Weight 0 wins: on these identities the drawings bring nothing beyond flips, so leave them out."
        return
    found = figures["difference_to_control"]["mAP"]
    spread = "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
    yield (
        f"Chosen: weight {choice.settings.weight:g}, {choice.settings.poses} poses"
        f"{', by realism' if choice.settings.by_realism else ''}; mAP {found['difference']:+.2f}{spread} beside "
        f"{CONTROL}, on the identities that it was chosen on, so expect less on others."
    )
    if control["query_identities"] < ENOUGH_PEOPLE:
        yield f"Intervals over fewer than {ENOUGH_PEOPLE} people are too narrow; do not rely on them."
