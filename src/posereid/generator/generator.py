"""The pose-transfer generator of Figure 2: E_A, E_P, PAAN, PAGN."""

from jaxtyping import Float
from torch import Tensor, nn

from posereid.generator.encoders import Encoder
from posereid.generator.paan import AppearanceNetwork
from posereid.generator.pagn import AdaINReading, GenerationNetwork
from posereid.pose.joints import JOINT_COUNT


class PoseTransferGenerator(nn.Module):
    """Redraws the person of a source image in a target pose (Figure 2).

    I_c and P_c go through the encoders and PAAN to the appearance map f_N^I; PAGN draws it in the pose P_t.
    The last pose map f_N^P has no further use in the paper and is dropped here. ``crop_size`` is the (height,
    width) of the crops that it is trained on; the layers themselves take any multiple of 2^N.
    """

    def __init__(
        self,
        appearance_encoder: Encoder,
        pose_encoder: Encoder,
        paan: AppearanceNetwork,
        pagn: GenerationNetwork,
        crop_size: tuple[int, int] = (128, 64),
    ) -> None:
        super().__init__()
        self.crop_size = crop_size
        self.appearance_encoder = appearance_encoder
        self.pose_encoder = pose_encoder
        self.paan = paan
        self.pagn = pagn

    def forward(
        self,
        source_image: Float[Tensor, "b 3 h w"],
        source_pose: Float[Tensor, "b 18 h w"],
        target_pose: Float[Tensor, "b 18 h w"],
    ) -> Float[Tensor, "b 3 h w"]:
        """(I_c, P_c, P_t) to I_g. Images in [-1, 1], heat maps in [0, 1], H and W divisible by 2^N."""
        appearance, _ = self.paan(self.appearance_encoder(source_image), self.pose_encoder(source_pose))
        return self.pagn(appearance, target_pose)


def block_widths(blocks: int, base_width: int, max_width: int) -> list[int]:
    """Channels of f_0 … f_N: doubled at each halving of the resolution, up to ``max_width``."""
    return [min(base_width * 2**level, max_width) for level in range(blocks + 1)]


def build_generator(
    blocks: int = 4,
    base_width: int = 32,
    max_width: int = 512,
    adain: AdaINReading = "pose_content",
    *,
    crop_size: tuple[int, int] = (128, 64),
) -> PoseTransferGenerator:
    """Compose the paper's generator from its number of blocks N (2 to 5) and its widths.

    Raises ValueError when ``blocks`` lies outside 2 … 5.
    """
    if not 2 <= blocks <= 5:
        raise ValueError(f"blocks must be 2, 3, 4 or 5, got {blocks}")
    widths = block_widths(blocks, base_width, max_width)
    return PoseTransferGenerator(
        appearance_encoder=Encoder(3, widths[0]),
        pose_encoder=Encoder(JOINT_COUNT, widths[0]),
        paan=AppearanceNetwork(widths),
        pagn=GenerationNetwork(widths, JOINT_COUNT, adain),
        crop_size=crop_size,
    )
