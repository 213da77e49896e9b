"""The synthetic world as a whole: its people, cameras and crops, and how it is written to a folder."""

import io
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from posereid.config import WorldPreset
from posereid.data.synthetic.appearance import Outfit, sample_outfit
from posereid.data.synthetic.cameras import Camera, Shot, build_camera
from posereid.data.synthetic.crop import Person, RenderedCrop, render_shot, sample_person
from posereid.data.synthetic.plan import (
    CAMERA_KEY,
    DISTRACTOR,
    FOLDERS,
    GALLERY,
    JUNK,
    OUTFIT_KEY,
    PERSON_KEY,
    QUERY,
    TRAIN,
    PlannedCrop,
    plan_crops,
)
from posereid.data.synthetic.poses import Pose, sample_pose, stirred
from posereid.data.synthetic.presets import PRESETS, Preset
from posereid.errors import InputError
from posereid.files import atomic_folder
from posereid.pose.joints import Joints
from posereid.progress import with_progress

FORMAT_VERSION = 2
"""Raised whenever the same seed would give other pixels than before."""

DESCRIPTION_FILE = "world.json"
MASK_FOLDER = "foreground_masks"
ANNOTATIONS = {
    "market-annotation-train.csv": (TRAIN,),
    "market-annotation-test.csv": (GALLERY, QUERY),
}
JPEG_QUALITY = 92

_JUNK_WITHOUT_PERSON = 0.35


