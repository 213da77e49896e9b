"""The controls of redrawing at search time: what is subtracted, and on whom a weight is chosen."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from posereid.config import Recipe


@pytest.fixture(scope="module")
def script(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("search_controls")


def test_each_camera_s_own_mean_is_subtracted(script: ModuleType) -> None:
    features = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    cameras = np.array([1, 2, 1, 3, 2, 1, 3])
    for row, vector in enumerate(script.centred(features, cameras)):
        own = [features[other] for other in range(7) if cameras[other] == cameras[row]]
        expected = features[row] - sum(own) / len(own)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-4)


def test_a_weight_is_the_held_out_people_s_choice_whatever_the_test_would_say(
    script: ModuleType, tiny_recipe: Callable[..., Recipe]
) -> None:
    people = np.arange(6)

    def scores(mean: float) -> list[float]:
        return (mean + np.linspace(-0.1, 0.1, 6)).tolist()

    def seed(shift: float) -> dict[str, dict]:
        plain = {"0.0": {"held_out": 0.4, "mAP": scores(0.5 + shift), "rank1": scores(0.5 + shift)}}
        drawn = {
            "0.3": {"held_out": 0.6 - shift, "mAP": scores(0.4 + shift), "rank1": scores(0.4)},
            "0.9": {"held_out": 0.5 + shift, "mAP": scores(0.8), "rank1": scores(0.8)},
        }
        return {control.label: drawn if control.drawn else plain for control in script.CONTROLS}

    flip, front, *_ = script.summary({"0": seed(0.0), "1": seed(0.02)}, people, tiny_recipe())
    assert flip["weight"] is None
    assert flip["mAP_minus_flip"] == [0, 0, 0]
    assert front["weight"] == 0.3
    assert front["held_out"] == 59
    assert front["mAP_minus_flip"][0] == -10
