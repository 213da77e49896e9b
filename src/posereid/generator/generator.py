"""The pose-transfer generator of Figure 2: E_A, E_P, PAAN, PAGN."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from posereid.generator.encoders import Encoder
from posereid.generator.limbs import PosedPictures
from posereid.generator.paan import AppearanceNetwork
from posereid.generator.pagn import AdaINReading, Content, GenerationNetwork, Start
from posereid.generator.texture import CameraCode, TextureNetwork
from posereid.pose.joints import JOINT_COUNT


@dataclass(frozen=True)
class EncodedPeople:
    """What the generator keeps of source crops, good for any pose.

    ``appearance`` holds f_N^I, or f_0^I … f_N^I where PAGN looks at all of them; ``texture`` what a texture network
    reads.
    """

    appearance: tuple[Float[Tensor, "b c hs ws"], ...]
    texture: PosedPictures | None = None

    def __len__(self) -> int:
        return len(self.appearance[-1])

    def apart(self) -> list["EncodedPeople"]:
        """Each person by itself."""
        return [self._rows(slice(row, row + 1)) for row in range(len(self))]

    def _rows(self, rows: slice) -> "EncodedPeople":
        appearance = tuple(each[rows] for each in self.appearance)
        parts = self.texture
        if parts is None:
            return EncodedPeople(appearance)
        return EncodedPeople(appearance, PosedPictures(parts.images[rows], parts.keypoints[rows], parts.present[rows]))

    @staticmethod
    def together(people: Sequence["EncodedPeople"]) -> "EncodedPeople":
        """One batch of several, which one generator encoded."""
        scales = zip(*(each.appearance for each in people), strict=True)
        appearance = tuple(torch.cat(maps) for maps in scales)
        textures = [each.texture for each in people if each.texture is not None]
        if not textures:
            return EncodedPeople(appearance)
        images, keypoints, present = (
            torch.cat([getattr(each, name) for each in textures]) for name in ("images", "keypoints", "present")
        )
        return EncodedPeople(appearance, PosedPictures(images, keypoints, present))


class PoseTransferGenerator(nn.Module):
    """Redraws the person of a source image in a target pose (Figure 2).

    I_c and P_c go through the encoders and PAAN to the appearance map f_N^I; PAGN draws it in the pose P_t.
    The last pose map f_N^P has no further use in the paper and is dropped here. ``crop_size`` is the (height,
    width) of the crops that it is trained on; the layers themselves take any multiple of 2^N.

    Beyond the paper, where they are given: ``texture`` lays the source's cloth over the target pose, and
    ``camera_code`` says what the target's camera is like.
    """

    def __init__(
        self,
        appearance_encoder: Encoder,
        pose_encoder: Encoder,
        paan: AppearanceNetwork,
        pagn: GenerationNetwork,
        crop_size: tuple[int, int] = (128, 64),
        texture: TextureNetwork | None = None,
        camera_code: CameraCode | None = None,
    ) -> None:
        super().__init__()
        self.crop_size = crop_size
        self.appearance_encoder = appearance_encoder
        self.pose_encoder = pose_encoder
        self.paan = paan
        self.pagn = pagn
        self.texture = texture
        self.camera_code = camera_code

    def forward(
        self,
        source_image: Float[Tensor, "b 3 h w"],
        source_pose: Float[Tensor, "b 18 h w"],
        target_pose: Float[Tensor, "b 18 h w"],
        target_cameras: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """(I_c, P_c, P_t) to I_g. Images in [-1, 1], heat maps in [0, 1], H and W divisible by 2^N.

        ``target_cameras`` are numbers from 1, below 0 for a mirrored view, 0 for any; a generator without a camera code
        does not look at them.
        """
        return self.draw(self.encode(source_image, source_pose), target_pose, target_cameras)

    def encode(self, source_image: Float[Tensor, "b 3 h w"], source_pose: Float[Tensor, "b 18 h w"]) -> EncodedPeople:
        """E_A, E_P and PAAN: what serves every target pose."""
        scales, _ = self.paan.scales(self.appearance_encoder(source_image), self.pose_encoder(source_pose))
        appearance = tuple(scales if self.pagn.content == "same_scale" else scales[-1:])
        return EncodedPeople(appearance, self.texture.source(source_image, source_pose) if self.texture else None)

    def draw(
        self,
        people: EncodedPeople,
        target_pose: Float[Tensor, "b 18 h w"],
        target_cameras: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """PAGN, with what stands beside it: encoded people in a pose."""
        appearance = people.appearance
        if self.camera_code is not None:
            last = appearance[-1]
            appearance = (*appearance[:-1], last + self.camera_code(target_cameras, len(last)).to(last.dtype))
        if self.texture is None:
            return self.pagn(appearance, target_pose)
        assert people.texture is not None
        carried = self.texture.carried(people.texture, target_pose)
        with torch.autocast(carried.device.type, enabled=False):
            carried = self.texture.toned(carried, appearance[-1])
        textures = self.texture(carried, target_pose)
        image, style = self.pagn.streams(appearance, target_pose, textures)
        drawn = self.pagn.to_image(torch.cat([image, style], dim=1))
        return self.texture.blended(drawn, carried, image, textures[-1])


def block_widths(blocks: int, base_width: int, max_width: int) -> list[int]:
    """Channels of f_0 … f_N: doubled at each halving of the resolution, up to ``max_width``."""
    return [min(base_width * 2**level, max_width) for level in range(blocks + 1)]


def build_generator(
    blocks: int = 4,
    base_width: int = 32,
    max_width: int = 512,
    adain: AdaINReading = "pose_content",
    *,
    start: Start = "pose",
    content: Content = "last",
    crop_size: tuple[int, int] = (128, 64),
    texture: bool = False,
    cameras: bool = False,
) -> PoseTransferGenerator:
    """Compose the paper's generator from its number of blocks N (2 to 5) and its widths.

    ``texture`` and ``cameras`` add the parts that the paper does not have. Raises ValueError when ``blocks`` lies
    outside 2 … 5.
    """
    if not 2 <= blocks <= 5:
        raise ValueError(f"blocks must be 2, 3, 4 or 5, got {blocks}")
    widths = block_widths(blocks, base_width, max_width)
    return PoseTransferGenerator(
        appearance_encoder=Encoder(3, widths[0]),
        pose_encoder=Encoder(JOINT_COUNT, widths[0]),
        paan=AppearanceNetwork(widths),
        pagn=GenerationNetwork(widths, JOINT_COUNT, adain, start, content),
        crop_size=crop_size,
        texture=TextureNetwork(widths) if texture else None,
        camera_code=CameraCode(widths[-1], *(size // 2**blocks for size in crop_size)) if cameras else None,
    )
