"""PAAN, the pose attention-guided appearance network: equations 1 and 2 (section 3.1)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posereid.generator.encoders import convolution


def attention_mask(pose: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Equation 1: A = σ(conv(f^P)), given the pose stream's convolutions conv(f^P). Values in (0, 1)."""
    return torch.sigmoid(pose)


def attended_appearance(
    attention: Float[Tensor, "b c h w"],
    transformed: Float[Tensor, "b c h w"],
    appearance: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Equation 2: f_n^I = A ⊗ conv(f_{n-1}^I) ⊕ f_{n-1}^I.

    Departure: ``appearance`` is the map after the block's strided convolution, because the sum needs equal
    shapes and each block halves the resolution.
    """
    return attention * transformed + appearance


class AppearanceBlock(nn.Module):
    """One module of PAAN: a pose stream and an appearance stream of two convolutions each (Figure 3).

    The first convolution of each stream has stride 2. The second carries no ReLU behind its normalisation: a mask
    σ(ReLU(·)) could never fall below one half, and section 3.1 says that it ranges between 0 and 1.
    (B, inputs, H, W) twice to (B, outputs, H/2, W/2) twice.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

        def second() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))

        self.appearance_down = convolution(inputs, outputs, stride=2)
        self.appearance_transform = second()
        self.pose_down = convolution(inputs, outputs, stride=2)
        self.pose_transform = second()

    def forward(
        self, appearance: Float[Tensor, "b inputs h w"], pose: Float[Tensor, "b inputs h w"]
    ) -> tuple[Float[Tensor, "b outputs h2 w2"], Float[Tensor, "b outputs h2 w2"]]:
        """(f_{n-1}^I, f_{n-1}^P) to (f_n^I, f_n^P)."""
        next_pose = self.pose_transform(self.pose_down(pose))
        appearance = self.appearance_down(appearance)
        transformed = self.appearance_transform(appearance)
        return attended_appearance(attention_mask(next_pose), transformed, appearance), next_pose


class AppearanceNetwork(nn.Module):
    """N appearance blocks in a row, each at half the scale of the one before.

    ``widths`` holds the channels of f_0 … f_N, so that N = len(widths) - 1.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.blocks = nn.ModuleList(AppearanceBlock(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(
        self, appearance: Float[Tensor, "b c0 h w"], pose: Float[Tensor, "b c0 h w"]
    ) -> tuple[Float[Tensor, "b cn hn wn"], Float[Tensor, "b cn hn wn"]]:
        """(f_0^I, f_0^P) to (f_N^I, f_N^P); resolution falls by 2^N."""
        maps, pose = self.scales(appearance, pose)
        return maps[-1], pose

    def scales(
        self, appearance: Float[Tensor, "b c0 h w"], pose: Float[Tensor, "b c0 h w"]
    ) -> tuple[list[Float[Tensor, "b c hs ws"]], Float[Tensor, "b cn hn wn"]]:
        """The same, with the appearance maps of all scales: f_0^I … f_N^I."""
        maps = [appearance]
        for block in self.blocks:
            appearance, pose = block(maps[-1], pose)
            maps.append(appearance)
        return maps, pose
