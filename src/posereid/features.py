"""Crops to 128-d embeddings, and embeddings to a file."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.data.readers import NUMBERED, WHOLE_NUMBER, Disk
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.messages import complaint, shown
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
    """Images to embed; identities and cameras are there only when every one of them is known.

    They are (n,) whole numbers, or text where a CSV has names, so that two files name the same people alike. ``notes``
    are sentences on what was left out and what the reader had to decide.
    """

    crops: tuple[Crop, ...]
    names: tuple[str, ...]
    identities: npt.NDArray[Any] | None
    cameras: npt.NDArray[Any] | None
    notes: tuple[str, ...] = ()

    @property
    def identified(self) -> bool:
        """Whether identities and cameras are known."""
        return self.identities is not None


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
    names, passed_over = Disk(images).images(images)
    if not names:
        return _from_table(images)
    for name in names:
        if problem := name_problem(name):
            raise complaint(images, f"{problem} among its files", "names that can be printed", "rename the file")
    parsed = [parse_crop_name(name) for name in names]
    known = [each for each in parsed if each is not None]
    crops = tuple(
        Crop(images / name, name, each.identity if each else -1, each.camera if each else -1, "gallery")
        for name, each in zip(names, parsed, strict=True)
    )
    table = CropTable(images, "folder", crops, unparsed=tuple(passed_over))
    notes = table.left_out()
    if known and len(known) < len(names):
        example = shown(names[parsed.index(None)], 80)
        notes.append(f"{len(names) - len(known)} of {len(names)} names do not say whose crop it is, such as {example}.")
    identities, cameras = (table.identities, table.cameras) if len(known) == len(names) else (None, None)
    return ImageFolder(crops, tuple(names), identities, cameras, tuple(notes))


def _from_table(images: Path) -> ImageFolder:
    table = load_crops(images)
    names = tuple(table.path_in_set(crop) for crop in table)
    identities = _as_listed(table.identities, table.identity_names)
    cameras = _as_listed(table.cameras, table.camera_names)
    # How names were numbered is not said: the numbers go nowhere.
    notes = [note for note in table.notes if NUMBERED not in note]
    return ImageFolder(table.crops, names, identities, cameras, (*table.left_out(), *notes))


def _as_listed(numbers: npt.NDArray[np.int64], names: Mapping[int, str]) -> npt.NDArray[Any]:
    """The labels that a CSV has in place of some numbers; as whole numbers where all of them are."""
    listed = [names.get(number, str(number)) for number in numbers.tolist()]
    whole = [match[1] for label in listed if (match := WHOLE_NUMBER.fullmatch(label))]
    return np.array(whole, np.int64) if len(whole) == len(listed) else np.array(listed)


def write_features(path: Path, folder: ImageFolder, features: npt.NDArray[np.float32]) -> None:
    """Write ``names`` (n,), ``features`` (n, 128) and, where known, ``identities`` and ``cameras`` (n,) as .npz."""
    arrays: dict[str, npt.NDArray] = {"names": np.array(folder.names), "features": features}
    if folder.identities is not None and folder.cameras is not None:
        arrays |= {"identities": folder.identities, "cameras": folder.cameras}
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
