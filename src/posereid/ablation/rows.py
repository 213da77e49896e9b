"""The rows of the grid, each a way to make generated crops and to train on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from posereid.config import Recipe, bundled_recipes, parse_recipe, read_recipe
from posereid.errors import InputError
from posereid.messages import complaint, shown

Changes = Mapping[str, Mapping[str, Any]]

WARMUP = 3
"""Epochs on generated crops alone of the rows whose key ends in warmup."""


@dataclass(frozen=True)
class Row:
    """One row: how tables call it, and how it departs from the recipe.

    ``drawn_by`` says who makes the generated crops: a generator trained for the row, the synthetic world itself, or
    nobody. ``generator`` are changes to the recipe of the joint training, ``reid`` to the section of the re-ID
    training. ``beyond`` are the fields, as section and name, in which the row goes beyond the paper. ``shares`` is the
    row whose crops this one uses. ``published`` is the paper's rank-1 on Market-1501 in percent (Table 3).
    """

    key: str
    label: str
    drawn_by: Literal["generator", "world"] | None = "generator"
    generator: Changes = field(default_factory=dict)
    reid: Mapping[str, Any] = field(default_factory=dict)
    beyond: tuple[tuple[str, str], ...] = ()
    shares: str | None = None
    published: float | None = None

    @property
    def maker(self) -> str | None:
        """The row whose generated crops this one trains on; None where there are none."""
        return None if self.drawn_by is None else self.shares or self.key

    @property
    def fuses(self) -> bool:
        """Whether a generator can draw for the row's searches."""
        return self.drawn_by == "generator"


FULL, REAL, TRUE, TEXTURE = "full", "real", "true", "texture"

PAPER: Changes = {
    "generator": {"texture": "none", "cameras": False},
    "losses": {"structure": 0.0, "perceptual": 0.0, "embedder_learns_generated": True},
}
"""What every row starts from: the values with which no field goes beyond the paper, whatever the recipe says."""

PRINTED: Mapping[str, Any] = {
    "adversarial": 5.0,
    "reconstruction": 10.0,
    "semantic": 10.0,
    "quartet": 1.0,
    "identity": 1.0,
    **dict.fromkeys(("adversarial_warmup", "adversarial_ramp", "semantic_warmup", "semantic_ramp"), 0),
}
"""The paper's weights of equation 14 (section 4), from the first step."""

_EVERY_PART = tuple((section, name) for section, fields in PAPER.items() for name in fields)
_PAPER_BLOCKS = 4

_ROWS = (
    Row(FULL, "full model", published=93.5),
    Row("blocks-2", "2 blocks", generator={"generator": {"blocks": 2}}, published=88.6),
    Row("blocks-3", "3 blocks", generator={"generator": {"blocks": 3}}, published=89.7),
    Row("blocks-4", "4 blocks", generator={"generator": {"blocks": 4}}, published=93.5),
    Row("blocks-5", "5 blocks", generator={"generator": {"blocks": 5}}, published=93.5),
    Row(
        "no-appearance-discriminator",
        "without D_I",
        generator={"losses": {"appearance_discriminator": False}},
        published=91.2,
    ),
    Row("no-pose-discriminator", "without D_P", generator={"losses": {"pose_discriminator": False}}, published=89.3),
    Row("no-semantic", "without L_S", generator={"losses": {"semantic": 0.0}}, published=91.3),
    Row(REAL, "real crops only", drawn_by=None),
    Row(
        "not-joint",
        "generator without re-ID terms",
        generator={"losses": {"semantic": 0.0, "quartet": 0.0, "identity": 0.0}},
    ),
    Row(TRUE, "true renders (ceiling)", drawn_by="world"),
    Row(
        "literal",
        "weights, norms and AdaIN as printed",
        generator={
            "generator": {"adain": "literal"},
            "losses": {"norms": "sum", **PRINTED},
        },
    ),
    Row("printed-weights", "weights as printed", generator={"losses": PRINTED}),
    Row("literal-adain", "AdaIN read literally", generator={"generator": {"adain": "literal"}}),
    Row("saturating", "adversarial term log(1 - D)", generator={"losses": {"saturating": True}}),
    Row("full-warmup", f"full, {WARMUP} epochs alone", reid={"generated_warmup": WARMUP}, shares=FULL),
    Row("start-appearance", "PAGN starts from f_N^I", generator={"generator": {"start": "appearance"}}),
    Row("content-same-scale", "eq. 3 reads each scale of PAAN", generator={"generator": {"content": "same_scale"}}),
    Row("semantic-spares-embedder", "L_S does not reach E", generator={"losses": {"semantic_teaches_embedder": False}}),
    Row(TEXTURE, "beyond the paper", beyond=_EVERY_PART),
    Row("texture-alone", "texture", beyond=(("generator", "texture"),)),
    Row("cameras-alone", "cameras", beyond=(("generator", "cameras"),)),
    Row("structure-alone", "SSIM", beyond=(("losses", "structure"),)),
    Row(
        "perceptual-alone",
        "perceptual, E judges",
        beyond=(("losses", "perceptual"), ("losses", "embedder_learns_generated")),
    ),
    Row(
        "texture-warmup",
        f"beyond the paper, {WARMUP} epochs alone",
        reid={"generated_warmup": WARMUP},
        shares=TEXTURE,
    ),
)

