"""SSIM as published work on Market-1501 computes it: two protocols whose figures do not compare.

Both are the mean over the RGB channels by scikit-image, which leaves out the pixels nearer to the border than half
a window (5 or 25 pixels); :func:`posereid.evaluation.image_quality.structural_similarity` counts every pixel.

==========  ==========================================  ===========================================================
protocol    arguments                                   source
==========  ==========================================  ===========================================================
PATN        Gaussian window, σ 1.5 (11 × 11);           ``tool/getMetrics_market.py`` of github.com/tengteng95/
            population covariance; range = maximum −    Pose-Transfer, for uint8 pictures
            minimum of the generated picture
GFLA, DPTN  uniform window 51 × 51; sample covariance   ``script/metrics.py`` of github.com/RenYurui/
            (the default); range 1                      Global-Flow-Local-Attention, ``metrics/metrics.py`` of
                                                        github.com/PangzeCheung/Dual-task-Pose-Transformer-Network,
                                                        for pictures in [0, 1]
==========  ==========================================  ===========================================================

The second pair of files prints both figures, the first protocol's as ``ssim_256``. A range taken from the generated
picture rewards contrast for nothing; a window of 51 keeps 78 × 14 centres of a 128 × 64 crop.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, UInt8
from skimage.metrics import structural_similarity
from torch import Tensor

from posereid.errors import InputError

PATN_WINDOW = 11
GFLA_WINDOW = 51

Scores = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


def patn_ssim(generated: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Scores:
    """SSIM by PATN's protocol of each pair of RGB pictures, pixels 0 … 255. Shape (B,), in [-1, 1].

    NaN where the generated picture is of one colour value throughout, for which the protocol divides by zero.
    Raises InputError for shapes that disagree or are smaller than the window, 11 × 11.
    """
    return _of_each(_patn, generated, target, PATN_WINDOW)


def mask_ssim(
    generated: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"], mask: Bool[Tensor, "b h w"]
) -> Scores:
    """Mask-SSIM: :func:`patn_ssim` of both pictures, each multiplied by the target's mask. Shape (B,).

    After Ma et al. 2017 (pose guided person image generation) as PATN's ``tool/getMetrics_market.py`` computes it:
    over the whole picture, so the black surroundings, alike in both, raise the figure. There the mask is drawn from
    the joints (``tool/pose_utils.py``, ``produce_ma_mask``); here it is the caller's. NaN where a mask is empty.
    """
    if mask.shape != target[:, 0].shape:
        raise InputError(f"The mask is {tuple(mask.shape)}; {tuple(target[:, 0].shape)} is expected.")
    scores = patn_ssim(generated * mask[:, None], target * mask[:, None])
    scores[~mask.flatten(1).any(1).numpy()] = np.nan
    return scores


def gfla_ssim(generated: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Scores:
    """SSIM by GFLA's and DPTN's protocol of each pair of RGB pictures, pixels 0 … 255. Shape (B,), in [-1, 1].

    Raises InputError for shapes that disagree or are smaller than the window, 51 × 51.
    """
    return _of_each(_gfla, generated, target, GFLA_WINDOW)


def _patn(generated: Picture, target: Picture) -> float:
    # As integers, a range of 0 would be an error of scikit-image and not a NaN.
    reach = float(generated.max()) - float(generated.min())
    if reach == 0:
        return float("nan")
    return structural_similarity(
        target,
        generated,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
        data_range=reach,
    )


def _gfla(generated: Picture, target: Picture) -> float:
    return structural_similarity(target / 255, generated / 255, win_size=GFLA_WINDOW, channel_axis=-1, data_range=1)


def _of_each(score: Callable[[Picture, Picture], float], generated: Tensor, target: Tensor, window: int) -> Scores:
    if generated.shape != target.shape or generated.ndim != 4:
        raise InputError(
            f"Pictures to compare have shapes {tuple(generated.shape)} and {tuple(target.shape)}; two equal shapes "
            "(batch, channels, height, width) are expected."
        )
    height, width = generated.shape[-2:]
    if min(height, width) < window:
        raise InputError(
            f"Pictures of {height} × {width} pixels are smaller than this SSIM's window, {window} × {window}."
        )
    rows = zip(generated.permute(0, 2, 3, 1).numpy(), target.permute(0, 2, 3, 1).numpy(), strict=True)
    return np.array([score(a, b) for a, b in rows], np.float64)
