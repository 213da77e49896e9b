"""The synthetic world: layout, determinism, and that what it says about joints and masks is what it drew."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from posereid.config import WorldPreset
from posereid.data.synthetic import Pattern, Person, World, render_crop, render_shot, sample_pose, synthesize
from posereid.data.synthetic.appearance import Print
from posereid.data.synthetic.body import Frame, pose_body, sample_proportions
from posereid.data.synthetic.cameras import NOTHING_FOUND
from posereid.data.synthetic.figure import build_figure
from posereid.data.synthetic.plan import PlannedCrop, plan_crops
from posereid.data.synthetic.poses import POSE_WEIGHTS, walking
from posereid.data.synthetic.presets import PRESETS, Preset
from posereid.data.synthetic.rasteriser import Projection, SolidBuilder, cast
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, TORSO, Joints, joint_index

NAME = re.compile(r"^(-1|\d{4})_c(\d)s1_(\d{6})_(\d{2})\.jpg$")
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
SMALL = {"identities": 8, "crops_per_identity": 10, "cameras": 3, "height": 64, "seed": 5, "preset": "default"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def annotations(folder: Path) -> dict[str, Joints]:
    read = {}
    for table in ("train", "test"):
        lines = (folder / f"market-annotation-{table}.csv").read_text().splitlines()
        assert lines[0] == "name:keypoints_y:keypoints_x"
        for line in lines[1:]:
            name, rows, columns = line.split(": ")
            y, x = np.array(json.loads(rows)), np.array(json.loads(columns))
            assert y.shape == x.shape == (JOINT_COUNT,)
            assert ((y >= 0) == (x >= 0)).all()
            read[name] = Joints(np.stack((x, y), axis=1).astype(np.float32), y >= 0)
    return read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("world") / "data", **SMALL)


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, list[tuple[int, int, str]]]:
    parsed = defaultdict(list)
    for each in FOLDERS:
        for path in sorted((folder / each).iterdir()):
            match = NAME.match(path.name)
            assert match, path.name
            parsed[each].append((int(match[1]), int(match[2]), path.name))
    return parsed


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=1, identities=40, cameras=4)


def looking(world: World, identity: int, **changes: object) -> Person:
    """A person of the world with some of their looks replaced."""
    person = world.person(identity)
    looks = replace(person.looks, **changes)  # type: ignore[arg-type]
    return Person(person.body, looks, build_figure(person.body, looks))


def clean_crop(world: World, person: Person, yaw: float, key: int, camera: int = 1):
    """The person standing straight, unhidden and well framed."""
    shot = world.camera(camera).shoot(np.random.default_rng(key), yaw)
    shot = replace(shot, occluder="", missed=(), fill=0.88, shift_x=0.0, shift_y=0.0, squeeze=1.0)
    pose = replace(sample_pose(np.random.default_rng(3), "standing"), head_turn=0.0, head_pitch=0.05)
    pose = replace(pose, right_arm=replace(pose.left_arm, target=None), left_arm=pose.left_arm)
    return render_shot(person, pose, replace(world.camera(camera), elevation=0.15, noise=0.0), shot)


class TestFolder:
    def test_same_seed_gives_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        again = synthesize(tmp_path / "again", **SMALL)
        assert contents(again) == contents(folder)

    def test_another_seed_gives_other_pictures(self, folder: Path, tmp_path: Path) -> None:
        other = synthesize(tmp_path / "other", **{**SMALL, "seed": 6})
        ours, theirs = contents(folder), contents(other)
        assert theirs["market-annotation-train.csv"] != ours["market-annotation-train.csv"]
        pictures = {name for name in ours.keys() & theirs.keys() if name.endswith(".jpg")}
        assert all(ours[name] != theirs[name] for name in pictures)

    def test_counts(self, folder: Path, names: dict[str, list[tuple[int, int, str]]]) -> None:
        train = Counter(identity for identity, _, _ in names["bounding_box_train"])
        assert set(train) == set(range(1, 5))
        assert train.total() == 40
        test = Counter(i for each in ("query", "bounding_box_test") for i, _, _ in names[each] if i > 0)
        assert set(test) == set(range(5, 9))
        assert test.total() == 40
        everything = [name for each in FOLDERS for _, _, name in names[each]]
        frames = [NAME.match(name)[3] for name in everything]  # type: ignore[index]
        assert len(set(frames)) == len(everything)
        description = json.loads((folder / "world.json").read_text())
        assert description["counts"]["query"] == len(names["query"])
        assert description["parameters"] == SMALL
        assert len(description["people"]) == 8

    def test_every_query_has_a_match_in_another_camera(self, names: dict[str, list[tuple[int, int, str]]]) -> None:
        gallery = {(identity, camera) for identity, camera, _ in names["bounding_box_test"]}
        keys = [(identity, camera) for identity, camera, _ in names["query"]]
        assert len(set(keys)) == len(keys)
        for identity, camera in keys:
            assert any(i == identity and c != camera for i, c in gallery)

    def test_distractors_and_junk_only_in_the_gallery(self, names: dict[str, list[tuple[int, int, str]]]) -> None:
        gallery = Counter(identity for identity, _, _ in names["bounding_box_test"])
        assert gallery[0] >= 2
        assert gallery[-1] >= 2
        for each in ("bounding_box_train", "query"):
            assert all(identity > 0 for identity, _, _ in names[each])

    def test_annotations_cover_all_crops(self, folder: Path, names: dict[str, list[tuple[int, int, str]]]) -> None:
        table = annotations(folder)
        assert set(table) == {name for each in FOLDERS for _, _, name in names[each]}
        train = (folder / "market-annotation-train.csv").read_text().splitlines()[1:]
        assert len(train) == len(names["bounding_box_train"])
        for joints in table.values():
            x, y = joints.xy[joints.present].T
            assert ((x >= 0) & (x < 32) & (y >= 0) & (y < 64)).all()

    def test_masks(self, folder: Path, names: dict[str, list[tuple[int, int, str]]]) -> None:
        table = annotations(folder)
        near, total = 0, 0
        for each in FOLDERS:
            for identity, _, name in names[each]:
                with Image.open(folder / each / name) as image:
                    assert (image.size, image.mode, image.format) == ((32, 64), "RGB", "JPEG")
                with Image.open(folder / "foreground_masks" / each / f"{name[:-4]}.png") as image:
                    assert (image.size, image.mode) == ((32, 64), "L")
                    mask = np.array(image)
                assert set(np.unique(mask)) <= {0, 255}
                if identity == -1:
                    continue
                assert 0.03 < (mask > 0).mean() < 0.8
                padded = np.pad(mask > 0, 2)
                for x, y in table[name].xy[table[name].present].astype(int):
                    total += 1
                    near += padded[y : y + 5, x : x + 5].any()
        assert near / total > 0.98

    def test_existing_folder_is_refused_and_untouched(self, tmp_path: Path) -> None:
        out = tmp_path / "taken"
        out.mkdir()
        (out / "mine.txt").write_text("precious")
        with pytest.raises(InputError, match="taken"):
            synthesize(out, **SMALL)
        assert contents(out) == {"mine.txt": b"precious"}
        assert [path.name for path in tmp_path.iterdir()] == ["taken"]

    def test_nothing_is_left_when_it_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: World, crop: object) -> None:
            raise RuntimeError("the lamp went out")

        monkeypatch.setattr(World, "render", broken)
        with pytest.raises(RuntimeError, match="lamp"):
            synthesize(tmp_path / "out", **SMALL)
        assert list(tmp_path.iterdir()) == []

    def test_world_is_read_back_and_renders_the_same(self, folder: Path) -> None:
        world = World.read(folder)
        assert world == World(5, 8, 10, 3, 64, "default")
        # From the back of the list: a crop does not depend on those rendered before it.
        for crop in world.crops[::-17]:
            with Image.open(folder / crop.folder / crop.name) as image:
                stored = np.asarray(image, int)
            assert np.abs(stored - world.render(crop).image).mean() < 4
            rendered = world.render(crop)
            with Image.open(folder / "foreground_masks" / crop.folder / f"{crop.name[:-4]}.png") as image:
                assert (np.asarray(image).astype(bool) == rendered.mask).all()

    def test_reading_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"world\.json"):
            World.read(tmp_path)
        (tmp_path / "world.json").write_text('{"version": 0, "parameters": {}}')
        with pytest.raises(InputError, match="version"):
            World.read(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"identities": 3},
        {"identities": 10_000},
        {"crops_per_identity": 3},
        {"cameras": 1},
        {"cameras": 10},
        {"height": 100},
        {"height": 16},
        {"seed": -1},
        {"preset": "impossible"},
    ],
)
def test_bad_arguments(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        synthesize(tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    identities=st.integers(4, 20),
    crops=st.integers(4, 20),
    cameras=st.integers(2, 9),
    preset=st.sampled_from(sorted(PRESETS.values(), key=repr)),
)
def test_any_plan_is_sound(seed: int, identities: int, crops: int, cameras: int, preset: Preset) -> None:
    plan = plan_crops(seed, identities, crops, cameras, preset)
    per_person = Counter(crop.identity for crop in plan if crop.identity > 0)
    assert set(per_person) == set(range(1, identities + 1))
    assert min(per_person.values()) >= 4
    training = (identities + 1) // 2
    assert sum(per_person[identity] for identity in range(1, training + 1)) == training * crops
    assert per_person.total() == identities * crops
    if not preset.crops_spread:
        assert set(per_person.values()) == {crops}
    assert len({crop.name for crop in plan}) == len({crop.crop_key for crop in plan}) == len(plan)
    assert all(NAME.match(crop.name) for crop in plan)
    gallery = {(c.identity, c.camera) for c in plan if c.folder == "bounding_box_test"}
    for query in (crop for crop in plan if crop.folder == "query"):
        assert any(i == query.identity and c != query.camera for i, c in gallery)
    for walk in grouped(plan).values():
        assert [crop.place for crop in walk] == list(range(len(walk)))
        assert len({crop.direction for crop in walk}) == 1


def grouped(plan: tuple[PlannedCrop, ...]) -> dict[tuple[int, int], list[PlannedCrop]]:
    """The crops of each identity before each camera, in the order in which they were taken."""
    walks = defaultdict(list)
    for crop in sorted(plan, key=lambda crop: crop.place):
        if crop.identity > 0:
            walks[crop.identity, crop.camera].append(crop)
    return walks


def turned(first: float, second: float) -> float:
    """The angle between two directions."""
    return abs((first - second + np.pi) % (2 * np.pi) - np.pi)


class TestPresets:
    @pytest.mark.parametrize("name", ["default", "hard"])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_test_identities_are_matched_across_directions_and_some_training_ones_seen_from_one(
        self, seed: int, name: WorldPreset
    ) -> None:
        preset = PRESETS[name]
        plan = plan_crops(seed, 80, 8, 4, preset)
        spans = defaultdict(list)
        for (identity, _), walk in grouped(plan).items():
            spans[identity].append(walk[0].direction)
        for identity in range(41, 81):
            found, slack = spans[identity], 2 * preset.heading_jitter + 1e-6
            assert min(turned(a, b) for a, b in combinations(found, 2)) > 2 * np.pi / len(found) - slack
            # From behind, or nearly, whatever side the query shows.
            assert min(max(turned(a, b) for b in found) for a in found) > 2 * np.pi / 3 - slack
        widest = {i: max(turned(a, b) for a in found for b in found) for i, found in spans.items()}
        one_sided = np.mean([widest[identity] <= 2 * preset.heading_jitter + 1e-6 for identity in range(1, 41)])
        assert abs(one_sided - preset.one_sided) < 0.2
        assert one_sided < 0.7

    def test_a_walk_shows_one_direction_and_neighbouring_poses(self) -> None:
        world = World(seed=3, identities=20, crops_per_identity=12)
        for walk in list(grouped(world.crops).values())[:30]:
            shots, poses = [world.shot(crop) for crop in walk], [world.pose(crop) for crop in walk]
            assert max(turned(shot.yaw, shots[0].yaw) for shot in shots) < 8 * PRESETS["default"].turn_jitter
            assert len({pose.kind for pose in poses}) == 1
            assert len({shot.across for shot in shots}) == len(shots)
            assert max(abs(pose.spine_pitch - poses[0].spine_pitch) for pose in poses) < 0.2

    def test_an_easy_walk_shows_many_directions_and_activities(self) -> None:
        world = World(seed=3, identities=40, crops_per_identity=20, preset="easy")
        walks = list(grouped(world.crops).values())
        yaws = [[world.shot(crop).yaw for crop in walk] for walk in walks]
        assert np.mean([max(turned(yaw, found[0]) for yaw in found) for found in yaws]) > 0.6
        assert np.mean([len({world.pose(crop).kind for crop in walk}) for walk in walks]) > 1.5

    @pytest.mark.parametrize("name", ["default", "hard"])
    def test_clothes_collide_in_both_halves(self, name: WorldPreset) -> None:
        preset, world = PRESETS[name], World(seed=2, identities=600, preset=name)
        alike = []
        for first in range(1, 601, preset.outfit_group):
            group = [world.person(identity).looks for identity in range(first, first + preset.outfit_group)]
            kinds = {(looks.upper_kind, looks.upper.kind, looks.upper_name.partition(" and ")[0]) for looks in group}
            colours = np.array([(*looks.upper.first, *looks.lower) for looks in group])
            alike.append(len(kinds) == 1 and bool((np.ptp(colours, axis=0) < 0.4).all()))
        half = len(alike) // 2
        for shares in (alike[:half], alike[half:]):
            assert abs(np.mean(shares) - preset.outfit_shared) < 0.13

    def test_nobody_shares_an_outfit_in_an_easy_world(self) -> None:
        world = World(seed=2, identities=120, preset="easy")
        assert len({world.person(identity).looks.upper for identity in range(1, 121)}) == 120

    def test_people_in_one_outfit_differ_in_small_things(self) -> None:
        world = World(seed=2, identities=60, preset="hard")
        looks = {world.person(identity).looks for identity in range(1, 61)}
        assert len(looks) == 60

    def test_a_person_and_a_camera_depend_on_seed_and_number_alone(self) -> None:
        small, large = World(seed=4, identities=8, cameras=2), World(seed=4, identities=50, cameras=6)
        for identity in (1, 5, 8):
            assert small.person(identity).looks == large.person(identity).looks
            assert small.person(identity).body == large.person(identity).body
        assert (small.camera(2).cast == large.camera(2).cast).all()
        assert small.camera(2).gamma == large.camera(2).gamma

    def test_cameras_of_harder_worlds_differ_more_but_for_sensor_noise(self) -> None:
        cameras = {name: World(seed=1, cameras=6, preset=name).camera_views for name in PRESETS}
        spread = {
            name: float(np.std([np.log(camera.cast) for camera in views], axis=0).mean())
            for name, views in cameras.items()
        }
        assert spread["easy"] < spread["default"] < spread["hard"]
        noise = [[camera.noise for camera in views] for views in cameras.values()]
        assert noise[0] == noise[1] == noise[2]
        assert 1.0 <= min(noise[0]) <= max(noise[0]) <= 2.4

    def test_joints_that_the_detector_misses_are_absent(self, world: World) -> None:
        person, camera, pose = world.person(3), world.camera(1), walking(np.random.default_rng(0))
        shot = replace(camera.shoot(np.random.default_rng(0), 0.0), missed=())
        seen = render_shot(person, pose, camera, shot)
        missed = joint_index("neck"), joint_index("right_hip")
        partly = render_shot(person, pose, camera, replace(shot, missed=missed))
        assert (seen.image == partly.image).all()
        assert (seen.joints.present != partly.joints.present).nonzero()[0].tolist() == sorted(missed)

    def test_easy_crops_miss_no_joint_at_random(self) -> None:
        world = World(seed=1, preset="easy")
        assert not any(world.camera(1).shoot(np.random.default_rng(key)).missed for key in range(200))
        harder = World(seed=1).camera(1)
        missed = [harder.shoot(np.random.default_rng(key)).missed for key in range(600)]
        assert np.mean([len(joints) == JOINT_COUNT for joints in missed]) == pytest.approx(NOTHING_FOUND, abs=0.02)


class TestCrops:
    @settings(max_examples=25, deadline=None)
    @given(identity=st.integers(1, 40), yaw=st.floats(-0.5, 0.5), key=st.integers(0, 10**6))
    def test_front_and_back(self, identity: int, yaw: float, key: int) -> None:
        world = _shared_world()
        person = looking(world, identity, cap=None)
        front = clean_crop(world, person, yaw, key).joints
        back = clean_crop(world, person, yaw + np.pi, key).joints
        nose = joint_index("nose")
        eyes = [joint_index("right_eye"), joint_index("left_eye")]
        assert front.present[nose]
        assert front.present[eyes].any()
        assert not back.present[[nose, *eyes]].any()
        right, left = joint_index("right_shoulder"), joint_index("left_shoulder")
        assert front.xy[right, 0] < front.xy[left, 0]
        assert back.xy[right, 0] > back.xy[left, 0]

    def test_profile_shows_one_ear(self, world: World) -> None:
        right_side = clean_crop(world, world.person(2), np.pi / 2, 0).joints
        ears = right_side.present[[joint_index("right_ear"), joint_index("left_ear")]]
        assert ears.tolist() == [True, False]

    def test_logo_only_on_the_chest(self, world: World) -> None:
        plain = looking(world, 1, **_PLAIN)
        for shape in ("badge", "ring", "bar", "cross"):
            marked = looking(world, 1, **{**_PLAIN, "logo": Print(shape, (0.9, 0.1, 0.1), 0.08, 0.06)})
            for yaw, visible in ((0.0, True), (0.5, True), (np.pi, False), (2.7, False)):
                changed = clean_crop(world, plain, yaw, 1).image != clean_crop(world, marked, yaw, 1).image
                assert changed.any() == visible

    def test_back_print_only_on_the_back(self, world: World) -> None:
        plain = looking(world, 1, **_PLAIN)
        marked = looking(world, 1, **{**_PLAIN, "back_print": Print("badge", (0.9, 0.1, 0.1), 0.1, 0.08)})
        for yaw, visible in ((0.0, False), (0.5, False), (np.pi, True), (2.7, True)):
            changed = clean_crop(world, plain, yaw, 1).image != clean_crop(world, marked, yaw, 1).image
            assert changed.any() == visible

    def test_backpack_on_the_back_and_straps_in_front(self, world: World) -> None:
        person = looking(world, 1, **{**_PLAIN, "backpack": (0.9, 0.1, 0.1)})
        red = {}
        for yaw in (0.0, np.pi / 2, np.pi):
            image = clean_crop(world, person, yaw, 1).image.astype(int)
            mask = clean_crop(world, person, yaw, 1).mask
            red[yaw] = int((mask & (image[..., 0] > 1.8 * image[..., 1:].max(axis=-1))).sum())
        assert red[np.pi] > 250
        assert red[np.pi / 2] > 80
        assert 10 < red[0.0] < 0.4 * red[np.pi]

    def test_patterns_belong_to_the_person(self, world: World) -> None:
        crops = [clean_crop(world, world.person(identity), 0.0, 1) for identity in (1, 2, 1)]
        assert (crops[0].image == crops[2].image).all()
        assert (crops[0].image != crops[1].image).any()

    def test_same_generator_same_circumstances(self, world: World) -> None:
        pose = walking(np.random.default_rng(0))
        first, second = (
            render_crop(world.person(identity), pose, world.camera(2), np.random.default_rng(7), yaw=0.3)
            for identity in (1, 2)
        )
        outside = ~(first.mask | second.mask)
        outside[40:] = False  # the shadows on the ground differ
        # The two stand in the same place; only the scale differs a little with their stature.
        gap = np.abs(first.image[outside].mean(axis=0) - second.image[outside].mean(axis=0))
        assert gap.max() < 12
        assert np.corrcoef(first.image[outside].ravel(), second.image[outside].ravel())[0, 1] > 0.5
        again = render_crop(world.person(1), pose, world.camera(2), np.random.default_rng(7), yaw=0.3)
        assert (again.image == first.image).all()

    def test_most_crops_show_the_torso(self, world: World) -> None:
        rng = np.random.default_rng(0)
        crops = [crop for crop in world.crops if crop.identity > 0]
        chosen = rng.choice(len(crops), 160, replace=False)
        rendered = [world.render(crops[index]) for index in chosen]
        assert np.mean([crop.joints.has_torso for crop in rendered]) >= 0.75
        assert 0.08 < np.mean([crop.mask.mean() for crop in rendered]) < 0.5

    def test_backgrounds_vary_within_a_camera(self, world: World) -> None:
        camera = world.camera(1)
        empty = [camera.shoot(np.random.default_rng(key)) for key in range(30)]
        images = np.stack([render_shot(None, walking(np.random.default_rng(0)), camera, s).image for s in empty])
        mean = images.mean(axis=0)
        assert np.abs(images - mean).mean() > 8
        assert mean.std(axis=(0, 1)).mean() < images.std(axis=(1, 2)).mean()

    def test_occluder_hides_joints_and_is_not_in_the_mask(self, world: World) -> None:
        person, camera = world.person(3), replace(world.camera(1), elevation=0.1)
        shot = replace(camera.shoot(np.random.default_rng(0), 0.0), occluder="", fill=0.9, shift_y=0.0)
        pose = sample_pose(np.random.default_rng(1), "walking")
        free = render_shot(person, pose, camera, shot)
        hidden = [render_shot(person, pose, camera, replace(shot, occluder="hedge", detail_seed=s)) for s in range(4)]
        for crop in hidden:
            assert crop.mask.sum() < free.mask.sum()
            assert crop.joints.present.sum() < free.joints.present.sum()
            assert not (crop.mask & ~free.mask).any()

    @pytest.mark.parametrize("kind", list(POSE_WEIGHTS))
    def test_every_kind_of_pose_renders(self, world: World, kind: str) -> None:
        for key in range(3):
            rng = np.random.default_rng(key)
            pose = sample_pose(rng, kind)
            assert pose.kind == kind
            crop = render_crop(world.person(key + 1), pose, world.camera(key + 1), rng)
            assert crop.image.shape == (128, 64, 3)
            assert crop.image.dtype == np.uint8
            assert crop.mask.mean() > 0.03


_PLAIN: dict[str, object] = {
    "upper_kind": "t-shirt",
    "upper": Pattern("plain", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "backpack": None,
    "bag": "none",
    "logo": None,
    "back_print": None,
    "cap": None,
    "lower": (0.1, 0.1, 0.1),
    "shoes": (0.1, 0.1, 0.1),
    "skin": (0.6, 0.6, 0.6),
    "hair": (0.1, 0.1, 0.1),
}
_WORLDS: list[World] = []


def _shared_world() -> World:
    if not _WORLDS:
        _WORLDS.append(World(seed=1, identities=40, cameras=4))
    return _WORLDS[0]


class TestBody:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 2**31), kind=st.sampled_from(sorted(POSE_WEIGHTS)))
    def test_kinematics(self, seed: int, kind: str) -> None:
        rng = np.random.default_rng(seed)
        body, pose = sample_proportions(rng), sample_pose(rng, kind)
        skeleton = pose_body(body, pose)
        gram = skeleton.rotation.transpose(0, 2, 1) @ skeleton.rotation
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-9)
        assert (np.linalg.det(skeleton.rotation) > 0).all()
        for side in ("right", "left"):
            at = {
                part: skeleton.joints[joint_index(f"{side}_{part}")]
                for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
            }
            for first, second, length in (
                ("shoulder", "elbow", body.upper_arm),
                ("elbow", "wrist", body.forearm),
                ("hip", "knee", body.thigh),
                ("knee", "ankle", body.shin),
            ):
                assert np.linalg.norm(at[first] - at[second]) == pytest.approx(length, abs=1e-6)
        assert skeleton.joints[:, 2].min() > 0
        if kind in ("walking", "standing"):
            assert 0.8 * body.stature < skeleton.origin[Frame.HEAD, 2] + 0.12 < 1.08 * body.stature
            torso = skeleton.joints[list(TORSO)]
            assert torso[:2, 2].min() > torso[2:, 2].max()


class TestRayCasting:
    @settings(max_examples=40, deadline=None)
    @given(
        start=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
        end=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
        radii=st.tuples(st.floats(0.05, 0.3), st.floats(0.05, 0.3)),
        stretch=st.tuples(*[st.floats(0.5, 2.0)] * 3),
        seed=st.integers(0, 1000),
    )
    def test_against_a_dense_chain_of_ellipsoids(
        self,
        start: tuple[float, float, float],
        end: tuple[float, float, float],
        radii: tuple[float, float],
        stretch: tuple[float, float, float],
        seed: int,
    ) -> None:
        rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
        # Where a taper is seen nearly end on the solid is simplified; elsewhere it is exact.
        axis = (np.array(end) - start) / stretch
        ray = rotation[2] / stretch
        ray /= np.linalg.norm(ray)
        assume(abs(radii[1] - radii[0]) <= 0.9 * np.linalg.norm(axis - ray * (axis @ ray)))
        builder = SolidBuilder()
        builder.add(0, 0, start, end, radii, stretch)
        chain = SolidBuilder()
        for t in np.linspace(0, 1, 200):
            centre = tuple((1 - t) * np.array(start) + t * np.array(end))
            chain.add(0, 0, centre, radius=float((1 - t) * radii[0] + t * radii[1]), stretch=stretch)
        view = Projection(20, 20, 12, 12, 1e9)
        depth, reference = (
            cast(each.build(), rotation[None], np.zeros((1, 3)), view, 40, 40).depth_map for each in (builder, chain)
        )
        either = (depth > -1e8) | (reference > -1e8)
        wrong = either & ~(np.abs(depth - reference) < 0.15)
        # A ray that grazes the outline may hit one and miss the other.
        assert wrong.sum() <= max(4, 0.05 * either.sum())
