"""How good generated pictures are: every measure over the test pairs, beside answers that need no generator."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from posereid.config import EvaluationRecipe
from posereid.data.batches import CropImages, PosePairBatch, PosePairs, to_float, to_pixels
from posereid.data.crops import Crop, CropTable
from posereid.data.readers import read_rows
from posereid.data.sampling import crops_by_identity
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.evaluation.image_quality import TrivialAnswers, grey_background
from posereid.evaluation.learned_metrics import LearnedMetrics, PictureStatistics
from posereid.evaluation.picture_measures import (
    FOREGROUND,
    IMAGE,
    MEASURES,
    REGIONS,
    WITH_CEILING,
    WITH_TRIVIAL,
    KeypointEstimator,
    Targets,
    foreground_masks,
    pair_measures,
)
from posereid.generator.generator import PoseTransferGenerator
from posereid.messages import complaint, shown
from posereid.progress import progress_bar

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImageQuality:
    """Every measure of generated test pairs and of the answers beside them.

    ``per_pair`` maps measure → answer → region to float64 (pairs,), NaN where a pair has no such value (its mask is
    empty, no joint counts, no crop of the person is left to be found). ``set_wide`` maps measures of whole sets of
    pictures (FID, Inception Score) the same way to one number. Keys are those of ``MEASURES``, ``ANSWERS`` and
    ``REGIONS`` in :mod:`~posereid.evaluation.picture_measures`; ``mask_ssim`` has the foreground only, ``ssim_patn``,
    ``ssim_gfla`` and ``pckh`` have the image only. Shares (``pckh``, ``identity``) lie in [0, 1].

    ``not_measured`` says in a sentence each why a measure, an answer or the region ``foreground`` is absent.
    ``identities`` (pairs,) are the targets'. ``foreground_from`` says whether the set's masks or the joints decided
    what the foreground is; ``unseen_cameras`` counts targets whose camera no training crop has.
    """

    per_pair: Mapping[str, Mapping[str, Mapping[str, Values]]]
    set_wide: Mapping[str, Mapping[str, Mapping[str, float]]]
    identities: npt.NDArray[np.int64]
    not_measured: Mapping[str, str]
    foreground_from: str
    unseen_cameras: int

    @property
    def pairs(self) -> int:
        """Number of test pairs."""
        return len(self.identities)

    def scores(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Means over the pairs that have a value, as measure → answer → region, rounded to 4 digits.

        None where no pair has one. Plain data, ready for JSON.
        """
        means = {
            measure: {
                answer: {region: _mean(values) for region, values in regions.items()}
                for answer, regions in answers.items()
            }
            for measure, answers in self.per_pair.items()
        }
        for measure, answers in self.set_wide.items():
            means[measure] = {
                answer: {region: _finite(value) for region, value in regions.items()}
                for answer, regions in answers.items()
            }
        return {measure: means[measure] for measure in MEASURES if measure in means}


def _mean(values: Values) -> float | None:
    return _finite(float(np.mean(values[~np.isnan(values)]))) if not np.isnan(values).all() else None


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


