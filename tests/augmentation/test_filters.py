import csv
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from posereid.augmentation.filters import FilteredSet, choose, filter_set
from posereid.augmentation.scores import Scores
from posereid.augmentation.sets import (
    GeneratedSetInfo,
    ManifestRow,
    listing_files,
    read_manifest,
    read_set,
    set_text,
    train_folder,
    with_generated,
)
from posereid.cli import main
from posereid.config import FilteringRecipe, Recipe
from posereid.data.crops import Crop, CropTable
from posereid.data.images import open_image
from posereid.data.layouts import load_crops
from posereid.data.shards import write_shards
from posereid.discriminator import appearance_discriminator, pose_discriminator
from posereid.errors import InputError
from posereid.pose.files import read_keypoints, write_keypoints
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.training.checkpoint import (
    latest_checkpoint,
    load_discriminator,
    load_embedder,
    load_pose_estimator,
    new_embedder,
    new_generator,
    new_pose_estimator,
    save_checkpoint,
)
from posereid.training.run_file import RunOrigin, write_run_file

Build = Callable[..., Recipe]
HEIGHT, WIDTH, SOURCES, POSES = 64, 32, 5, 3
DRAWN = SOURCES * POSES
ALL = {"identity": 0.5, "pose": 0.6, "realism": 0.8}


@dataclass(frozen=True)
class Runs:
    run: Path
    judge: Path
    pose_estimator: Path


def save(folder: Path, stage: str, recipe: Recipe, training_set: str, parts: Mapping[str, nn.Module]) -> Path:
    save_checkpoint(
        folder,
        step=1,
        stage=stage,
        recipe=recipe,
        identities=(1, 2, 3, 4),
        training_set=training_set,
        parts=parts,
        resume_state={},
        keep=1,
    )
    return folder


