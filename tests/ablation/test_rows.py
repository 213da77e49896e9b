"""Rows: what each changes, and which a recipe has no use for."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from posereid.ablation.rows import (
    FULL,
    PAPER,
    ROWS,
    TEXTURE,
    WARMUP,
    choose_rows,
    departures,
    joint_recipe,
    label,
    paper_note,
    published,
    reid_recipe,
)
from posereid.config import Recipe, bundled_recipes, read_recipe
from posereid.errors import InputError

Build = Callable[..., Recipe]

EPOCHS = {"reid": {"epochs": WARMUP + 1}}


@pytest.mark.parametrize(
    ("key", "section", "field", "value"),
    [
        ("blocks-3", "generator", "blocks", 3),
        ("no-appearance-discriminator", "losses", "appearance_discriminator", False),
        ("no-pose-discriminator", "losses", "pose_discriminator", False),
        ("no-semantic", "losses", "semantic", 0.0),
        ("literal-adain", "generator", "adain", "literal"),
        ("saturating", "losses", "saturating", True),
        ("start-appearance", "generator", "start", "appearance"),
        ("content-same-scale", "generator", "content", "same_scale"),
        ("semantic-spares-embedder", "losses", "semantic_teaches_embedder", False),
    ],
)
def test_a_row_changes_one_field_of_the_joint_training(
    tiny_recipe: Build, key: str, section: str, field: str, value: object
) -> None:
    recipe = tiny_recipe(**EPOCHS)
    content = recipe.model_copy(update={"seed": 7}).model_dump()
    content[section][field] = value
    assert joint_recipe(ROWS[key], recipe, 7).model_dump() == content
    assert reid_recipe(ROWS[key], recipe, 7) == reid_recipe(ROWS[FULL], recipe, 7)


def test_without_re_id_terms_the_generator_alone_does_without_them(tiny_recipe: Build) -> None:
    recipe = tiny_recipe(**EPOCHS)
    losses = joint_recipe(ROWS["not-joint"], recipe, 0).losses
    assert (losses.semantic, losses.quartet, losses.identity) == (0, 0, 0)
    assert reid_recipe(ROWS["not-joint"], recipe, 0).losses == recipe.losses


def test_the_paper_s_rows_have_no_texture_whatever_the_recipe_says(tiny_recipe: Build) -> None:
    recipe = tiny_recipe(generator={"texture": "limbs"}, **EPOCHS)
    assert joint_recipe(ROWS[FULL], recipe, 0).generator.texture == "none"
    assert joint_recipe(ROWS["texture"], recipe, 0).generator.texture == "limbs"


def test_a_row_with_a_warm_up_shares_its_generated_crops(tiny_recipe: Build) -> None:
    recipe = tiny_recipe(**EPOCHS)
    for key, maker in (("full-warmup", "full"), ("texture-warmup", "texture")):
        assert ROWS[key].maker == maker
        assert joint_recipe(ROWS[key], recipe, 1) == joint_recipe(ROWS[maker], recipe, 1)
        assert reid_recipe(ROWS[key], recipe, 1).reid.generated_warmup == WARMUP


def test_the_row_beyond_the_paper_is_the_recipe_as_given_where_it_goes_beyond() -> None:
    for path in sorted(bundled_recipes().glob("*.yaml")):
        recipe = read_recipe(path)
        if departures(recipe):
            assert joint_recipe(ROWS[TEXTURE], recipe, recipe.seed) == recipe
    default = read_recipe(bundled_recipes() / "default.yaml")
    assert departures(default)
    assert joint_recipe(ROWS[TEXTURE], default, default.seed) == default


def test_a_recipe_of_the_paper_takes_what_goes_beyond_it_from_the_default_recipe(tiny_recipe: Build) -> None:
    recipe, default = tiny_recipe(), read_recipe(bundled_recipes() / "default.yaml")
    assert departures(recipe) == ()
    beyond = joint_recipe(ROWS[TEXTURE], recipe, 0)
    content = recipe.model_dump()
    for section, fields in PAPER.items():
        for name in fields:
            content[section][name] = getattr(getattr(default, section), name)
    assert beyond.model_dump() == content
    assert joint_recipe(ROWS["texture-warmup"], recipe, 0) == beyond


def test_a_row_for_a_part_takes_its_value_from_the_recipe_and_no_other(tiny_recipe: Build) -> None:
    rich = tiny_recipe(
        generator={"texture": "limbs", "cameras": True},
        losses={"structure": 0.7, "perceptual": 0.3, "embedder_learns_generated": False},
        **EPOCHS,
    )
    parts = {
        "texture-alone": {"generator": {"texture": "limbs"}},
        "cameras-alone": {"generator": {"cameras": True}},
        "structure-alone": {"losses": {"structure": 0.7}},
        "perceptual-alone": {"losses": {"perceptual": 0.3, "embedder_learns_generated": False}},
    }
    for key, changes in parts.items():
        content = joint_recipe(ROWS[FULL], rich, 0).model_dump()
        for section, fields in changes.items():
            content[section] |= fields
        assert joint_recipe(ROWS[key], rich, 0).model_dump() == content
    chosen, _ = choose_rows(rich, (), synthetic=True)
    assert set(parts) <= {row.key for row in chosen}
    note = paper_note(rich)
    assert note is not None
    assert "generator.texture, generator.cameras, losses.structure, losses.perceptual" in note
    assert paper_note(tiny_recipe()) is None


def test_a_part_that_is_not_there_or_is_all_there_is_has_no_row(tiny_recipe: Build) -> None:
    chosen, notes = choose_rows(tiny_recipe(losses={"structure": 0.7}, **EPOCHS), (), synthetic=True)
    keys = {row.key for row in chosen}
    assert {"texture", "texture-warmup"} <= keys
    assert not keys & {"texture-alone", "cameras-alone", "structure-alone", "perceptual-alone"}
    assert "Row structure-alone is left out: its recipe is that of texture." in notes
    assert any("without it (losses.perceptual and losses.embedder_learns_generated)" in note for note in notes)


def test_the_papers_rows_stay_the_papers_whatever_the_recipe_adds(tiny_recipe: Build) -> None:
    richer = tiny_recipe(generator={"texture": "limbs", "cameras": True}, losses={"structure": 0.5})
    for key in ("full", "blocks-3", "no-semantic"):
        assert joint_recipe(ROWS[key], richer, 0) == joint_recipe(ROWS[key], tiny_recipe(), 0)


def test_what_is_compared_trains_in_float32(tiny_recipe: Build) -> None:
    recipe = tiny_recipe(runtime={"precision": "bf16-mixed"})
    assert reid_recipe(ROWS[FULL], recipe, 0).runtime.precision == "32-true"
    assert joint_recipe(ROWS[FULL], recipe, 0).runtime.precision == "bf16-mixed"


TABLE_3 = {
    "full": 93.5,
    "blocks-2": 88.6,
    "blocks-3": 89.7,
    "blocks-4": 93.5,
    "blocks-5": 93.5,
    "no-appearance-discriminator": 91.2,
    "no-pose-discriminator": 89.3,
    "no-semantic": 91.3,
}


def test_the_published_figures_are_table_3_where_the_row_has_its_number_of_blocks(tiny_recipe: Build) -> None:
    for blocks in (2, 3, 4):
        recipe = tiny_recipe(generator={"blocks": blocks})
        found = {key: published(row, recipe) for key, row in ROWS.items() if published(row, recipe)}
        assert found == {key: rank1 for key, rank1 in TABLE_3.items() if blocks == 4 or key.startswith("blocks-")}
        assert label(ROWS[FULL], recipe) == f"full model (N = {blocks})"


def test_the_paper_s_recipe_has_every_row_but_its_own_number_of_blocks(tiny_recipe: Build) -> None:
    rows, notes = choose_rows(tiny_recipe(generator={"blocks": 4}, **EPOCHS), (), synthetic=True)
    gone = {key for key in ROWS if key not in [row.key for row in rows]}
    assert "Row blocks-4 is left out: its recipe is that of full." in notes
    # Parts of what goes beyond the paper have rows where the default recipe has them.
    assert gone - {key for key in ROWS if key.endswith("-alone")} == {"blocks-4", "printed-weights"}
    assert len(notes) == len(gone)


def test_real_sets_have_no_true_renders(tiny_recipe: Build) -> None:
    rows, notes = choose_rows(tiny_recipe(**EPOCHS), (), synthetic=False)
    assert "true" not in [row.key for row in rows]
    assert any("true renders" in note for note in notes)
    with pytest.raises(InputError, match="--rows: true cannot be had: true renders can be made of a synthetic world"):
        choose_rows(tiny_recipe(**EPOCHS), ("true",), synthetic=False)


def test_the_rows_that_others_are_compared_with_are_always_there(tiny_recipe: Build) -> None:
    rows, notes = choose_rows(tiny_recipe(**EPOCHS), ("saturating",), synthetic=True)
    assert [row.key for row in rows] == ["full", "real", "saturating"]
    assert notes == ()


@pytest.mark.parametrize(
    ("asked", "changes", "sentence"),
    [
        (("blocks-6",), {}, r"--rows: found 'blocks-6', expected some of full, blocks-2, .*; correct the name\."),
        (("real", "real"), {}, r"--rows: found real twice"),
        (("blocks-2",), {}, r"--rows: blocks-2 cannot be had: its recipe is that of full; leave it out\."),
        (("full-warmup",), {"reid": {"epochs": 3}}, r"leave none of the 3 of reid\.epochs; leave it out\."),
        (
            ("blocks-5",),
            {"data": {"height": 48, "width": 16}},
            r"blocks-5 .* it must be a multiple of 32; leave it out",
        ),
    ],
)
def test_a_row_that_cannot_be_had_is_said(
    tiny_recipe: Build, asked: tuple[str, ...], changes: dict, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        choose_rows(tiny_recipe(**changes), asked, synthetic=True)


@pytest.mark.parametrize("path", sorted(bundled_recipes().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_has_the_rows_of_table_3(path: Path) -> None:
    rows, notes = choose_rows(read_recipe(path), (), synthetic=False)
    blocks = {int(match[1]) for row in rows if (match := re.fullmatch(r"blocks-(\d)", row.key))}
    assert blocks == {2, 3, 4, 5} - {read_recipe(path).generator.blocks}
    assert {"no-appearance-discriminator", "no-pose-discriminator", "no-semantic"} <= {row.key for row in rows}
    assert len(rows) + len(notes) == len(ROWS)
