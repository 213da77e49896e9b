"""One discriminator class, two instances: D_I and D_P (sections 3.3 and 3.4, Figure 7)."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from posereid.pose.joints import JOINT_COUNT


class PatchDiscriminator(nn.Module):
    """Judges whether an image goes with its condition, patch by patch.

    D_I: the condition is I_c, 3 + 3 channels (equation 7). D_P: the condition is P_t, 18 + 3 channels
    (equation 8). Convolutions with batch normalisation and ReLU, each halving the resolution, then one channel
    of logits; the sigmoid of section 3.4 is inside the loss, where it is numerically safe.
    """

    def __init__(self, condition_channels: int, base_width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [condition_channels + 3, *(base_width * min(2**level, 8) for level in range(layers))]
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.layers.extend(
                [
                    nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
            )
        self.layers.append(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(
        self, condition: Float[Tensor, "b c h w"], image: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 1 h_patches w_patches"]:
        """Patch logits: positive where the pair looks real."""
        return self.layers(torch.cat([condition, image], dim=1))


def appearance_discriminator(base_width: int = 64, layers: int = 3) -> PatchDiscriminator:
    """D_I (equation 7): judges (I_c, I)."""
    return PatchDiscriminator(3, base_width, layers)


def pose_discriminator(base_width: int = 64, layers: int = 3) -> PatchDiscriminator:
    """D_P (equation 8): judges (P_t, I)."""
    return PatchDiscriminator(JOINT_COUNT, base_width, layers)
