"""Checkpoints: weights as safetensors, what they are as JSON, and the optimisers' state apart."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from posereid.config import Recipe, parse_recipe
from posereid.embedder import Embedder, build_embedder
from posereid.errors import InputError
from posereid.files import atomic_folder, write_atomically
from posereid.generator.generator import PoseTransferGenerator, build_generator
from posereid.pose_estimator import PoseEstimator, build_pose_estimator

FORMAT = 1
_FOLDER = "checkpoints"
_ABOUT = "checkpoint.json"
_RESUME = "resume.pt"


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

    def digest(self, part: str) -> str:
        """SHA-256 of one part's weights file, for manifests."""
        return hashlib.sha256((self.folder / f"{part}.safetensors").read_bytes()).hexdigest()


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
    """Write ``run/checkpoints/step-NNNNNNNN`` and drop all but the newest ``keep``.

    The folder appears complete or not at all. ``parts`` become one safetensors file each; ``resume_state`` holds
    only tensors and plain values, so that it can be read back without pickle.
    """
    folder = run / _FOLDER / f"step-{step:08d}"
    if folder.exists():
        shutil.rmtree(folder)
    with atomic_folder(folder, "a checkpoint") as partial:
        for name, module in parts.items():
            state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            try:
                save_file(state, partial / f"{name}.safetensors")
            except SafetensorError as error:
                raise InputError(f"{folder} cannot be written ({error}); check the free space.") from None
        torch.save(dict(resume_state), partial / _RESUME)
        about = {
            "format": FORMAT,
            "stage": stage,
            "step": step,
            "identities": list(identities),
            "training_set": training_set,
            "parts": list(parts),
            "recipe": recipe.model_dump(mode="json"),
        }
        write_atomically(partial / _ABOUT, json.dumps(about, indent=1))
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / _FOLDER).glob(f"step-*/{_ABOUT}"))


def latest_checkpoint(run: str | Path) -> Checkpoint:
    """The newest checkpoint of a run; a checkpoint's own folder is taken as it is. Raises InputError."""
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run; give the folder that `posereid train --out` wrote.")
    folders = [run] if (run / _ABOUT).is_file() else checkpoint_folders(run)
    if not folders:
        raise InputError(f"{run} holds no checkpoint; give the folder that `posereid train --out` wrote.")
    about_path = folders[-1] / _ABOUT
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version reads {FORMAT}")
        step, stage, identities, recipe = (about[key] for key in ("step", "stage", "identities", "recipe"))
        training_set = str(about["training_set"])
        step, identities = int(step), tuple(int(identity) for identity in identities)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{about_path} cannot be used ({type(error).__name__}: {error}); use another checkpoint."
        ) from None
    return Checkpoint(folders[-1], step, str(stage), parse_recipe(recipe, str(about_path)), identities, training_set)


def resume_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The optimisers' state beside the weights; read with ``weights_only=True``. Raises InputError."""
    path = checkpoint.folder / _RESUME
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); resume from another checkpoint.") from None


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file.

    Raises InputError when the file is missing or damaged, or when its tensors are not the module's, naming the
    first that differs.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights; this run has not trained a {path.stem}.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file that can be read ({error}).") from None
    own = module.state_dict()
    for name in [*own, *state]:
        found = tuple(state[name].shape) if name in state else None
        expected = tuple(own[name].shape) if name in own else None
        if found != expected:
            raise InputError(
                f"{path} was saved from other widths: {name} is {'absent' if found is None else found} there and "
                f"{'absent' if expected is None else expected} "
                "in the network of this recipe; use the recipe that the checkpoint was trained with."
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
