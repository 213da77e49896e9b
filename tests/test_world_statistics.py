"""docs/synthetic-world.md says what its results say, and the statistics are those of the crops."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from posereid.data.synthetic import World, synthesize
from posereid.data.synthetic.presets import PRESETS
from posereid.data.synthetic.world import FORMAT_VERSION
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, Joints, joint_index

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "synthetic-world.md"
RESULTS = ROOT / "docs" / "synthetic-world.json"
MARKET = ROOT.parent / "shared" / "market1501"


@pytest.fixture(scope="module")
def benchmark(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("world_statistics")


def test_the_document_holds_the_tables_of_its_results_and_of_the_presets(benchmark: ModuleType) -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    document = DOCUMENT.read_text(encoding="utf-8")
    found = benchmark.tables(results) | {
        "presets": benchmark.preset_table(),
        "difficulty": benchmark.difficulty_table(results),
    }
    assert benchmark.filled(document, found) == document
    assert results["difficulty"]["command"] in document
    assert results["difficulty"]["date"] in document


def test_harder_presets_are_harder_on_every_seed_and_leave_room() -> None:
    presets = json.loads(RESULTS.read_text(encoding="utf-8"))["difficulty"]["presets"]
    assert set(presets) == set(PRESETS)
    for seed in ("0", "1", "2"):
        easy, default, hard = (presets[name][seed]["off"]["rank1"] for name in ("easy", "default", "hard"))
        assert easy > default > hard >= 25
        assert 50 <= default <= 85
        assert {presets[name][seed]["version"] for name in presets} == {FORMAT_VERSION}


def test_a_summary_counts_what_the_crops_show(benchmark: ModuleType) -> None:
    nose, neck = joint_index("nose"), joint_index("neck")
    whole = Joints(np.tile([[8, 4]], (JOINT_COUNT, 1)).astype(np.float32), np.ones(JOINT_COUNT, bool))
    whole.xy[neck] = 12, 24
    only_nose = Joints(np.full((JOINT_COUNT, 2), 5, np.float32), np.arange(JOINT_COUNT) == nose)
    nobody = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))
    found = benchmark.summary([whole, only_nose, nobody, whole], [(1, 1), (1, 2), (1, 2), (2, 1)], 2.0)
    assert (found["crops"], found["identities"]) == (4, 2)
    assert found["missing"]["nose"] == 0.25
    assert found["missing"]["neck"] == 0.5
    assert (found["nothing"], found["torso"]) == (0.25, 0.5)
    assert found["joints_per_crop"] == (2 * JOINT_COUNT + 1) / 4
    assert found["percentiles"]["height"] == [40.0] * len(benchmark.PERCENTILES)
    assert found["percentiles"]["column"] == [20.0] * len(benchmark.PERCENTILES)
    assert found["percentiles"]["row"] == [28.0] * len(benchmark.PERCENTILES)
    assert found["sizes"] == {"1": 1, "3": 1}
    assert found["cameras_per_identity"] == {"1": 0.5, "2": 0.5}
    assert found["mean_crops_per_camera"] == pytest.approx(4 / 3, abs=0.01)


def test_a_world_is_summed_up_by_its_training_crops(benchmark: ModuleType) -> None:
    world = World(seed=0, identities=4, crops_per_identity=6, cameras=2, height=32)
    found = benchmark.synthetic_summary(world)
    assert (found["crops"], found["identities"], found["mean_crops_per_identity"]) == (12, 2, 6.0)
    assert sum(found["cameras_per_identity"].values()) == pytest.approx(1)


def test_a_keypoint_file_is_summed_up_like_the_world_that_wrote_it(benchmark: ModuleType, tmp_path: Path) -> None:
    size = {"identities": 4, "crops_per_identity": 4, "cameras": 2, "height": benchmark.HEIGHT}
    read = benchmark.real_summary(synthesize(tmp_path / "world", **size))
    made = benchmark.synthetic_summary(World(seed=0, **size))
    # The file holds whole pixels.
    for name, values in made.pop("percentiles").items():
        assert read["percentiles"][name] == pytest.approx(values, abs=1)
    assert read["crops"] == 8
    del made["histograms"]
    assert {name: read[name] for name in made} == made


def test_the_default_world_is_near_the_real_set_where_it_was_fitted() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["statistics"]
    real, default = found["Market-1501"], found["default"]
    gaps = {joint: abs(rate - default["missing"][joint]) for joint, rate in real["missing"].items()}
    assert max(gaps.values()) < 0.12, gaps
    assert np.mean(list(gaps.values())) < 0.04
    assert abs(real["torso"] - default["torso"]) < 0.03
    assert abs(real["percentiles"]["height"][3] - default["percentiles"]["height"][3]) < 4


def test_a_document_without_the_marks_of_a_table_is_said(benchmark: ModuleType) -> None:
    with pytest.raises(InputError, match="<!-- joints -->"):
        benchmark.filled("no marks", {"joints": "| |"})


def test_names_of_another_set_are_refused(
    benchmark: ModuleType, tmp_path: Path, market_row: Callable[..., str]
) -> None:
    (tmp_path / benchmark.ANNOTATIONS).write_text("name:keypoints_y:keypoints_x\n" + market_row("person.jpg") + "\n")
    with pytest.raises(InputError, match="Market-1501"):
        benchmark.real_summary(tmp_path)


@pytest.fixture
def market_row() -> Callable[..., str]:
    def build(name: str) -> str:
        numbers = list(range(1, JOINT_COUNT + 1))
        return f"{name}: {numbers}: {numbers}"

    return build


@pytest.mark.skipif(not MARKET.is_dir(), reason="Market-1501's keypoints are not beside the checkout")
def test_the_real_statistics_are_those_of_the_real_keypoints(benchmark: ModuleType) -> None:
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))["statistics"][benchmark.REAL]
    assert benchmark.real_summary(MARKET) == stored
