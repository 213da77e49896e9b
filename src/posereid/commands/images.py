"""Commands that use a trained run on images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from posereid.commands.common import every_crop_of
from posereid.config import EvaluationRecipe
from posereid.errors import InputError


@dataclass(frozen=True)
class Embed:
    """Write the 128-d embeddings of images: arrays names, features and, where known, identities and cameras."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train` or `posereid train-reid` wrote."""
    images: Path
    """Folder of images, or a CSV with path,identity,camera."""
    out: Path
    """File to write, ending in .npz."""
    batch_size: int = EvaluationRecipe().batch_size
    """Images embedded at a time."""

    def run(self) -> None:
        """Embed and write."""
        from posereid.features import embed_crops, read_image_folder, write_features
        from posereid.training.checkpoint import latest_checkpoint, load_embedder
        from posereid.training.devices import pick_device, set_threads

        if self.out.suffix != ".npz":
            raise InputError(f"--out is {self.out}; give a file name that ends in .npz.")
        set_threads()
        folder = read_image_folder(self.images)
        for line in folder.notes:
            print(line)
        checkpoint = latest_checkpoint(self.run_folder)
        embedder = load_embedder(checkpoint.folder, pick_device(checkpoint.recipe.runtime))
        features = embed_crops(embedder, folder.crops, batch_size=self.batch_size, progress=True)
        write_features(self.out, folder, features)
        known = "with identities and cameras" if folder.identified else "names only, identities are not known"
        print(f"{self.out}: {len(features)} embeddings of {features.shape[1]} dimensions, {known}.")


@dataclass(frozen=True)
class Transfer:
    """Redraw the person of one image in another pose."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train` wrote."""
    image: Path
    """Picture of a person."""
    joints: str
    """The person's joints: a keypoint file, or one row of it: 'name: [y …]: [x …]'."""
    target: str
    """Pose to draw: front, front_left, left, back_left, back, back_right, right or front_right; a keypoint file with
    one row, in pixels of the image; or the name of a crop."""
    out: Path
    """PNG to write."""
    keypoints: tuple[Path, ...] = ()
    """Keypoint files in which to look up a crop's name; without any, those of the run's data set."""

    def run(self) -> None:
        """Draw and write."""
        import io

        from posereid.data.images import open_image
        from posereid.files import write_atomically
        from posereid.training.checkpoint import latest_checkpoint, load_generator
        from posereid.training.devices import pick_device, set_threads
        from posereid.transfer import find_joints, find_target, redraw

        if self.out.suffix.lower() != ".png":
            raise InputError(f"--out is {self.out}; give a file name that ends in .png.")
        set_threads()
        image = open_image(self.image)
        checkpoint = latest_checkpoint(self.run_folder)
        recipe = checkpoint.recipe
        known = every_crop_of(recipe) if recipe.data.root and recipe.data.root.exists() and not self.keypoints else ()
        joints = find_joints(self.joints, self.image.name, self.keypoints, known, image.size)
        target = find_target(self.target, self.keypoints, known, image.size)
        generator = load_generator(checkpoint.folder, pick_device(recipe.runtime))
        content = io.BytesIO()
        redraw(generator, image, joints, target).save(content, "PNG")
        write_atomically(self.out, content.getvalue())
        print(f"{self.out}: {self.image.name} in pose {self.target}.")
