import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posereid.augmentation.drawing import augment
from posereid.augmentation.sets import with_generated
from posereid.cli import main
from posereid.config import AugmentationRecipe, Recipe
from posereid.data import shards
from posereid.data.batches import CropImages
from posereid.data.check import check_crops
from posereid.data.crops import Crop, CropTable
from posereid.data.images import open_crop, open_mask, read_bytes
from posereid.data.layouts import load_crops
from posereid.data.shards import INDEX, write_shards
from posereid.errors import InputError
from posereid.features import read_image_folder
from posereid.pose.joints import Joints
from posereid.training.joint import new_generator

SMALL = 60_000
"""Bytes of a shard, a few crops of the small world."""

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def sharded(crops: CropTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(crops, tmp_path_factory.mktemp("sharded") / "set", shard_bytes=SMALL).folder


@pytest.fixture(scope="module")
def generated(crops: CropTable, tiny_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = new_generator(tiny_recipe()).eval()
    out = tmp_path_factory.mktemp("drawn") / "set"
    recipe = AugmentationRecipe(poses_per_crop=1, batch_size=8)
    augment(generator, crops, out, recipe, seed=3, checkpoint="abc", progress=False)
    return out


def assert_equal_tables(found: CropTable, wanted: CropTable) -> None:
    assert found.layout == wanted.layout
    assert found.fingerprint == wanted.fingerprint
    assert len(found) == len(wanted)
    for crop, other in zip(found, wanted, strict=True):
        for field in ("name", "split", "identity", "camera", "source", "target_pose", "generated"):
            assert getattr(crop, field) == getattr(other, field)
        assert found.path_in_set(crop) == wanted.path_in_set(other)
        assert read_bytes(crop.path, crop.place) == other.path.read_bytes()
        assert (crop.mask_path is None) == (other.mask_path is None)
        assert (crop.joints is None) == (other.joints is None)
        if crop.joints is not None and other.joints is not None:
            assert crop.joints.xy.dtype == np.float32
            assert np.array_equal(crop.joints.xy, other.joints.xy)
            assert np.array_equal(crop.joints.present, other.joints.present)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def image(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 8), (colour, 0, 0)).save(path)
    return path


# --- round trip --------------------------------------------------------------------------------------------


def test_a_sharded_set_reads_like_its_folder(crops: CropTable, sharded: Path) -> None:
    table = load_crops(sharded)
    assert len(list(sharded.glob("shard-*.tar"))) > 2
    assert table.root == sharded
    assert_equal_tables(table, crops)
    assert_equal_tables(load_crops(str(sharded), "shards"), crops)
    assert all(str(crop.path).startswith(f"{sharded}/shard-0") and crop.path.name == crop.name for crop in table)


def test_pixels_and_masks_are_those_of_the_folder(crops: CropTable, sharded: Path) -> None:
    assert any(crop.mask_path for crop in crops)
    table = load_crops(sharded)
    images, others = CropImages(table, 32, 16), CropImages(crops, 32, 16)
    for position, crop in enumerate(table):
        assert (images.image(position) == others.image(position)).all()
        assert np.array_equal(images.joints(position).xy, others.joints(position).xy)
        mask, other = images.mask(position), others.mask(position)
        assert mask is not None
        assert other is not None
        assert (mask == other).all()
        assert np.array_equal(np.asarray(open_mask(crop)), np.asarray(open_mask(crops[position])))


def test_generated_crops_keep_their_origin(crops: CropTable, sharded: Path, generated: Path, tmp_path: Path) -> None:
    drawn = load_crops(generated)
    write_shards(drawn, tmp_path / "drawn", shard_bytes=SMALL)
    table = load_crops(tmp_path / "drawn")
    assert_equal_tables(table, drawn)
    assert all(crop.generated and crop.target_pose for crop in table)
    both = with_generated(load_crops(sharded), table)
    assert both.fingerprint == with_generated(crops, drawn).fingerprint


def test_equal_sets_give_equal_bytes_wherever_they_lie(crops: CropTable, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "query", (1, 1))
    for number, table in enumerate((crops, load_crops(tmp_path / "elsewhere"))):
        write_shards(table, tmp_path / str(number), shard_bytes=SMALL)
    assert files_in(tmp_path / "0") == files_in(tmp_path / "1")


def test_shards_can_be_cut_anew(crops: CropTable, sharded: Path, tmp_path: Path) -> None:
    one = write_shards(load_crops(sharded), tmp_path / "one")
    assert one.shards == 1
    assert one.crops == one.masks == len(crops)
    write_shards(load_crops(tmp_path / "one"), tmp_path / "many", shard_bytes=SMALL)
    assert files_in(tmp_path / "many") == files_in(sharded)


def test_the_size_of_a_shard_is_where_it_is_closed(crops: CropTable, sharded: Path, tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in sorted(sharded.glob("*.tar"))]
    assert all(SMALL <= size < 2 * SMALL for size in sizes[:-1])
    assert write_shards(crops.query, tmp_path / "each", shard_bytes=1).shards == len(crops.query)
    assert_equal_tables(load_crops(tmp_path / "each"), crops.query)


def test_names_that_repeat_survive(tmp_path: Path) -> None:
    rows = ["path,identity,camera,split"]
    for split in ("train", "query", "gallery"):
        for folder in ("one", "two", "one/deep"):
            image(tmp_path / "own" / split / folder / "a.b.png", len(rows) * 20)
            rows.append(f"{split}/{folder}/a.b.png,{len(rows)},1,{split}")
    (tmp_path / "own" / "crops.csv").write_text("\n".join(rows))
    table = load_crops(tmp_path / "own")
    write_shards(table, tmp_path / "set")
    assert_equal_tables(load_crops(tmp_path / "set"), table)


def test_junk_and_distractors_stay_what_they_are(tmp_path: Path) -> None:
    for name in ("-1_c1s1_000001_01.jpg", "0000_c2s1_000001_01.jpg", "0001_c3s1_000001_01.jpg.jpg"):
        image(tmp_path / "own" / "bounding_box_test" / name)
    write_shards(load_crops(tmp_path / "own"), tmp_path / "set")
    table = load_crops(tmp_path / "set")
    assert table.gallery.identities.tolist() == [-1, 0, 1]
    assert [crop.identified for crop in table] == [False, False, True]


@given(values=st.lists(st.floats(0, 100_000, width=32), min_size=36, max_size=36), absent=st.integers(0, 2**18 - 1))
def test_joints_survive_exactly(values: list[float], absent: int) -> None:
    present = np.array([not absent >> joint & 1 for joint in range(18)])
    xy = np.where(present[:, None], np.array(values, np.float32).reshape(18, 2), 0).astype(np.float32)
    points = json.loads(json.dumps(shards._joint_list(Joints(xy, present))))
    found = shards._joints(points)
    assert np.array_equal(found.xy, xy)
    assert np.array_equal(found.present, present)


def test_other_joints_can_be_given(crops: CropTable, sharded: Path, tmp_path: Path) -> None:
    assert any(crop.joints for crop in crops)
    assert not any(crop.joints for crop in load_crops(sharded, keypoints=[]))
    name = crops.query[0].name
    given_file = tmp_path / "k.csv"
    given_file.write_text(f"name:keypoints_y:keypoints_x\n{name}: {[5] * 18}: {[3] * 18}")
    assert [crop.name for crop in load_crops(sharded, keypoints=[given_file]) if crop.joints] == [name]


def test_what_the_reader_left_out_is_noted(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "own")
    image(tmp_path / "own" / "query" / "IMG_1.jpg")
    write_shards(load_crops(tmp_path / "own"), tmp_path / "set")
    note = load_crops(tmp_path / "set").notes[-1]
    assert note.startswith("1 files")
    assert "IMG_1.jpg" in note


def test_features_carry_the_names_of_the_folder(crops: CropTable, world: Path, sharded: Path) -> None:
    assert read_image_folder(sharded).names == read_image_folder(world).names


def test_forked_processes_and_this_one_read_at_once(crops: CropTable, sharded: Path) -> None:
    table = load_crops(sharded)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_digest, list(table))
    assert found == [_digest(crop) for crop in crops]


