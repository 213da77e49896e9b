"""Equations 7 to 14 as pure functions: tensors in, scalar out. Weights and schedules are the caller's."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def discriminator_loss(
    real_logits: Float[Tensor, "b *patches"], generated_logits: Float[Tensor, "b *patches"]
) -> Float[Tensor, ""]:
    """Equations 7 and 8, what a discriminator minimises: -E[log D(c, I_t) + log(1 - D(c, I_g))].

    The same function serves D_I (condition I_c) and D_P (condition P_t). Logits, not probabilities: with
    D = σ(l), -log D = softplus(-l) and -log(1 - D) = softplus(l). Means over the batch and its patches.
    """
    return F.softplus(-real_logits).mean() + F.softplus(generated_logits).mean()


def generator_adversarial_loss(
    generated_logits: Float[Tensor, "b *patches"], *, saturating: bool = False
) -> Float[Tensor, ""]:
    """Equations 7 and 8, what the generator minimises.

    By default the non-saturating -log D(c, I_g), whose gradient does not vanish while the discriminator wins;
    ``saturating`` gives the literal term log(1 - D(c, I_g)).
    """
    if saturating:
        return -F.softplus(generated_logits).mean()
    return F.softplus(-generated_logits).mean()


def reconstruction_loss(generated: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Equation 9: L_R = ‖I_g - I'_g‖₁ as a mean over elements; in [0, 2] for images in [-1, 1]."""
    return (generated - target).abs().mean()


def structure_loss(generated: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """1 - SSIM (Wang et al. 2004) of images in [-1, 1], mean over pixels and channels; in [0, 2]. Not in the paper.

    Window and constants are the evaluation's: Gaussian 11 × 11 with σ 1.5, range 2. As a loss beside L1: Zhao et al.
    2017, "Loss functions for image restoration with neural networks".
    """
    _, similarity = structural_similarity_index_measure(
        generated, target, sigma=1.5, data_range=2.0, reduction="none", return_full_image=True
    )
    return 1 - similarity.mean()


def perceptual_loss(
    generated: Sequence[Float[Tensor, "b c h w"]], target: Sequence[Float[Tensor, "b c h w"]]
) -> Float[Tensor, ""]:
    """Mean distance of two sets of feature maps, one a layer: squared L2 between unit vectors over channels, in [0, 4].

    Averaged over pixels, then over layers, as LPIPS does without its learned weights (Zhang et al. 2018, "The
    unreasonable effectiveness of deep features as a perceptual metric"). Not in the paper.
    """
    distances = [
        (F.normalize(one) - F.normalize(other)).square().sum(dim=1).mean()
        for one, other in zip(generated, target, strict=True)
    ]
    return torch.stack(distances).mean()


def semantic_consistency_loss(
    source_embedding: Float[Tensor, "b d"], generated_embedding: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """Equation 10: L_S = ‖E(I_c) - E(I_g)‖₁, mean over elements of embeddings scaled to unit length.

    A sum over the 128 dimensions would weigh the term 128 times more.
    """
    return (F.normalize(source_embedding) - F.normalize(generated_embedding)).abs().mean()


def quartet_loss(
    anchor: Float[Tensor, "n d"],
    positive: Float[Tensor, "n d"],
    negative: Float[Tensor, "n d"],
    other_negative: Float[Tensor, "n d"],
    margin: float = -1.0,
    intra_margin: float = 0.01,
) -> Float[Tensor, ""]:
    """Equation 12: max{2 d(1,2) - d(1,3) - d(4,3), τ₁} + max{d(1,2), τ₂}, mean over quartets.

    d is the squared distance of unit-length embeddings, in [0, 4]. Images 1 and 2 share an identity; 3
    (``negative``) and 4 (``other_negative``) belong to two further, different identities. τ₁ = ``margin`` = -1
    makes the first term a hinge of margin 1, shifted by a constant; τ₂ = ``intra_margin``. The text under the equation
    names (2,3) where the equation has (4,3); the equation is followed.
    """
    anchor, positive, negative, other_negative = (
        F.normalize(part) for part in (anchor, positive, negative, other_negative)
    )
    d12 = (anchor - positive).square().sum(dim=1)
    d13 = (anchor - negative).square().sum(dim=1)
    d43 = (other_negative - negative).square().sum(dim=1)
    return ((2 * d12 - d13 - d43).clamp(min=margin) + d12.clamp(min=intra_margin)).mean()


def identity_loss(
    logits: Float[Tensor, "b identities"], labels: Int[Tensor, " b"], smoothing: Float[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Equation 13: L_id = -log p(x), the softmax probability of the true identity, mean over the batch.

    ``smoothing`` holds an ε in [0, 1] for each image: its target becomes (1 - ε) of the true identity and ε / K of
    each of the K identities (label smoothing, Szegedy et al. 2016). ε = 1 is LSRO's target, anybody alike (Zheng,
    Zheng and Yang 2017, "Unlabeled samples generated by GAN improve the person re-identification baseline in vitro",
    equation 6).
    """
    if smoothing is None:
        return F.cross_entropy(logits, labels)
    identities = logits.shape[1]
    share = smoothing[:, None].to(logits.dtype)
    return F.cross_entropy(logits, (1 - share) * F.one_hot(labels, identities) + share / identities)


def weighted_sum(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Equations 11 and 14: Σ λ_k L_k over the terms at hand.

    Raises KeyError when a term has no weight, and ValueError without terms: a term is never dropped in silence.
    """
    if not terms:
        raise ValueError("weighted_sum needs at least one term")
    return torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum()
