"""What a run began as: its stage, its crops, and the runs whose weights it goes back to."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError
from posereid.files import write_atomically
from posereid.messages import shown
from posereid.training.checkpoint import Checkpoint

RUN_FILE = "run.json"
"""In the folder of a run."""

_LARGEST = 2**26
_MARKS = 3
_Stage = Annotated[str, Field(pattern="^[a-z_]{1,40}$")]
_Fingerprint = Annotated[str, Field(max_length=1000)]
_Identity = Annotated[str, Field(pattern=r"^-?\d{1,20}$")]
_Marks = tuple[Annotated[str, Field(pattern="^[0-9a-f]{12}$")], ...]


class RunOrigin(BaseModel):
    """What ``run.json`` says: what the run trains, and what the run was whose weights it began from.

    ``training_set`` is the fingerprint of the training crops (``CropTable.fingerprint``), generated ones included.
    ``people`` has for each identity the marks of some of its real crops, by which the person is known again in a copy
    of the set that lies elsewhere, is packed into shards or lacks some crops; a number alone may be anybody's in
    another set.
    Runs of older versions do not say what they started from and count as not started from another.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    stage: _Stage
    training_set: _Fingerprint
    started_from: "RunOrigin | None" = None
    people: dict[_Identity, _Marks] = {}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "RunOrigin":
        """What the weights of a checkpoint go back to.

        Its own stage and crops the checkpoint says itself, the rest its run. Raises InputError for a damaged
        ``run.json``, and for a checkpoint that no version of posereid wrote.
        """
        begun = read_run_file(checkpoint.run) if checkpoint.run is not None else None
        try:
            return cls(
                stage=checkpoint.stage,
                training_set=checkpoint.training_set,
                started_from=begun.started_from if begun else None,
                people=begun.people if begun else {},
            )
        except ValidationError as error:
            raise InputError(f"{checkpoint.folder} cannot be used ({_first(error)}); use another checkpoint.") from None

    def starts(self) -> Iterator["RunOrigin"]:
        """The runs that this one goes back to, the nearest first."""
        start = self.started_from
        while start is not None:
            yield start
            start = start.started_from

    def people_in(self, marks: Iterable[str]) -> set[str]:
        """The identities, as this run numbered them, of whom some of these crops are."""
        present = set(marks)
        return {identity for identity, own in self.people.items() if not present.isdisjoint(own)}


def crop_mark(crops: CropTable, crop: Crop) -> str:
    """A short hash of a crop's place in its set."""
    return hashlib.sha256(crops.path_in_set(crop).encode()).hexdigest()[:12]


def people_of(crops: CropTable) -> dict[str, tuple[str, ...]]:
    """``people`` of a run that trains on ``crops``: the lowest marks of each identity, so that most copies have one."""
    marks: dict[str, list[str]] = defaultdict(list)
    for crop in crops:
        if not crop.generated:
            marks[str(crop.identity)].append(crop_mark(crops, crop))
    return {identity: tuple(sorted(own)[:_MARKS]) for identity, own in marks.items()}


def write_run_file(run: Path, origin: RunOrigin) -> None:
    """Write ``run.json``."""
    write_atomically(run / RUN_FILE, origin.model_dump_json() + "\n")


def read_run_file(run: Path) -> RunOrigin | None:
    """What a run's ``run.json`` says; None where there is none. Raises InputError for one that is damaged."""
    path = run / RUN_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        return RunOrigin.model_validate_json(content)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        why = _first(error)
    except (OSError, ValueError, RecursionError) as error:
        why = str(getattr(error, "strerror", None) or error)
    raise InputError(f"{path} cannot be used ({why}); bring it back from a copy, or begin a new run.")


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in a few words."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"][-3:]))
    return f"{shown(field, 80)}: {first['msg']}" if field else first["msg"]
