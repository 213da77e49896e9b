"""Targets for what users bring: recipes, keypoints, sets of crops, images."""

import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import mutations
import numpy as np
from PIL import Image
from target import MEMORY, NAMES, Target, encoded, file_named, poses

from posereid.config import parse_recipe, read_recipe, write_recipe
from posereid.data.crops import CropTable
from posereid.data.images import MAX_PIXELS, open_image
from posereid.data.layouts import load_crops
from posereid.data.shards import INDEX, write_shards
from posereid.plain_yaml import plain_yaml
from posereid.pose.files import KeypointTable, read_keypoints, write_keypoints

# --- recipes -----------------------------------------------------------------------------------------------


def _read_recipe(path: Path) -> None:
    recipe = read_recipe(path)
    assert parse_recipe(plain_yaml(write_recipe(recipe), 2**20), "the recipe written again") == recipe


RECIPES = encoded(
    "seed: 3\ndata:\n  root: data/set\n  layout: csv\n  keypoints: [a.csv, b.json]\n  height: 64\n  width: 32\n",
    "losses: {adversarial: 5.0, saturating: false}\njoint:\n  epochs: 2\n  generator: {betas: [0.5, 0.9]}\n",
    "joint: {generator: &adam {learning_rate: 2e-4}, discriminators: *adam}\nevaluation: {false_match_rates: [0.1]}\n",
)


# --- keypoints ---------------------------------------------------------------------------------------------


def _read_keypoints(path: Path) -> None:
    table = read_keypoints(path)
    assert isinstance(table, KeypointTable)
    for joints in table.values():
        assert np.isfinite(joints.xy).all()
        assert (joints.xy >= 0).all()


def _written_keypoints(format: str) -> list[bytes]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "keypoints")
        write_keypoints(poses(), path, format)  # type: ignore[arg-type]
        files = sorted(path.iterdir())[:1] if path.is_dir() else [path]
        return [file.read_bytes() for file in files]


def _openpose_folder(content: bytes, home: Path) -> Path:
    folder = home / "poses"
    folder.mkdir()
    (folder / "a_keypoints.json").write_bytes(content)
    (folder / "b_keypoints.json").write_bytes(_written_openpose())
    return folder


@cache
def _written_openpose() -> bytes:
    return _written_keypoints("openpose")[0]


# --- sets of crops -----------------------------------------------------------------------------------------


