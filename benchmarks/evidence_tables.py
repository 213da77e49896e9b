"""The tables and pictures of docs/evidence.md, made from the results of posereid ablate.

    posereid ablate recipes/bench_cpu.yaml --out runs/evidence --jobs 2
    python benchmarks/evidence_tables.py small=runs/evidence

Keeps results.json of each folder under its name in docs/evidence.json, puts the table after every mark
``<!-- figures NAME TABLE -->`` of the document, up to ``<!-- end -->``, and copies the pictures of synthetic worlds to
docs/images. Names that are not given stay as they are.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from posereid.ablation.grid import read_json
from posereid.ablation.pictures import PICTURES
from posereid.ablation.results import RESULTS_FILE
from posereid.ablation.tables import filled
from posereid.errors import InputError
from posereid.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "evidence.md"
RESULTS = ROOT / "docs" / "evidence.json"
IMAGES = ROOT / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", metavar="NAME=FOLDER", help="folders that posereid ablate wrote")
    grids = read_json(RESULTS) if RESULTS.exists() else {}
    folders = {}
    for given in parser.parse_args().grids:
        name, found, folder = given.partition("=")
        if not (found and name.isidentifier()):
            raise InputError(f"{given!r} is not NAME=FOLDER; give for example small=runs/evidence.")
        folders[name] = Path(folder)
        grids[name] = read_json(folders[name] / RESULTS_FILE)
    if not DOCUMENT.exists():
        raise InputError(f"{DOCUMENT} is not there; write it with marks <!-- figures NAME TABLE --> and <!-- end -->.")
    write_atomically(DOCUMENT, filled(DOCUMENT.read_text(encoding="utf-8"), grids, str(DOCUMENT)))
    write_atomically(RESULTS, json.dumps(grids, indent=1) + "\n")
    for name, folder in folders.items():
        # Pictures of real people stay out of the documentation; a plot shows none.
        for picture in sorted((folder / PICTURES).glob("*.png")):
            if grids[name]["data"]["synthetic"] or picture.stem == "table-3":
                shutil.copyfile(picture, IMAGES / f"evidence-{name}-{picture.name}")
    print(f"Written: {DOCUMENT}, {RESULTS}, and pictures in {IMAGES}.")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"evidence_tables: {error}")
