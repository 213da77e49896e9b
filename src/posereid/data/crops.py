"""One table of crops: where each picture lies, whose it is, which camera saw it, in which pose."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from posereid.messages import shown
from posereid.pose.joints import Joints

Split = Literal["train", "query", "gallery"]
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")

JUNK = -1
"""Identity of crops that evaluation drops: bad boxes, parts of people."""

DISTRACTOR = 0
"""Identity of gallery crops that belong to nobody: they stay as negatives."""


@dataclass(frozen=True)
class ShardPlace:
    """Where a file's bytes lie: ``size`` of them from byte ``offset`` of the uncompressed tar file ``tar``."""

    tar: Path
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Crop:
    """One picture of one person.

    ``name`` is the file's name, the key into keypoint tables. A generated crop carries its source's identity and
    camera, the source's name, and the name of the crop (or canonical pose) whose pose it was drawn in. A crop in a
    shard has a ``place`` (and its mask a ``mask_place``): then the paths are no files, but what messages call them.
    """

    path: Path
    name: str
    identity: int
    camera: int
    split: Split
    joints: Joints | None = None
    source: str | None = None
    target_pose: str | None = None
    mask_path: Path | None = None
    place: ShardPlace | None = None
    mask_place: ShardPlace | None = None

    @property
    def generated(self) -> bool:
        """Whether the generator drew this crop."""
        return self.source is not None

    @property
    def identified(self) -> bool:
        """Whether the crop belongs to somebody: neither junk nor distractor, as Market-1501's names and CSVs say."""
        return self.identity > DISTRACTOR

    @property
    def can_pose(self) -> bool:
        """Whether the crop may take part in pose pairs: identified, with both shoulders and both hips."""
        return self.identified and self.joints is not None and self.joints.has_torso


@dataclass(frozen=True, eq=False)
class CropTable(Sequence[Crop]):
    """A sequence of crops, with what the reader could not use.

    ``unparsed`` lists files and folders that look like parts of the set and are left out, ``missing`` files that a
    list names and that are not there; both are paths relative to ``root``. ``identity_names`` and ``camera_names`` are
    what the list of the set says in place of the numbers of its crops, where it does not say those.
    """

    root: Path
    layout: str
    crops: tuple[Crop, ...]
    unparsed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    identity_names: Mapping[int, str] = field(default_factory=dict)
    camera_names: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.crops)

    @overload
    def __getitem__(self, index: int) -> Crop: ...
    @overload
    def __getitem__(self, index: slice) -> "CropTable": ...
    def __getitem__(self, index: int | slice) -> "Crop | CropTable":
        return self.with_crops(self.crops[index]) if isinstance(index, slice) else self.crops[index]

    def __iter__(self) -> Iterator[Crop]:
        return iter(self.crops)

    def with_crops(self, crops: Iterable[Crop]) -> "CropTable":
        """The same table holding other crops."""
        return replace(self, crops=tuple(crops))

    def split(self, name: Split) -> "CropTable":
        """The crops of one split."""
        return self.with_crops(crop for crop in self.crops if crop.split == name)

    @property
    def train(self) -> "CropTable":
        """Crops to learn from."""
        return self.split("train")

    @property
    def query(self) -> "CropTable":
        """Crops to search for."""
        return self.split("query")

    @property
    def gallery(self) -> "CropTable":
        """Crops to search in, distractors and junk included."""
        return self.split("gallery")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the crops' splits, names, identities, cameras, origins and poses taken: equal for equal sets."""
        lines = sorted(
            f"{c.split}\t{c.name}\t{c.identity}\t{c.camera}\t{c.source}" + f"\t{c.target_pose}" * c.generated
            for c in self.crops
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def path_in_set(self, crop: Crop) -> str:
        """Where a crop lies in its set, as ``folder/name``: the same for a folder and for the shards made of it."""
        home = self.root if crop.place is None else crop.place.tar
        return crop.path.relative_to(home).as_posix() if crop.path.is_relative_to(home) else crop.name

    def left_out(self) -> list[str]:
        """What the reader could not use, a sentence each."""
        lines = []
        for why, names in (
            (
                "files or folders whose names, endings or places are not understood are left out",
                self.unparsed,
            ),
            ("files are listed but not there", self.missing),
        ):
            if names:
                lines.append(f"{self.root}: {len(names)} {why}, for example {shown(names[0], 80)}.")
        return lines

    @cached_property
    def identities(self) -> npt.NDArray[np.int64]:
        """(n,) identities in table order."""
        return np.array([crop.identity for crop in self.crops], np.int64)

    @cached_property
    def cameras(self) -> npt.NDArray[np.int64]:
        """(n,) cameras in table order."""
        return np.array([crop.camera for crop in self.crops], np.int64)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """File names in table order."""
        return tuple(crop.name for crop in self.crops)
