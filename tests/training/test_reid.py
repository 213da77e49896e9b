import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from posereid.config import Recipe
from posereid.data.batches import QuartetBatch
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.shards import write_shards
from posereid.errors import InputError
from posereid.training import reid
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint, load_embedder
from posereid.training.joint import train_joint
from posereid.training.reid import train_reid
from posereid.training.run_file import people_of

Build = Callable[..., Recipe]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(checkpoint_folders(run)[-1] / "embedder.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def augmented(crops: CropTable) -> CropTable:
    """The set with a copy of each training crop that counts as drawn by a generator."""
    drawn = [replace(c, name=f"drawn_{c.name}", source=c.name, target_pose="front") for c in crops.train]
    return crops.with_crops([*crops, *drawn])


@pytest.fixture(scope="module")
def finished(crops: CropTable, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_reid(tiny_recipe(), crops, tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_real_crops_alone_train_an_embedder(finished: Path) -> None:
    facts, *steps = records(finished)
    assert (facts["real_crops"], facts["generated_crops"], facts["steps"]) == (32, 0, 4)
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert all({"loss_quartet", "loss_identity"} <= record.keys() for record in steps)
    assert all(torch.isfinite(torch.tensor(record["loss_identity"])) for record in steps)
    assert {path.stem for path in checkpoint_folders(finished)[-1].glob("*.safetensors")} == {"embedder"}
    assert load_embedder(finished).classifier[-1].out_features == 4


def test_the_checkpoint_says_which_identity_each_class_is(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    renamed = {1: 40, 2: 7, 3: 19, 4: 7000}
    people = crops.with_crops(replace(crop, identity=renamed.get(crop.identity, crop.identity)) for crop in crops.train)
    run = train_reid(tiny_recipe(), people, tmp_path / "run", progress=False)
    checkpoint = latest_checkpoint(run)
    assert checkpoint.identities == (7, 19, 40, 7000)
    assert checkpoint.stage == "reid"


def test_the_classifier_learns_the_identities_of_the_crops(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    reid = {
        "epochs": 40,
        "quartets_per_batch": 4,
        "optimiser": {"learning_rate": 0.005},
        "flip": 0,
        "padding": 0,
        "log_every": 20,
        "checkpoint_every": 40,
    }
    recipe = tiny_recipe(reid=reid, losses={"quartet": 0}, embedder={"dropout": 0})
    run = train_reid(recipe, crops, tmp_path / "run", progress=False)
    assert records(run)[-1]["loss_identity"] < 0.7  # chance is log 4 = 1.39


def test_generated_crops_are_counted_and_take_part(
    augmented: CropTable, tiny_recipe: Build, finished: Path, tmp_path: Path
) -> None:
    run = train_reid(tiny_recipe(), augmented, tmp_path / "run", progress=False)
    assert records(run)[0]["generated_crops"] == records(run)[0]["real_crops"] == 32
    assert not equal(weights(run), weights(finished))


def test_generated_crops_outside_quartets_take_part_in_the_identity_loss_alone(
    augmented: CropTable, tiny_recipe: Build, tmp_path: Path, finished: Path
) -> None:
    apart = tiny_recipe(reid={"generated_in_quartets": False})
    run = train_reid(apart, augmented, tmp_path / "apart", progress=False)
    assert not equal(weights(run), weights(finished))
    absent = augmented.with_crops(
        replace(crop, path=Path("nowhere") / crop.name) if crop.generated else crop for crop in augmented
    )
    with pytest.raises(InputError, match="no such file"):
        train_reid(apart, absent, tmp_path / "absent", progress=False)


def test_smoothed_labels_soften_generated_crops_alone(
    augmented: CropTable, tiny_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[bool], Tensor | None]] = []
    step, loss = reid.training_step, reid.identity_loss

    def watched_step(networks: Any, batch: QuartetBatch, *rest: Any) -> Any:
        asked.append((batch.generated.flatten().tolist(), None))
        return step(networks, batch, *rest)

    def watched_loss(logits: Tensor, labels: Tensor, smoothing: Tensor | None) -> Tensor:
        asked[-1] = (asked[-1][0], smoothing)
        return loss(logits, labels, smoothing)

    monkeypatch.setattr(reid, "training_step", watched_step)
    monkeypatch.setattr(reid, "identity_loss", watched_loss)
    for policy, softened in (("source", None), ("smoothed", 0.25), ("uniform", 1.0)):
        asked.clear()
        recipe = tiny_recipe(reid={"generated_labels": policy, "label_smoothing": 0.25})
        train_reid(recipe, augmented, tmp_path / policy, progress=False)
        assert len(asked) == 4
        assert any(any(generated) for generated, _ in asked)
        for generated, smoothing in asked:
            expected = [softened if one else 0.0 for one in generated]
            assert smoothing is None if softened is None else smoothing.tolist() == expected


def test_crops_that_may_be_anybody_stay_out_of_quartets_and_who_they_are_changes_nothing(
    augmented: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    recipe = tiny_recipe(reid={"generated_labels": "uniform", "generated_in_quartets": True})
    people = sorted({crop.identity for crop in augmented.train})
    turned = dict(zip(people, [*people[1:], people[0]], strict=True))
    others = augmented.with_crops(
        replace(crop, identity=turned[crop.identity]) if crop.generated else crop for crop in augmented
    )
    runs = [train_reid(recipe, t, tmp_path / str(n), progress=False) for n, t in enumerate((augmented, others))]
    assert records(runs[0])[0]["generated_per_batch"] == 2
    assert equal(*map(weights, runs))


@pytest.mark.parametrize(
    ("settings", "per_batch"),
    [
        ({"generated_share": 0.5}, 4),
        ({"generated_share": 0.3, "generated_warmup": 1}, 2),
        ({"generated_in_quartets": False}, 2),
        ({"generated_share": 0.5, "generated_in_quartets": False}, 8),
        ({"generated_share": 0.6, "generated_labels": "uniform"}, 12),
    ],
)
def test_the_log_says_how_many_generated_crops_a_batch_holds(
    augmented: CropTable, tiny_recipe: Build, tmp_path: Path, settings: dict[str, Any], per_batch: int
) -> None:
    facts, *steps = records(train_reid(tiny_recipe(reid=settings), augmented, tmp_path / "run", progress=False))
    assert (facts["real_crops"], facts["generated_crops"]) == (32, 32)
    assert (facts["generated_per_batch"], facts["identities_without_generated"]) == (per_batch, 0)
    assert len(steps) == 4


def test_a_warm_up_reads_no_real_crop_before_it_ends(augmented: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    recipe = tiny_recipe(reid={"generated_warmup": 1}, safety={"unreadable_share": 1})
    unreal = augmented.with_crops(
        crop if crop.generated else replace(crop, path=Path("nowhere") / crop.name) for crop in augmented
    )
    with pytest.raises(InputError, match="no such file"):
        train_reid(recipe, unreal, tmp_path / "run", progress=False)
    assert [record["step"] for record in records(tmp_path / "run") if "loss_identity" in record] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"generated_warmup": 1, "generated_labels": "uniform"}, "whose labels are uniform"),
        ({"generated_warmup": 1, "generated_in_quartets": False}, "stay out of quartets"),
        ({"generated_warmup": 2}, r"fewer than the 2 of reid\.epochs"),
    ],
)
def test_a_warm_up_that_the_other_settings_contradict_is_refused(
    augmented: CropTable, tiny_recipe: Build, tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=rf"reid\.generated_warmup: .*{complaint}"):
        train_reid(tiny_recipe(reid=settings), augmented, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"generated_share": 0.5}, {"generated_warmup": 1}])
