import json
import os
from pathlib import Path

import numpy as np
import pytest

from posereid.errors import InputError
from posereid.pose.files import KeypointTable, pose_pairs, read_keypoints, write_keypoints
from posereid.pose.formats import CSV_HEADER
from posereid.pose.joints import JOINT_COUNT, TORSO, Joints, joint_index

NAME = "0002_c1s1_000451_03.jpg"
ROW = list(range(18))


def joints_at(xy: np.ndarray, absent: tuple[int, ...] = ()) -> Joints:
    present = np.ones(JOINT_COUNT, bool)
    present[list(absent)] = False
    return Joints(np.where(present[:, None], xy, 0).astype(np.float32), present)


def some_joints(absent: tuple[int, ...] = (), seed: int = 0) -> Joints:
    return joints_at(np.random.default_rng(seed).uniform(0, 60, (JOINT_COUNT, 2)), absent)


def write_csv(tmp_path: Path, *rows: str, header: str = CSV_HEADER) -> Path:
    path = tmp_path / "keypoints.csv"
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return path


def line(name: str = NAME, y: object = ROW, x: object = ROW) -> str:
    return f"{name}: {json.dumps(y)}: {json.dumps(x)}"


def problem_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_keypoints(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# --- the field's CSV ---------------------------------------------------------------------------------------


def test_csv_gives_x_first_and_absent_joints(tmp_path: Path) -> None:
    y, x = [10] * 18, [20] * 18
    y[0] = x[0] = -1
    x[3] = -1
    table = read_keypoints(write_csv(tmp_path, line("b.jpg", y, x), line("a.jpg")))
    assert list(table) == ["b.jpg", "a.jpg"]
    assert len(table) == 2
    joints = table["b.jpg"]
    assert joints.xy.dtype == np.float32
    assert joints.xy[1].tolist() == [20, 10]
    assert not joints.present[0]
    assert not joints.present[3]
    assert joints.xy[3].tolist() == [0, 0]
    assert joints.present.sum() == 16
    with pytest.raises(KeyError):
        table["c.jpg"]


def test_table_cannot_be_changed(tmp_path: Path) -> None:
    table = read_keypoints(write_csv(tmp_path, line()))
    with pytest.raises(TypeError):
        table["x"] = table[NAME]  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        table[NAME].xy[0, 0] = 5
    assert table.path.name == "keypoints.csv"


def test_csv_tolerates_bom_crlf_blank_lines_and_floats(tmp_path: Path) -> None:
    path = tmp_path / "keypoints.csv"
    y = [1.5] * 18
    path.write_bytes(f"\ufeff{CSV_HEADER}\r\n\r\n{line('a.jpg', y)}\r\n\r\n{line('b.jpg')}".encode())
    table = read_keypoints(path)
    assert list(table) == ["a.jpg", "b.jpg"]
    assert table["a.jpg"].xy[4].tolist() == [4, 1.5]


def test_csv_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    assert len(read_keypoints(write_csv(tmp_path))) == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (line(y=ROW[:17]), ["line 2", "17 joints", "18"]),
        (line(x=[*ROW, 1]), ["19 joints", "x coordinates"]),
        (line(y=["1", *ROW[1:]]), ["'1'"]),
        (line(y=[True, *ROW[1:]]), ["True"]),
        (line(y=[None, *ROW[1:]]), ["None"]),
        (line(y=[[1], *ROW[1:]]), ["JSON list"]),
        (line(y={}), ["JSON object"]),
        (line(y=7), ["7 in place of a list"]),
        (line(y=[10**30, *ROW[1:]]), ["1000000000"]),
        (line(y=[10**400, *ROW[1:]]), ["beyond"]),
        (line(y=[float("nan"), *ROW[1:]]), ["nan"]),
        (line(y=[float("inf"), *ROW[1:]]), ["inf"]),
        (f"{NAME}: [{'9' * 5000}]: []", ["JSON"]),
        (f"{NAME}: {'[' * 100_000}: []", ["JSON", "deeply"]),
        (f"{NAME}: [1, 2: [3]", ["JSON"]),
        (f"{NAME}: [1]", ["2 fields", "3"]),
        (f"{NAME}:::", ["4 fields"]),
        (line("../a.jpg"), ["'../a.jpg'", "without folders"]),
        (line("a/b.jpg"), ["'a/b.jpg'"]),
        (line("a\\b.jpg"), ["without folders"]),
        (line(""), ["an empty name"]),
        (line("a\x00.jpg"), ["\\x00"]),
    ],
)
def test_csv_rows_that_are_refused(tmp_path: Path, row: str, words: list[str]) -> None:
    message = problem_of(write_csv(tmp_path, row))
    assert "keypoints.csv" in message
    for word in words:
        assert word in message
    assert len(message) < 500


