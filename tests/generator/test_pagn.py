import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posereid.generator.pagn import AdaINReading, GenerationBlock, GenerationNetwork

READINGS: tuple[AdaINReading, ...] = ("literal", "pose_content")


def randomised_block(reading: AdaINReading = "literal") -> GenerationBlock:
    torch.manual_seed(7)
    block = GenerationBlock(inputs=4, image_inputs=3, outputs=6, source_channels=5, pose_channels=18, reading=reading)
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return block.eval()


def block_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(8)
    return torch.randn(2, 4, 4, 2), torch.randn(2, 3, 4, 2), torch.rand(2, 18, 4, 2), torch.randn(2, 5, 2, 1)


def spread_out(maps: Tensor) -> Tensor:
    """Maps on the grid of twice the size: each value at the even positions, zeros between."""
    batch, channels, height, width = maps.shape
    spread = maps.new_zeros(batch, channels, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = maps
    return spread


def deconvolution(maps: Tensor, kernel: Tensor) -> Tensor:
    """Each value adds its weighted kernel to the output around it: what a deconvolution of stride 1 does."""
    batch, _, height, width = maps.shape
    size = kernel.shape[-1]
    canvas = maps.new_zeros(batch, kernel.shape[1], height + size, width + size)
    for y in range(height):
        for x in range(width):
            canvas[:, :, y : y + size, x : x + size] += torch.einsum("bi,iokl->bokl", maps[:, :, y, x], kernel)
    return canvas[:, :, 1 : 1 + height, 1 : 1 + width]


def normalised(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    centred = (maps - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return centred * norm.weight.view(shape) + norm.bias.view(shape)


@torch.no_grad()
@pytest.mark.parametrize("reading", READINGS)
def test_a_block_computes_equations_3_to_6(reading: AdaINReading) -> None:
    block = randomised_block(reading)
    appearance, image, pose, source = block_inputs()
    next_appearance, next_image = block(appearance, image, pose, source)

    # a = deconv(f ‖ P_t): the concatenation on the finer grid, one kernel for all its channels.
    joined = torch.cat([spread_out(appearance), spread_out(pose)], dim=1)
    style = normalised(block.style[1], deconvolution(joined, block.style[0].weight)).clamp(min=0)
    # b = conv 1×1 of f_N^I at the block's scale: resized first here, which must not matter.
    resized = F.interpolate(source, size=(8, 4), mode="bilinear", align_corners=False)
    kernel = block.content.weight[:, :, 0, 0]
    content = torch.einsum("oi,bihw->bohw", kernel, resized) + block.content.bias[:, None, None]
    keeps, gives = (content, style) if reading == "literal" else (style, content)
    deviations = [(maps.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt() for maps in (keeps, gives)]
    x = (keeps - keeps.mean((2, 3), keepdim=True)) / deviations[0] * deviations[1]
    x = x + gives.mean((2, 3), keepdim=True)  # equation 3
    torch.testing.assert_close(next_appearance, x + style, rtol=1e-3, atol=1e-4)  # equation 4

    flipped = block.attention[0].weight.flip(-1, -2).transpose(0, 1)
    mask = 1 / (1 + torch.exp(-normalised(block.attention[1], deconvolution(x, flipped))))  # equation 5

    # Equation 6: one deconvolution of the concatenation on the finer grid, whose 4×4 kernel for the attended
    # channels is the block's 3×3 convolution turned round and filled up with zeros.
    attended_kernel = F.pad(block.attended.weight.flip(-1, -2).transpose(0, 1), (0, 1, 0, 1))
    one_kernel = torch.cat([block.image_up.weight, attended_kernel])
    joined = torch.cat([spread_out(image), mask * x], dim=1)
    expected = normalised(block.image_norm[0], deconvolution(joined, one_kernel)).clamp(min=0)
    torch.testing.assert_close(next_image, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_attention_mask_lies_strictly_between_0_and_1_and_reaches_both_sides_of_one_half() -> None:
    torch.manual_seed(0)
    block = GenerationBlock(4, 4, 8, 8, 18, "literal")
    mask = block.attention_mask(torch.randn(4, 8, 16, 8))
    assert 0 < mask.min() < 0.3
    assert 0.7 < mask.max() < 1


@torch.no_grad()
def test_the_attention_decides_how_much_of_x_reaches_the_image() -> None:
    block = randomised_block()
    image, x = torch.randn(1, 3, 4, 2), torch.randn(1, 6, 8, 4)
    without_x = block.next_image(image, torch.zeros_like(x), torch.ones_like(x))
    assert torch.equal(block.next_image(image, x, torch.zeros_like(x)), without_x)
    assert not torch.allclose(block.next_image(image, x, torch.ones_like(x)), without_x)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
def test_n_blocks_double_the_resolution_n_times(blocks: int) -> None:
    widths = [4 + level for level in range(blocks + 1)]
    network = GenerationNetwork(widths).eval()
    height, width = 64, 32
    scales = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: scales.append(output[1].shape))
    source = [torch.randn(1, widths[-1], height // 2**blocks, width // 2**blocks)]
    image = network(source, torch.rand(1, 18, height, width))
    assert image.shape == (1, 3, height, width)
    expected = [(1, widths[level], height // 2**level, width // 2**level) for level in range(blocks - 1, -1, -1)]
    assert [tuple(scale) for scale in scales] == expected


@torch.no_grad()
def test_every_block_sees_the_target_pose_at_its_own_input_scale() -> None:
    network = GenerationNetwork([4, 6, 8]).eval()
    poses = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, __: poses.append(inputs[2]))
    target = torch.rand(1, 18, 16, 8)
    network([torch.randn(1, 8, 4, 2)], target)
    for pose, factor in zip(poses, (4, 2), strict=True):
        cells = target.unfold(2, factor, factor).unfold(3, factor, factor)
        torch.testing.assert_close(pose, cells.mean((-1, -2)))