@pytest.mark.parametrize("in_quartets", [True, False])
def test_a_share_or_warm_up_without_generated_crops_is_refused(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, settings: dict[str, Any], in_quartets: bool
) -> None:
    recipe = tiny_recipe(reid=settings | {"generated_in_quartets": in_quartets})
    with pytest.raises(InputError, match="generated"):
        train_reid(recipe, crops, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("off", "left"), [("quartet", "embedding"), ("identity", "classifier.0")])
def test_a_weight_of_zero_leaves_the_other_heads_weights_alone(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, finished: Path, off: str, left: str
) -> None:
    recipe = tiny_recipe(losses={off: 0}, reid={"checkpoint_every": 1, "keep_checkpoints": 9})
    run = train_reid(recipe, crops, tmp_path / "run", progress=False)
    first, last = (load_file(folder / "embedder.safetensors") for folder in checkpoint_folders(run)[::3])
    assert torch.equal(first[f"{left}.weight"], last[f"{left}.weight"])
    other = "classifier.0" if left == "embedding" else "embedding"
    assert not torch.equal(first[f"{other}.weight"], last[f"{other}.weight"])


def test_without_either_loss_there_is_nothing_to_train(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"losses\.quartet and losses\.identity"):
        train_reid(tiny_recipe(losses={"quartet": 0, "identity": 0}), crops, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_training_may_begin_from_another_runs_embedder(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, finished: Path
) -> None:
    joint_run = train_joint(tiny_recipe(), crops, tmp_path / "joint", progress=False)
    recipe = tiny_recipe(reid={"optimiser": {"learning_rate": 1e-12}})
    run = train_reid(recipe, crops, tmp_path / "reid", start=joint_run, progress=False)
    record = json.loads((run / "run.json").read_text())
    people = json.loads(json.dumps(people_of(crops.train)))
    joint = {"stage": "joint", "training_set": crops.train.fingerprint, "started_from": None, "people": people}
    assert record == joint | {"stage": "reid", "started_from": joint}
    train_reid(recipe, crops, run, resume=True, progress=False)
    assert json.loads((run / "run.json").read_text()) == record
    started, ended = weights(joint_run), weights(run)
    torch.testing.assert_close(ended["embedding.weight"], started["embedding.weight"], rtol=0, atol=1e-8)
    assert not torch.allclose(ended["embedding.weight"], weights(finished)["embedding.weight"], atol=1e-4)


def test_a_started_run_without_a_checkpoint_does_not_go_on_from_other_weights(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, finished: Path
) -> None:
    run = train_reid(tiny_recipe(), crops, tmp_path / "run", start=finished, progress=False)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="before its first checkpoint and had started from another run"):
        train_reid(tiny_recipe(), crops, run, resume=True, progress=False)


