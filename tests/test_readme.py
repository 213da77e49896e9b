"""What the README says a user can type works."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from posereid.cli import main
from posereid.demo import run_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMOKE = ROOT / "recipes" / "smoke.yaml"


def commands(section: str) -> list[list[str]]:
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\$ (posereid .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_training_on_market1501_takes_four_lines() -> None:
    assert [command[0] for command in commands("Train on Market-1501")] == ["check", "train", "augment", "train-reid"]


def test_the_paper_s_claims_are_planned_and_tested_by_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned, done = commands("Test the paper's claims")
    assert planned == [*done, "--dry-run"]
    assert (ROOT / done[1]).is_file()
    monkeypatch.chdir(tmp_path)
    main([str(SMOKE) if argument == done[1] else argument for argument in planned])
    assert "no-semantic" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_four_lines_run_on_a_set_of_that_layout(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, "Market-1501-v15.09.15")
    for command in commands("Train on Market-1501"):
        main([str(SMOKE) if argument == "recipes/market1501.yaml" else argument for argument in command])
    main(["evaluate", "runs/market-reid"])


def test_the_python_lines_run_beside_a_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_demo(Path("runs/demo"), SMOKE)
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found
    capsys.readouterr()
    exec(compile(found[1], "README.md", "exec"), {})
    printed = [float(line) for line in capsys.readouterr().out.split()]
    assert len(printed) == 2
    assert all(0 <= share <= 1 for share in printed)
    assert Path("back.png").is_file()


def test_every_recipe_and_page_that_the_readme_names_is_there() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)|(recipes/\w+\.yaml)", README):
        name = path[0] or path[1]
        assert (ROOT / name).exists(), name
