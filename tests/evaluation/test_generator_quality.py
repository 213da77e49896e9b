"""Generated test pairs measured together, against the same figures pair by pair."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from posereid.config import EvaluationRecipe, Recipe
from posereid.data.batches import CropImages, to_float, to_pixels
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.evaluation.generator_quality import (
    ImageQuality,
    draw_pairs,
    learn_trivial_answers,
    measure_generator,
    pick_test_pairs,
)
from posereid.evaluation.identity_preservation import RealCrops
from posereid.evaluation.image_quality import (
    grey_background,
    pose_mask,
    signal_to_noise,
    structural_similarity,
)
from posereid.evaluation.keypoint_accuracy import pckh_hits
from posereid.evaluation.learned_metrics import LearnedMetrics, PictureStatistics
from posereid.evaluation.picture_measures import ANSWERS, FOREGROUND, IMAGE, MEASURES, foreground_masks
from posereid.evaluation.published_ssim import mask_ssim, patn_ssim
from posereid.generator.generator import PoseTransferGenerator
from posereid.generator.texture import CameraCode
from posereid.pose.maps import heat_maps
from posereid.training.checkpoint import new_embedder, new_generator

Build = Callable[..., Recipe]

RECIPE = EvaluationRecipe(pairs=7, batch_size=3)


class Difference(nn.Module):
    """Stands in for LPIPS."""

    def forward(self, first, second):
        return (first - second).abs().mean((1, 2, 3))


class Colours(nn.Module):
    """Stands in for Inception: features and logits of uint8 pictures."""

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8
        features = nn.functional.adaptive_avg_pool2d(pictures.float(), (2, 1)).flatten(1)
        return features, features / 20


class Leaning:
    """Stands in for a pose estimator: joints that depend on the picture's colours, some of them absent."""

    def estimate(self, images):
        anchors = torch.linspace(0, 60, 36).view(1, 18, 2)
        anchors = torch.stack([anchors[..., 0] % 32, anchors[..., 1]], -1)
        keypoints = anchors + 4 * images.mean((1, 2, 3))[:, None, None]
        return keypoints, keypoints[..., 1] > 10


@pytest.fixture(scope="module")
def generator(tiny_recipe: Build) -> PoseTransferGenerator:
    torch.manual_seed(0)
    return new_generator(tiny_recipe()).eval()


@pytest.fixture(scope="module")
def embedder(tiny_recipe: Build):
    torch.manual_seed(1)
    return new_embedder(tiny_recipe(), identities=4).eval()


@pytest.fixture(scope="module")
def quality(generator: PoseTransferGenerator, embedder, crops: CropTable) -> ImageQuality:
    return measure_generator(
        generator,
        crops,
        RECIPE,
        embedder=embedder,
        pose_estimator=Leaning(),
        learned=LearnedMetrics(Difference(), Colours()),
    )


class Pair:
    """One test pair, and what each answer shows for it."""

    def __init__(self, source, target, images, generator, trivial):
        self.positions = (source, target)
        poses = []
        for position in self.positions:
            joints = images.joints(position)
            poses.append(heat_maps(torch.tensor(joints.xy)[None], torch.tensor(joints.present)[None], 64, 32))
        self.target_pixels, source_pixels = images.image(target)[None], images.image(source)[None]
        self.target = to_float(self.target_pixels)
        mask = images.mask(target)
        assert mask is not None
        self.mask = mask[None]
        self.joints = images.joints(target)
        with torch.no_grad():
            drawn = to_pixels(generator(to_float(source_pixels), *poses))
        self.pixels = {
            "generated": drawn,
            "copy_source": source_pixels,
            "mean_image": to_pixels(trivial.mean_image[None]),
            "camera_mean": to_pixels(trivial.camera_mean([images.crops[target].camera])),
            "target": self.target_pixels,
        }


@pytest.fixture(scope="module")
def pairs(generator: PoseTransferGenerator, crops: CropTable) -> list[Pair]:
    test = [*crops.query, *crops.gallery]
    images = CropImages(test, 64, 32)
    trivial = learn_trivial_answers(crops, 64, 32)
    return [Pair(*positions, images, generator, trivial) for positions in pick_test_pairs(test, RECIPE)]


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


