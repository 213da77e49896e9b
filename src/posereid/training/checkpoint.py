"""Checkpoints: weights as safetensors, what they are as JSON, and the optimisers' state apart."""

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posereid.config import Recipe, parse_recipe
from posereid.discriminator import PatchDiscriminator, appearance_discriminator, pose_discriminator
from posereid.embedder import Embedder, build_embedder
from posereid.errors import InputError
from posereid.files import atomic_folder, clear_partials, partial_path, set_aside_path
from posereid.generator.generator import PoseTransferGenerator, build_generator
from posereid.messages import shown
from posereid.pose_estimator import PoseEstimator, build_pose_estimator
from posereid.training.integrity import (
    ABOUT_FILE,
    RESUME_FILE,
    DamageError,
    file_digest,
    read_verified,
    write_about,
)

# Weights trained at one of these precisions may be loaded at another.
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_FOLDER = "checkpoints"
_STEP = re.compile(r"step-(\d{8,18})", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run: its folder, step, recipe, the identities that its classifier knows, and the
    fingerprint of the crops that it was trained on.
    """

    folder: Path
    step: int
    stage: str
    recipe: Recipe
    identities: tuple[int, ...]
    training_set: str

    @property
    def run(self) -> Path | None:
        """The folder of its run; None for a checkpoint that was copied out of one."""
        place = self.folder.absolute().parent
        return place.parent if place.name == _FOLDER else None

    def digest(self, part: str) -> str:
        """SHA-256 of one part's weights file, for manifests."""
        return file_digest(self.folder / f"{part}.safetensors")


def save_checkpoint(
    run: Path,
    *,
    step: int,
    stage: str,
    recipe: Recipe,
    identities: tuple[int, ...],
    training_set: str,
    parts: Mapping[str, nn.Module],
    resume_state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``run/checkpoints/step-NNNNNNNN`` and drop what is older than the newest ``keep`` whole ones.

    The folder appears complete or not at all, in place of one of the same step too. ``parts`` become one
    safetensors file each; ``resume_state`` holds only tensors and plain values, so that it can be read back without
    pickle. What killed processes left half-written is removed, so the run must have no other writer
    (:func:`posereid.training.run_folder.lock_run`). Raises InputError when the disk is full or fails; the
    checkpoints that there were are untouched then.
    """
    folder = run / _FOLDER / f"step-{step:08d}"
    states = {name: module.state_dict() for name, module in parts.items()}
    needed = _bytes_of((states, resume_state)) + 2**16
    about = {
        "stage": stage,
        "step": step,
        "identities": list(identities),
        "training_set": training_set,
        "parts": list(parts),
        "recipe": recipe.model_dump(mode="json"),
    }
    try:
        clear_left_overs(run)
        _require_space(folder, needed)
        with atomic_folder(folder, "a checkpoint", replace=True) as partial:
            for name, state in states.items():
                tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
                save_file(tensors, partial / f"{name}.safetensors")
            # Through a handle of ours, the cause of a failure can be told from torch's own complaint.
            with (partial / RESUME_FILE).open("wb") as handle:
                torch.save(dict(resume_state), handle)
            write_about(partial, about)
    except (OSError, SafetensorError, RuntimeError) as error:
        if cause := _cause_on_disk(error):
            raise _unwritable(folder, cause, needed) from None
        raise
    _drop_old(run, folder, keep)
    return folder


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, damaged ones included, oldest first.

    One that a killed process left set aside, with nothing in its place yet, is one of them.
    """
    places = sorted((run / _FOLDER).glob("step-*"))
    found = {int(match[1]): path for path in places if (match := _STEP.fullmatch(path.name)) and path.is_dir()}
    for aside, folder in _set_aside(run / _FOLDER).items():
        found.setdefault(int(folder.name.removeprefix("step-")), aside)
    return [found[step] for step in sorted(found)]


def latest_checkpoint(run: str | Path) -> Checkpoint:
    """The newest whole checkpoint of a run, all its files verified.

    Where newer ones are damaged, one line on stderr names them and the one that is used instead. A checkpoint's own
    folder may be given too; nothing is used instead of that. Raises InputError when no whole checkpoint is found.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run; give the folder that `posereid train --out` wrote.")
    if (run / ABOUT_FILE).is_file():
        try:
            return _verified(run)
        except DamageError as damage:
            raise InputError(f"{run} cannot be used: {damage}; use another checkpoint.") from None
    damaged: list[str] = []
    for folder in reversed(checkpoint_folders(run)):
        try:
            checkpoint = _verified(folder)
        except DamageError as damage:
            damaged.append(f"{folder.name} ({damage})")
            continue
        if damaged:
            _warn(f"{run / _FOLDER} has damaged checkpoints, {', '.join(damaged)}; {folder.name} is used instead.")
        return checkpoint
    if damaged:
        raise InputError(
            f"{run / _FOLDER} has only damaged checkpoints, {', '.join(damaged)}; bring one back from a copy, or "
            "begin a new run."
        )
    raise InputError(f"{run} holds no checkpoint; give the folder that `posereid train --out` wrote.")


@cache
def _warn(sentence: str) -> None:
    """Say something on stderr, once: one command may look for the same checkpoint several times."""
    print(f"posereid: {sentence}", file=sys.stderr)


def _verified(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, if its files are those that were written. Raises DamageError."""
    about = read_verified(folder)
    try:
        recipe = parse_recipe(about["recipe"], ABOUT_FILE)
    except (InputError, RecursionError) as error:
        raise DamageError(str(error).rstrip(".")) from None
    return Checkpoint(folder, about["step"], about["stage"], recipe, tuple(about["identities"]), about["training_set"])


# --- room on the disk --------------------------------------------------------------------------------------


def _bytes_of(value: object) -> int:
    """About how many bytes nested tensors take on the disk, with what the formats put before each."""
    if isinstance(value, Tensor):
        return value.nbytes + 512
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


def _require_space(folder: Path, needed: int) -> None:
    space = shutil.disk_usage(next(place for place in folder.parents if place.exists()))
    # Some network drives do not say.
    if space.total and space.free < needed:
        raise _unwritable(folder, "the disk is full", needed)


def _unwritable(folder: Path, cause: str, needed: int) -> InputError:
    free = shutil.disk_usage(next(place for place in folder.parents if place.exists())).free
    return InputError(
        f"{folder} cannot be written ({cause}): it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; make "
        "room, or see to the disk, then go on with --resume."
    )


def _cause_on_disk(error: Exception) -> str | None:
    """What kept a file from being written, in a few words; None when that is not what went wrong."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error).rpartition("I/O error: ")[2]
    # What torch's zip writer raises has the system's error behind it, if anything.
    if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
        inner = error.__context__
        return (isinstance(inner, OSError) and inner.strerror) or f"{RESUME_FILE} was cut short"
    return None


# --- old ones ----------------------------------------------------------------------------------------------


def _drop_old(run: Path, written: Path, keep: int) -> None:
    """Remove what is older than the newest ``keep`` whole checkpoints; a damaged one does not count."""
    folders = checkpoint_folders(run)
    whole = (folder for folder in reversed(folders) if folder == written or _is_whole(folder))
    kept = list(islice(whole, keep))
    for folder in folders[: folders.index(kept[-1])] if len(kept) == keep else []:
        if folder != written:
            # A process killed while it removes must not leave a checkpoint with holes.
            doomed = partial_path(folder)
            folder.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        _verified(folder)
    except DamageError:
        return False
    return True


def clear_left_overs(run: Path) -> None:
    """Remove what killed processes left in the folder of checkpoints; put back what they had set aside."""
    place = run / _FOLDER
    clear_partials(place, "step-*")
    for aside, folder in _set_aside(place).items():
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.replace(folder)


def _set_aside(place: Path) -> dict[Path, Path]:
    """Each folder that a killed process left set aside, and its own place."""
    pairs = {path: place / path.name.removeprefix(".").removesuffix(".replaced") for path in place.glob(".step-*")}
    return {
        path: folder
        for path, folder in pairs.items()
        if _STEP.fullmatch(folder.name) and path == set_aside_path(folder)
    }


# --- reading -----------------------------------------------------------------------------------------------


def resume_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The optimisers' state beside the weights; read with ``weights_only=True``. Raises InputError."""
    path = checkpoint.folder / RESUME_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); resume from another checkpoint.") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no optimiser state; resume from another checkpoint.")
    return state


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file.

    Raises InputError when the file is missing or damaged, or when its tensors are not the module's, naming the
    first that differs.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights; this run has not trained a {path.stem}.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a safetensors file that can be read: {shown(str(error), 150)}.") from None
    own = module.state_dict()
    for name in [*own, *state]:
        found = tuple(state[name].shape) if name in state else None
        expected = tuple(own[name].shape) if name in own else None
        if found != expected:
            raise InputError(
                f"{path} was saved from other widths: {shown(name, 80)} is "
                f"{'absent' if found is None else found} there and "
                f"{'absent' if expected is None else expected} "
                "in the network of this recipe; use the recipe that the checkpoint was trained with."
            )
        if not {state[name].dtype, own[name].dtype} <= _FLOATS and state[name].dtype != own[name].dtype:
            raise InputError(
                f"{path}: {name} is of type {state[name].dtype}, {own[name].dtype} was expected; use another "
                "checkpoint."
            )
        if state[name].is_floating_point() and not state[name].isfinite().all():
            raise InputError(f"{path}: {name} holds numbers that are not finite; use an earlier checkpoint.")
    module.load_state_dict(state)


