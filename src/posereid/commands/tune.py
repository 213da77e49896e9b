"""The command that chooses how embeddings are fused."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from posereid.commands.common import SetPlace, every_crop_of
from posereid.errors import InputError


@dataclass(frozen=True)
class TuneFusion:
    """Choose weight, poses and realism of fusion on identities held out for validation, and write them for a recipe.

    The run, and the generator's, must have trained with data.validation_share above 0. The test split is not looked at.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train-reid` or `posereid train` wrote, with the embedder."""
    generator: Path | None = None
    """Run whose generator draws, where the first has none."""
    out: Path | None = None
    """YAML to write, for a recipe to take over; without it, fusion.yaml in the run's folder. All figures lie beside
    it (.json)."""
    validation_share: float | None = None
    """Share of the training identities to choose on; without it, what the run's recipe held out, and never more."""
    place: Annotated[SetPlace, tyro.conf.arg(name="")] = field(default_factory=SetPlace)
    poses: int | None = None
    """Most poses to try; without it, 8, or all that the pose file holds."""
    pose_file: Path | None = None
    """Keypoint file of poses from `posereid poses`; without it, what the run's recipe says."""
    cache: Path | None = None
    """Folder that keeps embeddings for the next time; without it, features in the run's folder."""
    keep_drawings: bool = False
    """Keep the drawn pictures there too, for other embedders."""

    def run(self) -> None:
        """Choose, print and write."""
        from posereid.evaluation.evaluate import FEATURES_FOLDER
        from posereid.evaluation.fusion_choice import choice_table, tune_fusion
        from posereid.files import write_atomically
        from posereid.training.checkpoint import latest_checkpoint
        from posereid.training.devices import set_threads

        set_threads()
        out = self.out or self.run_folder / "fusion.yaml"
        if out.suffix not in (".yaml", ".yml"):
            raise InputError(f"--out is {out}; give a file name that ends in .yaml.")
        recipe = latest_checkpoint(self.run_folder).recipe
        fusion = recipe.evaluation.fusion
        if self.pose_file is not None:
            fusion = fusion.changed(pose_file=self.pose_file)
        choice = tune_fusion(
            self.run_folder,
            self.generator,
            share=self.validation_share,
            crops=every_crop_of(recipe, self.place),
            settings=recipe.evaluation.changed(fusion=fusion),
            most_poses=self.poses,
            cache=self.cache or self.run_folder / FEATURES_FOLDER,
            keep_drawings=self.keep_drawings,
            progress=True,
        )
        print(choice_table(choice))
        figures = out.with_suffix(".json")
        write_atomically(figures, choice.as_json())
        write_atomically(out, choice.as_recipe())
        print(f"Written: {out}, {figures}.")
