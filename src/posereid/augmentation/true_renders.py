"""What a perfect generator would draw: the synthetic world's own renders of the planned drawings.

Re-ID training on them is the ceiling against which generated crops are measured.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from posereid.augmentation.sets import (
    SCHEMA_VERSION,
    TRAIN_FOLDER,
    GeneratedSetInfo,
    manifest_rows,
    write_side_files,
)
from posereid.augmentation.targets import plan_drawings
from posereid.augmentation.unfinished import JPEG_QUALITY
from posereid.config import AugmentationRecipe
from posereid.data.crops import Crop, CropTable
from posereid.data.synthetic.crop import render_shot
from posereid.data.synthetic.plan import TRAIN, PlannedCrop
from posereid.data.synthetic.world import DESCRIPTION_FILE, World
from posereid.errors import InputError
from posereid.files import atomic_folder
from posereid.pose.joints import Joints
from posereid.progress import progress_bar
from posereid.training.integrity import file_digest


@dataclass(frozen=True)
class TruePoses:
    """The world of a synthetic set, asked for its training people in each other's poses."""

    world: World
    planned: dict[str, PlannedCrop]

    @classmethod
    def of(cls, root: Path) -> "TruePoses":
        """The world that the set in ``root`` shows. Raises InputError for a set that is not synthetic."""
        if not (root / DESCRIPTION_FILE).is_file():
            raise InputError(
                f"{root} has no {DESCRIPTION_FILE}: true renders can be made of synthetic sets alone; give a folder "
                "that `posereid synthesize` wrote."
            )
        world = World.read(root)
        return cls(world, {crop.name: crop for crop in world.crops if crop.folder == TRAIN})

    def render(self, source: Crop, target: Crop) -> tuple[npt.NDArray[np.uint8], Joints]:
        """The source's person before the source's camera, in the target's pose and framing: pixels and joints.

        Pixels are (H, W, 3) uint8 in the world's height. Raises InputError for crops that the world does not know.
        """
        for crop in (source, target):
            if crop.name not in self.planned:
                raise InputError(
                    f"{crop.path}: the world of its set has no such training crop; give the set as it was synthesized."
                )
        planned = self.planned[target.name]
        person, camera = self.world.person(source.identity), self.world.camera(source.camera)
        rendered = render_shot(person, self.world.pose(planned), camera, self.world.shot(planned))
        return rendered.image, rendered.joints


def write_true_renders(
    crops: CropTable, out: Path, recipe: AugmentationRecipe, *, seed: int, progress: bool = True
) -> int:
    """Write true renders of the drawings that :func:`~posereid.augmentation.drawing.augment` would plan, as such a set.

    Equal arguments plan equal drawings, so that the two sets differ in who drew them alone. The manifest's checkpoint
    is the SHA-256 of the world's description. Returns how many were rendered. Raises InputError for a set that is not
    synthetic, and where :func:`~posereid.augmentation.targets.plan_drawings` does.
    """
    train = crops.train
    truth = TruePoses.of(crops.root)
    drawings = plan_drawings(train, recipe, seed)
    digest = file_digest(crops.root / DESCRIPTION_FILE)
    rows = manifest_rows(train, drawings, digest)
    joints: dict[str, Joints] = {}
    with atomic_folder(out, "a generated set") as partial:
        (partial / TRAIN_FOLDER).mkdir()
        with progress_bar(len(drawings), "true renders", "crop", show=progress) as bar:
            for drawing in drawings:
                pixels, joints[drawing.name] = truth.render(train[drawing.source], train[drawing.target])
                Image.fromarray(pixels).save(
                    partial / TRAIN_FOLDER / drawing.name, "JPEG", quality=JPEG_QUALITY, subsampling=0
                )
                bar.update()
        info = GeneratedSetInfo(
            source_root=crops.root.name,
            checkpoint=digest,
            seed=seed,
            drawn=len(rows),
            schema_version=SCHEMA_VERSION,
            source_fingerprint=train.fingerprint,
            layout=crops.layout,
            recipe=recipe.model_dump(mode="json", exclude={"workers", "batch_size"}),
            training_crops_without_pose=sum(not crop.can_pose for crop in train),
            identities=len({row.identity for row in rows}),
            creation={"drawn_by": "the synthetic world itself"},
        )
        write_side_files(partial, crops.layout, rows, joints, info)
    return len(rows)
