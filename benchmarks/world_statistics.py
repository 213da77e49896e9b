"""The synthetic world beside Market-1501: joints, skeletons, cameras and crops, for docs/synthetic-world.md.

    python benchmarks/world_statistics.py ../shared/market1501

Needs Market-1501's keypoints alone (market-annotation-train.csv), no images. Renders the training half of each preset
(seed 0, the size of recipes/demo.yaml), writes the statistics into docs/synthetic-world.json, the tables into
docs/synthetic-world.md, and the plots and a contact sheet of each preset beside the document's other images.
"""

import argparse
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posereid.ablation.wording import filled, markdown
from posereid.config import WorldRecipe, read_recipe
from posereid.data.synthetic import World
from posereid.data.synthetic.plan import TRAIN
from posereid.data.synthetic.presets import PRESETS
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.pictures import contact_sheet, png_bytes
from posereid.pose.files import read_keypoints
from posereid.pose.joints import JOINT_NAMES, Joints
from posereid.progress import progress_bar

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "synthetic-world.md"
RESULTS = ROOT / "docs" / "synthetic-world.json"
PICTURES = ROOT / "docs" / "images"
RECIPE = ROOT / "recipes" / "demo.yaml"

REAL = "Market-1501"
ANNOTATIONS = "market-annotation-train.csv"
NAME = re.compile(r"(\d{4})_c(\d)")
HEIGHT = 128
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
EXTENTS = {"height": "skeleton height", "column": "middle column", "row": "middle row"}
BINS = {"height": (0, 132, 4), "column": (0, 66, 2), "row": (0, 132, 4)}
PARTS = ("nose", "neck", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "eye", "ear")
COLOURS = {REAL: "black", "easy": "#009e73", "default": "#0072b2", "hard": "#d55e00"}


def read_results() -> dict[str, Any]:
    """What the document's benchmarks have written so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def summary(joints: Iterable[Joints], seen: Iterable[tuple[int, int]], scale: float) -> dict[str, Any]:
    """Statistics of crops: joints (times ``scale`` pixels of 128×64 crops), and who is before which camera."""
    posed = list(joints)
    present = np.stack([each.present for each in posed])
    spans: dict[str, list[float]] = {name: [] for name in EXTENTS}
    for each in posed:
        if each.present.sum() > 1:
            xy = each.xy[each.present] * scale
            low, high = xy.min(axis=0), xy.max(axis=0)
            spans["height"].append(high[1] - low[1])
            spans["column"].append((low[0] + high[0]) / 2)
            spans["row"].append((low[1] + high[1]) / 2)
    cameras: dict[int, Counter[int]] = defaultdict(Counter)
    for identity, camera in seen:
        cameras[identity][camera] += 1
    sizes = [count.total() for count in cameras.values()]
    before = Counter(len(count) for count in cameras.values())
    return {
        "crops": len(posed),
        "identities": len(cameras),
        "missing": dict(zip(JOINT_NAMES, (1 - present.mean(axis=0)).round(4).tolist(), strict=True)),
        "nothing": round(float((~present.any(axis=1)).mean()), 4),
        "torso": round(float(np.mean([each.has_torso for each in posed])), 4),
        "joints_per_crop": round(float(present.sum(axis=1).mean()), 2),
        "percentiles": {name: np.percentile(found, PERCENTILES).round(1).tolist() for name, found in spans.items()},
        "histograms": {
            name: (np.histogram(found, np.arange(*BINS[name]))[0] / len(found)).round(5).tolist()
            for name, found in spans.items()
        },
        "crops_per_identity": np.percentile(sizes, PERCENTILES).round(1).tolist(),
        "mean_crops_per_identity": round(float(np.mean(sizes)), 2),
        "sizes": {str(size): count for size, count in sorted(Counter(sizes).items())},
        "mean_crops_per_camera": round(float(np.mean([n for count in cameras.values() for n in count.values()])), 2),
        "cameras_per_identity": {str(n): round(before[n] / len(cameras), 4) for n in sorted(before)},
    }


def real_summary(folder: Path) -> dict[str, Any]:
    """Statistics of Market-1501's training crops, from their keypoints. Raises InputError."""
    table = read_keypoints(folder / ANNOTATIONS)
    matches = [NAME.match(name) for name in table]
    seen = [(int(match[1]), int(match[2])) for match in matches if match is not None]
    if len(seen) != len(table):
        raise InputError(f"{folder / ANNOTATIONS} has names that are not Market-1501's; give its own file.")
    return summary(table.values(), seen, 1.0)