@dataclass(frozen=True)
class World:
    """A reproducible world of pedestrians. Everything in it follows from these five numbers and the preset.

    ``identities`` people (half of them for training), ``crops_per_identity`` crops of each on average, ``cameras``
    cameras, crops ``height`` × ``height // 2`` pixels, as hard as ``preset`` says. Under one preset a person or a
    camera depends on the seed and their number alone.

    Raises InputError for a number out of range or an unknown preset.
    """

    seed: int = 0
    identities: int = 64
    crops_per_identity: int = 24
    cameras: int = 4
    height: int = 128
    preset: WorldPreset = "default"
    _people: dict[tuple[int, ...], Person] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require("seed", self.seed, self.seed >= 0, "a whole number from 0")
        _require("identities", self.identities, 4 <= self.identities <= 9999, "a whole number from 4 to 9999")
        _require(
            "crops_per_identity", self.crops_per_identity, 4 <= self.crops_per_identity <= 999,
            "a whole number from 4 to 999",
        )  # fmt: skip
        _require("cameras", self.cameras, 2 <= self.cameras <= 9, "a whole number from 2 to 9")
        _require(
            "height", self.height, 32 <= self.height <= 1024 and self.height % 16 == 0,
            "a multiple of 16 from 32 to 1024",
        )  # fmt: skip
        _require("preset", self.preset, self.preset in PRESETS, f"one of {', '.join(PRESETS)}")
        total = self.identities * self.crops_per_identity
        if total > 800_000:
            raise InputError(
                f"identities × crops_per_identity is {total}, but file names have room for 800000 crops; "
                "lower one of the two"
            )

    @classmethod
    def read(cls, folder: Path) -> "World":
        """The world that a folder written by :func:`synthesize` shows, ready to render its crops again."""
        path = Path(folder) / DESCRIPTION_FILE
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            version, parameters = description["version"], description["parameters"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is not the description of a synthetic world; give a folder made by synthesize"
            ) from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, but this posereid renders version {FORMAT_VERSION}; "
                "synthesize the data set anew"
            )
        try:
            return cls(**parameters)
        except TypeError as error:
            raise InputError(f"{path} does not describe a synthetic world; give a folder made by synthesize") from error

    @cached_property
    def camera_views(self) -> tuple[Camera, ...]:
        """The cameras; number n is at position n - 1."""
        return tuple(
            build_camera(number, self.height, self._preset, self._rng((CAMERA_KEY, number)))
            for number in range(1, self.cameras + 1)
        )

    @cached_property
    def crops(self) -> tuple[PlannedCrop, ...]:
        """All crops of the data set in the order of folder and name."""
        return plan_crops(self.seed, self.identities, self.crops_per_identity, self.cameras, self._preset)

    def camera(self, number: int) -> Camera:
        """The camera with this number, counted from 1."""
        return self.camera_views[number - 1]

    def person(self, identity: int) -> Person:
        """The person with this identity, counted from 1; every crop of the identity shows them."""
        return self._person((PERSON_KEY, identity))

    def pose(self, crop: PlannedCrop) -> Pose:
        """The pose that the crop shows: its walk's at another instant, or one of its own."""
        rng = self._rng((*crop.crop_key, 0))
        if rng.random() < self._preset.own_activity:
            return sample_pose(rng)
        walk = sample_pose(self._rng((*crop.walk_key, 0)), phase=self._preset.phase_step * crop.place)
        return stirred(walk, rng, self._preset.limb_jitter)

    def shot(self, crop: PlannedCrop) -> Shot:
        """Viewing direction, framing, place and sensor noise of the crop."""
        camera, rng = self.camera(crop.camera), self._rng((*crop.crop_key, 1))
        return camera.shoot_junk(rng) if crop.identity == JUNK else camera.shoot(rng, self._yaw(crop))

    def render(self, crop: PlannedCrop, person: Person | None = None) -> RenderedCrop:
        """The crop's pixels, mask and joints; with ``person`` that person under the same circumstances."""
        empty = crop.identity == JUNK and self._rng((*crop.crop_key, 2)).random() < _JUNK_WITHOUT_PERSON
        if person is None and not empty:
            person = self._person(crop.person_key)
        return render_shot(person, self.pose(crop), self.camera(crop.camera), self.shot(crop))

    def describe(self) -> dict[str, object]:
        """What ``world.json`` holds: parameters, counts and what the people look like."""
        counts = {folder: sum(crop.folder == folder for crop in self.crops) for folder in FOLDERS}
        training = (self.identities + 1) // 2
        people = {}
        for identity in range(1, self.identities + 1):
            person = self.person(identity)
            people[f"{identity:04d}"] = {
                "split": "train" if identity <= training else "test",
                "stature_cm": round(100 * person.body.stature),
                **person.looks.attributes(),
            }
        parameters = asdict(self)
        del parameters["_people"]
        return {
            "format": "posereid synthetic world",
            "version": FORMAT_VERSION,
            "parameters": parameters,
            "counts": {
                **counts,
                "distractors": sum(crop.identity == DISTRACTOR for crop in self.crops),
                "junk": sum(crop.identity == JUNK for crop in self.crops),
                "train_identities": training,
                "test_identities": self.identities - training,
            },
            "people": people,
        }

    def _rng(self, key: tuple[int, ...]) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    @property
    def _preset(self) -> Preset:
        return PRESETS[self.preset]

    def _yaw(self, crop: PlannedCrop) -> float | None:
        rng = self._rng((*crop.crop_key, 3))
        if crop.direction is None or rng.random() < self._preset.stray:
            return None
        return crop.direction + float(rng.normal(0, self._preset.turn_jitter))

    def _person(self, key: tuple[int, ...]) -> Person:
        if key not in self._people:
            self._people[key] = sample_person(self._rng((*key, 9)), self._preset, self._shared_outfit(key))
        return self._people[key]

    def _shared_outfit(self, key: tuple[int, ...]) -> Outfit | None:
        """What the person's group wears, if it shares an outfit; groups are neighbours in number."""
        kind, number = key
        if kind != PERSON_KEY:
            return None
        rng = self._rng((OUTFIT_KEY, (number - 1) // self._preset.outfit_group))
        if rng.random() >= self._preset.outfit_shared:
            return None
        return sample_outfit(rng, self._preset, feminine=bool(rng.random() < 0.5))


def synthesize(
    out: Path,
    *,
    identities: int = 64,
    crops_per_identity: int = 24,
    cameras: int = 4,
    height: int = 128,
    seed: int = 0,
    preset: WorldPreset = "default",
    progress: bool = False,
) -> Path:
    """Writes a synthetic data set in the Market-1501 layout and returns its folder.

    ``out`` receives ``bounding_box_train``, ``query`` and ``bounding_box_test`` with JPEGs of ``height`` ×
    ``height // 2`` pixels, ``market-annotation-train.csv`` and ``market-annotation-test.csv`` with the
    joints, ``foreground_masks`` with one PNG (0 or 255) per crop, and ``world.json``. The first half of the
    ``identities`` trains; each has ``crops_per_identity`` crops on average, spread over two or more ``cameras``.
    ``preset`` says how hard the world is. Equal arguments give equal bytes. The folder appears only when it is
    complete.

    Raises InputError if an argument is out of range or ``out`` exists and is not an empty folder.
    """
    out = Path(out)
    world = World(seed, identities, crops_per_identity, cameras, height, preset)
    with atomic_folder(out, "a synthetic data set") as folder:
        _write(world, folder, progress)
    return out


def _write(world: World, folder: Path, progress: bool) -> None:
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / MASK_FOLDER / name).mkdir(parents=True)
    rows: dict[str, list[str]] = {name: [] for name in FOLDERS}
    for crop in with_progress(world.crops, len(world.crops), "synthesize", "crop", show=progress):
        rendered = world.render(crop)
        image, mask = io.BytesIO(), io.BytesIO()
        Image.fromarray(rendered.image).save(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        Image.fromarray(rendered.mask.astype(np.uint8) * 255).save(mask, "PNG", compress_level=1)
        (folder / crop.folder / crop.name).write_bytes(image.getvalue())
        (folder / MASK_FOLDER / crop.folder / crop.name).with_suffix(".png").write_bytes(mask.getvalue())
        rows[crop.folder].append(annotation_row(crop.name, rendered.joints))
    for name, folders in ANNOTATIONS.items():
        lines = ["name:keypoints_y:keypoints_x", *(row for each in folders for row in rows[each])]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    text = json.dumps(world.describe(), indent=2, ensure_ascii=False)
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")


def annotation_row(name: str, joints: Joints) -> str:
    """One line of the field's keypoint table: name, rows, columns; whole pixels, -1 where absent."""
    whole = np.where(joints.present[:, None], np.rint(joints.xy), -1).astype(int)
    return f"{name}: {whole[:, 1].tolist()}: {whole[:, 0].tolist()}"


def _require(name: str, found: object, met: bool, expected: str) -> None:
    if not met:
        raise InputError(f"{name} is {found}, but must be {expected}")
