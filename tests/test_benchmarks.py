"""benchmarks/evaluation.py at a small size, beside a stand-in for a peer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "evaluation.py"

# A clone's files are found by their paths; its packages' __init__ files must not run.
RANK = """
import numpy as np

def evaluate_rank(distances, q_ids, g_ids, q_cameras, g_cameras, max_rank=50, use_cython=True):
    assert not use_cython
    cmc, precisions = np.zeros(max_rank), []
    for row, person, camera in zip(distances, q_ids, q_cameras):
        order = [g for g in np.argsort(row) if g_ids[g] != person or g_cameras[g] != camera]
        ranks = [rank for rank, g in enumerate(order, 1) if g_ids[g] == person]
        if ranks:
            cmc[ranks[0] - 1 :] += 1
            precisions.append(np.mean([nth / rank for nth, rank in enumerate(ranks, 1)]))
    return cmc / len(precisions), np.mean(precisions)
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--threads", "1", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    metrics = tmp_path / "clone" / "torchreid" / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "rank.py").write_text(RANK)
    (metrics / "__init__.py").write_text("raise RuntimeError('a package of the peer was run')")
    return tmp_path / "clone"


def test_a_small_run_writes_figures_that_agree_with_the_peers(clone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run("--cases", "rank_gallery", "--peer", f"torchreid={clone}", "--out", out)
    assert process.returncode == 0, process.stderr
    assert "torchreid, Cython: left out" in process.stderr
    assert "setup.py build_ext --inplace" in process.stderr
    assert "torchreid, re-ranking: left out" in process.stderr
    assert "fast-reid: left out" in process.stderr

    report = json.loads((out / "evaluation.json").read_text())
    (case,) = report["cases"]
    ours, theirs = case["entries"]
    assert (ours["evaluator"], theirs["evaluator"]) == ("posereid", "torchreid, Python")
    assert theirs["largest_difference_of_figures"] < 1e-9
    assert 0.1 < ours["figures"]["mean_average_precision"] < 0.99
    assert ours["inputs_gb"] < ours["memory_before_gb"] <= ours["peak_memory_gb"]
    assert report["machine"]["threads"] == 1
    assert f"| torchreid, Python | {theirs['seconds']:.3g} |" in process.stdout


def test_a_wrong_clone_is_said(tmp_path: Path) -> None:
    process = run("--peer", f"openreid={tmp_path}")
    assert process.returncode == 2
    assert "expected NAME=PATH" in process.stderr
