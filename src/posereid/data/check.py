"""What is wrong with a set of crops, told before a run trips over it."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from posereid.data.crops import SPLITS, Crop, CropTable
from posereid.data.images import open_crop, open_mask, picture_size
from posereid.data.shards import damaged_shards
from posereid.errors import InputError, SharedError
from posereid.messages import shown
from posereid.pose.joints import Joints
from posereid.progress import with_progress

NoMatchReason = Literal["not a person", "not in the gallery", "only in the query's own camera"]
_EXAMPLES = 5

SCALE_SAMPLE = 200
"""About how many crops of a split are looked at before a run, to see whether its joints are in pixels."""

_FEW_JOINTS, _FEW_CROPS, _UPPER_LEFT = 5, 20, 0.6


@dataclass(frozen=True)
class SplitCounts:
    """Sizes of one split; ``identities`` leaves junk and distractors out."""

    crops: int
    identities: int
    cameras: int
    generated: int
    without_joints: int


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_crops` found; tuples hold names or identities in table order or sorted.

    ``decoded`` says whether images were opened: without that, ``unreadable``, ``damaged_shards``, ``joints_outside``
    and ``joint_scale`` are empty. ``joint_scale`` says of a split that its joints are in other units than pixels of its
    pictures, see :func:`scale_problem`. ``one_camera_train`` and ``one_camera_test`` are identities that one camera
    alone saw, which no cross-camera pair or match can come from; ``single_crop_train`` are identities with one
    training crop.
    ``unmatched`` holds (query name, reason). ``pose_pairs`` counts, by split, the ordered pairs of crops that
    :attr:`~posereid.data.crops.Crop.can_pose`.
    """

    root: Path
    layout: str
    decoded: bool
    splits: dict[str, SplitCounts]
    damaged_shards: tuple[str, ...]
    unreadable: tuple[str, ...]
    unparsed: tuple[str, ...]
    missing: tuple[str, ...]
    joints_outside: tuple[str, ...]
    joint_scale: tuple[str, ...]
    one_camera_train: tuple[int, ...]
    one_camera_test: tuple[int, ...]
    single_crop_train: tuple[int, ...]
    unmatched: tuple[tuple[str, NoMatchReason], ...]
    shared_identities: tuple[int, ...]
    pose_pairs: dict[str, int]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing would stop a run or falsify its figures.

        Damaged shards, unreadable, missing and unparsed files, joints outside their image or of another scale, queries
        that cannot be matched and people in both training and test count; single cameras or crops and absent joints
        do not.
        """
        return not (
            self.damaged_shards
            or self.unreadable
            or self.unparsed
            or self.missing
            or self.joints_outside
            or self.joint_scale
            or self.unmatched
            or self.shared_identities
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "root": str(self.root), "ok": self.ok}

    def lines(self) -> list[str]:
        """The report for people, one finding per line; lines of what is wrong begin with "WRONG"."""
        lines = [f"{self.root} ({self.layout})"]
        for name, counts in self.splits.items():
            told = f"{counts.crops} crops, {counts.identities} identities, {counts.cameras} cameras"
            generated = f", {counts.generated} generated" if counts.generated else ""
            pairs = f"{self.pose_pairs[name]} pose pairs"
            lines.append(f"{name}: {told}{generated}, {counts.without_joints} without joints, {pairs}")
        lines += self.notes
        reasons = Counter(reason for _, reason in self.unmatched)
        wrong: list[tuple[str, Sequence[object]]] = [
            ("shards whose content is not what was written", self.damaged_shards),
            ("images or masks that cannot be read", self.unreadable),
            ("listed files that are missing", self.missing),
            ("files or folders left out, whose names, endings or places were not understood", self.unparsed),
            ("crops with joints outside the image, as if for another size", self.joints_outside),
            ("identities in both training and test", self.shared_identities),
            *(
                (
                    f"queries without a match, because their identity is {reason}",
                    [name for name, why in self.unmatched if why == reason],
                )
                for reason in reasons
            ),
        ]
        lines += [f"WRONG: {_count(what, items)}" for what, items in wrong if items]
        lines += [f"WRONG: {problem}" for problem in self.joint_scale]
        weak: list[tuple[str, Sequence[object]]] = [
            ("training identities seen by one camera only", self.one_camera_train),
            ("test identities seen by one camera only", self.one_camera_test),
            ("training identities with one crop only", self.single_crop_train),
        ]
        lines += [_count(what, items) for what, items in weak if items]
        if not self.pose_pairs.get("train"):
            lines.append("No pose pair for training: `posereid train` cannot run without keypoints, train-reid can.")
        if not self.decoded:
            lines.append("Images were not opened.")
        lines.append("Nothing is wrong." if self.ok else "Correct what is marked WRONG.")
        return lines


def check_crops(table: CropTable, *, decode: bool = True, progress: bool = False) -> CheckReport:
    """Look through a set for what would stop a run or falsify its figures; nothing is changed.

    ``decode`` opens every image and mask completely, on several threads, compares the joints with its size and shards
    with their SHA-256; ``progress`` shows a bar meanwhile. Never raises InputError for what it finds in the set.
    """
    unreadable, outside, scale = _opened(table, progress) if decode else ((), (), ())
    sharded = any(crop.place for crop in table)
    damaged = damaged_shards(table.root, progress=progress) if decode and sharded else ()
    parts = {name: table.split(name).crops for name in SPLITS}
    test = [*parts["query"], *parts["gallery"]]
    train_crops, test_crops = _by_identity(parts["train"]), _by_identity(test)
    return CheckReport(
        root=table.root,
        layout=table.layout,
        decoded=decode,
        splits={name: _counts(crops) for name, crops in parts.items()},
        damaged_shards=damaged,
        unreadable=unreadable,
        unparsed=table.unparsed,
        missing=table.missing,
        joints_outside=outside,
        joint_scale=scale,
        one_camera_train=_one_camera(train_crops),
        one_camera_test=_one_camera(test_crops),
        single_crop_train=tuple(identity for identity, crops in train_crops.items() if len(crops) < 2),
        unmatched=_unmatched(parts["query"], parts["gallery"]),
        shared_identities=tuple(identity for identity in train_crops if identity in test_crops),
        pose_pairs={name: _pose_pair_count(crops) for name, crops in parts.items()},
        notes=table.notes,
    )


def _opened(table: CropTable, progress: bool) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of unreadable crops and paths of unreadable masks; names of crops whose joints lie outside; scales."""
    masks: list[str] = []

    def size(crop: Crop) -> tuple[int, int] | None:
        if path := crop.mask_path:
            try:
                open_mask(crop)
            except InputError:
                masks.append(path.relative_to(table.root).as_posix())
        try:
            return open_crop(crop).size
        except InputError:
            return None

    # Pillow decodes without holding the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(size, table.crops)
        sizes = list(with_progress(found, len(table), "opening images", "crop", show=progress))
    unreadable = tuple(crop.name for crop, size in zip(table, sizes, strict=True) if size is None)
    posed = [
        (crop, crop.joints, size)
        for crop, size in zip(table, sizes, strict=True)
        if size is not None and crop.joints is not None
    ]
    outside = tuple(crop.name for crop, joints, size in posed if _lies_outside(joints, size))
    return (*unreadable, *sorted(masks)), outside, _scale_problems(posed)


