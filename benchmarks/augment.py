"""What drawing a generated set costs beside the network: `augment` against bare forward passes of the same batches.

    python benchmarks/augment.py --out runs/benchmark-augment

Renders a small synthetic set and draws it in new poses with a generator of the default widths and fresh weights. Each
round measures, one after the other on the same batches: forward passes alone (pictures decoded and heat maps rendered
beforehand), `draw` alone (pictures decoded beforehand), and `augment` from empty folder to finished set: planning,
decoding, heat maps, forward passes, JPEG files, manifest, everything on the disk. Prints a Markdown table and writes
augment.json. --quick is a small network on few crops, to see that it runs.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from posereid.augmentation.drawing import augment, draw
from posereid.augmentation.reading import DrawingBatch, PosesBySize, read_batches
from posereid.augmentation.targets import plan_drawings
from posereid.config import AugmentationRecipe, RuntimeRecipe
from posereid.data.batches import pose_maps, to_float
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.evaluation.evaluate import versions
from posereid.files import write_atomically
from posereid.generator.generator import PoseTransferGenerator, build_generator
from posereid.training.devices import pick_device, set_threads

SEED = 0
MODES = ("forward", "draw", "augment")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=16, help="people of the synthetic set, half for training")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--poses-per-crop", type=int, default=1)
    parser.add_argument("--workers", type=int, default=AugmentationRecipe().workers)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-augment"))
    return parser.parse_args()


def forward_passes(generator: PoseTransferGenerator, batches: list[DrawingBatch]) -> Callable[[], None]:
    """Forward passes alone, of inputs that lie on the device."""
    device = next(generator.parameters()).device
    inputs = [
        (
            to_float(batch.images.to(device)),
            *(pose_maps(poses, generator.crop_size, device) for poses in (batch.source_poses, batch.target_poses)),
        )
        for batch in batches
    ]

    @torch.no_grad()
    def run() -> None:
        for each in inputs:
            # As in use, the next batch begins when this one's pictures have left the device.
            generator(*each).cpu()

    return run


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measured(
    generator: PoseTransferGenerator, crops: CropTable, recipe: AugmentationRecipe, rounds: int, scratch: Path
) -> dict[str, list[float]]:
    """Seconds of each mode in each round."""
    drawings = plan_drawings(crops.train, recipe, SEED)
    plan = [drawings[start : start + recipe.batch_size] for start in range(0, len(drawings), recipe.batch_size)]
    batches = list(read_batches(plan, crops.train, PosesBySize(crops.train, *generator.crop_size)))
    forward = forward_passes(generator, batches)

    def drawn() -> None:
        for batch in batches:
            draw(generator, batch.images, batch.source_poses, batch.target_poses)

    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    draw(generator, batches[0].images, batches[0].source_poses, batches[0].target_poses)
    for number in range(rounds):

        def augmented(number: int = number) -> None:
            out = scratch / f"set-{number}"
            augment(generator, crops, out, recipe, seed=SEED, checkpoint="fresh", progress=False)

        for mode, action in zip(MODES, (forward, drawn, augmented), strict=True):
            times[mode].append(seconds(action))
        print(json.dumps({mode: round(times[mode][-1], 3) for mode in MODES}), file=sys.stderr)
    return times


def main() -> None:
    arguments = parse()
    set_threads()
    device = pick_device(RuntimeRecipe(device=arguments.device))
    size = (64, 32) if arguments.quick else (128, 64)
    torch.manual_seed(SEED)
    widths = (2, 4, 16) if arguments.quick else ()
    generator = build_generator(*widths, crop_size=size).to(device).eval()
    recipe = AugmentationRecipe(
        poses_per_crop=arguments.poses_per_crop, batch_size=arguments.batch_size, workers=arguments.workers
    )
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        people = 8 if arguments.quick else arguments.identities
        crops = load_crops(synthesize(scratch / "world", identities=people, crops_per_identity=24, height=size[0]))
        count = len(plan_drawings(crops.train, recipe, SEED))
        times = measured(generator, crops, recipe, rounds, scratch)
    medians = {mode: statistics.median(times[mode]) for mode in MODES}
    # Within a round, so that a machine that slows down between rounds slows both alike.
    ratios = {
        mode: statistics.median(a / b for a, b in zip(times["augment"], times[mode], strict=True)) for mode in MODES
    }
    result = {
        "crops": count,
        "size": size,
        "recipe": recipe.model_dump(mode="json"),
        "quick": arguments.quick,
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "device": str(device) if device.type != "cuda" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "seconds": times,
        "crops_per_second": {mode: round(count / medians[mode], 2) for mode in MODES},
        "augment_against": {mode: round(ratios[mode], 4) for mode in MODES},
    }
    write_atomically(arguments.out / "augment.json", json.dumps(result, indent=1) + "\n")
    print("| what | crops/s | time of augment against it |")
    print("|---|---|---|")
    for mode in MODES:
        print(f"| {mode} | {count / medians[mode]:.1f} | {ratios[mode]:.3f} |")


if __name__ == "__main__":
    main()