def _touch(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()


def _own_set(content: bytes, home: Path) -> Path:
    _touch(home, "a.jpg", "b.jpg", "sub/c.jpg")
    (home / "link.jpg").symlink_to("../outside/x.jpg")
    (home / "linked").symlink_to("../outside")
    (home / "loop.jpg").symlink_to("loop.jpg")
    (home / "crops.csv").write_bytes(content)
    return home


def _market_set(home: Path) -> None:
    _touch(home, *(f"bounding_box_train/{name}" for name in NAMES), "query/0003_c1s1_000451_03.jpg")


def _with_manifest(content: bytes, home: Path) -> Path:
    _market_set(home)
    (home / "manifest.csv").write_bytes(content)
    return home


def _named_files(content: bytes, home: Path) -> Path:
    _market_set(home)
    for name in content.replace(b"\0", b"").replace(b"/", b"_").split(b"\n")[:20]:
        if name not in (b"", b".", b".."):
            (home / "query" / Path(name[:255].decode("utf-8", "surrogateescape")).name).touch()
    return home


def _msmt17_set(content: bytes, home: Path) -> Path:
    _touch(home, *(f"train/0000/0000_{n:03}_{n + 1:02}_0303morning_0008_0.jpg" for n in range(3)))
    _touch(home, "test/0001/0001_000_02_0303morning_0008_0.jpg")
    (home / "list_train.txt").write_bytes(content)
    return home


def _sharded_set(content: bytes, home: Path) -> Path:
    for name, data in _shards().items():
        (home / name).write_bytes(data)
    (home / "shard-000001.tar").symlink_to("../outside/x.jpg")
    (home / INDEX).write_bytes(content)
    return home


@cache
def _shards() -> dict[str, bytes]:
    with TemporaryDirectory(dir=MEMORY) as folder:
        root, out = Path(folder, "set"), Path(folder, "shards")
        (root / "bounding_box_train").mkdir(parents=True)
        for name in NAMES:
            Image.new("RGB", (4, 8)).save(root / "bounding_box_train" / name)
        write_keypoints(poses(), root / "market-annotation-train.csv")
        write_shards(load_crops(root), out)
        return {file.name: file.read_bytes() for file in out.iterdir()}


def _read_crops(root: Path) -> None:
    table = load_crops(root)
    assert isinstance(table, CropTable)
    home = root.resolve()
    for crop in table:
        place = crop.path if crop.place is None else crop.place.tar
        assert place.resolve().is_relative_to(home), f"{crop.path} lies outside"
        assert crop.mask_path is None or crop.mask_path.resolve().is_relative_to(home)
    assert len(table.fingerprint) == 64
    "".join(table.left_out()).encode()


# --- images ------------------------------------------------------------------------------------------------


def _read_image(path: Path) -> None:
    image = open_image(path)
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS
    image.getpixel((image.width - 1, image.height - 1))


@cache
def _images() -> list[bytes]:
    rows, columns = np.mgrid[:16, :8]
    picture = Image.fromarray(np.stack([rows * 15, columns * 30, rows ^ columns], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for format, mode, options in (
        ("JPEG", "RGB", {"exif": exif}), ("JPEG", "CMYK", {"progressive": True}), ("PNG", "RGB", {"exif": exif}),
        ("PNG", "P", {"transparency": 3}), ("PNG", "I;16", {}), ("BMP", "RGB", {}), ("WEBP", "RGBA", {"exif": exif}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [picture]}), ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {"compression": "tiff_adobe_deflate"}), ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "RGB", {"compression": "jpeg", "exif": exif}),
    ):  # fmt: skip
        file = io.BytesIO()
        (picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)).save(file, format, **options)
        found.append(file.getvalue())
    return found


# --- all of them -------------------------------------------------------------------------------------------

_OWN = encoded(
    "path,identity,camera,split\na.jpg,1,1,train\nb.jpg,1,2,query\nsub/c.jpg,zoe,north,gallery\n",
    'path,identity,camera\n"a.jpg",1,1\nsub/c.jpg,2,1\nloop.jpg,3,1\nabsent.jpg,4,1\n',
)
_MANIFEST = f"name,source,target_pose,identity,camera,checkpoint\n{NAMES[1]},{NAMES[0]},{NAMES[2]},2,2,{'f' * 64}\n"
_LISTS = [f"0000/0000_{n:03}_{n + 1:02}_0303morning_0008_0.jpg {n}\n" for n in range(3)]

INPUT_TARGETS = (
    Target("recipe", file_named("recipe.yaml"), _read_recipe, lambda: RECIPES, mutations.yaml_variant),
    Target(
        "keypoints_csv", file_named("k.csv"), _read_keypoints, lambda: _written_keypoints("csv"), mutations.row_variant
    ),
    Target(
        "keypoints_json",
        file_named("a_keypoints.json"),
        _read_keypoints,
        lambda: _written_keypoints("coco") + _written_keypoints("openpose"),
        mutations.json_variant,
    ),
    Target(
        "openpose_folder",
        _openpose_folder,
        _read_keypoints,
        lambda: _written_keypoints("openpose"),
        mutations.json_variant,
    ),
    Target("crops_csv", _own_set, _read_crops, lambda: _OWN, mutations.table_variant),
    Target("manifest", _with_manifest, _read_crops, lambda: encoded(_MANIFEST), mutations.table_variant),
    Target(
        "crop_names",
        _named_files,
        _read_crops,
        lambda: encoded("\n".join(NAMES), "0005_c2_f0046985.jpg\n0003_c1_22.png"),
        lambda content, random: mutations.table_variant(content, random, "_"),
    ),
    Target("msmt17_list", _msmt17_set, _read_crops, lambda: encoded("".join(_LISTS)), mutations.list_variant),
    Target("shard_index", _sharded_set, _read_crops, lambda: [_shards()[INDEX]], mutations.json_variant),
    Target("image", file_named("image"), _read_image, _images, mutations.image_variant),
)
