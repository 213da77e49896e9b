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
from posereid.fusion import EmbeddingParts, PartCost, PartCosts, drawings, embed_parts, mode_cost_ms
from posereid.fusion.cache import PartsCache
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.canonical import canonical_pose
from posereid.training.checkpoint import new_embedder

POSES = [canonical_pose(name, 64, 32) for name in ("front", "back")]
ARRAYS = ("own", "flipped", "posed", "posed_flipped", "realism")


class Counts:
    """How many pictures went through each network."""

    def __init__(self) -> None:
        self.embedded = self.drawn = 0

    def take(self) -> tuple[int, int]:
        taken = self.embedded, self.drawn
        self.embedded = self.drawn = 0
        return taken


@pytest.fixture
def counts(embedder: Embedder, generator: PoseTransferGenerator) -> Iterator[Counts]:
    counts = Counts()

    def embedded(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        counts.embedded += len(inputs[0])

    def drawn(_: Any, __: Any, output: torch.Tensor) -> None:
        counts.drawn += len(output)

    hooks = [
        embedder.backbone.register_forward_hook(embedded),
        generator.pagn.register_forward_hook(drawn),
    ]
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


def cache_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").glob("embeddings-*.safetensors")
    return path


def test_what_was_embedded_once_is_not_embedded_again(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    first = embed(some)
    assert counts.take() == (4 * (2 + 2 * 2), 4 * 2)
    again = embed(some)
    assert counts.take() == (0, 0)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ARRAYS)
    assert again.costs == first.costs
    assert again.costs.own.crops == 4
    assert mode_cost_ms(again.costs, "fusion+flip") > 0
    assert same(first, embed(some, cache=None))


def test_other_orders_and_more_crops_find_what_is_there(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    embed(some[1:3])
    counts.take()
    parts = embed(some[::-1])
    assert counts.take()[1] == 2 * 2
    assert same(parts, embed(some[::-1], cache=None))
    assert parts.costs.own.crops == 4


def test_a_changed_file_and_changed_joints_are_embedded_again(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    embed(some)
    counts.take()
    shutil.copy(some[0].path, some[1].path)
    other = [some[0], some[1], replace(some[2], joints=some[3].joints), some[3]]
    parts = embed(other)
    # The copy has its own joints; the file whose joints are new is as it was.
    assert counts.take() == (2 * (2 + 2 * 2), 2 * 2)
    assert same(parts, embed(other, cache=None))


def test_a_crop_that_is_there_twice_is_embedded_once(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    parts = embed([some[0], some[1], some[0]])
    assert counts.take()[1] == 2 * 2
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
    assert counts.take() == (0, 0)
    assert np.array_equal(first.posed, again.posed)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedder_digest": "other"},
        {"generator_digest": "other"},
        {"discriminator_digest": "other"},
        {"discriminator": None},
        {"poses": POSES[::-1]},
        {"flips": False},
    ],
)
def test_other_networks_and_poses_have_their_own_embeddings(
    changes: dict[str, Any], embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop], tmp_path: Path
) -> None:
    embed(some[:1])
    counts.take()
    embed(some[:1], **changes)
    assert counts.take()[0] > 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_without_a_generator_crops_and_mirror_images_are_cached(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    plain: dict[str, Any] = {"generator": None, "poses": ()}
    first = embed(some, **plain)
    counts.take()
    assert np.array_equal(embed([replace(crop, joints=None) for crop in some], **plain).own, first.own)
    assert counts.take() == (0, 0)


def test_processes_that_share_a_cache_lose_nothing(tmp_path: Path) -> None:
    settings, shapes = {"embedder": "e"}, {"own": (3,)}

    def add(number: int) -> None:
        store = PartsCache(tmp_path, settings, shapes)
        store.add([bytes([number] * 32)], {"own": np.full((1, 3), number / 100, np.float32)})
        store.save(PartCosts(own=PartCost(1.0, 1)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    store = PartsCache(tmp_path, settings, shapes)
    own = np.zeros((25, 3), np.float32)
    assert store.fill([bytes([number] * 32) for number in range(25)], {"own": own}) == [24]
    assert own[:, 0].tolist() == pytest.approx([number / 100 for number in range(24)] + [0])
    assert store.costs.own == PartCost(24.0, 24)


def test_an_interrupted_call_keeps_what_it_has_done(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop]
) -> None:
    some[3].path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="no readable image"):
        embed(some, batch_size=1)
    counts.take()
    embed(some[:3])
    assert counts.take() == (0, 0)


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


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a changed byte": lambda path: path.write_bytes(path.read_bytes()[:-50] + b"\1" + path.read_bytes()[-49:]),
    "other settings": _say("settings", "{}"),
    "costs that are no JSON": _say("costs", "[" * 9999),
    "costs of another shape": _say("costs", '{"own": 3}'),
    "no costs of a number": _say("costs", '{"own": [NaN, 1]}'),
    "rows too few": _set("own", lambda values: values[:2]),
    "other numbers": _set("own", lambda values: values.astype(np.float64)),
    "not finite": _set("posed", _nan),
    "a key twice": _set("keys", lambda keys: np.repeat(keys[:1], len(keys), axis=0)),
    "keys too short": _set("keys", lambda keys: keys[:, :5].copy()),
    "an array missing": lambda path: rewritten(path, lambda arrays, _: arrays.pop("realism")),
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
    path = cache_file(tmp_path)
    DAMAGES[damage](path)
    counts.take()
    capfd.readouterr()
    again = embed(some)
    said = capfd.readouterr().err
    assert counts.take()[1] == 4 * 2
    assert same(first, again)
    assert said.startswith(f"posereid: the cache file {path} cannot be used (")
    assert said.count("\n") == 1
    assert path.with_name(f"{path.name}.damaged").is_file()
    embed(some)
    assert counts.take() == (0, 0)


def test_drawings_that_were_kept_serve_another_embedder(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop], tiny_recipe: Callable[..., Recipe]
) -> None:
    embed(some[:3], keep_drawings=True)
    counts.take()
    torch.manual_seed(9)
    another = {"embedder": new_embedder(tiny_recipe(), identities=4).eval(), "embedder_digest": "other"}
    parts = embed(some, keep_drawings=True, **another)
    assert counts.drawn == 2
    assert parts.costs.drawing.crops == 4
    assert parts.costs.drawing.seconds > 0
    assert same(parts, embed(some, cache=None, **another))


def test_drawings_lie_in_files_of_bounded_size(
    embed: Callable[..., EmbeddingParts], counts: Counts, some: list[Crop], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(drawings, "_SHARD_BYTES", 2 * 2 * 3 * 64 * 32)
    embed(some, keep_drawings=True, batch_size=1)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("drawings-*")]
    assert len(sizes) == 2
    assert max(sizes) < 2 * 2 * 3 * 64 * 32 + 2000
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
