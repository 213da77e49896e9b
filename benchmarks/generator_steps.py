"""What benchmarks/generators.py does in processes of their own: python generator_steps.py STEP TASK ANSWER.

A task is JSON, the answer a JSON file. Which generator a task means: ``clone`` of ``peer``, or ours with the fields of
a recipe's section ``generator``.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generator_peers import DISCRIMINATOR_SETTINGS, JOINTS, PEERS, discriminators_of, peer_generator
from peers import commit_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evaluation import peak_memory
from posereid.discriminator import appearance_discriminator, pose_discriminator
from posereid.generator.generator import build_generator
from posereid.losses import discriminator_loss, generator_adversarial_loss, reconstruction_loss

CROP = (128, 64)
ADVERSARIAL, RECONSTRUCTION = 5, 10


def look_at_peers(task: dict[str, Any]) -> dict[str, Any]:
    """What stands behind each clone's figures, and PATN's discriminators, which judge every generator."""
    figures: dict[str, Any] = {}
    for name, clone in task["clones"].items():
        peer = PEERS[name]
        figures[name] = {
            "title": peer.title,
            "clone": clone,
            "commit": commit_of(Path(clone)),
            "settings": peer.settings,
            "settings_from": peer.source,
            "note": peer.note,
        }
    if "patn" in figures:
        judges = discriminators_of(Path(task["clones"]["patn"]))
        sizes = {name: millions(judge) for name, judge in judges.items()}
        figures["patn"]["discriminators"] = {"settings": DISCRIMINATOR_SETTINGS, "parameters_millions": sizes}
    return figures


def describe(task: dict[str, Any]) -> dict[str, Any]:
    """Parameters, and multiply-accumulates of one image as FlopCounterMode counts them."""
    generator = generator_of(task).eval()
    source, source_pose, target_pose, _ = crops(1, task)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        drawn = generator(source, source_pose, target_pose)
    if drawn.shape != source.shape:
        raise ValueError(f"the generator draws {tuple(drawn.shape)}, expected {tuple(source.shape)}")
    return {"parameters_millions": millions(generator), "gmac": counter.get_total_flops() / 2e9}


def measure_forward(task: dict[str, Any]) -> dict[str, Any]:
    generator = generator_of(task).eval()
    source, source_pose, target_pose, _ = crops(task["batch"], task)
    with torch.no_grad(), precision(task):
        return repeat(lambda: generator(source, source_pose, target_pose), task["repeats"])


def measure_step(task: dict[str, Any]) -> dict[str, Any]:
    """The GAN step: draw once, teach both discriminators, then the generator with the discriminators frozen."""
    generator = generator_of(task).train()
    source, source_pose, target_pose, target = crops(task["batch"], task)
    if isinstance(task["discriminators"], str):
        judges: dict[str, nn.Module] = {**discriminators_of(Path(task["discriminators"]))}
    else:
        judges = {
            "appearance_discriminator": appearance_discriminator(**task["discriminators"]),
            "pose_discriminator": pose_discriminator(**task["discriminators"]),
        }
    pairs = [
        (in_order(judges["appearance_discriminator"], task).train(), source),
        (in_order(judges["pose_discriminator"], task).train(), target_pose),
    ]
    optimiser = adam(generator)
    their_optimisers = [adam(judge) for judge, _ in pairs]

    def step() -> None:
        with precision(task):
            drawn = generator(source, source_pose, target_pose)
        for (judge, condition), their_optimiser in zip(pairs, their_optimisers, strict=True):
            with precision(task):
                verdicts = judge(condition, target), judge(condition, drawn.detach())
            their_optimiser.zero_grad(set_to_none=True)
            discriminator_loss(verdicts[0].float(), verdicts[1].float()).backward()
            their_optimiser.step()
            judge.requires_grad_(False)
        loss = RECONSTRUCTION * reconstruction_loss(drawn.float(), target)
        for judge, condition in pairs:
            with precision(task):
                verdict = judge(condition, drawn)
            loss = loss + ADVERSARIAL * generator_adversarial_loss(verdict.float())
            judge.requires_grad_(True)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return repeat(step, task["repeats"])


STEPS = {"peers": look_at_peers, "describe": describe, "forward": measure_forward, "step": measure_step}


def generator_of(task: dict[str, Any]) -> nn.Module:
    if task["peer"]:
        return in_order(peer_generator(task["peer"], Path(task["clone"])), task)
    return in_order(build_generator(**task["generator"]), task)


def in_order(network: nn.Module, task: dict[str, Any]) -> nn.Module:
    return network.to(memory_format=torch.channels_last) if task["channels_last"] else network


def crops(count: int, task: dict[str, Any]) -> list[Tensor]:
    """Source image, source pose, target pose, target image; random, for what is drawn does not change the time."""
    order = torch.channels_last if task["channels_last"] else torch.contiguous_format
    images = [torch.rand(count, 3, *CROP) * 2 - 1 for _ in range(2)]
    poses = [torch.rand(count, JOINTS, *CROP) for _ in range(2)]
    maps = (images[0], *poses, images[1])
    return [one.contiguous(memory_format=order) for one in maps]


def precision(task: dict[str, Any]) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=task["bf16"])


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)


def millions(network: nn.Module) -> float:
    """Parameters."""
    return sum(weight.numel() for weight in network.parameters()) / 1e6


def repeat(call: Callable[[], Any], times: int) -> dict[str, Any]:
    before = peak_memory()
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "memory_before_gb": before,
        "peak_memory_gb": peak_memory(),
    }


def main() -> None:
    name, text, answer = sys.argv[1:]
    task = json.loads(text)
    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    Path(answer).write_text(json.dumps(STEPS[name](task)))


if __name__ == "__main__":
    main()
