from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from posereid.augmentation.drawing import draw
from posereid.config import FusionRecipe, Recipe
from posereid.data.batches import CropImages, to_float
from posereid.data.crops import Crop, CropTable
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.features import embed_crops
from posereid.fusion import canonical_targets, embed_parts
from posereid.fusion.costs import COSTS
from posereid.fusion.parts import CANONICAL_ORDER
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.files import write_keypoints
from posereid.pose.joints import Joints
from posereid.training.checkpoint import new_generator

SIZE = (64, 32)
POSES = [canonical_pose(name, *SIZE) for name in ("front", "back")]


@pytest.fixture(scope="module")
def some(crops: CropTable) -> list[Crop]:
    """Five crops with joints, and after the first of them one without and one without a hip."""
    posed = [crop for crop in crops.gallery if crop.joints is not None and crop.joints.has_torso][:5]
    joints = posed[1].joints
    assert joints is not None
    present = joints.present.copy()
    present[8] = False
    lame = Joints(joints.xy * present[:, None], present)
    return [posed[0], replace(posed[1], joints=None), replace(posed[1], joints=lame), *posed[1:]]


def test_each_part_is_what_its_definition_says(
    embedder: Embedder, generator: PoseTransferGenerator, discriminator: PatchDiscriminator, some: list[Crop]
) -> None:
    parts = embed_parts(
        embedder,
        some,
        embedder_digest="e",
        generator=generator,
        discriminator=discriminator,
        poses=POSES,
        batch_size=3,
    )
    assert parts.has_pose.tolist() == [True, False, False, True, True, True, True]
    assert parts.without_pose == 2
    assert np.allclose(parts.own, embed_crops(embedder, some), atol=1e-5)
    images = CropImages(some, *SIZE)
    with torch.no_grad():
        for n in range(len(some)):
            image = images.image(n)[None]
            assert np.allclose(parts.flipped[n], embedder.embed(to_float(image.flip(-1)))[0].numpy(), atol=1e-5)
            for k, pose in enumerate(POSES):
                if not parts.has_pose[n]:
                    assert not parts.posed[n, k].any()
                    assert not parts.posed_flipped[n, k].any()
                    continue
                # The generator encodes the crop once for all poses here, once for each pose there.
                drawn = to_float(draw(generator, image, [images.joints(n)], [pose]))
                assert np.allclose(parts.posed[n, k], embedder.embed(drawn)[0].numpy(), atol=1e-3)
                assert np.allclose(parts.posed_flipped[n, k], embedder.embed(drawn.flip(-1))[0].numpy(), atol=1e-3)
                realism = torch.sigmoid(discriminator(to_float(image), drawn)).mean()
                assert parts.realism[n, k] == pytest.approx(float(realism), abs=1e-3)
    assert parts.judged
    counted = {name: getattr(parts.costs, name).pictures for name in COSTS}
    drawings = dict.fromkeys(("drawing", "judging", "posed", "posed_flipped"), 5 * 2)
    assert counted == {"own": 7, "flipped": 7, **drawings} | {"encoding": 10}
    assert parts.costs.poses == 2
    assert parts.costs.posed_flipped.seconds > 0


def test_without_a_generator_there_are_the_crop_and_its_mirror_image_alone(
    embedder: Embedder, some: list[Crop]
) -> None:
    parts = embed_parts(embedder, some, embedder_digest="e", flips=False)
    assert parts.posed.shape == (7, 0, 128)
    assert parts.realism.shape == (7, 0)
    assert not parts.flipped.any()
    assert not parts.flips
    assert not parts.judged
    assert np.allclose(parts.own, embed_crops(embedder, some), atol=1e-5)


def test_no_crops_give_empty_parts(embedder: Embedder, generator: PoseTransferGenerator) -> None:
    parts = embed_parts(embedder, [], embedder_digest="e", generator=generator, poses=POSES)
    assert len(parts) == 0
    assert parts.posed.shape == (0, 2, 128)


