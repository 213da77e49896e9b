"""Imports run one way: each module may use its own level and the levels below."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import posereid

ROOT = Path(posereid.__file__).parent
LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "messages", "files", "pictures", "plain_yaml", "progress"}),
    frozenset({"pose", "config"}),
    frozenset({"data"}),
    frozenset({"generator", "discriminator", "backbones", "processes", "embedder", "pose_estimator", "losses"}),
    frozenset({"training", "augmentation", "evaluation", "fusion", "features", "transfer"}),
    frozenset(
        {
            "curves",
            "report",
            "report_page",
            "evaluation_report",
            "cli",
            "commands",
            "ablation",
            "demo",
            "demo_report",
            "__main__",
        }
    ),
)
MODULES = {
    ".".join(("posereid", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def part(module: str) -> str:
    return module.split(".")[1]


def level(module: str) -> int:
    return next(number for number, parts in enumerate(LEVELS) if part(module) in parts)


def imports(path: Path, *, at_start_only: bool = False) -> Iterator[str]:
    """Modules of posereid that a file imports; ``at_start_only`` leaves out imports inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            # "from package import name" may name a module or something inside one.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "posereid")


def test_every_module_belongs_to_a_level() -> None:
    known = frozenset.union(*LEVELS)
    assert {module for module in MODULES if module != "posereid" and part(module) not in known} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module != "posereid"])
def test_a_module_imports_from_its_own_level_or_below(module: str) -> None:
    used = [name for name in imports(MODULES[module]) if name != "posereid"]
    assert [name for name in used if level(name) > level(module)] == []


def test_imports_form_no_circle() -> None:
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items() if module != "posereid"}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle
    assert order.index("posereid.errors") < order.index("posereid.cli")


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("posereid.generator")])
def test_the_generator_knows_nothing_of_recipes_data_or_losses(module: str) -> None:
    used = {part(name) for name in imports(MODULES[module]) if name != "posereid"}
    assert used <= {"generator", "pose"}


def test_losses_know_nothing_of_posereid() -> None:
    assert list(imports(MODULES["posereid.losses"])) == []


def test_networks_and_data_know_no_losses() -> None:
    users = {module for module, path in MODULES.items() if "posereid.losses" in set(imports(path))}
    assert {part(module) for module in users} == {"training"}


def test_the_package_and_the_command_line_import_nothing_heavy_at_their_start() -> None:
    assert list(imports(MODULES["posereid"], at_start_only=True)) == []
    commands = {module for module in MODULES if module.startswith("posereid.commands.")}
    for module in ("posereid.cli", *commands):
        assert set(imports(MODULES[module], at_start_only=True)) <= {"posereid.config", "posereid.errors", *commands}


def test_every_progress_bar_has_one_look() -> None:
    assert [name for name, path in MODULES.items() if "tqdm" in path.read_text("utf-8")] == ["posereid.progress"]
