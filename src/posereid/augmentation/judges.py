"""Which networks may judge drawings: their runs are looked at before anything is scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posereid.config import FilteringRecipe
from posereid.data.crops import Crop, CropTable
from posereid.data.images import open_crop
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.messages import complaint
from posereid.pose_estimator import PoseEstimator
from posereid.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_discriminator,
    load_embedder,
    load_pose_estimator,
)
from posereid.training.devices import pick_device
from posereid.training.run_file import RunOrigin

MEASURES = ("identity", "pose", "realism")
"""The measures of drawings, and the reasons for which a filter leaves them out."""


@dataclass(frozen=True, eq=False)
class Judges:
    """The networks that score, each None where its measure is not asked for.

    ``pose`` is D_P, or a pose estimator that looks for the target's joints; ``realism`` is D_I.
    """

    embedder: Embedder | None = None
    pose: PatchDiscriminator | PoseEstimator | None = None
    realism: PatchDiscriminator | None = None


@dataclass(frozen=True)
class JudgeRuns:
    """The checkpoint that each measure asked for is taken by, and the one that drew the set, where it is given."""

    drawn_by: Checkpoint | None
    measures: Mapping[str, Checkpoint]

    def digests(self, recipe: FilteringRecipe) -> dict[str, str]:
        """SHA-256 of the weights that judge, by their part of the checkpoint."""
        parts = {
            "identity": "embedder",
            "pose": "pose_discriminator" if recipe.pose_by == "discriminator" else "pose_estimator",
            "realism": "appearance_discriminator",
        }
        return {parts[measure]: checkpoint.digest(parts[measure]) for measure, checkpoint in self.measures.items()}

    def picture_size(self, drawings: Sequence[Crop]) -> tuple[int, int]:
        """Height and width in which drawings are looked at: the generator's, or that of the first drawing."""
        if self.drawn_by is not None:
            data = self.drawn_by.recipe.data
            return data.height, data.width
        picture = open_crop(drawings[0])
        return picture.height, picture.width


def open_judges(
    recipe: FilteringRecipe, real: CropTable, *, run: Path | None, judge: Path | None, pose_estimator: Path | None
) -> JudgeRuns:
    """The checkpoints that a filter needs.

    Raises InputError for a recipe that asks for nothing, a measure without its run, a ``run`` that has no generator,
    and a ``judge`` that is no re-ID run on the real training crops of ``real`` alone, from its first weights on.
    """
    by_discriminator = recipe.pose_by == "discriminator"
    given = {
        "identity": ("--judge", judge),
        "pose": ("--run", run) if by_discriminator else ("--pose-estimator", pose_estimator),
        "realism": ("--run", run),
    }
    asked = [measure for measure in MEASURES if getattr(recipe, measure) < 1]
    if not asked and not recipe.near_duplicate:
        raise InputError(
            "filtering: identity, pose and realism are 1 and near_duplicate is 0, so there is nothing to filter by; "
            "set one of --identity, --pose and --realism below 1."
        )
    for measure in asked:
        option, folder = given[measure]
        if folder is None:
            raise InputError(
                f"filtering.{measure} is {getattr(recipe, measure):g}, and no run judges it; give {option} RUN, or "
                f"--{measure} 1."
            )
    folders = {folder for _, folder in map(given.__getitem__, asked) if folder is not None}
    opened = {folder: latest_checkpoint(folder) for folder in sorted({*folders, *([run] if run else [])})}
    if run is not None and not (opened[run].folder / "generator.safetensors").is_file():
        raise complaint(run, f"a {opened[run].stage} run without a generator", "the run that drew the set", "give it")
    measures = {measure: opened[folder] for measure in asked if (folder := given[measure][1]) is not None}
    if "identity" in measures:
        _require_unbiased(measures["identity"], real)
    return JudgeRuns(opened[run] if run is not None else None, measures)


def _require_unbiased(judge: Checkpoint, real: CropTable) -> None:
    """Refuse an embedder that learnt from drawings: it would find them like their sources whatever they show."""
    train = real.with_crops(crop for crop in real.train if not crop.generated)
    expected = "a run of train-reid on the real training crops alone"
    if judge.stage != "reid":
        raise complaint(judge.folder, f"a {judge.stage} run as the judge", expected, "give another --judge")
    if judge.training_set != train.fingerprint:
        raise complaint(
            judge.folder,
            f"a judge trained on other crops than the {len(train)} real ones of {real.root}",
            expected,
            "train one without --generated, and give it as --judge",
        )
    for start in RunOrigin.of(judge).starts():
        if (start.stage, start.training_set) != ("reid", train.fingerprint):
            other = "a reid run on other crops" if start.stage == "reid" else f"a {start.stage} run"
            raise complaint(
                judge.folder,
                f"a judge whose weights go back to {other}",
                f"{expected} from the beginning",
                "train one without --start, and give it as --judge",
            )


def load_judges(recipe: FilteringRecipe, runs: JudgeRuns) -> Judges:
    """The networks, ready to judge, each where its own recipe runs. Raises InputError for a run that lacks one."""
    place = {
        measure: (checkpoint.folder, pick_device(checkpoint.recipe.runtime))
        for measure, checkpoint in runs.measures.items()
    }
    pose: PatchDiscriminator | PoseEstimator | None = None
    if "pose" in place:
        folder, device = place["pose"]
        by_joints = recipe.pose_by == "keypoints"
        pose = load_pose_estimator(folder, device) if by_joints else load_discriminator(folder, "pose", device)
    realism = None
    if "realism" in place:
        folder, device = place["realism"]
        realism = load_discriminator(folder, "appearance", device)
    return Judges(load_embedder(*place["identity"]) if "identity" in place else None, pose, realism)
