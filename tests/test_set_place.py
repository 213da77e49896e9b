"""A run's data set that lies elsewhere now, or another set in its place: what comes along of the run's recipe."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posereid.commands.augmentation import Augment
from posereid.commands.common import SetPlace, every_crop_of
from posereid.commands.evaluation import Evaluate
from posereid.commands.filtering import Filter
from posereid.commands.tune import TuneFusion
from posereid.config import Recipe, parse_recipe
from posereid.errors import InputError

Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


@pytest.fixture
def home(world: Path, tmp_path: Path) -> Path:
    """The world with its keypoint files in a folder of the set where no reader looks for them."""
    home = tmp_path / "home"
    shutil.copytree(world, home)
    (home / "joints").mkdir()
    for path in home.glob("*annotation*.csv"):
        path.rename(home / "joints" / path.name.replace("annotation", "poses"))
    return home


def recipe_of(root: Path | None, *keypoints: Path, layout: str = "market1501") -> Recipe:
    data = {"root": root and str(root), "layout": layout, "keypoints": [str(path) for path in keypoints] or None}
    return parse_recipe({"data": data}, "the test's recipe")


def test_keypoints_and_layout_move_with_their_set(home: Path, tmp_path: Path, said: Said) -> None:
    outside = tmp_path / "outside.csv"
    inside = sorted((home / "joints").iterdir())
    shutil.copy(inside[0], outside)
    (home / "crops.csv").write_text("path,identity,camera\n")  # which an automatic layout would take
    for keypoints in (inside, [outside, inside[1]]):
        recipe = recipe_of(home, *keypoints)
        before = every_crop_of(recipe)
        moved = home.rename(tmp_path / "moved")
        after = every_crop_of(recipe, SetPlace(root=moved))
        assert [(crop.name, crop.split, crop.joints is None) for crop in after] == [
            (crop.name, crop.split, crop.joints is None) for crop in before
        ]
        assert any(crop.joints for crop in after.query)
        assert "recipe" not in said()
        moved.rename(home)


def test_what_does_not_fit_another_set_is_left_and_said(home: Path, world: Path, tmp_path: Path, said: Said) -> None:
    other = tmp_path / "other"
    (other / "pictures").mkdir(parents=True)
    lines = ["path,identity,camera,split"]
    for number, path in enumerate(sorted((world / "query").glob("*.jpg"))):
        shutil.copy(path, other / "pictures" / f"{number}.jpg")
        lines.append(f"pictures/{number}.jpg,{number},1,query")
    (other / "crops.csv").write_text("\n".join(lines) + "\n")
    first = sorted((home / "joints").iterdir())[0]
    for recipe, wanted in (
        (recipe_of(home), "layout market1501 do not fit it"),
        (recipe_of(home, first, layout="auto"), "do not fit it"),  # it lay inside: there is none in the other set
        (recipe_of(tmp_path / "gone", first, layout="csv"), "no crop has joints in them."),
    ):
        assert len(every_crop_of(recipe, SetPlace(root=other))) == len(lines) - 1
        assert f"{other} is read on its own" in (text := said())
        assert wanted in text
    with pytest.raises(InputError, match=r"another\.csv"):
        every_crop_of(recipe_of(home), SetPlace(root=other, layout="csv", keypoints=(tmp_path / "another.csv",)))
    # A set with keypoint files of its own is read with the recipe's, and that is said.
    elsewhere = shutil.copy(first, tmp_path / "elsewhere.csv")
    every_crop_of(recipe_of(home, Path(elsewhere)), SetPlace(root=world))
    assert "has keypoint files of its own" in said()


def test_layout_and_keypoints_can_be_given_beside_the_root_or_without_it(home: Path) -> None:
    joints = tuple(sorted((home / "joints").iterdir()))
    assert any(crop.joints for crop in every_crop_of(recipe_of(home), SetPlace(keypoints=joints)))
    (home / "crops.csv").write_text("path,identity,camera\n")
    place = SetPlace(root=home, layout="market1501", keypoints=joints)
    assert every_crop_of(recipe_of(None, layout="csv"), place).layout == "market1501"
    with pytest.raises(InputError, match=r"give --root FOLDER"):
        every_crop_of(recipe_of(None), SetPlace())
    with pytest.raises(InputError, match=r"give --data\.root FOLDER"):
        every_crop_of(recipe_of(None))
    for command in (Augment, Evaluate, Filter, TuneFusion):
        assert "place" in command.__dataclass_fields__
