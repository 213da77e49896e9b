"""Command line: each command is a function that a notebook could call.

Nothing heavy is imported before a command runs, so that ``posereid --help`` answers at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import ValidationError

from posereid.config import EvaluationRecipe, Recipe, explain, read_recipe
from posereid.errors import InputError

if TYPE_CHECKING:
    from posereid.data.crops import CropTable

RecipeFields = Annotated[Recipe, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Synthesize:
    """Render the synthetic world of pedestrians in Market-1501's layout."""

    out: tyro.conf.Positional[Path]
    """New folder to write."""
    identities: int = 64
    """People, half for training and half for test."""
    crops_per_identity: int = 24
    """Crops of each person over all cameras."""
    cameras: int = 4
    """Cameras, each with its own view, background and light."""
    height: int = 128
    """Height of a crop in pixels; its width is half of that."""
    seed: int = 0
    """Seed that decides every pixel."""

    def run(self) -> None:
        """Write the world."""
        from posereid.data.synthetic import synthesize

        synthesize(
            self.out,
            identities=self.identities,
            crops_per_identity=self.crops_per_identity,
            cameras=self.cameras,
            height=self.height,
            seed=self.seed,
            progress=True,
        )
        print(f"{self.out}: {self.identities} people, seed {self.seed}.")


@dataclass(frozen=True)
class Check:
    """Look through a data set before a run and name what is wrong. Leaves with exit code 1 if anything is."""

    root: tyro.conf.Positional[Path]
    """Folder of the set, or a CSV with path,identity,camera."""
    layout: Literal["auto", "market1501", "dukemtmc", "cuhk03", "msmt17", "csv"] = "auto"
    """Layout of the folder."""
    keypoints: tuple[Path, ...] | None = None
    """Keypoint files; without any, the root's *annotation-{train,query,test}.csv."""
    decode: bool = True
    """Open every image."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Print the findings."""
        from posereid.data.check import check_crops
        from posereid.data.layouts import load_crops

        report = check_crops(
            load_crops(self.root, self.layout, self.keypoints), decode=self.decode, progress=not self.json
        )
        print(json.dumps(report.as_dict(), indent=1) if self.json else "\n".join(report.lines()))
        if not report.ok:
            sys.exit(1)


@dataclass(frozen=True)
class Train:
    """Train generator, discriminators and embedder together (equation 14). Every field of the recipe is an option."""

    recipe_file: tyro.conf.Positional[Path]
    """Recipe to start from, for example recipes/market1501.yaml."""
    out: Path
    """New folder for the run."""
    resume: bool = False
    """Go on from the newest checkpoint in that folder."""
    fields: RecipeFields = field(default_factory=Recipe)

    def run(self) -> None:
        """Train."""
        from posereid.training.joint import train_joint
        from posereid.training.loop import set_threads

        set_threads()
        recipe = _placed(self.fields)
        train_joint(recipe, _crops(recipe), self.out, resume=self.resume)
        _say_first(f"{self.out}: trained; next: posereid augment {self.out} --out NEW_FOLDER")


@dataclass(frozen=True)
class Augment:
    """Draw the training crops of a run in poses of other crops and write them as a set with a manifest."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train` wrote."""
    out: Path
    """New folder for the generated set."""
    root: Path | None = None
    """Where the run's data set lies now, if it was moved."""
    poses_per_crop: int | None = None
    """Target poses per crop; without it, what the run's recipe says."""
    seed: int | None = None
    """Seed that picks the target poses; without it, the recipe's."""

    def run(self) -> None:
        """Draw and write."""
        from posereid.augment import augment
        from posereid.training.checkpoint import latest_checkpoint, load_generator
        from posereid.training.loop import pick_device, set_threads

        set_threads()
        checkpoint = latest_checkpoint(self.run_folder)
        recipe = checkpoint.recipe
        settings = recipe.augmentation
        if self.poses_per_crop is not None:
            settings = settings.changed(poses_per_crop=self.poses_per_crop)
        generator = load_generator(checkpoint.folder, pick_device(recipe.runtime))
        made = augment(
            generator,
            _crops(recipe, self.root),
            self.out,
            settings,
            seed=recipe.seed if self.seed is None else self.seed,
            checkpoint=checkpoint.digest("generator"),
        )
        print(f"{made.folder}: {made.drawn} crops drawn; {made.without_pose} training crops had no usable pose.")


@dataclass(frozen=True)
class TrainReid:
    """Train the re-ID network on real, or real and generated, crops. Every field of the recipe is an option."""

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
    fields: RecipeFields = field(default_factory=Recipe)

    def run(self) -> None:
        """Train."""
        from posereid.augment import with_generated
        from posereid.data.layouts import load_crops
        from posereid.training.loop import set_threads
        from posereid.training.reid import train_reid

        set_threads()
        recipe = _placed(self.fields)
        crops = _crops(recipe)
        if self.generated is not None:
            crops = with_generated(crops, load_crops(self.generated))
        train_reid(recipe, crops, self.out, start=self.start, resume=self.resume)
        _say_first(f"{self.out}: trained; next: posereid evaluate {self.out}")