def test_csv_refuses_a_name_twice(tmp_path: Path) -> None:
    message = problem_of(write_csv(tmp_path, line(), "", line()))
    assert NAME in message
    assert "line 2" in message
    assert "line 4" in message


def test_csv_refuses_another_header(tmp_path: Path) -> None:
    assert CSV_HEADER in problem_of(write_csv(tmp_path, line(), header="name:keypoints_x:keypoints_y"))


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xff\xfe\x00", b"name\xe9:1:2", b"\x00" * 10])
def test_files_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keypoints.csv"
    path.write_bytes(content)
    problem_of(path)


@pytest.mark.parametrize("name", ["absent.csv", "absent.json", "nul\0.csv", "x" * 300, "empty_folder", "pipe"])
def test_paths_that_are_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty_folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    problem_of(tmp_path / name)


# --- OpenPose and COCO -------------------------------------------------------------------------------------


def openpose(*people: list[float]) -> str:
    return json.dumps({"version": 1.3, "people": [{"pose_keypoints_2d": person} for person in people]})


def test_openpose_takes_the_surest_person(tmp_path: Path) -> None:
    faint = [value for j in range(18) for value in (j, 2 * j, 0.1)]
    sure = [value for j in range(18) for value in (j + 1, 2 * j + 1, 0.9 if j != 5 else 0)]
    path = tmp_path / "0002_c1s1_000451_03_keypoints.json"
    path.write_text(openpose(faint, sure))
    table = read_keypoints(path)
    joints = table["0002_c1s1_000451_03"]
    assert joints.xy[2].tolist() == [3, 5]
    assert not joints.present[5]
    assert "more than one person" in table.notes[0]


def test_openpose_body_25_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a_keypoints.json"
    path.write_text(openpose([value for j in range(25) for value in (j, 1, 1)]))
    x = read_keypoints(path)["a"].xy[:, 0]
    assert x[joint_index("left_wrist")] == 7
    assert x[joint_index("right_hip")] == 9
    assert x[joint_index("left_ear")] == 18


def test_openpose_without_people_has_no_joints(tmp_path: Path) -> None:
    path = tmp_path / "a_keypoints.json"
    path.write_text(openpose())
    assert not read_keypoints(path)["a"].present.any()