@pytest.fixture(scope="module")
def runs(world: Path, crops: CropTable, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of fresh weights: what they say of a drawing does not matter, only that it is what they say."""
    torch.manual_seed(5)
    recipe = tiny_recipe(
        data={"root": str(world)},
        pose_estimator={"backbone": "test_resnet", "width": 4, "map_stride": 2},
        filtering={"identity": 0.4},
    )
    folder, fingerprint = tmp_path_factory.mktemp("runs"), crops.train.fingerprint
    parts = {
        "generator": new_generator(recipe),
        "appearance_discriminator": appearance_discriminator(4, 2),
        "pose_discriminator": pose_discriminator(4, 2),
        "embedder": new_embedder(recipe, 4),
    }
    return Runs(
        save(folder / "joint", "joint", recipe, fingerprint, parts),
        save(folder / "judge", "reid", recipe, fingerprint, {"embedder": new_embedder(recipe, 4)}),
        save(folder / "pose", "pose", recipe, fingerprint, {"pose_estimator": new_pose_estimator(recipe)}),
    )


def origin(crops: CropTable, *stages: str) -> RunOrigin | None:
    """A run of the first stage that goes back to runs of the others; "other" is a re-ID run on other crops."""
    if not stages:
        return None
    crops_of_run = "others" if stages[0] == "other" else crops.train.fingerprint
    return RunOrigin(
        stage="reid" if stages[0] == "other" else stages[0],
        training_set=crops_of_run,
        started_from=origin(crops, *stages[1:]),
    )


def sources_of(crops: CropTable) -> list[Crop]:
    return [crop for crop in crops.train if crop.can_pose][:SOURCES]


def write_set(folder: Path, crops: CropTable, checkpoint: str, layout: str = "market1501") -> Path:
    """A generated set of noisy copies of real crops, three of each source: no generator needs to draw them."""
    random = np.random.default_rng(3)
    home = folder / train_folder(layout)
    home.mkdir(parents=True)
    rows, joints = [], {}
    posed = [crop for crop in crops.train if crop.can_pose]
    for source in sources_of(crops):
        original = np.asarray(open_image(source.path), np.int64)
        for number in range(1, POSES + 1):
            target = posed[int(random.integers(len(posed)))]
            name = f"{Path(source.name).stem}_p{number}.jpg"
            pixels = (original + random.integers(-90, 90, original.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(home / name, quality=95, subsampling=0)
            rows.append(ManifestRow(name, source.name, target.name, source.identity, source.camera, checkpoint))
            assert target.joints is not None
            joints[name] = target.joints
    for name, text in listing_files(layout, rows).items():
        (folder / name).write_text(text)
    write_keypoints(joints, folder / "market-annotation-train.csv")
    info = GeneratedSetInfo(source_root="world", checkpoint=checkpoint, seed=0, drawn=len(rows), layout=layout)
    (folder / "set.json").write_text(set_text(info))
    return folder


@pytest.fixture(scope="module")
def digest(runs: Runs) -> str:
    return latest_checkpoint(runs.run).digest("generator")


@pytest.fixture(scope="module")
def drawn(crops: CropTable, digest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "drawn", crops, digest)


@pytest.fixture
def copied(drawn: Path, tmp_path: Path) -> Path:
    """The same set, to be changed."""
    return Path(shutil.copytree(drawn, tmp_path / "copied"))


def settings(**changes: object) -> FilteringRecipe:
    return FilteringRecipe().changed(**{"near_duplicate": 0, "batch_size": 4, **changes})


def filtered(
    generated: Path,
    out: Path,
    crops: CropTable,
    runs: Runs,
    *,
    without: tuple[str, ...] = (),
    judge: Path | None = None,
    **changes: object,
) -> FilteredSet:
    given_runs = vars(runs) | dict.fromkeys(without) | ({"judge": judge} if judge else {})
    return filter_set(generated, out, crops, settings(**changes), **given_runs, progress=False)


EVERY = ("run", "judge", "pose_estimator")


def rewrite_rows(folder: Path, change: Callable[[ManifestRow], ManifestRow]) -> None:
    text = listing_files("market1501", [change(row) for row in read_manifest(folder)])["manifest.csv"]
    (folder / "manifest.csv").write_text(text)


def pixels_of(path: Path) -> torch.Tensor:
    """One picture as the networks see it, (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(open_image(path))).permute(2, 0, 1)[None].float() / 127.5 - 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what is written ---------------------------------------------------------------------------------------


def test_each_measure_keeps_its_share_and_the_manifest_accounts_for_every_drawing(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    made = filtered(drawn, tmp_path / "out", crops, runs, **ALL)
    rows = read_manifest(tmp_path / "out")
    before = {row.name: row for row in read_manifest(drawn)}
    assert [row.name for row in rows] == list(before)
    for row in rows:
        blank = replace(row, identity_distance=None, pose_score=None, realism=None, dropped="")
        assert blank == before[row.name]
        assert None not in (row.identity_distance, row.pose_score, row.realism)
    for measure, share in ALL.items():
        left_out = sum(measure in row.dropped.split("; ") for row in rows)
        assert left_out == made.dropped[measure] == DRAWN - math.ceil(share * DRAWN)
    kept = [row.name for row in rows if not row.dropped]
    assert made.kept == len(kept)
    assert made.left_out == DRAWN - len(kept)
    assert (made.left_out_before, made.unscored, made.near_duplicates) == (0, 0, None)
    assert any("; " in row.dropped for row in rows)

    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out" / "bounding_box_train").iterdir()}
    assert pictures == {name: (drawn / "bounding_box_train" / name).read_bytes() for name in kept}
    joints = read_keypoints(tmp_path / "out" / "market-annotation-train.csv")
    assert sorted(joints) == sorted(kept)


def test_a_filtered_set_is_a_generated_set(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    made = filtered(drawn, tmp_path / "out", crops, runs, **ALL)
    table = load_crops(tmp_path / "out")
    assert len(table.train) == made.kept
    assert table.missing == table.unparsed == ()
    assert len(with_generated(crops, table).train) == len(crops.train) + made.kept
    original = {crop.name: crop for crop in load_crops(drawn).train}
    for crop in table.train:
        before = original[crop.name]
        assert (crop.source, crop.identity, crop.camera) == (before.source, before.identity, before.camera)
        assert crop.joints is not None
        assert before.joints is not None
        assert (crop.joints.xy == before.joints.xy).all()


@pytest.mark.parametrize("layout", ["csv", "msmt17"])
def test_sets_of_other_layouts_stay_in_theirs(
    layout: str, crops: CropTable, digest: str, runs: Runs, tmp_path: Path
) -> None:
    if layout == "msmt17":
        crops = crops.with_crops(
            replace(crop, name=f"{crop.identity:04d}_{number:03d}_{crop.camera:02d}_noon.jpg")
            for number, crop in enumerate(crops)
        )
    generated = write_set(tmp_path / "set", crops, digest, layout)
    made = filtered(generated, tmp_path / "out", crops, runs, realism=0.5)
    table = load_crops(tmp_path / "out")
    assert table.layout == layout
    assert table.missing == table.unparsed == ()
    kept = [row for row in read_manifest(tmp_path / "out") if not row.dropped]
    assert len(kept) == made.kept < DRAWN
    assert [(crop.name, crop.identity, crop.camera) for crop in table.train] == [
        (row.name, row.identity, row.camera) for row in kept
    ]


def test_equal_calls_write_equal_bytes(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    first, second = (filtered(drawn, tmp_path / name, crops, runs, **ALL, near_duplicate=3) for name in "ab")
    assert contents(first.folder) == contents(second.folder)


def test_the_set_says_how_it_was_chosen(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    made = filtered(drawn, tmp_path / "out", crops, runs, **ALL, near_duplicate=2)
    info, rows = read_set(tmp_path / "out"), read_manifest(tmp_path / "out")
    assert info.model_copy(update={"filtering": {}}) == read_set(drawn)
    stated = json.loads(json.dumps(info.filtering))
    assert {name: stated["settings"][name] for name in ALL} == ALL
    assert stated["judges"] == {
        "embedder": latest_checkpoint(runs.judge).digest("embedder"),
        "pose_discriminator": latest_checkpoint(runs.run).digest("pose_discriminator"),
        "appearance_discriminator": latest_checkpoint(runs.run).digest("appearance_discriminator"),
    }
    assert stated["counts"]["drawings"] == DRAWN
    assert stated["counts"]["kept"] == made.kept
    passed = [row for row in rows if "identity" not in row.dropped]
    assert stated["thresholds"]["identity"] == max(row.identity_distance or 0 for row in passed)
    assert stated["thresholds"]["realism"] == min(row.realism or 0 for row in rows if "realism" not in row.dropped)


def test_what_an_earlier_filter_left_out_stays_so(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    first = filtered(drawn, tmp_path / "first", crops, runs, identity=0.5)
    second = filtered(first.folder, tmp_path / "second", crops, runs, realism=0.5)
    assert second.left_out_before == first.left_out
    assert second.kept == math.ceil(first.kept / 2)
    before = {row.name: row for row in read_manifest(first.folder)}
    for row in read_manifest(second.folder):
        assert row.identity_distance == before[row.name].identity_distance
        if before[row.name].dropped:
            assert row == before[row.name]
        else:
            assert row.dropped in ("", "realism")
    assert read_set(second.folder).filtering["filtered_before"] == read_set(first.folder).filtering
    assert len(load_crops(second.folder).train) == second.kept


def test_nothing_stays_behind_when_writing_fails(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("posereid.augmentation.sets.write_keypoints", full)
    with pytest.raises(OSError, match="No space"):
        filtered(drawn, tmp_path / "out", crops, runs, identity=0.5)
    assert list(tmp_path.iterdir()) == []


# --- scores ------------------------------------------------------------------------------------------------


def test_each_score_is_that_of_the_drawing_alone(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    filtered(drawn, tmp_path / "out", crops, runs, **ALL)
    embedder = load_embedder(runs.judge)
    judges = {kind: load_discriminator(runs.run, kind) for kind in ("appearance", "pose")}  # type: ignore[arg-type]
    real = {crop.name: crop.path for crop in crops.train}
    joints_of = read_keypoints(drawn / "market-annotation-train.csv")
    for row in read_manifest(tmp_path / "out"):
        drawing, source = pixels_of(drawn / "bounding_box_train" / row.name), pixels_of(real[row.source])
        maps = torch.zeros(1, JOINT_COUNT, HEIGHT, WIDTH)
        for joint in range(JOINT_COUNT):
            if joints_of[row.name].present[joint]:
                x, y = joints_of[row.name].xy[joint]
                for line in range(HEIGHT):
                    for column in range(WIDTH):
                        away = (column - x) ** 2 + (line - y) ** 2
                        maps[0, joint, line, column] = math.exp(-away / (2 * (6 / 128 * HEIGHT) ** 2))
        with torch.no_grad():
            first, second = embedder.embed(drawing)[0], embedder.embed(source)[0]
            logits = {
                "realism": judges["appearance"](source, drawing),
                "pose_score": judges["pose"](maps, drawing),
            }
        cosine = float((first * second).sum() / (first.norm() * second.norm()))
        assert row.identity_distance == pytest.approx(1 - cosine, abs=1e-5)
        for column, patches in logits.items():
            chances = [1 / (1 + math.exp(-logit)) for logit in patches.flatten().tolist()]
            assert getattr(row, column) == pytest.approx(sum(chances) / len(chances), abs=1e-5)


def test_keypoints_score_one_less_the_mean_error_in_crop_heights(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    made = filtered(drawn, tmp_path / "out", crops, runs, pose=0.5, pose_by="keypoints")
    estimator = load_pose_estimator(runs.pose_estimator)
    joints_of = read_keypoints(drawn / "market-annotation-train.csv")
    rows = read_manifest(tmp_path / "out")
    for row in rows:
        with torch.no_grad():
            found, _ = estimator.find_joints(pixels_of(drawn / "bounding_box_train" / row.name))
        target, errors = joints_of[row.name], []
        for joint in np.flatnonzero(target.present):
            errors.append(math.dist(found[0, joint].tolist(), target.xy[joint].tolist()) / HEIGHT)
        assert row.pose_score == pytest.approx(1 - sum(errors) / len(errors), abs=1e-5)
    worst_kept = min(row.pose_score or 0 for row in rows if not row.dropped)
    assert all((row.pose_score or 0) <= worst_kept for row in rows if row.dropped)
    assert made.kept == math.ceil(DRAWN / 2)
    assert list(dict(read_set(made.folder).filtering["judges"])) == ["pose_estimator"]  # type: ignore[arg-type]


def test_a_drawing_that_cannot_be_scored_is_left_out_and_counted(
    copied: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    joints = dict(read_keypoints(copied / "market-annotation-train.csv"))
    nameless, blank = list(joints)[:2]
    del joints[nameless]
    joints[blank] = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))
    write_keypoints(joints, copied / "market-annotation-train.csv")
    made = filtered(copied, tmp_path / "out", crops, runs, pose=0.99)
    reasons = {row.name: row.dropped for row in read_manifest(tmp_path / "out") if row.dropped}
    assert reasons == {nameless: "unscored", blank: "unscored"}
    assert (made.unscored, made.dropped["pose"], made.kept) == (2, 0, DRAWN - 2)
    assert any("2 drawings could not be scored" in line for line in made.lines())


# --- near duplicates ---------------------------------------------------------------------------------------


def test_near_duplicates_are_pointed_out_within_a_source_and_kept(
    copied: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    home, rows = copied / "bounding_box_train", read_manifest(copied)
    first, second, third = (row.name for row in rows[:3])
    assert {row.source for row in rows[:3]} == {rows[0].source}
    shutil.copy(home / first, home / third)
    # The same picture under another source is no repetition of this one's drawings.
    shutil.copy(home / first, home / rows[3].name)
    source = next(crop for crop in crops.train if crop.name == rows[4].source)
    Image.open(source.path).save(home / rows[4].name, quality=95, subsampling=0)
    made = filtered(copied, tmp_path / "out", crops, runs, near_duplicate=3)
    pointers = {row.name: row.near_duplicate_of for row in read_manifest(tmp_path / "out") if row.near_duplicate_of}
    assert pointers == {third: first}
    assert second not in pointers
    assert (made.near_duplicates, made.copies_of_source) == (1, 1)
    assert (made.kept, made.left_out) == (DRAWN, 0)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_near_duplicates_are_those_of_a_naive_loop_whatever_the_batches(
    batch_size: int, drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    rows = read_manifest(drawn)
    pictures = {row.name: np.asarray(open_image(drawn / "bounding_box_train" / row.name), float) for row in rows}
    limit = float(np.median([np.abs(pictures[row.name] - pictures[rows[0].name]).mean() for row in rows[1:POSES]]))
    expected = {}
    for number, row in enumerate(rows):
        for other in rows[:number]:
            difference = np.abs(pictures[row.name] - pictures[other.name]).mean()
            if other.source == row.source and difference < limit:
                expected[row.name] = other.name
                break
    assert 0 < len(expected) < DRAWN
    filtered(drawn, tmp_path / "out", crops, runs, without=EVERY, near_duplicate=limit, batch_size=batch_size)
    found = {row.name: row.near_duplicate_of for row in read_manifest(tmp_path / "out") if row.near_duplicate_of}
    assert found == expected


# --- choice ------------------------------------------------------------------------------------------------


def rows_named(names: list[str]) -> list[ManifestRow]:
    return [ManifestRow(name, "source.jpg", "target.jpg", 1, 1, "digest") for name in names]


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf]), min_size=1, max_size=30),
    st.integers(1, 99),
    st.sampled_from(["identity", "pose", "realism"]),
    st.randoms(use_true_random=False),
)
def test_the_choice_is_that_of_a_sorted_list(values: list[float], percent: int, measure: str, random: object) -> None:
    names = [f"{number:03d}.jpg" for number in range(len(values))]
    random.shuffle(names)  # type: ignore[attr-defined]
    given_values = {name: np.array(values) if name == measure else None for name in ("identity", "pose", "realism")}
    scores = Scores(*given_values.values(), np.full(len(values), -1), np.zeros(len(values), bool))
    reasons, thresholds = choose(rows_named(names), scores, settings(**{measure: percent / 100}))

    sign = 1 if measure == "identity" else -1
    finite = sorted((sign * value, name) for value, name in zip(values, names, strict=True) if math.isfinite(value))
    passed = {name for _, name in finite[: -(-percent * len(values) // 100)]}
    for value, name, reason in zip(values, names, reasons, strict=True):
        if not math.isfinite(value):
            assert reason == ["unscored"]
        else:
            assert reason == ([] if name in passed else [measure])
    assert thresholds == ({measure: sign * finite[len(passed) - 1][0]} if passed else {})


def test_a_share_that_is_no_exact_fraction_keeps_no_drawing_too_many() -> None:
    scores = Scores(np.arange(30.0), None, None, np.full(30, -1), np.zeros(30, bool))
    rows = rows_named([f"{number}.jpg" for number in range(30)])
    reasons, _ = choose(rows, scores, settings(identity=0.1))
    assert sum(not each for each in reasons) == 3  # 0.1 · 30 is a little more than 3 in floating point


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "changes", "option"),
    [
        ("judge", {"identity": 0.5}, "--judge"),
        ("run", {"pose": 0.5}, "--run"),
        ("pose_estimator", {"pose": 0.5, "pose_by": "keypoints"}, "--pose-estimator"),
        ("run", {"realism": 0.5}, "--run"),
    ],
)
def test_a_measure_without_its_run_is_one_sentence(
    missing: str, changes: dict[str, object], option: str, drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=option):
        filtered(drawn, tmp_path / "out", crops, runs, without=(missing,), **changes)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_only_measures_asked_for_need_their_runs(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    made = filtered(drawn, tmp_path / "out", crops, runs, without=("run", "pose_estimator"), identity=0.5)
    rows = read_manifest(made.folder)
    assert made.kept == math.ceil(DRAWN / 2)
    assert all(row.pose_score is None and row.realism is None for row in rows)


def test_a_filter_that_asks_for_nothing_is_refused(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to filter by"):
        filtered(drawn, tmp_path / "out", crops, runs)


def test_a_filter_that_leaves_nothing_is_refused(copied: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    (copied / "market-annotation-train.csv").unlink()
    with pytest.raises(
        InputError,
        match=rf"all of its {DRAWN} drawings \({DRAWN} by unscored\); they lack joints .* draw the set again",
    ):
        filtered(copied, tmp_path / "out", crops, runs, pose=0.5)
    assert not (tmp_path / "out").exists()


def test_a_judge_that_has_seen_drawings_is_refused(
    drawn: Path, crops: CropTable, runs: Runs, tiny_recipe: Build, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="joint run as the judge"):
        filtered(drawn, tmp_path / "out", crops, runs, judge=runs.run, identity=0.5)
    both = with_generated(crops, load_crops(drawn)).train.fingerprint
    biased = save(tmp_path / "biased", "reid", tiny_recipe(), both, {"embedder": new_embedder(tiny_recipe(), 4)})
    with pytest.raises(InputError, match=r"other crops than the \d+ real ones"):
        filtered(drawn, tmp_path / "out", crops, runs, judge=biased, identity=0.5)


@pytest.mark.parametrize(
    ("starts", "back_to"),
    [
        (["joint"], "a joint run"),
        (["reid", "joint"], "a joint run"),
        (["reid", "other"], "a reid run on other crops"),
    ],
)
@pytest.mark.parametrize("of_the_run", [True, False])
def test_a_judge_whose_weights_go_back_to_anything_but_real_crops_is_refused(
    starts: list[str], back_to: str, of_the_run: bool, drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    biased = Path(shutil.copytree(runs.judge, tmp_path / "biased"))
    begun = origin(crops, "reid", *starts)
    assert begun is not None
    write_run_file(biased, begun)
    given = biased if of_the_run else next((biased / "checkpoints").iterdir())
    with pytest.raises(InputError, match=f"whose weights go back to {back_to}, .*without --start"):
        filtered(drawn, tmp_path / "out", crops, runs, judge=given, identity=0.5)
    assert not (tmp_path / "out").exists()


def test_a_judge_may_go_back_to_other_runs_on_the_same_real_crops(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    judge = Path(shutil.copytree(runs.judge, tmp_path / "judge"))
    begun = origin(crops, "reid", "reid", "reid")
    assert begun is not None
    write_run_file(judge, begun)
    assert filtered(drawn, tmp_path / "out", crops, runs, judge=judge, identity=0.5).left_out
    older = {"stage": "reid", "training_set": crops.train.fingerprint}
    (judge / "run.json").write_text(json.dumps(older))
    assert filtered(drawn, tmp_path / "again", crops, runs, judge=judge, identity=0.5).left_out


def test_a_judge_whose_origin_is_damaged_is_refused(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    judge = Path(shutil.copytree(runs.judge, tmp_path / "judge"))
    (judge / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be used"):
        filtered(drawn, tmp_path / "out", crops, runs, judge=judge, identity=0.5)


def test_sources_are_not_decoded_for_the_pose_measure_alone(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    known = {row.source for row in read_manifest(drawn)}
    (tmp_path / "no-picture.jpg").write_bytes(b"no picture")
    blind = crops.with_crops(
        replace(crop, path=tmp_path / "no-picture.jpg") if crop.name in known else crop for crop in crops
    )
    assert filtered(drawn, tmp_path / "out", blind, runs, pose=0.5).kept == math.ceil(DRAWN / 2)
    with pytest.raises(InputError, match="no-picture"):
        filtered(drawn, tmp_path / "other", blind, runs, realism=0.5)


def test_a_set_of_another_generator_is_refused(crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", crops, "0" * 64)
    with pytest.raises(InputError, match="000"):
        filtered(other, tmp_path / "out", crops, runs, realism=0.5)


def test_a_run_without_a_generator_is_refused(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a generator"):
        filtered(drawn, tmp_path / "out", crops, replace(runs, run=runs.judge), near_duplicate=3)


def test_sources_that_are_not_among_the_real_crops_are_refused(
    copied: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    strange = read_manifest(copied)[0].source
    rewrite_rows(copied, lambda row: replace(row, source="nobody.jpg") if row.source == strange else row)
    with pytest.raises(InputError, match=r"1 sources .* for example 'nobody\.jpg'"):
        filtered(copied, tmp_path / "out", crops, runs, realism=0.5)
    rewrite_rows(copied, lambda row: replace(row, source=strange, camera=99) if row.source == "nobody.jpg" else row)
    with pytest.raises(InputError, match="same person and camera"):
        filtered(copied, tmp_path / "out", crops, runs, realism=0.5)


def test_a_source_name_that_two_crops_have_is_refused(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path
) -> None:
    twin = next(crop for crop in crops.train if crop.name == read_manifest(drawn)[0].source)
    with pytest.raises(InputError, match="several training crops"):
        filtered(drawn, tmp_path / "out", crops.with_crops([*crops, twin]), runs, realism=0.5)


def test_missing_files_are_refused(copied: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    (copied / "bounding_box_train" / read_manifest(copied)[2].name).unlink()
    with pytest.raises(InputError, match="1 crops whose files are missing"):
        filtered(copied, tmp_path / "out", crops, runs, realism=0.5)


def test_a_damaged_picture_is_named(copied: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    name = read_manifest(copied)[2].name
    (copied / "bounding_box_train" / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=name):
        filtered(copied, tmp_path / "out", crops, runs, realism=0.5)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_files_is_refused_before_anything_is_scored(
    drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note.txt").write_text("mine")
    monkeypatch.delattr("posereid.augmentation.filters.score_drawings")
    with pytest.raises(InputError, match="already holds files"):
        filtered(drawn, tmp_path, crops, runs, realism=0.5)


def test_a_set_in_shards_is_refused(drawn: Path, crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    write_shards(load_crops(drawn), tmp_path / "shards")
    with pytest.raises(InputError, match="set in shards"):
        filtered(tmp_path / "shards", tmp_path / "out", crops, runs, realism=0.5)


def test_a_real_set_is_refused(crops: CropTable, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no generated set"):
        filtered(crops.root, tmp_path / "out", crops, runs, realism=0.5)


# --- command -----------------------------------------------------------------------------------------------


def test_the_command_takes_what_it_is_not_told_from_the_recipe(
    drawn: Path, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--run", str(runs.run), "--judge", str(runs.judge), "--realism", "0.8"]
    main(["filter", str(drawn), "--out", str(tmp_path / "out"), *options])
    stated = json.loads((tmp_path / "out" / "set.json").read_text())["filtering"]["settings"]
    assert (stated["identity"], stated["realism"], stated["pose"]) == (0.4, 0.8, 1)
    with (tmp_path / "out" / "manifest.csv").open() as file:
        kept = sum(not row["dropped"] for row in csv.DictReader(file))
    told = capsys.readouterr().out
    assert f"{kept} of {DRAWN} drawings kept" in told
    assert f"identity: {DRAWN - math.ceil(0.4 * DRAWN)} left out" in told
    assert "nearly repeat another" in told


def test_the_command_says_in_one_sentence_what_is_wrong(
    drawn: Path, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["filter", str(drawn), "--out", str(tmp_path / "out"), "--run", str(runs.run), "--identity", "1.5"])
    assert left.value.code == 2
    assert "'identity' is 1.5" in capsys.readouterr().err


def test_joints_of_another_scale_are_refused(
    drawn: Path, crops: CropTable, runs: Runs, rescaled: Callable[..., CropTable], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="lie outside their pictures, as if for another size"):
        filtered(drawn, tmp_path / "out", rescaled(crops, 4), runs, identity=0.5)
    assert not (tmp_path / "out").exists()
