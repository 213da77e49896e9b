"""Command line: each command is a function that a notebook could call.

Nothing heavy is imported before a command runs, so that ``posereid --help`` answers at once.
"""

import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from posereid.commands.ablation import Ablate
from posereid.commands.augmentation import Augment
from posereid.commands.data import Check, Shard, Synthesize
from posereid.commands.evaluation import Compare, Evaluate
from posereid.commands.filtering import Filter
from posereid.commands.images import Embed, Transfer
from posereid.commands.options import STAGES, options_of, require_read
from posereid.commands.poses import Poses
from posereid.commands.training import Train, TrainPose, TrainReid
from posereid.commands.tune import TuneFusion
from posereid.config import explain, read_recipe
from posereid.errors import InputError, SharedError, Stopped


@dataclass(frozen=True)
class Demo:
    """Run the whole job on the synthetic world and write report.html and summary.json."""

    out: Path = Path("runs/demo")
    """Folder for everything that the demo makes; stages that are finished there are kept."""
    recipe_file: Annotated[Path | None, tyro.conf.arg(name="recipe")] = None
    """Recipe; without it, the demo's own."""

    def run(self) -> None:
        """Run it."""
        from posereid.demo import run_demo
        from posereid.training.devices import set_threads

        set_threads()
        run_demo(self.out, self.recipe_file)


COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "synthesize": Synthesize,
    "check": Check,
    "shard": Shard,
    "poses": Poses,
    "train": Train,
    "augment": Augment,
    "filter": Filter,
    "train-reid": TrainReid,
    "train-pose": TrainPose,
    "evaluate": Evaluate,
    "compare": Compare,
    "tune-fusion": TuneFusion,
    "embed": Embed,
    "transfer": Transfer,
    "ablate": Ablate,
}
WITH_RECIPE: dict[str, type[Train] | type[TrainReid] | type[TrainPose] | type[Ablate]] = {
    "train": Train,
    "train-reid": TrainReid,
    "train-pose": TrainPose,
    "ablate": Ablate,
}


def _parse(arguments: Sequence[str]) -> Any:
    command = arguments[0] if arguments else ""
    if command == "evaluate" and len(arguments) > 1 and not arguments[1].startswith("-"):
        return _parse_evaluate(list(arguments[1:]))
    if command == "evaluate" and not {"-h", "--help"} & set(arguments) and "--features" not in arguments:
        raise InputError(
            "posereid evaluate needs a run's folder as its first argument, before any option, or --features FILE.npz."
        )
    if command not in WITH_RECIPE or (len(arguments) > 1 and arguments[1] in ("-h", "--help")):
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="posereid",
            description="Redraw people in new poses and match them across cameras.",
            args=list(arguments),
        )
    # The options begin from the recipe's values, so it is read before them.
    if len(arguments) < 2 or arguments[1].startswith("-"):
        raise InputError(
            f"posereid {command} needs a recipe as its first argument, for example: "
            f"posereid {command} recipes/demo.yaml."
        )
    kind = WITH_RECIPE[command]
    path = Path(arguments[1])
    require_read(command, arguments)
    options = options_of(STAGES[command]).of(read_recipe(path))
    default = kind(recipe_file=path, out=tyro.MISSING, options=options)
    return tyro.cli(kind, prog=f"posereid {command}", args=list(arguments[1:]), default=default)


def _parse_evaluate(arguments: list[str]) -> Evaluate:
    """Like the recipe of a training command: the options begin from what the run's recipe says of evaluation."""
    from posereid.training.checkpoint import latest_checkpoint

    run = Path(arguments[0])
    default = Evaluate(run_folder=run, settings=latest_checkpoint(run).recipe.evaluation)
    return tyro.cli(Evaluate, prog="posereid evaluate", args=arguments, default=default)


def _want_of_memory(error: BaseException, command: str) -> str | None:
    """What to say where memory ran out, the machine's or an accelerator's; None for any other error."""
    text = " ".join(str(error).split())
    if not (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        # torch has a kind of its own for GPUs alone, and it would have to be imported.
        or (isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory", text))
    ):
        return None
    place, trace = "posereid", error.__traceback__
    while trace:
        if (module := trace.tb_frame.f_globals.get("__name__", "")).startswith("posereid."):
            place = f"{module}.{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    wanted = re.search(r"allocate (\d+(?:\.\d+)?)\.? (\w+)", text)
    size = f", which wanted {wanted[1]} {wanted[2]} more" if wanted else ""
    remedy = (
        "free some, lower runtime.crop_cache_gb, runtime.workers or the number of processes, and go on with --resume, "
        "or begin anew with a smaller batch"
        if command in WITH_RECIPE
        else "free some, or give it less at a time: a smaller batch size, fewer crops or smaller files"
    )
    return f"memory ran out in posereid {command} (at {place}{size}); {remedy}."


def _speaks() -> bool:
    """Whether this process says what all processes of a run know; the first does."""
    from posereid.training.devices import is_first_process

    return is_first_process()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A user's mistake ends in one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if list(arguments) == ["--version"]:
            from posereid import __version__

            print(f"posereid {__version__}")
            return
        _parse(arguments).run()
    except InputError as error:
        if isinstance(error, SharedError) and not _speaks():
            sys.exit(0)
        print(f"posereid: {error}", file=sys.stderr)
        sys.exit(2)
    except ValidationError as error:
        print(f"posereid: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output, such as head, has gone; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError, OSError) as error:
        if sentence := _want_of_memory(error, arguments[0] if arguments else ""):
            print(f"posereid: {sentence}", file=sys.stderr)
            sys.exit(2)
        if not isinstance(error, OSError):
            raise
        place = error.filename2 or error.filename or "a file"
        print(
            f"posereid: {place}: {error.strerror or error}; check the path, its permissions and the free space.",
            file=sys.stderr,
        )
        sys.exit(2)
    except Stopped as stopped:
        if not _speaks():
            sys.exit(0)
        print(f"posereid: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        resumable = bool(arguments) and arguments[0] in WITH_RECIPE
        print(
            "posereid: stopped; --resume goes on from a run's newest checkpoint."
            if resumable
            else "posereid: stopped.",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