def _lies_outside(joints: Joints, size: tuple[int, int]) -> bool:
    xy = joints.xy[joints.present]
    return bool(((xy < 0) | (xy >= size)).any())


def scale_problem(posed: Sequence[tuple[Joints, tuple[int, int]]]) -> str | None:
    """What says that joints are not in pixels of their pictures, of (width, height) each; None if nothing does.

    Most crops have joints outside, by more than a pixel; or all joints lie within two pixels, as those from 0 to 1 or
    from -1 to 1 do; or of at least twenty crops none has a joint in the right or the lower two fifths, where people
    have shoulders and feet.
    """
    seen = [(joints.xy[joints.present], size) for joints, size in posed if joints.present.any()]
    if not seen:
        return None
    reach, sizes = np.array([xy.max(axis=0) for xy, _ in seen]), np.array([size for _, size in seen])
    outside = (reach > sizes) | np.array([xy.min(axis=0) < -1 for xy, _ in seen])
    strays = int(outside.any(axis=1).sum())
    if 2 * strays > len(seen):
        return f"joints of {strays} of {len(seen)} crops lie outside their pictures, as if for another size"
    whose = "joints of all crops" if len(seen) > 1 else "all its joints"
    if reach.max() <= 2 and sum(len(xy) for xy, _ in seen) >= _FEW_JOINTS:
        return f"{whose} lie within {'one pixel' if reach.max() <= 1 else 'two pixels'}, as if from 0 to 1"
    if len(seen) >= _FEW_CROPS and (reach / sizes).max() <= _UPPER_LEFT:
        return f"{whose} lie in the upper left of their pictures, as if for a smaller size"
    return None