def test_openpose_folder_refuses_other_files_and_names_twice(tmp_path: Path) -> None:
    (tmp_path / "a_keypoints.json").write_text(openpose())
    (tmp_path / "a.json").write_text(openpose())
    message = problem_of(tmp_path)
    assert "a.json" in message
    assert "a_keypoints.json" in message
    (tmp_path / "a.json").write_text("{}")
    assert "'people'" in problem_of(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\xff")
    assert "UTF-8" in problem_of(tmp_path)


def coco(**changes: object) -> dict[str, object]:
    keypoints = [value for j in range(17) for value in (j, 10 * j, 2)]
    return {
        "images": [{"id": 7, "file_name": "folder/a.jpg"}],
        "annotations": [{"image_id": 7, "keypoints": keypoints}],
        **changes,
    }


def read_coco(tmp_path: Path, document: object) -> KeypointTable:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    return read_keypoints(path)


def test_coco_neck_is_the_mean_of_the_shoulders(tmp_path: Path) -> None:
    joints = read_coco(tmp_path, coco())["a.jpg"]
    assert joints.xy[joint_index("left_eye")].tolist() == [1, 10]
    assert joints.xy[joint_index("right_ankle")].tolist() == [16, 160]
    assert joints.xy[joint_index("neck")].tolist() == [5.5, 55]
    assert joints.present.all()


def test_coco_without_a_shoulder_has_no_neck(tmp_path: Path) -> None:
    document = coco()
    document["annotations"][0]["keypoints"][5 * 3 + 2] = 0  # type: ignore[index]
    joints = read_coco(tmp_path, document)["a.jpg"]
    assert not joints.present[joint_index("left_shoulder")]
    assert not joints.present[joint_index("neck")]
    assert joints.present.sum() == 16


def test_coco_takes_the_person_with_the_most_joints(tmp_path: Path) -> None:
    few, many = [9, 9, 2] + [0] * 48, [8, 8, 2] * 3 + [0] * 42
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "nobody.jpg"}]
    people = [{"image_id": 1, "keypoints": few}, {"image_id": 1, "keypoints": many}]
    table = read_coco(tmp_path, coco(images=images, annotations=people))
    assert table["a.jpg"].xy[joint_index("nose")].tolist() == [8, 8]
    assert not table["nobody.jpg"].present.any()
    assert "1 images hold more than one person" in table.notes[0]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        7,
        None,
        {"people": 3},
        {"people": [3]},
        {"people": [{}]},
        {"people": [{"pose_keypoints_2d": [1.0] * 53}]},
        {"people": [{"pose_keypoints_2d": ["1"] * 54}]},
        {"people": [{"pose_keypoints_2d": [float("nan")] * 54}]},
        coco(images=[]),
        coco(images=3),
        coco(images=[3]),
        coco(images=[{"id": [1], "file_name": "a.jpg"}]),
        coco(images=[{"id": 7, "file_name": 3}]),
        coco(images=[{"id": 7, "file_name": "a/.."}]),
        coco(images=[{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}]),
        coco(images=[{"id": 7, "file_name": "x/a.jpg"}, {"id": 8, "file_name": "y/a.jpg"}]),
        coco(annotations=3),
        coco(annotations=[3]),
        coco(annotations=[{"image_id": 8, "keypoints": [1] * 51}]),
        coco(annotations=[{"image_id": {}, "keypoints": [1] * 51}]),
        coco(annotations=[{"image_id": 7}]),
        coco(annotations=[{"image_id": 7, "keypoints": [1] * 50}]),
    ],
)
def test_json_that_is_refused(tmp_path: Path, document: object) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document))
    assert "bad.json" in problem_of(path)


# --- writing -----------------------------------------------------------------------------------------------


def test_csv_round_trip_rounds(tmp_path: Path) -> None:
    table = {"a.jpg": some_joints((4, 9)), "b.jpg": some_joints(seed=1)}
    write_keypoints(table, tmp_path / "k.csv")
    back = read_keypoints(tmp_path / "k.csv")
    assert list(back) == list(table)
    for name, joints in table.items():
        assert np.array_equal(back[name].xy, np.rint(joints.xy))
        assert np.array_equal(back[name].present, joints.present)
    write_keypoints(back, tmp_path / "again.csv", "csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "k.csv").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.csv", "k.csv"]


def test_csv_loses_joints_before_the_crop(tmp_path: Path) -> None:
    xy = np.full((18, 2), 5.0)
    xy[3] = (-2, 5)
    write_keypoints({"a.jpg": joints_at(xy)}, tmp_path / "k.csv")
    assert np.flatnonzero(~read_keypoints(tmp_path / "k.csv")["a.jpg"].present).tolist() == [3]


def test_openpose_round_trip_drops_endings_only(tmp_path: Path) -> None:
    table = {"a.jpg": some_joints((0, 17)), "b.jpg": some_joints(tuple(range(18)))}
    write_keypoints(table, tmp_path / "folder", "openpose")
    back = read_keypoints(tmp_path / "folder")
    assert list(back) == ["a", "b"]
    assert np.array_equal(back["a"].xy, table["a.jpg"].xy)
    assert np.array_equal(back["a"].present, table["a.jpg"].present)
    assert not back["b"].present.any()
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_coco_round_trip_loses_the_neck_only(tmp_path: Path) -> None:
    table = {"a.jpg": some_joints((4,)), "b.jpg": some_joints((joint_index("neck"),))}
    write_keypoints(table, tmp_path / "k.json", "coco")
    back = read_keypoints(tmp_path / "k.json")
    others = [j for j in range(JOINT_COUNT) if j != joint_index("neck")]
    for name, joints in table.items():
        assert np.array_equal(back[name].xy[others], joints.xy[others])
        assert np.array_equal(back[name].present[others], joints.present[others])
        assert back[name].present[joint_index("neck")]


