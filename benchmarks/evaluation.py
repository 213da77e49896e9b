"""Time, peak memory and agreement of our search evaluation beside torchreid's and fast-reid's.

    git clone https://github.com/KaiyangZhou/deep-person-reid torchreid
    git clone https://github.com/JDAI-CV/fast-reid fastreid
    python benchmarks/evaluation.py --peer torchreid=torchreid --peer fastreid=fastreid --out runs/benchmark

Features are random but clustered by identity; identities and cameras are drawn in the numbers of Market-1501 and
MSMT17. Each measurement has a process of its own, whose peak memory is the whole process's. Peers are clones on
your disk (benchmarks/peers.py); without them only our figures are taken. Writes evaluation.json after every case,
evaluation_scaling.png with its own JSON, and prints one Markdown table.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peers import LAYOUTS, commit_of, parts_of, ranking_of, reranking_of

from posereid.evaluation.distances import FeatureDistances, distance_matrix
from posereid.evaluation.ranking import RankingResult, rank_features, rank_gallery

# A process inherits its parent's peak memory on Linux, so this one holds no arrays: STEPS run in children.

OURS = "posereid"
GB = 10**9
RUNS = 5
ENOUGH_SECONDS = 10
CASES = ("rank_gallery", "k_reciprocal", "verify_pairs", "rank_features", "scaling")


@dataclass(frozen=True)
class Size:
    """How many crops a search has, and of whom."""

    name: str
    queries: int
    gallery: int
    identities: int
    cameras: int
    distractors: int = 0
    dimensions: int = 128


MARKET = Size("Market-1501", 3368, 15913, identities=750, cameras=6, distractors=2798)
MSMT17 = Size("MSMT17", 11659, 82161, identities=3060, cameras=15)
SMALL = Size("small", 120, 1500, identities=40, cameras=6, distractors=200)
GALLERY_SIZES = [1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000]
QUERY_COUNTS = [250, 500, 1000, 2000, 4000, 8000]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help=f"one of {', '.join(LAYOUTS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-evaluation"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--sizes", nargs="+", type=int, metavar="CROPS", help="gallery sizes of the plot")
    parser.add_argument("--queries", nargs="+", type=int, metavar="COUNT", help="query counts of the plot")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=cores(), help="of the matrix products")
    parser.add_argument("--one", nargs=2, metavar=("STEP", "TASK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for peer in arguments.peer:
        name, _, path = peer.partition("=")
        if name not in LAYOUTS or not Path(path).is_dir():
            parser.error(f"--peer {peer}: expected NAME=PATH with a name of {', '.join(LAYOUTS)} and a clone's folder.")
    return arguments


# --- steps, each in a process of its own -----------------------------------------------------------------------------


def draw_inputs(task: dict[str, Any]) -> dict[str, Any]:
    """Unit-length features around one centre per identity, the crops unlike it by different amounts."""
    size = Size(**task["size"])
    rng = np.random.default_rng(task["seed"])
    centres = rng.standard_normal((size.identities + 1, size.dimensions), dtype=np.float32)
    folder = Path(task["folder"])
    arrays = {}
    for side, crops, distractors in (("query", size.queries, 0), ("gallery", size.gallery, size.distractors)):
        identities = np.arange(crops) % size.identities + 1
        identities[:distractors] = 0
        rng.shuffle(identities)
        spread = rng.uniform(0.6, 2.2, (crops, 1)).astype(np.float32)
        features = spread * rng.standard_normal((crops, size.dimensions), dtype=np.float32)
        features[identities > 0] += centres[identities[identities > 0]]
        arrays[side] = features / np.linalg.norm(features, axis=1, keepdims=True)
        arrays[f"{side}_identities"] = identities
        arrays[f"{side}_cameras"] = rng.integers(1, size.cameras + 1, crops)
    if task["distances"]:
        arrays["distances"] = distance_matrix(arrays["query"], arrays["gallery"])
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run one evaluator on inputs that lie on disk; at least once, and again while that is quick."""
    folder = Path(task["folder"])
    start = time.perf_counter()
    evaluate, inputs = evaluator_of(task, folder)
    preparation = time.perf_counter() - start
    before = peak_memory()
    seconds: list[float] = []
    while not seconds or (len(seconds) < RUNS and sum(seconds) < ENOUGH_SECONDS):
        start = time.perf_counter()
        result = evaluate(*inputs)
        seconds.append(time.perf_counter() - start)
    figures = {
        "seconds": statistics.median(seconds),
        "runs": seconds,
        "peak_memory_gb": peak_memory(),
        "memory_before_gb": before,
        "inputs_gb": sum(array.nbytes for array in inputs) / GB,
    }
    if task["case"] == "k_reciprocal":
        np.save(task["result"], np.asarray(result))
        return figures | ({"distances_seconds": preparation} if task["peer"] else {})
    if task["case"] == "verify_pairs":
        return figures
    return figures | {"figures": search_figures(result) if isinstance(result, RankingResult) else result}


