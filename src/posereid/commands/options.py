"""The fields of a recipe that a command offers as options: those that it reads, and no others."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Self

import tyro
from pydantic import create_model

from posereid.config import READ_BY, Recipe, Section, Stage
from posereid.errors import InputError

STAGES: dict[str, Stage] = {"train": "joint", "train-reid": "reid", "train-pose": "pose", "ablate": "ablation"}
"""The commands that take a recipe, and what each does."""

_WITH_OWN_OPTIONS = {"augmentation": "augment", "filtering": "filter", "evaluation": "evaluate"}


class RecipeOptions(Section):
    """Options that begin from a recipe's values; :func:`options_of` adds the sections that a stage reads."""

    base: Annotated[Recipe, tyro.conf.Fixed, tyro.conf.Suppress] = Recipe()

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The options before any is given."""
        values = recipe.model_dump()
        parts = {name: info.annotation for name, info in cls.model_fields.items() if name != "base"}
        return cls(base=recipe, **{name: _part(kind, values[name]) for name, kind in parts.items()})

    def recipe(self) -> Recipe:
        """The recipe with the options' values in it. Raises ValidationError where they do not go together."""
        content = self.base.model_dump()
        for name, value in self.model_dump(exclude={"base"}).items():
            content[name] = content[name] | value if isinstance(value, dict) else value
        return Recipe.model_validate(content)


def _part(kind: Any, value: Any) -> Any:
    """A section's values, those alone that ``kind``, perhaps a part of it, has; other values as they are."""
    return {name: value[name] for name in kind.model_fields} if isinstance(value, dict) else value


@cache
def options_of(stage: Stage) -> type[RecipeOptions]:
    """The options of a stage: each section that it reads, whole or the fields that it reads of it."""
    fields: dict[str, Any] = {}
    for section, info in Recipe.model_fields.items():
        kind: Any = info.annotation
        if section in READ_BY[stage]:
            fields[section] = (kind, info)
        elif read := _read_of(section, stage):
            inner: dict[str, Any] = {
                name: (kind.model_fields[name].annotation, kind.model_fields[name]) for name in read
            }
            kind = create_model(kind.__name__, __base__=Section, __doc__=kind.__doc__, **inner)
            fields[section] = (kind, kind())
    return create_model("RecipeOptions", __base__=RecipeOptions, **fields)


def require_read(command: str, arguments: Sequence[str]) -> None:
    """Raise InputError for the first argument that is a field of a recipe which ``command`` does not read."""
    for argument in arguments:
        match = re.match(r"(--([a-z_-]+)(?:\.([a-z0-9_.-]+))?)(?:=|$)", argument)
        section, name = ((match[part] or "").replace("-", "_") for part in (2, 3)) if match else ("", "")
        if not match or section not in Recipe.model_fields or _reads(STAGES[command], section, name):
            continue
        readers = [f"posereid {other}" for other, stage in STAGES.items() if _reads(stage, section, name)]
        if section in _WITH_OWN_OPTIONS:
            readers.insert(0, f"posereid {_WITH_OWN_OPTIONS[section]} as --{name.replace('_', '-')}")
        what = f"{section}.{name.removeprefix('no_')}" if _read_of(section, STAGES[command]) else section
        raise InputError(f"{match[1]}: posereid {command} does not read {what}; give it to {' or '.join(readers)}.")


def _read_of(section: str, stage: Stage) -> list[str]:
    """The fields of a section that a stage reads, in the section's order; [""] for a value without fields."""
    whole = section in READ_BY[stage]
    return [name for name in _fields_of(section) if whole or f"{section}.{name}" in READ_BY[stage]]


def _fields_of(section: str) -> list[str]:
    return list(getattr(Recipe.model_fields[section].annotation, "model_fields", [""]))


def _reads(stage: Stage, section: str, name: str) -> bool:
    """Whether a stage reads a field of a section; what is no field of one that it reads is for tyro to refuse."""
    read, field = _read_of(section, stage), name.split(".")[0].removeprefix("no_")
    return bool(read) and (field in read or field not in _fields_of(section))
