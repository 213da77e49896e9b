"""How hard each preset of the synthetic world is for a re-ID network that sees real crops only.

    python benchmarks/world_difficulty.py --out runs/world-difficulty

Trains the re-ID network of recipes/demo.yaml (float32, one thread) on every preset and world seed and searches the
held-out people, plainly and with flip averaging. What is finished in the folder is kept, so that the command goes on
where it was stopped. Writes the figures into docs/synthetic-world.json, beside those of world seeds that are not given,
and the table into docs/synthetic-world.md.
"""

import argparse
import datetime
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from world_statistics import DOCUMENT, RECIPE, RESULTS, difficulty_table, filled, read_results

from posereid.config import Recipe, WorldPreset, read_recipe
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.data.synthetic.presets import PRESETS
from posereid.data.synthetic.world import FORMAT_VERSION
from posereid.evaluation.evaluate import evaluate_run
from posereid.files import write_atomically
from posereid.training.reid import train_reid

FIGURES = ("rank1", "mAP")


def measured(recipe: Recipe, preset: WorldPreset, seed: int, folder: Path) -> dict[str, Any]:
    """Figures of one preset and world seed; what is finished in ``folder`` is not done again."""
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    root, run = folder / "world", folder / "reid"
    if not root.is_dir():
        settings = recipe.world.changed(preset=preset).model_dump()
        synthesize(root, **settings, height=recipe.data.height, seed=seed, progress=True)
    data = recipe.data.changed(root=root.absolute(), layout="market1501")
    runtime = recipe.runtime.changed(precision="32-true", device="cpu")
    crops = load_crops(root)
    begun = time.perf_counter()
    train_reid(recipe.model_copy(update={"data": data, "runtime": runtime}), crops, run, resume=run.exists())
    seconds = time.perf_counter() - begun
    figures = evaluate_run(run, crops=crops, fusion=("off", "flip")).figures
    found = {
        mode: {name: figures["fusion"]["rows"][mode][name] for name in FIGURES}
        | {"interval": figures["fusion"]["rows"][mode]["intervals"]["rank1"]}
        for mode in ("off", "flip")
    }
    found |= {"queries": figures["reid"]["queries"], "chance": figures["reid"]["chance_rank1"]}
    found |= {"seconds": round(seconds), "version": FORMAT_VERSION}
    write_atomically(result, json.dumps(found, indent=1) + "\n")
    # Weights and crops can be made again; six of them are not worth their place.
    shutil.rmtree(run)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the world")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(RECIPE)
    found: dict[str, dict[str, Any]] = {}
    for seed in arguments.seeds:
        for preset in PRESETS:
            folder = arguments.out / f"{preset}-{seed}"
            found.setdefault(preset, {})[str(seed)] = measured(recipe, preset, seed, folder)
            print(f"{preset}, world seed {seed}: {found[preset][str(seed)]}", flush=True)
    results = read_results()
    # What another format of the world gave says nothing of this one.
    kept = {
        preset: {
            seed: figures
            for seed, figures in results.get("difficulty", {"presets": {}})["presets"].get(preset, {}).items()
            if figures["version"] == FORMAT_VERSION
        }
        for preset in PRESETS
    }
    difficulty = {
        "command": f"python benchmarks/world_difficulty.py --out {arguments.out}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "training_seed": recipe.seed,
        "presets": {preset: dict(sorted((kept[preset] | found[preset]).items())) for preset in PRESETS},
    }
    results |= {"difficulty": difficulty}
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    if DOCUMENT.is_file():
        text = DOCUMENT.read_text(encoding="utf-8")
        write_atomically(DOCUMENT, filled(text, {"difficulty": difficulty_table(results)}, str(DOCUMENT)))


if __name__ == "__main__":
    main()