@torch.no_grad()
def measure_generator(
    generator: PoseTransferGenerator,
    crops: CropTable,
    recipe: EvaluationRecipe,
    *,
    embedder: Embedder | None = None,
    pose_estimator: KeypointEstimator | None = None,
    learned: LearnedMetrics | None = None,
    progress: bool = False,
) -> ImageQuality:
    """Every measure of generated test pairs, beside trivial answers and controls.

    ``generated`` is told the target's camera where the generator has camera codes; ``any_camera`` is then measured as
    well, drawn without being told any. Trivial: ``copy_source``, ``mean_image`` of the training crops,
    ``camera_mean`` of the target's camera. Controls: ``wrong_source`` draws another pair's person in the target pose,
    ``wrong_pose`` draws the person in another pair's pose: they say what the generator really uses. ``target``, the
    real picture, is the ceiling of ``pckh``, ``identity`` and ``inception_score``. Which measure is taken of which
    answers stands in :data:`~posereid.evaluation.picture_measures.MEASURES`. Drawn pictures are rounded to pixels
    first.

    Regions: ``image`` is the whole picture. ``foreground`` is what the target's mask covers, or without masks what
    its joints suggest: SSIM and PSNR count the pixels inside it; ``lpips``, ``fid``, ``inception_score`` and
    ``identity`` see pictures that are mid-grey outside of it, the real ones too. ``pckh`` sees whole pictures only:
    a mask would give the pose away.

    Without ``embedder`` there is no ``identity``, without ``pose_estimator`` no ``pckh``, without ``learned`` (see
    :func:`~posereid.evaluation.learned_metrics.find_learned_metrics`) neither ``lpips`` nor ``fid`` nor
    ``inception_score``; ``not_measured`` then says so. Memory does not grow with the number of pairs, but for the
    decoded test crops (24 kB each at 128 × 64). Raises InputError.
    """
    test = [*crops.query, *crops.gallery]
    pairs = pick_test_pairs(test, recipe)
    answers = _Answers(generator, crops, test, pairs)
    by_masks = all(test[target].mask_path is not None for _, target in pairs)
    measures, not_measured = pair_measures(
        answers.images,
        by_masks,
        embedder=embedder,
        pose_estimator=pose_estimator,
        learned=learned,
        batch_size=recipe.batch_size,
        progress=progress,
    )
    not_measured |= answers.absent
    inception = learned.inception if learned is not None else None
    compared = [name for name in WITH_TRIVIAL if name not in answers.absent]
    statistics = {region: PictureStatistics(inception, compared) for region in REGIONS if inception is not None}
    values: dict[str, dict[str, dict[str, list[npt.ArrayLike]]]] = {}
    with_foreground = 0
    with progress_bar(len(pairs), "image quality", "pair", show=progress) as bar:
        for start in range(0, len(pairs), recipe.batch_size):
            rows = pairs[start : start + recipe.batch_size]
            targets = answers.targets(rows, by_masks)
            with_foreground += int(targets.has_mask.sum())
            for answer, pixels in answers.pictures(targets):
                for measure, compute in measures.items():
                    if answer in MEASURES[measure].answers:
                        for region, found in compute(pixels, targets).items():
                            regions = values.setdefault(measure, {}).setdefault(answer, {})
                            regions.setdefault(region, []).append(found)
                if statistics and answer in WITH_CEILING:
                    statistics[IMAGE].add(answer, pixels)
                    grey = to_pixels(grey_background(to_float(pixels), targets.masks))
                    statistics[FOREGROUND].add(answer, grey[targets.has_mask])
            bar.update(len(rows))
    if not with_foreground:
        reason = f"The foreground masks of all {len(pairs)} test pairs are empty; write them again."
        not_measured |= {"foreground": reason, "mask_ssim": reason}
        del values["mask_ssim"]
        statistics.pop(FOREGROUND, None)
        for regions in (regions for answered in values.values() for regions in answered.values()):
            regions.pop(FOREGROUND, None)
    return ImageQuality(
        per_pair={
            measure: {
                answer: {region: np.concatenate(batches).astype(np.float64) for region, batches in regions.items()}
                for answer, regions in answered.items()
            }
            for measure, answered in values.items()
        },
        set_wide=_set_wide(statistics, compared),
        identities=np.array([test[target].identity for _, target in pairs], np.int64),
        not_measured=not_measured,
        foreground_from="masks" if by_masks else "joints",
        unseen_cameras=answers.trivial.unseen_camera_answers,
    )


