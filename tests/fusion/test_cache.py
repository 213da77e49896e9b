import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from posereid.config import Recipe
from posereid.data.crops import Crop, CropTable
from posereid.data.layouts import load_crops
from posereid.data.shards import write_shards
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.fusion import EmbeddingParts, PartCost, cache, drawings, embed_parts, mode_cost_ms
from posereid.fusion.cache import PartStore
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.canonical import canonical_pose
from posereid.training.checkpoint import new_embedder

POSES = [canonical_pose(name, 64, 32) for name in ("front", "back")]
ARRAYS = ("own", "flipped", "posed", "posed_flipped", "realism")


class Counts:
    """How many pictures went through each network: embedded, encoded, drawn, judged."""

    def __init__(self) -> None:
        self.embedded = self.encoded = self.drawn = self.judged = 0

    def take(self) -> tuple[int, int, int, int]:
        taken = self.embedded, self.encoded, self.drawn, self.judged
        self.embedded = self.encoded = self.drawn = self.judged = 0
        return taken


@pytest.fixture
def counts(embedder: Embedder, generator: PoseTransferGenerator, discriminator: PatchDiscriminator) -> Iterator[Counts]:
    counts = Counts()

    def count(name: str) -> Callable[..., None]:
        return lambda _, inputs, __: setattr(counts, name, getattr(counts, name) + len(inputs[0]))

    networks = {
        "embedded": embedder.backbone,
        "encoded": generator.appearance_encoder,
        "drawn": generator.pagn.to_image,
        "judged": discriminator,
    }
    hooks = [network.register_forward_hook(count(name)) for name, network in networks.items()]
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.fixture
def some(crops: CropTable, tmp_path: Path) -> list[Crop]:
    """Four crops with joints, in files that a test may change."""
    posed = [crop for crop in crops.gallery if crop.joints is not None and crop.joints.has_torso][:4]
    copies = []
    for crop in posed:
        path = tmp_path / crop.name
        shutil.copy(crop.path, path)
        copies.append(replace(crop, path=path))
    return copies


@pytest.fixture
def embed(
    embedder: Embedder, generator: PoseTransferGenerator, discriminator: PatchDiscriminator, tmp_path: Path
) -> Callable[..., EmbeddingParts]:
    def run(crops: list[Crop], **changes: Any) -> EmbeddingParts:
        settings: dict[str, Any] = {
            "embedder_digest": "e",
            "generator": generator,
            "generator_digest": "g",
            "discriminator": discriminator,
            "discriminator_digest": "d",
            "poses": POSES,
            "cache": tmp_path / "cache",
        }
        return embed_parts(changes.pop("embedder", embedder), crops, **settings | changes)

    return run


def same(first: EmbeddingParts, second: EmbeddingParts) -> bool:
    return all(np.allclose(getattr(first, name), getattr(second, name), atol=1e-5) for name in ARRAYS)


def cache_file(tmp_path: Path, part: str) -> Path:
    """The file that keeps a part; that of one of the poses for parts of drawings."""
    for path in sorted((tmp_path / "cache").glob("embeddings-*.safetensors")):
        with safe_open(path, framework="np") as file:
            if json.loads(file.metadata()["settings"])["part"] == part:
                return path
    raise AssertionError(part)


def test_what_was_embedded_once_is_not_embedded_again(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    first = embed(some)
    assert counts.take() == (4 * (2 + 2 * 2), 4, 4 * 2, 4 * 2)
    again = embed(some)
    assert counts.take() == (0, 0, 0, 0)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ARRAYS)
    assert again.costs == first.costs
    assert again.costs.own.pictures == 4
    assert mode_cost_ms(again.costs, "fusion+flip") > 0
    assert same(first, embed(some, cache=None))