def test_a_command_with_its_start_goes_on_wherever_it_was_stopped(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, finished: Path
) -> None:
    again = partial(train_reid, tiny_recipe(), crops, tmp_path / "run", start=finished, resume=True, progress=False)
    whole = weights(again())
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert equal(weights(again()), whole)
    shutil.rmtree(checkpoint_folders(tmp_path / "run")[-1])
    assert equal(weights(again()), whole)
    with pytest.raises(InputError, match="was begun from fresh weights, not from"):
        train_reid(tiny_recipe(), crops, finished, start=tmp_path / "run", resume=True, progress=False)


def without_first(crops: CropTable) -> CropTable:
    first = min(crop.identity for crop in crops.train)
    return crops.with_crops(crop for crop in crops if crop.identity != first)


def elsewhere(crops: CropTable, folder: Path) -> CropTable:
    """Other people's crops, as far as their names say."""
    places = {crop: folder / f"elsewhere_{crop.name}" for crop in crops.train}
    for crop, place in places.items():
        place.symlink_to(crop.path)
    return crops.with_crops(replace(crop, path=path, name=path.name) for crop, path in places.items())


def test_a_run_that_holds_people_out_does_not_begin_from_one_that_saw_them(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, finished: Path
) -> None:
    recipe, others = tiny_recipe(data={"validation_share": 0.25}), without_first(crops)
    with pytest.raises(InputError, match=r"trained on 1 identities .* people who are held out"):
        train_reid(recipe, others, tmp_path / "reid", start=finished, progress=False)
    # Nor through a run in between on another set.
    between = train_reid(
        tiny_recipe(), elsewhere(crops, tmp_path), tmp_path / "between", start=finished, progress=False
    )
    with pytest.raises(InputError, match=r"trained on 1 identities .* people who are held out"):
        train_reid(recipe, others, tmp_path / "reid", start=between, progress=False)


