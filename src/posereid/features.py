"""Crops to 128-d embeddings, and embeddings to a file."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import Crop
from posereid.data.layouts import load_crops
from posereid.data.readers import image_names
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.messages import complaint
from posereid.pose.formats import name_problem
from posereid.pose.names import parse_crop_name
from posereid.progress import progress_bar

OWN_CSV = "crops.csv"


@torch.no_grad()
def embed_crops(
    embedder: Embedder, crops: Sequence[Crop], *, batch_size: int = 64, progress: bool = False
) -> npt.NDArray[np.float32]:
    """Embeddings of unit length, (n, 128) float32, in the crops' order.

    Runs where the embedder's weights lie. Raises InputError naming the first crop that is no picture.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it must be at least 1.")
    device = next(embedder.parameters()).device
    was_training = embedder.training
    embedder.eval()
    images = CropImages(crops, *embedder.crop_size, cache_gb=0)
    features = np.empty((len(crops), embedder.embedding.out_features), np.float32)
    with progress_bar(len(crops), "embedding", "crop", show=progress) as bar:
        for start in range(0, len(crops), batch_size):
            stop = min(start + batch_size, len(crops))
            pixels = torch.stack([images.image(position) for position in range(start, stop)])
            features[start:stop] = embedder.embed(to_float(pixels.to(device))).float().cpu().numpy()
            bar.update(stop - start)
    embedder.train(was_training)
    return features


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images to embed; identities and cameras are there only when every one of them is known."""

    crops: tuple[Crop, ...]
    names: tuple[str, ...]
    identified: bool


def read_image_folder(images: Path) -> ImageFolder:
    """The images of a folder, by name, or those of a CSV with path,identity,camera.

    Identities and cameras come from the CSV, which is ``images`` itself or ``crops.csv`` inside it, or from file
    names in Market-1501's or DukeMTMC-reID's form. A folder in a data set's layout is taken as that set, all
    splits together. Raises InputError for a folder that is absent or holds no image.
    """
    if images.is_file() or (images / OWN_CSV).is_file():
        return _from_table(images)
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; give a folder of images or a CSV with path,identity,camera.")
    names = image_names(images)
    if not names:
        return _from_table(images)
    for name in names:
        if problem := name_problem(name):
            raise complaint(images, f"{problem} among its files", "names that can be printed", "rename the file")
    parsed = [parse_crop_name(name) for name in names]
    crops = tuple(
        Crop(images / name, name, known.identity if known else -1, known.camera if known else -1, "gallery")
        for name, known in zip(names, parsed, strict=True)
    )
    return ImageFolder(crops, tuple(names), all(known is not None for known in parsed))


def _from_table(images: Path) -> ImageFolder:
    table = load_crops(images)
    names = tuple(table.path_in_set(crop) for crop in table)
    return ImageFolder(table.crops, names, identified=True)


def write_features(path: Path, folder: ImageFolder, features: npt.NDArray[np.float32]) -> None:
    """Write ``names`` (n,), ``features`` (n, 128) and, where known, ``identities`` and ``cameras`` (n,) as .npz."""
    arrays: dict[str, npt.NDArray] = {"names": np.array(folder.names), "features": features}
    if folder.identified:
        arrays["identities"] = np.array([crop.identity for crop in folder.crops], np.int64)
        arrays["cameras"] = np.array([crop.camera for crop in folder.crops], np.int64)
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
