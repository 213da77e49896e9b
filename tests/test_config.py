from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from posereid.config import Recipe, bundled_recipes, parse_recipe, read_recipe, write_recipe
from posereid.errors import InputError

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


# --- the paper's values ------------------------------------------------------------------------------------


def test_defaults_are_section_4s() -> None:
    recipe = Recipe()
    losses = recipe.losses
    weights = losses.adversarial, losses.reconstruction, losses.semantic, losses.quartet, losses.identity
    assert weights == (5, 10, 10, 1, 1)
    assert recipe.joint.epochs == 800
    assert recipe.generator.blocks == 4
    assert recipe.embedder.dropout == 0.5
    for optimiser in (recipe.joint.generator, recipe.joint.discriminators, recipe.joint.embedder):
        assert optimiser.learning_rate == 2e-4
        assert optimiser.constant_share == 0.5  # 400 of 800 epochs
        assert optimiser.betas == (0.5, 0.999)


def test_defaults_where_the_paper_is_silent() -> None:
    recipe = Recipe()
    assert (recipe.data.height, recipe.data.width) == (128, 64)
    assert (recipe.losses.margin, recipe.losses.intra_margin) == (-1, 0.01)
    assert recipe.losses.appearance_discriminator
    assert recipe.losses.pose_discriminator
    assert recipe.losses.quartets_with_generated
    assert not recipe.losses.saturating
    assert (recipe.losses.adversarial_warmup, recipe.losses.semantic_warmup) == (0, 0)
    assert (recipe.embedder.backbone, recipe.embedder.pretrained) == ("resnet50", True)
    assert (recipe.embedder.input_height, recipe.embedder.input_width) == (256, 128)
    assert recipe.joint.pairs_per_epoch == 4000


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_repository_reads(path: Path) -> None:
    assert isinstance(read_recipe(path), Recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_fusion_has_no_weight_until_it_is_chosen_and_long_recipes_hold_out_people_to_choose_on(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.evaluation.fusion.weight == (0.8 if path.stem == "demo" else 0)
    assert recipe.data.validation_share > 0 or path.stem in ("demo", "smoke")


def test_there_are_recipes_to_read() -> None:
    assert {"smoke.yaml", "demo.yaml"} <= {path.name for path in RECIPES}


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")


def test_every_field_says_what_it_is() -> None:
    silent = [name for name, field in fields_of(Recipe) if not field.description]
    assert silent == []


# --- mistakes in a recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"losses": {"adverserial": 1}}, r"no field 'losses\.adverserial'; did you mean 'adversarial'\?"),
        ({"joints": {}}, r"no field 'joints'; did you mean 'joint'\?"),
        (
            {"joint": {"generator": {"lr": 1}}},
            r"no field 'joint\.generator\.lr'; fields here are betas, .*learning_rate",
        ),
        (
            {"joint": {"generator": {"learning_rat": 1}}},
            r"no field 'joint\.generator\.learning_rat'; did you mean 'learning_rate'\?",
        ),
        ({"reid": {"optimizer": {}}}, r"no field 'reid\.optimizer'; did you mean 'optimiser'\?"),
    ],
    ids=str,
)
def test_a_misspelt_field_is_named_with_the_nearest_that_exists(content: dict, message: str) -> None:
    with pytest.raises(InputError, match=rf"^my\.yaml: the recipe has {message}"):
        parse_recipe(content, "my.yaml")


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"joint": {"epochs": "many"}}, "joint.epochs"),
        ({"joint": {"epochs": 2.5}}, "joint.epochs"),
        ({"joint": {"epochs": 0}}, "joint.epochs"),
        ({"joint": {"generator": {"betas": [0.5]}}}, "joint.generator.betas"),
        ({"losses": {"semantic": -1}}, "losses.semantic"),
        ({"losses": {"semantic": float("nan")}}, "losses.semantic"),
        ({"losses": {"margin": float("inf")}}, "losses.margin"),
        ({"losses": None}, "losses"),
        ({"losses": [1, 2]}, "losses"),
        ({"generator": {"blocks": 6}}, "generator.blocks"),
        ({"generator": {"adain": "other"}}, "generator.adain"),
        ({"embedder": {"dropout": 1.5}}, "embedder.dropout"),
        ({"runtime": {"device": "tpu"}}, "runtime.device"),
        ({"seed": -1}, "seed"),
        ({"data": {"root": 5}}, "data.root"),
    ],
    ids=str,
)
def test_a_value_that_no_recipe_has_is_refused_and_its_field_named(content: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(content, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: field ")
    assert f"'{field}" in message
    assert "\n" not in message


def test_adam_decay_rates_must_stay_below_one() -> None:
    with pytest.raises(InputError, match=r"joint\.generator\.betas"):
        parse_recipe({"joint": {"generator": {"betas": [0.5, 1.0]}}}, "my.yaml")


@pytest.mark.parametrize(("blocks", "height", "width"), [(4, 120, 64), (5, 128, 80), (3, 128, 36), (2, 130, 64)])
def test_crop_sizes_that_the_blocks_cannot_halve_are_refused(blocks: int, height: int, width: int) -> None:
    name, size = ("height", height) if height % 2**blocks else ("width", width)
    with pytest.raises(InputError, match=rf"data\.{name} is {size}.*multiple of {2**blocks}"):
        parse_recipe({"generator": {"blocks": blocks}, "data": {"height": height, "width": width}}, "my.yaml")


def test_a_recipe_cannot_be_changed_after_it_was_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().losses.semantic = 0.0


# --- files -------------------------------------------------------------------------------------------------


def test_a_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "seed": 7,
            "data": {"root": "some/where", "keypoints": ["a.csv", "b.csv"], "height": 64, "width": 32},
            "losses": {"adversarial": 0.5, "margin": -0.25},
            "joint": {"generator": {"betas": [0.9, 0.99], "learning_rate": 1e-3}},
        },
        "test",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe(recipe))
    assert read_recipe(path) == recipe
    assert recipe != Recipe()


def test_a_written_recipe_shows_every_field() -> None:
    written = yaml.safe_load(write_recipe(Recipe()))
    for name, _ in fields_of(Recipe):
        section: Any = written
        for part in name.split("."):
            assert part in section, name
            section = section[part]


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}"])
def test_an_empty_recipe_is_the_default_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text)
    assert read_recipe(path) == Recipe()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system ''"])
def test_yaml_that_would_build_python_objects_is_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.yaml"
    path.write_text(f"seed: {tag.format(trace)}\n")
    with pytest.raises(InputError, match=r"evil\.yaml.*cannot be read as YAML"):
        read_recipe(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "mapping of fields, found list"),
        (b"just words", "mapping of fields, found str"),
        (b"a: [1, 2", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"[" * 5000, "cannot be read as YAML"),
        (b"1: 2\n", "bad\\.yaml: "),
    ],
    ids=["list", "text", "unclosed", "not text", "deeply nested", "numbered field"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such recipe"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path)


def test_the_bundled_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe("recipes/smoke.yaml") == read_recipe(bundled_recipes() / "smoke.yaml")
    with pytest.raises(InputError, match="no such recipe"):
        read_recipe("elsewhere/smoke.yaml")