PER_PAIR = {
    "ssim": lambda pixels, pair: {
        IMAGE: structural_similarity(to_float(pixels), pair.target),
        FOREGROUND: structural_similarity(to_float(pixels), pair.target, pair.mask),
    },
    "psnr": lambda pixels, pair: {
        IMAGE: signal_to_noise(to_float(pixels), pair.target),
        FOREGROUND: signal_to_noise(to_float(pixels), pair.target, pair.mask),
    },
    "ssim_patn": lambda pixels, pair: {IMAGE: patn_ssim(pixels, pair.target_pixels)},
    "mask_ssim": lambda pixels, pair: {FOREGROUND: mask_ssim(pixels, pair.target_pixels, pair.mask)},
    "lpips": lambda pixels, pair: {
        IMAGE: (to_float(pixels) - pair.target).abs().mean(),
        FOREGROUND: ((to_float(pixels) - pair.target) * pair.mask).abs().mean(),
    },
}


@pytest.mark.parametrize("measure", PER_PAIR)
def test_values_are_those_of_each_pair_alone(quality: ImageQuality, pairs: list[Pair], measure: str) -> None:
    for answer in ("generated", "copy_source", "mean_image", "camera_mean"):
        wanted = [PER_PAIR[measure](pair.pixels[answer], pair) for pair in pairs]
        found = quality.per_pair[measure][answer]
        assert set(found) == set(wanted[0])
        for region, values in found.items():
            assert values.dtype == np.float64
            # Drawn in another batch, a pixel or two may round the other way, which is worth up to 1e-5 of a PSNR.
            np.testing.assert_allclose(values, [each[region].item() for each in wanted], rtol=1e-5, atol=2e-5)


def test_joints_are_those_of_the_real_target(quality: ImageQuality, pairs: list[Pair]) -> None:
    for answer, regions in quality.per_pair["pckh"].items():
        for pair, value in zip(pairs, regions[IMAGE], strict=True):
            keypoints, present = Leaning().estimate(to_float(pair.pixels[answer]))
            hits, counted = pckh_hits(
                keypoints, present, torch.tensor(pair.joints.xy)[None], torch.tensor(pair.joints.present)[None]
            )
            total = int(counted.sum())
            assert value == pytest.approx(int(hits.sum()) / total if total else np.nan, nan_ok=True)
    assert set(quality.per_pair["pckh"]) == {"generated", "copy_source", "mean_image", "camera_mean", "target"}


def test_an_estimator_that_knows_the_joints_finds_all(generator: PoseTransferGenerator, crops: CropTable) -> None:
    test = [*crops.query, *crops.gallery]
    images = CropImages(test, 64, 32)
    positions = pick_test_pairs(test, RECIPE)

    class Knowing:
        def estimate(self, pictures):
            found = [images.joints(self.position_of(picture)) for picture in to_pixels(pictures)]
            return torch.tensor(np.stack([j.xy for j in found])), torch.tensor(np.stack([j.present for j in found]))

        def position_of(self, picture):
            known = {position for pair in positions for position in pair}
            return next((p for p in known if torch.equal(images.image(p), picture)), positions[0][0])

    quality = measure_generator(generator, crops, RECIPE, pose_estimator=Knowing())
    found = quality.per_pair["pckh"]["target"][IMAGE]
    assert set(found[~np.isnan(found)]) == {1}
    assert quality.scores()["pckh"]["copy_source"][IMAGE] < 1


def test_pairs_are_drawn_as_if_all_had_been_listed() -> None:
    groups = [[5, 2, 9], [1, 7], list(range(20, 40))]
    every = [(a, b) for members in groups for a in members for b in members if a != b]
    for count in (1, 50, len(every) - 1, len(every), 10**6):
        wanted = every
        if count < len(every):
            chosen = np.random.default_rng((3, 6)).choice(len(every), count, replace=False)
            wanted = [every[number] for number in sorted(chosen)]
        assert draw_pairs(groups, count, (3, 6)) == wanted
    # 1.1e9 pairs of two people, whom no list would hold.
    groups = [range(25_000), range(25_000, 47_000)]
    pairs = draw_pairs(groups, 2000, (0, 6))
    assert pairs == sorted(set(pairs))
    assert len(pairs) == 2000
    assert all(a != b and (a < 25_000) == (b < 25_000) for a, b in pairs)
    assert 1000 < sum(a < 25_000 for a, _ in pairs) < 1250  # 25,000² of 25,000² + 22,000², 1,127 ± 22


def test_identities_are_looked_up_among_the_test_crops(
    quality: ImageQuality, pairs: list[Pair], embedder, crops: CropTable
) -> None:
    images = CropImages([*crops.query, *crops.gallery], 64, 32)
    real = RealCrops(embedder, images, lambda positions: foreground_masks(images, positions, by_masks=True))
    for answer, regions in quality.per_pair["identity"].items():
        for number, pair in enumerate(pairs):
            shown = to_float(pair.pixels[answer])
            np.testing.assert_equal(regions[IMAGE][number], real.preserved(shown, [pair.positions])[0])
            np.testing.assert_equal(regions[FOREGROUND][number], real.preserved(shown, [pair.positions], pair.mask)[0])
    assert [images.crops[pair.positions[1]].identity for pair in pairs] == quality.identities.tolist()


