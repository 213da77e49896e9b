"""The choice of fusion's settings, on people that no network saw."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from posereid.augmentation.drawing import augment
from posereid.cli import main
from posereid.commands.common import crops_of, placed
from posereid.config import FusionRecipe, Recipe, read_recipe
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.synthetic import synthesize
from posereid.data.validation import validation_identities, validation_search
from posereid.errors import InputError
from posereid.evaluation.evaluate import evaluate_run
from posereid.evaluation.fusion_choice import FusionChoice, choice_table, tune_fusion
from posereid.training.checkpoint import latest_checkpoint, load_generator
from posereid.training.joint import train_joint
from posereid.training.pose import train_pose_estimator
from posereid.training.reid import train_reid
from posereid.training.run_file import read_run_file, write_run_file
from posereid.transfer import find_joints, redraw

Build = Callable[..., Recipe]
SHARE = 0.4


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people, six of them for training, of whom two are held out."""
    folder = tmp_path_factory.mktemp("worlds") / "people"
    return synthesize(folder, identities=12, crops_per_identity=6, cameras=2, height=64)


@pytest.fixture(scope="module")
def recipe(people: Path, tiny_recipe: Build) -> Recipe:
    data = {"root": people, "validation_share": SHARE}
    return tiny_recipe(data=data, evaluation={"resamples": 200, "pairs": 4, "fusion": {"poses": 2}})


@pytest.fixture(scope="module")
def joint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_joint(recipe, crops_of(recipe), tmp_path_factory.mktemp("runs") / "joint", progress=False)


