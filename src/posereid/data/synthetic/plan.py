"""Who is seen where: the plan of a synthetic data set, before anything is rendered."""

from dataclasses import dataclass

import numpy as np

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
FOLDERS = (TRAIN, QUERY, GALLERY)

DISTRACTOR, JUNK = 0, -1

_DISTRACTOR_SHARE, _JUNK_SHARE = 0.12, 0.08  # of the gallery
_CROPS_PER_DISTRACTOR = 3
_FRAME_STEP = 25  # frames between two crops of a walk, where the six digits of a frame number allow it
_LAST_FRAME = 999_999

PERSON_KEY, DISTRACTOR_KEY, CROP_KEY, JUNK_KEY, CAMERA_KEY, PLAN_KEY = range(1, 7)
"""First numbers of the seed sequences, so that no two things share random numbers."""


_Entry = tuple[str, int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PlannedCrop:
    """One crop to be: its folder and file name, who is on it and which random numbers it uses."""

    folder: str
    name: str
    identity: int
    """0 for distractors, -1 for junk."""
    camera: int
    """Counts from 1."""
    person_key: tuple[int, ...]
    crop_key: tuple[int, ...]


def plan_crops(seed: int, identities: int, crops_per_identity: int, cameras: int) -> tuple[PlannedCrop, ...]:
    """The whole data set: training half, query and gallery of the other half, distractors and junk.

    The first half (rounded up) of the identities trains. Each identity is seen by two or more cameras, with
    at least two crops in each, so that every query crop keeps a gallery match in another camera.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PLAN_KEY,)))
    training = (identities + 1) // 2
    walks: list[list[_Entry]] = []
    in_gallery = 0
    for identity in range(1, identities + 1):
        most = min(cameras, crops_per_identity // 2)
        seen_by = int(max(rng.integers(2, most + 1, 2)))
        chosen = np.sort(rng.choice(cameras, seen_by, replace=False)) + 1
        spare = rng.multinomial(crops_per_identity - 2 * seen_by, rng.dirichlet(np.full(seen_by, 6.0)))
        index = 0
        for camera, extra in zip(chosen, spare, strict=True):
            walk: list[_Entry] = []
            for place in range(2 + int(extra)):
                folder = TRAIN if identity <= training else QUERY if place == 0 else GALLERY
                walk.append((folder, identity, int(camera), (PERSON_KEY, identity), (CROP_KEY, identity, index)))
                in_gallery += folder == GALLERY
                index += 1
            walks.append(walk)
    known = 1 - _DISTRACTOR_SHARE - _JUNK_SHARE
    for index in range(max(2, round(in_gallery * _DISTRACTOR_SHARE / known))):
        key = (DISTRACTOR_KEY, index // _CROPS_PER_DISTRACTOR)
        camera = int(rng.integers(cameras)) + 1
        walks.append([(GALLERY, DISTRACTOR, camera, key, (DISTRACTOR_KEY, 0, index))])
    for index in range(max(2, round(in_gallery * _JUNK_SHARE / known))):
        camera = int(rng.integers(cameras)) + 1
        walks.append([(GALLERY, JUNK, camera, (JUNK_KEY, index), (JUNK_KEY, 0, index))])

    step = min(_FRAME_STEP, _LAST_FRAME // sum(len(walk) for walk in walks))
    planned = []
    frame = 1
    for chosen_walk in rng.permutation(len(walks)):
        for folder, identity, camera, person_key, crop_key in walks[chosen_walk]:
            who = "-1" if identity == JUNK else f"{identity:04d}"
            name = f"{who}_c{camera}s1_{frame:06d}_{int(rng.integers(1, 5)):02d}.jpg"
            planned.append(PlannedCrop(folder, name, identity, camera, person_key, crop_key))
            frame += step
    return tuple(sorted(planned, key=lambda crop: (FOLDERS.index(crop.folder), crop.name)))
