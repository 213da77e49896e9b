"""The tables and pictures of docs/evidence.md, made from what posereid ablate and posereid evaluate wrote.

    posereid ablate recipes/bench_cpu.yaml --out runs/evidence --jobs 2
    python benchmarks/evidence_tables.py small=runs/evidence generator=runs/default

Keeps results.json of each grid (with search-controls.json, where it lies beside it), or evaluation.json of each run,
under its name in docs/evidence.json, puts the table after every mark ``<!-- figures NAME TABLE -->`` of the document,
up to ``<!-- end -->``, and writes the pictures that the document links to docs/images: plots from the kept results of
every name, and from the given folders the contact sheets of drawn people, those of a grid and what a run's generator
makes of test pairs. Names that are not given keep their figures.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from posereid.ablation.conditions import is_evaluation
from posereid.ablation.grid import every_crop, is_synthetic, read_json
from posereid.ablation.pictures import PICTURES, PLOTS
from posereid.ablation.results import RESULTS_FILE
from posereid.ablation.sheets import generator_sheet
from posereid.ablation.tables import filled
from posereid.config import read_recipe
from posereid.errors import InputError
from posereid.evaluation.comparison import EVALUATION_FILE
from posereid.files import write_atomically
from posereid.pictures import save_png
from posereid.training.checkpoint import load_generator
from posereid.training.loop import RECIPE_FILE

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "evidence.md"
RESULTS = ROOT / "docs" / "evidence.json"
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="*", metavar="NAME=FOLDER", help="grids of posereid ablate, or runs with evaluation.json"
    )
    kept = read_json(RESULTS) if RESULTS.exists() else {}
    folders = {}
    for given in parser.parse_args().folders:
        name, found, folder = given.partition("=")
        if not (found and name.isidentifier()):
            raise InputError(f"{given!r} is not NAME=FOLDER; give for example small=runs/evidence.")
        folders[name] = Path(folder)
        kept[name] = read_results(folders[name])
    if not DOCUMENT.exists():
        raise InputError(f"{DOCUMENT} is not there; write it with marks <!-- figures NAME TABLE --> and <!-- end -->.")
    document = filled(DOCUMENT.read_text(encoding="utf-8"), kept, str(DOCUMENT))
    write_atomically(DOCUMENT, document)
    write_atomically(RESULTS, json.dumps(kept, indent=1) + "\n")
    for name, results in kept.items():
        for picture, plot in PLOTS.items():
            if path := linked(document, name, picture):
                save_png(path, plot(results))
    for name, folder in folders.items():
        if is_evaluation(kept[name]):
            if path := linked(document, name, "pairs.png"):
                write_sheet(folder, path)
            continue
        # Pictures of real people stay out of the documentation; the plots, which show none, are there already.
        for sheet in sorted((folder / PICTURES).glob("*.png")) if kept[name]["data"]["synthetic"] else ():
            if sheet.name not in PLOTS and (path := linked(document, name, sheet.name)):
                shutil.copyfile(sheet, path)
    print(f"Written: {DOCUMENT}, {RESULTS}, and pictures in {IMAGES}.")


def linked(document: str, name: str, picture: str) -> Path | None:
    """Where a picture of the results of that name belongs, None where the document links no such picture."""
    path = IMAGES / f"evidence-{name}-{picture}"
    return path if path.name in document else None


def read_results(folder: Path) -> dict[str, Any]:
    """What lies in the folder, without what names the machine's folders. Raises InputError where figures lack."""
    evaluation, grid = folder / EVALUATION_FILE, folder / RESULTS_FILE
    if grid.exists():
        controls = folder / "search-controls.json"
        return read_json(grid) | ({"search_controls": read_json(controls)} if controls.exists() else {})
    if not evaluation.exists():
        raise InputError(
            f"{folder} holds neither {RESULTS_FILE} nor {EVALUATION_FILE}; run posereid ablate or evaluate first."
        )
    found = read_json(evaluation)
    scores = (found.get("generator") or {}).get("scores", {})
    if not all("target" in scores.get(measure, {}) for measure in ("pckh", "identity")):
        raise InputError(
            f"{evaluation} lacks PCKh or identity of generated crops; give posereid evaluate a run with a generator, "
            "--judge and --pose-estimator."
        )
    found["generator"].pop("not_measured", None)
    return found


def write_sheet(run: Path, path: Path) -> None:
    """What the run's generator makes of test pairs, where the people are drawn ones."""
    recipe = read_recipe(run / RECIPE_FILE)
    if is_synthetic(recipe):
        save_png(path, generator_sheet(load_generator(run), every_crop(recipe.data), recipe.evaluation))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"evidence_tables: {error}")
