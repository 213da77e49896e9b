"""A generated set on disk: the manifest that says who made what, and its place beside the real crops."""

import csv
import io
from collections.abc import Iterator, Sequence

from posereid.augmentation.targets import Drawing
from posereid.data.crops import CropTable
from posereid.errors import InputError

MANIFEST_COLUMNS = ("name", "source", "target_pose", "identity", "camera", "checkpoint")
TRAIN_FOLDER = "bounding_box_train"


def manifest_text(crops: CropTable, drawings: Sequence[Drawing], checkpoint: str) -> str:
    """The manifest of drawings whose positions count in ``crops``; ``checkpoint`` is the generator's digest."""
    rows = (
        (
            d.name,
            crops[d.source].name,
            crops[d.target].name,
            crops[d.source].identity,
            crops[d.source].camera,
            checkpoint,
        )
        for d in drawings
    )
    return _csv(MANIFEST_COLUMNS, rows)


def own_csv_text(crops: CropTable, drawings: Sequence[Drawing]) -> str:
    """``crops.csv`` for sets whose file names do not say whose a crop is."""
    rows = ((f"{TRAIN_FOLDER}/{d.name}", crops[d.source].identity, crops[d.source].camera, "train") for d in drawings)
    return _csv(("path", "identity", "camera", "split"), rows)


def _csv(header: Sequence[str], rows: Iterator[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def with_generated(crops: CropTable, generated: CropTable) -> CropTable:
    """A table of real and generated training crops.

    Raises InputError when the generated set is not one, or holds identities that the real training split lacks.
    """
    drawn = generated.train
    if not len(drawn) or not all(crop.generated for crop in drawn):
        raise InputError(
            f"{generated.root} is no generated set: its manifest.csv does not account for its training crops; give the "
            "folder that `posereid augment` wrote."
        )
    strangers = {crop.identity for crop in drawn} - {crop.identity for crop in crops.train}
    if strangers:
        raise InputError(
            f"{generated.root} holds {len(strangers)} identities that {crops.root} does not train on, for example "
            f"{min(strangers)}; the two folders belong to different data sets."
        )
    return crops.with_crops([*crops, *drawn])
