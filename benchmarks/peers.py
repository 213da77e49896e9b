"""Other projects' evaluators, taken from clones on disk; nothing of them is copied, and their packages are not run.

A peer's ``__init__`` files import what an evaluator does not need (old torchvision, downloads, trackers), so empty
packages stand in for them, whose modules are then imported from the clone by their own names.
"""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

Parts = dict[str, str | None]


@dataclass(frozen=True)
class Layout:
    """Where a peer keeps its evaluator, its Cython extension and its re-ranking."""

    title: str
    rank: str
    extension: str
    rerank: str


LAYOUTS = {
    "torchreid": Layout(
        "torchreid", "torchreid.metrics.rank", "torchreid.metrics.rank_cylib.rank_cy", "torchreid.utils.rerank"
    ),
    "fastreid": Layout(
        "fast-reid", "fastreid.evaluation.rank", "fastreid.evaluation.rank_cylib.rank_cy", "fastreid.evaluation.rerank"
    ),
}


def ranking_of(peer: str, clone: Path, *, cython: bool) -> Callable[..., dict[str, Any]]:
    """The peer's CMC and mean average precision as a function of (distances, ids, ids, cameras, cameras)."""
    layout = LAYOUTS[peer]
    if cython:
        _module(clone, layout.extension)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Cython evaluation is unavailable" is said by `parts_of`
        evaluate = _module(clone, layout.rank).evaluate_rank

    def rank(*arguments: Any) -> dict[str, Any]:
        cmc, precision, *penalty = evaluate(*arguments, max_rank=50, use_cython=cython)
        return {
            "cmc": [float(value) for value in cmc],
            "mean_average_precision": _mean(precision),
            "mean_inverse_negative_penalty": _mean(penalty[0]) if penalty else None,
        }

    return rank


def reranking_of(peer: str, clone: Path) -> Callable[..., Any]:
    """The peer's k-reciprocal re-ranking as a function of three distance matrices."""
    return _module(clone, LAYOUTS[peer].rerank).re_ranking


def parts_of(peer: str, clone: Path) -> Parts:
    """For each part of a peer why it cannot run here, None where it can."""
    layout = LAYOUTS[peer]
    folder = (clone / layout.extension.replace(".", "/")).parent
    cython = _reason(lambda: ranking_of(peer, clone, cython=True))
    if cython is not None:
        cython += f"; build it: cd {folder} && {sys.executable} setup.py build_ext --inplace (needs Cython, a compiler)"
    return {
        "Python": _reason(lambda: ranking_of(peer, clone, cython=False)),
        "Cython": cython,
        "re-ranking": _reason(lambda: reranking_of(peer, clone)),
    }


def commit_of(clone: Path) -> str:
    """The commit that is checked out, or "unknown" where the folder is no clone of its own."""
    git = subprocess.run(["git", "-C", clone, "log", "-1", "--format=%h"], capture_output=True, text=True, check=False)
    return git.stdout.strip() if (clone / ".git").exists() and git.stdout else "unknown"


def _module(clone: Path, name: str) -> ModuleType:
    packages = name.split(".")[:-1]
    for depth in range(1, len(packages) + 1):
        package = ModuleType(".".join(packages[:depth]))
        package.__path__ = [str(clone.joinpath(*packages[:depth]))]
        sys.modules.setdefault(package.__name__, package)
    return import_module(name)


def _reason(load: Callable[[], Any]) -> str | None:
    try:
        load()
    except Exception as error:  # another project's code may fail in any way
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _mean(value: Any) -> float:
    """A peer returns the mean, or the values of the queries that have a match."""
    return sum(map(float, value)) / len(value) if hasattr(value, "__len__") else float(value)
