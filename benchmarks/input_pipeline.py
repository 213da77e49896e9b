"""How much of a training run is lost to its data: real crops against the same loop on tensors in memory.

    python benchmarks/input_pipeline.py recipes/market1501.yaml --identities 200

Renders a synthetic set, packs it into shards too, and for each source (folder, shards), cache (all crops fit, none do)
and number of decoding processes measures the loader alone (batches read as fast as it can, and a second time over the
same rows, when the cache is warm) and the joint training loop (share of the time that the trainer waits for its next
batch). The same loop on batches that lie in memory is the rate without any data work. Prints a Markdown table and
writes input_pipeline.json.
"""

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from posereid.config import Recipe, read_recipe
from posereid.data.batches import CropImages, PosePairs, class_labels, load_batches
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.sampling import PosePairSampler, ShardedBatches
from posereid.data.shards import write_shards
from posereid.data.synthetic import synthesize
from posereid.evaluation.evaluate import versions
from posereid.files import write_atomically
from posereid.training.devices import launch_fabric, set_threads
from posereid.training.joint import build_networks, training_step


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--identities", type=int, default=200)
    parser.add_argument("--steps", type=int, default=6, help="training steps of each measurement")
    parser.add_argument("--batches", type=int, default=60, help="batches of each measurement of the loader alone")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-input-pipeline"))
    return parser.parse_args()


def pairs_of(table: CropTable, recipe: Recipe, cache_gb: float) -> PosePairs:
    images = CropImages(table, recipe.data.height, recipe.data.width, cache_gb=cache_gb)
    return PosePairs(images, class_labels(table), recipe.joint.flip, stand_ins=True)


def main() -> None:
    arguments = parse()
    content = read_recipe(arguments.recipe).model_dump()
    content["embedder"]["pretrained"] = False
    recipe = Recipe.model_validate(content)
    set_threads()
    fabric = launch_fabric(recipe.runtime)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        world = synthesize(
            Path(scratch) / "world",
            identities=arguments.identities,
            crops_per_identity=32,
            height=recipe.data.height,
            preset=recipe.world.preset,
        )
        write_shards(load_crops(world), Path(scratch) / "shards")
        sources = {name: load_crops(Path(scratch) / name).train for name in ("world", "shards")}
        train = sources["world"]
        sampler = PosePairSampler(train, recipe.joint.batch_size, recipe.joint.pairs_per_epoch, recipe.seed)
        networks = build_networks(recipe, len(class_labels(train)), fabric)
        step = recipe.losses.adversarial_warmup + recipe.losses.semantic_warmup + 10_000

        def learn(batch: Any) -> None:
            training_step(networks, batch.to(fabric.device), recipe, step, fabric)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()

        kept = list(load_batches(pairs_of(train, recipe, 2.0), ShardedBatches(sampler, arguments.steps), 0))
        learn(kept[0])  # allocates
        for name, table in sources.items():
            for cache_gb in (2.0, 0.0):
                for workers in arguments.workers:
                    # The loop on tensors beside each, so that a busy machine hits both alike.
                    start = time.perf_counter()
                    for batch in kept:
                        learn(batch)
                    in_memory = time.perf_counter() - start
                    pairs = pairs_of(table, recipe, cache_gb)
                    rates = []
                    for _ in range(2):
                        start = time.perf_counter()
                        for _ in load_batches(pairs, ShardedBatches(sampler, arguments.batches), workers):
                            pass
                        rates.append(2 * arguments.batches * recipe.joint.batch_size / (time.perf_counter() - start))
                    waited = spent = 0.0
                    batches = iter(load_batches(pairs, ShardedBatches(sampler, arguments.steps + 1), workers))
                    learn(next(batches))  # workers start once a run, not once a step
                    for _ in range(arguments.steps):
                        start = time.perf_counter()
                        batch = next(batches)
                        waited += time.perf_counter() - start
                        learn(batch)
                        spent += time.perf_counter() - start
                    images = 2 * arguments.steps * recipe.joint.batch_size
                    rows.append(
                        {
                            "source": "folder" if name == "world" else name,
                            "cache": "all fit" if cache_gb else "none",
                            "workers": workers,
                            "loader_images_per_second_first": round(rates[0]),
                            "loader_images_per_second_again": round(rates[1]),
                            "training_images_per_second": round(images / spent, 2),
                            "in_memory_images_per_second": round(images / in_memory, 2),
                            "waiting_share": round(waited / spent, 4),
                        }
                    )
                    print(json.dumps(rows[-1]), file=sys.stderr)
    result = {
        "recipe": arguments.recipe.name,
        "crops": len(train),
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "device": str(fabric.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "rows": rows,
    }
    write_atomically(arguments.out / "input_pipeline.json", json.dumps(result, indent=1) + "\n")
    print("| source | cache | workers | loader, images/s, first / again | training, images/s | in memory | waiting |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['source']} | {row['cache']} | {row['workers']} | {row['loader_images_per_second_first']:,} / "
            f"{row['loader_images_per_second_again']:,} | {row['training_images_per_second']} | "
            f"{row['in_memory_images_per_second']} | {row['waiting_share']:.1%} |"
        )


if __name__ == "__main__":
    main()
