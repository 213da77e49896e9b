import json
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posereid.errors import InputError
from posereid.pose.files import KeypointTable, read_keypoints, write_keypoints
from posereid.pose.formats import CSV_HEADER
from posereid.pose.joints import Joints

FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=19) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)
coordinates = st.lists(st.integers(-5, 200) | st.floats(), min_size=17, max_size=19) | json_values


def read_or_refuse(path: Path) -> KeypointTable | None:
    try:
        return read_keypoints(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    return None


@FUZZ
@given(content=st.binary(max_size=200), header=st.booleans(), suffix=st.sampled_from([".csv", ".json", ""]))
def test_any_bytes_give_a_table_or_an_input_error(tmp_path: Path, content: bytes, header: bool, suffix: str) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes((f"{CSV_HEADER}\n".encode() if header else b"") + content)
    read_or_refuse(path)


@FUZZ
@given(rows=st.lists(st.tuples(st.text(max_size=6), coordinates, coordinates), max_size=4))
def test_any_rows_give_a_table_or_an_input_error(tmp_path: Path, rows: list[tuple[str, object, object]]) -> None:
    path = tmp_path / "fuzz.csv"
    text = "\n".join([CSV_HEADER, *(f"{name}: {json.dumps(y)}: {json.dumps(x)}" for name, y, x in rows)])
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    table = read_or_refuse(path)
    for joints in table.values() if table is not None else ():
        assert np.isfinite(joints.xy).all()
        assert (joints.xy >= 0).all()


@FUZZ
@given(
    image=json_values,
    annotation=json_values,
    keypoints=st.lists(st.floats() | st.integers(), min_size=51, max_size=75) | json_values,
    people=json_values,
)
def test_any_json_gives_a_table_or_an_input_error(
    tmp_path: Path, image: object, annotation: object, keypoints: object, people: object
) -> None:
    path = tmp_path / "fuzz.json"
    whole = {"id": 1, "file_name": "a.jpg"}
    for document in (
        {"images": image, "annotations": annotation},
        {"images": [image], "annotations": [annotation]},
        {"images": [whole], "annotations": [annotation]},
        {"images": [whole], "annotations": [{"image_id": 1, "keypoints": keypoints}]},
        {"people": people},
        {"people": [people]},
        {"people": [{"pose_keypoints_2d": keypoints}]},
        image,
    ):
        path.write_text(json.dumps(document))
        read_or_refuse(path)


@FUZZ
@given(
    xy=st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), min_size=18, max_size=18),
    absent=st.sets(st.integers(0, 17)),
)
def test_any_joints_survive_the_csv_to_the_pixel(
    tmp_path: Path, xy: list[tuple[float, float]], absent: set[int]
) -> None:
    present = np.array([j not in absent for j in range(18)])
    joints = Joints(np.where(present[:, None], xy, 0).astype(np.float32), present)
    write_keypoints({"a.jpg": joints}, tmp_path / "k.csv")
    back = read_keypoints(tmp_path / "k.csv")["a.jpg"]
    assert np.array_equal(back.present, joints.present)
    assert np.abs(back.xy - joints.xy).max() <= 0.5


def test_20000_rows_are_read_whole(tmp_path: Path) -> None:
    row = list(range(18))
    path = tmp_path / "k.csv"
    path.write_text("\n".join([CSV_HEADER, *(f"{number:05}.jpg: {row}: {row}" for number in range(20_000))]))
    assert len(read_keypoints(path)) == 20_000
