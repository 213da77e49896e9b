"""Projects hours and cost of long runs from a measured training step.

    python benchmarks/training_step.py recipes/market1501.yaml --from-scratch --variants all --steps 4 --out runs/step
    python benchmarks/scale.py runs/step/training_step.json --variant bf16

Prints the Markdown tables of docs/scale.md: what was measured, the formulas' inputs, and the projections. Everything
that is not measured is an option here and is printed as an assumption.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

MARKET_CROPS = 12_936
EPOCHS, PAIRS_PER_EPOCH = 800, 4_000
LARGE_SET = 10_000_000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="training_step.json of benchmarks/training_step.py")
    parser.add_argument("--variant", help="which of its settings to project from; without it the first")
    parser.add_argument("--gpu", default="H100 SXM", help="name of the projected GPU")
    parser.add_argument("--tflops", type=float, default=989, help="its dense bf16 peak (NVIDIA's data sheet: 989)")
    parser.add_argument("--share", type=float, default=0.05, help="share of that peak that training reaches: a guess")
    parser.add_argument("--price", type=float, default=3.0, help="dollars per GPU and hour: a guess")
    parser.add_argument("--bandwidth", type=float, default=50, help="GB/s of the gradients' all-reduce: a guess")
    parser.add_argument("--decode", type=float, default=2000, help="crops that one CPU core decodes in a second")
    parser.add_argument("--kilobytes", type=float, default=2.5, help="of one JPEG crop of 128×64")
    return parser.parse_args()


def pairs_per_second(
    seconds_per_pair: float, batch: int, devices: int, gradient_bytes: float, bandwidth: float
) -> float:
    """Weak scaling: every device takes a batch of its own, then all wait for a ring all-reduce that nothing hides."""
    exchange = 2 * (devices - 1) / devices * gradient_bytes / (bandwidth * 1e9)
    return devices * batch / (batch * seconds_per_pair + exchange)


def hours(pairs: float, rate: float) -> str:
    value = pairs / rate / 3600
    if value >= 24 * 365 * 2:
        return f"{value / 24 / 365:,.0f} years"
    return f"{value:,.0f} h" if value >= 10 else f"{value:.2g} h"


def main() -> None:
    arguments = parse()
    try:
        measured: dict[str, Any] = json.loads(arguments.measured.read_text(encoding="utf-8"))
        wanted = arguments.variant or measured["entries"][0]["variant"]
        entry = next(one for one in measured["entries"] if one["variant"] == wanted)
        run = next(one for one in measured["runs"] if one["variant"] == wanted)
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
        sys.exit(f"{arguments.measured}: found no measured step ({error}); give benchmarks/training_step.py's output.")
    batch = run["batch_size"]
    weights = sum(run["parameters_millions"].values()) * 1e6
    gmac_per_pair = entry["gmac"] / batch
    seconds_on_gpu = 2 * gmac_per_pair * 1e9 / (arguments.tflops * 1e12 * arguments.share)

    print(f"Measured: {measured['recipe']}, {wanted}, {run['device']}, {measured['threads']} threads,")
    print(f"{measured['date']}.\n")
    print("| | |\n|---|---|")
    print(f"| step of {batch} pairs | {entry['step_seconds']:.3g} s |")
    rate = entry["pairs_per_second"]
    print(f"| pairs/s; images/s (source and target) | {rate:.3g}; {2 * rate:.3g} |")
    print(f"| multiply-adds of one pair | {gmac_per_pair:.1f} G |")
    print(f"| share of the matrix rate | {entry['share_of_matrix_rate']:.0%} |")
    print(f"| weights | {weights / 1e6:.1f} M |")
    print(f"| memory | {entry['peak_memory_gb']} GB |\n")

    print(
        f"Assumed, not measured: {arguments.gpu}, {arguments.tflops:g} TFLOP/s of bf16 at its peak, of which training"
    )
    print(f"reaches {arguments.share:.0%}; ${arguments.price:g} per GPU and hour; gradients exchanged at")
    print(f"{arguments.bandwidth:g} GB/s.\n")
    systems = [("this machine", entry["step_seconds"] / batch, 1)]
    systems += [(f"{count} × {arguments.gpu}", seconds_on_gpu, count) for count in (1, 64)]
    jobs = [
        (f"Market-1501, {EPOCHS} epochs of {PAIRS_PER_EPOCH:,} pairs", EPOCHS * PAIRS_PER_EPOCH),
        ("10 million crops, each drawn once", LARGE_SET),
        ("10 million crops, each drawn as often as Market-1501's", EPOCHS * PAIRS_PER_EPOCH / MARKET_CROPS * LARGE_SET),
    ]
    print("| job | pairs | " + " | ".join(name for name, _, _ in systems) + " |")
    print("|---|---|" + "---|" * len(systems))
    for job, pairs in jobs:
        cells = []
        for name, seconds, count in systems:
            rate = pairs_per_second(seconds, batch, count, 4 * weights, arguments.bandwidth)
            dollars = pairs / rate / 3600 * count * arguments.price
            cells.append(hours(pairs, rate) + ("" if name == "this machine" else f", ${dollars:,.0f}"))
        print(f"| {job} | {pairs:,.0f} | " + " | ".join(cells) + " |")
    images = 2 * pairs_per_second(seconds_on_gpu, batch, 1, 0, arguments.bandwidth)
    gigabytes = LARGE_SET * arguments.kilobytes / 1e6
    print(f"\nOne such GPU takes {images:,.0f} images/s: {math.ceil(images / arguments.decode)} decoding processes at")
    print(f"{arguments.decode:,.0f} crops/s each (benchmarks/input_pipeline.py measures yours). Ten million crops are")
    print(f"{gigabytes:,.0f} GB of JPEG, {math.ceil(gigabytes / 0.5):,} shards of 500 MB, and")
    print(f"{LARGE_SET * 3 * 128 * 64 / 1e9:,.0f} GB decoded.")


if __name__ == "__main__":
    main()
