"""PAGN, the pose attention-guided generation network: equations 3 to 6 and AdaIN (section 3.2)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posereid.generator.encoders import convolution

AdaINReading = Literal["literal", "pose_content"]
Start = Literal["pose", "appearance"]
Content = Literal["last", "same_scale"]


def adaptive_instance_normalisation(
    content: Float[Tensor, "b c h w"], style: Float[Tensor, "b c hs ws"], epsilon: float = 1e-5
) -> Float[Tensor, "b c h w"]:
    """AdaIN: give each channel of each content map the mean and deviation of the style's.

    σ(style) · (content - μ(content)) / σ(content) + μ(style), statistics over space, per sample and channel
    (Huang and Belongie 2017, equation 8). Statistics are taken in float32 whatever the input's type; a channel
    without variance comes out as the style's mean.
    """
    content_variance, content_mean = torch.var_mean(content.float(), dim=(2, 3), keepdim=True, correction=0)
    style_variance, style_mean = torch.var_mean(style.float(), dim=(2, 3), keepdim=True, correction=0)
    # One multiplication and one addition per pixel: the four statistics are folded first. In float32, because where
    # a channel's mean outweighs its deviation both terms are large and nearly cancel.
    scale = torch.sqrt((style_variance + epsilon) / (content_variance + epsilon))
    shift = style_mean - content_mean * scale
    return torch.addcmul(shift, content.float(), scale).to(content.dtype)


def normalised_feature(
    style: Float[Tensor, "b c h w"], content: Float[Tensor, "b c h w"], reading: AdaINReading
) -> Float[Tensor, "b c h w"]:
    """Equation 3: x = AdaIN(style a, content b), a from the target pose, b from the source's appearance.

    ``literal`` follows the labels under the equation: b takes the statistics of a. ``pose_content`` exchanges the
    roles: a keeps its layout, which is the target's, and takes the statistics of b.
    """
    if reading == "literal":
        return adaptive_instance_normalisation(content, style)
    return adaptive_instance_normalisation(style, content)


class GenerationBlock(nn.Module):
    """One module of PAGN: an appearance stream f^g and an image stream I^g, each to twice its scale (Figure 4)."""

    def __init__(
        self,
        inputs: int,
        image_inputs: int,
        outputs: int,
        source_channels: int,
        pose_channels: int,
        reading: AdaINReading,
    ) -> None:
        super().__init__()
        self.reading: AdaINReading = reading
        self.style = nn.Sequential(
            nn.ConvTranspose2d(inputs + pose_channels, outputs, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )
        self.content = nn.Conv2d(source_channels, outputs, 1)
        self.attention = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.image_up = nn.ConvTranspose2d(image_inputs, outputs, 4, stride=2, padding=1, bias=False)
        self.attended = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.image_norm = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(
        self,
        appearance: Float[Tensor, "b inputs h w"],
        image: Float[Tensor, "b image_inputs h w"],
        target_pose: Float[Tensor, "b joints h w"],
        source_appearance: Float[Tensor, "b source hn wn"],
    ) -> tuple[Float[Tensor, "b outputs h2 w2"], Float[Tensor, "b outputs h2 w2"]]:
        """(f_{n-1}^g, I_{n-1}^g) to (f_n^g, I_n^g) at twice the scale, under P_t and f_N^I."""
        style = self.style(torch.cat([appearance, target_pose], dim=1))
        # A 1×1 convolution commutes with the resize; before it, it runs on the smallest map.
        content = F.interpolate(
            self.content(source_appearance), size=style.shape[-2:], mode="bilinear", align_corners=False
        )
        x = normalised_feature(style, content, self.reading)
        return self.next_appearance(x, style), self.next_image(image, x, self.attention_mask(x))

    @staticmethod
    def next_appearance(x: Float[Tensor, "b c h w"], style: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Equation 4: f_n^g = x + a, with a = deconv(f_{n-1}^g ‖ P_t)."""
        return x + style

    def attention_mask(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Equation 5: A_n = σ(conv(x)), convolution and normalisation inside; in (0, 1).

        Departure: no ReLU before σ, for the reason given in :class:`posereid.generator.paan.AppearanceBlock`.
        """
        return torch.sigmoid(self.attention(x))

    def next_image(
        self,
        image: Float[Tensor, "b c h w"],
        x: Float[Tensor, "b k h2 w2"],
        attention: Float[Tensor, "b k h2 w2"],
    ) -> Float[Tensor, "b k h2 w2"]:
        """Equation 6: I_n^g = deconv(I_{n-1}^g ‖ (A_n ⊗ x)).

        A deconvolution of a concatenation is the sum of its parts' deconvolutions. I_{n-1}^g is at the block's
        input scale and is doubled; A_n ⊗ x already has the output scale and keeps it (stride 1). Together they equal
        one 4×4 deconvolution of the concatenation on the finer grid.
        """
        return self.image_norm(self.image_up(image) + self.attended(attention * x))


class GenerationNetwork(nn.Module):
    """N generation blocks, then the concatenation of I_N^g and f_N^g to an image (section 3.2).

    ``widths`` are PAAN's (f_0 … f_N); block n ends with the width that PAAN had at its scale. The image stream starts
    from f_N^I. The paper gives no start, and leaves two choices open:

    - ``start``, of the appearance stream: the smallest target-pose map (``pose``) or f_N^I (``appearance``);
    - ``content``, what equation 3 takes of the source: f_N^I, resized (``last``), or PAAN's map at the block's own
      scale (``same_scale``).
    """

    def __init__(
        self,
        widths: Sequence[int],
        pose_channels: int = 18,
        reading: AdaINReading = "pose_content",
        start: Start = "pose",
        content: Content = "last",
    ) -> None:
        super().__init__()
        self.start: Start = start
        self.content: Content = content
        ends = list(reversed(widths[:-1]))
        last = widths[-1]
        appearance_inputs = [pose_channels if start == "pose" else last, *ends[:-1]]
        image_inputs = [last, *ends[:-1]]
        sources = [last] * len(ends) if content == "last" else ends
        self.blocks = nn.ModuleList(
            GenerationBlock(inputs, image, outputs, source, pose_channels, reading)
            for inputs, image, outputs, source in zip(appearance_inputs, image_inputs, ends, sources, strict=True)
        )
        self.to_image = nn.Sequential(
            convolution(2 * ends[-1], ends[-1]), nn.Conv2d(ends[-1], 3, 3, padding=1), nn.Tanh()
        )

    def forward(
        self, source: Sequence[Float[Tensor, "b c hs ws"]], target_pose: Float[Tensor, "b joints h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        """f_0^I … f_N^I and the full-size heat maps P_t to the image I^g in [-1, 1].

        Without ``same_scale`` only the last of the maps is looked at, and the others may be missing.
        """
        return self.to_image(torch.cat(self.streams(source, target_pose), dim=1))

    def streams(
        self,
        source: Sequence[Float[Tensor, "b c hs ws"]],
        target_pose: Float[Tensor, "b joints h w"],
        textures: Sequence[Float[Tensor, "b c hs ws"]] | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """I_N^g and f_N^g, what the image is made of.

        ``textures``, which the paper does not have, are maps that are added to the image stream after each block.
        """
        poses = [target_pose]
        for _ in self.blocks:
            poses.append(F.avg_pool2d(poses[-1], 2))
        image = source[-1]
        appearance = poses[-1] if self.start == "pose" else image
        contents = [image] * len(self.blocks) if self.content == "last" else list(reversed(source[:-1]))
        for number, (block, pose, content) in enumerate(zip(self.blocks, reversed(poses[1:]), contents, strict=True)):
            appearance, image = block(appearance, image, pose, content)
            if textures is not None:
                image = image + textures[number]
        return image, appearance
