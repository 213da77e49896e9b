"""Why redrawing helps at search time: the same search with one thing changed at a time, some of it without a generator.

    posereid ablate recipes/bench_cpu.yaml --out runs/evidence --rows texture --seeds 0 1 2 3 4
    python benchmarks/search_controls.py runs/evidence
    python benchmarks/evidence_tables.py small=runs/evidence

Takes the networks that saw real crops only and the generators of one row out of a grid's folder, seed by seed. Every
search is by embeddings averaged with those of the mirrored crop. Where a drawing is averaged in, its weight is
chosen for that row, by mAP on the held-out people; the test is looked at with that weight alone. Subtracting
each camera's mean embedding, or each camera's mean embedding of drawings, needs no labels but looks at the whole test
set (it is transductive). Writes search-controls.json into the grid's folder; seeds that lie there already are kept.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from posereid.ablation.figures import interval
from posereid.ablation.grid import GRID_FILE, WORLD, read_json
from posereid.config import Recipe, parse_recipe
from posereid.data.batches import CropImages, pose_maps, to_float
from posereid.data.crops import Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.data.validation import validation_search
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.ranking import RankingResult, rank_features
from posereid.files import write_atomically
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.canonical import canonical_pose
from posereid.progress import progress_bar
from posereid.training.checkpoint import load_embedder, load_generator
from posereid.training.devices import set_threads

WEIGHTS = [round(0.1 * tenth, 1) for tenth in range(11)]
BATCH = 64
FILE, SEEDS = "search-controls.json", "search-controls-seeds.json"

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Control:
    """One way to search: which drawing is averaged in, if any, and what is done to crops and embeddings."""

    label: str
    pose: str | None = None
    told_camera: bool = False
    grey: bool = False
    centred: bool = False

    @property
    def drawn(self) -> bool:
        return self.pose is not None


CONTROLS = (
    Control("flip (nothing else)"),
    Control("redrawn from the front, before any camera", pose="front"),
    Control("redrawn from the front, before the crop's own camera", pose="front", told_camera=True),
    Control("redrawn in the crop's own pose, before any camera", pose="own"),
    Control("redrawn in the crop's own pose, before its own camera", pose="own", told_camera=True),
    Control("no generator: each camera's mean subtracted", centred=True),
    Control("no generator: background greyed by the mask", grey=True),
    Control("no generator: both", grey=True, centred=True),
    Control("redrawn from the front, before any camera; each camera's mean subtracted", pose="front", centred=True),
)


class Views:
    """Embeddings of some crops as they are, greyed and redrawn, (n, d) of unit length, each computed once."""

    def __init__(self, crops: Sequence[Crop], embedder: Embedder, generator: PoseTransferGenerator) -> None:
        self.crops, self.embedder, self.generator = crops, embedder, generator
        self.images = CropImages(crops, *generator.crop_size)
        self.cameras = np.array([crop.camera for crop in crops])
        self._kept: dict[tuple[str | None, bool, bool], Features] = {}

    def of(self, pose: str | None, *, told_camera: bool = False, grey: bool = False) -> Features:
        """The crops' embeddings, each averaged with the mirror image's; crops that cannot be posed stay as they are."""
        key = (pose, told_camera, grey)
        if key not in self._kept:
            parts = [self._batch(range(start, min(start + BATCH, len(self.crops))), key) for start in self._starts]
            self._kept[key] = np.concatenate(parts)
        return self._kept[key]

    @property
    def _starts(self) -> range:
        return range(0, len(self.crops), BATCH)

    @torch.no_grad()
    def _batch(self, positions: range, key: tuple[str | None, bool, bool]) -> Features:
        pose, told_camera, grey = key
        images = to_float(self.images.images(positions))
        if grey:
            masks = [self.images.mask(position) for position in positions]
            if any(mask is None for mask in masks):
                raise InputError("the set has no masks, so that no background can be greyed.")
            images = torch.where(torch.stack(masks)[:, None], images, 0.0)  # type: ignore[arg-type]
        drawable = [at for at, position in enumerate(positions) if self.crops[position].can_pose]
        if pose is not None and drawable:
            joints = [self.images.joints(positions[at]) for at in drawable]
            size = self.generator.crop_size
            targets = joints if pose == "own" else [canonical_pose(pose, *size)] * len(joints)
            cameras = torch.tensor([self.cameras[positions[at]] if told_camera else 0 for at in drawable])
            maps = pose_maps(joints, size), pose_maps(targets, size)
            images[drawable] = self.generator(images[drawable], *maps, cameras)
        both = [self.embedder.embed(each) for each in (images, images.flip(-1))]
        return F.normalize(both[0] + both[1]).numpy()


def unit(vectors: Features) -> Features:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def centred(features: Features, cameras: npt.NDArray[np.int_]) -> Features:
    """Features without the mean of their camera's, of unit length again."""
    means = {camera: features[cameras == camera].mean(0) for camera in np.unique(cameras)}
    return unit(features - np.stack([means[camera] for camera in cameras]))


