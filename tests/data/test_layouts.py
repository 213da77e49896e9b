import contextlib
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from posereid.data.batches import class_labels
from posereid.data.crops import DISTRACTOR, JUNK
from posereid.data.images import MAX_PIXELS, open_image
from posereid.data.layouts import load_crops
from posereid.data.readers import MSMT17_TEST_OFFSET
from posereid.data.shards import write_shards
from posereid.errors import InputError
from posereid.features import read_image_folder
from posereid.files import MAX_TEXT_BYTES
from posereid.pose.formats import CSV_HEADER

TRAIN = ["0002_c1s1_000451_03.jpg", "0002_c2s1_000451_01.jpg", "0007_c3s2_000001_01.png"]
QUERY = ["0001_c1s1_001051_00.jpg"]
GALLERY = ["0001_c2s1_001051_01.jpg", "0000_c1s1_000151_01.jpg", "-1_c4s1_000151_02.jpg.jpg"]


def touch(root: Path, names: Iterable[str]) -> Path:
    """Empty files: readers list images and never open them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def market(root: Path) -> Path:
    touch(root / "bounding_box_train", TRAIN)
    touch(root / "query", QUERY)
    return touch(root / "bounding_box_test", GALLERY).parent


def keypoint_file(path: Path, names: Iterable[str], y: int = 5) -> Path:
    path.write_text("\n".join([CSV_HEADER, *(f"{name}: {[y] * 18}: {[3] * 18}" for name in names)]))
    return path


def problem_with(*arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_crops(*arguments, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# --- Market-1501 and DukeMTMC-reID -------------------------------------------------------------------------


def test_market(tmp_path: Path) -> None:
    root = market(tmp_path)
    touch(root / "query", ["Thumbs.db", ".hidden.jpg", "IMG_1.jpg", "notes.txt"])
    table = load_crops(str(root))
    assert table.layout == "market1501"
    assert table.root == root
    assert table.train.names == tuple(sorted(TRAIN))
    assert table.query.identities.tolist() == [1]
    assert table.gallery.identities.tolist() == [-1, 0, 1]
    assert table.gallery.cameras.tolist() == [4, 1, 2]
    assert [crop.identified for crop in table.gallery] == [False, False, True]
    assert table.unparsed == ("query/IMG_1.jpg",)
    assert all(crop.path.is_file() for crop in table)
    assert not any(crop.generated for crop in table)


def test_market_in_a_subfolder_is_found(tmp_path: Path) -> None:
    market(tmp_path / "Market-1501-v15.09.15")
    touch(tmp_path, ["other/readme.txt"])
    keypoint_file(tmp_path / "market-annotation-train.csv", TRAIN)
    table = load_crops(tmp_path)
    assert table.root.name == "Market-1501-v15.09.15"
    assert "Market-1501-v15.09.15" in table.notes[0]
    assert table.train[0].joints is not None
    market(tmp_path / "copy")
    assert "2 sets" in problem_with(tmp_path)


def test_training_folder_alone_will_do(tmp_path: Path) -> None:
    touch(tmp_path / "bounding_box_train", ["0002_c1s1_000451_03_p2.jpg"])
    table = load_crops(tmp_path)
    assert len(table) == len(table.train) == 1
    assert table[0].identity == 2


def test_duke_is_told_by_its_names_and_its_withdrawal_noted(tmp_path: Path) -> None:
    touch(tmp_path / "bounding_box_train", ["0005_c2_f0046985.jpg", "0000_c2_f0046985.jpg"])
    touch(tmp_path / "query", ["0006_c8_f0000001.jpg"])
    table = load_crops(tmp_path)
    assert table.layout == "dukemtmc"
    assert [(crop.identity, crop.camera, crop.split) for crop in table] == [(5, 2, "train"), (6, 8, "query")]
    assert table.unparsed == ("bounding_box_train/0000_c2_f0046985.jpg",)
    assert "withdrawn" in table.notes[0]
    assert "2019" in table.notes[0]
    assert "0002_c1s1_000451_03.jpg" in problem_with(tmp_path, "market1501")


def test_cuhk03_of_the_767_700_protocol_is_told_by_its_names(tmp_path: Path) -> None:
    for release in ("labeled", "detected"):
        touch(tmp_path / release / "bounding_box_train", ["0001_c1_1.png", "0001_c2_6.png"])
        touch(tmp_path / release / "query", ["0003_c1_22.png", "0003_c2_27.png"])
        touch(tmp_path / release / "bounding_box_test", ["0003_c1_21.jpg", "0003_c2_30.png", "cuhk.txt.png"])
    table = load_crops(tmp_path / "labeled")
    assert table.layout == "cuhk03"
    assert [(crop.identity, crop.camera) for crop in table.query] == [(3, 1), (3, 2)]
    assert len(table.train) == len(table.gallery) == 2
    assert table.unparsed == ("bounding_box_test/cuhk.txt.png",)
    assert "2 sets" in problem_with(tmp_path)


def test_a_set_of_36000_files_is_listed_whole(tmp_path: Path) -> None:
    folder = tmp_path / "bounding_box_train"
    folder.mkdir()
    for number in range(36_000):
        os.close(os.open(folder / f"{number // 24 + 1:04}_c1s1_{number:06}_01.jpg", os.O_CREAT))
    assert len(load_crops(tmp_path)) == 36_000


# --- MSMT17 ------------------------------------------------------------------------------------------------


def msmt17(root: Path, train: str = "train", test: str = "test") -> Path:
    touch(root / train, ["0000/0000_000_01_0303morning_0015_0.jpg", "0001/0001_000_15_0303noon_0015_0.jpg"])
    touch(root / test, ["0000/0000_000_02_0303morning_0015_0.jpg", "0000/0000_001_03_0303morning_0015_0.jpg"])
    (root / "list_train.txt").write_text("0000/0000_000_01_0303morning_0015_0.jpg 0\n\n")
    (root / "list_val.txt").write_text("0001/0001_000_15_0303noon_0015_0.jpg 1\n")
    (root / "list_query.txt").write_text("0000/0000_000_02_0303morning_0015_0.jpg 0\n")
    (root / "list_gallery.txt").write_text(
        "0000/0000_001_03_0303morning_0015_0.jpg 0\r\n0009/0009_001_03_0303morning_0015_0.jpg 9\n0000/x.jpg 0"
    )
    return root


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17(tmp_path: Path, folders: tuple[str, str]) -> None:
    table = load_crops(msmt17(tmp_path, *folders))
    assert table.layout == "msmt17"
    assert table.train.identities.tolist() == [1, 2]
    assert table.train.cameras.tolist() == [1, 15]
    assert table.query.identities.tolist() == table.gallery.identities.tolist() == [MSMT17_TEST_OFFSET + 1]
    assert table.query.cameras.tolist() == [2]
    assert all(crop.identified for crop in table)
    assert table.missing == (f"{folders[1]}/0009/0009_001_03_0303morning_0015_0.jpg",)
    assert table.unparsed == (f"{folders[1]}/0000/x.jpg",)


def test_msmt17_crop_listed_twice_counts_once(tmp_path: Path) -> None:
    msmt17(tmp_path)
    (tmp_path / "list_val.txt").write_text("0000/0000_000_01_0303morning_0015_0.jpg 0\n")
    table = load_crops(tmp_path)
    assert len(table.train) == 1
    assert "1 crops are listed twice" in table.notes[0]


@pytest.mark.parametrize("row", ["a.jpg", "a.jpg x", "../a.jpg 1", "/a.jpg 1", "a.jpg -1", "a.jpg 10000", " 3"])
def test_msmt17_lists_that_are_refused(tmp_path: Path, row: str) -> None:
    msmt17(tmp_path)
    (tmp_path / "list_val.txt").write_text(f"0001/0001_000_15_0303noon_0015_0.jpg 1\n{row}\n")
    message = problem_with(tmp_path)
    assert "list_val.txt" in message
    assert "line 2" in message


# --- own data ----------------------------------------------------------------------------------------------


def own(root: Path, *rows: str, header: str = "path,identity,camera", name: str = "crops.csv") -> Path:
    touch(root, ["a.jpg", "b.jpg", "sub/c.jpg"])
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    return root


def test_own_csv_keeps_whole_numbers(tmp_path: Path) -> None:
    own(tmp_path, "b.jpg,7,2", "a.jpg,3,1", "gone.jpg,3,2", name="mine.csv")
    table = load_crops(tmp_path / "mine.csv")
    assert table.layout == "csv"
    assert table.names == ("b.jpg", "a.jpg")
    assert table.identities.tolist() == [7, 3]
    assert table.cameras.tolist() == [2, 1]
    assert {crop.split for crop in table} == {"train"}
    assert table.missing == ("gone.jpg",)
    assert table.notes == ()


def test_own_csv_keeps_the_markers_of_junk_and_distractors(tmp_path: Path) -> None:
    own(tmp_path, "b.jpg,-1,1", "a.jpg,0000,1", "sub/c.jpg,007,1.0")
    table = load_crops(tmp_path)
    assert table.identities.tolist() == [JUNK, DISTRACTOR, 7]
    assert table.cameras.tolist() == [1, 1, 1]
    assert [crop.identified for crop in table] == [False, False, True]
    assert class_labels(table) == {7: 0}
    assert [note[:22] for note in table.notes] == ["1 crops of identity -1", "1 crops of identity 0 "]
    assert "if 0 is a person in crops.csv, number people from 1" in table.notes[1]
    own(tmp_path, "b.jpg,-1.0,north", "a.jpg,anna,south", "sub/c.jpg,0,north")
    table = load_crops(tmp_path)
    assert table.identities.tolist() == [JUNK, 1, DISTRACTOR]
    assert dict(table.identity_names) == {1: "anna"}
    assert dict(table.camera_names) == {1: "north", 2: "south"}


@pytest.mark.parametrize("empty", ["nan", "NaN", "None", "null", "<NA>", "NA", ""])
@pytest.mark.parametrize("column", ["identity", "camera"])
def test_own_csv_labels_that_say_nothing_are_refused(tmp_path: Path, column: str, empty: str) -> None:
    row = f"a.jpg,{empty},1" if column == "identity" else f"a.jpg,1,{empty}"
    message = problem_with(own(tmp_path, "b.jpg,1,1", row))
    assert "crops.csv, line 3: found " in message
    assert column in message


def test_own_csv_numbers_names_and_zero(tmp_path: Path) -> None:
    header = "split,path,identity,extra,camera"
    own(tmp_path, "gallery,b.jpg,zoe,x,0", "query,a.jpg,10,x,1", "train,sub/c.jpg,9,x,0", header=header)
    table = load_crops(tmp_path)
    assert [crop.split for crop in table] == ["train", "query", "gallery"]
    assert table.identities.tolist() == [1, 2, 3]
    assert table.cameras.tolist() == [1, 2, 1]
    assert "'zoe' is 3" in table.notes[0]
    assert "Cameras" in table.notes[1]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ("../a.jpg,1,1", "'../a.jpg'"),
        ("/etc/passwd,1,1", "/etc/passwd"),
        ("C:\\a.jpg,1,1", "inside the folder"),
        ("sub\\..\\..\\a.jpg,1,1", "inside the folder"),
        (",1,1", "inside the folder"),
        ("a.jpg,,1", "no identity"),
        ("a.jpg,1,", "no camera"),
        ("a.jpg,1", "2 fields"),
        ("a.jpg,1,1,1", "4 fields"),
        ("b.jpg,1,1", "again after line 2"),
        ('"a.jpg,1,1', "not CSV"),
        ("link.jpg,1,1", "link"),
        ("linked/x.jpg,1,1", "link"),
    ],
)
def test_own_csv_rows_that_are_refused(tmp_path: Path, row: str, word: str) -> None:
    outside = touch(tmp_path / "outside", ["x.jpg"])
    root = own(tmp_path / "set", "b.jpg,1,1", row)
    (root / "link.jpg").symlink_to(outside / "x.jpg")
    (root / "linked").symlink_to(outside)
    assert word in problem_with(root)


def test_own_csv_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    root = own(tmp_path, "link.jpg,1,1", "loop.jpg,1,1")
    (root / "link.jpg").symlink_to(root / "sub" / "c.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    table = load_crops(root)
    assert table.names == ("link.jpg",)
    assert table.missing == ("loop.jpg",)


@pytest.mark.parametrize("header", ["path,identity", "path,identity,camera,path", "a.jpg,1,1"])
def test_own_csv_headers_that_are_refused(tmp_path: Path, header: str) -> None:
    assert "header" in problem_with(own(tmp_path, "a.jpg,1,1", header=header))


def test_own_csv_split_must_be_known(tmp_path: Path) -> None:
    assert "'test'" in problem_with(own(tmp_path, "a.jpg,1,1,test", header="path,identity,camera,split"))


# --- manifest, masks, joints -------------------------------------------------------------------------------


def test_manifest_marks_generated_crops(tmp_path: Path) -> None:
    touch(tmp_path / "bounding_box_train", [*TRAIN, "0002_c1s1_000451_03_p1.jpg"])
    (tmp_path / "manifest.csv").write_text(
        "name,identity,source,target_pose\n"
        "0002_c1s1_000451_03_p1.jpg,2,0002_c1s1_000451_03.jpg,standing\n"
        "gone.jpg,2,0002_c1s1_000451_03.jpg,standing\n"
    )
    table = load_crops(tmp_path)
    generated = [crop for crop in table if crop.generated]
    assert [crop.source for crop in generated] == ["0002_c1s1_000451_03.jpg"]
    assert generated[0].target_pose == "standing"
    assert generated[0].identity == 2
    assert table.missing == ("gone.jpg",)


@pytest.mark.parametrize("content", ["", "name,source\na,b\n", "name,source,target_pose\na,,b\n",
                                     "name,source,target_pose\na,b,c\na,b,c\n", "\x00\xff"])  # fmt: skip
def test_manifests_that_are_refused(tmp_path: Path, content: str) -> None:
    market(tmp_path)
    (tmp_path / "manifest.csv").write_text(content, "latin-1")
    assert "manifest.csv" in problem_with(tmp_path)


def test_masks_are_found(tmp_path: Path) -> None:
    market(tmp_path)
    touch(tmp_path / "foreground_masks" / "bounding_box_train", ["0002_c1s1_000451_03.png", "other.png"])
    masks = [crop.mask_path for crop in load_crops(tmp_path)]
    assert masks[0] == tmp_path / "foreground_masks" / "bounding_box_train" / "0002_c1s1_000451_03.png"
    assert masks[1:] == [None] * (len(masks) - 1)


def test_joints_are_found_in_the_root_or_given(tmp_path: Path) -> None:
    root = market(tmp_path / "set")
    keypoint_file(root / "market-annotation-train.csv", [*TRAIN, "9999_c1s1_000001_01.jpg"])
    keypoint_file(root / "market-annotation-test.csv", [*TRAIN[:1], *GALLERY])
    table = load_crops(root)
    assert [crop.joints is not None for crop in table] == [True, True, True, False, True, True, True]
    joints = table[0].joints
    assert joints is not None
    assert joints.xy[0].tolist() == [3, 5]
    assert "1 of 7 names" in table.notes[0]
    assert not any(crop.joints for crop in load_crops(root, keypoints=[]))
    given = keypoint_file(tmp_path / "given.csv", QUERY)
    for keypoints in ([given], str(given)):
        table = load_crops(root, keypoints=keypoints)
        assert [crop.name for crop in table if crop.joints] == QUERY


def test_openpose_joints_match_without_the_ending(tmp_path: Path) -> None:
    market(tmp_path / "set")
    (tmp_path / "poses").mkdir()
    person = {"people": [{"pose_keypoints_2d": [1.0] * 54}]}
    (tmp_path / "poses" / f"{TRAIN[0][:-4]}_keypoints.json").write_text(json.dumps(person))
    table = load_crops(tmp_path / "set", keypoints=[tmp_path / "poses"])
    assert [crop.name for crop in table if crop.joints] == [TRAIN[0]]


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    root = market(tmp_path)
    files = [keypoint_file(root / "1.csv", TRAIN), keypoint_file(root / "2.csv", TRAIN[1:2], y=6)]
    message = problem_with(root, keypoints=files)
    assert TRAIN[1] in message
    assert "1.csv" in message
    assert "2.csv" in message
    assert "3.csv" in problem_with(root, keypoints=[root / "3.csv"])


def test_names_that_repeat_cannot_have_joints(tmp_path: Path) -> None:
    touch(tmp_path, ["one/a.jpg", "two/a.jpg"])
    own(tmp_path, "one/a.jpg,1,1", "two/a.jpg,2,1")
    assert len(load_crops(tmp_path)) == 2
    keypoints = [keypoint_file(tmp_path / "k.csv", ["a.jpg"])]
    assert "2 crops" in problem_with(tmp_path, keypoints=keypoints)


# --- what is no set ----------------------------------------------------------------------------------------


def test_roots_that_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in problem_with(tmp_path / "absent")
    assert "no such folder" in problem_with("nul\0")
    assert "empty folder" in problem_with(tmp_path)
    touch(tmp_path / "plain", ["a.jpg", "b.jpg"])
    message = problem_with(tmp_path / "plain")
    assert "2 images" in message
    for word in ("bounding_box_train", "list_train.txt", "crops.csv", "path,identity,camera"):
        assert word in message
    assert "a file" in problem_with(tmp_path / "plain" / "a.jpg")
    (tmp_path / "market" / "query").mkdir(parents=True)
    assert "0 images" in problem_with(tmp_path / "market")
    assert "'query/b.jpg'" in problem_with(touch(tmp_path / "market", ["query/b.jpg"]))
    assert "MSMT17" in problem_with(tmp_path / "market", "msmt17")
    assert "layout" in problem_with(tmp_path, "cuhk03")
    assert "1 listed files missing" in problem_with(own(tmp_path / "own", "gone.jpg,1,1"))


# --- what is left out is said ------------------------------------------------------------------------------


def test_what_looks_like_crops_is_not_passed_over(tmp_path: Path) -> None:
    root = market(tmp_path)
    stem = "0001_c1s1_001051_05"
    touch(root / "query", [f"{stem}.gif", f"{stem[:-1]}6", f"{stem}.jpg.gz", "IMG_1.HEIC", f"sub/deep/{QUERY[0]}"])
    touch(root / "query", [f"{stem}.json", f"{stem}_keypoints.json", "Thumbs.db", ".hidden.gif", "sub/.x/a.jpg"])
    touch(root / "query", [f"{stem}.JFIF"])
    (root / "query" / "gone.jpg").symlink_to("nowhere.jpg")
    touch(root / "foreground_masks" / "query", [f"{QUERY[0][:-4]}.bmp", f"{stem}.PNG", "old/x.png", "stray.png"])
    keypoint_file(root / "market-annotation-query.CSV", QUERY)
    touch(root, ["market-annotation-gallery.json", "annotation-notes.md"])
    table = load_crops(root)
    assert table.query.names == (*QUERY, f"{stem}.JFIF")
    assert table.query[1].mask_path == root / "foreground_masks" / "query" / f"{stem}.PNG"
    assert sorted(table.unparsed) == sorted(
        [f"query/{stem}.gif", f"query/{stem[:-1]}6", f"query/{stem}.jpg.gz", "query/IMG_1.HEIC", "query/gone.jpg",
         f"query/sub/deep/{QUERY[0]}", f"foreground_masks/query/{QUERY[0][:-4]}.bmp", "market-annotation-query.CSV",
         "market-annotation-gallery.json"]
    )  # fmt: skip
    assert table.notes == ("1 masks belong to no crop of the set, for example 'foreground_masks/query/stray.png'.",)


def test_empty_folders_and_lists_are_said(tmp_path: Path) -> None:
    root = market(tmp_path / "market")
    for path in (root / "query").iterdir():
        path.unlink()
    (root / "foreground_masks" / "query").mkdir(parents=True)
    table = load_crops(root)
    assert table.unparsed == ("query/ (no crop)",)
    assert table.notes == ("foreground_masks holds no mask of a crop; masks are foreground_masks/FOLDER/NAME.png.",)
    (msmt17(tmp_path / "msmt") / "list_query.txt").write_text("\n")
    assert "list_query.txt (no crop)" in load_crops(tmp_path / "msmt").unparsed
    (tmp_path / "poses").mkdir()
    assert "a folder without .json files, expected" in problem_with(root, keypoints=[tmp_path / "poses"])
    touch(tmp_path / "poses", ["a_keypoints.yml"])
    assert "which holds 'a_keypoints.yml'" in problem_with(root, keypoints=[tmp_path / "poses"])
    (tmp_path / "poses" / "a_keypoints.json").write_text('{"people": []}')
    assert "poses/a_keypoints.yml" in load_crops(root, keypoints=[tmp_path / "poses"]).unparsed


def test_pictures_beside_listed_ones_are_counted(tmp_path: Path) -> None:
    table = load_crops(own(touch(tmp_path, ["sub/d.avif", "other/e.jpg"]), "a.jpg,1,1", "sub/c.jpg,2,1"))
    assert table.notes == ("2 pictures beside those that are listed are not in crops.csv, for example 'b.jpg'.",)
    assert not table.unparsed
    touch(msmt17(tmp_path / "msmt"), ["train/0000/0000_001_01_0303morning_0016_0.jpg"])
    assert "1 pictures beside those that are listed are not in the lists" in load_crops(tmp_path / "msmt").notes[0]


def test_crops_without_any_joint_are_without_joints(tmp_path: Path) -> None:
    root = market(tmp_path)
    keypoint_file(root / "market-annotation-train.csv", TRAIN[:2], y=-1)
    keypoint_file(root / "market-annotation-query.csv", QUERY)
    assert [crop.name for crop in load_crops(root) if crop.joints is not None] == QUERY


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_names_match_in_either_unicode_form(tmp_path: Path, written: Literal["NFC", "NFD"]) -> None:
    listed, there = (
        unicodedata.normalize(form, "Zoë/José_1.jpg") for form in (written, {"NFC": "NFD"}.get(written, "NFC"))
    )
    touch(tmp_path, [there, f"foreground_masks/{Path(there).parent}/{Path(listed).stem}.png"])
    (tmp_path / "crops.csv").write_text(f"path,identity,camera\n{listed},José,1\n", "utf-8")
    keypoint_file(tmp_path / "k.csv", [Path(listed).name])
    table = load_crops(tmp_path, keypoints=[tmp_path / "k.csv"])
    assert table.missing == ()
    assert table[0].path == tmp_path / there
    assert table[0].joints is not None
    assert table[0].mask_path is not None
    (tmp_path / "crops.csv").write_text(f"path,identity,camera\n{listed},1,1\n{there},1,1\n", "utf-8")
    assert "line 3" in problem_with(tmp_path)


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc", "cuhk03", "msmt17", "csv", "masks", "shards", "embed"])
def test_no_picture_is_a_link_out_of_its_set(tmp_path: Path, layout: str) -> None:
    name = {"dukemtmc": "0005_c2_f0046985.png", "cuhk03": "0001_c1_1.png"}.get(layout, "0002_c1s1_000451_03.png")
    folder, listed = "bounding_box_train", ""
    if layout == "msmt17":
        folder, listed, name = "train/0000", "list_train.txt", "0000_000_01_0303morning_0015_0.png"
    elif layout in ("csv", "embed"):
        folder = "pictures"
    root = tmp_path / "set"
    (root / folder).mkdir(parents=True)
    Image.new("RGB", (4, 8)).save(root / folder / name)
    if listed:
        (root / listed).write_text(f"0000/{name} 0\n")
    if layout == "csv":
        (root / "crops.csv").write_text(f"path,identity,camera\n{folder}/{name},1,1\n")
    masks = root / "foreground_masks" / folder
    if layout == "masks":
        masks.mkdir(parents=True)
        Image.new("L", (4, 8)).save(masks / name)
    if layout == "shards":
        write_shards(load_crops(root), tmp_path / "shards")
        root, folder, name = tmp_path / "shards", "", "shard-000000.tar"
    inner = masks if layout == "masks" else root / folder
    read = (lambda place: read_image_folder(place / folder)) if layout == "embed" else load_crops
    (tmp_path / "whole").symlink_to(root)
    assert len(read(tmp_path / "whole").names) == 1
    moved = tmp_path / "elsewhere"
    (inner / name).rename(moved)
    for leads, outside in ((root / "inside", False), (moved, True)):
        if not outside:
            (root / "inside").write_bytes(moved.read_bytes())
        (inner / name).unlink(missing_ok=True)
        (inner / name).symlink_to(leads)
        # To `embed`, the folder itself is all that there is.
        if outside or layout == "embed":
            with pytest.raises(InputError, match=r"a link to somewhere else, expected files inside"):
                read(root)
        else:
            assert len(read(root).names) == 1
    if layout in ("market1501", "csv", "masks"):  # a link on the way
        (inner / name).unlink()
        moved.rename(tmp_path / name)
        inner.rmdir()
        inner.symlink_to(tmp_path)
        with pytest.raises(InputError, match="a link to somewhere else"):
            read(root)


@pytest.mark.parametrize("name", ["crops.csv", "mine.csv", "list_val.txt", "market-annotation-train.csv"])
def test_oversized_lists_are_not_read(tmp_path: Path, name: str) -> None:
    market(tmp_path)
    msmt17(tmp_path)
    path = touch(tmp_path, [name]) / name
    os.truncate(path, MAX_TEXT_BYTES + 1)  # a sparse file
    layout = "msmt17" if name == "list_val.txt" else "auto"
    message = problem_with(path if name == "mine.csv" else tmp_path, layout)
    assert (
        message == f"{path}: found a file of 2,147,483,649 bytes, expected at most 2,147,483,648; divide or replace it."
    )


# --- images ------------------------------------------------------------------------------------------------


def test_images_are_decoded_to_rgb(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        Image.new(mode, (6, 12)).save(tmp_path / "a.png")
        assert open_image(str(tmp_path / "a.png")).mode == "RGB"
    palette = Image.new("P", (6, 12))
    palette.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert open_image(tmp_path / "p.png").size == (6, 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 12)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (12, 6)


def test_images_that_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1)).save(tmp_path / "huge.png")
    for name in (
        "truncated.jpg",
        "empty.jpg",
        "text.jpg",
        "folder.jpg",
        "huge.png",
        "absent.jpg",
        "nul\0.jpg",
    ):
        with pytest.raises(InputError) as caught:
            open_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), 20):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "damaged.jpg").write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert open_image(tmp_path / "damaged.jpg").mode == "RGB"
