"""The three keypoint formats as text and JSON documents: the field's CSV, OpenPose's JSON, COCO's JSON.

Readers take what a file holds and return joints; whatever is wrong raises
:class:`posereid.errors.InputError`, one sentence with the file (and line), what was found, what was expected
and what to do.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from posereid.messages import complaint, shown
from posereid.pose.joints import JOINT_COUNT, Joints, joint_index

CSV_HEADER = "name:keypoints_y:keypoints_x"

MAX_COORDINATE = 100_000
"""Coordinates beyond this, in pixels, are taken for damage."""

_BODY_25_TO_18 = (*range(8), *range(9, 19))
"""Position in OpenPose's BODY_25 of each of the 18 joints: 8 is the middle of the hips, 19 to 24 are feet."""

_COCO_NAMES = [
    "nose",
    *("left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
]
_COCO_TO_18 = [joint_index(name) for name in _COCO_NAMES]
_NECK = joint_index("neck")
_SHOULDERS = [joint_index("right_shoulder"), joint_index("left_shoulder")]


def load_json(text: str, source: str) -> Any:
    """Parse JSON; ``source`` names the file (and line) in the error."""
    try:
        return json.loads(text)
    except RecursionError:
        problem = "it is nested too deeply"
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at line {error.lineno}, column {error.colno}"
    except ValueError as error:  # a whole number of thousands of digits
        problem = str(error).partition(";")[0]
    raise complaint(source, f"text that is not JSON ({problem})", "JSON", "write the file again")


def _problem_with_numbers(values: object) -> str | None:
    """What keeps ``values`` from being a list of pixel coordinates, or None."""
    if not isinstance(values, list):
        return f"{shown(values)} in place of a list"
    if not set(map(type, values)) <= {int, float}:  # to isinstance a bool is an int
        wrong = next(value for value in values if type(value) not in (int, float))
        return f"the value {shown(wrong)}"
    if not all(-MAX_COORDINATE <= value <= MAX_COORDINATE for value in values):  # refuses NaN too
        wrong = next(value for value in values if not -MAX_COORDINATE <= value <= MAX_COORDINATE)
        return f"the value {shown(wrong)}"
    return None


def name_problem(name: object) -> str | None:
    """What keeps ``name`` from being a plain file name, or None."""
    if not isinstance(name, str) or not name:
        return "an empty name" if name == "" else f"the name {shown(name)}"
    if "/" in name or "\\" in name or ".." in name or name == "." or not name.isprintable():
        return f"the name {shown(name)}"
    return None


def joints_from(x: npt.ArrayLike, y: npt.ArrayLike, seen: npt.ArrayLike = True) -> list[Joints]:
    """(n, 18) columns and rows in pixels -> n read-only joints; absent where not ``seen`` or negative."""
    xy = np.stack([np.asarray(x, np.float32), np.asarray(y, np.float32)], axis=-1)
    present = (xy >= 0).all(axis=-1) & np.asarray(seen, bool)
    xy[~present] = 0
    xy.setflags(write=False)
    present.setflags(write=False)
    return [Joints(one_xy, one_present) for one_xy, one_present in zip(xy, present, strict=True)]


# --- the field's CSV ---------------------------------------------------------------------------------------


def parse_csv(text: str, source: str) -> dict[str, Joints]:
    """``name:keypoints_y:keypoints_x`` lines -> joints by name, in file order."""
    lines = text.split("\n")  # splitlines() would also split at characters that a name may hold
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise complaint(source, "an empty file", f"{CSV_HEADER!r} and one line per crop", "write the file again")
    number, header = numbered[0]
    if header.strip() != CSV_HEADER:
        raise complaint(
            f"{source}, line {number}",
            f"{shown(header.strip())}",
            f"the header {CSV_HEADER!r}",
            "add it or give a file in a format that posereid reads",
        )
    line_of: dict[str, int] = {}
    columns: list[list[float]] = []
    rows: list[list[float]] = []
    for number, line in numbered[1:]:
        place = f"{source}, line {number}"
        parts = line.split(":")
        if len(parts) != 3:
            raise complaint(
                place,
                f"{len(parts)} fields",
                f"3 separated by ':' ({CSV_HEADER})",
                "correct or delete the line",
            )
        name = parts[0].strip()
        if problem := name_problem(name):
            raise complaint(place, problem, "a file name without folders", "correct or delete the line")
        if name in line_of:
            raise complaint(
                place,
                f"the name {shown(name, 80)} again after line {line_of[name]}",
                "each name once",
                "delete one of the two lines",
            )
        line_of[name] = number
        rows.append(_csv_list(parts[1], "y", place))
        columns.append(_csv_list(parts[2], "x", place))
    joints = joints_from(np.reshape(columns, (-1, JOINT_COUNT)), np.reshape(rows, (-1, JOINT_COUNT)))
    return dict(zip(line_of, joints, strict=True))


def _csv_list(text: str, axis: str, place: str) -> list[float]:
    values = load_json(text, f"{place}, {axis} coordinates")
    problem = _problem_with_numbers(values)
    if problem is None and len(values) != JOINT_COUNT:
        problem = f"{len(values)} joints"
    if problem is not None:
        raise complaint(
            place,
            f"{problem} among the {axis} coordinates",
            f"{JOINT_COUNT} pixel positions of at most {MAX_COORDINATE}",
            "write one number per joint and -1 where it is absent",
        )
    return values


def csv_text(table: Mapping[str, Joints]) -> str:
    """The field's CSV: whole pixels, -1 for absent joints and for negative positions."""
    lines = [CSV_HEADER]
    for name, joints in table.items():
        if (problem := name_problem(name)) or ":" in name or name != name.strip():
            raise complaint(
                "Keypoints cannot be written as CSV",
                f"{problem or f'the name {shown(name)}'}",
                "a file name without folders, ':' or outer spaces",
                "rename the crop",
            )
        rounded = np.rint(joints.xy).astype(np.int64)
        rounded[~joints.present | (rounded < 0).any(axis=1)] = -1
        lines.append(f"{name}: {rounded[:, 1].tolist()}: {rounded[:, 0].tolist()}")
    return "\n".join(lines) + "\n"


# --- OpenPose ----------------------------------------------------------------------------------------------


def parse_openpose(document: Mapping[str, Any], source: str) -> tuple[Joints, int]:
    """One OpenPose document -> the joints of its surest person and how many people it holds.

    Both of OpenPose's models are read, COCO's 18 joints and BODY_25; nobody found gives absent joints.
    """
    people = document["people"]
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise complaint(
            source,
            f"{shown(people)} under 'people'",
            "a list of objects",
            "write the file again with OpenPose",
        )
    bodies = [_openpose_body(person.get("pose_keypoints_2d"), source) for person in people]
    if not bodies:
        nothing = np.zeros((1, JOINT_COUNT))
        return joints_from(nothing, nothing, False)[0], 0
    best = max(bodies, key=lambda body: float(body[:, 2].sum()))
    return joints_from(best[None, :, 0], best[None, :, 1], best[None, :, 2] > 0)[0], len(bodies)


def _openpose_body(values: Any, source: str) -> npt.NDArray[np.float64]:
    """(18, 3): x, y, confidence."""
    problem = _problem_with_numbers(values)
    if problem is None and len(values) not in (3 * JOINT_COUNT, 75):
        problem = f"{len(values)} numbers"
    if problem is not None:
        raise complaint(
            source,
            f"{problem} under 'pose_keypoints_2d'",
            "18 or 25 triples (x, y, confidence)",
            "write the file again with OpenPose's COCO or BODY_25 model",
        )
    body = np.array(values, np.float64).reshape(-1, 3)
    return body if len(body) == JOINT_COUNT else body[list(_BODY_25_TO_18)]


def openpose_document(joints: Joints) -> dict[str, Any]:
    """One person with confidence 1 where a joint is present and 0 where it is absent."""
    triples = np.concatenate([joints.xy, joints.present[:, None]], axis=1).astype(np.float64)
    triples[~joints.present] = 0
    return {"version": 1.3, "people": [{"pose_keypoints_2d": triples.ravel().tolist()}]}


# --- COCO --------------------------------------------------------------------------------------------------


def parse_coco(document: Mapping[str, Any], source: str) -> tuple[dict[str, Joints], list[str]]:
    """A COCO document of 17 joints -> joints by file name, and the names of images with several people.

    The neck is the mean of both shoulders where both are present. Of several people in an image the one with
    the most joints counts; an image without annotation gives absent joints.
    """
    name_of = _coco_images(document["images"], source)
    annotations = document["annotations"]
    if not isinstance(annotations, list):
        raise complaint(source, f"{shown(annotations)} under 'annotations'", "a list", "write the file again")
    best = {name: np.zeros((JOINT_COUNT, 3)) for name in name_of.values()}
    people = dict.fromkeys(best, 0)
    for number, annotation in enumerate(annotations, 1):
        place = f"{source}, annotation {number}"
        image = annotation.get("image_id") if isinstance(annotation, dict) else None
        if type(image) not in (int, str) or image not in name_of:
            raise complaint(
                place,
                f"image_id {shown(image)}",
                "the id of an entry of 'images'",
                "correct or delete the annotation",
            )
        body = _coco_body(annotation.get("keypoints"), place)
        name = name_of[image]
        people[name] += 1
        if (body[:, 2] > 0).sum() > (best[name][:, 2] > 0).sum():
            best[name] = body
    stacked = np.array(list(best.values())).reshape(-1, JOINT_COUNT, 3)
    joints = joints_from(stacked[..., 0], stacked[..., 1], stacked[..., 2] > 0)
    return dict(zip(best, joints, strict=True)), [name for name, count in people.items() if count > 1]


def _coco_images(images: Any, source: str) -> dict[int | str, str]:
    """File name, without folders, by image id."""
    if not isinstance(images, list) or not images:
        raise complaint(source, f"{shown(images)} under 'images'", "a list of images", "write the file again")
    name_of: dict[int | str, str] = {}
    number_of: dict[str, int] = {}
    for number, image in enumerate(images, 1):
        place = f"{source}, image {number}"
        identifier, path = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        name = path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else path
        problem = name_problem(name)
        if type(identifier) not in (int, str):  # to isinstance a bool is an int
            problem = f"the id {shown(identifier)}"
        elif identifier in name_of:
            problem = f"the id {shown(identifier)} again"
        elif problem is None and name in number_of:
            problem = f"the name {shown(name, 80)} again after image {number_of[name]}"
        if problem is not None:
            raise complaint(
                place, problem, "an id and a file_name that no other image has", "correct or delete the entry"
            )
        assert isinstance(identifier, int | str)
        assert isinstance(name, str)
        name_of[identifier] = name
        number_of[name] = number
    return name_of


def _coco_body(values: Any, place: str) -> npt.NDArray[np.float64]:
    """(18, 3): x, y, and 1 where the joint is present."""
    problem = _problem_with_numbers(values)
    if problem is None and len(values) != 3 * len(_COCO_NAMES):
        problem = f"{len(values)} numbers"
    if problem is not None:
        raise complaint(
            place,
            f"{problem} under 'keypoints'",
            "17 triples (x, y, visibility)",
            "correct or delete the annotation",
        )
    coco = np.array(values, np.float64).reshape(-1, 3)
    coco[:, 2] = (coco[:, 2] > 0) & (coco[:, :2] >= 0).all(axis=1)
    body = np.zeros((JOINT_COUNT, 3))
    body[_COCO_TO_18] = coco
    shoulders = body[_SHOULDERS]
    if shoulders[:, 2].all():
        body[_NECK] = shoulders.mean(axis=0)
    return body


def coco_document(table: Mapping[str, Joints]) -> dict[str, Any]:
    """One image and one annotation per crop; COCO has no neck, so the neck's own position is lost."""
    images, annotations = [], []
    for number, (name, joints) in enumerate(table.items(), 1):
        triples = np.concatenate([joints.xy, 2 * joints.present[:, None]], axis=1).astype(np.float64)
        triples[~joints.present] = 0
        chosen = triples[_COCO_TO_18]
        images.append({"id": number, "file_name": name})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "keypoints": chosen.ravel().tolist(),
                "num_keypoints": int((chosen[:, 2] > 0).sum()),
            }
        )
    categories = [{"id": 1, "name": "person", "keypoints": _COCO_NAMES}]
    return {"images": images, "annotations": annotations, "categories": categories}
