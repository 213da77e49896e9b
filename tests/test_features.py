from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import posereid
from posereid.config import Recipe
from posereid.data.batches import CropImages, to_float
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.shards import write_shards
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.evaluate import evaluate_features
from posereid.features import embed_crops, read_image_folder, write_features
from posereid.training.checkpoint import new_embedder


@pytest.fixture(scope="module")
def embedder(tiny_recipe: Callable[..., Recipe]) -> Embedder:
    torch.manual_seed(0)
    return new_embedder(tiny_recipe(), identities=4).eval()


def test_embeddings_are_those_of_each_crop_alone(embedder: Embedder, crops: CropTable) -> None:
    query = crops.query
    features = posereid.embed_crops(embedder, query, batch_size=3)
    assert features.shape == (len(query), 128)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    images = CropImages(query, *embedder.crop_size)
    with torch.no_grad():
        alone = torch.cat([embedder.embed(to_float(images.image(n))[None]) for n in range(len(query))])
    assert np.allclose(features, alone.numpy(), atol=1e-5)


def test_embedding_leaves_the_network_in_its_mode(embedder: Embedder, crops: CropTable) -> None:
    embedder.train()
    embed_crops(embedder, crops.query[:2])
    assert embedder.training
    embedder.eval()


def test_a_folder_of_named_images_knows_identities(world: Path, tmp_path: Path) -> None:
    folder = read_image_folder(world / "query")
    assert folder.identified
    assert list(folder.names) == sorted(folder.names)
    features = np.zeros((len(folder.crops), 128), np.float32)
    write_features(tmp_path / "f.npz", folder, features)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"names", "features", "identities", "cameras"}
        assert arrays["names"].tolist() == list(folder.names)
        assert arrays["identities"].tolist() == [int(name[:4]) for name in folder.names]


def test_a_folder_of_other_images_has_names_only(tmp_path: Path) -> None:
    for name in ("anna.png", "bert.png"):
        Image.new("RGB", (32, 64)).save(tmp_path / name)
    folder = read_image_folder(tmp_path)
    assert not folder.identified
    write_features(tmp_path / "f.npz", folder, np.zeros((2, 128), np.float32))
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"names", "features"}


def test_a_csv_gives_identities_and_cameras(tmp_path: Path) -> None:
    Image.new("RGB", (32, 64)).save(tmp_path / "anna.png")
    (tmp_path / "crops.csv").write_text("path,identity,camera\nanna.png,7,3\n")
    folder = read_image_folder(tmp_path)
    assert folder.identified
    assert [(crop.identity, crop.camera) for crop in folder.crops] == [(7, 3)]
    assert folder.names == ("anna.png",)


def side(folder: Path, rows: list[str]) -> list[str]:
    """A CSV of grey crops, one for each row of identity,camera."""
    folder.mkdir()
    for number in range(len(rows)):
        Image.new("RGB", (32, 64)).save(folder / f"{number}.png")
    lines = [f"{number}.png,{row}" for number, row in enumerate(rows)]
    (folder / "crops.csv").write_text("\n".join(["path,identity,camera", *lines]))
    return rows


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("query", "gallery"),
    [
        (["bob,north", "dave,north"], ["alice,south", "bob,south", "carol,south", "dave,south", "-1,south", "0,south"]),
        (["2,0", "3,0"], ["0,1", "1,1", "2,1", "3,1", "-1,1"]),
        (["7,1", "8,1"], ["8,south", "7,south", "bob,1", "-1,1"]),
        (["20000000001,a", "x7,b"], ["20000000001,b", "x7,a", "20000000001,a"]),
    ],
)
def test_files_of_two_csvs_name_the_same_people(
    tmp_path: Path, query: list[str], gallery: list[str], sharded: bool
) -> None:
    people = sorted({row.split(",")[0] for row in gallery})
    files = []
    for name, rows in (("query", query), ("gallery", gallery)):
        folder = tmp_path / name
        side(folder, rows)
        if sharded:
            write_shards(load_crops(folder), tmp_path / f"{name}-shards")
            folder = tmp_path / f"{name}-shards"
        features = np.eye(len(people), 128, dtype=np.float32)[[people.index(row.split(",")[0]) for row in rows]]
        files.append(tmp_path / f"{name}.npz")
        write_features(files[-1], read_image_folder(folder), features)
    figures = evaluate_features(files).figures["reid"]
    assert (figures["rank1"], figures["mAP"]) == (100, 100)
    assert (figures["queries"], figures["queries_without_match"]) == (len(query), 0)


def test_what_was_left_out_or_decided_is_noted(tmp_path: Path) -> None:
    side(tmp_path / "set", ["anna,1", "0,1"])
    (tmp_path / "set" / "1.png").unlink()
    (tmp_path / "set" / "2.gif").touch()
    notes = read_image_folder(tmp_path / "set").notes
    assert "1 files are listed but not there, for example '1.png'." in notes[0]
    assert ["1 crops of identity 0" in notes[1], "'2.gif'" in notes[2], len(notes)] == [True, True, 3]
    (tmp_path / "set" / "crops.csv").unlink()
    (tmp_path / "set" / "sub").mkdir()
    Image.new("RGB", (32, 64)).save(tmp_path / "set" / "sub" / "a.png")
    assert "2 files or folders" in read_image_folder(tmp_path / "set").notes[0]
    Image.new("RGB", (32, 64)).save(tmp_path / "set" / "0001_c1s1_000001_00.png")
    assert "1 of 2 names do not say whose crop it is, such as '0.png'" in read_image_folder(tmp_path / "set").notes[1]


def test_a_whole_data_set_is_taken_with_all_its_splits(world: Path, crops: CropTable) -> None:
    assert len(read_image_folder(world).crops) == len(crops)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_images_is_an_input_error(make: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if make:
        folder.mkdir()
    with pytest.raises(InputError, match="folder"):
        read_image_folder(folder)
