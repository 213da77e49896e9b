"""Feature files of other frameworks, hostile ones too, and multi-query pooling."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.errors import InputError
from posereid.evaluation.embeddings import Embeddings, labels_fingerprint, pool_queries, read_embeddings


def arrays(**changes):
    """What one file holds: 2 queries, 3 gallery crops, 4 dimensions."""
    rng = np.random.default_rng(0)
    held = {
        "query_features": rng.normal(size=(2, 4)).astype(np.float32),
        "query_identities": np.array([1, 2]),
        "query_cameras": np.array([1, 1]),
        "query_names": np.array(["a.jpg", "b.jpg"]),
        "gallery_features": rng.normal(size=(3, 4)).astype(np.float32),
        "gallery_identities": np.array([1, 2, 2]),
        "gallery_cameras": np.array([2, 2, 3]),
        "gallery_names": np.array(["c.jpg", "d.jpg", "e.jpg"]),
    }
    return {name: value for name, value in (held | changes).items() if value is not None}


def saved(path: Path, held: dict) -> Path:
    np.savez(path, **held)
    return path


def test_one_file_and_two_files_say_the_same(tmp_path: Path) -> None:
    held = arrays()
    one = read_embeddings([saved(tmp_path / "both.npz", held)])
    sides = [
        saved(tmp_path / f"{side}.npz", {n.removeprefix(f"{side}_"): a for n, a in held.items() if n.startswith(side)})
        for side in ("query", "gallery")
    ]
    for first, second, side in zip(one, read_embeddings(sides), ("query", "gallery"), strict=True):
        np.testing.assert_array_equal(first.features, second.features)
        assert first.identities.tolist() == second.identities.tolist() == held[f"{side}_identities"].tolist()
        assert first.names == second.names == tuple(held[f"{side}_names"])
        assert first.cameras is not None
        assert first.cameras.tolist() == held[f"{side}_cameras"].tolist()


def test_cameras_and_names_may_be_absent_and_labels_may_be_strings(tmp_path: Path) -> None:
    held = arrays(
        query_cameras=None, gallery_cameras=None, query_names=None, gallery_names=None,
        query_identities=np.array(["x", "y"]), gallery_identities=np.array(["x", "y", "y"]),
    )  # fmt: skip
    query, gallery = read_embeddings([saved(tmp_path / "f.npz", held)])
    assert query.cameras is gallery.cameras is query.names is None
    assert query.identities.tolist() == ["x", "y"]
    for text, alike in ((["7", "x", "x"], True), (["0007", "x", "x"], False)):
        mixed = held | {"query_identities": np.array([7, 8]), "gallery_identities": np.array(text)}
        query, gallery = read_embeddings([saved(tmp_path / "f.npz", mixed)])
        assert (query.identities.dtype.kind == gallery.identities.dtype.kind) == alike


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gallery_identities": None}, "lacks the array gallery_identities"),
        ({"gallery_cameras": None}, "cameras are given on one side only"),
        ({"query_features": np.ones(4)}, "two dimensions"),
        ({"query_features": np.array([["a"] * 4] * 2)}, "table of numbers"),
        ({"query_features": np.full((2, 4), np.nan)}, r"f\.npz: Row 0 of query_features is not finite"),
        ({"query_identities": np.array([1, 2, 3])}, "query_identities has shape"),
        ({"query_identities": np.array([1.5, 2.0])}, "whole numbers or strings"),
        ({"query_names": np.array([["a"], ["b"]])}, "query_names has shape"),
        ({"query_names": np.array(["a", "\ud800"])}, "no text"),
        ({"query_identities": np.array([b"1", b"\xff"])}, "no text"),
        ({"query_identities": np.array([1, "2"], object)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_a_wrong_array_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_embeddings([saved(tmp_path / "f.npz", arrays(**changes))])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_embeddings([tmp_path / "absent.npz"])
    (tmp_path / "text.npz").write_text("features")
    with pytest.raises(InputError, match="plain arrays"):
        read_embeddings([tmp_path / "text.npz"])
    with pytest.raises(InputError, match="3 feature files"):
        read_embeddings([tmp_path / "text.npz"] * 3)


def test_a_file_of_other_arrays_is_told_which_it_needs_and_holds(tmp_path: Path) -> None:
    whole = arrays()
    one_side = {name.removeprefix("query_"): value for name, value in whole.items() if name.startswith("query_")}
    kinds = {"whole": whole, "side": one_side, "empty": {}, "scipy": {"gallery_f": 1, "query_label": 2}}
    kinds["many"] = {f"array_{number:03}_{'x' * 90}": 0 for number in range(500)}
    kinds["half"] = {"features": one_side["features"], "ids": one_side["identities"]}
    path = {name: saved(tmp_path / f"{name}.npz", held) for name, held in kinds.items()}
    sides = "query_features, query_identities, gallery_features, gallery_identities"
    for files, wanted in (
        (["side"], f"needs {sides}, and holds .*features, .*; give two such files, the query's first"),
        (
            ["side", "whole"],
            r"whole\.npz lacks .* needs features, identities, and holds query_f.* give it alone",
        ),
        (["side", "half"], r"half\.npz lacks the array identities; .* holds features, ids; write them"),
        (["empty"], "and holds none; write"),
        (["scipy"], f"lacks the arrays {sides}; .* and holds gallery_f, query_label; write"),
        (["many"], "and holds array_000_x.* and 488 more; write"),
    ):
        with pytest.raises(InputError, match=wanted) as caught:
            read_embeddings([path[name] for name in files])
        assert len(str(caught.value)) < 800 + len(str(tmp_path))
    with pytest.raises(InputError, match=r"\(array 'query_names': .*Object arrays"):
        read_embeddings([saved(tmp_path / "o.npz", arrays(query_names=np.array(["a", None], object)))])


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("query_features.npy", bytes(2**28 + 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="claims to unpack"):
        read_embeddings([path])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(noise=st.binary(max_size=300), place=st.integers(0, 2000), cut=st.booleans())
def test_damaged_files_end_in_one_sentence(tmp_path_factory, save, noise: bytes, place: int, cut: bool) -> None:
    whole = io.BytesIO()
    save(whole, **arrays())
    content = bytearray(whole.getvalue())
    if cut:
        del content[place:]
    else:
        content[place : place + len(noise)] = noise
    path = tmp_path_factory.mktemp("damaged") / "f.npz"
    path.write_bytes(bytes(content))
    try:
        query, gallery = read_embeddings([path])
    except InputError as error:
        message = str(error)
    else:
        message = f"{path}"
        assert (len(query), len(gallery)) == (2, 3)
    assert str(path) in message


def test_the_fingerprint_tells_tests_apart() -> None:
    features = np.ones((2, 3))
    query = Embeddings(features, np.array([1, 2]), np.array([1, 1]), ("a", "b"))
    same = Embeddings(features * 2, np.array([1, 2]), np.array([1, 1]))
    assert labels_fingerprint(query, query) == labels_fingerprint(same, query)
    other = [
        (Embeddings(features, np.array([1, 3]), query.cameras), query),
        (query.without_cameras(), query.without_cameras()),
        (query, Embeddings(features[:1], np.array([1]), np.array([1]))),
    ]
    prints = {labels_fingerprint(query, query), *(labels_fingerprint(*pair) for pair in other)}
    assert len(prints) == 4


def naive_pool(query: Embeddings, more: Embeddings, pooling: str) -> dict:
    pooled = {}
    for identity, camera in zip(query.identities, query.cameras, strict=True):
        members = [
            side.features[i] / (np.linalg.norm(side.features[i]) if pooling == "mean" else 1)
            for side in (query, more)
            for i in range(len(side))
            if side.identities[i] == identity and side.cameras[i] == camera
        ]
        pooled[identity, camera] = np.mean(members, 0) if pooling == "mean" else np.max(members, 0)
    return pooled


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_takes_all_crops_of_a_person_in_a_camera(pooling) -> None:
    rng = np.random.default_rng(5)

    def side(count: int) -> Embeddings:
        labels = rng.integers(1, 4, (2, count))
        return Embeddings(rng.normal(size=(count, 6)), *labels, tuple(f"{count}-{n}.jpg" for n in range(count)))

    query, more = side(7), side(20)
    wanted = naive_pool(query, more, pooling)
    pooled = pool_queries(query, more, pooling)
    assert list(zip(pooled.identities, pooled.cameras, strict=True)) == list(wanted)
    np.testing.assert_allclose(pooled.features, list(wanted.values()), atol=1e-12)
    assert pooled.names is not None
    assert pooled.names[0] == "7-0.jpg"
    alone = pool_queries(query, None, pooling)
    np.testing.assert_allclose(alone.features, list(naive_pool(query, side(0), pooling).values()), atol=1e-12)


def test_pooling_needs_cameras_and_one_network() -> None:
    query = Embeddings(np.ones((1, 3)), np.array([1]), np.array([1]))
    with pytest.raises(InputError, match="cameras are unknown"):
        pool_queries(query.without_cameras())
    with pytest.raises(InputError, match="same network"):
        pool_queries(query, Embeddings(np.ones((1, 4)), np.array([1]), np.array([1])))