def new_generator(recipe: Recipe) -> PoseTransferGenerator:
    """The recipe's generator with fresh weights."""
    parts = recipe.generator
    return build_generator(
        parts.blocks,
        parts.base_width,
        parts.max_width,
        parts.adain,
        crop_size=(recipe.data.height, recipe.data.width),
        start=parts.start,
        content=parts.content,
        texture=parts.texture == "limbs",
        cameras=parts.cameras,
    )


def new_embedder(recipe: Recipe, identities: int, *, pretrained: bool | None = None) -> Embedder:
    """The recipe's embedder; ``pretrained`` overrides the recipe where weights will be loaded anyway."""
    parts = recipe.embedder
    return build_embedder(
        identities,
        parts.backbone,
        pretrained=parts.pretrained if pretrained is None else pretrained,
        input_size=(parts.input_height, parts.input_width),
        crop_size=(recipe.data.height, recipe.data.width),
        dropout=parts.dropout,
    )


def new_pose_estimator(recipe: Recipe, *, pretrained: bool | None = None) -> PoseEstimator:
    """The recipe's pose estimator; ``pretrained`` overrides the recipe where weights will be loaded anyway."""
    parts = recipe.pose_estimator
    return build_pose_estimator(
        parts.backbone,
        pretrained=parts.pretrained if pretrained is None else pretrained,
        width=parts.width,
        map_stride=parts.map_stride,
        crop_size=(recipe.data.height, recipe.data.width),
    )


