import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.augmentation.targets import Drawing, plan_drawings, plan_facts
from posereid.config import AugmentationRecipe, TargetPolicy
from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError
from posereid.pose.canonical import canonical_pose
from posereid.pose.joints import JOINT_COUNT, Joints
from posereid.pose.skeletons import direction

POLICIES: tuple[TargetPolicy, ...] = ("random", "clusters", "gaps")
EXTRACT = Path(__file__).parents[1] / "market1501" / "market-annotation-train.csv"
SHARED_KEYPOINTS = Path(__file__).parents[3] / "shared" / "market1501" / "market-annotation-train.csv"


def recipe(policy: TargetPolicy = "random", poses: int = 2, clusters: int = 4) -> AugmentationRecipe:
    return AugmentationRecipe(poses_per_crop=poses, target_poses=policy, pose_clusters=clusters)


def people(views: Sequence[Sequence[str]], seed: int = 0) -> list[Crop]:
    """Identities 1, 2, … with one crop in each of the named views, joints some pixels off."""
    random = np.random.default_rng(seed)
    crops = []
    for identity, names in enumerate(views, 1):
        for number, name in enumerate(names):
            pose = canonical_pose(name)
            xy = pose.xy + random.normal(0, 0.3, (JOINT_COUNT, 2)).astype(np.float32)
            joints = Joints(np.where(pose.present[:, None], xy, 0).astype(np.float32), pose.present)
            path = Path(f"{identity:04d}_{number}.jpg")
            crops.append(Crop(path, path.name, identity, 1, "train", joints))
    return crops


def view_of(crop: Crop) -> str:
    assert crop.joints is not None
    return direction(crop.joints)