class _Answers:
    """The pictures that are measured: drawn by the generator, or found without it."""

    def __init__(
        self,
        generator: PoseTransferGenerator,
        crops: CropTable,
        test: Sequence[Crop],
        pairs: Sequence[tuple[int, int]],
    ) -> None:
        self.generator = generator.eval()
        self.test = test
        self.images = CropImages(test, *generator.crop_size)
        self.dataset = PosePairs(self.images, {crop.identity: 0 for crop in test})
        self.trivial = TrivialAnswers()
        self.absent: dict[str, str] = {}
        """Answers that cannot be given, and why, a sentence each."""
        try:
            self.trivial = learn_trivial_answers(crops, *generator.crop_size)
            reason = f"{crops.root} has no training crop to take the mean of."
        except InputError as error:
            reason = str(error)
        if not self.trivial.cameras:
            self.absent = {"mean_image": reason, "camera_mean": reason}
        elif self.trivial.cameras.isdisjoint(test[target].camera for _, target in pairs):
            self.absent["camera_mean"] = (
                f"No training crop of {crops.root} is from a camera of the test pairs' targets."
            )
        self.shifted = _other_identity(pairs, test)

    def targets(self, pairs: Sequence[tuple[int, int]], by_masks: bool) -> Targets:
        """What a batch of pairs is measured against."""
        batch = self._batch(pairs)
        masks = foreground_masks(self.images, [target for _, target in pairs], by_masks)
        return Targets(pairs, batch.target_images, batch.target_keypoints, batch.target_present, masks)

    def pictures(self, targets: Targets) -> Iterator[tuple[str, Tensor]]:
        """Each answer's name and its pictures for a batch of pairs, (B, 3, H, W) uint8.

        Drawn pictures are rounded to pixels: no answer gains from finer steps than a picture has.
        """
        pairs = targets.pairs
        batch = self._batch(pairs)
        yield "generated", self._drawn(batch)
        if self.generator.camera_code is not None:
            yield "any_camera", self._drawn(replace(batch, target_cameras=torch.zeros_like(batch.target_cameras)))
        yield "copy_source", batch.source_images
        if "mean_image" not in self.absent:
            yield "mean_image", to_pixels(self.trivial.mean_image).expand(len(pairs), -1, -1, -1)
        if "camera_mean" not in self.absent:
            yield "camera_mean", to_pixels(self.trivial.camera_mean([self.test[target].camera for _, target in pairs]))
        yield "wrong_source", self._drawn(self._batch([(self.shifted[s, t][0], t) for s, t in pairs]))
        # Wrong in the pose alone: a generator that knows cameras is still told the target's.
        wrong_pose = self._batch([(s, self.shifted[s, t][1]) for s, t in pairs])
        yield "wrong_pose", self._drawn(replace(wrong_pose, target_cameras=batch.target_cameras))
        yield "target", targets.pixels

    def _batch(self, pairs: Sequence[tuple[int, int]]) -> PosePairBatch:
        return self.dataset[[(0, source, target) for source, target in pairs]]

    def _drawn(self, batch: PosePairBatch) -> Tensor:
        batch = batch.to(next(self.generator.parameters()).device)
        drawn = self.generator(
            to_float(batch.source_images), batch.source_poses, batch.target_poses, batch.target_cameras
        )
        return to_pixels(drawn).cpu()


