"""Targets for what runs, evaluations and other frameworks leave: generated sets, features, figures, checkpoints."""

import hashlib
import io
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import mutations
import numpy as np
import torch
from safetensors.torch import save
from target import MEMORY, NAMES, Target, encoded, file_named, poses
from torch import nn

from posereid.augmentation.sets import ManifestRow, check_generated_set, manifest_text, read_set
from posereid.config import EvaluationRecipe, Recipe
from posereid.data.crops import Crop
from posereid.errors import InputError
from posereid.evaluation.comparison import compare, comparison_table, queries_file
from posereid.evaluation.embeddings import labels_fingerprint, read_embeddings
from posereid.evaluation.generator_quality import pick_test_pairs
from posereid.evaluation.per_query import COLUMNS, QueryFigures
from posereid.training.checkpoint import Checkpoint, latest_checkpoint, load_weights, resume_state, save_checkpoint

ABOUT = "checkpoint.json"

# --- evaluation --------------------------------------------------------------------------------------------


@cache
def _test_crops() -> tuple[Crop, ...]:
    crops = [Crop(Path(name), name, int(name[:4]), int(name[6]), "query", poses()[name]) for name in NAMES]
    twice = Crop(Path("sub/twice.jpg"), "twice.jpg", 2, 1, "gallery", poses()[NAMES[0]])
    posed = Crop(Path("posed.jpg"), "posed.jpg", 2, 3, "gallery", poses()[NAMES[0]])
    return (*crops, twice, twice, posed, Crop(Path("bare.jpg"), "bare.jpg", 2, 1, "gallery"))


def _read_pairs(path: Path) -> None:
    crops = _test_crops()
    for pair in pick_test_pairs(crops, EvaluationRecipe(pairs_file=path)):
        source, target = (crops[position] for position in pair)
        assert source is not target
        assert source.identity == target.identity
        assert source.joints is not None
        assert target.joints is not None


def _arrays(prefix: str, count: int) -> dict[str, np.ndarray]:
    return {
        f"{prefix}features": np.arange(4 * count, dtype=np.float32).reshape(count, 4) % 5,
        f"{prefix}identities": np.arange(count) % 2 + 1,
        f"{prefix}cameras": np.array(["a", "ü"] * count)[:count],
        f"{prefix}names": np.array([f"{number}.jpg" for number in range(count)]),
    }


@cache
def _features(save: Callable[..., None], *, sides: bool) -> bytes:
    file = io.BytesIO()
    save(file, **({**_arrays("query_", 2), **_arrays("gallery_", 3)} if sides else _arrays("", 2)))
    return file.getvalue()


def _read_features(path: Path) -> None:
    other = path.with_name("gallery.npz")
    refused = []
    for paths in ([path], [path, other]):
        try:
            query, gallery = read_embeddings(paths)
        except InputError as error:
            refused.append(error)
            continue
        for side in (query, gallery):
            assert np.isfinite(side.features).all()
            assert side.features.shape[1] > 0
            assert len(side.features) == len(side.identities)
        assert len(labels_fingerprint(query, gallery)) == 64
    if len(refused) == 2:
        raise refused[0]


def _features_beside_others(content: bytes, home: Path) -> Path:
    (home / "gallery.npz").write_bytes(_features(np.savez, sides=False))
    return file_named("features.npz")(content, home)


@cache
def _queries_csv() -> bytes:
    people = np.repeat(np.arange(1, 13), 2).tolist()
    rows = [f"{n}.jpg,{person},{n % 2 + 1},{n % 4},0.5,{1 / (n % 4 or 1)}" for n, person in enumerate(people)]
    rows = [row if n % 4 else f"{row.rsplit(',', 2)[0]},," for n, row in enumerate(rows)]
    return "\n".join([",".join(COLUMNS), *rows, ""]).encode()


def _evaluation_json(queries: bytes) -> bytes:
    part = {"average_precision": "hits", "metric": "cosine", "queries_sha256": hashlib.sha256(queries).hexdigest()}
    document = {"schema": 2, "seed": 0, "data": {"test_fingerprint": "f" * 64}, "reid": part, "reid_reranked": part}
    return json.dumps(document).encode()


def _evaluated(folder: Path, evaluation: bytes, queries: bytes) -> Path:
    folder.mkdir()
    (folder / "evaluation.json").write_bytes(evaluation)
    for reranked in (False, True):
        queries_file(folder / "evaluation.json", reranked=reranked).write_bytes(queries)
    return folder


def _evaluation(content: bytes, home: Path) -> Path:
    valid = _queries_csv()
    _evaluated(home / "valid", _evaluation_json(valid), valid)
    return _evaluated(home / "run", content, valid)


def _queries(content: bytes, home: Path) -> Path:
    _evaluated(home / "valid", _evaluation_json(_queries_csv()), _queries_csv())
    return _evaluated(home / "run", _evaluation_json(content), content)


def _compare(run: Path) -> None:
    figures = QueryFigures.read(queries_file(run / "evaluation.json"))
    precisions = figures.average_precisions
    assert all(math.isnan(value) or 0 <= value <= 1 for value in precisions.tolist())
    comparison = compare(run, run.with_name("valid"), resamples=100, reranked=len(figures.labels) % 2 == 1)
    json.dumps(comparison, allow_nan=False, indent=1).encode()
    comparison_table(comparison).encode()


