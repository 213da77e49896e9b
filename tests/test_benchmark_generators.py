"""benchmarks/generators.py at a small size, beside stand-ins for peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "generators.py"

RECIPE = """
generator: {blocks: 2, base_width: 4, max_width: 8}
discriminator: {base_width: 4, layers: 2}
"""

# 1 × 1 convolutions with known sizes; their module imports a neighbour by its top-level name, as the peers' do.
NETWORKS = """
import torch
from models.parts import pointwise

class Generator(torch.nn.Module):
    def __init__(self, channels, drawn):
        super().__init__()
        self.layer = pointwise(sum(channels), drawn)

    def forward(self, inputs):
        return torch.tanh(self.layer(torch.cat(inputs, 1)).cuda())

def define_G(channels, drawn, ngf, which_model_netG, norm, use_dropout, init_type, n_downsampling):
    assert which_model_netG == "{model}"
    return Generator(channels, drawn)

def define_D(channels, ndf, which_model_netD, n_layers_D, norm, use_sigmoid, init_type, use_dropout, n_downsampling):
    return pointwise(channels, 1)
"""
PARTS = """
import torch

def pointwise(inputs, outputs):
    return torch.nn.Conv2d(inputs, outputs, 1, bias=False)
"""


def stand_in(folder: Path, model: str) -> Path:
    models = folder / "models"
    models.mkdir(parents=True)
    (models / "networks.py").write_text(NETWORKS.replace("{model}", model))
    (models / "parts.py").write_text(PARTS)
    (models / "__init__.py").write_text("raise RuntimeError('a package of the peer was run')")
    return folder


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    options = ["--quick", "--threads", "1", "--recipe", recipe, "--out", tmp_path / "out"]
    return subprocess.run(
        [sys.executable, SCRIPT, *options, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_small_run_measures_peers_and_ours_and_says_who_is_left_out(tmp_path: Path) -> None:
    patn = stand_in(tmp_path / "one", "PATN")
    clones = {
        "patn": patn,
        "xinggan": stand_in(tmp_path / "two", "Xing"),
        "bigraphgan": stand_in(tmp_path / "three" / "market_1501", "not a graph").parent,
    }
    process = run(tmp_path, *(word for name, clone in clones.items() for word in ("--peer", f"{name}={clone}")))
    assert process.returncode == 0, process.stderr
    assert "Left out: aps, no --peer aps=PATH was given." in process.stderr

    assert "Left out: BiGraphGAN, describe: AssertionError" in process.stderr

    report = json.loads((tmp_path / "out" / "generators.json").read_text())
    assert report["left_out"] == ["BiGraphGAN, describe: AssertionError"]
    assert "\nLeft out: BiGraphGAN, describe: AssertionError" in process.stdout
    entries = [entry for entry in report["entries"] if entry["name"] != "BiGraphGAN"]
    assert [(entry["name"], entry["discriminators"]) for entry in entries] == [
        ("PATN", "PATN"),
        ("XingGAN", "PATN"),
        ("posereid, tiny", "PATN"),
        ("posereid, tiny", "posereid"),
    ]
    weights = (3 + 18 + 18) * 3
    assert entries[0]["parameters_millions"] == pytest.approx(weights / 1e6)
    assert entries[0]["gmac"] == pytest.approx(weights * 128 * 64 / 1e9)
    assert report["peers"]["patn"]["discriminators"]["parameters_millions"] == pytest.approx(
        {"appearance_discriminator": 6e-6, "pose_discriminator": 21e-6}
    )
    for entry in entries:
        (step,) = entry["step"]
        assert step["memory_before_gb"] <= step["peak_memory_gb"]
        ours, theirs = step["seconds"][0], entries[0]["step"][0]["seconds"][0]
        assert entry["summary"]["step"]["median_seconds_times_patn"] == pytest.approx(ours / theirs)
    assert "forward" not in entries[3]
    assert not list(patn.rglob("__pycache__"))
    assert (tmp_path / "out" / "generators.png").stat().st_size > 1000
    assert "| XingGAN | PATN | 0.0 | 0.0 |" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--peer", "pix2pix=."], "expected NAME=PATH"),
        (["--widths", "64"], "expected BASE:MAX"),
        (["--widths", "2:64"], "greater than or equal to 4"),
        (["--recipe", "nowhere.yaml"], "no such recipe"),
        (["--threads", "0"], "expected at least 1"),
    ],
)
def test_a_wrong_argument_is_said(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    process = run(tmp_path, *arguments)
    assert process.returncode == 2
    assert complaint in process.stderr
    assert "Traceback" not in process.stderr
