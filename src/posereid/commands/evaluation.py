"""Commands that say how good something is."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from posereid.errors import InputError


@dataclass(frozen=True)
class Evaluate:
    """Rank the test split and measure generated test pairs; print a table and write evaluation.json."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """Folder that `posereid train` or `posereid train-reid` wrote."""
    root: Path | None = None
    """Another data set than the one the run was trained on."""
    pairs: int | None = None
    """Test pairs to draw; without it, what the run's recipe says."""
    out: Path | None = None
    """Where to write the JSON; without it, evaluation.json in the run's folder, or evaluation-NAME.json with --root."""

    def run(self) -> None:
        """Evaluate."""
        from posereid.evaluation.summary import evaluate_run, evaluation_table
        from posereid.files import write_atomically
        from posereid.training.loop import set_threads

        set_threads()
        out = self.out or self.run_folder / (f"evaluation-{self.root.stem}.json" if self.root else "evaluation.json")
        if out.is_dir() or (out.parent.exists() and not os.access(out.parent, os.W_OK)):
            raise InputError(f"--out is {out}, where no file can be written; give another path.")
        evaluation = evaluate_run(self.run_folder, root=self.root, pairs=self.pairs, progress=True)
        write_atomically(out, json.dumps(evaluation, indent=1) + "\n")
        print(evaluation_table(evaluation))
        print(f"Written to {out}.")
