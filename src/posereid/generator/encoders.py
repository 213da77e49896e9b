"""E_A and E_P: from an image or a pose to the first feature map (section 3)."""

from jaxtyping import Float
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch normalisation, ReLU: (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Encoder(nn.Module):
    """Two convolutions at full resolution, each with batch normalisation and ReLU (section 3).

    E_A and E_P are two instances with weights of their own: 3 channels in for an image in [-1, 1], 18 for heat
    maps in [0, 1]. Maps (B, inputs, H, W) to f_0 (B, width, H, W).
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(convolution(inputs, width), convolution(width, width))

    def forward(self, image: Float[Tensor, "b inputs h w"]) -> Float[Tensor, "b width h w"]:
        """f_0^I for an image, f_0^P for heat maps."""
        return self.layers(image)