def load_generator(run: str | Path, device: str | torch.device = "cpu") -> PoseTransferGenerator:
    """The generator of a run's newest checkpoint, ready to draw. Raises InputError."""
    checkpoint = latest_checkpoint(run)
    generator = new_generator(checkpoint.recipe)
    load_weights(generator, checkpoint.folder / "generator.safetensors")
    return generator.to(device).eval()


def load_discriminator(
    run: str | Path, kind: Literal["appearance", "pose"], device: str | torch.device = "cpu"
) -> PatchDiscriminator:
    """D_I ("appearance") or D_P ("pose") of a run's newest checkpoint, ready to judge. Raises InputError."""
    checkpoint = latest_checkpoint(run)
    parts = checkpoint.recipe.discriminator
    build = {"appearance": appearance_discriminator, "pose": pose_discriminator}[kind]
    discriminator = build(parts.base_width, parts.layers)
    load_weights(discriminator, checkpoint.folder / f"{kind}_discriminator.safetensors")
    return discriminator.to(device).eval()


def load_embedder(run: str | Path, device: str | torch.device = "cpu") -> Embedder:
    """The embedder of a run's newest checkpoint, ready to embed. Raises InputError."""
    checkpoint = latest_checkpoint(run)
    embedder = new_embedder(checkpoint.recipe, len(checkpoint.identities), pretrained=False)
    load_weights(embedder, checkpoint.folder / "embedder.safetensors")
    return embedder.to(device).eval()


def load_pose_estimator(run: str | Path, device: str | torch.device = "cpu") -> PoseEstimator:
    """The pose estimator of a run's newest checkpoint, ready to estimate. Raises InputError."""
    checkpoint = latest_checkpoint(run)
    estimator = new_pose_estimator(checkpoint.recipe, pretrained=False)
    load_weights(estimator, checkpoint.folder / "pose_estimator.safetensors")
    return estimator.to(device).eval()
