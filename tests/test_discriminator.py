import pytest
import torch

from posereid.discriminator import PatchDiscriminator, appearance_discriminator, pose_discriminator


@torch.no_grad()
@pytest.mark.parametrize(("build", "channels"), [(appearance_discriminator, 3), (pose_discriminator, 18)])
def test_condition_and_image_enter_side_by_side(build, channels: int) -> None:
    judge = build(base_width=8, layers=3)
    assert judge.layers[0].in_channels == channels + 3
    logits = judge(torch.randn(2, channels, 128, 64), torch.randn(2, 3, 128, 64))
    assert logits.shape == (2, 1, 16, 8)


@torch.no_grad()
@pytest.mark.parametrize(("layers", "patches"), [(1, (32, 16)), (2, (16, 8)), (4, (4, 2)), (5, (2, 1))])
def test_each_layer_halves_the_resolution_of_the_judgement(layers: int, patches: tuple[int, int]) -> None:
    judge = PatchDiscriminator(3, base_width=4, layers=layers)
    assert judge(torch.randn(2, 3, 64, 32), torch.randn(2, 3, 64, 32)).shape == (2, 1, *patches)


@torch.no_grad()
def test_logits_are_not_squeezed_into_a_range() -> None:
    judge = appearance_discriminator(8, 2)
    judge.layers[-1].weight.mul_(1000)
    logits = judge(torch.randn(4, 3, 32, 16), torch.randn(4, 3, 32, 16))
    assert logits.min() < -1
    assert logits.max() > 1


def test_gradients_reach_the_image_the_condition_and_every_parameter() -> None:
    torch.manual_seed(0)
    judge = pose_discriminator(8, 3)
    pose, image = torch.rand(4, 18, 64, 32, requires_grad=True), torch.randn(4, 3, 64, 32, requires_grad=True)
    judge(pose, image).square().sum().backward()
    assert pose.grad.any()
    assert image.grad.any()
    assert [name for name, p in judge.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_a_patch_judges_its_own_region_only() -> None:
    judge = appearance_discriminator(8, 2).eval()
    condition, image = torch.randn(1, 3, 64, 32), torch.randn(1, 3, 64, 32)
    changed = image.clone()
    changed[:, :, :4, :4] += 1
    difference = (judge(condition, image) - judge(condition, changed)).abs()[0, 0]
    assert difference[0, 0] > 0
    assert not difference[8:].any()


def test_the_two_discriminators_share_no_weights_and_differ_in_their_input_alone() -> None:
    appearance, pose = appearance_discriminator(8, 3), pose_discriminator(8, 3)
    shapes = [[tuple(p.shape) for p in judge.parameters()] for judge in (appearance, pose)]
    assert shapes[0][1:] == shapes[1][1:]
    assert not {id(p) for p in appearance.parameters()} & {id(p) for p in pose.parameters()}
