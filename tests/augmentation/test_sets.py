import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posereid.augmentation.sets import (
    SCHEMA_VERSION,
    GeneratedSetInfo,
    ManifestRow,
    check_generated_set,
    listing_files,
    manifest_rows,
    manifest_text,
    read_manifest,
    read_set,
    set_text,
    train_folder,
    with_generated,
)
from posereid.augmentation.targets import Drawing
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.errors import InputError

MAKER = "a" * 64
OLD_SET = {
    "source_root": "world",
    "checkpoint": MAKER,
    "seed": 3,
    "poses_per_crop": 1,
    "drawn": 3,
    "training_crops_without_pose": 0,
}

names = st.from_regex(r"[a-z0-9_]{1,20}\.jpg", fullmatch=True)
scores = st.none() | st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    ManifestRow,
    name=names,
    source=names,
    target_pose=names,
    identity=st.integers(1, 9999),
    camera=st.integers(1, 99),
    checkpoint=st.sampled_from([MAKER, "abc"]),
    identity_distance=scores,
    pose_score=scores,
    realism=scores,
    near_duplicate_of=st.just("") | names,
    dropped=st.sampled_from(["", "pose", "near duplicate", 'a "quoted", reason']),
)


def info(**changes: Any) -> GeneratedSetInfo:
    return GeneratedSetInfo(**OLD_SET | {"schema_version": SCHEMA_VERSION} | changes)


def write_set(folder: Path, listed: list[ManifestRow], layout: str = "market1501", **changes: Any) -> Path:
    """A generated set of plain pictures."""
    crops = folder / train_folder(layout)
    crops.mkdir(parents=True)
    for row in listed:
        if not row.dropped:
            Image.new("RGB", (4, 8)).save(crops / row.name)
    for name, text in listing_files(layout, listed).items():
        (folder / name).write_text(text)
    (folder / "set.json").write_text(set_text(info(**changes)))
    return folder


@pytest.fixture
def drawn(crops: CropTable) -> list[ManifestRow]:
    """Three drawings of the world's training crops."""
    plan = [Drawing(f"{crops.train[n].path.stem}_p1.jpg", n, n + 1) for n in range(3)]
    return manifest_rows(crops.train, plan, MAKER)


# --- manifest ----------------------------------------------------------------------------------------------


@given(st.lists(rows, min_size=1, max_size=5, unique_by=lambda row: row.name))
def test_a_manifest_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, listed: list[ManifestRow]
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "manifest.csv").write_text(manifest_text(listed))
    assert read_manifest(folder) == listed