def evaluator_of(task: dict[str, Any], folder: Path) -> tuple[Callable[..., Any], list[Any]]:
    """What a case calls, and with which arrays. Re-ranking by a peer starts from distances, which are made here."""
    case, peer, clone = task["case"], task["peer"], Path(task["clone"] or "")
    if case == "rank_gallery":
        evaluate = ranking_of(peer, clone, cython=task["cython"]) if peer else rank_gallery
        return evaluate, [np.load(folder / "distances.npy"), *labels_in(folder)]
    query, gallery = np.load(folder / "query.npy"), np.load(folder / "gallery.npy")
    if case == "k_reciprocal":
        if not peer:
            from posereid.evaluation.reranking import k_reciprocal

            return k_reciprocal, [query, gallery]
        # In double precision: rounded distances would order near neighbours otherwise before the peer begins.
        query, gallery = query.astype(np.float64), gallery.astype(np.float64)
        pairs = ((query, gallery), (query, query), (gallery, gallery))
        return reranking_of(peer, clone), [distance_matrix(one, other, "euclidean") for one, other in pairs]
    if case == "verify_pairs":
        from posereid.evaluation.verification import verify_pairs

        evaluate = lambda query, gallery, *labels: verify_pairs(FeatureDistances.of(query, gallery), *labels)  # noqa: E731
    elif peer:
        rank = ranking_of(peer, clone, cython=task["cython"])
        evaluate = lambda query, gallery, *labels: rank(distance_matrix(query, gallery), *labels)  # noqa: E731
    else:
        evaluate = rank_features
    return evaluate, [query, gallery, *labels_in(folder)]


def compare(task: dict[str, Any]) -> dict[str, Any]:
    """How far two re-ranked tables lie apart, and what a search with each scores."""
    folder = Path(task["folder"])
    ours, theirs = np.load(task["ours"]), np.load(task["theirs"])
    apart = np.abs(ours.astype(np.float64) - theirs)
    labels = labels_in(folder)
    figures = search_figures(rank_gallery(theirs, *labels))
    return {
        "largest_difference": float(apart.max()),
        "entries": apart.size,
        "entries_over_1e-5": int((apart > 1e-5).sum()),
        "crops_with_float32_ties": len(crops_with_float32_ties(folder)),
        "figures": figures,
        "largest_difference_of_figures": figures_apart(search_figures(rank_gallery(ours, *labels)), figures),
    }


def crops_with_float32_ties(folder: Path) -> set[int]:
    """Crops of which the peers, in single precision, cannot tell who is the last neighbour and who the next.

    That decides at three places: k2 = 6, half of k1 = 20 and itself, and k1 and itself.
    """
    crops = np.concatenate([np.load(folder / f"{side}.npy") for side in ("query", "gallery")]).astype(np.float64)
    squares = (crops**2).sum(1)
    found: set[int] = set()
    for start in range(0, len(crops), 500):
        block = crops[start : start + 500]
        distances = np.maximum(squares[start : start + 500, None] + squares - 2 * block @ crops.T, 0)
        rows = np.arange(len(block))
        distances[rows, start + rows] = 0
        nearest = np.sort(np.partition(distances, 22, axis=1)[:, :22], axis=1)
        # As the peers do: round, then divide by the row's largest.
        nearest = nearest.astype(np.float32) / distances.max(1, keepdims=True).astype(np.float32)
        tied = (nearest[:, (5, 10, 20)] == nearest[:, (6, 11, 21)]).any(1)
        found.update((start + np.flatnonzero(tied)).tolist())
    return found


