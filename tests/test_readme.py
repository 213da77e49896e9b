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


def commands() -> list[list[str]]:
    lines = re.findall(r"^\$ (posereid .*)$", README, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_training_on_market1501_takes_four_lines() -> None:
    assert [command[0] for command in commands()] == ["check", "train", "augment", "train-reid"]


def test_the_four_lines_run_on_a_set_of_that_layout(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, "Market-1501-v15.09.15")
    for command in commands():
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
