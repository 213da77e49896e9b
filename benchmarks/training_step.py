"""Time and peak memory of joint training steps of a recipe, on a synthetic set of Market-1501's layout.

    python benchmarks/training_step.py recipes/market1501.yaml --from-scratch --steps 3

Prints one JSON object: the first step alone (it allocates), the median of the others, images per second, parameters,
peak resident memory of the process (and of the GPU, where there is one), versions and device.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from posereid.config import Recipe, read_recipe
from posereid.data.batches import CropImages, PosePairs, class_labels, collate
from posereid.data.layouts import load_crops
from posereid.data.sampling import PosePairSampler
from posereid.data.synthetic import synthesize
from posereid.evaluation.evaluate import versions
from posereid.training.joint import build_networks, training_step
from posereid.training.loop import launch_fabric, set_threads


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, help="data set; without it a synthetic one of 64 identities is rendered")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--from-scratch", action="store_true", help="do not fetch E's ImageNet weights")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    content = read_recipe(arguments.recipe).model_dump()
    if arguments.from_scratch:
        content["embedder"]["pretrained"] = False
    recipe = Recipe.model_validate(content)
    set_threads()
    fabric = launch_fabric(recipe.runtime)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.data or synthesize(Path(scratch) / "world", identities=64, height=recipe.data.height)
        train = load_crops(root).train
        labels = class_labels(train)
        sampler = PosePairSampler(train, recipe.joint.batch_size, recipe.joint.pairs_per_epoch, recipe.seed)
        pairs = PosePairs(CropImages(train, recipe.data.height, recipe.data.width), labels)
        batches = [
            collate([pairs[(0, int(source), int(target))] for source, target in sampler.batch(0, step)])
            for step in range(arguments.steps)
        ]
    networks = build_networks(recipe, len(labels), fabric, None)
    seconds = []
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        terms = training_step(networks, batch.to(fabric.device), recipe, step + 1, fabric)
        values = {name: round(term.item(), 4) for name, term in terms.items()}
        seconds.append(time.perf_counter() - start)
    steady = statistics.median(seconds[1:] or seconds)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    figures = {
        "recipe": arguments.recipe.name,
        "batch_size": recipe.joint.batch_size,
        "crop": [recipe.data.height, recipe.data.width],
        "parameters_millions": {
            name: round(sum(weight.numel() for weight in module.parameters()) / 1e6, 2)
            for name, module in networks.plain.items()
        },
        "first_step_seconds": round(seconds[0], 2),
        "step_seconds": round(steady, 2),
        "images_per_second": round(recipe.joint.batch_size / steady, 2),
        "losses_of_the_last_step": values,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2),
        "device": str(fabric.device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }
    if fabric.device.type == "cuda":
        figures["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        figures["device"] = torch.cuda.get_device_name()
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
