"""The command that runs the paper's ablation."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from posereid.commands.common import placed
from posereid.commands.options import options_of
from posereid.commands.training import Options


@dataclass(frozen=True)
class Ablate:
    """Measure the paper's ablation (Table 3), and what it lacks, over several seeds. What it reads of the
    recipe is an option.

    Without a data set the recipe's world is rendered. The same command goes on where it was stopped; on a folder that
    several machines share each does cells that no other is at.
    """

    recipe_file: tyro.conf.Positional[Path]
    """Recipe of the full model, for example recipes/bench_cpu.yaml."""
    out: Path
    """Folder of the grid: every cell's run, results.json, tables.md and pictures."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the re-ID training."""
    generator_seeds: tuple[int, ...] = ()
    """Seeds of the joint training; without them the same as --seeds, one generator each. Fewer ones, which the re-ID
    seeds take in turn, save time, and every interval is then for these generators alone."""
    rows: tuple[str, ...] = ()
    """Rows of the grid; without it, all that the recipe allows. Rows full and real are always there."""
    jobs: int = 1
    """Cells done at a time, each in a process with its share of the threads."""
    dry_run: bool = False
    """Print the plan, the steps, and an estimate of the time from a few measured steps; write nothing."""
    options: Options = field(default_factory=options_of("ablation"))

    def run(self) -> None:
        """Do the grid, or plan it."""
        from posereid.ablation.ablate import ablate, plan
        from posereid.training.devices import set_threads

        set_threads()
        recipe = placed(self.options.recipe())
        grid = (recipe, self.out, self.seeds, self.generator_seeds, self.rows)
        if self.dry_run:
            print(plan(*grid, jobs=self.jobs))
            return
        if not ablate(*grid, jobs=self.jobs, command=shlex.join(["posereid", *sys.argv[1:]])):
            sys.exit(1)
