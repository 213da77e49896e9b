"""Size, speed and memory of our pose-transfer generator beside other projects', all in one run on the processor.

    git clone https://github.com/tengteng95/Pose-Transfer patn
    git clone https://github.com/Ha0Tang/XingGAN xinggan
    git clone https://github.com/Ha0Tang/BiGraphGAN bigraphgan
    git clone https://github.com/Ha0Tang/SelectionGAN selectiongan
    git clone https://github.com/siyuhuang/PoseStylizer aps
    git clone https://github.com/naiq/PN_GAN pngan
    python benchmarks/generators.py --peer patn=patn --peer xinggan=xinggan --peer bigraphgan=bigraphgan \\
        --peer selectiongan=selectiongan --peer aps=aps --peer pngan=pngan --out runs/benchmark-generators

Crops of 128×64 throughout. The forward pass is in evaluation mode and without gradients. A GAN step is the same work
for every generator: it draws once, both discriminators learn, then the generator learns from L1 and adversarial
terms, all with Adam; no perceptual loss, no embedder. The discriminators are PATN's, where its clone is given, and
our generator has a second row with ours. Every measurement has a process of its own, and every round takes each
once, so that a busy machine hits all alike; ratios are taken within a round. Peers are clones on your disk
(benchmarks/generator_peers.py); those not given are left out. Writes generators.json after every measurement and
generators.png at the end, and prints one Markdown table.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation import machine, say
from posereid.config import Recipe, read_recipe
from posereid.errors import InputError
from posereid.files import write_atomically

# A process inherits its parent's peak memory on Linux, so this one imports no torch.

PEER_NAMES = ("patn", "xinggan", "bigraphgan", "selectiongan", "aps", "pngan")
STEPS = Path(__file__).with_name("generator_steps.py")
BASELINE = "patn"
CROP = "128×64"
MEASURES = ("forward", "step")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help=f"one of {', '.join(PEER_NAMES)}"
    )
    parser.add_argument("--recipe", action="append", help="of our generator; without any, recipes/market1501.yaml")
    parser.add_argument(
        "--widths", nargs="+", default=[], metavar="BASE:MAX", help="further widths of the first recipe's generator"
    )
    parser.add_argument("--bf16", action="store_true", help="also ours in bf16-mixed precision")
    parser.add_argument(
        "--peers-channels-last", action="store_true", help="also the peers in the memory order that our recipes choose"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-generators"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="timed calls in each measurement, after an untimed one")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one round of one call on two crops: does everything run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.repeats, arguments.batch = 1, 1, 2
    for name, least in (("rounds", 1), ("repeats", 1), ("threads", 1), ("batch", 2)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} {getattr(arguments, name)}: expected at least {least}.")
    arguments.clones = {}
    for peer in arguments.peer:
        name, _, path = peer.partition("=")
        if name not in PEER_NAMES or not Path(path).is_dir():
            expected = f"NAME=PATH with a name of {', '.join(PEER_NAMES)} and a clone's folder"
            parser.error(f"--peer {peer}: expected {expected}.")
        arguments.clones[name] = str(Path(path).resolve())
    paths = [Path(path) for path in arguments.recipe or ["recipes/market1501.yaml"]]
    if len({path.stem for path in paths}) < len(paths):
        parser.error(f"--recipe: expected files of different names, found {', '.join(map(str, paths))}.")
    try:
        arguments.recipes = [(path.stem, read_recipe(path)) for path in paths]
    except InputError as error:
        parser.error(str(error))
    for text in arguments.widths:
        base, _, most = text.partition(":")
        if not (base.isdecimal() and most.isdecimal()):
            parser.error(f"--widths {text}: expected BASE:MAX, two numbers of channels, for example 48:384.")
        try:
            generator = arguments.recipes[0][1].generator.changed(base_width=int(base), max_width=int(most))
        except ValueError as error:
            parser.error(f"--widths {text}: {str(error).splitlines()[2].strip()}")
        name = f"{arguments.recipes[0][0]}, widths {base} to {most}"
        arguments.recipes.append((name, arguments.recipes[0][1].changed(generator=generator)))
    return arguments


def run_step(name: str, task: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A step's answer; ``{"failed": why}`` where its process ended in an error."""
    answer = scratch / "answer.json"
    answer.unlink(missing_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(task["threads"]))
    process = subprocess.run(
        [sys.executable, STEPS, name, json.dumps(task), answer],
        # Clones are left as they are, without compiled files in them.
        env=os.environ | threads | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode or not answer.is_file():
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        return {"failed": lines[-1]}
    return json.loads(answer.read_text())


def entries_of(arguments: argparse.Namespace, peers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is measured: the peers, then ours, with PATN's discriminators where they are there and with our own."""
    patn = peers[BASELINE]["clone"] if BASELINE in peers else None
    own = discriminator_of(arguments.recipes[0][1])
    entries = []
    for peer, facts in peers.items():
        for channels_last in (False, True) if arguments.peers_channels_last else (False,):
            task = {"peer": peer, "clone": facts["clone"], "channels_last": channels_last, "bf16": False}
            name = facts["title"] + (", channels last" if channels_last else "")
            entries.append(entry(name, task, patn or own, MEASURES))
    for name, recipe in arguments.recipes:
        for bf16 in (False, True) if arguments.bf16 else (False,):
            task = {
                "peer": None,
                "generator": recipe.generator.model_dump(mode="json"),
                "channels_last": recipe.runtime.channels_last,
                "bf16": bf16,
            }
            title = f"posereid, {name}" + (", bf16" if bf16 else "")
            if patn:
                entries.append(entry(title, task, patn, MEASURES))
            # The forward pass does not depend on the discriminators.
            entries.append(entry(title, task, discriminator_of(recipe), ("step",) if patn else MEASURES))
    return entries


def entry(
    name: str, task: dict[str, Any], discriminators: str | dict[str, int], measures: tuple[str, ...]
) -> dict[str, Any]:
    """``discriminators``: PATN's clone, or the settings of ours."""
    return {
        "name": name,
        "discriminators": "PATN" if isinstance(discriminators, str) else "posereid",
        "task": task | {"discriminators": discriminators},
        **{measure: [] for measure in measures},
    }


def discriminator_of(recipe: Recipe) -> dict[str, int]:
    return recipe.discriminator.model_dump(mode="json")


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "schema": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "crop": CROP,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "machine": machine(arguments.threads),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("posereid", "torch")},
        "peers": {},
        "left_out": [],
        "entries": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        run(arguments, report, Path(scratch))
    print(table(report))
    plot(report, arguments.out / "generators.png")


def run(arguments: argparse.Namespace, report: dict[str, Any], scratch: Path) -> None:
    """Look at the peers, size every generator once, then measure in rounds; the report is written as it grows."""
    common = {name: getattr(arguments, name) for name in ("batch", "repeats", "threads", "seed")}

    def step(name: str, task: dict[str, Any], who: str) -> dict[str, Any]:
        answer = run_step(name, task | common, scratch)
        if "failed" in answer:
            report["left_out"].append(f"{who}, {name}: {answer['failed']}")
            say(f"Left out: {report['left_out'][-1]}")
        return answer

    def save() -> None:
        write_atomically(arguments.out / "generators.json", json.dumps(report, indent=1) + "\n")

    for peer in PEER_NAMES:
        if peer not in arguments.clones:
            say(f"Left out: {peer}, no --peer {peer}=PATH was given.")
    clones = {peer: arguments.clones[peer] for peer in PEER_NAMES if peer in arguments.clones}
    peers = run_step("peers", {"clones": clones} | common, scratch) if clones else {}
    if "failed" in peers:
        sys.exit(f"--peer {BASELINE}: its discriminators, which judge every generator, fail: {peers['failed']}")
    report["peers"] = peers
    entries = entries_of(arguments, peers)
    sizes: dict[str, dict[str, Any]] = {}
    for one in entries:
        name = one["name"]
        sizes[name] = sizes[name] if name in sizes else step("describe", one["task"], name)
        report["entries"].append(one | sizes[name])
    summarise(report["entries"])
    save()
    for number in range(arguments.rounds):
        for one in report["entries"]:
            for measure in MEASURES:
                if measure in one and "failed" not in one:
                    answer = step(measure, one["task"], one["name"])
                    if "failed" in answer:
                        one["failed"] = answer["failed"]
                    else:
                        one[measure].append({"round": number} | answer)
                    summarise(report["entries"])
                    save()
        say(f"Round {number + 1} of {arguments.rounds} is done.")


def summarise(entries: list[dict[str, Any]]) -> None:
    """Median and least of every measure, and the median of its ratio to PATN's figure of the same round."""
    baseline = next((one for one in entries if one["task"]["peer"] == BASELINE), {})
    for one in entries:
        one["summary"] = {}
        for measure in MEASURES:
            if not (rounds := one.get(measure)):
                continue
            seconds = [value for each in rounds for value in each["seconds"]]
            figures = {
                "median_seconds": statistics.median(seconds),
                "least_seconds": min(seconds),
                "peak_memory_gb": statistics.median(each["peak_memory_gb"] for each in rounds),
            }
            theirs = {each["round"]: each for each in baseline.get(measure, [])}
            pairs = [(each, theirs[each["round"]]) for each in rounds if each["round"] in theirs]
            for name in ("median_seconds", "peak_memory_gb") if pairs else ():
                figures[f"{name}_times_patn"] = statistics.median(ours[name] / patn[name] for ours, patn in pairs)
            one["summary"][measure] = figures


def table(report: dict[str, Any]) -> str:
    """Everything measured, as Markdown."""
    facts, batch = report["machine"], report["batch"]
    commits = ", ".join(f"{peer['title']} {peer['commit']}" for peer in report["peers"].values())
    rows = [
        f"{facts['cpu']}, {facts['cores']} cores, threads: {facts['threads']}; "
        f"load at the start {facts['load_at_start']}; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        + f"; {report['date']}",
        "",
        f"Clones: {commits or 'none'}",
        "",
        f"Batches of {batch} crops of {report['crop']}; medians over {report['rounds']} rounds of "
        f"{report['repeats']} calls, in brackets the least; × PATN is the median ratio within a round.",
        "",
        "| generator | discriminators | parameters, M | GMAC per image | forward, ms per image | × PATN "
        "| GAN step, s | × PATN | peak memory of the step, GB | × PATN |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in report["entries"]:
        forward, step = (one["summary"].get(measure, {}) for measure in MEASURES)
        cells = [f"{one[name]:.1f}" if name in one else "" for name in ("parameters_millions", "gmac")]
        cells += times(forward, 1000 / batch, "{:.0f}") + times(step, 1, "{:.2f}")
        cells += [f"{step['peak_memory_gb']:.2f}" if step else "", ratio(step, "peak_memory_gb_times_patn")]
        rows.append(f"| {one['name']} | {one['discriminators']} | {' | '.join(cells)} |")
    return "\n".join([*rows, *(f"\nLeft out: {reason}" for reason in report["left_out"])])


def times(figures: dict[str, float], unit: float, form: str) -> list[str]:
    """Median with the least in brackets, and the ratio; empty where nothing was measured."""
    if not figures:
        return ["", ""]
    median, least = (form.format(figures[name] * unit) for name in ("median_seconds", "least_seconds"))
    return [f"{median} ({least})", ratio(figures, "median_seconds_times_patn")]


def ratio(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.2f}" if name in figures else ""


def plot(report: dict[str, Any], path: Path) -> None:
    """Forward time of an image over its multiply-accumulates."""
    from matplotlib.figure import Figure

    entries = [one for one in report["entries"] if "forward" in one["summary"]]
    if not entries:
        return
    figure = Figure(figsize=(7, 4.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    for ours, colour, label in ((True, "#1f5f99", "posereid"), (False, "#8a8a8a", "others")):
        some = [one for one in entries if (one["task"]["peer"] is None) == ours]
        milliseconds = [one["summary"]["forward"]["median_seconds"] * 1000 / report["batch"] for one in some]
        axes.scatter([one["gmac"] for one in some], milliseconds, color=colour, label=label, zorder=3)
        # Names stand right of their points, each a line above the one below where points lie close together.
        line = 0.05 * max(one["summary"]["forward"]["median_seconds"] * 1000 / report["batch"] for one in entries)
        height = float("-inf")
        for value, one in sorted(zip(milliseconds, some, strict=True), key=lambda pair: pair[0]):
            height = max(value, height + line)
            axes.annotate(
                one["name"].removeprefix("posereid, "),
                (one["gmac"], value),
                (one["gmac"] + 0.9, height),
                fontsize=8,
                color=colour,
                verticalalignment="center",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5},
            )
    axes.set_xlim(0, 1.25 * max(one["gmac"] for one in entries))
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.set_xlabel("multiply-accumulates of one image (GMAC)")
    axes.set_ylabel("forward pass of one image (milliseconds)")
    axes.set_title("Pose-transfer generators, crops of 128×64", fontsize=11)
    axes.grid(True, color="#e2e2e2", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    facts, numbers = report["machine"], report["versions"]
    figure.supxlabel(
        f"{facts['cpu']}, threads: {facts['threads']}; posereid {numbers['posereid']}, PyTorch {numbers['torch']}; "
        f"batches of {report['batch']}, median of {report['rounds']} × {report['repeats']}; {report['date'][:10]}",
        fontsize=7,
        color="#555555",
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
