"""LPIPS, FID and Inception Score, where the weights of their networks are at hand; nothing is ever downloaded."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from posereid.errors import InputError

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""torch-fidelity's and pytorch-fid's names of one file, the Inception network of Heusel et al. 2017."""

_SPLITS = 10
_SPLIT_SEED = 0


class AlexNetDistance(nn.Module):
    """LPIPS (Zhang et al. 2018), version 0.1 on AlexNet, of each pair of pictures."""

    smallest_side = 31
    """Pixels below which a side leaves nothing of AlexNet's last feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none")

    def forward(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Distances, 0 for equal pictures, of pictures in [-1, 1]. Raises InputError below 31 × 31 pixels."""
        if min(first.shape[-2:]) < self.smallest_side:
            raise InputError(
                f"Pictures of {first.shape[-2]} × {first.shape[-1]} pixels are too small for LPIPS, whose AlexNet "
                f"needs {self.smallest_side} × {self.smallest_side}."
            )
        return self.metric.net(first, second).reshape(len(first))


@dataclass(frozen=True, eq=False)
class LearnedMetrics:
    """Networks that judge pictures; each may be absent, and ``not_measured`` then says why, a sentence per measure.

    ``lpips`` maps two batches of pictures, (B, 3, H, W) in [-1, 1], to distances (B,). ``inception`` maps pictures
    (B, 3, H, W), uint8, to features (B, d) for FID and logits (B, classes) for Inception Score. Any networks that
    do so may stand in for those that :func:`find_learned_metrics` loads; an attribute ``smallest_side`` of ``lpips``
    names the pixels that it needs each way.
    """

    lpips: nn.Module | None = None
    inception: nn.Module | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)


def find_learned_metrics(device: torch.device | str = "cpu") -> LearnedMetrics:
    """The networks whose weights lie where torch keeps what it downloads (``torch.hub.get_dir()``/checkpoints).

    AlexNet's for LPIPS, and Inception's for FID and Inception Score, which also needs the package torch-fidelity.
    Never opens a connection. A file that holds anything but tensors is refused.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    not_measured: dict[str, str] = {}
    networks: dict[str, nn.Module | None] = {"lpips": None, "inception": None}
    for name, load, measures in (
        ("lpips", _load_lpips, ("lpips",)),
        ("inception", _load_inception, ("fid", "inception_score")),
    ):
        try:
            networks[name] = load(folder).to(device).eval()
        except InputError as error:
            not_measured |= dict.fromkeys(measures, str(error))
    return LearnedMetrics(**networks, not_measured=not_measured)


def _load_lpips(folder: Path) -> nn.Module:
    _weights_file(folder, (ALEXNET_FILE,), "torchvision's AlexNet weights")
    return AlexNetDistance()


def _load_inception(folder: Path) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found, unused-ignore]
            FeatureExtractorInceptionV3,
        )
    except ImportError:
        raise InputError("The package torch-fidelity is not installed; install posereid[image-metrics].") from None
    weights = _weights_file(folder, INCEPTION_FILES, "torch-fidelity's Inception weights")
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))


def _weights_file(folder: Path, names: Sequence[str], what: str) -> Path:
    present = [folder / name for name in names if (folder / name).is_file()]
    if not present:
        raise InputError(f"{' or '.join(names)} is not in {folder}; put {what} there.")
    try:
        # torchvision and torch-fidelity unpickle whatever a file holds; what passes here is tensors only.
        torch.load(present[0], map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{present[0]} is no file of weights ({type(error).__name__}); put {what} there.") from error
    return present[0]


class _Given(nn.Module):
    """Stands where torchmetrics wants a network, for features that are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class PictureStatistics:
    """FID (Heusel et al. 2017) and Inception Score (Salimans et al. 2016) of sets of pictures, by torchmetrics.

    ``inception`` is as in :class:`LearnedMetrics` and runs once per picture for both. ``names`` are the sets that are
    compared with the real one. On the host, in double precision. Few pictures make FID too large: compare only
    figures over equally many. Published FID on Market-1501 is against the whole training split (README of
    github.com/RenYurui/Global-Flow-Local-Attention).
    """

    def __init__(self, inception: nn.Module, names: Sequence[str], real: str = "target") -> None:
        self.inception, self.names, self.real = inception, tuple(names), real
        self._distances: dict[str, FrechetInceptionDistance] = {}
        self._scores: dict[str, InceptionScore] = {}
        self._device = next((value.device for value in inception.parameters()), torch.device("cpu"))
        with warnings.catch_warnings():
            # It warns that it keeps all logits: 48 MB for Inception's of 12,000 pictures.
            warnings.simplefilter("ignore", UserWarning)
            for name in (*names, real):
                self._scores[name] = InceptionScore(nn.Identity(), splits=_SPLITS)

    @torch.no_grad()
    def add(self, name: str, pictures: UInt8[Tensor, "b 3 h w"]) -> None:
        """Take in RGB pictures of one set, pixels 0 … 255; ``name`` is one of ``names`` or ``real``."""
        if not len(pictures):
            return
        features, logits = (output.flatten(1).cpu() for output in self.inception(pictures.to(self._device)))
        if not self._distances:
            for other in self.names:
                self._distances[other] = FrechetInceptionDistance(_Given(features.shape[1]))
        for other in self.names if name == self.real else (name,):
            self._distances[other].update(features.double(), real=name == self.real)
        self._scores[name].update(logits)

    def distance(self, name: str) -> float:
        """FID between a set and the real one, from 0 on; NaN where either has fewer than two pictures."""
        metric = self._distances.get(name)
        if metric is None or min(metric.real_features_num_samples, metric.fake_features_num_samples) < 2:
            return float("nan")
        # Rounding takes equal sets a little below 0.
        return max(0.0, float(metric.compute()))

    def score(self, name: str) -> float:
        """Inception Score of a set, from 1 on, the mean over 10 random parts; NaN without a picture."""
        metric = self._scores[name]
        if not metric.features:
            return float("nan")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # It shuffles by torch's own generator, and warns that one part has no standard deviation.
            torch.manual_seed(_SPLIT_SEED)
            warnings.simplefilter("ignore", UserWarning)
            return float(metric.compute()[0])
