"""What goes beyond the paper's generator: the source's cloth laid over the target pose, and the target's camera.

Both are parts of their own beside PAAN and PAGN, which stay as they are; a recipe chooses them
(``generator.texture``, ``generator.cameras``).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from posereid.generator.encoders import convolution
from posereid.generator.limbs import PosedPictures, correspondence, joints_of_maps
from posereid.pose.joints import JOINT_COUNT

LIMBS_VERSION = 1
"""Raised whenever :mod:`posereid.generator.limbs` would lay the same pixels elsewhere: no weight tells."""

MOST_CAMERAS = 64
"""Cameras that a generator can tell apart; one with a higher number is drawn like one that it never saw."""


class TextureNetwork(nn.Module):
    """Carries the source's pixels to the target pose and encodes them for every scale of PAGN.

    Reads the carried picture, its confidence, which way both people face, and P_t: 24 channels. ``widths`` are
    PAAN's; the maps have the widths and scales that PAGN's blocks give.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first = widths[0]
        inputs = 3 + 1 + 2 + JOINT_COUNT
        self.encoder = nn.Sequential(convolution(inputs, first), convolution(first, first))
        self.down = nn.ModuleList(convolution(wide, wider, stride=2) for wide, wider in pairwise(widths[:-1]))
        self.gate = nn.Conv2d(2 * first, 1, 3, padding=1)
        # Colours stay as they are until something is learned.
        self.tone = nn.Linear(widths[-1], 12)
        nn.init.zeros_(self.tone.weight)
        nn.init.zeros_(self.tone.bias)

    @staticmethod
    def source(images: Float[Tensor, "b 3 h w"], poses: Float[Tensor, "b 18 h w"]) -> PosedPictures:
        """What of source crops serves every target pose: their pixels, and their joints from their heat maps."""
        return PosedPictures(images, *joints_of_maps(poses))

    @staticmethod
    def carried(source: PosedPictures, target_pose: Float[Tensor, "b 18 h w"]) -> Float[Tensor, "b 6 h w"]:
        """The carried picture (0 where nothing is known), its confidence in [0, 1], and both turns, each a plane."""
        with torch.no_grad(), torch.autocast(target_pose.device.type, enabled=False):
            found = correspondence(source, target_pose.float())
            confidence = found.confidence[:, None]
            turns = found.turn[..., None, None].expand(-1, -1, *target_pose.shape[-2:])
            return torch.cat([found.carried(source.images) * confidence, confidence, turns], dim=1)

    def toned(
        self, carried: Float[Tensor, "b 6 h w"], appearance: Float[Tensor, "b c hn wn"]
    ) -> Float[Tensor, "b 6 h w"]:
        """The carried picture in the target's light: one affine map of its colours, read off f_N^I and the camera code.

        Two cameras show one shirt in two colours; a network that lays pixels over a pose would keep the source's.
        """
        change = self.tone(appearance.float().mean(dim=(2, 3))).unflatten(1, (3, 4))
        picture, confidence = carried[:, :3], carried[:, 3:4]
        mixed = torch.einsum("bij,bjhw->bihw", change[:, :, :3], picture)
        return torch.cat([picture + mixed + change[:, :, 3, None, None] * confidence, carried[:, 3:]], dim=1)

    def forward(
        self, carried: Float[Tensor, "b 6 h w"], target_pose: Float[Tensor, "b 18 h w"]
    ) -> list[Float[Tensor, "b c hs ws"]]:
        """Maps for PAGN's blocks, from the smallest scale to the picture's own."""
        maps = [self.encoder(torch.cat([carried, target_pose.to(carried.dtype)], dim=1))]
        for block in self.down:
            maps.append(block(maps[-1]))
        return maps[::-1]

    def blended(
        self,
        drawn: Float[Tensor, "b 3 h w"],
        carried: Float[Tensor, "b 6 h w"],
        image: Float[Tensor, "b c h w"],
        texture: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b 3 h w"]:
        """The drawn picture with as much of the carried one as the network chooses, pixel by pixel.

        Never more than the confidence: where nothing was carried, the drawing stays.
        """
        share = torch.sigmoid(self.gate(torch.cat([image, texture], dim=1)).float())
        # The carried picture is already weighed by its confidence; its new colours may leave the range.
        return (drawn * (1 - share * carried[:, 3:4]) + share * carried[:, :3]).clamp(-1, 1)


class CameraCode(nn.Module):
    """What each camera's pictures look like, learned as a map that is added to f_N^I before PAGN starts.

    A camera's light and backdrop are no matter of person or pose, and neither says which camera a target comes from.
    Code 0 stands for any camera; it learns from the pairs that training gives without their camera.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        # A code that is never trained stays zero, which tells unknown cameras from known ones.
        self.codes = nn.Parameter(torch.zeros(MOST_CAMERAS + 1, channels, height, width))

    def forward(self, cameras: Int[Tensor, " b"] | None, batch: int) -> Float[Tensor, "b c hn wn"]:
        """The codes of cameras by number, from 1, below 0 for its mirrored view.

        0, None for all, and cameras never trained with are any camera.
        """
        if cameras is None:
            return self.codes[:1].expand(batch, -1, -1, -1)
        numbers = torch.where(cameras.abs() <= MOST_CAMERAS, cameras.abs(), 0)
        if not self.training:
            known = self.codes.detach().flatten(1).any(dim=1)
            numbers = torch.where(known[numbers], numbers, 0)
        codes = self.codes[numbers]
        return torch.where((cameras < 0)[:, None, None, None], codes.flip(-1), codes)