@dataclass(frozen=True)
class Evaluate:
    """Rank the test split and measure generated test pairs; print a table and write evaluation.json."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train` or `posereid train-reid` wrote."""
    root: Path | None = None
    """Another data set than the one the run was trained on."""
    pairs: int | None = None
    """Test pairs to draw; without it, what the run's recipe says."""
    out: Path | None = None
    """Where to write the JSON; without it, evaluation.json in the run's folder, or evaluation-NAME.json with --root."""

    def run(self) -> None:
        """Evaluate."""
        from posereid.evaluation.summary import evaluate_run, evaluation_table
        from posereid.files import write_atomically
        from posereid.training.loop import set_threads

        set_threads()
        out = self.out or self.run_folder / (f"evaluation-{self.root.stem}.json" if self.root else "evaluation.json")
        if out.is_dir() or (out.parent.exists() and not os.access(out.parent, os.W_OK)):
            raise InputError(f"--out is {out}, where no file can be written; give another path.")
        evaluation = evaluate_run(self.run_folder, root=self.root, pairs=self.pairs, progress=True)
        write_atomically(out, json.dumps(evaluation, indent=1) + "\n")
        print(evaluation_table(evaluation))
        print(f"Written to {out}.")


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
        from posereid.training.loop import pick_device, set_threads

        if self.out.suffix != ".npz":
            raise InputError(f"--out is {self.out}; give a file name that ends in .npz.")
        set_threads()
        folder = read_image_folder(self.images)
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
        from posereid.training.loop import pick_device, set_threads
        from posereid.transfer import find_joints, find_target, redraw

        if self.out.suffix.lower() != ".png":
            raise InputError(f"--out is {self.out}; give a file name that ends in .png.")
        set_threads()
        image = open_image(self.image)
        checkpoint = latest_checkpoint(self.run_folder)
        recipe = checkpoint.recipe
        known = _crops(recipe) if recipe.data.root and recipe.data.root.exists() and not self.keypoints else ()
        joints = find_joints(self.joints, self.image.name, self.keypoints, known, image.size)
        target = find_target(self.target, self.keypoints, known, image.size)
        generator = load_generator(checkpoint.folder, pick_device(recipe.runtime))
        content = io.BytesIO()
        redraw(generator, image, joints, target).save(content, "PNG")
        write_atomically(self.out, content.getvalue())
        print(f"{self.out}: {self.image.name} in pose {self.target}.")


@dataclass(frozen=True)
class Demo:
    """Run the whole job on the synthetic world and write report.html and summary.json."""

    out: Path = Path("runs/demo")
    """Folder for everything that the demo makes; stages that are finished there are kept."""
    recipe_file: Annotated[Path | None, tyro.conf.arg(name="recipe")] = None
    """Recipe; without it, the demo's own."""

    def run(self) -> None:
        """Run it."""
        from posereid.demo import run_demo
        from posereid.training.loop import set_threads

        set_threads()
        run_demo(self.out, self.recipe_file)


COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "synthesize": Synthesize,
    "check": Check,
    "train": Train,
    "augment": Augment,
    "train-reid": TrainReid,
    "evaluate": Evaluate,
    "embed": Embed,
    "transfer": Transfer,
}
WITH_RECIPE: dict[str, type[Train] | type[TrainReid]] = {"train": Train, "train-reid": TrainReid}


def _crops(recipe: Recipe, root: Path | None = None) -> "CropTable":
    """The recipe's crops, or those of another root; what was left out is said."""
    from posereid.data.layouts import load_crops

    if root is not None:
        table = load_crops(root)
    elif recipe.data.root is not None:
        table = load_crops(recipe.data.root, recipe.data.layout, recipe.data.keypoints)
    else:
        raise InputError("data.root is not set; write it into the recipe or give --data.root FOLDER.")
    for line in (*table.left_out(), *table.notes):
        _say_first(line)
    return table


def _placed(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that a run can be used from any folder."""
    data = recipe.data
    changes = {
        "root": data.root.absolute() if data.root else None,
        "keypoints": tuple(path.absolute() for path in data.keypoints) if data.keypoints else data.keypoints,
    }
    return recipe.model_copy(update={"data": data.model_copy(update=changes)})


def _say_first(text: str) -> None:
    from posereid.training.loop import is_first_process

    if is_first_process():
        print(text)


def _parse(arguments: Sequence[str]) -> Any:
    command = arguments[0] if arguments else ""
    if command not in WITH_RECIPE or (len(arguments) > 1 and arguments[1] in ("-h", "--help")):
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="posereid",
            description="Redraw people in new poses and match them across cameras.",
            args=list(arguments),
        )
    # The options begin from the recipe's values, so it is read before them.
    if len(arguments) < 2 or arguments[1].startswith("-"):
        raise InputError(
            f"posereid {command} needs a recipe as its first argument, for example: "
            f"posereid {command} recipes/demo.yaml."
        )
    kind = WITH_RECIPE[command]
    path = Path(arguments[1])
    default = kind(recipe_file=path, out=tyro.MISSING, fields=read_recipe(path))
    return tyro.cli(kind, prog=f"posereid {command}", args=list(arguments[1:]), default=default)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake ends in one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if list(arguments) == ["--version"]:
            from posereid import __version__

            print(f"posereid {__version__}")
            return
        _parse(arguments).run()
    except InputError as error:
        print(f"posereid: {error}", file=sys.stderr)
        sys.exit(2)
    except ValidationError as error:
        print(f"posereid: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output, such as head, has gone; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = error.filename2 or error.filename or "a file"
        print(
            f"posereid: {place}: {error.strerror or error}; check the path, its permissions and the free space.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("posereid: stopped; --resume goes on from a run's newest checkpoint.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
