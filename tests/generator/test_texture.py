import pytest
import torch
from torch import Tensor

from posereid.generator.generator import EncodedPeople, PoseTransferGenerator, build_generator
from posereid.generator.texture import MOST_CAMERAS, CameraCode, TextureNetwork
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.maps import heat_maps


def poses(names: list[str], height: int = 64, width: int = 32) -> Tensor:
    joints = [canonical_pose(name, height=height, width=width) for name in names]
    xy, present = (
        torch.stack([torch.from_numpy(getattr(each, part)) for each in joints]) for part in ("xy", "present")
    )
    return heat_maps(xy.float(), present, height, width)


def inputs(batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    names = list(CANONICAL_POSES)
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, 64, 32, generator=random) * 2 - 1
    return images, poses(names[:1] * batch), poses([names[(n + 1) % len(names)] for n in range(batch)])


def small(blocks: int = 2, *, texture: bool = True, cameras: bool = True) -> PoseTransferGenerator:
    torch.manual_seed(0)
    return build_generator(blocks, 4, 16, crop_size=(64, 32), texture=texture, cameras=cameras)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
def test_the_image_has_the_sources_size_and_lies_in_the_pixel_range(blocks: int) -> None:
    image = small(blocks)(*inputs(), torch.tensor([1, 2]))
    assert image.shape == (2, 3, 64, 32)
    assert image.min() >= -1
    assert image.max() <= 1


def test_every_parameter_gets_a_gradient() -> None:
    generator = small()
    generator(*inputs(4), torch.tensor([1, 2, 3, 4])).square().sum().backward()
    without = [name for name, weight in generator.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


@torch.no_grad()
def test_without_the_parts_beside_it_the_generator_is_the_papers() -> None:
    plain = small(texture=False, cameras=False)
    assert not [name for name in plain.state_dict() if name.startswith(("texture", "camera_code"))]
    plain.eval()
    images, source, target = inputs()
    appearance, _ = plain.paan(plain.appearance_encoder(images), plain.pose_encoder(source))
    torch.testing.assert_close(plain(images, source, target, torch.tensor([1, 2])), plain.pagn([appearance], target))


@torch.no_grad()
def test_encoding_once_and_drawing_apart_gives_what_drawing_together_gives() -> None:
    generator = small().eval()
    images, source, target = inputs(3)
    together = generator(images, source, target)
    people = EncodedPeople.together(generator.encode(images, source).apart()[::-1])
    torch.testing.assert_close(generator.draw(people, target.flip(0)), together.flip(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_where_nothing_was_carried_the_drawing_stays() -> None:
    texture = TextureNetwork([4, 8, 16])
    drawn = torch.rand(1, 3, 64, 32) * 2 - 1
    carried = torch.zeros(1, 6, 64, 32)
    maps = torch.randn(1, 4, 64, 32)
    torch.testing.assert_close(texture.blended(drawn, carried, maps, maps), drawn)


@torch.no_grad()
def test_where_the_network_trusts_it_the_carried_pixel_is_the_picture() -> None:
    texture = TextureNetwork([4, 8, 16])
    texture.gate.weight.zero_()
    texture.gate.bias.fill_(50)
    drawn, picture = torch.rand(2, 1, 3, 64, 32).mul(2).sub(1)
    carried = torch.cat([picture, torch.ones(1, 1, 64, 32), torch.zeros(1, 2, 64, 32)], dim=1)
    maps = torch.randn(1, 4, 64, 32)
    torch.testing.assert_close(texture.blended(drawn, carried, maps, maps), picture)


@torch.no_grad()
def test_the_carried_picture_in_the_own_pose_is_the_source_weighed_by_its_confidence() -> None:
    images, source, _ = inputs(1)
    carried = TextureNetwork.carried(TextureNetwork.source(images, source), source)
    assert carried.shape == (1, 6, 64, 32)
    sure = carried[:, 3] > 0.3
    expected = images.permute(0, 2, 3, 1)[sure] * carried[:, 3][sure][:, None]
    assert (carried[:, :3].permute(0, 2, 3, 1)[sure] - expected).abs().median() < 0.01


@torch.no_grad()
def test_cameras_change_the_picture_and_unknown_ones_are_any_camera() -> None:
    generator = small().eval()
    assert generator.camera_code is not None
    generator.camera_code.codes[:3].normal_()
    batch = inputs(1)
    any_camera, first, second, unknown, beyond = (
        generator(*batch, torch.tensor([number])) for number in (0, 1, 2, 7, MOST_CAMERAS + 5)
    )
    torch.testing.assert_close(generator(*batch), any_camera)
    torch.testing.assert_close(unknown, any_camera)
    torch.testing.assert_close(beyond, any_camera)
    assert (first - second).abs().max() > 1e-4
    assert (first - any_camera).abs().max() > 1e-4


@torch.no_grad()
def test_a_mirrored_view_has_the_mirrored_code() -> None:
    code = CameraCode(4, 2, 3).eval()
    code.codes[2].normal_()
    plain, mirrored = code(torch.tensor([2, -2]), 2)
    torch.testing.assert_close(mirrored, plain.flip(-1))
    torch.testing.assert_close(code(torch.tensor([-5]), 1), code(None, 1))


@torch.no_grad()
def test_an_untrained_tone_leaves_colours_as_they_are_and_a_trained_one_maps_them_alike_everywhere() -> None:
    texture = TextureNetwork([4, 8, 16])
    carried, appearance = torch.rand(2, 6, 64, 32), torch.randn(2, 16, 16, 8)
    torch.testing.assert_close(texture.toned(carried, appearance), carried)
    # Red becomes half of itself and a tenth brighter, where the picture is sure; the other planes stay.
    texture.tone.bias[0], texture.tone.bias[3] = -0.5, 0.1
    toned = texture.toned(carried, appearance)
    torch.testing.assert_close(toned[:, 0], 0.5 * carried[:, 0] + 0.1 * carried[:, 3])
    torch.testing.assert_close(toned[:, 1:], carried[:, 1:])


def test_a_code_is_learned_for_the_cameras_of_training_alone() -> None:
    code = CameraCode(4, 2, 1)
    optimiser = torch.optim.Adam(code.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(8):
        optimiser.zero_grad()
        code(torch.tensor([0, 1, 3, 3]), 4).sub(1).square().sum().backward()
        optimiser.step()
    learned = code.codes.detach().flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert learned == [0, 1, 3]