def test_whole_sets_are_measured_as_if_all_pictures_came_at_once(quality: ImageQuality, pairs: list[Pair]) -> None:
    masks = torch.cat([pair.mask for pair in pairs])
    for region in (IMAGE, FOREGROUND):
        statistics = PictureStatistics(Colours(), ["generated", "copy_source", "mean_image", "camera_mean"])
        for answer in (*statistics.names, "target"):
            pixels = torch.cat([pair.pixels[answer] for pair in pairs])
            if region == FOREGROUND:
                pixels = to_pixels(grey_background(to_float(pixels), masks))
            statistics.add(answer, pixels)
        for answer in statistics.names:
            assert quality.set_wide["fid"][answer][region] == pytest.approx(statistics.distance(answer), rel=1e-4)
        for answer in (*statistics.names, "target"):
            assert quality.set_wide["inception_score"][answer][region] == pytest.approx(statistics.score(answer))


def test_scores_are_plain_means_in_the_measures_order(quality: ImageQuality) -> None:
    scores = quality.scores()
    assert json.loads(json.dumps(scores)) == scores
    assert list(scores) == [measure for measure in MEASURES if measure != "ssim_gfla"]
    assert set(scores) | set(quality.not_measured) == set(MEASURES)
    assert "64 × 32 pixels are smaller than its window, 51 × 51" in quality.not_measured["ssim_gfla"]
    for measure, answers in scores.items():
        assert set(answers) == set(MEASURES[measure].answers) - {"any_camera"} <= set(ANSWERS)
    assert scores["ssim"]["generated"][IMAGE] == round(quality.per_pair["ssim"]["generated"][IMAGE].mean(), 4)
    assert scores["identity"]["target"][IMAGE] == round(np.nanmean(quality.per_pair["identity"]["target"][IMAGE]), 4)
    assert (quality.pairs, quality.foreground_from, quality.unseen_cameras) == (7, "masks", 0)


def test_the_size_of_batches_does_not_matter(
    quality: ImageQuality, generator: PoseTransferGenerator, crops: CropTable, embedder
) -> None:
    at_once = measure_generator(
        generator,
        crops,
        EvaluationRecipe(pairs=7, batch_size=64),
        embedder=embedder,
        pose_estimator=Leaning(),
        learned=LearnedMetrics(Difference(), Colours()),
    )
    for measure, answers in quality.per_pair.items():
        for answer, regions in answers.items():
            for region, values in regions.items():
                np.testing.assert_allclose(values, at_once.per_pair[measure][answer][region], atol=1e-4)


def test_what_is_not_given_is_not_measured_and_said(generator: PoseTransferGenerator, crops: CropTable) -> None:
    quality = measure_generator(generator, crops, EvaluationRecipe(pairs=2))
    assert set(quality.scores()) == {"ssim", "ssim_patn", "mask_ssim", "psnr"}
    assert set(quality.not_measured) == {"ssim_gfla", "pckh", "identity", "lpips", "fid", "inception_score"}
    assert all(reason.endswith(".") for reason in quality.not_measured.values())
    absent = LearnedMetrics(not_measured={"lpips": "No weights."})
    assert measure_generator(generator, crops, EvaluationRecipe(pairs=2), learned=absent).not_measured["lpips"] == (
        "No weights."
    )


def test_pictures_that_hold_its_window_have_the_second_published_ssim(crops: CropTable, tiny_recipe: Build) -> None:
    large = new_generator(tiny_recipe(data={"height": 128, "width": 64}))
    quality = measure_generator(large, crops, EvaluationRecipe(pairs=2))
    assert "ssim_gfla" not in quality.not_measured
    assert set(quality.scores()["ssim_gfla"]) == set(MEASURES["ssim_gfla"].answers)

    class Large(Difference):
        smallest_side = 65

    quality = measure_generator(large, crops, EvaluationRecipe(pairs=1), learned=LearnedMetrics(lpips=Large()))
    assert "smaller than its network takes, 65 × 65" in quality.not_measured["lpips"]