def look_at_peer(task: dict[str, Any]) -> dict[str, Any]:
    clone = Path(task["clone"])
    return {"clone": str(clone), "commit": commit_of(clone), "cannot_run": parts_of(task["peer"], clone)}


STEPS = {"inputs": draw_inputs, "measure": measure, "compare": compare, "peer": look_at_peer}


def labels_in(folder: Path) -> list[Any]:
    """Identities of queries and gallery, then their cameras."""
    kinds = ("query_identities", "gallery_identities", "query_cameras", "gallery_cameras")
    return [np.load(folder / f"{kind}.npy") for kind in kinds]


def peak_memory() -> float:
    """The most memory this process has held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GB


def search_figures(result: RankingResult) -> dict[str, Any]:
    return {
        "cmc": result.cmc.tolist(),
        "mean_average_precision": result.mean_average_precision,
        "mean_inverse_negative_penalty": result.mean_inverse_negative_penalty,
    }


def figures_apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest absolute difference of CMC, mAP and mINP, shares in [0, 1]; what a peer does not compute is left out."""
    pairs = list(zip(ours["cmc"], theirs["cmc"], strict=True))
    pairs += [(ours[name], theirs[name]) for name in ours if name != "cmc" and theirs[name] is not None]
    return max(abs(one - other) for one, other in pairs)


# --- the run ---------------------------------------------------------------------------------------------------------


