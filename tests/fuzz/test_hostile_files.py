"""Files made to exhaust memory, to reach out of their folder, or to confuse: each with the sentence that refuses it."""

import hashlib
import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mutations import png
from PIL import Image

from posereid.config import EvaluationRecipe, read_recipe
from posereid.data.crops import Crop
from posereid.data.images import open_image
from posereid.data.layouts import load_crops
from posereid.data.readers import read_rows
from posereid.errors import InputError
from posereid.evaluation.comparison import compare, queries_file
from posereid.evaluation.embeddings import read_embeddings
from posereid.evaluation.generator_quality import pick_test_pairs
from posereid.evaluation.per_query import COLUMNS, QueryFigures
from posereid.pose.files import read_keypoints
from posereid.pose.joints import Joints


@contextmanager
def little_memory(megabytes: int = 50) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 2**20, f"{peak / 2**20:.0f} MiB"


def refusal(read: Callable[[Path], object], path: Path, content: bytes | str | None = None) -> str:
    """What is said of a file, without its folder."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught, little_memory():
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message.replace(f"{path.parent}/", "")


# --- recipes -----------------------------------------------------------------------------------------------


def laughs(first: str, width: int, depth: int, last: str) -> str:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join([f"a0: &a0 {first}", *levels, f"{last}*a{depth - 1}", ""])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (laughs("x", 10, 12, "seed: "), "found aliases that stand for more than 262,144 characters"),
        (laughs("{seed: 1}", 10, 12, "<<: "), "found aliases that stand for more than 262,144 characters"),
        (laughs(f"'{'x' * 100_000}'", 9, 2, "seed: "), "found aliases that stand for more than 262,144 characters"),
        ("seed: &a [*a]\n", "found a value that holds itself"),
        ("data: &a {root: *a}\n", "found a value that holds itself"),
        ("seed: 1\nlosses: {}\nseed: 2\n", "found the field 'seed' twice"),
        (
            "data: {root: 2026-01-01}\n",
            "found a value of the type 'timestamp', which no recipe holds; put text",
        ),
        ("data: {root: !!binary aGFsbG8=}\n", "found a value of the type 'binary'"),
        ("seed: !!set {1}\n", "found a value of the type 'set'"),
        ("data: !!omap [root: a]\n", "found a value of the type 'omap'"),
        (f"seed: {'9' * 5000}\n", "found a number of 5000 characters"),
        (f"seed: [0x{'f' * 5000}]\n", "found a number of 5002 characters"),
        (f"seed: {'1:' * 400}1.5\n", "found a number of 803 characters"),
        ("seed: !!int x\n", "invalid literal for int() with base 10: 'x'"),
        ("seed: !!int ''\n", "string index out of range"),
        ("losses: {saturating: !!bool x}\n", "'x'"),
        ("#" * 2**18 + "\n", "it has more than 262,144 bytes, which no recipe needs"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_yaml_that_is_more_than_it_seems_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    message = refusal(read_recipe, tmp_path / "r.yaml", text)
    assert message.startswith(f"r.yaml: this recipe cannot be read as YAML ({problem}")


def test_aliases_that_stay_small_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "joint:\n  generator: &adam {learning_rate: 0.5, weight_decay: 0.25}\n  discriminators: *adam\n"
        "  embedder:\n    <<: *adam\n    learning_rate: 0.125\n"
    )
    joint = read_recipe(path).joint
    assert joint.discriminators == joint.generator
    assert (joint.embedder.learning_rate, joint.embedder.weight_decay) == (0.125, 0.25)


def test_a_long_value_is_not_quoted_whole(tmp_path: Path) -> None:
    assert "…" in refusal(read_recipe, tmp_path / "r.yaml", f"seed: '{'x' * 100_000}'\n")
    assert "…" in refusal(read_recipe, tmp_path / "r.yaml", f"? {'x' * 100_000}\n: 1\n")


# --- keypoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 100_000, '{"people":' * 100_000, '{"people": [' + "[" * 100_000])
def test_json_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(read_keypoints, tmp_path / "k.json", text) == (
        "k.json: found text that is not JSON (it is nested too deeply), expected JSON; write the file again."
    )


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({"id": 1, "file_name": ["a.jpg"]}, "found the name a JSON list of 1 entries"),
        ({"id": 1, "file_name": {}}, "found the name a JSON object of 0 entries"),
        ({"id": 1, "file_name": "../.."}, "found the name '..'"),
        ({"id": True, "file_name": "a.jpg"}, "found the id True"),
        ({"id": [1], "file_name": "a.jpg"}, "found the id a JSON list of 1 entries"),
    ],
)
def test_coco_images_are_named_by_text_and_numbered_by_numbers(tmp_path: Path, image: dict, problem: str) -> None:
    document = json.dumps({"images": [image], "annotations": []})
    assert refusal(read_keypoints, tmp_path / "k.json", document).startswith(f"k.json, image 1: {problem}")


@pytest.mark.parametrize("name", ["a\nb", "caf\udce9", "a\x1b[2J", "a\\b"])
def test_openpose_files_of_unprintable_names_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "poses"
    folder.mkdir()
    (folder / f"{name}_keypoints.json").write_text('{"people": []}')
    message = refusal(read_keypoints, folder)
    assert message.isprintable()
    assert message.startswith("poses: found the name ")


# --- sets of crops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../outside/x.jpg", "sub/../../outside/x.jpg", "link.jpg", "linked/x.jpg", "..\\x.jpg"]
)
def test_a_list_given_as_a_file_stays_inside_its_folder_too(tmp_path: Path, path: str) -> None:
    for folder in ("set/sub", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside" / "x.jpg").touch()
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "outside")
    rows = f"path,identity,camera\n{path},1,1\n"
    assert refusal(load_crops, tmp_path / "set" / "mine.csv", rows).startswith("mine.csv, line 2: found the path ")
    absolute = f"path,identity,camera\n{tmp_path}/outside/x.jpg,1,1\n"
    assert "relative to it" in refusal(load_crops, tmp_path / "set" / "mine.csv", absolute)


def test_a_manifest_opens_nothing_that_it_names(tmp_path: Path) -> None:
    name = "0002_c1s1_000451_03.jpg"
    train = tmp_path / "set" / "bounding_box_train"
    train.mkdir(parents=True)
    (train / name).touch()
    (tmp_path / "outside.jpg").touch()
    hostile = ["../outside.jpg", str(tmp_path / "outside.jpg"), "..\\outside.jpg", "two\x1b[2Jlines.jpg"]
    for row in [f"{path},{name},{name}" for path in hostile] + [f"{name},/etc/passwd,a", f"{name},{name},../../a"]:
        (tmp_path / "set" / "manifest.csv").write_text(f"name,source,target_pose\n{row}\n")
        with pytest.raises(
            InputError, match=r"manifest\.csv, line 2: found the .*expected a file's name without folders"
        ):
            load_crops(tmp_path / "set")


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "a\nWRONG: b.jpg", "a\x1b[2J.jpg"])
def test_names_of_files_can_be_shown(tmp_path: Path, name: str) -> None:
    (tmp_path / "query").mkdir()
    for each in ("0002_c1s1_000451_03.jpg", name):
        (tmp_path / "query" / each).touch()
    table = load_crops(tmp_path)
    assert len(table.unparsed) == 1
    assert all(text.isprintable() for text in (*table.unparsed, *table.left_out()))


def test_a_path_that_no_system_knows_is_refused() -> None:
    with pytest.raises(InputError, match="embedded null byte"):
        read_rows(Path("a\0b.csv"), ("from", "to"))


# --- test pairs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("../../etc/passwd,a.jpg", "names 1 crops that the test split does not hold, for example '../../etc/passwd'"),
        (f"{'x' * 5000},a.jpg", "names 1 crops that the test split does not hold, for example 'xxx"),
        ("a.jpg,a.jpg", "line 2: found 'a.jpg' twice, expected two posed crops of one person"),
        ("a.jpg,other.jpg", "line 2: found crops of the identities 1 and 2"),
        ("junk.jpg,junk2.jpg", "line 2: found crops of the identities -1 and -1"),
        ("a.jpg,bare.jpg", "line 2: found 'bare.jpg', which has no joints"),
        ("a.jpg,twice.jpg", "line 2: found 'twice.jpg', a name that 2 test crops have"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_pairs_that_are_no_pose_pairs_of_one_person_are_refused(tmp_path: Path, row: str, problem: str) -> None:
    joints = Joints(np.ones((18, 2), np.float32), np.ones(18, bool))
    people = {"a.jpg": 1, "b.jpg": 1, "other.jpg": 2, "junk.jpg": -1, "junk2.jpg": -1}
    crops = [Crop(Path(name), name, identity, 1, "query", joints) for name, identity in people.items()]
    crops += [Crop(Path(folder, "twice.jpg"), "twice.jpg", 1, 1, "gallery", joints) for folder in "xy"]
    crops.append(Crop(Path("bare.jpg"), "bare.jpg", 1, 1, "query"))

    def read(path: Path) -> list[tuple[int, int]]:
        return pick_test_pairs(crops, EvaluationRecipe(pairs_file=path))

    assert problem in refusal(read, tmp_path / "pairs.csv", f"from,to\n{row}\n")
    (tmp_path / "pairs.csv").write_text("from,to\na.jpg,b.jpg\nb.jpg,a.jpg\n")
    assert read(tmp_path / "pairs.csv") == [(0, 1), (1, 0)]


# --- features ----------------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + data


def described(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, features=np.ones((2, 3), np.float32), identities=np.array([1, 2]))
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {f"{name}.npy": data for name, data in members.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def read_two(path: Path) -> object:
    return read_embeddings([path, path])


UNREADABLE = "f.npz cannot be read as an .npz file of plain arrays ("


@pytest.mark.parametrize(
    "header",
    [
        described("'<f4'", "(10000000000000,)"),
        described("'<f4'", "(1000000000, 1000000)"),
        described("'<f4'", f"({10**30},)"),
        described("'<f4'", "(4294967296, 4294967296)"),
        described("'<f4'", "(-2, -2)"),
        described("'|O'", "(2, 3)"),
        described("()", "(2, 3)"),
        described("('<f4',)", "(2, 3)"),
        described("[('a', '|O')]", "(2, 3)"),
        "{'descr': (\n",
        "  x\n y\n",
        "(" * 3000,
        "-" * 5000 + "1",
        "{[]: 1}\n",
        "{1: 1, 'a': 2}\n",
        "\0",
    ],
    ids=lambda header: header[:60],
)
def test_an_array_that_is_not_what_its_header_says_is_refused(tmp_path: Path, header: str) -> None:
    assert refusal(read_two, tmp_path / "f.npz", npz(features=npy(header))).startswith(UNREADABLE)


def test_an_archive_that_numpy_takes_for_something_else_is_refused(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.ones(3))
    path = tmp_path / "f.npz"
    for start in (array.getvalue(), b"\x80\x04N."):
        path.write_bytes(start + npz())
        query, _ = read_embeddings([path, path])  # the archive behind it, as zipfile finds it
        assert query.features.shape == (2, 3)


def test_any_number_of_crops_without_numbers_is_refused(tmp_path: Path) -> None:
    nothing = npz(
        features=npy(described("'<f4'", "(1000000000000, 0)")),
        identities=npy(described("'<U0'", "(1000000000000,)")),
    )
    assert refusal(read_two, tmp_path / "f.npz", nothing) == (
        "f.npz: features has shape (1000000000000, 0); at least one number each is expected."
    )


@pytest.mark.parametrize("name", ["identities", "cameras", "names"])
@pytest.mark.parametrize("data", [struct.pack("<II", 0x110000, 0xFFFFFFFF), struct.pack("<II", 0xD800, 65)])
def test_text_beyond_unicode_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    hostile = npz(**{name: npy(described("'<U1'", "(2,)"), data)})
    assert refusal(read_two, tmp_path / "f.npz", hostile) == (
        f"f.npz: {name} holds bytes that are no text; write text."
    )


def test_members_that_unpack_to_much_together_are_refused(tmp_path: Path) -> None:
    megabyte = npy(described("'|u1'", "(1048000,)"), bytes(1_048_000))
    message = refusal(read_two, tmp_path / "f.npz", npz(**{f"a{n}": megabyte for n in range(64)}))
    assert message == (
        "f.npz claims to unpack to 64 MiB, more than the 16 MiB that features in a file of its size need; write it "
        "again without compression."
    )


# --- figures -----------------------------------------------------------------------------------------------


def evaluated(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    queries = f"{','.join(COLUMNS)}\na.jpg,1,1,1,1.0,1.0\nb.jpg,2,1,2,0.5,0.5\n"
    digest = hashlib.sha256(queries.encode()).hexdigest()
    document = {"schema": 2, "seed": 3, "data": {"test_fingerprint": "f"}, "reid": {"queries_sha256": digest}}
    (folder / "evaluation.json").write_text(json.dumps(document | changes))
    queries_file(folder / "evaluation.json").write_text(queries)
    return folder


@pytest.mark.parametrize("seed", [None, "x", True, [[[]]], 1.5, float("nan")])
def test_a_seed_that_is_no_number_is_none(tmp_path: Path, seed: object) -> None:
    comparison = compare(evaluated(tmp_path / "a"), evaluated(tmp_path / "b", seed=seed), resamples=100)
    assert comparison["seeds"] == [3, None]


@pytest.mark.parametrize("data", [{}, {"test_fingerprint": None}, {"test_fingerprint": ["f"]}, []])
def test_two_evaluations_of_unknown_tests_are_not_of_the_same_test(tmp_path: Path, data: object) -> None:
    runs = [evaluated(tmp_path / name, data=data) for name in "ab"]
    with pytest.raises(InputError, match="not written by posereid evaluate"):
        compare(*runs, resamples=100)


@pytest.mark.parametrize("rank", ["٣", "1_0", " 1e3", "+1", "1.0", "9" * 5000])
def test_a_rank_is_written_in_plain_digits(tmp_path: Path, rank: str) -> None:
    rows = f"{','.join(COLUMNS)}\na,1,1,{rank},0.5,0.5\n"
    assert refusal(QueryFigures.read, tmp_path / "q.csv", rows).startswith("q.csv, line 2: found first_hit_rank ")


# --- images ------------------------------------------------------------------------------------------------


def ihdr(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


PIXELS, END = (b"IDAT", zlib.compress(bytes(8 * 25))), (b"IEND", b"")
TOO_LARGE = "found no readable image (ValueError: Decompressed data too large"
MUCH = zlib.compress(bytes(2**25), 9)


@pytest.mark.parametrize(
    ("chunks", "problem"),
    [
        ([ihdr(2**31 - 1, 2**31 - 1), PIXELS, END], "found too many pixels, expected 1 to 25,000,000 of them"),
        ([ihdr(50_000, 1001), PIXELS, END], "found 50000 × 1001 pixels, expected 1 to 25,000,000 of them"),
        (
            [ihdr(8, 8), (b"zTXt", b"a\0\0" + MUCH), PIXELS, END],
            TOO_LARGE,
        ),
        (
            [ihdr(8, 8), (b"iTXt", b"a\0\1\0\0\0" + MUCH), PIXELS, END],
            TOO_LARGE,
        ),
        (
            [ihdr(8, 8), (b"iCCP", b"a\0\0" + MUCH), PIXELS, END],
            TOO_LARGE,
        ),
        (
            [ihdr(8, 8), *((b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1), 9)) for _ in range(70)), PIXELS, END],
            "found no readable image (ValueError: Too much memory used in text chunks",
        ),
    ],
    ids=["size", "just too large", "zTXt", "iTXt", "ICC profile", "many texts"],
)
def test_a_png_that_unpacks_to_much_is_refused(tmp_path: Path, chunks: list[tuple[bytes, bytes]], problem: str) -> None:
    with little_memory(200):
        message = refusal_of_image(tmp_path / "a.png", png(chunks))
    assert message.startswith(f"a.png: {problem}")


def refusal_of_image(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_image(path)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_pixels_that_the_header_does_not_know_are_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png([ihdr(8, 8), (b"IDAT", MUCH), END]))
    with little_memory():
        assert open_image(tmp_path / "a.png").size == (8, 8)


def test_an_animation_on_a_huge_canvas_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    content = bytearray(file.getvalue())
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = b"\xff\x3f\0\xff\x3f\0"
    assert "too many pixels" in refusal_of_image(tmp_path / "a.webp", bytes(content))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_of_many_frames_the_first_alone_is_decoded(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(50)]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:], lossless=True)
    image = open_image(tmp_path / "a")
    assert (image.size, image.getpixel((0, 0))) == ((8, 8), (0, 0, 0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "entry", [struct.pack("<HHII", 0x0112, 2, 2**31 - 1, 8), struct.pack("<HHII", 0x8769, 4, 1, 8)]
)
def test_exif_that_claims_much_or_holds_itself_is_read_past(tmp_path: Path, entry: bytes) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "a.jpg").write_bytes(file.getvalue()[:2] + segment + file.getvalue()[2:])
    with little_memory():
        assert open_image(tmp_path / "a.jpg").size == (8, 8)
