"""Who is seen where: the plan of a synthetic data set, before anything is rendered."""

from dataclasses import dataclass

import numpy as np

from posereid.data.synthetic.presets import Preset

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
FOLDERS = (TRAIN, QUERY, GALLERY)

DISTRACTOR, JUNK = 0, -1

_DISTRACTOR_SHARE, _JUNK_SHARE = 0.12, 0.08  # of the gallery
_CROPS_PER_DISTRACTOR = 3
_FRAME_STEP = 25  # frames between two crops of a walk, where the six digits of a frame number allow it
_LAST_FRAME = 999_999

PERSON_KEY, DISTRACTOR_KEY, CROP_KEY, JUNK_KEY, CAMERA_KEY, PLAN_KEY, WALK_KEY, OUTFIT_KEY = range(1, 9)
"""First numbers of the seed sequences, so that no two things share random numbers."""

_FRONT_AND_BACK = 0.4
"""People are seen from the front or from behind more often than from the side, as in Market-1501."""


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
    walk_key: tuple[int, ...]
    """The same for an identity's crops before one camera: one walk."""
    place: int
    """How many crops of the walk come before."""
    direction: float | None
    """Radians by which the walk is turned from the camera; None for distractors and junk, who walk anywhere."""


@dataclass(frozen=True)
class _Walk:
    folders: tuple[str, ...]
    identity: int
    camera: int
    person_key: tuple[int, ...]
    crop_keys: tuple[tuple[int, ...], ...]
    walk_key: tuple[int, ...]
    direction: float | None


def plan_crops(
    seed: int, identities: int, crops_per_identity: int, cameras: int, preset: Preset
) -> tuple[PlannedCrop, ...]:
    """The whole data set: training half, query and gallery of the other half, distractors and junk.

    The first half (rounded up) of the identities trains. Each half has ``crops_per_identity`` crops for each of its
    identities, who share them unevenly. Each identity is seen by two or more cameras, with at least two crops in
    each, so that every query crop keeps a gallery match in another camera. A test identity's cameras see them from
    directions spread around them; so do a training identity's, or all from nearly the same.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PLAN_KEY,)))
    training = (identities + 1) // 2
    walks: list[_Walk] = []
    for first, last in ((1, training), (training + 1, identities)):
        sizes = _sizes(rng, last + 1 - first, crops_per_identity, preset.crops_spread)
        for identity, crops in zip(range(first, last + 1), sizes, strict=True):
            walks += _walks(rng, identity, crops, cameras, preset, train=identity <= training)
    in_gallery = sum(walk.folders.count(GALLERY) for walk in walks)
    known = 1 - _DISTRACTOR_SHARE - _JUNK_SHARE
    for index in range(max(2, round(in_gallery * _DISTRACTOR_SHARE / known))):
        who = (DISTRACTOR_KEY, index // _CROPS_PER_DISTRACTOR)
        walks.append(_passing(DISTRACTOR, int(rng.integers(cameras)) + 1, who, (DISTRACTOR_KEY, 0, index)))
    for index in range(max(2, round(in_gallery * _JUNK_SHARE / known))):
        walks.append(_passing(JUNK, int(rng.integers(cameras)) + 1, (JUNK_KEY, index), (JUNK_KEY, 0, index)))

    step = min(_FRAME_STEP, _LAST_FRAME // sum(len(walk.folders) for walk in walks))
    planned = []
    frame = 1
    for chosen in rng.permutation(len(walks)):
        walk = walks[chosen]
        for place, (folder, crop_key) in enumerate(zip(walk.folders, walk.crop_keys, strict=True)):
            number = "-1" if walk.identity == JUNK else f"{walk.identity:04d}"
            name = f"{number}_c{walk.camera}s1_{frame:06d}_{int(rng.integers(1, 5)):02d}.jpg"
            planned.append(
                PlannedCrop(
                    folder,
                    name,
                    walk.identity,
                    walk.camera,
                    walk.person_key,
                    crop_key,
                    walk.walk_key,
                    place,
                    walk.direction,
                )
            )
            frame += step
    return tuple(sorted(planned, key=lambda crop: (FOLDERS.index(crop.folder), crop.name)))


def _sizes(rng: np.random.Generator, identities: int, mean: int, spread: float) -> list[int]:
    """How many crops each identity has: at least four, ``mean`` on average."""
    weights = rng.gamma(1 / spread**2, size=identities) if spread else np.ones(identities)
    spare = (mean - 4) * identities
    # Rounded so that they sum up: without spread all are equal.
    bounds = np.rint(spare * np.cumsum(weights) / weights.sum()).astype(int)
    return [4 + int(size) for size in np.diff(bounds, prepend=0)]


def _walks(
    rng: np.random.Generator, identity: int, crops: int, cameras: int, preset: Preset, *, train: bool
) -> list[_Walk]:
    """An identity's walks, one before each camera that sees them."""
    fewest, most = preset.train_cameras if train else preset.test_cameras
    most = min(most, cameras, crops // 2)
    seen_by = int(rng.integers(min(fewest, most), most + 1))
    chosen = np.sort(rng.choice(cameras, seen_by, replace=False)) + 1
    spare = rng.multinomial(crops - 2 * seen_by, rng.dirichlet(np.full(seen_by, 6.0)))
    around = not (train and rng.random() < preset.one_sided)
    directions = _directions(rng, seen_by, preset.heading_jitter, around=around)
    walks = []
    index = 0
    for camera, extra, direction in zip(chosen, spare, directions, strict=True):
        places = range(2 + int(extra))
        walks.append(
            _Walk(
                tuple(TRAIN if train else QUERY if place == 0 else GALLERY for place in places),
                identity,
                int(camera),
                (PERSON_KEY, identity),
                tuple((CROP_KEY, identity, index + place) for place in places),
                (WALK_KEY, identity, int(camera)),
                direction,
            )
        )
        index += len(places)
    return walks


def _directions(rng: np.random.Generator, count: int, jitter: float, *, around: bool) -> list[float]:
    """Directions of ``count`` walks: evenly around the person in random order, or all the same, but for jitter."""
    first = rng.uniform(-np.pi, np.pi)
    first -= _FRONT_AND_BACK * np.sin(2 * first)
    turns = 2 * np.pi * rng.permutation(count) / count * around
    found = first + turns + rng.uniform(-jitter, jitter, count)
    return [float(angle) for angle in (found + np.pi) % (2 * np.pi) - np.pi]


def _passing(identity: int, camera: int, person_key: tuple[int, ...], crop_key: tuple[int, ...]) -> _Walk:
    return _Walk((GALLERY,), identity, camera, person_key, (crop_key,), crop_key, None)
