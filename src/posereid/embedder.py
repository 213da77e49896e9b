"""E, the re-ID network: a backbone, the 128-d embedding, the identity classifier (sections 3.7 and 4)."""

from typing import Any, TypedDict, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from posereid.backbones import create_backbone
from posereid.processes import SharedDropout

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

EMBEDDING = 128
"""Dimensions of an embedding."""


class Embedded(TypedDict):
    """What E says of a batch. A mapping, because distributed training looks for tensors inside an output."""

    embedding: Float[Tensor, "b 128"]
    """Not normalised."""
    logits: Float[Tensor, "b identities"]


class Embedder(nn.Module):
    """E: image to 128-d embedding and identity logits (section 4).

    The backbone's feature vector goes to two heads: a fully connected embedding layer, used by the quartet and
    semantic-consistency losses and by search; and the classifier, FC-128, batch normalisation, dropout, ReLU, then
    one logit per identity. Images are (B, 3, H, W) in [-1, 1] and are resized to ``input_size`` (height, width);
    ``crop_size`` is the (height, width) that crops have before that.
    """

    image_mean: Tensor
    image_deviation: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        identities: int,
        input_size: tuple[int, int],
        crop_size: tuple[int, int] = (128, 64),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = input_size
        self.crop_size = crop_size
        self.embedding = nn.Linear(features, EMBEDDING)
        self.classifier = nn.Sequential(
            nn.Linear(features, 128),
            nn.BatchNorm1d(128),
            SharedDropout(dropout),
            nn.ReLU(inplace=True),
            nn.Linear(128, identities),
        )
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def feature_vector(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b features"]:
        """The backbone's pooled features of images in [-1, 1]."""
        return self.backbone(self._prepared(images))

    def _prepared(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hi wi"]:
        if tuple(images.shape[-2:]) != self.input_size:
            # In float32: PyTorch's antialiasing knows no bfloat16 on the CPU, which autocast would give it.
            with torch.autocast(images.device.type, enabled=False):
                images = F.interpolate(
                    images.float(), size=self.input_size, mode="bilinear", align_corners=False, antialias=True
                )
        return ((images + 1) / 2 - self.image_mean) / self.image_deviation

    def perceived(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """What E sees: the backbone's maps after each stage, the finest first, and the embedding as a 1 × 1 map."""
        backbone = cast(Any, self.backbone)
        last, stages = backbone.forward_intermediates(self._prepared(images))
        return [*stages, self.embedding(backbone.forward_head(last))[:, :, None, None]]

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Embedded:
        """Embedding and logits, for training."""
        features = self.feature_vector(images)
        return Embedded(embedding=self.embedding(features), logits=self.classifier(features))

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 128"]:
        """Embeddings of unit length, for search: their dot product is the cosine similarity."""
        return F.normalize(self.embedding(self.feature_vector(images)))


def build_embedder(
    identities: int,
    backbone: str = "resnet50",
    *,
    pretrained: bool = True,
    input_size: tuple[int, int] = (256, 128),
    crop_size: tuple[int, int] = (128, 64),
    dropout: float = 0.5,
) -> Embedder:
    """E on any timm backbone.

    Raises InputError when timm has no such backbone, or when its ImageNet weights are asked for and cannot be
    had: training from scratch is a choice that the recipe makes, never a fallback.
    """
    trunk = create_backbone("embedder", backbone, pretrained=pretrained, num_classes=0)
    # Some families end in a layer of another width than their feature maps have.
    features: int = getattr(trunk, "head_hidden_size", None) or trunk.num_features  # type: ignore[assignment]
    return Embedder(trunk, features, identities, input_size, crop_size, dropout=dropout)
