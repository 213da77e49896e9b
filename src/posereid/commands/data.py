"""Commands that make and check sets of crops."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from posereid.config import Layout, WorldPreset
from posereid.errors import InputError


@dataclass(frozen=True)
class Synthesize:
    """Render the synthetic world of pedestrians in Market-1501's layout."""

    out: tyro.conf.Positional[Path]
    """New folder to write."""
    identities: int = 64
    """People, half for training and half for test."""
    crops_per_identity: int = 24
    """Crops of each person over all cameras, on average."""
    cameras: int = 4
    """Cameras, each with its own view, background and light."""
    height: int = 128
    """Height of a crop in pixels; its width is half of that."""
    seed: int = 0
    """Seed that decides every pixel."""
    preset: WorldPreset = "default"
    """How hard the world is (docs/synthetic-world.md)."""

    def run(self) -> None:
        """Write the world."""
        from posereid.data.synthetic import synthesize

        synthesize(
            self.out,
            identities=self.identities,
            crops_per_identity=self.crops_per_identity,
            cameras=self.cameras,
            height=self.height,
            seed=self.seed,
            preset=self.preset,
            progress=True,
        )
        print(f"{self.out}: {self.identities} people, preset {self.preset}, seed {self.seed}.")


@dataclass(frozen=True)
class Check:
    """Look through a data set before a run and name what is wrong. Leaves with exit code 1 if anything is."""

    root: tyro.conf.Positional[Path]
    """Folder of the set, or a CSV with path,identity,camera."""
    layout: Layout = "auto"
    """Layout of the folder."""
    keypoints: tuple[Path, ...] | None = None
    """Keypoint files; without any, the root's *annotation-{train,query,test}.csv."""
    decode: bool = True
    """Open every image."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Print the findings."""
        from posereid.data.check import check_crops
        from posereid.data.layouts import load_crops

        report = check_crops(
            load_crops(self.root, self.layout, self.keypoints), decode=self.decode, progress=not self.json
        )
        print(json.dumps(report.as_dict(), indent=1) if self.json else "\n".join(report.lines()))
        if not report.ok:
            sys.exit(1)


@dataclass(frozen=True)
class Shard:
    """Pack a data set, real or generated, into a few large tar files that every command reads like its folder."""

    root: tyro.conf.Positional[Path]
    """Folder of the set, or a CSV with path,identity,camera."""
    out: Path
    """New folder for the shards and their index."""
    shard_size_mb: int = 500
    """Megabytes (10^6 bytes) at which a shard is closed."""
    layout: Layout = "auto"
    """Layout of the folder."""
    keypoints: tuple[Path, ...] | None = None
    """Keypoint files; without any, the root's *annotation-{train,query,test}.csv."""

    def run(self) -> None:
        """Write the shards; what is not in them is said."""
        from posereid.data.layouts import load_crops
        from posereid.data.shards import write_shards
        from posereid.evaluation.evaluate import MULTI_QUERY_FOLDER

        if self.shard_size_mb < 1:
            raise InputError(f"--shard-size-mb is {self.shard_size_mb}; it must be at least 1.")
        crops = load_crops(self.root, self.layout, self.keypoints)
        for line in (*crops.left_out(), *crops.notes):
            print(line)
        written = write_shards(crops, self.out, shard_bytes=self.shard_size_mb * 10**6, progress=True)
        print(f"{self.out}: {written.crops} crops and {written.masks} masks in {written.shards} shards.")
        if (crops.root / MULTI_QUERY_FOLDER).is_dir():
            print(f"{MULTI_QUERY_FOLDER} is not in the shards: copy that folder into {self.out} for --multi-query.")