@pytest.fixture(scope="module")
def reid(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_reid(recipe, crops_of(recipe), tmp_path_factory.mktemp("runs") / "reid", progress=False)


@pytest.fixture(scope="module")
def whole(people: Path) -> CropTable:
    return load_crops(people)


@pytest.fixture(scope="module")
def choice(reid: Path, joint: Path) -> FusionChoice:
    return tune_fusion(reid, joint, most_poses=2)


def test_the_best_of_the_grid_is_chosen_and_ties_go_to_the_simplest(choice: FusionChoice) -> None:
    assert len(choice.grid) == 1 + 10 * (2 + 1)
    by_naive_search = None
    for point in choice.grid:
        rank = (-point.mean_average_precision, point.weight, point.poses, point.by_realism)
        by_naive_search = rank if by_naive_search is None or rank < by_naive_search else by_naive_search
    chosen = choice.settings
    assert by_naive_search == (
        -choice.best.result.mean_average_precision,
        chosen.weight,
        chosen.poses,
        chosen.by_realism,
    )
    assert [p.mean_average_precision for p in choice.grid] == sorted(
        (p.mean_average_precision for p in choice.grid), reverse=True
    )
    control = next(point for point in choice.grid if point.weight == 0)
    assert control.mean_average_precision == choice.control.result.mean_average_precision
    assert control.poses == 1


def test_each_point_is_what_an_evaluation_with_its_settings_gives(
    choice: FusionChoice, reid: Path, joint: Path, whole: CropTable, tmp_path: Path
) -> None:
    search = validation_search(whole, SHARE)
    settings = latest_checkpoint(reid).recipe.evaluation
    for point in (choice.grid[0], choice.grid[len(choice.grid) // 2], choice.grid[-1]):
        fusion = FusionRecipe(weight=point.weight, poses=point.poses, by_realism=point.by_realism)
        evaluation = evaluate_run(
            reid,
            settings.changed(fusion=fusion),
            crops=search,
            fusion=["fusion+flip"],
            generator_run=joint,
            cache=tmp_path,
        )
        found = evaluation.fused["fusion+flip"].result
        assert found.mean_average_precision == pytest.approx(point.mean_average_precision, abs=1e-6)
        assert found.rank1 == pytest.approx(point.rank1, abs=1e-6)


def test_nobody_that_was_trained_on_is_searched_for(choice: FusionChoice, reid: Path, whole: CropTable) -> None:
    held = validation_identities(whole, SHARE)
    assert set(choice.control.query.identities) | set(choice.control.gallery.identities) <= held
    assert not held & set(latest_checkpoint(reid).identities)
    assert not held & set(whole.query.identities)


def test_a_run_that_saw_the_held_out_is_refused(recipe: Recipe, reid: Path, whole: CropTable, tmp_path: Path) -> None:
    seen = train_joint(recipe, whole, tmp_path / "seen", progress=False)
    with pytest.raises(InputError, match=r"seen trained on 2 of the 2 identities"):
        tune_fusion(reid, seen)
    with pytest.raises(InputError, match=r"seen trained on 2 of the 2 identities"):
        tune_fusion(seen)
    with pytest.raises(InputError, match=rf"reid trained on 1 of the 3.*give --validation-share {SHARE:g} or less"):
        tune_fusion(reid, share=0.5)
    with pytest.raises(InputError, match="has no generator"):
        tune_fusion(reid)
    # What a run began from counts too, and so it does where the set lies elsewhere now.
    began = read_run_file(reid)
    assert began
    shutil.copytree(reid, tmp_path / "reid")
    write_run_file(tmp_path / "reid", began.model_copy(update={"started_from": read_run_file(seen)}))
    moved = shutil.copytree(whole.root, tmp_path / "moved")
    with pytest.raises(InputError, match=r"reid trained on 2 of the 2 .* through the run that it began from"):
        tune_fusion(tmp_path / "reid", crops=load_crops(moved))


def test_joints_of_another_scale_stop_every_command_that_reads_them(
    recipe: Recipe, reid: Path, joint: Path, whole: CropTable, rescaled: Callable[..., CropTable], tmp_path: Path
) -> None:
    wrong, out = rescaled(whole, 0.5), tmp_path / "out"
    generator = load_generator(joint)
    pixel = Image.new("RGB", (32, 64))
    posed = next(crop for crop in wrong.query if crop.joints is not None)
    for call in (
        lambda: train_joint(recipe, wrong, out, progress=False),
        lambda: train_pose_estimator(recipe, wrong, out, progress=False),
        lambda: augment(generator, wrong, out, recipe.augmentation, seed=0, checkpoint="", progress=False),
        lambda: evaluate_run(joint, crops=wrong),
        lambda: evaluate_run(reid, crops=wrong, fusion=["fusion"], generator_run=joint, cache=out),
        lambda: tune_fusion(reid, joint, crops=wrong, cache=out),
        lambda: find_joints(posed.name, None, (), wrong, pixel.size),
    ):
        with pytest.raises(InputError, match="upper left of their pictures"):
            call()
    assert not list(tmp_path.iterdir())
    evaluate_run(reid, crops=wrong)  # which looks at no joints
    tiny = next(crop.joints for crop in rescaled(whole, 1 / 64).train if crop.can_pose)
    assert tiny is not None
    with pytest.raises(InputError, match="target pose is of another scale: all its joints lie within one pixel"):
        redraw(generator, pixel, next(crop.joints for crop in whole.train if crop.joints), tiny)


def test_a_run_without_held_out_identities_is_told_to_have_some(
    tiny_recipe: Build, people: Path, whole: CropTable, tmp_path: Path
) -> None:
    run = train_joint(tiny_recipe(data={"root": people}), whole, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match=r"validation_share is 0.*--data\.validation-share"):
        tune_fusion(run)
    with pytest.raises(InputError, match=r"validation_share is 0"):
        tune_fusion(run, share=0.4)


def test_the_command_writes_what_a_recipe_takes_over(
    reid: Path, joint: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fusion.yaml"
    kept = tmp_path / "kept"
    command = ["tune-fusion", str(reid), "--generator", str(joint), "--out", str(out), "--cache", str(kept)]
    main(command)
    said = capsys.readouterr().out
    assert "flip alone (weight 0)" in said
    assert "queries of 2 identities" in said
    figures = json.loads((tmp_path / "fusion.json").read_text())
    fusion = read_recipe(out).evaluation.fusion
    assert fusion.model_dump(mode="json") == FusionRecipe(
        **{name: figures["settings"][name] for name in ("weight", "poses", "by_realism")}
    ).model_dump(mode="json")
    best = figures["grid"][0]
    assert (best["weight"], best["poses"], best["by_realism"]) == (fusion.weight, fusion.poses, fusion.by_realism)
    assert ("Weight 0 wins" in said) == (fusion.weight == 0)
    moved = tmp_path / "moved"
    shutil.copytree(people, moved)
    main([*command, "--root", str(moved), "--poses", "1"])
    assert {row["poses"] for row in json.loads((tmp_path / "fusion.json").read_text())["grid"]} == {1}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["tune-fusion", str(reid), "--generator", str(joint), "--out", str(tmp_path / "fusion.txt")])
    assert "ends in .yaml" in capsys.readouterr().err


def test_weight_0_is_said_plainly(choice: FusionChoice) -> None:
    """Whatever won, the text for a win of weight 0 says that drawings bring nothing."""
    nothing = replace(choice, settings=choice.settings.changed(weight=0.0), best=choice.control)
    assert "Weight 0 wins" in choice_table(nothing)
    assert nothing.figures["difference_to_control"]["mAP"]["difference"] == 0
    some = replace(choice, settings=choice.settings.changed(weight=0.5))
    assert "Chosen: weight 0.5" in choice_table(some)
    assert "expect less on others" in choice_table(some)


def test_a_runs_file_of_poses_is_found_from_any_folder(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fusion = recipe.evaluation.fusion.changed(pose_file=Path("poses.csv"))
    changed = recipe.model_copy(update={"evaluation": recipe.evaluation.changed(fusion=fusion)})
    assert placed(changed).evaluation.fusion.pose_file == tmp_path / "poses.csv"
    assert placed(recipe).evaluation == recipe.evaluation