def test_a_generator_of_other_crops_than_the_embedder_draws_at_its_own_size(
    embedder: Embedder, tiny_recipe: Callable[..., Recipe], some: list[Crop]
) -> None:
    torch.manual_seed(3)
    larger = new_generator(tiny_recipe(data={"height": 96, "width": 48})).eval()
    poses = [canonical_pose("left", 96, 48)]
    parts = embed_parts(embedder, some[:1], embedder_digest="e", generator=larger, poses=poses)
    images = CropImages(some, 96, 48)
    drawn = draw(larger, images.image(0)[None], [images.joints(0)], poses)
    shrunk = torch.nn.functional.interpolate(to_float(drawn), SIZE, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = embedder.embed(shrunk)[0].numpy()
    assert np.allclose(parts.posed[0, 0], expected, atol=1e-3)


def test_networks_are_left_in_their_mode(
    embedder: Embedder, generator: PoseTransferGenerator, some: list[Crop]
) -> None:
    quiet = embed_parts(embedder, some[:2], embedder_digest="e", generator=generator, poses=POSES)
    generator.train()
    try:
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        again = embed_parts(embedder, some[:2], embedder_digest="e", generator=generator, poses=POSES)
        assert generator.training
        assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    finally:
        generator.eval()
    assert np.array_equal(quiet.posed, again.posed)


def test_what_cannot_be_embedded_is_said(embedder: Embedder, some: list[Crop]) -> None:
    with pytest.raises(InputError, match="batch size is 0"):
        embed_parts(embedder, some, embedder_digest="e", batch_size=0)
    with pytest.raises(ValueError, match="drawn by a generator"):
        embed_parts(embedder, some, embedder_digest="e", poses=POSES)
    with pytest.raises(InputError, match="no such file"):
        embed_parts(embedder, [replace(some[0], path=Path("nowhere.jpg"))], embedder_digest="e")


def test_the_first_poses_look_in_all_directions_and_all_eight_are_there() -> None:
    assert sorted(CANONICAL_ORDER) == sorted(CANONICAL_POSES)
    targets = canonical_targets(FusionRecipe(poses=4), SIZE)
    assert [name for name, _ in targets] == ["front", "back", "left", "right"]
    assert np.array_equal(targets[1][1].xy, canonical_pose("back", *SIZE).xy)


def test_poses_of_a_file_are_scaled_to_the_generators_crops(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    pose = canonical_pose("left")
    write_keypoints({"one": pose, "two": canonical_pose("back")}, path)
    ((name, joints),) = canonical_targets(FusionRecipe(poses=1, pose_file=path), (256, 192))
    assert name == "one"
    expected = (np.rint(pose.xy[pose.present]) + 0.5) * (3, 2) - 0.5
    assert np.allclose(joints.xy[joints.present], expected)


@pytest.mark.parametrize(
    ("rows", "poses", "message"),
    [
        (0, 1, "found no pose"),
        (2, 3, "fusion.poses is 3, and there are 2 in .*poses.csv; ask for 1 to 2"),
        (2, 0, "fusion.poses is 0"),
        (None, 9, "fusion.poses is 9, and there are 8 in the named poses"),
    ],
)
def test_poses_that_are_not_there_are_an_input_error(
    rows: int | None, poses: int, message: str, tmp_path: Path
) -> None:
    path = None if rows is None else tmp_path / "poses.csv"
    if path is not None and rows is not None:
        write_keypoints({f"pose{n}": POSES[0] for n in range(rows)}, path)
    recipe = FusionRecipe.model_construct(poses=poses, pose_file=path)
    with pytest.raises(InputError, match=message):
        canonical_targets(recipe, SIZE)


def test_a_pose_without_joints_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    write_keypoints({"empty": Joints(np.zeros((18, 2), np.float32), np.zeros(18, bool))}, path)
    with pytest.raises(InputError, match="'empty' without a joint"):
        canonical_targets(FusionRecipe(poses=1, pose_file=path), SIZE)
