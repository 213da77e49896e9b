"""FID and Inception Score against the formulas on stand-in features, and what happens when weights are absent."""

import os
import pickle
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from torch import nn

from posereid.errors import InputError
from posereid.evaluation import learned_metrics
from posereid.evaluation.learned_metrics import (
    ALEXNET_FILE,
    INCEPTION_FILES,
    AlexNetDistance,
    PictureStatistics,
    find_learned_metrics,
)


class StandIn(nn.Module):
    """Four features and five logits of each picture."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = nn.Parameter(torch.randn(3 * 2 * 2, 4, generator=generator))
        self.logits = nn.Parameter(2 * torch.randn(4, 5, generator=generator))

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8
        pooled = nn.functional.adaptive_avg_pool2d(pictures.float() / 64, 2).flatten(1)
        features = pooled @ self.features
        return features, features @ self.logits


def pictures(count, seed, shift=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 200, (count, 3, 8, 4), generator=generator) + shift).to(torch.uint8)


def naive_distance(first, second):
    """Heusel et al. 2017, equation 6."""
    root = scipy.linalg.sqrtm(np.cov(first, rowvar=False) @ np.cov(second, rowvar=False))
    return (
        ((first.mean(0) - second.mean(0)) ** 2).sum()
        + np.trace(np.cov(first, rowvar=False) + np.cov(second, rowvar=False))
        - 2 * np.trace(root).real
    )


def naive_score(logits):
    """Salimans et al. 2016: exp of the mean divergence between each picture's classes and those of all."""
    probabilities = [np.exp(row) / np.exp(row).sum() for row in logits.astype(float)]
    mean = np.mean(probabilities, axis=0)
    return np.exp(np.mean([(p * np.log(p / mean)).sum() for p in probabilities]))


def test_distance_and_score_follow_their_formulas():
    network = StandIn()
    statistics = PictureStatistics(network, ["near", "far"])
    sets = {"target": pictures(60, 0), "near": pictures(50, 1), "far": pictures(50, 2, shift=40)}
    for start in range(0, 60, 20):
        for name, every in sets.items():
            statistics.add(name, every[start : start + 20])
    with torch.no_grad():
        features = {name: network(every)[0].numpy().astype(np.float64) for name, every in sets.items()}
        logits = {name: network(every)[1].numpy() for name, every in sets.items()}
    for name in ("near", "far"):
        wanted = naive_distance(features[name], features["target"])
        assert statistics.distance(name) == pytest.approx(wanted, rel=1e-6)
    assert statistics.distance("far") > statistics.distance("near") > 0
    for name, every in logits.items():
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
        parts = [naive_score(every[part]) for part in torch.chunk(order, 10)]
        assert statistics.score(name) == pytest.approx(np.mean(parts), rel=1e-5)


def test_one_picture_for_all_is_the_worst_score_and_a_set_is_at_no_distance_from_itself():
    statistics = PictureStatistics(StandIn(), ["same", "constant"])
    real = pictures(30, 0)
    statistics.add("target", real)
    statistics.add("same", real)
    statistics.add("constant", real[:1].expand(30, -1, -1, -1))
    assert statistics.distance("same") == pytest.approx(0, abs=1e-6)
    assert statistics.score("constant") == pytest.approx(1)
    assert statistics.score("same") == statistics.score("target") > 1


def test_scoring_leaves_random_numbers_and_warnings_alone():
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics = PictureStatistics(StandIn(), ["generated"])
        statistics.add("generated", pictures(3, 0))
        assert statistics.score("generated") == statistics.score("generated")
    assert torch.equal(torch.get_rng_state(), before)


def test_too_few_pictures_have_no_figure():
    statistics = PictureStatistics(StandIn(), ["generated"])
    assert np.isnan(statistics.distance("generated"))
    assert np.isnan(statistics.score("target"))
    statistics.add("generated", pictures(5, 0)[:0])
    statistics.add("generated", pictures(5, 0))
    statistics.add("target", pictures(1, 0))
    assert np.isnan(statistics.distance("generated"))


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch would keep weights, empty; asking the network for any is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which is an extra."""

    class FeatureExtractorInceptionV3(StandIn):
        def __init__(self, name: str, layers: list[str], weights: str) -> None:
            super().__init__()
            assert (name, layers) == ("inception-v3-compat", ["2048", "logits_unbiased"])
            self.load_state_dict(torch.load(weights, weights_only=True))

    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        module = ModuleType(name)
        module.FeatureExtractorInceptionV3 = FeatureExtractorInceptionV3
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("torch_fidelity")
def test_absent_weights_are_named_with_their_place(checkpoints: Path) -> None:
    learned = find_learned_metrics()
    assert learned.lpips is None
    assert learned.inception is None
    assert set(learned.not_measured) == {"lpips", "fid", "inception_score"}
    assert f"{ALEXNET_FILE} is not in {checkpoints}; put" in learned.not_measured["lpips"]
    assert f"{INCEPTION_FILES[0]} or {INCEPTION_FILES[1]} is not in {checkpoints}" in learned.not_measured["fid"]


def test_an_absent_package_is_named(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert "posereid[image-metrics]" in find_learned_metrics().not_measured["inception_score"]


@pytest.mark.usefixtures("torch_fidelity")
def test_weights_at_hand_are_loaded(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = StandIn()
    nn.init.ones_(trained.features)
    torch.save(trained.state_dict(), checkpoints / INCEPTION_FILES[1])
    torch.save({}, checkpoints / ALEXNET_FILE)
    monkeypatch.setattr(learned_metrics, "AlexNetDistance", nn.Identity)
    learned = find_learned_metrics()
    assert not learned.not_measured
    assert learned.inception is not None
    assert torch.equal(learned.inception.features, trained.features)
    assert isinstance(learned.lpips, nn.Identity)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("hostile",)


@pytest.mark.usefixtures("torch_fidelity")
def test_a_file_that_holds_more_than_tensors_is_refused(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoints)
    torch.save(Hostile(), checkpoints / INCEPTION_FILES[0])
    (checkpoints / ALEXNET_FILE).write_bytes(pickle.dumps(Hostile(), protocol=2))
    learned = find_learned_metrics()
    assert "no file of weights" in learned.not_measured["fid"]
    assert "no file of weights" in learned.not_measured["lpips"]
    assert not (checkpoints / "hostile").exists()


def test_lpips_is_zero_for_equal_pictures_and_knows_its_smallest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    untrained = torchvision.models.alexnet(weights=None)
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: untrained)
    distance = AlexNetDistance().eval()
    smallest = distance.smallest_side
    first, second = torch.rand(2, 3, 3, smallest, smallest) * 2 - 1
    assert distance(first, first).tolist() == pytest.approx([0, 0, 0])
    together = distance(first, second)
    assert (together > 0).all()
    torch.testing.assert_close(distance(first[:1], second[:1]), together[:1])
    with pytest.raises(InputError, match="too small for LPIPS"):
        distance(first[..., 1:], second[..., 1:])
    with pytest.raises(RuntimeError):
        untrained.features(first[..., 1:])
