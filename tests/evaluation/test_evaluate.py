"""The evaluation of a run against the same figures computed crop by crop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posereid.config import EvaluationRecipe, Recipe
from posereid.data.batches import CropImages, to_float, to_pixels
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.evaluation.evaluate import (
    chance_rank1,
    learn_trivial_answers,
    measure_generator,
    pick_test_pairs,
    search_gallery,
)
from posereid.evaluation.image_quality import structural_similarity
from posereid.evaluation.summary import ANSWERS, evaluate_run, evaluation_table
from posereid.features import embed_crops
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.maps import heat_maps
from posereid.training.checkpoint import new_embedder, new_generator
from posereid.training.joint import train_joint

Build = Callable[..., Recipe]


@pytest.fixture(scope="module")
def generator(tiny_recipe: Build) -> PoseTransferGenerator:
    torch.manual_seed(0)
    return new_generator(tiny_recipe()).eval()


def test_test_pairs_are_pose_pairs_of_held_out_people(crops: CropTable) -> None:
    test = [*crops.query, *crops.gallery]
    pairs = pick_test_pairs(test, EvaluationRecipe(pairs=50))
    assert len(set(pairs)) == 50
    for source, target in pairs:
        assert source != target
        assert test[source].identity == test[target].identity > 0
        assert test[source].can_pose
        assert test[target].can_pose
    assert pairs == pick_test_pairs(test, EvaluationRecipe(pairs=50))
    assert pairs != pick_test_pairs(test, EvaluationRecipe(pairs=50, pairs_seed=1))


def test_all_pairs_are_taken_when_fewer_are_there_than_asked_for(crops: CropTable) -> None:
    test = [*crops.query, *crops.gallery]
    groups: dict[int, int] = {}
    for crop in test:
        groups[crop.identity] = groups.get(crop.identity, 0) + crop.can_pose
    expected = sum(count * (count - 1) for count in groups.values())
    assert len(pick_test_pairs(test, EvaluationRecipe(pairs=10**6))) == expected


def test_a_pairs_file_decides_and_must_name_crops_of_the_set(crops: CropTable, tmp_path: Path) -> None:
    test = [*crops.query, *crops.gallery]
    path = tmp_path / "pairs.csv"
    path.write_text(f"from,to\n{test[0].name},{test[1].name}\n")
    assert pick_test_pairs(test, EvaluationRecipe(pairs_file=path)) == [(0, 1)]
    path.write_text(f"from,to\n{test[0].name},stranger.jpg\n")
    with pytest.raises(InputError, match=r"1 crops .*stranger\.jpg"):
        pick_test_pairs(test, EvaluationRecipe(pairs_file=path))


def test_no_pose_pair_at_all_is_an_input_error(crops: CropTable) -> None:
    with pytest.raises(InputError, match="both shoulders"):
        pick_test_pairs([replace(crop, joints=None) for crop in crops], EvaluationRecipe())


def test_trivial_answers_are_the_means_of_the_training_crops(crops: CropTable) -> None:
    answers = learn_trivial_answers(crops, 64, 32)
    pictures = {crop.name: np.asarray(Image.open(crop.path), np.float64) / 127.5 - 1 for crop in crops.train}
    mean = np.mean(list(pictures.values()), axis=0).transpose(2, 0, 1)
    assert np.allclose(answers.mean_image.numpy(), mean, atol=1e-5)
    camera = crops.train[0].camera
    own = np.mean([pictures[crop.name] for crop in crops.train if crop.camera == camera], axis=0).transpose(2, 0, 1)
    assert np.allclose(answers.camera_mean([camera])[0].numpy(), own, atol=1e-5)


def test_scores_are_the_means_of_ssim_pair_by_pair(generator: PoseTransferGenerator, crops: CropTable) -> None:
    recipe = EvaluationRecipe(pairs=7, batch_size=3)
    quality = measure_generator(generator, crops, recipe)
    test = [*crops.query, *crops.gallery]
    images = CropImages(test, 64, 32)
    sums = dict.fromkeys(("ssim", "foreground_ssim", "ssim_copy_source", "foreground_ssim_copy_source"), 0.0)
    for source, target in pick_test_pairs(test, recipe):
        poses = []
        for position in (source, target):
            joints = images.joints(position)
            poses.append(heat_maps(torch.tensor(joints.xy)[None], torch.tensor(joints.present)[None], 64, 32))
        real = to_float(images.image(target))[None]
        copy = to_float(images.image(source))[None]
        with torch.no_grad():
            drawn = to_float(to_pixels(generator(copy, *poses)))
        mask = images.mask(target)
        assert mask is not None
        for key, picture in (("ssim", drawn), ("ssim_copy_source", copy)):
            sums[key] += structural_similarity(picture, real).item()
            sums[f"foreground_{key}"] += structural_similarity(picture, real, mask[None]).item()
    for key, total in sums.items():
        assert quality.scores[key] == pytest.approx(total / 7, abs=2e-4)
    assert quality.pairs == 7
    assert quality.foreground_from == "masks"


def test_without_masks_the_joints_decide_what_the_foreground_is(
    generator: PoseTransferGenerator, crops: CropTable
) -> None:
    bare = crops.with_crops(replace(crop, mask_path=None) for crop in crops)
    assert measure_generator(generator, bare, EvaluationRecipe(pairs=4)).foreground_from == "joints"


def test_a_generator_that_copies_scores_what_copying_scores(crops: CropTable, tiny_recipe: Build) -> None:
    class Copying(PoseTransferGenerator):
        def forward(self, source_image: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return source_image

    plain = new_generator(tiny_recipe())
    copying = Copying(plain.appearance_encoder, plain.pose_encoder, plain.paan, plain.pagn, plain.crop_size)
    scores = measure_generator(copying, crops, EvaluationRecipe(pairs=20)).scores
    assert scores["ssim"] == scores["ssim_copy_source"] == scores["ssim_wrong_pose"]
    assert scores["foreground_ssim"] == scores["foreground_ssim_copy_source"]
    assert scores["ssim_wrong_source"] != scores["ssim"]


def test_searching_ranks_by_cosine_distance(crops: CropTable, tiny_recipe: Build) -> None:
    torch.manual_seed(0)
    embedder = new_embedder(tiny_recipe(), identities=4).eval()
    search = search_gallery(embedder, crops, EvaluationRecipe())
    query, gallery = embed_crops(embedder, crops.query), embed_crops(embedder, crops.gallery)
    assert np.allclose(search.distances, 1 - query @ gallery.T, atol=1e-5)
    with pytest.raises(InputError, match="no query crops"):
        search_gallery(embedder, crops.with_crops(crops.gallery), EvaluationRecipe())


def test_chance_is_what_random_orders_score_on_average(crops: CropTable) -> None:
    random = np.random.default_rng(0)
    query, gallery = crops.query, crops.gallery
    hits, draws = 0, 0
    for _ in range(300):
        for crop in query:
            order = random.permutation(len(gallery))
            kept = (
                gallery[int(n)]
                for n in order
                if gallery[int(n)].identity != -1
                and not (gallery[int(n)].identity == crop.identity and gallery[int(n)].camera == crop.camera)
            )
            hits += next(kept).identity == crop.identity
            draws += 1
    chance = chance_rank1(crops)
    assert hits / draws == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / draws))


def test_a_runs_evaluation_holds_its_figures_and_its_circumstances(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    run = train_joint(tiny_recipe(seed=5), crops, tmp_path / "run", progress=False)
    evaluation = evaluate_run(run, root=crops.root, pairs=6)
    assert (evaluation["seed"], evaluation["stage"], evaluation["device"]) == (5, "joint", "cpu")
    assert evaluation["versions"]["torch"] == torch.__version__
    assert evaluation["generator"]["pairs"] == 6
    assert set(evaluation["generator"]["ssim"]) == {*ANSWERS, *(f"foreground_{key}" for key in ANSWERS)}
    table = evaluation_table(evaluation)
    assert f"{evaluation['reid']['rank1']:.2f} %" in table
    assert all(label in table for label in ANSWERS.values())
    with pytest.raises(InputError, match="--root"):
        evaluate_run(run)
