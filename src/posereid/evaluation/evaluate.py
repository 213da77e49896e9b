"""A run on its test split: how well people are found, and how good the generated pictures are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posereid.config import EvaluationRecipe
from posereid.data.batches import CropImages, PosePairBatch, PosePairs, collate, to_float, to_pixels
from posereid.data.crops import Crop, CropTable
from posereid.data.readers import read_rows
from posereid.data.sampling import crops_by_identity
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.distances import distance_matrix
from posereid.evaluation.image_quality import TrivialAnswers, map_mean, pose_mask, similarity_map
from posereid.evaluation.ranking import RankingResult, rank_gallery
from posereid.features import embed_crops
from posereid.generator.generator import PoseTransferGenerator
from posereid.progress import progress_bar

FOREGROUND = "foreground_"


@dataclass(frozen=True, eq=False)
class Search:
    """A search of the gallery for each query: the distances and what they scored."""

    query: CropTable
    gallery: CropTable
    distances: npt.NDArray[np.float32]
    result: RankingResult

    def summary(self) -> dict[str, float]:
        """Rank-1, 5, 10, mAP and mINP in percent, and how many queries they are over."""
        result = self.result
        return {
            "rank1": round(100 * result.rank(1), 2),
            "rank5": round(100 * result.rank(5), 2),
            "rank10": round(100 * result.rank(10), 2),
            "mAP": round(100 * result.mean_average_precision, 2),
            "mINP": round(100 * result.mean_inverse_negative_penalty, 2),
            "queries": result.evaluated_queries,
            "queries_without_match": result.unmatched_queries,
        }


def search_gallery(embedder: Embedder, crops: CropTable, recipe: EvaluationRecipe, *, progress: bool = False) -> Search:
    """Embed query and gallery, rank by cosine distance, score by the Market-1501 protocol.

    Junk is dropped, and for each query the gallery crops of the same identity and camera. Raises InputError when
    either split is empty or no query has a match.
    """
    query, gallery = crops.query, crops.gallery
    for name, split in (("query", query), ("gallery", gallery)):
        if not len(split):
            raise InputError(f"{crops.root} has no {name} crops; evaluation needs both query and gallery.")
    features = embed_crops(embedder, [*query, *gallery], batch_size=recipe.batch_size, progress=progress)
    distances = distance_matrix(features[: len(query)], features[len(query) :])
    result = rank_gallery(
        distances,
        query.identities,
        gallery.identities,
        query.cameras,
        gallery.cameras,
        max_rank=max(10, recipe.max_rank),
    )
    return Search(query, gallery, distances, result)


def chance_rank1(crops: CropTable) -> float:
    """Expected rank-1, in [0, 1], of a random order of the gallery under the same protocol."""
    gallery = crops.gallery
    kept = gallery.identities != -1
    identities, cameras = gallery.identities[kept], gallery.cameras[kept]
    shares = []
    for crop in crops.query:
        same = identities == crop.identity
        valid = ~(same & (cameras == crop.camera))
        if (same & valid).any():
            shares.append((same & valid).sum() / valid.sum())
    return float(np.mean(shares))


@dataclass(frozen=True)
class ImageQuality:
    """SSIM of the generated test pairs and of the answers beside it.

    ``scores`` holds means over pairs: ``ssim`` of the generated images, ``ssim_ANSWER`` of each other answer, and
    both again as ``foreground_…`` for the pixels of the person only; ``pairs`` counts them,
    ``foreground_from`` says whether the set's masks or the joints decided what the foreground is.
    """

    scores: dict[str, float]
    pairs: int
    foreground_from: str
    unseen_cameras: int


def pick_test_pairs(crops: Sequence[Crop], recipe: EvaluationRecipe) -> list[tuple[int, int]]:
    """Pose pairs of test crops, as positions: from the recipe's file, else a random draw by its seed.

    Raises InputError when the file names crops that are not there, or no identity has two crops with a pose.
    """
    if recipe.pairs_file is not None:
        return _pairs_from_file(crops, recipe.pairs_file)
    groups = _pair_groups(crops)
    if not groups:
        raise InputError("no test identity has two crops with both shoulders and both hips; there is no pair to draw.")
    every = [(a, b) for members in groups for a in members for b in members if a != b]
    if len(every) <= recipe.pairs:
        return every
    chosen = np.random.default_rng((recipe.pairs_seed, 6)).choice(len(every), recipe.pairs, replace=False)
    return [every[number] for number in sorted(chosen)]


def has_pose_pairs(crops: Sequence[Crop]) -> bool:
    """Whether any identity has two crops with both shoulders and both hips."""
    return bool(_pair_groups(crops))


def _pair_groups(crops: Sequence[Crop]) -> list[list[int]]:
    return [members for members in crops_by_identity(crops, posed=True).values() if len(members) > 1]


def _pairs_from_file(crops: Sequence[Crop], path: Path) -> list[tuple[int, int]]:
    position = {crop.name: number for number, crop in enumerate(crops)}
    rows = [(row["from"], row["to"]) for _, row in read_rows(path, ("from", "to"))]
    unknown = [name for pair in rows for name in pair if name not in position]
    if unknown:
        raise InputError(
            f"{path} names {len(unknown)} crops that the test split does not hold, for example {unknown[0]!r}; give "
            "the pairs file of this data set."
        )
    return [(position[source], position[target]) for source, target in rows]


def learn_trivial_answers(crops: CropTable, height: int, width: int) -> TrivialAnswers:
    """Mean image and camera means of the real training crops."""
    answers = TrivialAnswers()
    real = [crop for crop in crops.train if not crop.generated]
    images = CropImages(real, height, width, keep=False)
    for start in range(0, len(real), 64):
        batch = range(start, min(start + 64, len(real)))
        pixels = torch.stack([images.image(position) for position in batch])
        answers.update(to_float(pixels), [real[position].camera for position in batch])
    return answers


@torch.no_grad()
def measure_generator(
    generator: PoseTransferGenerator, crops: CropTable, recipe: EvaluationRecipe, *, progress: bool = False
) -> ImageQuality:
    """SSIM and foreground SSIM of generated test pairs, beside trivial answers and two controls.

    Trivial: ``copy_source``, ``mean_image`` of the training crops, ``camera_mean`` of the target's camera. Controls:
    ``wrong_source`` draws another pair's person in the target pose, ``wrong_pose`` draws the person in another
    pair's pose: they say what the generator really uses. Raises InputError.
    """
    height, width = generator.crop_size
    device = next(generator.parameters()).device
    generator.eval()
    test = [*crops.query, *crops.gallery]
    pairs = pick_test_pairs(test, recipe)
    images = CropImages(test, height, width)
    dataset = PosePairs(images, {crop.identity: 0 for crop in test})
    trivial = learn_trivial_answers(crops, height, width)
    masked = all(test[target].mask_path is not None for _, target in pairs)
    shifted = _other_identity(pairs, test)

    def generated(batch: PosePairBatch) -> Tensor:
        batch = batch.to(device)
        return generator(to_float(batch.source_images), batch.source_poses, batch.target_poses)

    def batch_of(rows: Sequence[tuple[int, int]]) -> PosePairBatch:
        return collate([dataset[(0, source, target)] for source, target in rows])

    def camera_mean(rows: Sequence[tuple[int, int]], _: PosePairBatch) -> Tensor:
        return trivial.camera_mean([test[target].camera for _, target in rows])

    answers: dict[str, Callable[[Sequence[tuple[int, int]], PosePairBatch], Tensor]] = {
        "generated": lambda rows, batch: generated(batch),
        "copy_source": lambda rows, batch: to_float(batch.source_images),
        "mean_image": lambda rows, batch: trivial.mean_image.expand(len(rows), -1, -1, -1),
        "camera_mean": camera_mean,
        "wrong_source": lambda rows, batch: generated(batch_of([(shifted[s, t][0], t) for s, t in rows])),
        "wrong_pose": lambda rows, batch: generated(batch_of([(s, shifted[s, t][1]) for s, t in rows])),
    }
    keys = {name: "ssim" if name == "generated" else f"ssim_{name}" for name in answers}
    sums = dict.fromkeys([*keys.values(), *(FOREGROUND + key for key in keys.values())], 0.0)
    with_foreground = 0
    with progress_bar(len(pairs), "image quality", "pair", show=progress) as bar:
        for start in range(0, len(pairs), recipe.batch_size):
            rows = pairs[start : start + recipe.batch_size]
            batch = batch_of(rows)
            target = to_float(batch.target_images)
            masks = (
                torch.stack([_mask(images, position) for _, position in rows])
                if masked
                else pose_mask(batch.target_keypoints, batch.target_present, height, width)
            )
            inside = masks.flatten(1).any(1)
            with_foreground += int(inside.sum())
            for name, answer in answers.items():
                # Rounded to pixels, as it would be written: no answer gains from finer steps than a picture has.
                picture = to_float(to_pixels(answer(rows, batch))).cpu()
                per_pixel = similarity_map(picture, target)
                sums[keys[name]] += map_mean(per_pixel).sum().item()
                sums[FOREGROUND + keys[name]] += map_mean(per_pixel, masks)[inside].sum().item()
            bar.update(len(rows))
    if not with_foreground:
        raise InputError(
            f"{crops.root}: the foreground masks of all {len(pairs)} test pairs are empty; write them again."
        )
    scores = {
        key: round(total / (with_foreground if key.startswith(FOREGROUND) else len(pairs)), 4)
        for key, total in sums.items()
    }
    return ImageQuality(scores, len(pairs), "masks" if masked else "joints", trivial.unseen_camera_answers)


def _mask(images: CropImages, position: int) -> Tensor:
    mask = images.mask(position)
    assert mask is not None  # the caller looked
    return mask


def _other_identity(pairs: Sequence[tuple[int, int]], crops: Sequence[Crop]) -> dict[tuple[int, int], tuple[int, int]]:
    """For each pair the next one, cyclically from half-way, that shows somebody else (itself when there is none)."""
    found = {}
    for number, pair in enumerate(pairs):
        start = number + len(pairs) // 2
        others = (pairs[(start + offset) % len(pairs)] for offset in range(len(pairs)))
        own = crops[pair[0]].identity
        found[pair] = next((other for other in others if crops[other[0]].identity != own), pair)
    return found
