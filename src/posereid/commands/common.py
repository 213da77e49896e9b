"""What several commands need: the crops of a recipe, and words said once for all processes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from posereid.config import DataRecipe, Layout, Recipe
from posereid.errors import InputError

if TYPE_CHECKING:
    from posereid.data.crops import CropTable


@dataclass(frozen=True)
class SetPlace:
    """Where a run's data set lies now: options of every command that uses a trained run on a set."""

    root: Path | None = None
    """Where the run's data set lies now, if it was moved, or another set; layout and keypoint files are those of the
    run's recipe where they fit it."""
    layout: Layout | None = None
    """Layout of the set; without it, what the run's recipe says."""
    keypoints: tuple[Path, ...] = ()
    """Keypoint files of the set; without any, those of the run's recipe, inside --root where they lay inside its
    root."""


def crops_of(recipe: Recipe, place: SetPlace | None = None) -> "CropTable":
    """The crops that a recipe trains on and is tested on; what was left out or is held out for validation is said.

    ``place`` is given by commands that use a run, and says where its set lies now.
    """
    from posereid.data.validation import without_validation

    table = every_crop_of(recipe, place)
    training = without_validation(table, recipe.data.validation_share)
    for note in training.notes[len(table.notes) :]:
        say_first(note)
    return training


def every_crop_of(recipe: Recipe, place: SetPlace | None = None) -> "CropTable":
    """The recipe's crops, or those at a place, held-out identities included; what was left out is said."""
    from posereid.data.layouts import load_crops

    data = recipe.data
    if place is not None and place != SetPlace():
        table = _crops_at(data, place)
    elif data.root is not None:
        table = load_crops(data.root, data.layout, data.keypoints)
    elif place is not None:
        raise InputError("The run does not say which data set it was trained on; give --root FOLDER.")
    else:
        raise InputError("data.root is not set; write it into the recipe or give --data.root FOLDER.")
    for line in (*table.left_out(), *table.notes):
        say_first(line)
    return table


def _crops_at(data: DataRecipe, place: SetPlace) -> "CropTable":
    """The crops at a place, read as the recipe says where that fits; where it does not, a sentence says so."""
    from posereid.data.layouts import load_crops

    root = place.root or data.root
    if root is None:
        raise InputError("The run does not say which data set it was trained on; give --root FOLDER.")
    layout = place.layout or data.layout
    if place.keypoints or place.root is None:
        brought, keypoints = None, place.keypoints or data.keypoints
    else:
        brought = keypoints = _moved_keypoints(data, root)
    of_recipe = [f"layout {layout}"] if place.root and not place.layout and layout != "auto" else []
    of_recipe += [f"keypoint files {', '.join(map(str, brought))}"] if brought else []
    try:
        table = load_crops(root, layout, keypoints)
        misfit = "no crop has joints in them." if brought and not any(crop.joints for crop in table) else ""
    except InputError as error:
        if not of_recipe:
            raise
        misfit = str(error)
    if misfit:
        say_first(f"{root} is read on its own, for the recipe's {' and '.join(of_recipe)} do not fit it: {misfit}")
        return load_crops(root, place.layout or "auto", place.keypoints or None)
    if any(not path.is_relative_to(root) for path in brought or ()) and any(root.glob("*annotation-*.csv")):
        say_first(f"{root} has keypoint files of its own; the recipe's are read instead, or those of --keypoints.")
    return table


def _moved_keypoints(data: DataRecipe, root: Path) -> tuple[Path, ...] | None:
    """The recipe's keypoint files; those that lay inside its root are looked up inside the new one."""
    if not data.keypoints or data.root is None:
        return data.keypoints
    before, after = (
        path.parent if path.suffix.lower() == ".csv" else path for path in (Path(os.path.normpath(data.root)), root)
    )
    paths = [Path(os.path.normpath(path)) for path in data.keypoints]
    return tuple(after / path.relative_to(before) if path.is_relative_to(before) else path for path in paths)


def placed(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that a run can be used from any folder."""
    data = recipe.data
    changes = {
        "root": data.root.absolute() if data.root else None,
        "keypoints": tuple(path.absolute() for path in data.keypoints) if data.keypoints else data.keypoints,
    }
    poses, pairs = recipe.evaluation.fusion.pose_file, recipe.evaluation.pairs_file
    fusion = recipe.evaluation.fusion.changed(pose_file=poses.absolute() if poses else None)
    evaluation = recipe.evaluation.changed(fusion=fusion, pairs_file=pairs.absolute() if pairs else None)
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