def _digest(crop: Crop) -> str:
    return hashlib.sha256(open_crop(crop).tobytes()).hexdigest()


def test_other_readers_find_samples_by_their_keys(crops: CropTable, sharded: Path) -> None:
    """WebDataset's convention: neighbours with the same name up to its first dot are one sample."""
    samples: list[dict[str, bytes]] = []
    keys: list[str] = []
    for path in sorted(sharded.glob("shard-*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                key, _, ending = member.name.partition(".")
                assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
                if not keys or keys[-1] != key:
                    keys.append(key)
                    samples.append({})
                content = tar.extractfile(member)
                assert content is not None
                samples[-1][ending] = content.read()
    assert len(set(keys)) == len(keys) == len(crops)
    for sample, crop in zip(samples, crops, strict=True):
        assert sorted(sample) == ["jpg", "json", "mask.png"]
        assert sample["jpg"] == crop.path.read_bytes()
        assert crop.mask_path is not None
        assert sample["mask.png"] == crop.mask_path.read_bytes()
        about = json.loads(sample["json"])
        assert (about["name"], about["split"], about["layout"]) == (crop.name, crop.split, crops.layout)
        assert (about["identity"], about["camera"]) == (crop.identity, crop.camera)
        assert tuple(about["size"]) == Image.open(io.BytesIO(sample["jpg"])).size
        assert (about["joints"] is None) == (crop.joints is None)
        if crop.joints is None:
            continue
        assert [point is not None for point in about["joints"]] == crop.joints.present.tolist()


# --- writing goes wrong --------------------------------------------------------------------------------------


def test_a_folder_with_files_is_refused(crops: CropTable, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").touch()
    with pytest.raises(InputError, match="already holds files"):
        write_shards(crops, tmp_path / "set")


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_an_unreadable_image_leaves_nothing_behind(
    damage: bytes | None, world: Path, crops: CropTable, tmp_path: Path
) -> None:
    shutil.copytree(world, tmp_path / "own")
    table = load_crops(tmp_path / "own")
    victim = table[len(table) // 2]
    if damage is None:
        victim.path.unlink()
    else:
        victim.path.write_bytes(damage)
    with pytest.raises(InputError, match=victim.name) as caught:
        write_shards(table, tmp_path / "set", shard_bytes=SMALL)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_tables_that_could_not_be_read_again_are_not_written(
    crops: CropTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = crops[0]
    tables = {
        "at least one": crops.with_crops([]),
        "greater than or equal": crops.with_crops([replace(first, identity=-2)]),
        "a plain file name": crops.with_crops([replace(first, name="../a.jpg")]),
        "layout": replace(crops, layout="mine"),
    }
    for word, table in tables.items():
        with pytest.raises(InputError, match=word):
            write_shards(table, tmp_path / "set")
    with pytest.raises(InputError, match="at least 1"):
        write_shards(crops, tmp_path / "set", shard_bytes=0)
    monkeypatch.setattr(shards, "MAX_INDEX_BYTES", 1000)
    with pytest.raises(InputError, match="too many for one index"):
        write_shards(crops, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


# --- hostile and damaged sets ----------------------------------------------------------------------------------


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


def problem_with(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_crops(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def changes() -> Iterator[tuple[str, str, Change]]:
    def setting(value: object, *place: str | int) -> Change:
        def change(index: dict[str, Any]) -> None:
            part: Any = index
            for step in place[:-1]:
                part = part[step]
            part[place[-1]] = value

        return change

    yield "an unknown format", "format 2", setting(2, "format")
    yield "a format that is no number", "format 'x'", setting("x", "format")
    yield "a format that is true", "format True", setting(True, "format")
    yield "an unknown layout", "layout", setting("mine", "layout")
    yield "no shards", "shards", setting([], "shards")
    yield "no crops", "crops", setting([], "crops")
    yield "crops that are no list", "crops", setting({}, "crops")
    for name in ("../shard-000000.tar", "/etc/passwd", "a/b.tar", "..", "", "shard-000001.tar", "C:\\a.tar"):
        yield f"the shard name {name!r}", "the shard name", setting(name, "shards", 0, "name")
    yield "a shard of negative size", "size", setting(-1, "shards", 0, "size")
    yield "a shard of another size", "as the index says", setting(5, "shards", 0, "size")
    yield "a digest that is none", "sha256", setting("0", "shards", 0, "sha256")
    yield "a shard's crops miscounted", "counts", setting(1, "shards", 0, "crops")
    yield "splits miscounted", "counts", setting(1, "counts", "train")
    yield "a negative offset", "crops.1.image.0", setting([-1, 5], "crops", 1, "image")
    yield "a negative size", "crops.1.image.1", setting([512, -5], "crops", 1, "image")
    yield "no bytes", "crops.1.image.1", setting([512, 0], "crops", 1, "image")
    yield "an offset outside", "which ends at", setting([10**12, 5], "crops", 1, "image")
    yield "an end outside", "which ends at", setting([512, 10**7], "crops", 1, "image")
    yield "an enormous offset", "crops.1.image.0", setting([10**40, 5], "crops", 1, "image")
    yield "an enormous size", "crops.1.image.1", setting([0, 2**40], "crops", 1, "image")
    yield "a mask outside", "which ends at", setting([10**12, 5], "crops", 1, "mask")
    yield "three numbers", "crops.1.image", setting([0, 1, 2], "crops", 1, "image")
    yield "a fraction", "crops.1.image", setting([0.5, 1], "crops", 1, "image")
    yield "a shard that is not there", "the shard 99", setting(99, "crops", 1, "shard")
    yield "a negative shard", "crops.1.shard", setting(-1, "crops", 1, "shard")
    for name in ("../a.jpg", "/a.jpg", "a\\b.jpg", "..", "", "a\nb.jpg", "\0", "a" * 300):
        yield f"the name {name[:9]!r}", "crops.1.crop.name", setting(name, "crops", 1, "crop", "name")
    for folder in ("..", "/etc", "a/../b", "a//b", "a\\b", "a\0"):
        yield f"the folder {folder!r}", "crops.1.crop.folder", setting(folder, "crops", 1, "crop", "folder")
    yield "an unknown split", "crops.1.crop.split", setting("test", "crops", 1, "crop", "split")
    yield "an identity below junk", "identity", setting(-2, "crops", 1, "crop", "identity")
    yield "an identity that is text", "identity", setting("1", "crops", 1, "crop", "identity")
    yield "a camera that is true", "camera", setting(True, "crops", 1, "crop", "camera")
    yield "17 joints", "joints", setting([None] * 17, "crops", 1, "crop", "joints")
    yield "a joint of one number", "joints", setting([[1]] * 18, "crops", 1, "crop", "joints")
    yield "a joint far away", "joints", setting([[1e300, 1]] * 18, "crops", 1, "crop", "joints")
    yield "a joint that is no number", "joints", setting([[float("nan"), 1]] * 18, "crops", 1, "crop", "joints")
    yield "an unknown field", "crops.1.crop.url", setting("http://a", "crops", 1, "crop", "url")
    yield "a field less", "no crops.1.crop.name", lambda index: index["crops"][1]["crop"].pop("name")
    yield "a crop twice", "again", lambda index: index["crops"].append(index["crops"][0])


@pytest.mark.parametrize(("word", "change"), [pytest.param(*case[1:], id=case[0]) for case in changes()])
def test_indexes_that_are_refused(word: str, change: Change, copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    change(index)
    (copy / INDEX).write_text(json.dumps(index))
    message = problem_with(copy)
    assert word in message
    assert str(copy) in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "\xff", "[" * 100_000, '{"format": 1e400}', "{}"])
def test_texts_that_are_no_index_are_refused(text: str, copy: Path) -> None:
    (copy / INDEX).write_text(text, "latin-1")
    assert INDEX in problem_with(copy)


def test_damaged_indexes_are_refused_or_read(copy: Path, sharded: Path) -> None:
    whole = (sharded / INDEX).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        (copy / INDEX).write_bytes(damaged)
        try:
            load_crops(copy)
        except InputError:
            refused += 1
    assert refused > 10
    for length in random.integers(0, len(whole) - 2, 20):
        (copy / INDEX).write_bytes(whole[:length])
        assert INDEX in problem_with(copy)


def test_an_index_that_is_too_large_is_not_parsed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_INDEX_BYTES", 1000)
    assert "at most 1,000" in problem_with(copy)


def test_a_shard_that_is_missing_truncated_or_elsewhere_is_named(copy: Path, sharded: Path) -> None:
    shard = copy / "shard-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"{shard}: found {len(content) - 1} bytes" in problem_with(copy)
    shard.unlink()
    assert f"{shard}: found no such file" in problem_with(copy)
    shard.symlink_to(sharded / shard.name)
    assert f"{shard}: found a link" in problem_with(copy)
    shard.unlink()
    shard.mkdir()
    assert str(shard) in problem_with(copy)


def test_a_shard_that_changes_under_a_run_is_named(copy: Path) -> None:
    crop = load_crops(copy)[0]
    assert crop.place is not None
    shard = crop.place.tar
    content = bytearray(shard.read_bytes())
    shard.write_bytes(content[: crop.place.offset + 10])
    with pytest.raises(InputError, match=f"{shard.name}: found no {crop.name}"):
        open_crop(crop)
    content[crop.place.offset : crop.place.offset + crop.place.size] = bytes(crop.place.size)
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"{crop.name}: found no readable image") as caught:
        open_crop(crop)
    assert "BytesIO" not in str(caught.value)
    shard.unlink()
    with pytest.raises(InputError, match="the shard that holds"):
        open_crop(crop)


def test_check_finds_changed_bytes(copy: Path) -> None:
    assert check_crops(load_crops(copy)).damaged_shards == ()
    shard = copy / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[1] ^= 1  # in the tar header, which no image shows
    shard.write_bytes(content)
    report = check_crops(load_crops(copy))
    assert report.damaged_shards == (shard.name,)
    assert not report.ok
    assert any(line.startswith("WRONG") and shard.name in line for line in report.lines())
    assert check_crops(load_crops(copy), decode=False).damaged_shards == ()


# --- command -----------------------------------------------------------------------------------------------


def test_the_command_writes_what_check_accepts(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world, tmp_path / "own")
    image(tmp_path / "own" / "query" / "IMG_1.jpg")
    image(tmp_path / "own" / "gt_bbox" / "0001_c1s1_000001_00.jpg")
    main(["shard", str(tmp_path / "own"), "--out", str(tmp_path / "set"), "--shard-size-mb", "1"])
    said = capsys.readouterr().out
    assert "IMG_1.jpg" in said
    assert "in 1 shards" in said
    assert "gt_bbox is not in the shards" in said
    main(["check", str(tmp_path / "set"), "--layout", "shards"])
    assert "Nothing is wrong." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["shard", str(world), "--out", str(tmp_path / "other"), "--shard-size-mb", "0"])
    assert "--shard-size-mb is 0" in capsys.readouterr().err
