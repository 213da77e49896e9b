"""docs/generated-data.md says what its results say, and the command that makes them runs from nothing to its tables."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from posereid.errors import InputError

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "generated_data.py"
DOCUMENT = ROOT / "docs" / "generated-data.md"
RESULTS = ROOT / "docs" / "generated-data.json"
ARMS = {
    *("real", "generated", "true", "clusters", "gaps", "smoothed", "uniform", "identity-loss", "share", "warm-up"),
    *("filter-identity", "filter-pose", "filter-realism"),
}
MODES = {"off", "flip", "fusion", "fusion+flip", "nfc", "all"}


@pytest.fixture(scope="module")
def tables(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("generated_data_tables")


def test_the_document_holds_the_tables_of_its_results(tables: ModuleType) -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    document = DOCUMENT.read_text(encoding="utf-8")
    assert tables.filled(document, tables.tables(results)) == document
    assert results["command"] in document
    assert results["date"] in document


def test_the_results_are_over_five_seeds_and_name_every_arm_and_mode() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert len(results["seeds"]) >= 5
    assert set(results["arms"]) == ARMS
    for arm in results["arms"].values():
        assert set(arm["modes"]) >= MODES
        assert all(len(row["mAP"]["seeds"]) == len(results["seeds"]) for row in arm["modes"].values())


def test_a_document_without_the_marks_of_a_table_is_said(tables: ModuleType) -> None:
    with pytest.raises(InputError, match="<!-- figures -->"):
        tables.filled("no marks", {"figures": "| |"})


def test_the_whole_experiment_runs_and_goes_on_where_it_was(tmp_path: Path, tables: ModuleType) -> None:
    recipe = (ROOT / "recipes" / "smoke.yaml").read_text(encoding="utf-8")
    changed = recipe.replace("identities: 8, crops_per_identity: 8", "identities: 16, crops_per_identity: 8")
    assert changed != recipe
    (tmp_path / "recipe.yaml").write_text(changed)
    command = [sys.executable, SCRIPT, tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--validation-share", "0.3"]
    command += ["--seeds", "0", "1", "--arms", "filter-identity", "true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["arms"]) == {"real", "filter-identity", "true"}
    assert len(results["fusion"]["validation"]) == 1 + 10 * (4 + 3)
    drawn, filtered = results["sets"]["twice"], results["sets"]["filter-identity"]
    assert filtered["crops"] + filtered["left_out"] == drawn["crops"]
    assert filtered["crops"] == results["sets"]["random"]["crops"] == results["sets"]["true"]["crops"]
    found = tables.tables(results)
    assert found["figures"].count("\n") == 1 + len(results["arms"])
    second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert second.returncode == 0, second.stderr
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["arms"] == results["arms"]
    other = (*command, "--validation-share", "0.4")
    refused = subprocess.run(other, capture_output=True, text=True, env=environment, check=False)
    assert refused.returncode == 1
    assert "holds an experiment on another recipe" in refused.stderr