def test_a_manifest_of_an_older_version_has_nothing_in_the_newer_columns(tmp_path: Path) -> None:
    header = "name,source,target_pose,identity,camera,checkpoint"
    (tmp_path / "manifest.csv").write_text(f"{header}\na_p1.jpg,a.jpg,b.jpg,1,2,abc\n")
    assert read_manifest(tmp_path) == [ManifestRow("a_p1.jpg", "a.jpg", "b.jpg", 1, 2, "abc")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("../a.jpg,a.jpg,b.jpg,1,2,abc,,,,,", "without folders"),
        ("a.jpg,,b.jpg,1,2,abc,,,,,", "the source ''"),
        ("a.jpg,a.jpg,b.jpg,one,2,abc,,,,,", "the identity 'one'"),
        ("a.jpg,a.jpg,b.jpg,1_0,2,abc,,,,,", "the identity '1_0'"),
        ("a.jpg,a.jpg,b.jpg,1,99999999999,abc,,,,,", "at most ten digits"),
        ("a.jpg,a.jpg,b.jpg,1,2,abc,near,,,,", "the identity_distance 'near'"),
        ("a.jpg,a.jpg,b.jpg,1,2,abc,,,,,\na.jpg,a.jpg,b.jpg,1,2,abc,,,,,", "'a.jpg' again"),
    ],
)
def test_a_manifest_line_that_makes_no_sense_is_named(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(manifest_text([]) + line + "\n")
    with pytest.raises(InputError, match=r"manifest\.csv, line [23]: ") as refused:
        read_manifest(tmp_path)
    assert said in str(refused.value)


def test_a_folder_without_a_manifest_is_no_generated_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.csv"):
        read_manifest(tmp_path)


# --- layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["market1501", "csv"])
def test_a_set_in_its_sources_layout_is_read_with_the_same_people(
    layout: str, drawn: list[ManifestRow], tmp_path: Path
) -> None:
    table = load_crops(write_set(tmp_path / "set", drawn, layout))
    assert table.layout == layout
    found = sorted((c.name, c.identity, c.camera, str(c.source), str(c.target_pose)) for c in table.train)
    assert found == sorted((r.name, r.identity, r.camera, r.source, r.target_pose) for r in drawn)


def test_a_set_drawn_from_msmt17_is_read_as_msmt17_with_the_same_people(tmp_path: Path) -> None:
    real = tmp_path / "msmt17"
    paths = {
        f"{person:04}/{person:04}_00{n}_{camera:02}_0303morning_0008_{n}.jpg": person
        for person, camera in ((0, 1), (7, 15))
        for n in (0, 1)
    }
    for path in paths:
        (real / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(real / "train" / path)
    (real / "test").mkdir()
    (real / "list_train.txt").write_text("".join(f"{path} {person}\n" for path, person in paths.items()))
    source = load_crops(real)
    assert source.layout == "msmt17"
    plan = [Drawing(f"{crop.path.stem}_p1.jpg", n, 3 - n) for n, crop in enumerate(source.train)]
    folder = write_set(tmp_path / "set", manifest_rows(source.train, plan, MAKER), source.layout)
    table = load_crops(folder)
    assert table.layout == "msmt17"
    assert not table.left_out()
    people = {crop.name: (crop.identity, crop.camera) for crop in source}
    assert len(table.train) == 4
    assert all((crop.identity, crop.camera) == people[str(crop.source)] for crop in table.train)
    assert len(with_generated(source, table).train) == 8


@pytest.mark.parametrize("layout", ["market1501", "csv", "msmt17"])
def test_a_crop_that_was_left_out_has_no_file_and_is_not_missed(
    layout: str, drawn: list[ManifestRow], tmp_path: Path
) -> None:
    first, *rest = (
        drawn if layout != "msmt17" else [replace(r, name=f"0001_000_01_x_{n}.jpg") for n, r in enumerate(drawn)]
    )
    folder = write_set(tmp_path / "set", [replace(first, dropped="pose"), *rest], layout)
    table = load_crops(folder)
    assert table.left_out() == []
    assert sorted(table.names) == sorted(row.name for row in rest)
    assert len(check_generated_set(folder)) == 3


# --- set.json ----------------------------------------------------------------------------------------------


def test_what_a_set_is_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = info(recipe={"height": 64}, plan={"clusters": [{"crops": 3}]}, creation={"device": "cpu"}, identities=2)
    (tmp_path / "set.json").write_text(set_text(written))
    assert read_set(tmp_path) == written


def test_a_set_of_an_older_version_still_loads(crops: CropTable, drawn: list[ManifestRow], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", drawn)
    (folder / "set.json").write_text(json.dumps(OLD_SET))
    lines = [",".join(line.split(",")[:6]) for line in (folder / "manifest.csv").read_text().splitlines()]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    assert read_set(folder).schema_version == 0
    assert check_generated_set(folder, checkpoint=MAKER) == drawn
    assert len(with_generated(crops, load_crops(folder)).train) == len(crops.train) + 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (set_text(info())[:40], "text that is not JSON, or cut short"),
        ("", "text that is not JSON, or cut short"),
        ("[" * 100_000, "text that is not JSON, or cut short"),
        ("[]", "as 'the whole'"),
        (json.dumps(OLD_SET | {"seed": "3"}), "'3' as 'seed'"),
        (json.dumps({"seed": 3}), "no 'source_root'"),
        (json.dumps(OLD_SET | {"schema_version": SCHEMA_VERSION + 1}), "version of posereid that wrote it"),
        (json.dumps(OLD_SET | {"checkpoint": "x" * 10_000}), "as 'checkpoint'"),
    ],
)
def test_a_damaged_set_file_is_refused_in_one_short_sentence(
    text: str, said: str, drawn: list[ManifestRow], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", drawn)
    (folder / "set.json").write_text(text)
    with pytest.raises(InputError, match=r"set\.json: found ") as refused:
        check_generated_set(folder)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


# --- agreement ---------------------------------------------------------------------------------------------


def lose_two(folder: Path) -> None:
    for path in sorted((folder / "bounding_box_train").iterdir())[:2]:
        path.unlink()


def add_two(folder: Path) -> None:
    for name in ("0001_c1s1_000001_77.jpg", "0001_c1s1_000001_78.jpg"):
        Image.new("RGB", (4, 8)).save(folder / "bounding_box_train" / name)


def other_set_file(folder: Path) -> None:
    (folder / "set.json").write_text(set_text(info(checkpoint="b" * 64)))


def other_row(folder: Path) -> None:
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace(MAKER, "b" * 64, 1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_two, "names 2 crops whose files are missing, for example"),
        (add_two, "holds 2 images that its manifest.csv does not account for, for example '0001_c1s1_000001_77.jpg'"),
        (other_set_file, "drawn by the checkpoint 'aaa"),
        (other_row, "drawn by the checkpoint 'bbb"),
        (lambda folder: (folder / "set.json").write_text("{"), "not JSON"),
    ],
)
def test_a_set_that_does_not_agree_with_itself_is_refused_for_training(
    damage: Callable[[Path], object], said: str, crops: CropTable, drawn: list[ManifestRow], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", drawn)
    damage(folder)
    with pytest.raises(InputError) as refused:
        with_generated(crops, load_crops(folder))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_set_that_another_generator_drew_is_refused_where_one_is_stated(
    drawn: list[ManifestRow], tmp_path: Path
) -> None:
    folder = write_set(tmp_path / "set", drawn)
    assert check_generated_set(folder, checkpoint=MAKER) == drawn
    with pytest.raises(InputError, match="give the set that this checkpoint drew"):
        check_generated_set(folder, checkpoint="b" * 64)


def test_a_set_without_a_set_file_is_checked_by_its_manifest(drawn: list[ManifestRow], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", drawn)
    (folder / "set.json").unlink()
    assert check_generated_set(folder) == drawn


def test_real_crops_are_no_generated_set(crops: CropTable) -> None:
    with pytest.raises(InputError, match=r"manifest\.csv"):
        with_generated(crops, crops)


def test_people_that_the_real_crops_lack_are_refused(
    crops: CropTable, drawn: list[ManifestRow], tmp_path: Path
) -> None:
    generated = load_crops(write_set(tmp_path / "set", drawn))
    assert len(with_generated(crops, generated).train) == len(crops.train) + 3
    strangers = generated.with_crops(replace(crop, identity=crop.identity + 5000) for crop in generated)
    with pytest.raises(InputError, match="different data sets"):
        with_generated(crops, strangers)