def targets_of(drawings: Sequence[Drawing]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for drawing in drawings:
        found.setdefault(drawing.source, []).append(drawing.target)
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_each_posed_crop_is_drawn_in_k_poses_of_other_crops(crops: CropTable, policy: TargetPolicy) -> None:
    train = crops.train
    drawings = plan_drawings(train, recipe(policy, poses=3), seed=1)
    posed = [position for position, crop in enumerate(train) if crop.can_pose]
    assert [drawing.source for drawing in drawings] == [position for position in posed for _ in range(3)]
    assert len({drawing.name for drawing in drawings}) == len(drawings)
    for position, targets in targets_of(drawings).items():
        assert len(set(targets)) == 3
        assert position not in targets
        assert all(train[target].can_pose for target in targets)
    names = [drawing.name for drawing in drawings[:3]]
    assert names == [f"{train[posed[0]].path.stem}_p{number}.jpg" for number in (1, 2, 3)]


@pytest.mark.parametrize("policy", POLICIES)
def test_target_poses_come_from_other_identities_too(crops: CropTable, policy: TargetPolicy) -> None:
    train = crops.train
    drawings = plan_drawings(train, recipe(policy, poses=3), seed=1)
    assert any(train[drawing.source].identity != train[drawing.target].identity for drawing in drawings)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_plan_is_a_function_of_the_seed(crops: CropTable, policy: TargetPolicy) -> None:
    first = plan_drawings(crops.train, recipe(policy), seed=1)
    assert first == plan_drawings(crops.train, recipe(policy), seed=1)
    assert first != plan_drawings(crops.train, recipe(policy), seed=2)


def test_random_targets_are_those_of_a_draw_per_crop(crops: CropTable) -> None:
    train = crops.train
    posed = [position for position, crop in enumerate(train) if crop.can_pose]
    expected = []
    for position in posed:
        others = [other for other in posed if other != position]
        chosen = np.random.default_rng((4, 5, position)).choice(len(others), 2, replace=False)
        expected += [(position, others[number]) for number in chosen]
    drawings = plan_drawings(train, recipe(), seed=4)
    assert [(drawing.source, drawing.target) for drawing in drawings] == expected


def test_too_few_posed_crops_are_an_input_error(crops: CropTable) -> None:
    without = crops.with_crops(replace(crop, joints=None) for crop in crops.train)
    with pytest.raises(InputError, match=r"augmentation\.poses_per_crop"):
        plan_drawings(without, recipe(poses=1), seed=0)
    with pytest.raises(InputError, match="seed"):
        plan_drawings(crops.train, recipe(), seed=-1)


@pytest.mark.parametrize("policy", ["clusters", "gaps"])
def test_more_clusters_than_posed_crops_are_an_input_error(policy: TargetPolicy) -> None:
    crops = people([["front", "back"], ["left"]])
    with pytest.raises(InputError, match=r"augmentation\.pose_clusters is 4, and only 3"):
        plan_drawings(crops, recipe(policy, poses=1), seed=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_crops_with_equal_file_names_get_names_of_their_own(crops: CropTable, policy: TargetPolicy) -> None:
    twins = [replace(crop, path=crop.path.with_name("twin.jpg")) for crop in crops.train]
    drawings = plan_drawings(twins, recipe(policy), seed=0)
    assert len({drawing.name for drawing in drawings}) == len(drawings)


@given(st.lists(st.integers(4, 12), min_size=4, max_size=4), st.integers(1, 3), st.integers(0, 1000))
def test_every_cluster_is_used_equally_often(sizes: list[int], poses: int, seed: int) -> None:
    views = [view for view, size in zip(("front", "left", "back", "right"), sizes, strict=True) for _ in range(size)]
    crops = people([[view] for view in views], seed)
    drawings = plan_drawings(crops, recipe("clusters", poses), seed)
    uses = Counter(views[drawing.target] for drawing in drawings)
    assert max(uses.values()) - min(uses[view] for view in set(views)) <= 1
    for source, targets in targets_of(drawings).items():
        assert len({source, *targets}) == poses + 1


def test_a_cluster_of_one_crop_is_used_by_all_others_and_never_twice_by_one() -> None:
    views = ["front"] * 9 + ["left"]
    crops = people([[view] for view in views])
    drawings = plan_drawings(crops, recipe("clusters", poses=2, clusters=2), seed=0)
    # Half of the 20 drawings were due to the cluster; its own crop cannot be drawn as itself.
    assert Counter(drawing.source for drawing in drawings if drawing.target == 9) == dict.fromkeys(range(9), 1)
    for source, targets in targets_of(drawings).items():
        assert len({source, *targets}) == 3


def test_members_of_a_cluster_are_drawn_at_random() -> None:
    crops = people([["front"] * 6, ["back"] * 6])
    drawings = plan_drawings(crops, recipe("clusters", poses=2, clusters=2), seed=3)
    assert len({drawing.target for drawing in drawings}) > 8


def test_gaps_are_filled_before_anything_is_shown_twice() -> None:
    views = [["front", "back"], ["front", "left"], ["back", "left", "right"], ["front", "front", "front"]]
    crops = people(views)
    drawings = plan_drawings(crops, recipe("gaps", poses=2, clusters=4), seed=0)
    for identity, own in enumerate(views, 1):
        drawn = [view_of(crops[d.target]) for d in drawings if crops[d.source].identity == identity]
        lacking = {"front", "left", "back", "right"} - set(own)
        assert lacking <= set(drawn)
        # What comes after the gaps evens out how often each view is shown.
        shown = Counter(own) + Counter(drawn)
        if max(Counter(own).values()) == 1:
            assert max(shown.values()) - min(shown.values()) <= 1


def test_with_too_few_drawings_the_most_common_gaps_are_filled() -> None:
    views = [["front"], *[["back"]] * 5, *[["left"]] * 3, *[["right"]] * 2]
    crops = people(views)
    for seed in range(5):
        first = plan_drawings(crops, recipe("gaps", poses=2, clusters=4), seed)[:2]
        assert [view_of(crops[drawing.target]) for drawing in first] == ["back", "left"]


def test_an_identitys_gaps_are_spread_over_its_crops() -> None:
    crops = people([["front", "front"], *[["left"]] * 3, *[["back"]] * 3])
    sources = set()
    for seed in range(10):
        drawings = [d for d in plan_drawings(crops, recipe("gaps", poses=1, clusters=3), seed) if d.source < 2]
        assert sorted(view_of(crops[d.target]) for d in drawings) == ["back", "left"]
        sources.add(view_of(crops[drawings[0].target]))
    assert sources == {"back", "left"}


def test_a_cell_of_a_single_crop_among_many_is_no_gap() -> None:
    crops = people([*[["front"]] * 20, *[["back"]] * 20, ["left"]])
    settings = recipe("gaps", poses=1, clusters=3)
    drawings = plan_drawings(crops, settings, seed=0)
    assert 40 not in {drawing.target for drawing in drawings}
    assert plan_facts(crops, drawings, settings)["gaps"] == {"cells": 2, "rare_cells": 1, "lacked": 42, "filled": 41}


def test_rare_cells_are_used_when_nothing_else_is_left() -> None:
    crops = people([*[["front"]] * 12, *[["back"]] * 12, ["left"]])
    drawings = plan_drawings(crops, recipe("gaps", poses=24, clusters=3), seed=0)
    for source, targets in targets_of(drawings).items():
        assert sorted([source, *targets]) == list(range(25))


@pytest.mark.parametrize("policy", POLICIES)
def test_facts_equal_a_count_by_hand_and_fit_in_json(crops: CropTable, policy: TargetPolicy) -> None:
    train, settings = crops.train, recipe(policy, poses=3)
    drawings = plan_drawings(train, settings, seed=0)
    facts = plan_facts(train, drawings, settings)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["target_poses"] == policy
    counted = Counter(view_of(train[drawing.target]) for drawing in drawings)
    assert facts["directions"] == {name: counted[name] for name in ("front", "left", "back", "right")}
    assert ("clusters" in facts) == (policy != "random")
    assert ("gaps" in facts) == (policy == "gaps")
    if policy != "random":
        assert sum(cluster["targets"] for cluster in facts["clusters"]) == len(drawings)
        assert sum(cluster["crops"] for cluster in facts["clusters"]) == sum(crop.can_pose for crop in train)
    if policy == "clusters":
        uses = [cluster["targets"] for cluster in facts["clusters"]]
        assert max(uses) - min(uses) <= 1


def test_facts_of_gaps_count_what_was_lacked_and_filled() -> None:
    views = [["front", "back"], ["front", "left"], ["back", "left", "right"], ["front"]]
    crops, settings = people(views), recipe("gaps", poses=1, clusters=4)
    facts = plan_facts(crops, plan_drawings(crops, settings, seed=0), settings)
    # Two, two, one and three are lacking; the last identity has one crop and so one drawing.
    assert facts["gaps"] == {"cells": 4, "rare_cells": 0, "lacked": 8, "filled": 6}


@pytest.mark.parametrize(
    "keypoints", [EXTRACT, pytest.param(SHARED_KEYPOINTS, marks=pytest.mark.long)], ids=["extract", "whole"]
)
def test_plans_of_real_joints_keep_their_promises(keypoints: Path) -> None:
    from posereid.pose.files import read_keypoints
    from posereid.pose.names import parse_crop_name

    if not keypoints.is_file():
        pytest.skip("Market-1501's keypoint files are not beside the checkout")
    crops = []
    for name, joints in read_keypoints(keypoints).items():
        parsed = parse_crop_name(name)
        assert parsed is not None
        crops.append(Crop(Path(name), name, parsed.identity, parsed.camera, "train", joints))
    clusters = recipe("clusters", poses=8, clusters=8)
    uses = [c["targets"] for c in plan_facts(crops, plan_drawings(crops, clusters, 0), clusters)["clusters"]]
    assert max(uses) - min(uses) <= 1
    gaps = recipe("gaps", poses=8, clusters=8)
    facts = plan_facts(crops, plan_drawings(crops, gaps, 0), gaps)["gaps"]
    assert facts["filled"] > 0.95 * facts["lacked"]