def _scale_problems(posed: Sequence[tuple[Crop, Joints, tuple[int, int]]]) -> tuple[str, ...]:
    """By split, whose keypoint files may differ; of a set whose splits are too small to tell, by the whole."""
    parts = {split: [(joints, size) for crop, joints, size in posed if crop.split == split] for split in SPLITS}
    told = tuple(f"{split}: {problem}" for split, part in parts.items() if (problem := scale_problem(part)))
    whole = None if told else scale_problem([(joints, size) for _, joints, size in posed])
    return (whole,) if whole else told


def require_joint_scale(crops: CropTable) -> None:
    """Raise InputError where joints are in other units than pixels of their pictures (:func:`scale_problem`).

    About :data:`SCALE_SAMPLE` pictures of each split are looked at, of JPEG files their heads alone; those that cannot
    be read are left to whoever reads them.
    """
    sized = []
    for split in SPLITS:
        posed = [crop for crop in crops.split(split) if crop.joints is not None]
        for crop in posed[:: max(1, len(posed) // SCALE_SAMPLE)]:
            with suppress(InputError):
                sized.append((crop, cast(Joints, crop.joints), picture_size(crop)))
    if problems := _scale_problems(sized):
        raise SharedError(
            f"{crops.root}: {'; '.join(problems)}; write the keypoints again in pixels of the pictures that are there."
        )


def _by_identity(crops: Iterable[Crop]) -> dict[int, list[Crop]]:
    """Crops of identified people, by identity in ascending order."""
    found: dict[int, list[Crop]] = defaultdict(list)
    for crop in crops:
        if crop.identified:
            found[crop.identity].append(crop)
    return dict(sorted(found.items()))


def _counts(crops: Sequence[Crop]) -> SplitCounts:
    return SplitCounts(
        crops=len(crops),
        identities=len(_by_identity(crops)),
        cameras=len({crop.camera for crop in crops}),
        generated=sum(crop.generated for crop in crops),
        without_joints=sum(crop.joints is None for crop in crops),
    )


def _one_camera(crops_of: dict[int, list[Crop]]) -> tuple[int, ...]:
    return tuple(identity for identity, crops in crops_of.items() if len({crop.camera for crop in crops}) == 1)


def _unmatched(query: Iterable[Crop], gallery: Iterable[Crop]) -> tuple[tuple[str, NoMatchReason], ...]:
    """Queries that evaluation cannot score: it drops gallery crops of the query's own identity and camera."""
    cameras_of: dict[int, set[int]] = defaultdict(set)
    for crop in gallery:
        cameras_of[crop.identity].add(crop.camera)
    found: list[tuple[str, NoMatchReason]] = []
    for crop in query:
        if not crop.identified:
            found.append((crop.name, "not a person"))
        elif crop.identity not in cameras_of:
            found.append((crop.name, "not in the gallery"))
        elif cameras_of[crop.identity] == {crop.camera}:
            found.append((crop.name, "only in the query's own camera"))
    return tuple(found)


def _pose_pair_count(crops: Iterable[Crop]) -> int:
    """Ordered pairs of two crops of one identity that can be posed."""
    sizes = Counter(crop.identity for crop in crops if crop.can_pose)
    return sum(count * (count - 1) for count in sizes.values())


def _count(what: str, items: Sequence[object]) -> str:
    # A name may hold line ends or escape sequences, which must not reach a terminal as they are.
    texts = [str(item) for item in items[:_EXAMPLES]]
    examples = ", ".join(text if text.isprintable() else shown(text, 80) for text in texts)
    return f"{len(items)} {what}: {examples}{', …' if len(items) > _EXAMPLES else ''}"
