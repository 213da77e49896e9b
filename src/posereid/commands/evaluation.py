"""Commands that say how good something is."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from posereid.commands.common import SetPlace, every_crop_of
from posereid.config import EvaluationRecipe, FusionMode
from posereid.errors import InputError


@dataclass(frozen=True)
class Evaluate:
    """Rank the test split, choose thresholds, measure generated test pairs: a table, evaluation.json and a report.

    Instead of a run it takes features that any framework wrote. Every evaluation field of a recipe is an option.
    """

    run_folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Folder that `posereid train` or `posereid train-reid` wrote; it comes first."""
    features: tuple[Path, ...] = ()
    """One .npz with query_features, query_identities, query_cameras, query_names and the same for gallery (cameras and
    names are optional), or two as `posereid embed` writes them, the query's first."""
    place: Annotated[SetPlace, tyro.conf.arg(name="")] = field(default_factory=SetPlace)
    judge: Path | None = None
    """Run whose embedder says whether generated pictures keep their identity; best one trained on real crops only."""
    pose_estimator: Path | None = None
    """Folder that `posereid train-pose` wrote, to find the joints of generated pictures (PCKh)."""
    fusion: tuple[FusionMode, ...] = ()
    """Search with fused embeddings too, in these modes; off and flip stand beside them as controls. How each works is
    said by the options --fusion.weight and so on; nfc is neighbour feature centralisation, all is everything."""
    generator: Path | None = None
    """Run whose generator draws for fusion, where the evaluated run has none."""
    cache: Path | None = None
    """Folder in which --fusion keeps embeddings for the next time; without it, features in the run's folder."""
    keep_drawings: bool = False
    """Keep the drawn pictures there too, for other embedders: several gigabytes for a set of usual size."""
    out: Path | None = None
    """JSON to write; without it, evaluation.json in the run's folder, or evaluation-NAME.json with --root or
    --features. The report (.html) and the figures of each query (-queries.csv; with --fusion one for each mode) lie
    beside it."""
    settings: Annotated[EvaluationRecipe, tyro.conf.arg(name="")] = field(default_factory=EvaluationRecipe)

    def run(self) -> None:
        """Evaluate."""
        from posereid.evaluation.evaluate import evaluate_features, evaluate_run
        from posereid.evaluation.tables import evaluation_table
        from posereid.evaluation_report import write_evaluation
        from posereid.training.checkpoint import latest_checkpoint
        from posereid.training.devices import set_threads

        set_threads()
        out = self._out()
        if self.run_folder is None:
            evaluation = evaluate_features(self.features, self.settings, progress=True)
        else:
            evaluation = evaluate_run(
                self.run_folder,
                self.settings,
                crops=every_crop_of(latest_checkpoint(self.run_folder).recipe, self.place),
                judge=self.judge,
                pose_estimator=self.pose_estimator,
                fusion=self.fusion,
                generator_run=self.generator,
                cache=self.cache,
                keep_drawings=self.keep_drawings,
                progress=True,
            )
        # Shown first: a disk that fails now must not take the figures with it.
        print(evaluation_table(evaluation.figures))
        written = write_evaluation(evaluation, out)
        print(f"Written: {', '.join(map(str, written))}.")

    def _out(self) -> Path:
        """Where the JSON goes; InputError for options that contradict each other or a place that cannot be written."""
        if self.run_folder is not None and self.features:
            raise InputError(f"Both the run {self.run_folder} and --features were given; give one of them.")
        if not self.fusion and (self.cache or self.keep_drawings):
            option = "--cache" if self.cache else "--keep-drawings"
            raise InputError(f"{option} was given without --fusion, whose embeddings it keeps; leave it out.")
        if self.run_folder is None:
            options = ("judge", "pose_estimator", "fusion", "generator")
            given = [name for name in ("root", "layout", "keypoints") if getattr(self.place, name)]
            given += [name for name in options if getattr(self, name)]
            if given:
                option = given[0].replace("_", "-")
                raise InputError(f"--{option} was given with --features, which know of no images; leave it out.")
            if not self.features:
                raise InputError("posereid evaluate needs a run's folder or --features FILE.npz.")
            place = Path(f"evaluation-{self.features[0].stem}.json")
        else:
            root = self.place.root
            place = self.run_folder / (f"evaluation-{root.stem}.json" if root else "evaluation.json")
        out = self.out or place
        if out.suffix != ".json":
            raise InputError(f"--out is {out}; give a file name that ends in .json.")
        parent = out.parent
        if out.is_dir() or (parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK))):
            raise InputError(f"--out is {out}, where no file can be written; give another path.")
        return out


@dataclass(frozen=True)
class Compare:
    """Say whether one evaluated run finds people better than another, by a paired bootstrap over people."""

    run_a: tyro.conf.Positional[Path]
    """Folder of an evaluated run, or a JSON that `posereid evaluate` wrote."""
    run_b: tyro.conf.Positional[Path]
    """The other one; differences are B - A."""
    reranked: bool = False
    """Compare the re-ranked searches."""
    fusion: FusionMode | None = None
    """Compare the searches in this fusion mode."""
    confidence: float = 0.95
    """Confidence of the intervals."""
    resamples: int = 5000
    """Draws of people."""
    seed: int = 0
    """Seed of those draws."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Compare and print."""
        from posereid.evaluation.comparison import compare, comparison_table

        comparison = compare(
            self.run_a,
            self.run_b,
            reranked=self.reranked,
            fusion=self.fusion,
            confidence=self.confidence,
            resamples=self.resamples,
            seed=self.seed,
        )
        print(json.dumps(comparison, indent=1) if self.json else comparison_table(comparison))