def searched(control: Control, weight: float, views: Views, table: CropTable) -> RankingResult:
    """The search of the table's queries among its gallery, whose crops are the views' in this order."""
    parts = [views.of(None, grey=control.grey)]
    if control.drawn:
        parts.append(views.of(control.pose, told_camera=control.told_camera))
    if control.centred:
        parts = [centred(part, views.cameras) for part in parts]
    features = parts[0] if len(parts) == 1 else unit((1 - weight) * parts[0] + weight * parts[1])
    query, gallery = table.query, table.gallery
    labels = (query.identities, gallery.identities, query.cameras, gallery.cameras)
    return rank_features(features[: len(query)], features[len(query) :], *labels)


def measured(folder: Path, row: str, seed: int, tables: tuple[CropTable, CropTable]) -> dict[str, Any]:
    """Of each control: mAP on the held-out people by weight, and every test query's average precision and rank-1."""
    embedder = load_embedder(folder / "reid" / "real" / f"seed-{seed}").eval()
    generator = load_generator(folder / "generators" / row / f"seed-{seed}").eval()
    held, test = tables
    of_held, of_test = (Views([*table.query, *table.gallery], embedder, generator) for table in tables)
    found = {}
    with progress_bar(len(CONTROLS), f"seed {seed}", "row", show=True) as bar:
        for control in CONTROLS:
            weights = WEIGHTS if control.drawn else [0.0]
            by_weight = {weight: searched(control, weight, of_test, test) for weight in weights}
            found[control.label] = {
                str(weight): {
                    "held_out": searched(control, weight, of_held, held).mean_average_precision,
                    "mAP": result.average_precisions.tolist(),
                    "rank1": np.where(result.first_hit_ranks > 0, result.first_hit_ranks == 1, np.nan).tolist(),
                }
                for weight, result in by_weight.items()
            }
            bar.update(1)
    return found


def summary(seeds: dict[str, dict[str, Any]], identities: npt.NDArray[Any], recipe: Recipe) -> list[dict[str, Any]]:
    """Of each control its weight, the best mean mAP on the held-out people, and what the test says of it."""
    rows = []
    confidence = recipe.evaluation.confidence
    control_values = None
    for control in CONTROLS:
        of_seeds = [seed[control.label] for seed in seeds.values()]
        means = {weight: float(np.mean([seed[weight]["held_out"] for seed in of_seeds])) for weight in of_seeds[0]}
        weight = max(means, key=lambda each: means[each])
        values = {name: np.array([seed[weight][name] for seed in of_seeds]) for name in ("rank1", "mAP")}
        control_values = control_values or values
        rows.append(
            {
                "label": control.label,
                "weight": float(weight) if control.drawn else None,
                "held_out": round(100 * means[weight], 2),
                **{name: {"mean": interval(each, identities, confidence)} for name, each in values.items()},
                **{
                    f"{name}_minus_flip": interval(each - control_values[name], identities, confidence)
                    for name, each in values.items()
                },
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="folder of posereid ablate")
    parser.add_argument("--row", default="texture", help="whose generators draw")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds; without any, all whose generator is there")
    arguments = parser.parse_args()
    set_threads()
    folder: Path = arguments.grid
    recipe = parse_recipe(read_json(folder / GRID_FILE)["recipe"], str(folder / GRID_FILE))
    crops = load_crops(recipe.data.root or folder / WORLD, recipe.data.layout, recipe.data.keypoints)
    tables = validation_search(crops, recipe.data.validation_share), crops
    there = sorted(
        int(path.parent.name[5:]) for path in (folder / "reid" / arguments.row).glob("seed-*/evaluation.json")
    )
    if not (seeds := arguments.seeds or there):
        raise InputError(f"{folder} has no finished seed of the row {arguments.row}; let posereid ablate go on first.")
    path = folder / FILE
    kept = read_json(folder / SEEDS) if (folder / SEEDS).exists() else {}
    for seed in seeds:
        if str(seed) not in kept:
            kept[str(seed)] = measured(folder, arguments.row, seed, tables)
            write_atomically(folder / SEEDS, json.dumps(kept) + "\n")
    rows = summary({str(seed): kept[str(seed)] for seed in seeds}, crops.query.identities, recipe)
    record = {"row": arguments.row, "seeds": seeds, "torch": torch.__version__, "rows": rows}
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['label']}: weight {row['weight']}, mAP {row['mAP']['mean']}, − flip {row['mAP_minus_flip']}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"search_controls: {error}")
