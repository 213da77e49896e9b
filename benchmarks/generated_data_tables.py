"""The tables and pictures of docs/generated-data.md, made from the results of generated_data.py.

    python benchmarks/generated_data_tables.py runs/generated-data

Copies results.json beside the document, puts every table between its two marks there, and draws the pictures: the
differences with their intervals, and sheets of generated crops.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from posereid.ablation.wording import difference, filled, markdown
from posereid.augmentation.sets import TRAIN_FOLDER, ManifestRow, read_manifest
from posereid.data.layouts import load_crops
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.pictures import contact_sheet, png_bytes

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "generated-data.md"
RESULTS = ROOT / "docs" / "generated-data.json"
PICTURES = ROOT / "docs" / "images"
MODES = ("off", "flip", "fusion", "fusion+flip", "nfc", "all")
FIGURES = {"rank1": "rank-1", "mAP": "mAP"}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Every table of the document by name."""
    arms = results["arms"]
    found = {
        "figures": markdown(
            ["training", *MODES],
            (
                [
                    arm["title"],
                    *(" / ".join(f"{arm['modes'][mode][f]['mean'][0]:.1f}" for f in FIGURES) for mode in MODES),
                ]
                for arm in arms.values()
            ),
        ),
        "search": markdown(
            [
                "trained on real crops only",
                "rank-1",
                "mAP",
                "rank-1 − flip",
                "mAP − off",
                "mAP − flip",
            ],
            (
                [
                    name,
                    *(f"{row[figure]['mean'][0]:.1f}" for figure in FIGURES),
                    difference(row["rank1"], "minus_flip"),
                    difference(row["mAP"], "minus_off"),
                    difference(row["mAP"], "minus_flip"),
                ]
                for name, row in search_rows(results)
            ),
        ),
        "validation": validation_table(results["fusion"]["validation"]),
        "sets": markdown(
            ["generated set", "crops", "left out", "near duplicates"],
            (
                [name, *("–" if count is None else str(count) for count in counts.values())]
                for name, counts in results["sets"].items()
            ),
        ),
    }
    for figure, title in FIGURES.items():
        found[f"differences-{figure}"] = markdown(
            [f"{title}, minus real crops only", *MODES],
            (
                [arm["title"], *(difference(arm["modes"][mode][figure], "minus_real") for mode in MODES)]
                for name, arm in arms.items()
                if name != "real"
            ),
        )
    ways = [arm for name, arm in arms.items() if "minus_paper" in arm["modes"]["flip"]["mAP"] and name != "true"]
    found["ways"] = markdown(
        ["mAP, minus the paper's way", "flip", "fusion+flip"],
        (
            [arm["title"], *(difference(arm["modes"][mode]["mAP"], "minus_paper") for mode in ("flip", "fusion+flip"))]
            for arm in ways
        ),
    )
    return found


def search_rows(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a row is called and its figures: the modes as chosen, then fixed weights."""
    modes = results["arms"]["real"]["modes"]
    fixed = sorted((name for name in modes if name.startswith("weight ")), key=lambda name: float(name.split()[1]))
    rows = [(mode, modes[mode]) for mode in MODES]
    rows += [(f"fusion+flip, 8 poses, {name}", modes[name]) for name in fixed]
    return [*rows, ("control: redrawn in the crop's own pose, as fusion+flip", modes["own pose"])]


def validation_table(grid: list[dict[str, Any]]) -> str:
    """Mean mAP on the held-out identities by weight (rows) and number of poses (columns)."""
    weights = sorted({row["weight"] for row in grid})
    value = {(row["weight"], row["poses"], row["by_realism"]): row["mAP"] for row in grid}
    columns = sorted({key[1:] for key in value})
    # Without weight, poses do not matter: there is one such row.
    flip = next(found for (weight, *_), found in value.items() if not weight)
    header = ["weight", *(f"{poses} pose{'s' * (poses > 1)}{', by D_I' * realism}" for poses, realism in columns)]
    return markdown(
        header,
        (
            [f"{weight:g}", *(f"{100 * (value[weight, *column] if weight else flip):.1f}" for column in columns)]
            for weight in weights
        ),
    )


def picture(results: dict[str, Any]) -> bytes:
    """Differences of mAP to real crops only under flip averaging on both sides, with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(arm["title"], arm["modes"]["flip"]) for name, arm in results["arms"].items() if name != "real"]
    figure = Figure(figsize=(11, 0.36 * len(rows) + 1.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (key, title) in zip(axes, FIGURES.items(), strict=True):
        for place, (_, modes) in enumerate(rows):
            middle, low, high = modes[key]["minus_real"]
            colour = "#1b7837" if low > 0 else "#b2182b" if high < 0 else "#666666"
            axis.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
            axis.plot(middle, place, "o", color=colour, markersize=6)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{title} minus real crops only (points, 95 % interval)")
        axis.grid(axis="x", linewidth=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [name for name, _ in rows])
    axes[0].invert_yaxis()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def crops_sheet(run: Path, *, rows: int = 4, groups: int = 3) -> bytes:
    """Random drawings of the set ``random`` beside their sources, the crops whose poses they take, and true renders."""
    real = {crop.name: crop.path for crop in load_crops(run / "world").train}
    drawn = read_manifest(run / "sets" / "random")
    chosen = np.random.default_rng(0).choice(len(drawn), rows * groups, replace=False)

    def cells(row: ManifestRow) -> list[npt.NDArray[np.uint8]]:
        sets = (run / "sets" / name / TRAIN_FOLDER / row.name for name in ("random", "true"))
        return [pixels(path) for path in (real[row.source], real[row.target_pose], *sets)]

    lines = [
        [cell for number in chosen[start : start + groups] for cell in cells(drawn[number])]
        for start in range(0, len(chosen), groups)
    ]
    return png_bytes(contact_sheet(lines, ["source", "target pose", "generated", "true render"] * groups, scale=2))


def filters_sheet(run: Path, *, columns: int = 8) -> bytes:
    """Drawings that each filter finds best and worst, each below its source."""
    real = {crop.name: crop.path for crop in load_crops(run / "world").train}
    lines, labels = [], []
    for title, name, score, sign in (
        ("identity", "filter-identity", "identity_distance", 1),
        ("pose (D_P)", "filter-pose", "pose_score", -1),
        ("realism", "filter-realism", "realism", -1),
    ):
        folder = run / "sets" / "twice" / TRAIN_FOLDER
        scored = [row for row in read_manifest(run / "sets" / name) if getattr(row, score) is not None]
        scored.sort(key=lambda row: sign * getattr(row, score))
        for what, found in (("best", scored[:columns]), ("worst", scored[-columns:])):
            lines += [[pixels(real[row.source]) for row in found], [pixels(folder / row.name) for row in found]]
            labels += [f"{title}, {what}: source", "generated"]
    return png_bytes(contact_sheet(lines, [str(n + 1) for n in range(columns)], scale=1, row_labels=labels))


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that generated_data.py wrote")
    run = parser.parse_args().run
    path = run / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run generated_data.py first.") from None
    write_atomically(DOCUMENT, filled(DOCUMENT.read_text(encoding="utf-8"), tables(results), str(DOCUMENT)))
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    write_atomically(PICTURES / "generated-data.png", picture(results))
    # Pictures of real people stay out of the documentation.
    if (run / "world" / "world.json").is_file():
        write_atomically(PICTURES / "generated-crops.png", crops_sheet(run))
        write_atomically(PICTURES / "generated-filters.png", filters_sheet(run))
    print(f"Written: {DOCUMENT}, {RESULTS}, and pictures in {PICTURES}.")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"generated_data_tables: {error}")
