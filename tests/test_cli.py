"""Commands as a user types them, and every mistake that a tired one makes."""

import csv
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from posereid import __version__
from posereid.cli import main
from posereid.data.layouts import load_crops
from posereid.training.integrity import write_about
from posereid.transfer import find_joints

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.yaml"

Failing = Callable[..., str]


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "joint"
    main(["train", str(SMOKE), "--data.root", str(world), "--out", str(out)])
    return out


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Failing:
    """Runs a command that must fail with exit code 2 and gives what it said."""

    def call(*arguments: str | Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        # Our own complaints go to standard error; those about options, which tyro words, to standard output or error.
        return captured.err or captured.out

    return call


def one_sentence(message: str) -> str:
    assert message.startswith("posereid: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- mistakes ----------------------------------------------------------------------------------------------


def test_a_missing_root_is_named(failing: Failing, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = one_sentence(failing("train", SMOKE, "--data.root", tmp_path / "absent", "--out", out))
    assert str(tmp_path / "absent") in message
    assert not out.exists()


def test_a_root_that_is_not_given_is_asked_for(failing: Failing, tmp_path: Path) -> None:
    assert "--data.root" in one_sentence(failing("train", SMOKE, "--out", tmp_path / "run"))


def test_an_empty_folder_is_named(failing: Failing, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = one_sentence(failing("train", SMOKE, "--data.root", tmp_path / "empty", "--out", tmp_path / "run"))
    assert "empty folder" in message
    assert not (tmp_path / "run").exists()


def test_a_truncated_jpeg_is_named(failing: Failing, world: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "world"
    shutil.copytree(world, damaged)
    for victim in (damaged / "bounding_box_train").glob("*.jpg"):
        victim.write_bytes(victim.read_bytes()[:300])
    message = one_sentence(failing("train", SMOKE, "--data.root", damaged, "--out", tmp_path / "run"))
    assert ".jpg" in message
    assert "whole JPEG" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_keypoint_row_of_17_joints_is_named(failing: Failing, world: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "world"
    shutil.copytree(world, damaged)
    path = damaged / "market-annotation-train.csv"
    header, first, *rest = path.read_text().splitlines()
    name, y, x = first.split(":")
    short = f"{name}:{json.dumps(json.loads(y)[:17])}:{json.dumps(json.loads(x)[:17])}"
    path.write_text("\n".join([header, short, *rest]))
    message = one_sentence(failing("train", SMOKE, "--data.root", damaged, "--out", tmp_path / "run"))
    assert "line 2" in message
    assert "17" in message
    assert "18" in message
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_widths_is_named(failing: Failing, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    about = sorted(other.glob("checkpoints/*/checkpoint.json"))[-1]
    content = json.loads(about.read_text())
    content["recipe"]["generator"]["base_width"] = 16
    about.unlink()
    write_about(about.parent, content)
    message = one_sentence(failing("augment", other, "--out", tmp_path / "generated"))
    assert "generator.safetensors" in message
    assert "widths" in message
    assert not (tmp_path / "generated").exists()


def _no_more_processes() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def _gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB.")


@pytest.mark.parametrize(
    ("work", "wanted"),
    [
        (lambda: bytes(2**60), ""),
        (lambda: np.ones(2**55), "256 PiB"),
        (lambda: torch.ones(2**52), "18014398509481984 bytes"),
        (_no_more_processes, ""),
        (_gpu, "2.00 GiB"),
    ],
)
def test_memory_that_runs_out_is_a_sentence(
    work: Callable[[], object], wanted: str, failing: Failing, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posereid.data.check.check_crops", lambda *_, **__: work())
    message = one_sentence(failing("check", world))
    assert "memory ran out in posereid check (at posereid.commands.data.run" in message
    assert "free some" in message
    assert (f"which wanted {wanted} more" in message) == bool(wanted)


def test_errors_that_are_no_want_of_memory_are_not_hidden(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a tensor of memory format channels_last")

    monkeypatch.setattr("posereid.data.check.check_crops", broken)
    with pytest.raises(RuntimeError, match="channels_last"):
        main(["check", str(world)])


@pytest.mark.parametrize("command", ["train", "train-reid"])
def test_an_output_folder_that_holds_another_run_stays_as_it_is(
    command: str, failing: Failing, world: Path, run: Path
) -> None:
    before = files_in(run)
    message = one_sentence(failing(command, SMOKE, "--data.root", world, "--out", run))
    assert str(run) in message
    assert files_in(run) == before


def test_augment_does_not_write_into_a_folder_that_holds_something(failing: Failing, run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert str(tmp_path) in one_sentence(failing("augment", run, "--out", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_misspelt_recipe_field_is_named(failing: Failing, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("joint: {epoch: 3}\n")
    message = one_sentence(failing("train", recipe, "--out", tmp_path / "run"))
    assert "joint.epoch" in message
    assert "'epochs'" in message


def test_a_misspelt_option_is_named(failing: Failing, tmp_path: Path) -> None:
    message = failing("train", SMOKE, "--out", tmp_path / "run", "--joint.epoch", "3")
    assert "--joint.epoch" in message
    assert "--joint.epochs" in message


def test_a_value_out_of_range_is_named(failing: Failing, tmp_path: Path) -> None:
    message = failing("train", SMOKE, "--out", tmp_path / "run", "--generator.blocks", "7")
    assert "blocks" in message
    assert "7" in message
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("generator: {blocks: 7}\n")
    message = one_sentence(failing("train", recipe, "--out", tmp_path / "run"))
    assert "generator.blocks" in message


def test_a_missing_recipe_is_named(failing: Failing, tmp_path: Path) -> None:
    message = one_sentence(failing("train", tmp_path / "absent.yaml", "--out", tmp_path / "run"))
    assert "absent.yaml" in message


def test_a_folder_without_a_run_is_named(failing: Failing, tmp_path: Path) -> None:
    assert "no checkpoint" in one_sentence(failing("evaluate", tmp_path))
    assert "no such run" in one_sentence(failing("evaluate", tmp_path / "absent"))


def test_a_generated_set_that_is_none_is_refused(failing: Failing, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = failing("train-reid", SMOKE, "--data.root", world, "--generated", world, "--out", out)
    assert "manifest.csv" in one_sentence(message)
    assert not out.exists()


def test_embed_says_what_is_wrong_with_its_folder_and_file(failing: Failing, run: Path, tmp_path: Path) -> None:
    message = failing("embed", run, "--images", tmp_path / "absent", "--out", tmp_path / "f.npz")
    assert "absent" in one_sentence(message)
    message = failing("embed", run, "--images", tmp_path, "--out", tmp_path / "f.csv")
    assert ".npz" in one_sentence(message)


def test_transfer_says_which_pose_it_does_not_know(failing: Failing, run: Path, world: Path, tmp_path: Path) -> None:
    image = next((world / "query").glob("*.jpg"))
    out = tmp_path / "out.png"
    command = ("transfer", run, "--image", image, "--joints", image.name, "--out", out)
    message = one_sentence(failing(*command, "--target", "sideways"))
    assert "'sideways'" in message
    assert "front_left" in message
    assert not out.exists()


def test_a_recipe_of_any_name_is_read_or_missed(failing: Failing, world: Path, tmp_path: Path) -> None:
    message = failing("train", "no_such_recipe", "--data.root", world, "--out", tmp_path / "run")
    assert "no_such_recipe: no such recipe" in one_sentence(message)
    (tmp_path / "mine").write_text("joint: {epoch: 3}")
    assert "joint.epoch" in one_sentence(failing("train", tmp_path / "mine", "--out", tmp_path / "run"))
    message = failing("train", "--out", tmp_path / "out.yaml", SMOKE)
    assert "needs a recipe as its first argument" in one_sentence(message)


@pytest.mark.parametrize(
    "wrong",
    [("--embedder.backbone", "nonsense"), ("--joint.batch-size", "3", "--runtime.devices", "2")],
    ids=["backbone", "processes"],
)
def test_a_run_that_cannot_start_leaves_its_folder_free(
    wrong: tuple[str, ...], failing: Failing, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    one_sentence(failing("train", SMOKE, "--data.root", world, "--out", out, *wrong))
    assert not out.exists()


def test_an_output_path_below_a_file_is_named(failing: Failing, world: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    assert str(tmp_path / "file") in one_sentence(failing("augment", run, "--out", below))
    assert str(tmp_path / "file") in one_sentence(failing("train", SMOKE, "--data.root", world, "--out", below))
    (tmp_path / "folder").mkdir()
    assert "folder" in one_sentence(failing("evaluate", run, "--out", tmp_path / "folder"))


def test_weights_that_are_not_numbers_are_refused(failing: Failing, run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    for path in broken.glob("checkpoints/*/*.safetensors"):
        state = load_file(path)
        save_file({n: v * float("nan") if v.is_floating_point() else v for n, v in state.items()}, path)
    for about in broken.glob("checkpoints/*/checkpoint.json"):
        content = json.loads(about.read_text())
        about.unlink()
        write_about(about.parent, content)
    for command in ("augment", "evaluate"):
        assert "not finite" in one_sentence(failing(command, broken, "--out", tmp_path / "out.json"))
    assert not (tmp_path / "out").exists()


def test_numbers_that_make_no_sense_are_refused(failing: Failing, run: Path, world: Path, tmp_path: Path) -> None:
    query = world / "query"
    command = ("embed", run, "--images", query, "--out", tmp_path / "f.npz", "--batch-size", "-1")
    assert "batch size is -1" in one_sentence(failing(*command))
    assert "seed is -1" in one_sentence(failing("augment", run, "--out", tmp_path / "g", "--seed", "-1"))
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_must_get_the_crops_that_it_began_with(
    failing: Failing, run: Path, world: Path, tmp_path: Path
) -> None:
    generated, out = tmp_path / "generated", tmp_path / "reid"
    main(["augment", str(run), "--out", str(generated)])
    command = ["train-reid", str(SMOKE), "--data.root", str(world), "--out", str(out)]
    main([*command, "--generated", str(generated)])
    assert "other training crops" in one_sentence(failing(*command, "--resume"))
    main([*command, "--generated", str(generated), "--resume"])


def test_a_target_outside_the_image_is_refused(failing: Failing, run: Path, world: Path, tmp_path: Path) -> None:
    image = next((world / "query").glob("*.jpg"))
    row = f"big: {list(range(100, 118))}: {list(range(100, 118))}"
    command = ("transfer", run, "--image", image, "--joints", image.name, "--out", tmp_path / "o.png")
    assert "outside the image of 32 × 64" in one_sentence(failing(*command, "--target", row))


# --- commands that work ------------------------------------------------------------------------------------


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nfrom posereid.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'lightning_fabric'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-reid" in done.stdout


def test_the_whole_job_command_by_command(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated, reid = tmp_path / "generated", tmp_path / "reid"
    main(["augment", str(run), "--out", str(generated), "--poses-per-crop", "2"])
    with (generated / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list((generated / "bounding_box_train").iterdir()))
    more = ("--generated", str(generated), "--start", str(run))
    main(["train-reid", str(SMOKE), "--data.root", str(world), "--out", str(reid), *more])
    capsys.readouterr()
    main(["evaluate", str(reid)])
    assert "rank-1" in capsys.readouterr().out
    figures = json.loads((reid / "evaluation.json").read_text())["reid"]
    assert 0 <= figures["rank1"] <= figures["rank5"] <= figures["rank10"] <= 100
    main(["evaluate", str(run), "--pairs", "8", "--out", str(tmp_path / "joint.json")])
    assert json.loads((tmp_path / "joint.json").read_text())["generator"]["pairs"] == 8

    main(["embed", str(reid), "--images", str(world / "query"), "--out", str(tmp_path / "features.npz")])
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["features"].shape == (len(arrays["names"]), 128)
        assert len(arrays["identities"]) == len(arrays["cameras"]) == len(arrays["names"])


@pytest.mark.parametrize("target", ["back", "crop", "file", "row"])
def test_transfer_takes_every_kind_of_target(target: str, run: Path, world: Path, tmp_path: Path) -> None:
    image, other = sorted((world / "query").glob("*.jpg"))[:2]
    rows = (world / "market-annotation-test.csv").read_text().splitlines()
    row = next(row for row in rows if row.startswith(other.name))
    (tmp_path / "one.csv").write_text(f"{rows[0]}\n{row}\n")
    spec = {"back": "back", "crop": other.name, "file": str(tmp_path / "one.csv"), "row": row}[target]
    out = tmp_path / "out.png"
    main(["transfer", str(run), "--image", str(image), "--joints", image.name, "--target", spec, "--out", str(out)])
    assert Image.open(out).size == (32, 64)


def test_a_crop_of_another_size_gives_its_pose_in_proportion(world: Path, tmp_path: Path) -> None:
    crop = next(crop for crop in load_crops(world).query if crop.can_pose)
    large = replace(crop, path=tmp_path / "large.png", name="large.png", joints=crop.joints.resized(2, 2))
    Image.open(crop.path).resize((64, 128)).save(large.path)
    found = find_joints("large.png", None, (), [large], (32, 64))
    assert np.allclose(found.xy, crop.joints.xy, atol=1e-4)


def test_another_sets_figures_do_not_replace_the_runs_own(world: Path, run: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run, copy)
    shutil.copytree(world, other)
    main(["evaluate", str(copy), "--pairs", "4"])
    own = (copy / "evaluation.json").read_bytes()
    main(["evaluate", str(copy), "--pairs", "4", "--root", str(other)])
    assert (copy / "evaluation.json").read_bytes() == own
    assert json.loads((copy / "evaluation-other.json").read_text())["data"]["root"] == "other"


def test_files_that_are_left_out_are_said_and_counted(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(world, other)
    shutil.copy(next((other / "query").glob("*.jpg")), other / "query" / "hello.jpg")
    main(["evaluate", str(run), "--pairs", "4", "--root", str(other), "--out", str(tmp_path / "e.json")])
    assert "1 files of the set are left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "e.json").read_text())["data"]["files_left_out"] == 1
    main(["train", str(SMOKE), "--data.root", str(other), "--out", str(tmp_path / "run")])
    assert "hello.jpg" in capsys.readouterr().out


def test_a_set_without_joints_still_has_its_search_figures(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(world, other)
    for path in other.glob("*annotation*.csv"):
        path.unlink()
    main(["evaluate", str(run), "--root", str(other), "--out", str(tmp_path / "e.json")])
    evaluation = json.loads((tmp_path / "e.json").read_text())
    assert evaluation["generator"] is None
    assert evaluation["reid"]["queries"] > 0
    assert "was not measured" in capsys.readouterr().out


def test_a_run_is_usable_from_another_folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.parent)
    main(["train", str(SMOKE), "--data.root", world.name, "--out", str(tmp_path / "run")])
    monkeypatch.chdir(tmp_path)
    main(["evaluate", "run", "--pairs", "4"])
    main(["augment", "run", "--out", "generated"])


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"posereid {__version__}\n"


def test_check_leaves_with_1_when_something_is_wrong(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", str(world), "--json"])
    assert json.loads(capsys.readouterr().out)["ok"]
    damaged = tmp_path / "world"
    shutil.copytree(world, damaged)
    (damaged / "query" / "portrait.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(damaged)])
    assert stopped.value.code == 1
    assert "portrait.jpg" in capsys.readouterr().out


def test_synthesize_writes_a_set_and_keeps_what_is_there(
    tmp_path: Path, failing: Failing, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--identities", "4", "--crops-per-identity", "4", "--cameras", "2", "--height", "32"]
    main(["synthesize", str(tmp_path / "world"), *size])
    before = files_in(tmp_path / "world")
    assert one_sentence(failing("synthesize", tmp_path / "world", *size))
    assert files_in(tmp_path / "world") == before


# --- evaluate and compare ----------------------------------------------------------------------------------


def embedded(run: Path, world: Path, folder: Path) -> list[str]:
    """Query and gallery features as `posereid embed` writes them."""
    files = []
    for side, images in (("query", "query"), ("gallery", "bounding_box_test")):
        main(["embed", str(run), "--images", str(world / images), "--out", str(folder / f"{side}.npz")])
        files.append(str(folder / f"{side}.npz"))
    return files


def test_features_give_the_figures_of_the_run_they_came_from(
    world: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = embedded(run, world, tmp_path)
    main(["evaluate", str(run), "--pairs", "4", "--out", "run.json", "--rerank"])
    main(["evaluate", "--features", *files, "--rerank", "--out", "features.json"])
    figures = [json.loads(Path(name).read_text()) for name in ("run.json", "features.json")]
    assert figures[0]["reid"] == figures[1]["reid"]
    assert figures[0]["data"]["test_fingerprint"] == figures[1]["data"]["test_fingerprint"]
    for part, figure in (("reid_reranked", "mAP"), ("verification", "equal_error_threshold")):
        # Batches differ where query and gallery meet, and with them the last digit.
        assert figures[0][part][figure] == pytest.approx(figures[1][part][figure], rel=1e-3)
    for name in ("features.html", "features-queries.csv", "features-queries-reranked.csv"):
        assert Path(name).is_file()
    capsys.readouterr()
    main(["compare", "run.json", "features.json"])
    assert "too few people to say" in capsys.readouterr().out
    main(["compare", "run.json", "features.json", "--reranked", "--json"])
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["differences"]["mAP"]["difference"] == 0
    main(["evaluate", "--features", *files, "--multi-query", "mean"])
    assert Path("evaluation-query.json").is_file()
    capsys.readouterr()
    main(["evaluate", "--features", *files, "--no-same-camera-rule", "--average-precision", "trapezoid"])
    said = capsys.readouterr().out
    assert "without the same-camera rule" in said
    assert "trapezoid AP" in said


def test_the_runs_recipe_says_how_it_is_evaluated_and_options_change_it(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMOKE.read_text() + "\nevaluation: {pairs: 5, false_match_rates: [0.2]}\n")
    text = recipe.read_text()
    if text.count("evaluation:") > 1:
        lines = [line for line in SMOKE.read_text().splitlines() if not line.startswith("evaluation:")]
        recipe.write_text("\n".join([*lines, "evaluation: {pairs: 5, false_match_rates: [0.2]}\n"]))
    main(["train", str(recipe), "--data.root", str(world), "--out", str(out)])
    main(["evaluate", str(out)])
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["generator"]["pairs"] == 5
    assert [point["stated_false_match_rate"] for point in figures["verification"]["operating_points"]] == [0.2]
    main(["evaluate", str(out), "--pairs", "3"])
    assert json.loads((out / "evaluation.json").read_text())["generator"]["pairs"] == 3


def test_joints_of_generated_pictures_are_found_by_a_trained_estimator(
    world: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator = tmp_path / "pose"
    main(["train-pose", str(SMOKE), "--data.root", str(world), "--out", str(estimator)])
    out = ("--out", str(tmp_path / "e.json"))
    main(["evaluate", str(run), "--pairs", "4", "--pose-estimator", str(estimator), "--judge", str(run), *out])
    generator = json.loads((tmp_path / "e.json").read_text())["generator"]
    assert set(generator["scores"]["pckh"]) >= {"generated", "copy_source", "target"}
    assert generator["joints_found_by"] == "pose"
    assert "PCKh" in capsys.readouterr().out


def test_evaluate_and_compare_name_wrong_input(failing: Failing, run: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["evaluate"], "--features FILE.npz"),
        (["evaluate", "--pairs", "3"], "--features FILE.npz"),
        (["evaluate", "--pairs", "3", run], "before any option"),
        (["evaluate", run, "--confidence", "0.999", "--resamples", "100"], "resamples is 100"),
        (["evaluate", run, "--out", SMOKE / "e.json"], "no file can be written"),
        (["evaluate", run, "--features", tmp_path / "f.npz"], "give one of them"),
        (["evaluate", "--features", tmp_path / "f.npz", "--root", tmp_path], "--root was given with --features"),
        (["evaluate", "--features", tmp_path / "f.npz"], "no such file"),
        (["evaluate", run, "--false-match-rates", "1.5"], "false_match_rates"),
        (["evaluate", run, "--confidence", "95"], "confidence"),
        (["evaluate", run, "--pose-estimator", run], "pose_estimator.safetensors"),
        (["compare", run, tmp_path / "absent"], "run posereid evaluate"),
        (["compare", tmp_path / "absent", run, "--confidence", "2"], "run posereid evaluate"),
    ):
        message = one_sentence(failing(*arguments))
        assert words in message, message
    assert not list(tmp_path.glob("*.json"))


# --- processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "trainer"),
    [("train", "joint.train_joint"), ("train-reid", "reid.train_reid"), ("train-pose", "pose.train_pose_estimator")],
)
def test_devices_and_machines_are_short_for_the_recipes_fields(
    command: str, trainer: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr(f"posereid.training.{trainer}", lambda recipe, *_, **__: trained.append(recipe.runtime))
    call = [command, str(SMOKE), "--data.root", str(world), "--out", str(tmp_path / "run")]
    main([*call, "--devices", "2", "--num-nodes", "3"])
    main([*call, "--runtime.devices", "4", "--num-nodes", "5"])
    main(call)
    assert [(runtime.devices, runtime.num_nodes) for runtime in trained] == [(2, 3), (4, 5), (1, 1)]


def test_no_devices_are_a_mistake(failing: Failing, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = one_sentence(failing("train", SMOKE, "--data.root", world, "--out", out, "--devices", "0"))
    assert "devices" in message
    assert not out.exists()
