"""The whole job, end to end, on the smallest recipe."""

import json
import re
import shutil
from pathlib import Path

import pytest

from posereid.demo import REID_RUNS, run_demo
from posereid.errors import InputError
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.picture_measures import ANSWERS

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.yaml"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(out, SMOKE)
    return out


def test_the_summary_holds_every_figure(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert set(summary["reid"]) == set(REID_RUNS.values())
    for row in summary["reid"].values():
        assert 0 <= row["rank1"] <= 100
        assert 0 <= row["mAP"] <= 100
        assert set(row["intervals"]) == set(HEADLINES)
    scores = summary["generator"]["scores"]
    assert {"ssim", "psnr", "pckh", "identity"} <= set(scores)
    assert set(scores["ssim"]) == set(ANSWERS) - {"target", "any_camera"}
    assert summary["generator"]["identity_judged_by"] == "reid-real"
    assert set(summary["comparison"]["differences"]) == set(HEADLINES)
    assert set(summary["fusion"]) == {REID_RUNS["reid-real"], REID_RUNS["reid-generated"]}
    assert all(list(fusion["rows"]) == ["off", "flip", "fusion+flip"] for fusion in summary["fusion"].values())
    assert all(seconds >= 0 for seconds in summary["seconds"].values())
    assert {"seed", "versions", "device"} <= set(summary)


def test_the_report_is_one_self_contained_page(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5
    addresses = re.findall(r"(?:src|href)=[\"']([^\"']*)", page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    for name in (*REID_RUNS.values(), "CMC", "false-match rate", "Worst answered", "PCKh"):
        assert name in page


def test_a_second_call_keeps_what_is_done(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (demo / "joint").rglob("*")}
    summary = (demo / "summary.json").read_text()
    run_demo(demo, SMOKE)
    assert {path: path.stat().st_mtime_ns for path in (demo / "joint").rglob("*")} == before
    again = json.loads((demo / "summary.json").read_text())
    assert again["reid"] == json.loads(summary)["reid"]


def test_an_interrupted_demo_goes_on(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("posereid.demo.train_joint", stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(tmp_path / "demo", SMOKE)
    assert not (tmp_path / "demo" / "summary.json").exists()
    run_demo(tmp_path / "demo", SMOKE)
    figures = [json.loads((out / "summary.json").read_text()) for out in (demo, tmp_path / "demo")]
    assert figures[0]["generator"] == figures[1]["generator"]
    assert figures[0]["reid"] == figures[1]["reid"]


def test_a_stage_whose_folder_was_deleted_is_done_again(demo: Path) -> None:
    shutil.rmtree(demo / "reid-real")
    (demo / "joint" / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json cannot be read"):
        run_demo(demo, SMOKE)
    (demo / "joint" / "evaluation.json").unlink()
    run_demo(demo, SMOKE)
    assert (demo / "reid-real" / "evaluation.json").is_file()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, demo: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds files"):
        run_demo(tmp_path, SMOKE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    other = tmp_path / "other.yaml"
    other.write_text(SMOKE.read_text() + "\nseed: 9\n")
    with pytest.raises(InputError, match="another recipe"):
        run_demo(demo, other)
