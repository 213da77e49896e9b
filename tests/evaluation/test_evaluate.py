"""The evaluation of a run, and of features alone, against the same figures computed step by step."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posereid.config import EvaluationRecipe, Recipe
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.evaluation.embeddings import Embeddings, pool_queries
from posereid.evaluation.evaluate import embed_test, evaluate_features, evaluate_run
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.ranking import rank_features
from posereid.evaluation.tables import evaluation_table
from posereid.features import embed_crops
from posereid.training.checkpoint import load_embedder, new_embedder
from posereid.training.joint import train_joint

Build = Callable[..., Recipe]
QUICK = EvaluationRecipe(pairs=6, resamples=200)


@pytest.fixture(scope="module")
def run(crops: CropTable, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_joint(tiny_recipe(seed=5), crops, tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_a_runs_evaluation_holds_its_figures_and_its_circumstances(run: Path, crops: CropTable) -> None:
    evaluation = evaluate_run(run, QUICK, root=crops.root)
    figures = evaluation.figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (figures["schema"], figures["seed"], figures["stage"], figures["device"]) == (2, 5, "joint", "cpu")
    assert figures["versions"]["torch"] == torch.__version__
    assert figures["data"]["fingerprint"] == crops.fingerprint
    assert figures["generator"]["pairs"] == 6
    embedder = load_embedder(run)
    result = rank_features(
        embed_crops(embedder, crops.query),
        embed_crops(embedder, crops.gallery),
        crops.query.identities,
        crops.gallery.identities,
        crops.query.cameras,
        crops.gallery.cameras,
    )
    assert figures["reid"]["mAP"] == pytest.approx(100 * result.mean_average_precision, abs=0.005)
    assert figures["reid"]["rank1"] == pytest.approx(100 * result.rank1, abs=0.005)
    assert [point["stated_false_match_rate"] for point in figures["verification"]["operating_points"]] == [
        1e-2,
        1e-3,
        1e-4,
    ]
    assert "reid_reranked" not in figures
    with pytest.raises(InputError, match="--root"):
        evaluate_run(run)


def test_the_table_shows_every_part(run: Path, crops: CropTable) -> None:
    figures = evaluate_run(run, QUICK.changed(rerank=True), crops=crops).figures
    table = evaluation_table(figures)
    assert f"{figures['reid']['rank1']:.2f} %" in table
    assert f"{figures['reid_reranked']['mAP']:.2f} %" in table
    for text in (*HEADLINES.values(), "re-ranked", "equal error rate", "false-match rate", "copy the source", "PSNR"):
        assert text in table
    assert "PCKh was not measured" in table


def test_generated_pictures_are_judged_by_the_embedder_that_is_named(
    run: Path, crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    judge = train_joint(tiny_recipe(seed=6), crops, tmp_path / "judge", progress=False)
    settings = QUICK.changed(pairs=30)
    own, other = (evaluate_run(run, settings, crops=crops, judge=who).figures["generator"] for who in (None, judge))
    assert "own embedder" in own["identity_judged_by"]
    assert other["identity_judged_by"] == "judge"
    assert own["scores"]["ssim"] == other["scores"]["ssim"]
    assert own["scores"]["identity"] != other["scores"]["identity"]


def features_file(path: Path, crops: CropTable, *, cameras: bool = True) -> Path:
    rng = np.random.default_rng(0)
    held = {}
    for side, split in (("query", crops.query), ("gallery", crops.gallery)):
        held[f"{side}_features"] = np.eye(200)[split.identities % 200] + 0.4 * rng.normal(size=(len(split), 200))
        held[f"{side}_identities"] = split.identities
        if cameras:
            held[f"{side}_cameras"] = split.cameras
    np.savez(path, **held)
    return path


def test_features_from_elsewhere_need_nothing_of_ours(crops: CropTable, tmp_path: Path) -> None:
    path = features_file(tmp_path / "f.npz", crops)
    evaluation = evaluate_features([path], QUICK.changed(rerank=True))
    figures = evaluation.figures
    held = np.load(path)
    names = ("features", "identities", "cameras")
    arguments = [held[f"{side}_{name}"] for name in names for side in ("query", "gallery")]
    assert figures["reid"]["mAP"] == pytest.approx(100 * rank_features(*arguments).mean_average_precision, abs=0.005)
    assert figures["reid_reranked"]["mAP"] >= 0
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert "re-ranked" in evaluation_table(figures)
    nameless = evaluate_features([features_file(tmp_path / "n.npz", crops, cameras=False)], QUICK).figures
    assert not nameless["reid"]["same_camera_rule"]
    assert "without the same-camera rule" in evaluation_table(nameless)


def test_multi_query_takes_what_lies_beside_the_set(
    crops: CropTable, world: Path, tiny_recipe: Build, tmp_path: Path
) -> None:
    import shutil

    from posereid.data.layouts import load_crops

    shutil.copytree(world, tmp_path / "world")
    folder = tmp_path / "world" / "gt_bbox"
    folder.mkdir()
    query = crops.query[0]
    for number in range(3):
        picture = Image.open(query.path).point(lambda value, n=number: min(255, value + 20 * n + 10))
        picture.save(folder / f"{query.identity:04}_c{query.camera}s1_{number:06}_00.jpg")
    Image.open(query.path).save(folder / f"{query.identity:04}_c9s1_000000_00.jpg")
    torch.manual_seed(0)
    embedder = new_embedder(tiny_recipe(), identities=4).eval()
    table = load_crops(tmp_path / "world")
    single, gallery = embed_test(embedder, table, QUICK)
    pooled, same_gallery = embed_test(embedder, table, QUICK.changed(multi_query="mean"))
    np.testing.assert_array_equal(gallery.features, same_gallery.features)
    alone = pool_queries(single)
    changed = np.abs(pooled.features - alone.features).max(1) > 1e-6
    assert changed.tolist() == [
        (identity, camera) == (query.identity, query.camera)
        for identity, camera in zip(alone.identities, alone.cameras, strict=True)
    ]
    assert isinstance(pooled, Embeddings)
    assert len(pooled) == len({(crop.identity, crop.camera) for crop in crops.query})


def test_an_empty_split_is_named(crops: CropTable, tiny_recipe: Build) -> None:
    embedder = new_embedder(tiny_recipe(), identities=4).eval()
    with pytest.raises(InputError, match="no query crops"):
        embed_test(embedder, crops.with_crops(crops.gallery), QUICK)
