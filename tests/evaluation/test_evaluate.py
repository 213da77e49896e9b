"""The evaluation of a run, and of features alone, against the same figures computed step by step."""

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from posereid.evaluation.picture_measures import MEASURES
from posereid.evaluation.ranking import rank_features
from posereid.evaluation.tables import evaluation_table
from posereid.evaluation_report import write_evaluation
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


def test_each_part_that_cannot_be_had_ends_alone_and_says_why(run: Path, crops: CropTable, tmp_path: Path) -> None:
    settings = QUICK.changed(fusion={"weight": 0.5})
    untrained = crops.with_crops([*crops.query, *crops.gallery])
    bare = crops.with_crops(replace(crop, joints=None, mask_path=None) for crop in untrained)
    lone = bare.with_crops(replace(crop, identity=7) for crop in bare)
    abroad = crops.with_crops(replace(crop, camera=crop.camera + 10 * (crop.split == "train")) for crop in crops)
    for table, lacking, there in (
        (untrained, {"mean_image", "camera_mean"}, {"reid", "verification", "generator"}),
        (abroad, {"camera_mean"}, {"reid", "verification", "generator"}),
        (bare, {"generator", "fusion"}, {"reid", "verification"}),
        (lone, {"generator", "fusion", "verification"}, {"reid"}),
        (crops.with_crops(crops.gallery), {"reid", "mean_image", "camera_mean"}, {"generator"}),
    ):
        evaluation = evaluate_run(run, settings, crops=table, fusion=["fusion"] * (table in (bare, lone)))
        figures = evaluation.figures
        # The other measures need what is given to none of them.
        assert set(figures["not_measured"]) - set(MEASURES) == lacking
        assert {part for part in ("reid", "verification", "generator") if figures.get(part)} == there
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures
        text = evaluation_table(figures)
        assert all(reason.endswith(".") and reason in text for reason in figures["not_measured"].values())
    with pytest.raises(InputError, match="no query crops"):
        evaluation.require("generator", "reid")
    assert evaluation.require("generator", "verification") is evaluation
    write_evaluation(evaluation, tmp_path / "e.json")
    page = html.unescape((tmp_path / "e.html").read_text(encoding="utf-8"))
    assert all(reason in page for reason in json.loads((tmp_path / "e.json").read_text())["not_measured"].values())
    with pytest.raises(InputError, match="no gallery crops"):
        evaluate_run(run, settings, crops=bare.with_crops(bare.query))


def test_a_query_that_lies_in_the_gallery_is_not_its_own_match(crops: CropTable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, identities = rng.normal(size=(40, 8)), np.repeat(np.arange(10), 4) + 1
    names = np.array([f"{number}.jpg" for number in range(40)])
    held = {"features": features, "identities": identities}

    def search(query: slice, **gallery: Any) -> dict[str, Any]:
        np.savez(tmp_path / "q.npz", **{name: values[query] for name, values in (held | {"names": names}).items()})
        np.savez(tmp_path / "g.npz", **held | {"names": names} | gallery)
        return evaluate_features([tmp_path / "q.npz", tmp_path / "g.npz"], QUICK).figures

    figures = search(slice(15), features=features + 1e-7)  # a network's answers differ a little between batches
    precisions = []
    for number in range(15):
        others = np.delete(np.arange(40), number)
        result = rank_features(features[[number]], features[others], identities[[number]], identities[others])
        precisions.append(result.mean_average_precision)
    assert figures["reid"]["mAP"] == pytest.approx(100 * np.mean(precisions), abs=0.005)
    assert figures["reid"]["own_crops_left_out"] == 15
    assert figures["verification"]["genuine_pairs"] == 15 * 3
    assert "15 queries are in the gallery too" in evaluation_table(figures)
    # Of one name, but two crops: file names of two folders.
    assert search(slice(15), features=rng.normal(size=(40, 8)))["reid"]["own_crops_left_out"] == 0
    # Other names, yet the very features of a query: said, and left in.
    renamed = search(slice(15), names=np.array([f"copy of {name}" for name in names]))
    assert (renamed["reid"]["rank1"], renamed["reid"]["same_features"]) == (100, 15)
    assert "15 queries have a right crop with exactly their own features" in evaluation_table(renamed)
    # Features that are all alike say nothing about which crops are the same.
    held["features"] = np.ones((40, 8))
    assert search(slice(15), names=names[::-1])["reid"]["same_features"] == 0
    everyone_once = held | {"identities": np.arange(40) + 1, "names": names}
    np.savez(tmp_path / "q.npz", **everyone_once)
    with pytest.raises(InputError, match=r"40 have crops of their identity that are the query itself"):
        evaluate_features([tmp_path / "q.npz", tmp_path / "q.npz"], QUICK)


def test_a_remedy_is_one_that_helps(run: Path, crops: CropTable) -> None:
    one_camera = crops.with_crops(replace(crop, camera=1, joints=None) for crop in crops)
    with pytest.raises(InputError, match=r"own camera only.* \(--no-same-camera-rule"):
        evaluate_run(run, QUICK, crops=one_camera)
    assert evaluate_run(run, QUICK.changed(same_camera_rule=False), crops=one_camera).figures["reid"]["queries"]
    strangers = one_camera.with_crops(
        replace(crop, identity=crop.identity + 500 * (crop.split == "query")) for crop in one_camera
    )
    with pytest.raises(InputError, match="have none at all; check that both sides name people alike"):
        evaluate_run(run, QUICK, crops=strangers)