# --- checkpoints -------------------------------------------------------------------------------------------


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@cache
def _checkpoint() -> dict[str, bytes]:
    network = _network()
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = save_checkpoint(
            Path(folder),
            step=3,
            stage="joint",
            recipe=Recipe(),
            identities=(2, 7),
            training_set="f" * 64,
            parts={"part": network},
            resume_state={"optimisers": {"part": optimiser.state_dict()}, "epoch": 1},
            keep=1,
        )
        return {file.name: file.read_bytes() for file in path.iterdir()}


def _first_format(about: bytes) -> bytes:
    """The same without digests, which would refuse whatever is hostile before it is parsed."""
    document = json.loads(about) | {"format": 1}
    return json.dumps({key: value for key, value in document.items() if key not in ("files", "sha256")}).encode()


def _signed(about: bytes) -> bytes:
    """The same with the digest of its own content, which anyone can work out."""
    try:
        document = json.loads(about)
        content = {key: value for key, value in document.items() if key != "sha256"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps(document | {"sha256": digest}).encode() if "sha256" in document else about
    except (ValueError, TypeError, AttributeError, RecursionError):
        return about


def _checkpoint_with(name: str) -> Callable[[bytes, Path], Path]:
    def prepare(content: bytes, home: Path) -> Path:
        folder = home / "checkpoints" / "step-00000003"
        folder.mkdir(parents=True)
        written = _checkpoint()
        hostile = _signed(content) if name == ABOUT else content
        for file, data in (written | {ABOUT: _first_format(written[ABOUT]), name: hostile}).items():
            (folder / file).write_bytes(data)
        return folder

    return prepare


def _read_resume_state(folder: Path) -> None:
    assert isinstance(resume_state(latest_checkpoint(folder)), dict)


def _read_about(folder: Path) -> None:
    checkpoint = latest_checkpoint(folder)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.step >= 0
    assert all(type(identity) is int for identity in checkpoint.identities)


def _read_weights(folder: Path) -> None:
    network = _network()
    load_weights(network, folder / "part.safetensors")
    for name, value in network.state_dict().items():
        assert value.isfinite().all(), name


# --- generated sets ----------------------------------------------------------------------------------------

_DRAWN = ManifestRow("2_p1.jpg", NAMES[0], NAMES[2], 2, 1, "f" * 64)
_FILTERED = ManifestRow("2_p2.jpg", NAMES[0], NAMES[1], 2, 1, "f" * 64, 0.25, 0.5, 1e-3, "2_p1.jpg", "identity; pose")
_SET_FIELDS = {"source_root": "set", "checkpoint": "f" * 64, "seed": 0, "drawn": 1}


def _generated_set(name: str) -> Callable[[bytes, Path], Path]:
    """A generated set of one crop, whose file ``name`` holds the bytes."""

    def prepare(content: bytes, home: Path) -> Path:
        (home / "bounding_box_train").mkdir()
        (home / "bounding_box_train" / _DRAWN.name).touch()
        (home / "manifest.csv").write_text(manifest_text([_DRAWN, _FILTERED]))
        (home / name).write_bytes(content)
        return home

    return prepare


def _read_generated_set(folder: Path) -> None:
    rows = check_generated_set(folder)
    assert {row.name for row in rows if not row.dropped} == {_DRAWN.name}
    info = read_set(folder) if (folder / "set.json").is_file() else None
    assert info is None or {row.checkpoint for row in rows} == {info.checkpoint}


# --- all of them -------------------------------------------------------------------------------------------

_FEATURE_FILES = [(save, sides) for save in (np.savez, np.savez_compressed) for sides in (True, False)]

OUTPUT_TARGETS = (
    Target(
        "generated_manifest",
        _generated_set("manifest.csv"),
        _read_generated_set,
        lambda: [manifest_text([_DRAWN, _FILTERED]).encode()],
        mutations.table_variant,
    ),
    Target(
        "set_json",
        _generated_set("set.json"),
        _read_generated_set,
        lambda: encoded(
            json.dumps(_SET_FIELDS),
            json.dumps(_SET_FIELDS | {"schema_version": 1, "recipe": {"height": 64}, "filtering": {"kept": 1}}),
        ),
        mutations.json_variant,
    ),
    Target(
        "pairs",
        file_named("pairs.csv"),
        _read_pairs,
        lambda: encoded(f"from,to\n{NAMES[0]},{NAMES[1]}\nposed.jpg,{NAMES[0]}\n"),
        mutations.table_variant,
    ),
    Target(
        "embeddings",
        _features_beside_others,
        _read_features,
        lambda: [_features(save, sides=sides) for save, sides in _FEATURE_FILES],
        mutations.npz_variant,
    ),
    Target("queries_csv", _queries, _compare, lambda: [_queries_csv()], mutations.table_variant),
    Target(
        "evaluation_json",
        _evaluation,
        _compare,
        lambda: [_evaluation_json(_queries_csv())],
        mutations.json_variant,
    ),
    Target(
        "checkpoint_json",
        _checkpoint_with(ABOUT),
        _read_about,
        lambda: [_checkpoint()[ABOUT], _first_format(_checkpoint()[ABOUT])],
        mutations.json_variant,
    ),
    Target(
        "weights",
        _checkpoint_with("part.safetensors"),
        _read_weights,
        lambda: [save(_network().state_dict())],
        mutations.weights_variant,
    ),
    Target(
        "resume_state",
        _checkpoint_with("resume.pt"),
        _read_resume_state,
        lambda: [_checkpoint()["resume.pt"]],
        mutations.resume_variant,
    ),
)