def _set_wide(
    statistics: Mapping[str, PictureStatistics], compared: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    if not statistics:
        return {}
    return {
        "fid": {
            answer: {region: found.distance(answer) for region, found in statistics.items()} for answer in compared
        },
        "inception_score": {
            answer: {region: found.score(answer) for region, found in statistics.items()}
            for answer in (*compared, "target")
        },
    }


def pick_test_pairs(crops: Sequence[Crop], recipe: EvaluationRecipe) -> list[tuple[int, int]]:
    """Pose pairs of test crops, as positions: from the recipe's file, else a random draw by its seed.

    Raises InputError when the file names crops that are not there, or no identity has two crops with a pose.
    """
    if recipe.pairs_file is not None:
        return _pairs_from_file(crops, recipe.pairs_file)
    groups = _pair_groups(crops)
    if not groups:
        raise InputError(
            "No test identity has two crops with both shoulders and both hips among their keypoints; give the set's "
            "keypoint files by --keypoints."
        )
    return draw_pairs(groups, recipe.pairs, (recipe.pairs_seed, 6))


def draw_pairs(groups: Sequence[Sequence[int]], count: int, seed: int | Sequence[int]) -> list[tuple[int, int]]:
    """At most ``count`` of the ordered pairs of different members of one group, drawn by ``seed`` without putting back.

    Pairs are numbered group by group and, within a group of n, by the first member and then by the second; a number
    says its pair, so that the pairs, n · (n - 1) of each group, are never listed. They come in their order.
    """
    sizes = np.array([len(members) for members in groups], np.int64)
    ends = np.cumsum(sizes * (sizes - 1))
    total = int(ends[-1])
    if total > count:
        numbers = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    else:
        numbers = np.arange(total)
    pairs = []
    for number in numbers.tolist():
        group = int(np.searchsorted(ends, number, "right"))
        members = groups[group]
        first, second = divmod(number - int(ends[group] - sizes[group] * (sizes[group] - 1)), len(members) - 1)
        pairs.append((members[first], members[second + (second >= first)]))
    return pairs


def has_pose_pairs(crops: Sequence[Crop]) -> bool:
    """Whether any identity has two crops with both shoulders and both hips."""
    return bool(_pair_groups(crops))


def _pair_groups(crops: Sequence[Crop]) -> list[list[int]]:
    return [members for members in crops_by_identity(crops, posed=True).values() if len(members) > 1]


def _pairs_from_file(crops: Sequence[Crop], path: Path) -> list[tuple[int, int]]:
    position = {crop.name: number for number, crop in enumerate(crops)}
    rows = [(line, row["from"], row["to"]) for line, row in read_rows(path, ("from", "to"))]
    unknown = [name for _, *pair in rows for name in pair if name not in position]
    if unknown:
        raise InputError(
            f"{path} names {len(unknown)} crops that the test split does not hold, for example "
            f"{shown(unknown[0], 80)}; give the pairs file of this data set."
        )
    occurrences = Counter(crop.name for crop in crops)
    for line, *names in rows:
        source, target = (crops[position[name]] for name in names)
        problem = None
        if source is target:
            problem = f"{shown(names[0], 80)} twice"
        elif repeated := next((name for name in names if occurrences[name] > 1), None):
            problem = f"{shown(repeated, 80)}, a name that {occurrences[repeated]} test crops have"
        elif source.identity != target.identity or not source.identified:
            problem = f"crops of the identities {source.identity} and {target.identity}"
        elif absent := next((crop.name for crop in (source, target) if crop.joints is None), None):
            problem = f"{shown(absent, 80)}, which has no joints"
        if problem:
            raise complaint(
                f"{path}, line {line}", problem, "two posed crops of one person", "correct or delete the line"
            )
    return [(position[source], position[target]) for _, source, target in rows]


def learn_trivial_answers(crops: CropTable, height: int, width: int) -> TrivialAnswers:
    """Mean image and camera means of the real training crops."""
    answers = TrivialAnswers()
    real = [crop for crop in crops.train if not crop.generated]
    images = CropImages(real, height, width, cache_gb=0)
    for start in range(0, len(real), 64):
        batch = range(start, min(start + 64, len(real)))
        pixels = torch.stack([images.image(position) for position in batch])
        answers.update(to_float(pixels), [real[position].camera for position in batch])
    return answers


def _other_identity(pairs: Sequence[tuple[int, int]], crops: Sequence[Crop]) -> dict[tuple[int, int], tuple[int, int]]:
    """For each pair the next one, cyclically from half-way, that shows somebody else (itself when there is none)."""
    found = {}
    for number, pair in enumerate(pairs):
        start = number + len(pairs) // 2
        others = (pairs[(start + offset) % len(pairs)] for offset in range(len(pairs)))
        own = crops[pair[0]].identity
        found[pair] = next((other for other in others if crops[other[0]].identity != own), pair)
    return found
