"""A command offers those fields of a recipe that it reads, and refuses the others."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from posereid.cli import main
from posereid.commands.options import STAGES, options_of
from posereid.config import READ_BY, Recipe, Section, Stage
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.training.joint import train_joint
from posereid.training.pose import train_pose_estimator
from posereid.training.reid import train_reid

Build = Callable[..., Recipe]
Train = Callable[..., Path]

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.yaml"
ESTIMATOR = {"backbone": "test_resnet", "width": 4, "epochs": 1, "batch_size": 8, "log_every": 1}
STAGE_OF: dict[Train, Stage] = {train_joint: "joint", train_reid: "reid", train_pose_estimator: "pose"}


# What ablate reads is recorded beside its grid (ablation/test_ablate.py).
@pytest.mark.parametrize("train", STAGE_OF)
def test_a_stage_reads_what_the_table_says(
    train: Train,
    crops: CropTable,
    tiny_recipe: Build,
    reading: Callable[[], AbstractContextManager[set[str]]],
    assert_reads: Callable[[Stage, set[str]], None],
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(pose_estimator=ESTIMATOR, joint={"epochs": 1}, reid={"epochs": 1})
    with reading() as seen:
        train(recipe, crops, tmp_path / "run", progress=False)
    assert_reads(STAGE_OF[train], seen)


@pytest.mark.parametrize("command", STAGES)
def test_help_explains_what_the_command_reads_and_nothing_else(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    offered = set(re.findall(r"--([a-z-]+(?:\.[a-z0-9-]+)+)", text))
    sections = {place.split(".")[0].replace("_", "-") for place in READ_BY[STAGES[command]]}
    assert {place.split(".")[0] for place in offered} == sections - {"seed"}
    for section, info in options_of(STAGES[command]).model_fields.items():
        if not (isinstance(info.annotation, type) and issubclass(info.annotation, Section)) or section == "base":
            continue
        assert Recipe.model_fields[section].description
        for name, inner in info.annotation.model_fields.items():
            assert inner.description, f"{section}.{name} has no description"
            assert f"{section}.{name}".replace("_", "-") in text


@pytest.mark.parametrize(
    ("command", "option", "sentence"),
    [
        (
            "train",
            "--reid.optimiser.learning-rate=1",
            "does not read reid; give it to posereid train-reid or posereid ablate.",
        ),
        ("train", "--pose_estimator.width", "does not read pose_estimator; give it to posereid train-pose or"),
        (
            "train",
            "--augmentation.poses-per-crop",
            "give it to posereid augment as --poses-per-crop or posereid ablate.",
        ),
        ("train", "--evaluation.reranking.k1", "give it to posereid evaluate as --reranking.k1 or posereid ablate."),
        (
            "train-reid",
            "--losses.saturating",
            "does not read losses.saturating; give it to posereid train or posereid ab",
        ),
        ("train-reid", "--losses.no-saturating", "does not read losses.saturating; give it to"),
        ("train-reid", "--generator.texture", "does not read generator; give it to posereid train or posereid ablate."),
        (
            "train-pose",
            "--embedder.no-pretrained",
            "does not read embedder; give it to posereid train or posereid train-r",
        ),
        ("train-pose", "--joint.batch-size", "does not read joint; give it to posereid train or posereid ablate."),
        ("ablate", "--filtering.pose-by", "does not read filtering; give it to posereid filter as --pose-by."),
    ],
)
def test_an_option_without_effect_is_refused_in_one_sentence(
    command: str, option: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, str(SMOKE), "--out", str(tmp_path / "run"), option, "2"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"posereid: {option.split('=')[0]}: posereid {command} does not read ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_options_change_the_recipe_and_leave_the_rest_of_it_alone(tiny_recipe: Build) -> None:
    recipe = tiny_recipe(losses={"semantic": 3, "margin": -2}, evaluation={"fusion": {"weight": 0.3}})
    options = options_of("reid").of(recipe)
    assert options.recipe() == recipe
    changed = options.changed(losses={"margin": -1.5, "quartet": 1, "identity": 1, "intra_margin": 0}, seed=9).recipe()
    expected = recipe.changed(losses=recipe.losses.model_dump() | {"margin": -1.5, "intra_margin": 0}, seed=9)
    assert changed == expected


def test_a_run_is_resumed_whatever_sections_say_that_it_does_not_read(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    recipe = tiny_recipe(reid={"epochs": 1})
    run = train_reid(recipe, crops, tmp_path / "run", progress=False)
    others = {
        "generator": {"texture": "limbs"},
        "losses": {"semantic": 2},
        "evaluation": {"pairs": 5},
        "joint": {"flip": 0},
    }
    train_reid(tiny_recipe(reid={"epochs": 1}, **others), crops, run, resume=True, progress=False)
    for changes, place in (
        ({"losses": {"margin": -2}}, "losses.margin is -2.0, was -1.0"),
        ({"seed": 3}, "seed is 3, was 0"),
    ):
        with pytest.raises(InputError, match=place):
            train_reid(tiny_recipe(reid={"epochs": 1}, **changes), crops, run, resume=True, progress=False)
