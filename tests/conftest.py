import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from posereid.config import READ_BY, Recipe, Section, Stage, parse_recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.pose.joints import Joints

# A busy machine must not fail a test for being slow.
settings.register_profile("posereid", deadline=None, max_examples=50)
settings.load_profile("posereid")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic set: 4 training and 4 test identities of 8 crops each before 3 cameras, 64×32 pixels."""
    return synthesize(
        tmp_path_factory.mktemp("worlds") / "world", identities=8, crops_per_identity=8, cameras=3, height=64
    )


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """A script of ``benchmarks/``, which is no package, as a module by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        place = importlib.util.spec_from_file_location(name, path)
        assert place is not None
        assert place.loader is not None
        module = importlib.util.module_from_spec(place)
        place.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def crops(world: Path) -> CropTable:
    return load_crops(world)


@pytest.fixture(scope="session")
def reading() -> Callable[[], AbstractContextManager[set[str]]]:
    """What of a recipe posereid reads inside a block: sections, and ``section.field`` of each."""
    sections = {info.annotation: name for name, info in Recipe.model_fields.items() if name != "seed"}

    @contextmanager
    def recording() -> Iterator[set[str]]:
        seen: set[str] = set()

        def watched(self: Section, name: str) -> Any:
            module = sys._getframe(1).f_globals["__name__"]
            if (
                name in type(self).__pydantic_fields__
                and module.startswith("posereid.")
                and module != Section.__module__
            ):
                seen.add(name if isinstance(self, Recipe) else f"{sections.get(type(self), '')}.{name}")
            return object.__getattribute__(self, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Section, "__getattribute__", watched, raising=False)
            yield seen

    return recording


@pytest.fixture(scope="session")
def assert_reads() -> Callable[[Stage, set[str]], None]:
    return _assert_reads


def _assert_reads(stage: Stage, seen: set[str]) -> None:
    """That a stage read the sections that the table says, and of those of which it says the fields exactly these."""
    table = READ_BY[stage]
    assert {name for name in seen if "." not in name} == {place.split(".")[0] for place in table}
    named = {place for place in table if "." in place}
    sections = {place.split(".")[0] for place in named}
    assert {name for name in seen if "." in name and name.split(".")[0] in sections} == named


@pytest.fixture(scope="session")
def rescaled() -> Callable[[CropTable, float], CropTable]:
    """A table whose joints are in other units: this many of them are a pixel."""

    def build(crops: CropTable, factor: float) -> CropTable:
        return crops.with_crops(
            replace(crop, joints=crop.joints and Joints(crop.joints.xy * np.float32(factor), crop.joints.present))
            for crop in crops
        )

    return build


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, mapping by mapping."""
    return base | {
        key: merged(base.get(key, {}), value) if isinstance(value, dict) else value for key, value in changes.items()
    }


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Recipe]:
    """A recipe of the smallest networks, four steps on the CPU; sections given by keyword change it."""

    def build(**changes: Any) -> Recipe:
        base: dict[str, Any] = {
            "data": {"height": 64, "width": 32},
            "generator": {"blocks": 2, "base_width": 4, "max_width": 16},
            "discriminator": {"base_width": 4, "layers": 2},
            "embedder": {
                "backbone": "test_resnet",
                "pretrained": False,
                "input_height": 64,
                "input_width": 32,
            },
            "joint": {
                "epochs": 2,
                "pairs_per_epoch": 8,
                "batch_size": 4,
                "log_every": 1,
                "sample_every": 4,
                "checkpoint_every": 2,
            },
            "reid": {
                "epochs": 2,
                "quartets_per_epoch": 4,
                "quartets_per_batch": 2,
                "log_every": 1,
                "checkpoint_every": 2,
            },
            "runtime": {"device": "cpu"},
        }
        return parse_recipe(merged(base, changes), "the test's recipe")

    return build
