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
from posereid.embedder import Embedder
from posereid.errors import InputError
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


def test_a_whole_data_set_is_taken_with_all_its_splits(world: Path, crops: CropTable) -> None:
    assert len(read_image_folder(world).crops) == len(crops)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_images_is_an_input_error(make: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if make:
        folder.mkdir()
    with pytest.raises(InputError, match="folder"):
        read_image_folder(folder)