def test_other_orders_and_more_crops_find_what_is_there(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    embed(some[1:3])
    counts.take()
    parts = embed(some[::-1])
    assert counts.take()[2] == 2 * 2
    assert same(parts, embed(some[::-1], cache=None))
    assert parts.costs.own.pictures == 4


def test_a_changed_file_and_changed_joints_are_embedded_again(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    embed(some)
    counts.take()
    shutil.copy(some[0].path, some[1].path)
    other = [some[0], some[1], replace(some[2], joints=some[3].joints), some[3]]
    parts = embed(other)
    # The copy has its own joints, and the file whose joints are new is itself as it was.
    assert counts.take() == (2 * 2 * 2, 2, 2 * 2, 2 * 2)
    assert same(parts, embed(other, cache=None))


def test_a_crop_that_is_there_twice_is_embedded_once(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    parts = embed([some[0], some[1], some[0]])
    assert counts.take()[2] == 2 * 2
    assert np.array_equal(parts.posed[0], parts.posed[2])
    assert not np.allclose(parts.posed[0], parts.posed[1])


def test_crops_in_shards_are_those_of_the_folder(
    embed: Callable[..., EmbeddingParts], counts: Counts, crops: CropTable, tmp_path: Path
) -> None:
    first = embed(list(crops.query))
    counts.take()
    write_shards(crops, tmp_path / "shards")
    packed = {crop.name: crop for crop in load_crops(tmp_path / "shards").query}
    again = embed([packed[crop.name] for crop in crops.query])
    assert counts.take() == (0, 0, 0, 0)
    assert np.array_equal(first.posed, again.posed)


EVERYTHING = 2 + 2 * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"embedder_digest": "other"}, (4 * EVERYTHING, 4, 4 * 2, 0)),
        ({"generator_digest": "other"}, (4 * 2 * 2, 4, 4 * 2, 4 * 2)),
        ({"discriminator_digest": "other"}, (0, 4, 4 * 2, 4 * 2)),
        ({"discriminator": None}, (0, 0, 0, 0)),
        ({"flips": False}, (0, 0, 0, 0)),
        ({"poses": POSES[::-1]}, (0, 0, 0, 0)),
        ({"poses": POSES[1:]}, (0, 0, 0, 0)),
        ({"poses": [*POSES, canonical_pose("left", 64, 32)]}, (4 * 2, 4, 4, 4)),
        ({"poses": [canonical_pose("left", 64, 32)]}, (4 * 2, 4, 4, 4)),
    ],
    ids=["embedder", "generator", "D_I", "no D_I", "no flips", "order", "fewer poses", "more poses", "another pose"],
)
def test_only_what_depends_on_a_change_is_made_again(
    changes: dict[str, Any],
    expected: tuple[int, ...],
    embed: Callable[..., EmbeddingParts],
    counts: Counts,
    some: list[Crop],
) -> None:
    embed(some)
    counts.take()
    parts = embed(some, **changes)
    assert counts.take() == expected
    assert same(parts, embed(some, cache=None, **changes))
    assert mode_cost_ms(parts.costs, "fusion") > 0


