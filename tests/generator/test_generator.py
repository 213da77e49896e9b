import pytest
import torch
from torch import Tensor

from posereid.generator.generator import EncodedPeople, PoseTransferGenerator, block_widths, build_generator
from posereid.generator.pagn import AdaINReading, Content, Start


def inputs(batch: int = 2, height: int = 64, width: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, height, width, generator=random) * 2 - 1
    poses = torch.rand(2, batch, 18, height, width, generator=random)
    return image, poses[0], poses[1]


def small(blocks: int = 2, adain: AdaINReading = "literal") -> PoseTransferGenerator:
    torch.manual_seed(0)
    return build_generator(blocks, base_width=4, max_width=16, adain=adain)


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 64), (64, 32)], ids=str)
@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
def test_the_image_has_the_sources_size_and_lies_in_the_pixel_range(blocks: int, size: tuple[int, int]) -> None:
    generator = small(blocks)
    image = generator(*inputs(2, *size))
    assert image.shape == (2, 3, *size)
    assert image.min() >= -1
    assert image.max() <= 1
    assert len(generator.paan.blocks) == len(generator.pagn.blocks) == blocks


@pytest.mark.parametrize("blocks", [0, 1, 6])
def test_a_number_of_blocks_that_the_paper_does_not_try_is_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match="blocks must be 2, 3, 4 or 5"):
        build_generator(blocks)


def test_widths_double_at_each_halving_up_to_the_largest() -> None:
    assert block_widths(4, 64, 512) == [64, 128, 256, 512, 512]
    assert block_widths(5, 64, 300) == [64, 128, 256, 300, 300, 300]


@torch.no_grad()
def test_a_largest_width_below_the_base_width_still_gives_a_working_generator() -> None:
    assert build_generator(2, base_width=8, max_width=4)(*inputs()).shape == (2, 3, 64, 32)


@pytest.mark.parametrize("adain", ["literal", "pose_content"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_every_parameter_gets_a_gradient(blocks: int, adain: AdaINReading) -> None:
    generator = small(blocks, adain)
    generator(*inputs(4)).square().sum().backward()
    without = [
        name for name, parameter in generator.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


@torch.no_grad()
@pytest.mark.parametrize("adain", ["literal", "pose_content"])
@pytest.mark.parametrize("changed", [0, 1, 2], ids=["source image", "source pose", "target pose"])
def test_every_input_influences_the_image(changed: int, adain: AdaINReading) -> None:
    generator = small(3, adain)  # in training: fresh running statistics would damp every signal
    one, other = inputs(seed=1), inputs(seed=2)
    mixed = tuple(other[n] if n == changed else one[n] for n in range(3))
    assert (generator(*one) - generator(*mixed)).abs().max() > 1e-4


@torch.no_grad()
def test_outside_training_a_sample_does_not_depend_on_its_neighbours() -> None:
    generator = small().eval()
    batch = inputs(3)
    together = generator(*batch)
    alone = torch.cat([generator(*(part[n : n + 1] for part in batch)) for n in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("content", ["last", "same_scale"])
@pytest.mark.parametrize("start", ["pose", "appearance"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_each_start_and_content_of_pagn_draws_and_learns(blocks: int, start: Start, content: Content) -> None:
    torch.manual_seed(0)
    generator = build_generator(blocks, base_width=4, max_width=16, start=start, content=content)
    images, source, target = inputs(4)
    drawn = generator(images, source, target)
    assert drawn.shape == images.shape
    drawn.square().sum().backward()
    without = [name for name, weight in generator.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []
    people = EncodedPeople.together(generator.eval().encode(images, source).apart())
    torch.testing.assert_close(generator.draw(people, target), generator(images, source, target), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_channels_last_computes_the_same_image() -> None:
    generator = small(3).eval()
    batch = inputs()
    contiguous = generator(*batch)
    generator.to(memory_format=torch.channels_last)
    ordered = generator(*(part.contiguous(memory_format=torch.channels_last) for part in batch))
    torch.testing.assert_close(ordered, contiguous, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_seed_decides_the_weights_and_with_them_the_image() -> None:
    images = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        images.append(build_generator(2, 4, 16).eval()(*inputs()))
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2])


@torch.no_grad()
def test_bfloat16_autocast_draws_nearly_the_same_image() -> None:
    generator = small(3).eval()
    exact = generator(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = generator(*inputs()).float()
    assert torch.isfinite(rounded).all()
    assert (rounded - exact).abs().mean() < 0.02


def test_both_encoders_have_the_same_structure_and_weights_of_their_own() -> None:
    generator = small()
    appearance = [type(part) for part in generator.appearance_encoder.modules()]
    pose = [type(part) for part in generator.pose_encoder.modules()]
    assert appearance == pose
    shared = {id(p) for p in generator.appearance_encoder.parameters()} & {
        id(p) for p in generator.pose_encoder.parameters()
    }
    assert not shared


def test_the_papers_size_builds_by_default() -> None:
    generator = build_generator()
    assert len(generator.paan.blocks) == 4
    assert generator.paan.widths == (32, 64, 128, 256, 512)
    assert generator.crop_size == (128, 64)
