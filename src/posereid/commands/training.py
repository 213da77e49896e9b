"""Commands that train networks and draw training crops with them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from posereid.commands.common import crops_of, placed, say_first, spread
from posereid.commands.options import RecipeOptions, options_of

Options = Annotated[RecipeOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Train:
    """Train generator, discriminators and embedder together (equation 14). What it reads of the recipe is an option."""

    recipe_file: tyro.conf.Positional[Path]
    """Recipe to start from, for example recipes/market1501.yaml."""
    out: Path
    """New folder for the run."""
    resume: bool = False
    """Go on from the newest checkpoint in that folder."""
    devices: int | None = None
    """Processes on each machine, one per device; short for --runtime.devices."""
    num_nodes: int | None = None
    """Machines; short for --runtime.num-nodes."""
    options: Options = field(default_factory=options_of("joint"))

    def run(self) -> None:
        """Train."""
        from posereid.training.devices import set_threads
        from posereid.training.joint import train_joint

        set_threads()
        recipe = placed(spread(self.options.recipe(), self.devices, self.num_nodes))
        train_joint(recipe, crops_of(recipe), self.out, resume=self.resume)
        say_first(f"{self.out}: trained; next: posereid augment {self.out} --out NEW_FOLDER")


@dataclass(frozen=True)
class TrainReid:
    """Train the re-ID network on real, or real and generated, crops. What it reads of the recipe is an option."""

    recipe_file: tyro.conf.Positional[Path]
    """Recipe to start from."""
    out: Path
    """New folder for the run."""
    generated: Path | None = None
    """Generated set that `posereid augment` wrote; without it, real crops only."""
    start: Path | None = None
    """Run whose embedder to begin from, for example the joint run."""
    resume: bool = False
    """Go on from the newest checkpoint in that folder."""
    devices: int | None = None
    """Processes on each machine, one per device; short for --runtime.devices."""
    num_nodes: int | None = None
    """Machines; short for --runtime.num-nodes."""
    options: Options = field(default_factory=options_of("reid"))

    def run(self) -> None:
        """Train."""
        from posereid.augmentation.sets import with_generated
        from posereid.data.layouts import load_crops
        from posereid.training.devices import set_threads
        from posereid.training.reid import train_reid

        set_threads()
        recipe = placed(spread(self.options.recipe(), self.devices, self.num_nodes))
        crops = crops_of(recipe)
        if self.generated is not None:
            crops = with_generated(crops, load_crops(self.generated))
        train_reid(recipe, crops, self.out, start=self.start, resume=self.resume)
        say_first(f"{self.out}: trained; next: posereid evaluate {self.out}")


@dataclass(frozen=True)
class TrainPose:
    """Train a pose estimator on a set's own joints, to find them again in generated pictures (PCKh).

    What it reads of the recipe is an option.
    """

    recipe_file: tyro.conf.Positional[Path]
    """Recipe to start from."""
    out: Path
    """New folder for the run."""
    resume: bool = False
    """Go on from the newest checkpoint in that folder."""
    devices: int | None = None
    """Processes on each machine, one per device; short for --runtime.devices."""
    num_nodes: int | None = None
    """Machines; short for --runtime.num-nodes."""
    options: Options = field(default_factory=options_of("pose"))

    def run(self) -> None:
        """Train."""
        from posereid.training.devices import set_threads
        from posereid.training.pose import train_pose_estimator

        set_threads()
        recipe = placed(spread(self.options.recipe(), self.devices, self.num_nodes))
        train_pose_estimator(recipe, crops_of(recipe), self.out, resume=self.resume)
        say_first(f"{self.out}: trained; next: posereid evaluate RUN --pose-estimator {self.out}")