class Bench:
    """Starts the steps and remembers what the run was asked for."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments = arguments
        self.scratch = scratch
        available = available_memory()
        self.memory_limit = available and int(0.9 * available)
        self.peers: dict[str, dict[str, Any]] = {}
        for peer, _, path in (text.partition("=") for text in arguments.peer):
            self.peers[peer] = self.step("peer", {"peer": peer, "clone": str(Path(path).resolve())})
            for part, reason in self.peers[peer].get("cannot_run", {}).items():
                if reason is not None:
                    say(f"{LAYOUTS[peer].title}, {part}: left out: {reason}")
        for peer in LAYOUTS:
            if peer not in self.peers:
                say(f"{LAYOUTS[peer].title}: left out, no --peer {peer}=PATH was given.")

    def step(self, name: str, task: dict[str, Any]) -> dict[str, Any]:
        """A step's answer; ``{"failed": why}`` where its process ended in an error."""
        answer = self.scratch / "answer.json"
        answer.unlink(missing_ok=True)
        threads = str(self.arguments.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        limit = self.memory_limit
        process = subprocess.run(
            [sys.executable, __file__, "--one", name, json.dumps(task | {"answer": str(answer)})],
            env=os.environ | dict.fromkeys(names, threads),
            # An evaluator that wants more than there is gets a MemoryError, not the machine.
            preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if process.returncode or not answer.is_file():
            lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
            allowed = f" ({limit / GB:.1f} GB allowed)" if limit and "Memory" in lines[-1] else ""
            return {"failed": lines[-1].rpartition("_core._exceptions.")[2] + allowed}
        return json.loads(answer.read_text())

    def inputs(self, size: Size, *, distances: bool = False) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        task = {"size": asdict(size), "seed": self.arguments.seed, "folder": str(folder), "distances": distances}
        if "failed" in (answer := self.step("inputs", task)):
            sys.exit(f"The inputs of size {size.name} could not be drawn: {answer['failed']}")
        return folder

    def measure(self, case: str, folder: Path, *, peer: str | None = None, cython: bool = False) -> dict[str, Any]:
        result = folder / f"{peer}.npy"
        task = {"case": case, "folder": str(folder), "peer": peer, "cython": cython, "result": str(result)}
        entry = self.step("measure", task | {"clone": self.peers[peer]["clone"] if peer else None})
        who = OURS
        if peer:
            who = LAYOUTS[peer].title + ("" if case == "k_reciprocal" else ", Cython" if cython else ", Python")
        say(f"{case}, {who}: " + (entry.get("failed") or f"{entry['seconds']:.3g} s, {entry['peak_memory_gb']:.2f} GB"))
        return {"evaluator": who, **entry}

    def can(self, peer: str, part: str) -> bool:
        return self.peers[peer].get("cannot_run", {part: "failed"})[part] is None

    def search_case(self, case: str, size: Size, *, parts: tuple[str, ...]) -> dict[str, Any]:
        """Our evaluator and these parts of every peer at one size."""
        folder = self.inputs(size, distances=case == "rank_gallery")
        entries = [self.measure(case, folder)]
        for peer in self.peers:
            for part in parts:
                if self.can(peer, part):
                    entry = self.measure(case, folder, peer=peer, cython=part == "Cython")
                    if "figures" in entry and "figures" in entries[0]:
                        apart = figures_apart(entries[0]["figures"], entry["figures"])
                        entry["largest_difference_of_figures"] = apart
                    entries.append(entry)
        remove(folder)
        return {"case": case, "size": asdict(size), "entries": entries}

    def rerank_case(self, size: Size) -> dict[str, Any]:
        folder = self.inputs(size)
        entries = [self.measure("k_reciprocal", folder)]
        for peer in self.peers:
            if self.can(peer, "re-ranking"):
                entry = self.measure("k_reciprocal", folder, peer=peer)
                tables = {"ours": str(folder / "None.npy"), "theirs": str(folder / f"{peer}.npy")}
                if "seconds" in entry and "seconds" in entries[0]:
                    entry |= self.step("compare", {"folder": str(folder), **tables})
                entries.append(entry)
        remove(folder)
        return {"case": "k_reciprocal", "size": asdict(size), "entries": entries}

    def scaling(self, sizes: list[int], queries: list[int]) -> dict[str, Any]:
        """rank_features over gallery sizes at 1,000 queries, and over query counts at a gallery of 10,000."""
        base = Size("plot", 1000, 10_000, identities=500, cameras=6)
        panels: dict[str, list[dict[str, Any]]] = {"gallery": [], "queries": []}
        for axis, values in (("gallery", sizes), ("queries", queries)):
            for value in values:
                size = replace(base, **{axis: value})
                size = replace(size, identities=max(1, size.gallery // 20))
                folder = self.inputs(size)
                entry = self.measure("rank_features", folder)
                entry.pop("figures", None)
                panels[axis].append({"queries": size.queries, "gallery": size.gallery} | entry)
                remove(folder)
        return {"dimensions": base.dimensions, "over_gallery": panels["gallery"], "over_queries": panels["queries"]}


def main() -> None:
    arguments = parse()
    if arguments.one:
        name, text = arguments.one
        task = json.loads(text)
        Path(task["answer"]).write_text(json.dumps(STEPS[name](task)))
        return
    arguments.sizes = arguments.sizes or (GALLERY_SIZES[:3] if arguments.quick else GALLERY_SIZES)
    arguments.queries = arguments.queries or (QUERY_COUNTS[:3] if arguments.quick else QUERY_COUNTS)
    market, msmt17 = (SMALL, replace(SMALL, distractors=0)) if arguments.quick else (MARKET, MSMT17)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        report: dict[str, Any] = {
            "schema": 1,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "seed": arguments.seed,
            "machine": machine(arguments.threads)
            | {"memory_limit_gb": bench.memory_limit and round(bench.memory_limit / GB, 1)},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("posereid", "numpy", "scipy", "torch")},
            "peers": bench.peers,
            "cases": [],
        }
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "rank_gallery": lambda: bench.search_case("rank_gallery", market, parts=("Python", "Cython")),
            "k_reciprocal": lambda: bench.rerank_case(market),
            "verify_pairs": lambda: bench.search_case("verify_pairs", market, parts=()),
            # The peers' Python loops take long at MSMT17's size.
            "rank_features": lambda: bench.search_case("rank_features", msmt17, parts=("Cython",)),
        }
        for name, run in runs.items():
            if name in arguments.cases:
                report["cases"].append(run())
                write(arguments.out / "evaluation.json", report)
        if "scaling" in arguments.cases:
            report["scaling"] = bench.scaling(arguments.sizes, arguments.queries)
            facts = {name: report[name] for name in ("date", "command", "seed", "machine", "versions")}
            write(arguments.out / "evaluation_scaling.json", facts | {"scaling": report["scaling"]})
            plot(facts | report["scaling"], arguments.out / "evaluation_scaling.png")
    write(arguments.out / "evaluation.json", report)
    print(table(report))


def machine(threads: int) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        lines = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    return {
        "cpu": model,
        "cores": cores(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB, 1),
        "system": platform.system(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def table(report: dict[str, Any]) -> str:
    """Everything measured beside our figure of the same case, as Markdown."""
    facts = report["machine"]
    rows = [
        f"{facts['cpu']}, {facts['cores']} cores, threads: {facts['threads']}; "
        f"load at the start {facts['load_at_start']}; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items())
        + f"; seed {report['seed']}; {report['date']}",
        "",
        "Peak memory is the whole process's; in brackets what it had reached before the call, and its inputs' size.",
        "",
        "| case, queries × gallery | evaluator | seconds | × ours | peak memory, GB | × ours | apart from ours |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for case in report["cases"]:
        size = case["size"]
        title = f"{case['case']}, {size['queries']:,} × {size['gallery']:,}"
        ours = case["entries"][0]
        for entry in case["entries"]:
            if "failed" in entry:
                rows.append(f"| {title} | {entry['evaluator']} | {entry['failed']} | | | | |")
                continue
            ratios = [f"{entry[key] / ours[key]:.1f}" if key in ours else "" for key in ("seconds", "peak_memory_gb")]
            seconds = f"{entry['seconds']:.3g}"
            if "distances_seconds" in entry:
                seconds += f" + {entry['distances_seconds']:.2g} for its distances"
            apart = []
            if "largest_difference" in entry:
                over = entry["entries_over_1e-5"]
                cause = (
                    f", {entry['crops_with_float32_ties']} crops have neighbours that tie in float32" if over else ""
                )
                apart.append(
                    f"distances {entry['largest_difference']:.1e}, {over:,} of {entry['entries']:,} over 1e-5{cause}"
                )
            if "largest_difference_of_figures" in entry:
                apart.append(f"figures {entry['largest_difference_of_figures']:.1e}")
            rows.append(
                f"| {title} | {entry['evaluator']} | {seconds} | {ratios[0]} | {entry['peak_memory_gb']:.2f} "
                f"({entry['memory_before_gb']:.2f}; {entry['inputs_gb']:.2f}) | {ratios[1]} | {'; '.join(apart)} |"
            )
    return "\n".join(rows)


def plot(scaling: dict[str, Any], path: Path) -> None:
    """Seconds of rank_features over gallery size and over query count, log-log, beside a line of slope 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    blue, gray = "#1f5f99", "#8a8a8a"
    figure = Figure(figsize=(10, 4.6), dpi=160, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    dimensions = scaling["dimensions"]
    for axes, (axis, fixed) in zip(panels, (("gallery", "queries"), ("queries", "gallery")), strict=True):
        entries = [entry for entry in scaling[f"over_{axis}"] if "seconds" in entry]
        if not entries:
            continue
        values = [entry[axis] for entry in entries]
        seconds = [entry["seconds"] for entry in entries]
        linear = [seconds[-1] * value / values[-1] for value in values]
        axes.loglog(values, linear, "--", color=gray, linewidth=1.2, label="linear, through the last point")
        axes.loglog(values, seconds, "o-", color=blue, linewidth=2, markersize=6, label="rank_features")
        for value, second in zip(values, seconds, strict=True):
            axes.annotate(
                f"{second:.2g} s",
                (value, second),
                (-6, 8),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=blue,
            )
        noun = {"gallery": "gallery crops", "queries": "queries"}
        axes.set_title(f"{entries[0][fixed]:,} {noun[fixed]}, {dimensions} numbers per feature", fontsize=11)
        axes.set_xlabel(f"{noun[axis]} (count)")
        axes.set_xticks(
            values, [f"{value / 1000:g}k" if value >= 1000 else str(value) for value in values], minor=False
        )
        axes.set_xticks([], minor=True)
        axes.set_xlim(values[0] / 2.2, values[-1] * 1.3)
        axes.grid(True, color="#e2e2e2", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    panels[0].margins(y=0.12)
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("time (seconds)")
    figure.suptitle("Scoring a search straight from its features", fontsize=13, fontweight="bold")
    facts, numbers = scaling["machine"], scaling["versions"]
    figure.supxlabel(
        f"{facts['cpu']}, {facts['cores']} cores, threads: {facts['threads']}, {facts['memory_gb']:g} GB; posereid "
        f"{numbers['posereid']}, NumPy {numbers['numpy']}, Python {numbers['python']}; median of up to {RUNS} runs; "
        f"seed {scaling['seed']}; {scaling['date'][:10]}",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(path)


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
