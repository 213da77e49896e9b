import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posereid.generator.encoders import Encoder
from posereid.generator.paan import AppearanceBlock, AppearanceNetwork


def randomised(module: nn.Module) -> nn.Module:
    """Normalisation with statistics and scales of its own, so that leaving it out shows."""
    torch.manual_seed(11)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return module.eval()


def convolution_and_norm(layers: nn.Sequential, maps: Tensor, stride: int) -> Tensor:
    """A 3×3 convolution by unfolding and its normalisation by hand, from the layers' weights."""
    kernel, norm = layers[0].weight, layers[1]
    height, width = (size // stride for size in maps.shape[-2:])
    patches = F.unfold(maps, 3, padding=1, stride=stride)
    out = torch.einsum("ok,bkn->bon", kernel.flatten(1), patches).unflatten(2, (height, width))
    mean, deviation = norm.running_mean, (norm.running_var + norm.eps).sqrt()
    scale, shift = norm.weight / deviation, norm.bias - norm.weight * mean / deviation
    return out * scale[:, None, None] + shift[:, None, None]


@torch.no_grad()
def test_a_block_computes_equations_1_and_2() -> None:
    block = randomised(AppearanceBlock(3, 5))
    appearance, pose = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 8, 6)
    next_pose = convolution_and_norm(
        block.pose_transform, convolution_and_norm(block.pose_down, pose, 2).clamp(min=0), 1
    )
    down = convolution_and_norm(block.appearance_down, appearance, 2).clamp(min=0)
    transformed = convolution_and_norm(block.appearance_transform, down, 1)
    mask = 1 / (1 + torch.exp(-next_pose))
    found_appearance, found_pose = block(appearance, pose)
    torch.testing.assert_close(found_pose, next_pose, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_appearance, mask * transformed + down, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_mask_lies_strictly_between_0_and_1_and_reaches_both_sides_of_one_half() -> None:
    torch.manual_seed(0)
    block = AppearanceBlock(4, 8)
    appearance, pose = torch.randn(4, 4, 16, 8), torch.rand(4, 4, 16, 8)
    _, next_pose = block(appearance, pose)
    down = block.appearance_down(appearance)
    mask = (block(appearance, pose)[0] - down) / block.appearance_transform(down)
    torch.testing.assert_close(mask, torch.sigmoid(next_pose), rtol=1e-2, atol=1e-2)
    assert 0 < torch.sigmoid(next_pose).min() < 0.3
    assert 0.7 < torch.sigmoid(next_pose).max() < 1


@torch.no_grad()
def test_the_pose_stream_does_not_see_the_appearance() -> None:
    network = AppearanceNetwork([4, 6, 8]).eval()
    pose = torch.rand(1, 4, 8, 8)
    _, first = network(torch.randn(1, 4, 8, 8), pose)
    _, second = network(torch.randn(1, 4, 8, 8), pose)
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_pose_steers_the_appearance() -> None:
    network = AppearanceNetwork([4, 6, 8]).eval()
    appearance = torch.randn(1, 4, 8, 8)
    first, _ = network(appearance, torch.rand(1, 4, 8, 8))
    second, _ = network(appearance, torch.rand(1, 4, 8, 8))
    assert not torch.allclose(first, second)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
def test_n_blocks_halve_the_resolution_n_times(blocks: int) -> None:
    widths = [4 + level for level in range(blocks + 1)]
    network = AppearanceNetwork(widths).eval()
    appearance, pose = network(torch.randn(1, 4, 64, 32), torch.randn(1, 4, 64, 32))
    assert len(network.blocks) == blocks
    assert appearance.shape == pose.shape == (1, widths[-1], 64 // 2**blocks, 32 // 2**blocks)


def test_the_last_pose_maps_layers_learn_through_the_attention_alone() -> None:
    torch.manual_seed(0)
    network = AppearanceNetwork([4, 6, 8])
    appearance, _ = network(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8))
    appearance.square().sum().backward()
    for name, parameter in network.blocks[-1].pose_transform.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_an_encoder_is_two_convolutions_with_normalisation_and_relu_at_full_resolution() -> None:
    encoder = randomised(Encoder(3, 5))
    image = torch.randn(2, 3, 8, 6)
    first, second = encoder.layers
    expected = convolution_and_norm(second, convolution_and_norm(first, image, 1).clamp(min=0), 1).clamp(min=0)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-5)
