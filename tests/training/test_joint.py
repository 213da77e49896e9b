import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from posereid.config import Recipe, read_recipe
from posereid.data.batches import CropImages, PosePairBatch, PosePairs, class_labels, to_float
from posereid.data.crops import CropTable
from posereid.data.layouts import load_crops
from posereid.data.sampling import PosePairSampler, batch_quartets
from posereid.errors import InputError
from posereid.files import set_aside_path
from posereid.losses import generator_adversarial_loss
from posereid.training import joint
from posereid.training.checkpoint import checkpoint_folders, latest_checkpoint, load_embedder, load_generator
from posereid.training.joint import discriminator_step, train_joint, training_step
from posereid.training.networks import Networks

ALL = {"generator", "appearance_discriminator", "pose_discriminator", "embedder"}
Build = Callable[..., Recipe]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_logged(run: Path) -> set[str]:
    return {name for record in records(run) for name in record if name.startswith("loss_")}


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return {
        f"{path.stem}.{name}": value
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def snapshot(networks: Networks) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.detach().clone() for key, value in module.named_parameters()}
        for name, module in networks.plain.items()
    }


def moved(networks: Networks, before: dict[str, dict[str, Tensor]]) -> set[str]:
    """Names of the networks of which any weight is another than before."""
    return {
        name
        for name, module in networks.plain.items()
        if any(not torch.equal(value, before[name][key]) for key, value in module.named_parameters())
    }


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def batch(crops: CropTable) -> PosePairBatch:
    train = crops.train
    pairs = PosePairs(CropImages(train, 64, 32), class_labels(train))
    return pairs[[(0, *map(int, row)) for row in PosePairSampler(train, 4, 8, 0).batch(0, 0)]]


def build(recipe: Recipe, fabric: Fabric) -> Networks:
    return joint.build_networks(recipe, 4, fabric, None)


# --- a whole run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(crops: CropTable, tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_joint(tiny_recipe(), crops, tmp_path_factory.mktemp("runs") / "run", progress=False)


