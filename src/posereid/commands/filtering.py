"""The command that keeps the best drawings of a generated set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from posereid.commands.common import SetPlace, crops_of
from posereid.config import FilteringRecipe


@dataclass(frozen=True)
class Filter:
    """Score the drawings of a generated set and write the best of them as a set of its own, with all scores.

    A share of 1 switches its measure off. Near duplicates are pointed out in the manifest, not left out.
    """

    generated: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="set")]
    """Folder that `posereid augment` wrote."""
    out: Path
    """New folder for the filtered set."""
    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder that `posereid train` wrote, whose generator drew the set; its discriminators judge pose and realism."""
    judge: Path | None = None
    """Folder that `posereid train-reid` wrote from real crops alone; its embedder judges identity."""
    pose_estimator: Path | None = None
    """Folder that `posereid train-pose` wrote, for --pose-by keypoints."""
    place: Annotated[SetPlace, tyro.conf.arg(name="")] = field(default_factory=SetPlace)
    identity: float | None = None
    """Share kept by distance between embeddings of source and drawing; without it, what the run's recipe says."""
    pose: float | None = None
    """Share kept by how well the drawing shows its target pose; without it, the recipe's."""
    pose_by: Literal["discriminator", "keypoints"] | None = None
    """Whether D_P's score or the error of keypoints found says how well; without it, the recipe's."""
    realism: float | None = None
    """Share kept by D_I's score; without it, the recipe's."""
    near_duplicate: float | None = None
    """Mean difference of pixels (0 … 255) below which two drawings of one crop are near duplicates, 0 for no look;
    without it, the recipe's."""
    batch_size: int | None = None
    """Crops scored at a time; without it, the recipe's."""

    def run(self) -> None:
        """Score, choose and write."""
        from posereid.augmentation.filters import filter_set
        from posereid.training.checkpoint import latest_checkpoint
        from posereid.training.devices import set_threads

        set_threads()
        recipe = latest_checkpoint(self.run_folder).recipe
        made = filter_set(
            self.generated,
            self.out,
            crops_of(recipe, self.place),
            self._settings(recipe.filtering),
            run=self.run_folder,
            judge=self.judge,
            pose_estimator=self.pose_estimator,
        )
        print("\n".join(made.lines()))

    def _settings(self, settings: FilteringRecipe) -> FilteringRecipe:
        names = ("identity", "pose", "pose_by", "realism", "near_duplicate", "batch_size")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return settings.changed(**given)