def synthetic_summary(world: World) -> dict[str, Any]:
    """Statistics of a world's training crops."""
    crops = [crop for crop in world.crops if crop.folder == TRAIN]
    joints = []
    with progress_bar(len(crops), world.preset, "crop", show=True) as bar:
        for crop in crops:
            joints.append(world.render(crop).joints)
            bar.update()
    return summary(joints, [(crop.identity, crop.camera) for crop in crops], HEIGHT / world.height)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The document's tables of statistics by name."""
    found = results["statistics"]
    names = [REAL, *PRESETS]

    def missing(name: str, part: str) -> str:
        rates = [rate for joint, rate in found[name]["missing"].items() if joint.rpartition("_")[2] == part]
        return f"{100 * sum(rates) / len(rates):.1f}"

    rows = [[f"{part} missing, %", *(missing(name, part) for name in names)] for part in PARTS]
    rows += [
        [title, *(f"{100 * found[name][key]:.1f}" for name in names)]
        for key, title in (("nothing", "no joint at all, %"), ("torso", "both shoulders and both hips, %"))
    ]
    rows.append(["joints per crop", *(f"{found[name]['joints_per_crop']:.1f}" for name in names)])
    spreads = [
        [f"{title}, {percentile} %", *(f"{found[name]['percentiles'][key][at]:.0f}" for name in names)]
        for key, title in EXTENTS.items()
        for at, percentile in enumerate(PERCENTILES)
        if percentile in (5, 50, 95)
    ]
    counts = sorted({int(number) for name in names for number in found[name]["cameras_per_identity"]})
    seen = [["identities", *(str(found[name]["identities"]) for name in names)]]
    seen.append(["crops per identity, mean", *(f"{found[name]['mean_crops_per_identity']:.1f}" for name in names)])
    seen += [
        [f"crops per identity, {percentile} %", *(f"{found[name]['crops_per_identity'][at]:.0f}" for name in names)]
        for at, percentile in enumerate(PERCENTILES)
        if percentile in (5, 50, 95)
    ]
    seen.append(
        ["crops per identity and camera, mean", *(f"{found[name]['mean_crops_per_camera']:.1f}" for name in names)]
    )
    seen += [
        [
            f"identities before {count} cameras, %",
            *(f"{100 * found[name]['cameras_per_identity'].get(str(count), 0):.0f}" for name in names),
        ]
        for count in counts
    ]
    return {
        "joints": markdown(["joints", *names], rows),
        "boxes": markdown(["pixels of 128×64", *names], spreads),
        "identities": markdown(["identities", *names], seen),
    }