def test_writing_refuses_what_a_format_cannot_hold(tmp_path: Path) -> None:
    for name in ("../a.jpg", "a:b.jpg", "a\n.jpg", ""):
        with pytest.raises(InputError):
            write_keypoints({name: some_joints()}, tmp_path / "k.csv")
    with pytest.raises(InputError, match="endings"):
        write_keypoints({"a.jpg": some_joints(), "a.png": some_joints()}, tmp_path / "k", "openpose")
    with pytest.raises(InputError, match="finite"):
        write_keypoints({"a.jpg": joints_at(np.full((18, 2), np.nan))}, tmp_path / "k.csv")
    with pytest.raises(InputError, match="format"):
        write_keypoints({}, tmp_path / "k", "yaml")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_keypoints({}, tmp_path / "file" / "k.csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="already"):
        write_keypoints({}, tmp_path / "full", "openpose")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "full"]


# --- pose pairs --------------------------------------------------------------------------------------------


def test_pairs_are_ordered_and_need_torsos() -> None:
    names = [
        "0007_c1s1_000002_01.jpg",
        "0007_c1s1_000001_01.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000451_03_p2.jpg",
        "0002_c3s1_000451_03.jpg",
        "0000_c1s1_000001_01.jpg",
        "0000_c1s1_000002_01.jpg",
        "-1_c1s1_000001_01.jpg",
        "-1_c1s1_000002_01.jpg",
    ]
    table = dict.fromkeys(names, some_joints()) | {names[4]: some_joints(TORSO[:1])}
    assert pose_pairs(KeypointTable(Path("k.csv"), table)) == [
        (names[2], names[3]),
        (names[3], names[2]),
        (names[1], names[0]),
        (names[0], names[1]),
    ]


def test_pairs_of_unreadable_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"IMG_1\.jpg.*0002_c1s1_000451_03\.jpg"):
        pose_pairs(KeypointTable(Path("k.csv"), {"IMG_1.jpg": some_joints()}))


@pytest.mark.parametrize(("split", "crops", "pairs"), [("train", 32, 196), ("test", 37, 204)])
def test_keypoints_of_a_world_give_its_pairs(world: Path, tmp_path: Path, split: str, crops: int, pairs: int) -> None:
    path = world / f"market-annotation-{split}.csv"
    table = read_keypoints(path)
    found = pose_pairs(table)
    assert (len(table), len(found), len({source[:4] for source, _ in found})) == (crops, pairs, 4)
    usable = [name for name, joints in table.items() if joints.has_torso and int(name.split("_")[0]) > 0]
    assert set(found) == {(a, b) for a in usable for b in usable if a != b and a[:4] == b[:4]}
    write_keypoints(table, tmp_path / "k.csv")
    assert (tmp_path / "k.csv").read_bytes() == path.read_bytes()


# --- the real files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Path:
    given = os.environ.get("POSEREID_REFERENCE")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "market1501"
    if not (folder / "market-annotation-train.csv").is_file():
        pytest.skip("Market-1501's keypoint files are not here; set POSEREID_REFERENCE to their folder")
    return folder


@pytest.mark.parametrize(
    ("whole", "crops", "count", "identities"), [(False, 338, 8_606, 20), (True, 12_936, 263_632, 741)]
)
def test_real_training_keypoints_give_the_field_s_pairs(
    whole: bool, crops: int, count: int, identities: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("reference") if whole else Path(__file__).parents[1] / "market1501"
    path = folder / "market-annotation-train.csv"
    table = read_keypoints(path)
    pairs = pose_pairs(table)
    assert len(table) == crops
    assert len(pairs) == len(set(pairs)) == count
    assert len({source[:4] for source, _ in pairs}) == identities
    write_keypoints(table, tmp_path / "k.csv")
    assert (tmp_path / "k.csv").read_bytes() == path.read_bytes()


def test_real_test_pairs_are_pose_pairs(reference: Path) -> None:
    table = read_keypoints(reference / "market-annotation-test.csv")
    assert len(table) == 19_732
    lines = (reference / "market-pairs-test.csv").read_text().split()[1:]
    wanted = {tuple(each.split(",")) for each in lines}
    assert len(lines) == 12_000
    assert wanted <= set(pose_pairs(table))
