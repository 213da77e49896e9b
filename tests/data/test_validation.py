"""Identities held out for validation: who they are, what training keeps, and the search among them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.augmentation.drawing import augment
from posereid.augmentation.sets import with_generated
from posereid.commands.common import crops_of
from posereid.config import Recipe
from posereid.data.crops import DISTRACTOR, JUNK, Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.data.validation import validation_identities, validation_search, without_validation
from posereid.errors import InputError
from posereid.training.checkpoint import new_generator

Row = tuple[int, int]
"""Identity and camera."""


def table(rows: list[Row], split: str = "train", source: str | None = None) -> CropTable:
    crops = tuple(
        Crop(Path(f"{number:03}.jpg"), f"{number:03}.jpg", identity, camera, split, source=source)  # type: ignore[arg-type]
        for number, (identity, camera) in enumerate(rows)
    )
    return CropTable(Path("set"), "csv", crops)


def many(identities: int) -> CropTable:
    return table([(identity, camera) for identity in range(1, identities + 1) for camera in (1, 2, 1, 2)])


rows = st.lists(st.tuples(st.integers(-1, 30), st.integers(1, 4)), min_size=30, max_size=120)


@given(rows=rows, share=st.floats(0.2, 0.6))
def test_training_and_validation_share_no_identity_and_lose_none(rows: list[Row], share: float) -> None:
    crops = table(rows)
    known = {identity for identity, _ in rows if identity > 0}
    held = round(share * len(known))
    if min(held, len(known) - held) < 2:
        with pytest.raises(InputError, match="validation_share"):
            without_validation(crops, share)
        return
    kept = {crop.identity for crop in without_validation(crops, share) if crop.identified}
    out = validation_identities(crops, share)
    assert len(out) == held
    assert kept | out == known
    assert not kept & out


@given(rows=rows, share=st.floats(0.2, 0.6))
def test_the_search_has_one_query_per_identity_and_camera_and_each_has_an_answer(rows: list[Row], share: float) -> None:
    crops = table(rows)
    try:
        search = validation_search(crops, share)
    except InputError:
        return
    held = validation_identities(crops, share)
    assert sorted(search.names) == sorted(crop.name for crop in crops if crop.identity in held)
    places = [(query.identity, query.camera) for query in search.query]
    assert len(places) == len(set(places))
    for query in search.query:
        same_place = [c.name for c in crops if (c.identity, c.camera) == (query.identity, query.camera)]
        assert query.name == min(same_place)
        assert any(c.identity == query.identity and c.camera != query.camera for c in search.gallery)
    # Who is no query had no other camera whose gallery crops would answer it.
    for camera_crop in search.gallery:
        if (camera_crop.identity, camera_crop.camera) not in places:
            cameras = {c.camera for c in search.gallery if c.identity == camera_crop.identity} - {camera_crop.camera}
            counts = [sum((c.identity, c.camera) == (camera_crop.identity, cam) for c in crops) for cam in cameras]
            assert max(counts, default=0) <= 1


def test_the_choice_depends_on_the_identities_alone() -> None:
    crops = many(40)
    held = validation_identities(crops, 0.25)
    assert held == validation_identities(crops.with_crops(reversed(crops.crops)), 0.25)
    assert held == validation_identities(table([(identity, 7) for identity in range(40, 0, -1)]), 0.25)
    assert held < validation_identities(crops, 0.5)
    assert len(held) == 10
    # It is written down here so that no later version holds out other people than those a run was trained without.
    assert sorted(held) == [3, 4, 8, 9, 10, 13, 17, 18, 29, 39]


def test_an_identity_that_one_camera_saw_is_gallery_only() -> None:
    crops = table([(identity, camera) for identity in range(1, 9) for camera in (1, 2 if identity > 4 else 1) * 2])
    held = validation_identities(crops, 0.5)
    lone = {identity for identity in held if identity <= 4}
    assert lone
    assert lone < held
    search = validation_search(crops, 0.5)
    assert {query.identity for query in search.query} == held - lone
    assert {crop.identity for crop in search.gallery} == held
    assert f"{len(lone)} identities are in the gallery alone" in search.notes[0]


def test_what_belongs_to_nobody_and_what_was_drawn_does_not_count() -> None:
    crops = many(8)
    others = table([(DISTRACTOR, 1), (JUNK, 1), (DISTRACTOR, 2)])
    drawn = table([(identity, 1) for identity in range(1, 9)], source="0001.jpg")
    mixed = crops.with_crops([*crops, *others, *drawn])
    held = validation_identities(mixed, 0.25)
    assert held == validation_identities(crops, 0.25)
    assert not any(crop.generated for crop in validation_search(mixed, 0.25))
    kept = without_validation(mixed, 0.25)
    assert {crop.identity for crop in kept if crop.generated} == set(range(1, 9)) - held
    assert sum(not crop.identified for crop in kept) == 3


def test_a_share_of_nothing_changes_nothing_and_gives_no_search() -> None:
    crops = many(8)
    assert without_validation(crops, 0) is crops
    with pytest.raises(InputError, match=r"validation_share is 0"):
        validation_search(crops, 0)


@pytest.mark.parametrize(("identities", "share"), [(8, 0.1), (8, 0.9), (3, 0.5), (8, 1.0), (8, -0.1)])
def test_shares_that_leave_too_few_are_refused(identities: int, share: float) -> None:
    with pytest.raises(InputError, match="validation_share"):
        without_validation(many(identities), share)


def test_people_seen_once_per_camera_cannot_be_searched_for() -> None:
    crops = table([(identity, camera) for identity in range(1, 9) for camera in (1, 2)])
    with pytest.raises(InputError, match="two cameras"):
        validation_search(crops, 0.5)


def test_commands_train_without_the_held_out_and_say_how_many(
    crops: CropTable, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.model_validate({"data": {"root": world, "validation_share": 0.5}})
    read = crops_of(recipe)
    assert "2 training identities" in capsys.readouterr().out
    held = validation_identities(crops, 0.5)
    assert {crop.identity for crop in read.train} == {crop.identity for crop in crops.train} - held
    assert read.query.names == crops.query.names
    assert read.gallery.names == crops.gallery.names
    whole = crops_of(Recipe.model_validate({"data": {"root": world}}))
    assert whole.names == crops.names


def test_generated_crops_of_held_out_identities_are_refused(
    crops: CropTable, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    kept = without_validation(crops, 0.5)
    sets = []
    for name, table in (("all", crops), ("kept", kept)):
        augment(
            new_generator(recipe),
            table,
            tmp_path / name,
            recipe.augmentation,
            seed=0,
            checkpoint="0" * 64,
            progress=False,
        )
        sets.append(load_crops(tmp_path / name))
    assert len(with_generated(kept, sets[1])) == len(kept) + len(sets[1])
    assert not {crop.identity for crop in sets[1]} & validation_identities(crops, 0.5)
    with pytest.raises(InputError, match="does not train on"):
        with_generated(kept, sets[0])