ROWS: dict[str, Row] = {row.key: row for row in _ROWS}
"""Every row by its key, in the order of tables."""

ALWAYS = (FULL, REAL)
"""Rows that every grid has: the others are compared with them, and the second judges identities."""


def departures(recipe: Recipe) -> tuple[str, ...]:
    """The fields in which a recipe goes beyond the paper, as ``section.name``."""
    return tuple(f"{section}.{name}" for section, name in _EVERY_PART if _departs(recipe, section, name))


def beyond_the_paper(recipe: Recipe) -> Recipe:
    """Where the values of what goes beyond the paper are taken from: the recipe if it does, otherwise default.yaml."""
    return recipe if departures(recipe) else _default()


@cache
def _default() -> Recipe:
    return read_recipe(bundled_recipes() / "default.yaml")


def _departs(recipe: Recipe, section: str, name: str) -> bool:
    return bool(getattr(getattr(recipe, section), name) != PAPER[section][name])


def joint_changes(row: Row, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the row's joint training does otherwise than the recipe."""
    row = ROWS[row.shares] if row.shares else row
    source = beyond_the_paper(recipe)
    found: dict[str, dict[str, Any]] = {section: dict(fields) for section, fields in PAPER.items()}
    for section, name in row.beyond:
        found[section][name] = getattr(getattr(source, section), name)
    for section, fields in row.generator.items():
        found.setdefault(section, {}).update(fields)
    return found


def joint_recipe(row: Row, recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a row's joint training: the paper's, but for what the row says.

    Raises InputError where the row's changes do not go with the recipe.
    """
    return _changed(recipe, {**joint_changes(row, recipe), "seed": seed}, row.key)


def label(row: Row, recipe: Recipe) -> str:
    """How tables call a row; the full model with its N."""
    return f"{row.label} (N = {recipe.generator.blocks})" if row.key == FULL else row.label


def published(row: Row, recipe: Recipe) -> float | None:
    """The paper's rank-1 where the row is the paper's: with the N that it was published for."""
    blocks = row.generator.get("generator", {}).get("blocks")
    return row.published if blocks or recipe.generator.blocks == _PAPER_BLOCKS else None


def reid_recipe(row: Row, recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a row's re-ID training: the losses of E are the recipe's own in every row, and so are its networks.

    In float32: what is compared by its figures must not depend on what a machine has units for. Raises InputError.
    """
    changes = {"reid": row.reid, "runtime": {"precision": "32-true"}, "seed": seed}
    return _changed(recipe, changes, row.key)


def _changed(recipe: Recipe, changes: Mapping[str, Any], key: str) -> Recipe:
    content = recipe.model_dump()
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, Mapping) else value
    return parse_recipe(content, f"row {key}")


def choose_rows(recipe: Recipe, asked: Sequence[str], *, synthetic: bool) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows of a grid in their order, and a sentence for each that the recipe has no use for.

    Without ``asked`` these are all that the recipe allows; ``synthetic`` says whether true renders can be had. ``full``
    and ``real`` are always there. Raises InputError for a row that is unknown, named twice, or asked for in vain.
    """
    for key in asked:
        if key not in ROWS:
            raise complaint("--rows", shown(key), f"some of {', '.join(ROWS)}", "correct the name")
        if list(asked).count(key) > 1:
            raise complaint("--rows", f"{key} twice", "each row once", "leave one out")
    chosen, notes = [], []
    for row in ROWS.values():
        if asked and row.key not in asked and row.key not in ALWAYS:
            continue
        why = None if row.key in ALWAYS else _why_not(row, recipe, synthetic)
        if why is None:
            chosen.append(row)
        elif asked:
            raise InputError(f"--rows: {row.key} cannot be had: {why}; leave it out.")
        else:
            notes.append(f"Row {row.key} is left out: {why}.")
    return tuple(chosen), tuple(notes)


def _why_not(row: Row, recipe: Recipe, synthetic: bool) -> str | None:
    if row.drawn_by == "world" and not synthetic:
        return "true renders can be made of a synthetic world alone"
    if row.reid.get("generated_warmup", 0) >= recipe.reid.epochs:
        return f"{WARMUP} epochs on generated crops alone leave none of the {recipe.reid.epochs} of reid.epochs"
    try:
        own = [build(row, recipe, 0) for build in (joint_recipe, reid_recipe)]
    except InputError as error:
        return str(error).removeprefix(f"row {row.key}: ").rstrip(".")
    parts = (ROWS[row.shares] if row.shares else row).beyond
    if parts and not any(_departs(beyond_the_paper(recipe), *part) for part in parts):
        names = " and ".join(".".join(part) for part in parts)
        return f"what goes beyond the paper here is without it ({names})"
    # A part that is all there is makes the row of all parts.
    for other in (FULL, *([TEXTURE] if parts and row.key != TEXTURE else [])):
        if row.fuses and own == [build(ROWS[other], recipe, 0) for build in (joint_recipe, reid_recipe)]:
            return f"its recipe is that of {other}"
    return None


def paper_note(recipe: Recipe) -> str | None:
    """What is to be said where the rows of the paper depart from the recipe given; None where they do not."""
    if not (names := departures(recipe)):
        return None
    return (
        f"The recipe goes beyond the paper in {', '.join(names)}: row {TEXTURE} is the recipe as given, and every "
        "other row, full too, is without them but for what it names."
    )
