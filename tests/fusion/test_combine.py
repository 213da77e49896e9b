import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.config import FusionMode, FusionRecipe
from posereid.errors import InputError
from posereid.fusion import EmbeddingParts, PartCost, PartCosts, centralise, fuse, fuse_sides, mode_cost_ms
from posereid.fusion.costs import total


def made_up(crops: int = 6, poses: int = 3, seed: int = 0, **changes: Any) -> EmbeddingParts:
    random = np.random.default_rng(seed)

    def features(*shape: int) -> npt.NDArray[np.float32]:
        values = random.standard_normal((*shape, 5))
        return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)

    has_pose = random.random(crops) < 0.7
    own, flipped, posed, posed_flipped = (features(*s) for s in ((crops,), (crops,), (crops, poses), (crops, poses)))
    posed[~has_pose] = posed_flipped[~has_pose] = 0
    realism = random.random((crops, poses)).astype(np.float32)
    values: dict[str, Any] = {"judged": True} | changes
    return EmbeddingParts(own, flipped, posed, posed_flipped, realism, has_pose, **values)


def unit(vector: npt.NDArray) -> npt.NDArray:
    return vector / math.sqrt(float((vector**2).sum()))


def naive(parts: EmbeddingParts, mode: str, weight: float, by_realism: bool, poses: int) -> npt.NDArray:
    """normalise((1 - w) a + w Σ r_k p_k / Σ r_k), crop by crop and pose by pose."""
    answer = []
    for n in range(len(parts.own)):
        flips = mode in ("flip", "fusion+flip", "all")
        own = unit(parts.own[n] + parts.flipped[n]) if flips else parts.own[n]
        if mode in ("fusion", "fusion+flip", "all") and parts.has_pose[n]:
            total, weights = np.zeros(5), 0.0
            for k in range(poses):
                posed = unit(parts.posed[n, k] + parts.posed_flipped[n, k]) if flips else parts.posed[n, k]
                realism = float(parts.realism[n, k]) if by_realism else 1.0
                total, weights = total + realism * posed, weights + realism
            own = unit((1 - weight) * own + weight * total / weights)
        answer.append(own)
    return np.array(answer)


@given(
    st.sampled_from(["off", "flip", "fusion", "fusion+flip", "nfc", "all"]),
    st.floats(0, 0.9),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 100),
)
def test_fused_embeddings_are_those_of_the_naive_loop(
    mode: FusionMode, weight: float, by_realism: bool, poses: int, seed: int
) -> None:
    parts = made_up(seed=seed)
    recipe = FusionRecipe(weight=weight, by_realism=by_realism)
    found = fuse(parts, mode, recipe, poses=poses)
    assert found.dtype == np.float32
    assert np.allclose(found, naive(parts, mode, weight, by_realism, poses), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("mode", "same"), [("fusion", "off"), ("fusion+flip", "flip")])
def test_a_weight_of_zero_is_no_fusion_to_the_last_bit(mode: FusionMode, same: FusionMode) -> None:
    parts, recipe = made_up(), FusionRecipe(weight=0)
    assert np.array_equal(fuse(parts, mode, recipe), fuse(parts, same, recipe))


def test_a_crop_without_a_pose_keeps_its_own_embedding() -> None:
    parts, recipe = made_up(crops=40), FusionRecipe(weight=1)
    without = ~parts.has_pose
    assert parts.without_pose == without.sum() > 0
    fused = fuse(parts, "fusion", recipe)
    assert np.array_equal(fused[without], parts.own[without])
    assert not np.isclose(fused[~without], parts.own[~without]).all(axis=1).any()


def test_a_crop_of_whose_drawings_the_discriminator_believes_none_keeps_its_own_embedding() -> None:
    parts = made_up()
    parts.realism[:] = 0
    assert np.array_equal(fuse(parts, "fusion", FusionRecipe(weight=0.8, by_realism=True)), parts.own)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("mode", "before"), [("nfc", "off"), ("all", "fusion+flip")])
def test_neighbours_are_looked_for_within_each_side_or_over_both(
    mode: FusionMode, before: FusionMode, pooled: bool
) -> None:
    query, gallery = made_up(5, seed=1), made_up(9, seed=2)
    recipe = FusionRecipe(weight=0.8, pool_sides=pooled, neighbours=2, mutual_within=3)
    sides = [fuse(side, before, recipe) for side in (query, gallery)]
    if pooled:
        both = centralise(np.concatenate(sides), 2, 3)
        expected = [both[:5], both[5:]]
    else:
        expected = [centralise(side, 2, 3) for side in sides]
    found = fuse_sides(query, gallery, mode, recipe)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_sides_without_neighbours_are_fused_each_by_itself() -> None:
    query, gallery, recipe = made_up(5), made_up(9), FusionRecipe(weight=0.8)
    found = fuse_sides(query, gallery, "fusion", recipe, poses=2)
    for side, parts in zip(found, (query, gallery), strict=True):
        assert np.array_equal(side, fuse(parts, "fusion", recipe, poses=2))


@pytest.mark.parametrize(
    ("parts", "mode", "settings", "message"),
    [
        (made_up(flips=False), "flip", {}, "without theirs"),
        (made_up(flips=False), "all", {}, "without theirs"),
        (made_up(poses=0), "fusion", {}, "at least one of"),
        (made_up(judged=False), "fusion", {"by_realism": True}, "no D_I looked"),
        (made_up(), "average", {}, "'average'; choose one of off, flip"),
    ],
)
def test_a_mode_whose_parts_are_not_there_is_an_input_error(
    parts: EmbeddingParts, mode: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fuse(parts, mode, FusionRecipe(weight=0.8, **settings))


@pytest.mark.parametrize("poses", [0, 4, -1])
def test_more_poses_than_were_embedded_or_none_is_an_input_error(poses: int) -> None:
    with pytest.raises(InputError, match=f"needs {poses} of each crop's generated poses, and 3"):
        fuse(made_up(), "fusion", FusionRecipe(weight=0.8), poses=poses)


def test_a_mode_costs_what_its_parts_cost_a_crop_in_the_poses_asked_for() -> None:
    costs = PartCosts(
        own=PartCost(2, 100),
        flipped=PartCost(1, 100),
        encoding=PartCost(2, 50),
        drawing=PartCost(3, 100),
        judging=PartCost(0.5, 100),
        posed=PartCost(4, 100),
        posed_flipped=PartCost(4.5, 100),
        poses=2,
    )
    expected = {"off": 20, "flip": 30, "fusion": 200, "fusion+flip": 300, "nfc": 20, "all": 300}
    assert {mode: mode_cost_ms(costs, mode) for mode in expected} == pytest.approx(expected)  # type: ignore[arg-type]
    assert mode_cost_ms(costs, "fusion", FusionRecipe(poses=2, weight=0.8, by_realism=True)) == pytest.approx(210)
    assert mode_cost_ms(costs, "fusion", FusionRecipe(poses=1, weight=0.8)) == pytest.approx(130)
    assert math.isnan(mode_cost_ms(dataclasses.replace(costs, posed=PartCost()), "fusion"))
    assert mode_cost_ms(PartCosts(own=PartCost(2, 100)), "off") == pytest.approx(20)


def test_costs_are_added_up_by_name_and_shared_out() -> None:
    added = total([{"own": PartCost(1.0, 2)}, {"own": PartCost(2.0, 4), "posed": PartCost(5.0, 1)}, {}])
    assert added == {"own": PartCost(3.0, 6), "posed": PartCost(5.0, 1)}
    assert added["own"].share(2) == PartCost(1.0, 2)
    assert PartCost().share(2) == PartCost()
