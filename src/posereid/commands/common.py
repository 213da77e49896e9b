"""What several commands need: the crops of a recipe, and words said once for all processes."""

from pathlib import Path
from typing import TYPE_CHECKING

from posereid.config import Recipe
from posereid.errors import InputError

if TYPE_CHECKING:
    from posereid.data.crops import CropTable


def crops_of(recipe: Recipe, root: Path | None = None) -> "CropTable":
    """The crops that a recipe trains on and is tested on; what was left out or is held out for validation is said."""
    from posereid.data.validation import without_validation

    table = every_crop_of(recipe, root)
    training = without_validation(table, recipe.data.validation_share)
    for note in training.notes[len(table.notes) :]:
        say_first(note)
    return training


def every_crop_of(recipe: Recipe, root: Path | None = None) -> "CropTable":
    """The recipe's crops, or those of another root, held-out identities included; what was left out is said."""
    from posereid.data.layouts import load_crops

    if root is not None:
        table = load_crops(root)
    elif recipe.data.root is not None:
        table = load_crops(recipe.data.root, recipe.data.layout, recipe.data.keypoints)
    else:
        raise InputError("data.root is not set; write it into the recipe or give --data.root FOLDER.")
    for line in (*table.left_out(), *table.notes):
        say_first(line)
    return table


def placed(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that a run can be used from any folder."""
    data = recipe.data
    changes = {
        "root": data.root.absolute() if data.root else None,
        "keypoints": tuple(path.absolute() for path in data.keypoints) if data.keypoints else data.keypoints,
    }
    poses = recipe.evaluation.fusion.pose_file
    fusion = recipe.evaluation.fusion.changed(pose_file=poses.absolute() if poses else None)
    evaluation = recipe.evaluation.changed(fusion=fusion)
    return recipe.model_copy(update={"data": data.model_copy(update=changes), "evaluation": evaluation})


def spread(recipe: Recipe, devices: int | None, num_nodes: int | None) -> Recipe:
    """The recipe on so many processes; None leaves what it says."""
    given = {"devices": devices, "num_nodes": num_nodes}
    runtime = recipe.runtime.changed(**{name: value for name, value in given.items() if value is not None})
    return recipe.model_copy(update={"runtime": runtime})


def say_first(text: str) -> None:
    """Print in the first of several processes only."""
    from posereid.training.devices import is_first_process

    if is_first_process():
        print(text)
