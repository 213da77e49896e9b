"""The command that draws training crops."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from posereid.commands.common import SetPlace, crops_of, say_first
from posereid.config import TargetPolicy


@dataclass(frozen=True)
class Augment:
    """Draw the training crops of a run in poses of other crops and write them as a set with a manifest.

    A call that was stopped is taken up by the same command, which draws what is missing.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train` wrote."""
    out: Path
    """New folder for the generated set."""
    place: Annotated[SetPlace, tyro.conf.arg(name="")] = field(default_factory=SetPlace)
    poses_per_crop: int | None = None
    """Target poses per crop; without it, what the run's recipe says."""
    target_poses: TargetPolicy | None = None
    """Where target poses come from; without it, what the run's recipe says."""
    pose_clusters: int | None = None
    """Clusters of poses for the policies clusters and gaps; without it, what the run's recipe says."""
    batch_size: int | None = None
    """Crops drawn at a time; without it, what the run's recipe says."""
    workers: int | None = None
    """Threads that encode and write crops; without it, what the run's recipe says."""
    seed: int | None = None
    """Seed that picks the target poses; without it, the recipe's."""
    num_processes: int | None = None
    """Processes that draw, one per device; without it, the recipe's runtime.devices. The set is the same."""
    restart: bool = False
    """Begin anew where a call with other arguments was stopped, instead of going on."""

    def run(self) -> None:
        """Draw and write."""
        import torch

        from posereid.augmentation.drawing import augment
        from posereid.training.checkpoint import latest_checkpoint, load_generator
        from posereid.training.devices import ending_with_the_first, is_first_process, launch_fabric, set_threads

        set_threads()
        threads = torch.get_num_threads()
        checkpoint = latest_checkpoint(self.run_folder)
        recipe = checkpoint.recipe
        names = ("poses_per_crop", "target_poses", "pose_clusters", "batch_size", "workers")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        settings = recipe.augmentation.changed(**given)
        devices = recipe.runtime.devices if self.num_processes is None else self.num_processes
        runtime = recipe.runtime.changed(devices=devices, num_nodes=1)
        crops = crops_of(recipe, self.place)
        with ending_with_the_first():
            fabric = launch_fabric(runtime)
            if is_first_process():
                # Fabric shares a machine's threads among its processes, and the pixels would depend on their number.
                torch.set_num_threads(threads)
            made = augment(
                load_generator(checkpoint.folder, fabric.device),
                crops,
                self.out,
                settings,
                seed=recipe.seed if self.seed is None else self.seed,
                checkpoint=checkpoint.digest("generator"),
                restart=self.restart,
            )
        found = f", {made.found} of them by an earlier call" if made.found else ""
        say_first(
            f"{made.folder}: {made.drawn} crops drawn{found}; {made.without_pose} training crops had no usable pose."
        )
