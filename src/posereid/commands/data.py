"""Commands that make and check sets of crops."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Synthesize:
    """Render the synthetic world of pedestrians in Market-1501's layout."""

    out: tyro.conf.Positional[Path]
    """New folder to write."""
    identities: int = 64
    """People, half for training and half for test."""
    crops_per_identity: int = 24
    """Crops of each person over all cameras."""
    cameras: int = 4
    """Cameras, each with its own view, background and light."""
    height: int = 128
    """Height of a crop in pixels; its width is half of that."""
    seed: int = 0
    """Seed that decides every pixel."""

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
            progress=True,
        )
        print(f"{self.out}: {self.identities} people, seed {self.seed}.")


@dataclass(frozen=True)
class Check:
    """Look through a data set before a run and name what is wrong. Leaves with exit code 1 if anything is."""

    root: tyro.conf.Positional[Path]
    """Folder of the set, or a CSV with path,identity,camera."""
    layout: Literal["auto", "market1501", "dukemtmc", "cuhk03", "msmt17", "csv"] = "auto"
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
