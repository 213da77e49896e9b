"""Which crop is drawn in whose pose."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posereid.data.crops import Crop
from posereid.errors import InputError


@dataclass(frozen=True)
class Drawing:
    """One crop to draw: positions of its source and of the crop whose pose it takes, and its file name."""

    name: str
    source: int
    target: int


def plan_drawings(crops: Sequence[Crop], poses_per_crop: int, seed: int) -> list[Drawing]:
    """Each crop that has a pose, in ``poses_per_crop`` poses of other crops, drawn without repetition.

    Target poses come from any identity: that is what gives a person poses that it lacks. Deterministic in the
    seed. Raises InputError when fewer than two crops have a pose, or fewer others than poses asked for.
    """
    if seed < 0:
        raise InputError(f"the seed is {seed}; it must not be negative.")
    posed = [position for position, crop in enumerate(crops) if crop.can_pose]
    # File names repeat in sets with several folders; a crop's number tells such crops apart.
    stems = Counter(crop.path.stem for crop in crops)
    if len(posed) <= poses_per_crop:
        raise InputError(
            f"augmentation.poses_per_crop is {poses_per_crop}, and only {len(posed)} training crops have both "
            "shoulders and both hips; read the keypoint files that belong to this set, or ask for fewer poses."
        )
    drawings = []
    for position in posed:
        random = np.random.default_rng((seed, 5, position))
        others = random.choice(len(posed) - 1, poses_per_crop, replace=False)
        for number, other in enumerate(others, 1):
            target = posed[other + (posed[other] >= position)]
            stem = crops[position].path.stem
            stem = stem if stems[stem] == 1 else f"{stem}_{position}"
            drawings.append(Drawing(f"{stem}_p{number}.jpg", position, target))
    return drawings