def test_parts_asked_for_one_after_the_other_add_up_to_all(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    plain: dict[str, Any] = {"generator": None, "poses": ()}
    embed(some, flips=False, **plain)
    assert counts.take() == (4, 0, 0, 0)
    embed(some, **plain)
    assert counts.take() == (4, 0, 0, 0)
    embed(some, flips=False, discriminator=None)
    assert counts.take() == (4 * 2, 4, 4 * 2, 0)
    embed(some[:2], discriminator=None)
    assert counts.take() == (2 * 2, 2, 2 * 2, 0)
    # Two crops lack mirrored drawings as well as D_I's word, two its word alone.
    parts = embed(some)
    assert counts.take() == (2 * 2, 4, 4 * 2, 4 * 2)
    assert same(parts, embed(some, cache=None))
    costs = parts.costs
    assert (costs.own.pictures, costs.flipped.pictures) == (4, 4)
    assert {costs.drawing.pictures, costs.judging.pictures, costs.posed.pictures, costs.posed_flipped.pictures} == {8}


def test_a_crop_that_is_there_with_other_joints_is_itself_embedded_once(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    both = [some[0], replace(some[0], joints=some[1].joints), replace(some[0], joints=None)]
    parts = embed(both)
    assert counts.take() == (2 + 2 * 2 * 2, 2, 2 * 2, 2 * 2)
    assert np.array_equal(parts.own[0], parts.own[2])
    assert same(parts, embed(both, cache=None))


def test_a_pose_that_is_asked_for_twice_is_the_same_both_times(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    parts = embed(some, poses=[POSES[0], POSES[0]], keep_drawings=True)
    assert np.allclose(parts.posed[:, 0], parts.posed[:, 1], atol=1e-5)
    assert counts.drawn == 4
    counts.take()
    embed(some, poses=POSES[:1], keep_drawings=True, embedder_digest="other")
    assert counts.drawn == 0


@pytest.mark.parametrize("changed", ["format", "library"])
def test_what_an_earlier_version_made_is_not_used(
    changed: str,
    embed: Callable[..., EmbeddingParts],
    counts: Counts,
    some: list[Crop],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed(some)
    first = counts.take()
    if changed == "format":
        monkeypatch.setattr(cache, "CACHE_FORMAT", cache.CACHE_FORMAT + 1)
    else:
        monkeypatch.setattr(cache, "version", lambda _: "99.0")
    embed(some)
    assert counts.take() == first


def test_without_a_generator_crops_and_mirror_images_are_cached(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    plain: dict[str, Any] = {"generator": None, "poses": ()}
    first = embed(some, **plain)
    counts.take()
    assert np.array_equal(embed([replace(crop, joints=None) for crop in some], **plain).own, first.own)
    assert counts.take() == (0, 0, 0, 0)


def test_processes_that_share_a_cache_lose_nothing(tmp_path: Path) -> None:
    def add(number: int) -> None:
        store = PartStore(tmp_path, {"embedder": "e"}, (3,))
        store.add([bytes([number] * 32)], np.full((1, 3), number / 100, np.float32), {"own": PartCost(1.0, 1)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    keys, values, costs = PartStore(tmp_path, {"embedder": "e"}, (3,)).read()
    assert {key: value[0] for key, value in zip(keys, values, strict=True)} == {
        bytes([number] * 32): np.float32(number / 100) for number in range(24)
    }
    assert costs == {"own": PartCost(24.0, 24)}


@pytest.mark.parametrize("refused", ["the drawings", "one part"])
def test_what_cannot_be_saved_keeps_nothing_else_from_being_saved(
    refused: str,
    embed: Callable[..., EmbeddingParts],
    counts: Counts,
    some: list[Crop],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    write = cache.write_atomically

    def write_some(path: Path, content: bytes) -> None:
        written.append(path.name)
        if (path.name.startswith("drawings-")) if refused == "the drawings" else len(written) == 3:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(cache, "write_atomically", write_some)
    with pytest.raises(InputError, match=r"cannot be written to as a cache \(No space left on device\)"):
        embed(some, keep_drawings=True)
    monkeypatch.setattr(cache, "write_atomically", write)
    counts.take()
    embed(some, keep_drawings=True)
    assert counts.take()[:2] == ((0, 0) if refused == "the drawings" else (4, 0))


def test_an_interrupted_call_keeps_what_it_has_done(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    some[3].path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="no readable image"):
        embed(some, batch_size=1)
    counts.take()
    embed(some[:3])
    assert counts.take() == (0, 0, 0, 0)


def rewritten(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    change(arrays, metadata)
    save_file(arrays, path, metadata)


def _set(name: str, value: Any) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda arrays, _: arrays.update({name: value(arrays[name])}))


def _say(name: str, value: str) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda _, metadata: metadata.update({name: value}))


def _nan(values: np.ndarray) -> np.ndarray:
    values[0] = np.nan
    return values


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a changed byte": lambda path: path.write_bytes(path.read_bytes()[:-50] + b"\1" + path.read_bytes()[-49:]),
    "other settings": _say("settings", "{}"),
    "costs that are no JSON": _say("costs", "[" * 9999),
    "costs of another shape": _say("costs", '{"own": 3}'),
    "costs that are a list": _say("costs", "[]"),
    "costs of nobody": _say("costs", '{"rent": [1.0, 1]}'),
    "no costs of a number": _say("costs", '{"own": [NaN, 1]}'),
    "rows too few": _set("values", lambda values: values[:2]),
    "other numbers": _set("values", lambda values: values.astype(np.float64)),
    "not finite": _set("values", _nan),
    "a key twice": _set("keys", lambda keys: np.repeat(keys[:1], len(keys), axis=0)),
    "keys too short": _set("keys", lambda keys: keys[:, :5].copy()),
    "an array missing": lambda path: rewritten(path, lambda arrays, _: arrays.pop("values")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_set_aside_with_a_sentence_and_made_again(
    damage: str,
    embed: Callable[..., EmbeddingParts],
    counts: Counts,
    some: list[Crop],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = embed(some)
    path = cache_file(tmp_path, "posed")
    DAMAGES[damage](path)
    counts.take()
    capfd.readouterr()
    again = embed(some)
    said = capfd.readouterr().err
    assert counts.take() == (4, 4, 4, 0)
    assert same(first, again)
    assert said.startswith(f"posereid: the cache file {path} cannot be used (")
    assert said.count("\n") == 1
    assert path.with_name(f"{path.name}.damaged").is_file()
    embed(some)
    assert counts.take() == (0, 0, 0, 0)


@pytest.mark.parametrize("kept", ["embeddings", "drawings"])
def test_a_file_that_the_system_does_not_open_is_not_taken_for_damaged(
    kept: str,
    embed: Callable[..., EmbeddingParts],
    counts: Counts,
    some: list[Crop],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed(some, keep_drawings=True)
    before = sorted((tmp_path / "cache").glob("[!.]*"))
    plain_open = Path.open

    def refusing(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name.startswith(f"{kept}-"):
            raise OSError(24, "Too many open files")
        return plain_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(InputError, match=r"cannot be read \(Too many open files\)"):
        embed(some, keep_drawings=True, poses=[*POSES, canonical_pose("left", 64, 32)])
    monkeypatch.setattr(Path, "open", plain_open)
    assert sorted((tmp_path / "cache").glob("[!.]*")) == before
    counts.take()
    embed(some)
    assert counts.take() == (0, 0, 0, 0)


def test_safetensors_running_out_of_files_is_not_taken_for_damage(
    embed: Callable[..., EmbeddingParts], some: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(some)

    def refusing(path: Path, **_: Any) -> Any:
        raise FileNotFoundError(f"No such file or directory: {path}")

    monkeypatch.setattr(cache, "safe_open", refusing)
    with pytest.raises(InputError, match="cannot be read"):
        embed(some)
    assert not list((tmp_path / "cache").glob("*.damaged"))


def test_drawings_that_were_kept_serve_another_embedder(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop], tiny_recipe: Callable[..., Recipe]
) -> None:
    embed(some[:3], keep_drawings=True)
    counts.take()
    torch.manual_seed(9)
    another = {"embedder": new_embedder(tiny_recipe(), identities=4).eval(), "embedder_digest": "other"}
    parts = embed(some, keep_drawings=True, **another)
    assert (counts.encoded, counts.drawn) == (1, 2)
    assert parts.costs.drawing.pictures == 4 * 2
    assert parts.costs.encoding.pictures == 4 * 2
    assert parts.costs.drawing.seconds > 0
    assert same(parts, embed(some, cache=None, **another))


def test_drawings_made_in_several_poses_serve_one(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    embed(some, keep_drawings=True)
    counts.take()
    parts = embed(some, keep_drawings=True, embedder_digest="other", poses=POSES[1:])
    assert (counts.encoded, counts.drawn) == (0, 0)
    assert mode_cost_ms(parts.costs, "fusion") > mode_cost_ms(parts.costs, "off")
    assert same(parts, embed(some, cache=None, poses=POSES[1:]))


def test_drawings_lie_in_files_of_bounded_size(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(drawings, "_SHARD_BYTES", 4 * 3 * 64 * 32)
    embed(some, keep_drawings=True, batch_size=1)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("drawings-*")]
    assert len(sizes) == 2
    assert max(sizes) < 4 * 3 * 64 * 32 + 2000
    counts.take()
    embed(some, keep_drawings=True, embedder_digest="other")
    assert counts.drawn == 0


def test_drawings_are_not_kept_unless_asked_for(
    embed: Callable[..., EmbeddingParts], some: list[Crop], tmp_path: Path
) -> None:
    embed(some[:1])
    assert not list((tmp_path / "cache").glob("drawings-*"))


@pytest.mark.parametrize("damage", ["cut short", "a changed byte", "other settings", "keys too short"])
def test_damaged_drawings_are_set_aside_and_drawn_again(
    damage: str,
    embed: Callable[..., EmbeddingParts],
    counts: Counts,
    some: list[Crop],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = embed(some, keep_drawings=True)
    (path,) = (tmp_path / "cache").glob("drawings-*.safetensors")
    if damage == "a changed byte":  # one of a picture
        rewritten(path, lambda arrays, _: arrays["pictures"].__setitem__((1, 0, 0, 5), 7))
    else:
        DAMAGES[damage](path)
    counts.take()
    again = embed(some, keep_drawings=True, embedder_digest="other")
    assert counts.drawn >= 2
    assert same(first, again)
    assert f"the cache file {path} cannot be used" in capfd.readouterr().err
    assert path.with_name(f"{path.name}.damaged").is_file()


def test_a_cache_that_cannot_be_a_folder_is_an_input_error(
    embed: Callable[..., EmbeddingParts], some: list[Crop], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to as a cache"):
        embed(some, cache=tmp_path / "file")


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_cache_wants_every_networks_digest(part: str, embed: Callable[..., EmbeddingParts], some: list[Crop]) -> None:
    with pytest.raises(ValueError, match=f"the {part}'s digest"):
        embed(some, **{f"{part}_digest": None})
