"""What fusion at search time costs a crop, beside embedding it alone.

    python benchmarks/fusion.py recipes/market1501.yaml

Renders a synthetic set and embeds its test crops with networks of the recipe's sizes (fresh weights: the time does not
depend on them), alone, with their mirror images, and drawn in 1, 2, 4 and 8 poses, several times in turn, so that a
busy machine hits all alike. Costs are medians over these rounds, ratios are medians of each round's own ratio.
Neighbour feature centralisation is timed on random features, for its cost grows with the crops searched. Prints a
Markdown table and writes fusion.json. With --quick everything is tiny: that it runs, no figure to quote.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posereid.config import FusionMode, FusionRecipe, Recipe, read_recipe
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.evaluation.evaluate import versions
from posereid.files import write_atomically
from posereid.fusion import canonical_targets, centralise, embed_parts, mode_cost_ms
from posereid.training.checkpoint import new_embedder, new_generator
from posereid.training.devices import pick_device, set_threads

POSES = (1, 2, 4, 8)
WITHOUT_POSES: tuple[FusionMode, ...] = ("off", "flip")
WITH_POSES: tuple[FusionMode, ...] = ("fusion", "fusion+flip")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--crops", type=int, default=128, help="crops of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured")
    parser.add_argument("--gallery", type=int, default=20_000, help="features for neighbour feature centralisation")
    parser.add_argument("--quick", action="store_true", help="the smallest networks and sizes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-fusion"))
    return parser.parse_args()


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    content = read_recipe(arguments.recipe).model_dump()
    content["embedder"]["pretrained"] = False
    if arguments.quick:
        arguments.crops, arguments.rounds, arguments.gallery = 8, 1, 500
        content["data"] |= {"height": 64, "width": 32}
        content["generator"] |= {"blocks": 2, "base_width": 4, "max_width": 16}
        content["embedder"] |= {"backbone": "test_resnet", "input_height": 64, "input_width": 32}
    return Recipe.model_validate(content)


def main() -> None:
    arguments = parse()
    recipe = chosen_recipe(arguments)
    set_threads()
    device = pick_device(recipe.runtime)
    torch.manual_seed(recipe.seed)
    embedder = new_embedder(recipe, 2).to(device)
    generator = new_generator(recipe).to(device)
    batch_size = recipe.evaluation.fusion.batch_size
    measured: dict[tuple[FusionMode, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        world = synthesize(
            Path(scratch) / "world",
            identities=8,
            crops_per_identity=max(8, -(-arguments.crops // 3)),
            height=recipe.data.height,
            preset=recipe.world.preset,
        )
        table = load_crops(world)
        crops = [c for c in (*table.query, *table.gallery) if c.joints is not None and c.joints.has_torso]
        crops = crops[: arguments.crops]
        for number in range(arguments.rounds + 1):
            for poses in POSES:
                targets = [joints for _, joints in canonical_targets(FusionRecipe(poses=poses), generator.crop_size)]
                parts = embed_parts(
                    embedder,
                    crops,
                    embedder_digest="",
                    generator=generator,
                    poses=targets,
                    batch_size=batch_size,
                )
                # The first round only warms up.
                for mode in (*WITHOUT_POSES, *WITH_POSES) if number else ():
                    cost = mode_cost_ms(parts.costs, mode)
                    ratio = cost / mode_cost_ms(parts.costs, "off")
                    measured.setdefault((mode, poses if mode in WITH_POSES else 0), []).append((cost, ratio))
            print(f"round {number} of {arguments.rounds} is done", file=sys.stderr)
    features = np.random.default_rng(recipe.seed).standard_normal((arguments.gallery, embedder.embedding.out_features))
    start = time.perf_counter()
    centralise(features, device=device)
    centralisation = time.perf_counter() - start
    rows: list[dict[str, Any]] = [
        {
            "mode": mode,
            "poses": poses,
            "ms_per_crop": round(statistics.median(cost for cost, _ in values), 3),
            "times_embedding_alone": round(statistics.median(ratio for _, ratio in values), 2),
        }
        for (mode, poses), values in sorted(measured.items(), key=lambda item: (item[0][1], item[0][0]))
    ]
    result = {
        "recipe": arguments.recipe.name,
        "quick": arguments.quick,
        "crops": len(crops),
        "rounds": arguments.rounds,
        "batch_size": batch_size,
        "centralisation": {"crops": arguments.gallery, "seconds": round(centralisation, 3)},
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "rows": rows,
    }
    write_atomically(arguments.out / "fusion.json", json.dumps(result, indent=1) + "\n")
    print("| mode | poses | ms per crop | times embedding alone |")
    print("|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['mode']} | {row['poses'] or '–'} | {row['ms_per_crop']:.3g} | {row['times_embedding_alone']:.2f} |"
        )
    print(f"\nNeighbour feature centralisation of {arguments.gallery:,} crops: {centralisation:.2f} s.")


if __name__ == "__main__":
    main()