def preset_table() -> str:
    """Every number of every preset."""
    rows = []
    for field in PRESETS["default"].__dataclass_fields__:
        values = [getattr(preset, field) for preset in PRESETS.values()]
        rows.append([f"`{field}`", *(" … ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)])
    return markdown(["number", *PRESETS], rows)


def difficulty_table(results: dict[str, Any]) -> str:
    """What world_difficulty.py found: a row for each preset and seed of the world."""
    rows = []
    for preset, seeds in results["difficulty"]["presets"].items():
        for seed, found in seeds.items():
            plain, flipped = found["off"], found["flip"]
            low, high = plain["interval"]
            rows.append(
                [
                    f"{preset}, world seed {seed}",
                    f"{plain['rank1']:.1f} [{low:.1f}, {high:.1f}]",
                    f"{plain['mAP']:.1f}",
                    f"{flipped['rank1']:.1f}",
                    f"{flipped['mAP']:.1f}",
                    str(found["queries"]),
                    f"{found['chance']:.1f}",
                ]
            )
    header = ["preset", "rank-1, %", "mAP, %", "rank-1 with flip", "mAP with flip", "queries", "rank-1 by chance"]
    return markdown(header, rows)


def joints_plot(found: dict[str, Any]) -> bytes:
    """Rates at which joints are missing, and where skeletons stand."""
    figure = Figure(figsize=(11, 6.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3)
    top = figure.add_subplot(grid[0, :])
    wide = 0.8 / len(COLOURS)
    for number, (name, colour) in enumerate(COLOURS.items()):
        places = np.arange(len(JOINT_NAMES)) + (number - (len(COLOURS) - 1) / 2) * wide
        top.bar(places, [100 * found[name]["missing"][joint] for joint in JOINT_NAMES], wide, color=colour, label=name)
    top.set_xticks(range(len(JOINT_NAMES)), [name.replace("_", "\n") for name in JOINT_NAMES], fontsize=8)
    top.set_ylabel("crops without the joint, %")
    top.legend(frameon=False, ncols=len(COLOURS))
    for column, (key, title) in enumerate(EXTENTS.items()):
        axis = figure.add_subplot(grid[1, column])
        edges = np.arange(*BINS[key])
        for name, colour in COLOURS.items():
            axis.stairs(100 * np.array(found[name]["histograms"][key]), edges, color=colour)
        axis.set_xlabel(f"{title}, pixels of 128×64")
        axis.set_ylabel("crops, %")
    return _png(figure)


def identities_plot(found: dict[str, Any]) -> bytes:
    """Crops and cameras of each identity."""
    figure = Figure(figsize=(11, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    crops, cameras = figure.subplots(1, 2)
    for number, (name, colour) in enumerate(COLOURS.items()):
        sizes = np.repeat(
            [int(size) for size in found[name]["sizes"]], [int(count) for count in found[name]["sizes"].values()]
        )
        shares_so_far = np.arange(1, len(sizes) + 1) / len(sizes) * 100
        # Two presets may have the same plan; dashes leave the one below in sight.
        style = "--" if name == "hard" else "-"
        crops.step(np.sort(sizes), shares_so_far, style, color=colour, label=name, where="post")
        shares = found[name]["cameras_per_identity"]
        places = np.array([int(count) for count in shares]) + (number - (len(COLOURS) - 1) / 2) * 0.2
        cameras.bar(places, [100 * share for share in shares.values()], 0.2, color=colour)
    crops.set_xlabel("crops per identity")
    crops.set_ylabel("identities with at most so many, %")
    crops.set_xlim(0, 60)
    crops.legend(frameon=False)
    cameras.set_xlabel("cameras per identity (of 6 in Market-1501, of 4 in the worlds)")
    cameras.set_ylabel("identities, %")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def world_sheet(world: World, *, people: int = 4, per_walk: int = 3, columns: int = 12) -> bytes:
    """Neighbours in number from each half, their first crops before each camera, at 128×64."""
    training = (world.identities + 1) // 2
    empty = np.full((world.height, world.height // 2, 3), 255, np.uint8)
    rows: list[list[npt.NDArray[np.uint8]]] = []
    labels = []
    for first, split in ((1, "training"), (training + 1, "test")):
        for identity in range(first, first + people):
            shown = sorted(
                (crop for crop in world.crops if crop.identity == identity and crop.place < per_walk),
                key=lambda crop: (crop.camera, crop.place),
            )[:columns]
            rows.append([world.render(crop).image for crop in shown] + [empty] * (columns - len(shown)))
            labels.append(f"{split} {identity}")
    widest = max(sum(cell is not empty for cell in row) for row in rows)
    sheet = contact_sheet([row[:widest] for row in rows], [" "] * widest, scale=1, row_labels=labels)
    # A third of the size, and the eye hardly sees the difference.
    return png_bytes(sheet.quantize(256))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help=f"folder with Market-1501's {ANNOTATIONS}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = read_recipe(RECIPE)
    settings: WorldRecipe = recipe.world
    size = (settings.identities, settings.crops_per_identity, settings.cameras)
    found = {REAL: real_summary(arguments.real)}
    for preset in PRESETS:
        found[preset] = synthetic_summary(World(arguments.seed, *size, recipe.data.height, preset))
        sheet = world_sheet(World(arguments.seed, *size, HEIGHT, preset))
        write_atomically(PICTURES / f"world-{preset}.png", sheet)
    results = read_results() | {"statistics": found, "seed": arguments.seed}
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    write_atomically(PICTURES / "world-joints.png", joints_plot(found))
    write_atomically(PICTURES / "world-identities.png", identities_plot(found))
    if DOCUMENT.is_file():
        text = DOCUMENT.read_text(encoding="utf-8")
        write_atomically(DOCUMENT, filled(text, tables(results) | {"presets": preset_table()}, str(DOCUMENT)))
    print(f"Written: {RESULTS}, {DOCUMENT}, and pictures in {PICTURES}.")


if __name__ == "__main__":
    main()