@pytest.mark.parametrize("how", ["moved and cleaned", "linked", "by another way", "sharded"])
def test_a_copy_of_the_set_is_known_wherever_and_however_it_lies(
    how: str, world: Path, tiny_recipe: Build, tmp_path: Path, finished: Path
) -> None:
    root = tmp_path / "set"
    if how == "moved and cleaned":
        shutil.copytree(world, root)
        for crop in load_crops(root).train[::8]:
            crop.path.unlink()
    elif how == "linked":
        root.symlink_to(world)
    elif how == "by another way":
        root = world / ".." / world.name
    else:
        write_shards(load_crops(world), root)
    recipe = tiny_recipe(data={"validation_share": 0.25, "root": str(root)})
    with pytest.raises(InputError, match=r"trained on 1 identities .* people who are held out"):
        train_reid(recipe, without_first(load_crops(root)), tmp_path / "run", start=finished, progress=False)
    assert not (tmp_path / "run").exists()


def test_another_set_with_the_same_numbers_is_no_copy(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    last = max(crop.identity for crop in crops.train)
    three = crops.with_crops(crop for crop in crops if crop.identity != last)
    start = train_reid(tiny_recipe(reid={"epochs": 1}), three, tmp_path / "start", progress=False)
    recipe = tiny_recipe(data={"validation_share": 0.25, "root": str(tmp_path)}, reid={"epochs": 1})
    train_reid(recipe, without_first(elsewhere(crops, tmp_path)), tmp_path / "run", start=start, progress=False)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    crops: CropTable, tiny_recipe: Build, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(checkpoint_folders(run)[-1])
    assert latest_checkpoint(run).step == 2
    train_reid(tiny_recipe(), crops, run, resume=True, progress=False)
    assert latest_checkpoint(run).step == 4
    assert equal(weights(run), weights(finished))


def test_a_run_stopped_in_its_warm_up_resumes_to_the_same_weights(
    augmented: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        reid={"generated_warmup": 1, "generated_share": 0.4, "generated_labels": "smoothed", "checkpoint_every": 1}
    )
    whole = train_reid(recipe, augmented, tmp_path / "whole", progress=False)
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    shutil.rmtree(checkpoint_folders(part)[-1])
    train_reid(recipe, augmented, part, resume=True, progress=False)
    assert equal(weights(part), weights(whole))


def test_resuming_with_another_recipe_is_refused(crops: CropTable, tiny_recipe: Build, finished: Path) -> None:
    with pytest.raises(InputError, match="another recipe"):
        train_reid(tiny_recipe(seed=5), crops, finished, resume=True, progress=False)


def test_a_joint_run_is_not_resumed_as_a_reid_run(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    run = train_joint(tiny_recipe(), crops, tmp_path / "joint", progress=False)
    shutil.rmtree(checkpoint_folders(run)[-1])
    with pytest.raises(InputError, match="joint"):
        train_reid(tiny_recipe(), crops, run, resume=True, progress=False)


def test_too_few_people_leave_no_run_behind(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    two = crops.with_crops(crop for crop in crops.train if crop.identity <= 2)
    with pytest.raises(InputError, match="at least 3 identities"):
        train_reid(tiny_recipe(), two, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
