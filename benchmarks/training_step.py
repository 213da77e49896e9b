"""Time, rate and peak memory of joint training steps of a recipe, and what each runtime setting gains.

    python benchmarks/training_step.py recipes/market1501.yaml --from-scratch --steps 3
    python benchmarks/training_step.py recipes/market1501.yaml --from-scratch --variants all --rounds 2 --out runs/step

On a synthetic set of the recipe's crop size unless --data is given. Each variant of each round has a process of its
own, the variants of a round following each other, so that a busy machine hits all alike. Prints a Markdown table and
writes training_step.json: the first step alone (it allocates, or compiles), the median of the others over the rounds,
pairs per second, multiply-adds counted by PyTorch as a share of the rate that a large matrix product reaches here in
the same precision, peak resident memory (and the GPU's, where there is one), the ratio to the first variant.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from posereid.config import Recipe, read_recipe
from posereid.data.batches import CropImages, PosePairs, class_labels
from posereid.data.layouts import load_crops
from posereid.data.sampling import PosePairSampler
from posereid.data.synthetic import synthesize
from posereid.evaluation.evaluate import versions
from posereid.files import write_atomically
from posereid.training.devices import launch_fabric, pick_precision, set_threads
from posereid.training.joint import build_networks, training_step

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "32-true"},
    "bf16": {"precision": "bf16-mixed"},
    "channels-first": {"precision": "32-true", "channels_last": False},
    "separate Adam": {"precision": "32-true", "fused_adam": False},
    "compiled": {"precision": "32-true", "compile": True},
    "bf16 compiled": {"precision": "bf16-mixed", "compile": True},
}
AS_IT_IS = "as the recipe says"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, help="data set; without it a synthetic one of 64 identities is rendered")
    parser.add_argument("--steps", type=int, default=3, help="steps of each process")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=[AS_IT_IS], help=f"all, or some of: {', '.join(VARIANTS)}")
    parser.add_argument("--from-scratch", action="store_true", help="do not fetch E's ImageNet weights")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-training-step"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variants == ["all"]:
        arguments.variants = list(VARIANTS)
    if unknown := set(arguments.variants) - {*VARIANTS, AS_IT_IS}:
        parser.error(f"--variants: no {sorted(unknown)[0]!r}; choose all, or some of: {', '.join(VARIANTS)}")
    return arguments


def recipe_of(arguments: argparse.Namespace, variant: str) -> Recipe:
    content = read_recipe(arguments.recipe).model_dump()
    if arguments.from_scratch:
        content["embedder"]["pretrained"] = False
    content["runtime"] |= VARIANTS.get(variant, {})
    return Recipe.model_validate(content)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Multiply-adds per second of a large square matrix product, the best of some."""
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    size = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    seconds = []
    for _ in range(6):
        wait(device)
        start = time.perf_counter()
        one @ other
        wait(device)
        seconds.append(time.perf_counter() - start)
    return size**3 / min(seconds)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(arguments: argparse.Namespace, variant: str) -> dict[str, Any]:
    """Some steps of one variant in this process."""
    recipe = recipe_of(arguments, variant)
    set_threads()
    fabric = launch_fabric(recipe.runtime)
    train = load_crops(arguments.data).train
    labels = class_labels(train)
    sampler = PosePairSampler(train, recipe.joint.batch_size, recipe.joint.pairs_per_epoch, recipe.seed)
    pairs = PosePairs(CropImages(train, recipe.data.height, recipe.data.width), labels)
    batches = [
        pairs[[(0, int(source), int(target)) for source, target in sampler.batch(0, step)]]
        for step in range(arguments.steps)
    ]
    networks = build_networks(recipe, len(labels), fabric)
    # Past every warm-up, so that all terms count.
    late = max(recipe.losses.adversarial_warmup + recipe.losses.adversarial_ramp, recipe.losses.semantic_warmup) + 1
    seconds = []
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        report = training_step(networks, batch.to(fabric.device), recipe, late + step, fabric)
        wait(fabric.device)
        seconds.append(time.perf_counter() - start)
    unit = 2**30 if sys.platform == "darwin" else 2**20
    figures = {
        "variant": variant,
        "precision": pick_precision(recipe.runtime),
        "seconds": seconds,
        "batch_size": recipe.joint.batch_size,
        "crop": [recipe.data.height, recipe.data.width],
        "parameters_millions": {
            name: round(sum(weight.numel() for weight in module.parameters()) / 1e6, 2)
            for name, module in networks.plain.items()
        },
        "losses_of_the_last_step": {name: round(value, 4) for name, value in report.losses.items()},
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2),
        "device": str(fabric.device),
    }
    if fabric.device.type == "cuda":
        figures["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        figures["device"] = torch.cuda.get_device_name()
    # Last, because counting is no part of the peaks; compiled code cannot be counted and does the same work.
    if not recipe.runtime.compile:
        with FlopCounterMode(display=False) as counter:
            training_step(networks, batches[0].to(fabric.device), recipe, late, fabric)
        figures["gmac"] = round(counter.get_total_flops() / 2e9, 2)
    figures["matrix_gmac_per_second"] = round(matrix_rate(fabric.device, figures["precision"]) / 1e9, 1)
    return figures


def summary(runs: list[dict[str, Any]], variants: list[str]) -> list[dict[str, Any]]:
    entries = []
    gmac = next((run["gmac"] for run in runs if "gmac" in run), None)
    for variant in variants:
        own = [run for run in runs if run["variant"] == variant]
        if not own:
            continue
        steady = statistics.median([second for run in own for second in run["seconds"][1:] or run["seconds"]])
        first = entries[0]["step_seconds"] if entries else steady
        rate = max(run["matrix_gmac_per_second"] for run in own)
        entries.append(
            {
                "variant": variant,
                "precision": own[0]["precision"],
                "first_step_seconds": round(statistics.median([run["seconds"][0] for run in own]), 2),
                "step_seconds": round(steady, 4),
                "ratio": round(first / steady, 2),
                "pairs_per_second": round(own[0]["batch_size"] / steady, 2),
                "gmac": gmac,
                "share_of_matrix_rate": round(gmac / steady / rate, 3) if gmac else None,
                "peak_memory_gb": max(run["peak_memory_gb"] for run in own),
                "peak_gpu_memory_gb": max((run.get("peak_gpu_memory_gb", 0) for run in own), default=0) or None,
            }
        )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    lines = [
        "| setting | step | gain | pairs/s | share of the matrix rate | first step | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        memory = f"{entry['peak_memory_gb']} GB"
        if entry["peak_gpu_memory_gb"]:
            memory += f", GPU {entry['peak_gpu_memory_gb']} GB"
        share = entry["share_of_matrix_rate"]
        lines.append(
            f"| {entry['variant']} | {entry['step_seconds']:.3g} s | {entry['ratio']:.2f}× | "
            f"{entry['pairs_per_second']:.3g} | {f'{share:.0%}' if share is not None else '–'} | "
            f"{entry['first_step_seconds']:.3g} s | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = parse()
    if arguments.one:
        print(json.dumps(measure(arguments, arguments.one)))
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        height = read_recipe(arguments.recipe).data.height
        data = arguments.data or synthesize(Path(scratch) / "world", identities=64, height=height)
        own = ["--from-scratch"] if arguments.from_scratch else []
        for number in range(arguments.rounds):
            for variant in arguments.variants:
                command = [sys.executable, __file__, arguments.recipe, "--data", data, "--steps", arguments.steps, *own]
                child = subprocess.run(
                    [str(part) for part in [*command, "--one", variant]], capture_output=True, text=True, check=False
                )
                if child.returncode:
                    print(f"{variant}: left out ({child.stderr.strip().splitlines()[-1]})", file=sys.stderr)
                    continue
                runs.append(json.loads(child.stdout.splitlines()[-1]))
                print(f"round {number + 1}: {variant}: {runs[-1]['seconds'][-1]:.2f} s", file=sys.stderr)
                result = {
                    "recipe": arguments.recipe.name,
                    "date": datetime.date.today().isoformat(),
                    "machine": platform.machine(),
                    "threads": torch.get_num_threads(),
                    "versions": versions(),
                    "entries": summary(runs, arguments.variants),
                    "runs": runs,
                }
                write_atomically(arguments.out / "training_step.json", json.dumps(result, indent=1) + "\n")
    if not runs:
        sys.exit("no variant could be measured")
    facts = runs[0]
    height, width = facts["crop"]
    print(f"{arguments.recipe.name}: batch {facts['batch_size']}, {height}×{width}, {facts['device']}")
    print(table(summary(runs, arguments.variants)))


if __name__ == "__main__":
    main()