def test_a_run_leaves_recipe_log_samples_and_checkpoints(finished: Path, tiny_recipe: Build) -> None:
    assert read_recipe(finished / "recipe.yaml") == tiny_recipe()
    assert [folder.name for folder in checkpoint_folders(finished)] == ["step-00000002", "step-00000004"]
    assert {path.stem for path in checkpoint_folders(finished)[0].glob("*.safetensors")} == ALL
    sheets = sorted((finished / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-00000004.png"]
    with Image.open(sheets[0]) as sheet:
        assert sheet.width > 5 * 32
    assert any((finished / "tensorboard").iterdir())


def test_the_log_tells_the_run_and_every_term_at_every_step(finished: Path) -> None:
    facts, *steps = records(finished)
    assert facts["step"] == 0
    assert (facts["training_crops"], facts["steps"], facts["pairs_per_epoch"]) == (32, 4, 8)
    assert facts["pose_pairs"] > 0
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert [record["epoch"] for record in steps] == [0, 0, 1, 1]
    terms = {
        "loss_reconstruction", "loss_adversarial", "loss_semantic", "loss_quartet", "loss_identity",
        "loss_appearance_discriminator", "loss_pose_discriminator",
    }  # fmt: skip
    assert all(terms <= record.keys() for record in steps)
    assert [record["learning_rate_generator"] for record in steps] == pytest.approx([2e-4, 2e-4, 2e-4, 1e-4])


def test_a_finished_run_gives_a_generator_and_an_embedder_that_know_its_people(finished: Path) -> None:
    checkpoint = latest_checkpoint(finished)
    assert checkpoint.identities == (1, 2, 3, 4)
    assert (checkpoint.step, checkpoint.stage) == (4, "joint")
    generator, embedder = load_generator(finished), load_embedder(finished)
    with torch.no_grad():
        image = generator(torch.zeros(1, 3, 64, 32), torch.zeros(1, 18, 64, 32), torch.zeros(1, 18, 64, 32))
        assert embedder(image)["logits"].shape == (1, 4)


def test_the_seed_decides_the_run(crops: CropTable, tiny_recipe: Build, finished: Path, tmp_path: Path) -> None:
    again = train_joint(tiny_recipe(), crops, tmp_path / "again", progress=False)
    assert_equal_weights(checkpoint_folders(again)[-1], checkpoint_folders(finished)[-1])
    other = train_joint(tiny_recipe(seed=1), crops, tmp_path / "other", progress=False)
    first, second = weights(checkpoint_folders(finished)[-1]), weights(checkpoint_folders(other)[-1])
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


# --- ablations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "gone_networks", "gone_terms"),
    [
        (
            {"adversarial": 0},
            {"appearance_discriminator", "pose_discriminator"},
            {"adversarial", "appearance_discriminator", "pose_discriminator"},
        ),
        ({"appearance_discriminator": False}, {"appearance_discriminator"}, {"appearance_discriminator"}),
        ({"pose_discriminator": False}, {"pose_discriminator"}, {"pose_discriminator"}),
        ({"reconstruction": 0}, set(), {"reconstruction"}),
        ({"semantic": 0}, set(), {"semantic"}),
        ({"quartet": 0}, set(), {"quartet"}),
        ({"identity": 0}, set(), {"identity"}),
        (
            {"semantic": 0, "quartet": 0, "identity": 0},
            {"embedder"},
            {"semantic", "quartet", "identity"},
        ),
        ({"saturating": True}, set(), set()),
        ({"quartets_with_generated": False}, set(), set()),
    ],
    ids=str,
)
def test_a_switched_off_term_takes_its_network_with_it(
    batch: PosePairBatch,
    tiny_recipe: Build,
    fabric: Fabric,
    losses: dict,
    gone_networks: set[str],
    gone_terms: set[str],
) -> None:
    recipe = tiny_recipe(losses=losses)
    networks = build(recipe, fabric)
    assert set(networks.plain) == set(networks.wrapped) == set(networks.optimisers) == ALL - gone_networks
    before = snapshot(networks)
    terms = training_step(networks, batch, recipe, 1, fabric).losses
    every = {"reconstruction", "adversarial", "semantic", "quartet", "identity"}
    assert set(terms) == (every | {"appearance_discriminator", "pose_discriminator"}) - gone_terms
    assert all(math.isfinite(value) for value in terms.values())
    assert moved(networks, before) == ALL - gone_networks


def test_an_ablated_run_saves_only_the_networks_that_it_trained(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    recipe = tiny_recipe(losses={"adversarial": 0, "semantic": 0, "quartet": 0, "identity": 0})
    run = train_joint(recipe, crops, tmp_path / "run", progress=False)
    assert {path.stem for path in checkpoint_folders(run)[-1].glob("*.safetensors")} == {"generator"}
    assert losses_logged(run) == {"loss_reconstruction"}
    with pytest.raises(InputError, match="has not trained a embedder"):
        load_embedder(run)


@pytest.mark.parametrize(
    "losses",
    [
        {"adversarial": 0, "reconstruction": 0, "semantic": 0, "quartet": 0, "identity": 0},
        {"reconstruction": 0, "semantic": 0, "quartet": 0, "identity": 0, "adversarial_warmup": 2},
    ],
    ids=["every term off", "adversarial term alone with a warm-up"],
)
def test_a_recipe_without_any_term_to_learn_from_is_refused_as_a_mistake(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path, losses: dict
) -> None:
    with pytest.raises(InputError, match="losses"):
        train_joint(tiny_recipe(losses=losses), crops, tmp_path / "run", progress=False)


# --- who learns from what ----------------------------------------------------------------------------------


def test_the_discriminator_step_moves_the_discriminators_alone(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    networks = build(tiny_recipe(), fabric)
    source, target = to_float(batch.source_images), to_float(batch.target_images)
    generated = networks.wrapped["generator"](source, batch.source_poses, batch.target_poses)
    before = snapshot(networks)
    conditions = {"appearance_discriminator": source, "pose_discriminator": batch.target_poses}
    terms = discriminator_step(networks, conditions, target, generated.detach(), fabric, 1e4)
    assert moved(networks, before) == set(conditions) == set(terms)
    for name in ("generator", "embedder"):
        assert all(parameter.grad is None for parameter in networks.plain[name].parameters())


def test_discriminators_learn_to_tell_real_from_generated(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    recipe = tiny_recipe(
        joint={"discriminators": {"learning_rate": 0.01}}, discriminator={"base_width": 8, "layers": 2}
    )
    networks = build(recipe, fabric)
    source, target = to_float(batch.source_images), to_float(batch.target_images)
    conditions = {"appearance_discriminator": source, "pose_discriminator": batch.target_poses}
    generated = torch.zeros_like(target)
    history = [discriminator_step(networks, conditions, target, generated, fabric, 1e4) for _ in range(60)]
    for name, condition in conditions.items():
        assert history[-1][name] < 0.5 * history[0][name]
        judge = networks.plain[name]
        assert judge(condition, target).mean() > 0 > judge(condition, generated).mean()


def test_the_joint_step_moves_generator_and_embedder_and_leaves_the_discriminators(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    networks = build(recipe, fabric)
    monkeypatch.setattr(joint, "discriminator_step", lambda *_: {})
    before = snapshot(networks)
    terms = training_step(networks, batch, recipe, 1, fabric)
    assert "adversarial" in terms.losses
    assert moved(networks, before) == {"generator", "embedder"}
    for name in ("appearance_discriminator", "pose_discriminator"):
        parameters = list(networks.plain[name].parameters())
        assert all(parameter.grad is None for parameter in parameters)
        assert all(parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("term", ["reconstruction", "adversarial", "semantic", "quartet", "identity"])
def test_every_term_teaches_the_generator(batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric, term: str) -> None:
    others = {"reconstruction", "adversarial", "semantic", "quartet", "identity"} - {term}
    recipe = tiny_recipe(losses=dict.fromkeys(others, 0.0))
    networks = build(recipe, fabric)
    training_step(networks, batch, recipe, 1, fabric)
    assert any(p.grad is not None and p.grad.any() for p in networks.plain["generator"].parameters())


def test_real_quartets_alone_teach_the_generator_nothing(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    losses = {"reconstruction": 0, "adversarial": 0, "semantic": 0, "identity": 0, "quartets_with_generated": False}
    recipe = tiny_recipe(losses=losses)
    networks = build(recipe, fabric)
    networks.plain["embedder"].eval()  # batch statistics would tie real images to generated ones
    training_step(networks, batch, recipe, 1, fabric)
    assert not any(p.grad is not None and p.grad.any() for p in networks.plain["generator"].parameters())


def test_each_discriminator_judges_against_its_own_condition(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    recipe = tiny_recipe(losses={"semantic": 0, "quartet": 0, "identity": 0})
    networks = build(recipe, fabric)
    for name in ("appearance_discriminator", "pose_discriminator"):
        networks.plain[name].eval()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name in ("appearance_discriminator", "pose_discriminator"):
        seen[name] = []
        networks.plain[name].register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs))
    logged = training_step(networks, batch, recipe, 1, fabric)
    target = to_float(batch.target_images)
    conditions = {
        "appearance_discriminator": to_float(batch.source_images),
        "pose_discriminator": batch.target_poses,
    }
    generated = seen["pose_discriminator"][1][1]
    for name, condition in conditions.items():
        real, fake, judged = seen[name]
        assert all(torch.equal(inputs[0], condition) for inputs in (real, fake, judged))
        assert torch.equal(real[1], target)
        assert torch.equal(fake[1], generated)
        assert torch.equal(judged[1], generated)
        assert not fake[1].requires_grad
        assert judged[1].requires_grad
    with torch.no_grad():
        expected = sum(
            generator_adversarial_loss(networks.plain[name](condition, generated))
            for name, condition in conditions.items()
        )
    assert logged.losses["adversarial"] == pytest.approx(expected.item(), rel=1e-4)


# --- warm-ups ----------------------------------------------------------------------------------------------


def test_discriminators_rest_for_exactly_the_warmup(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    recipe = tiny_recipe(losses={"adversarial_warmup": 2})
    run = train_joint(recipe, crops, tmp_path / "run", progress=False)
    with_adversary = ["loss_adversarial" in record for record in records(run)[1:]]
    assert with_adversary == [False, False, True, True]
    assert ["loss_pose_discriminator" in record for record in records(run)[1:]] == with_adversary


def test_during_the_adversarial_warmup_only_generator_and_embedder_move(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    recipe = tiny_recipe(losses={"adversarial_warmup": 10})
    networks = build(recipe, fabric)
    before = snapshot(networks)
    terms = training_step(networks, batch, recipe, 5, fabric)
    assert moved(networks, before) == {"generator", "embedder"}
    assert not terms.losses.keys() & {"adversarial", "appearance_discriminator", "pose_discriminator"}


def test_during_the_semantic_warmup_the_term_is_logged_and_not_learned(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    only_semantic = dict.fromkeys(("reconstruction", "adversarial", "quartet", "identity"), 0.0)
    recipe = tiny_recipe(losses=only_semantic | {"semantic_warmup": 10, "semantic_ramp": 4})
    networks = build(recipe, fabric)
    before = snapshot(networks)
    terms = training_step(networks, batch, recipe, 5, fabric)
    assert terms.losses["semantic"] > 0
    assert moved(networks, before) == set()
    training_step(networks, batch, recipe, 12, fabric)
    assert moved(networks, before) == {"generator", "embedder"}


def test_the_semantic_term_can_move_the_generator_alone(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    only_semantic = dict.fromkeys(("reconstruction", "adversarial", "quartet", "identity"), 0.0)
    found = {}
    for teaches in (True, False):
        recipe = tiny_recipe(losses=only_semantic | {"semantic_teaches_embedder": teaches})
        networks = build(recipe, fabric)
        before = snapshot(networks)
        report = training_step(networks, batch, recipe, 5, fabric)
        found[teaches] = report.losses["semantic"], moved(networks, before)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4)
    assert found[True][1] == {"generator", "embedder"}
    assert found[False][1] == {"generator"}


def test_the_perceptual_term_moves_the_generator_alone_and_leaves_the_embedders_statistics(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    none = dict.fromkeys(("reconstruction", "adversarial", "semantic", "quartet", "identity"), 0.0)
    networks = build(tiny_recipe(losses=none | {"perceptual": 1, "semantic_warmup": 10}), fabric)
    before = snapshot(networks)
    report = training_step(
        networks, batch, tiny_recipe(losses=none | {"perceptual": 1, "semantic_warmup": 10}), 5, fabric
    )
    assert report.losses["perceptual"] > 0
    assert moved(networks, before) == set()
    training_step(networks, batch, tiny_recipe(losses=none | {"perceptual": 1}), 12, fabric)
    assert moved(networks, before) == {"generator"}


def test_an_embedder_that_stays_a_judge_learns_from_real_images_alone(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def identity(logits: Tensor, labels: Tensor) -> Tensor:
        seen["labels"] = labels.tolist()
        return logits.sum()

    def quartets(labels: list[int], drawable: list[bool], random: Any) -> Any:
        seen["drawable"] = drawable
        return batch_quartets(labels, drawable, random)

    monkeypatch.setattr(joint, "identity_loss", identity)
    monkeypatch.setattr(joint, "batch_quartets", quartets)
    for learns, each in ((True, 3), (False, 2)):
        recipe = tiny_recipe(losses={"embedder_learns_generated": learns})
        training_step(build(recipe, fabric), batch, recipe, 1, fabric)
        assert seen["labels"] == batch.labels.repeat_interleave(each).tolist()
        assert seen["drawable"] == [True, True, learns] * len(batch)


def test_the_structure_term_is_learned_where_it_has_a_weight(
    batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric
) -> None:
    only = dict.fromkeys(("adversarial", "semantic", "quartet", "identity"), 0.0)
    moved_to = []
    for structure in (0.0, 0.3):
        recipe = tiny_recipe(losses=only | {"reconstruction": 2, "structure": structure})
        networks = build(recipe, fabric)
        before = snapshot(networks)
        report = training_step(networks, batch, recipe, 1, fabric)
        assert set(report.losses) == {"reconstruction", *(["structure"] if structure else [])}
        assert moved(networks, before) == {"generator"}
        moved_to.append(networks.plain["generator"].pagn.to_image[1].weight.detach().clone())
    assert not torch.equal(*moved_to)


@pytest.mark.parametrize("generator", [{"texture": "limbs", "cameras": True}, {"start": "appearance"}], ids=str)
def test_what_goes_beyond_the_paper_trains_and_comes_back_from_its_checkpoint(
    generator: dict[str, Any], crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    recipe = tiny_recipe(generator=generator)
    run = train_joint(recipe, crops, tmp_path / "run", progress=False)
    kept = load_file(latest_checkpoint(run).folder / "generator.safetensors")
    loaded = load_generator(run)
    assert all(torch.equal(value, kept[name]) for name, value in loaded.state_dict().items())
    if loaded.camera_code is not None:
        seen = {crop.camera for crop in crops.train}
        learned = loaded.camera_code.codes.detach().flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert set(learned) - {0} <= seen
        assert learned


def test_the_ramp_scales_the_adversarial_gradient(batch: PosePairBatch, tiny_recipe: Build, fabric: Fabric) -> None:
    losses = dict.fromkeys(("reconstruction", "semantic", "quartet", "identity"), 0.0)
    recipe = tiny_recipe(losses=losses | {"adversarial_ramp": 4})

    def gradient(step: int) -> Tensor:
        networks = build(recipe, fabric)
        training_step(networks, batch, recipe, step, fabric)
        return networks.plain["generator"].pagn.to_image[1].weight.grad

    full = gradient(50)
    torch.testing.assert_close(gradient(1), full / 4, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient(3), full * 3 / 4, rtol=1e-3, atol=1e-6)


# --- resuming ----------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """The finished run as it stood after its first checkpoint."""
    run = tmp_path / "interrupted"
    shutil.copytree(finished, run)
    shutil.rmtree(checkpoint_folders(run)[-1])
    return run


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    interrupted: Path, finished: Path, crops: CropTable, tiny_recipe: Build
) -> None:
    torch.rand(5)  # whatever happened in between must not matter
    train_joint(tiny_recipe(), crops, interrupted, resume=True, progress=False)
    assert_equal_weights(checkpoint_folders(interrupted)[-1], checkpoint_folders(finished)[-1])

    def comparable(run: Path) -> list[dict]:
        return [
            {name: value for name, value in record.items() if name not in ("images_per_second", "data_share")}
            for record in records(run)
            if "loss_identity" in record
        ]

    assert comparable(interrupted) == comparable(finished)


def test_resuming_with_another_recipe_is_refused_and_changes_nothing(
    interrupted: Path, crops: CropTable, tiny_recipe: Build
) -> None:
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="another recipe"):
        train_joint(tiny_recipe(losses={"semantic": 3}), crops, interrupted, resume=True, progress=False)
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


def test_a_resumed_run_may_use_other_devices_and_workers(
    interrupted: Path, finished: Path, crops: CropTable, tiny_recipe: Build
) -> None:
    recipe = tiny_recipe(runtime={"workers": 1, "device": "cpu"})
    train_joint(recipe, crops, interrupted, resume=True, progress=False)
    assert_equal_weights(checkpoint_folders(interrupted)[-1], checkpoint_folders(finished)[-1])


def test_resuming_a_finished_run_trains_no_further(
    finished: Path, crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    train_joint(tiny_recipe(), crops, run, resume=True, progress=False)
    assert_equal_weights(checkpoint_folders(run)[-1], checkpoint_folders(finished)[-1])


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    finished: Path, crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "recipe.yaml", run)
    (run / "log.jsonl").write_text('{"step": 0, "stage": "joint"}\n{"step": 1, "stage": "joint", "mark": 1}\n')
    train_joint(tiny_recipe(), crops, run, resume=True, progress=False)
    assert_equal_weights(checkpoint_folders(run)[-1], checkpoint_folders(finished)[-1])
    assert [record["step"] for record in records(run) if "loss_identity" in record] == [1, 2, 3, 4]
    assert not any("mark" in record for record in records(run))


def test_a_run_goes_on_from_a_checkpoint_that_a_killed_process_left_set_aside(
    interrupted: Path, finished: Path, crops: CropTable, tiny_recipe: Build
) -> None:
    (folder,) = checkpoint_folders(interrupted)
    folder.replace(set_aside_path(folder))
    train_joint(tiny_recipe(), crops, interrupted, resume=True, progress=False)
    assert_equal_weights(checkpoint_folders(interrupted)[-1], checkpoint_folders(finished)[-1])


def test_a_run_goes_on_from_where_its_set_was_moved_to(
    interrupted: Path, finished: Path, world: Path, tiny_recipe: Build, tmp_path: Path
) -> None:
    shutil.copytree(world, tmp_path / "moved")
    recipe = tiny_recipe(data={"root": str(tmp_path / "moved")})
    train_joint(recipe, load_crops(tmp_path / "moved"), interrupted, resume=True, progress=False)
    assert_equal_weights(checkpoint_folders(interrupted)[-1], checkpoint_folders(finished)[-1])


def test_another_kind_of_run_is_not_taken_over_before_its_first_checkpoint(
    finished: Path, crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "recipe.yaml", run)
    (run / "run.json").write_text(json.dumps({"stage": "reid", "training_set": crops.train.fingerprint}))
    with pytest.raises(InputError, match="is a reid run"):
        train_joint(tiny_recipe(), crops, run, resume=True, progress=False)
    (run / "run.json").write_text("[")
    with pytest.raises(InputError, match=r"run\.json cannot be used"):
        train_joint(tiny_recipe(), crops, run, resume=True, progress=False)


def test_resuming_on_other_people_is_refused(interrupted: Path, crops: CropTable, tiny_recipe: Build) -> None:
    others = crops.with_crops(replace(crop, identity=crop.identity + 100) for crop in crops.train)
    with pytest.raises(InputError, match="other training crops"):
        train_joint(tiny_recipe(), others, interrupted, resume=True, progress=False)


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_left_alone(finished: Path, crops: CropTable, tiny_recipe: Build) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already holds files"):
        train_joint(tiny_recipe(), crops, finished, progress=False)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("left", [None, (), (".lock", ".recipe.yaml.partial-17"), (".lock", "run.json")])
def test_resuming_what_never_began_begins_it_and_says_so(
    left: tuple[str, ...] | None,
    crops: CropTable,
    tiny_recipe: Build,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    if left is not None:
        run.mkdir()
        for name in left:
            (run / name).write_bytes((finished / name).read_bytes() if name == "run.json" else b"")
    train_joint(tiny_recipe(), crops, run, resume=True, progress=False)
    said = capsys.readouterr().err
    assert said.count("holds no checkpoint yet; training begins at its first step.\n") == 1
    assert latest_checkpoint(run).digest("generator") == latest_checkpoint(finished).digest("generator")


def test_a_folder_of_something_else_is_not_resumed(crops: CropTable, tiny_recipe: Build, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match="holds no run to resume, but something else"):
        train_joint(tiny_recipe(), crops, tmp_path, resume=True, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_crops_that_cannot_be_trained_on_leave_no_run_behind(
    crops: CropTable, tiny_recipe: Build, tmp_path: Path
) -> None:
    without_training = crops.with_crops([*crops.query, *crops.gallery])
    with pytest.raises(InputError, match="at least 3"):
        train_joint(tiny_recipe(), without_training, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- two processes -----------------------------------------------------------------------------------------


def test_two_processes_end_with_equal_weights(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "posereid.cli", "train", "recipes/smoke.yaml", "--out", str(run),
            "--data.root", str(world), "--runtime.devices", "2", "--runtime.device", "cpu",
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    facts, *steps, last = records(run)
    assert facts["processes"] == 2
    assert len(steps) == 8
    assert last["weight_difference"] == 0.0
    assert done.stdout.count("trained; next") == 1
    assert latest_checkpoint(run).step == 8