def test_without_masks_the_joints_decide_what_the_foreground_is(
    generator: PoseTransferGenerator, crops: CropTable, pairs: list[Pair]
) -> None:
    bare = crops.with_crops(replace(crop, mask_path=None) for crop in crops)
    quality = measure_generator(generator, bare, RECIPE)
    assert quality.foreground_from == "joints"
    pair = pairs[0]
    mask = pose_mask(torch.tensor(pair.joints.xy)[None], torch.tensor(pair.joints.present)[None], 64, 32)
    wanted = structural_similarity(to_float(pair.pixels["copy_source"]), pair.target, mask)
    assert quality.per_pair["ssim"]["copy_source"][FOREGROUND][0] == pytest.approx(float(wanted), abs=1e-5)


def test_an_empty_mask_leaves_its_pair_out_of_the_foreground(
    generator: PoseTransferGenerator, crops: CropTable, embedder, tmp_path: Path
) -> None:
    Image.new("L", (32, 64)).save(tmp_path / "empty.png")
    target = [*crops.query, *crops.gallery][pick_test_pairs([*crops.query, *crops.gallery], RECIPE)[0][1]]
    hidden = crops.with_crops(
        replace(crop, mask_path=tmp_path / "empty.png") if crop.name == target.name else crop for crop in crops
    )
    learned = LearnedMetrics(Difference(), Colours())
    quality = measure_generator(generator, hidden, RECIPE, embedder=embedder, learned=learned)
    for measure, answers in quality.per_pair.items():
        for regions in answers.values():
            for region, values in regions.items():
                if measure != "identity":
                    assert np.isnan(values[0]) == (region == FOREGROUND)
                elif region == FOREGROUND:
                    assert np.isnan(values[0])
    assert quality.scores()["ssim"]["generated"][FOREGROUND] is not None
    every = crops.with_crops(replace(crop, mask_path=tmp_path / "empty.png") for crop in crops)
    quality = measure_generator(generator, every, RECIPE, learned=learned)
    assert "masks of all 7 test pairs are empty" in quality.not_measured["foreground"]
    assert "mask_ssim" in quality.not_measured
    assert all(set(regions) == {IMAGE} for answers in quality.scores().values() for regions in answers.values())


def test_nothing_to_average_is_none() -> None:
    empty = {"ssim": {"generated": {FOREGROUND: np.array([np.nan])}}}
    quality = ImageQuality(empty, {"fid": {"generated": {IMAGE: np.nan}}}, np.array([1]), {}, "masks", 0)
    assert quality.scores() == {"ssim": {"generated": {FOREGROUND: None}}, "fid": {"generated": {IMAGE: None}}}


def test_a_generator_that_copies_scores_what_copying_scores(crops: CropTable, tiny_recipe: Build) -> None:
    class Copying(PoseTransferGenerator):
        def forward(self, source_image: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return source_image

    plain = new_generator(tiny_recipe())
    copying = Copying(plain.appearance_encoder, plain.pose_encoder, plain.paan, plain.pagn, plain.crop_size)
    learned = LearnedMetrics(Difference(), Colours())
    scores = measure_generator(copying, crops, EvaluationRecipe(pairs=20), learned=learned).scores()
    for answers in scores.values():
        assert answers["generated"] == answers["copy_source"]
    assert scores["ssim"]["generated"] == scores["ssim"]["wrong_pose"] != scores["ssim"]["wrong_source"]


def test_a_control_is_wrong_in_one_thing_alone_and_told_the_targets_camera(
    crops: CropTable, tiny_recipe: Callable[..., Recipe]
) -> None:
    class Naming(PoseTransferGenerator):
        """Draws the number of the camera that it is told as a grey."""

        def forward(
            self, image: torch.Tensor, _: torch.Tensor, __: torch.Tensor, cameras: torch.Tensor
        ) -> torch.Tensor:
            return (cameras / 10).view(-1, 1, 1, 1).expand_as(image)

    plain = new_generator(tiny_recipe())
    parts = (plain.appearance_encoder, plain.pose_encoder, plain.paan, plain.pagn, plain.crop_size)
    naming = Naming(*parts, camera_code=CameraCode(4, 4, 2))
    quality = measure_generator(naming, crops, EvaluationRecipe(pairs=40))
    scores = quality.scores()
    assert scores["psnr"]["generated"] == scores["psnr"]["wrong_pose"] == scores["psnr"]["wrong_source"]
    assert set(scores["ssim"]) == set(MEASURES["ssim"].answers)
    test = [*crops.query, *crops.gallery]
    images = CropImages(test, *plain.crop_size)
    grey = torch.full((1, 3, *plain.crop_size), 128, dtype=torch.uint8)
    assert quality.per_pair["psnr"]["any_camera"][IMAGE] == pytest.approx(
        [
            float(signal_to_noise(to_float(grey), to_float(images.image(target)[None])))
            for _, target in pick_test_pairs(test, EvaluationRecipe(pairs=40))
        ]
    )
