from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posereid.data.crops import Crop
from posereid.data.sampling import (
    PosePairSampler,
    QuartetSampler,
    ShardedBatches,
    batch_quartets,
    crops_by_identity,
)
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, Joints

FULL = Joints(np.ones((JOINT_COUNT, 2), np.float32), np.ones(JOINT_COUNT, bool))
HEADLESS = Joints(np.zeros((JOINT_COUNT, 2), np.float32), np.zeros(JOINT_COUNT, bool))


def crop(identity: int, number: int = 0, joints: Joints | None = FULL, generated: bool = False) -> Crop:
    name = f"{identity}_{number}"
    return Crop(Path(name), name, identity, 1, "train", joints, source="s" if generated else None)


KINDS = st.sampled_from(["posed", "no joints", "no torso", "generated"])


@st.composite
def tables(draw: st.DrawFn) -> list[Crop]:
    """Three to six identities, some crops without a usable pose, junk and distractors between them."""
    crops = [crop(0), crop(-1), crop(0)]
    for identity in draw(st.lists(st.integers(1, 50), min_size=3, max_size=6, unique=True)):
        crops += [crop(identity, 0), crop(identity, 1)]
        for number, kind in enumerate(draw(st.lists(KINDS, max_size=3)), 2):
            joints = {"no joints": None, "no torso": HEADLESS}.get(kind, FULL)
            crops.append(crop(identity, number, joints, generated=kind == "generated"))
    return draw(st.permutations(crops))


def identities_of(crops: Sequence[Crop], positions: np.ndarray) -> np.ndarray:
    return np.array([[crops[position].identity for position in row] for row in positions])


# --- pose pairs --------------------------------------------------------------------------------------------


@given(tables(), st.integers(1, 9), st.integers(0, 99), st.integers(0, 3), st.integers(0, 9))
def test_pairs_are_two_crops_of_one_person_that_can_both_be_posed(
    crops: list[Crop], size: int, seed: int, epoch: int, step: int
) -> None:
    pairs = PosePairSampler(crops, size, 100, seed).batch(epoch, step)
    assert pairs.shape == (size, 2)
    for source, target in pairs:
        assert source != target
        assert crops[source].identity == crops[target].identity > 0
        for position in (source, target):
            joints = crops[position].joints
            assert joints is not None
            assert joints.has_torso


@given(tables(), st.integers(1, 14), st.integers(0, 99))
def test_identities_in_a_batch_repeat_only_once_all_have_been_drawn(crops: list[Crop], size: int, seed: int) -> None:
    pairs = PosePairSampler(crops, size, 100, seed).batch(0, 0)
    available = len({c.identity for c in crops if c.identity > 0})
    counts = Counter(identities_of(crops, pairs)[:, 0].tolist())
    assert len(counts) == min(size, available)
    assert max(counts.values()) - min(counts.values()) <= 1


@given(tables())
def test_the_number_of_pairs_counts_every_ordered_pair(crops: list[Crop]) -> None:
    naive = sum(a is not b and a.identity == b.identity and a.can_pose and b.can_pose for a in crops for b in crops)
    assert PosePairSampler(crops, 4, 100, 0).pairs == naive


def test_every_ordered_pair_is_drawn_in_time() -> None:
    crops = [crop(identity, number) for identity in (1, 2, 3) for number in range(3)]
    sampler = PosePairSampler(crops, 3, 300, 0)
    drawn = {tuple(pair) for step in range(200) for pair in sampler.batch(0, step)}
    assert len(drawn) == sampler.pairs == 3 * 6


def test_an_epoch_has_pairs_per_epoch_over_batch_size_steps_and_at_least_one() -> None:
    crops = [crop(identity, number) for identity in (1, 2, 3) for number in range(2)]
    assert PosePairSampler(crops, 16, 4000, 0).batches_per_epoch == 250
    assert PosePairSampler(crops, 16, 3, 0).batches_per_epoch == 1


def test_fewer_than_three_identities_with_two_posed_crops_are_refused() -> None:
    crops = [crop(1, 0), crop(1, 1), crop(2, 0), crop(2, 1), crop(3, 0), crop(3, 1, HEADLESS)]
    with pytest.raises(InputError, match=r"^2 identities have two crops.*keypoint"):
        PosePairSampler(crops, 4, 10, 0)


# --- quartets ----------------------------------------------------------------------------------------------


def assert_equation_12(crops: Sequence[Crop], quartets: np.ndarray) -> None:
    for quartet, (one, two, three, four) in zip(quartets, identities_of(crops, quartets), strict=True):
        assert quartet[0] != quartet[1]
        assert one == two > 0
        assert len({int(one), int(three), int(four)}) == 3
        assert min(three, four) > 0


@given(tables(), st.integers(1, 9), st.integers(0, 99), st.integers(0, 3), st.integers(0, 9), st.booleans())
def test_quartets_keep_the_identity_rules_of_equation_12(
    crops: list[Crop], size: int, seed: int, epoch: int, step: int, generated: bool
) -> None:
    quartets = QuartetSampler(crops, size, 100, seed, generated=generated).batch(epoch, step)[:, :4]
    assert quartets.shape == (size, 4)
    assert_equation_12(crops, quartets)
    if not generated:
        assert not any(crops[position].generated for position in quartets.flat)


def test_quartets_hold_generated_crops_in_every_place_unless_told_otherwise() -> None:
    crops = [crop(identity, n, generated=n > 1) for identity in (1, 2, 3, 4) for n in range(4)]
    sampler = QuartetSampler(crops, 50, 50, 0)
    places = [[crops[position].generated for position in row] for row in sampler.batch(0, 0)]
    assert np.array(places).any(0).all()
    assert not np.array(places).all(0).any()


def test_generated_crops_that_stay_out_of_quartets_still_come_for_the_identity_loss() -> None:
    crops = [crop(identity, n, generated=n > 1) for identity in (1, 2, 3, 4) for n in range(4)]
    rows = QuartetSampler(crops, 50, 50, 0, generated=False).batch(0, 0)
    assert rows.shape == (50, 5)
    assert not any(crops[position].generated for position in rows[:, :4].flat)
    assert set(rows[:, 4]) == {n for n, one in enumerate(crops) if one.generated}


def test_a_person_with_one_crop_is_a_negative_but_no_anchor() -> None:
    crops = [crop(1, 0), crop(1, 1), crop(2), crop(3)]
    quartets = identities_of(crops, QuartetSampler(crops, 40, 40, 0).batch(0, 0))
    assert set(quartets[:, :2].flat) == {1}
    assert set(quartets[:, 2]) == set(quartets[:, 3]) == {2, 3}


@pytest.mark.parametrize(
    "crops",
    [
        [crop(1, 0), crop(1, 1), crop(2, 0), crop(2, 1), crop(0), crop(-1)],
        [crop(1), crop(2), crop(3)],
        [crop(1, 0), crop(1, 1, generated=True), crop(2), crop(3)],
    ],
    ids=["two identities", "no positive pair", "no positive pair of real crops"],
)
def test_too_few_identities_or_no_positive_pair_are_refused(crops: list[Crop]) -> None:
    with pytest.raises(InputError, match="at least 3 identities, one of them with two crops"):
        QuartetSampler(crops, 4, 8, 0, generated=False)


# --- how many generated crops a batch holds ----------------------------------------------------------------

MIXED = [crop(identity, n, generated=n > 2) for identity in range(1, 6) for n in range(5)]
SHARES = st.floats(0.001, 0.97)
SIZES = st.integers(1, 9)


def generated_in(crops: Sequence[Crop], positions: np.ndarray) -> int:
    return sum(crops[position].generated for position in positions.flat)


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        (True, [[20, 24, 4, 11], [10, 11, 16, 5], [12, 13, 15, 6], [8, 5, 2, 21]]),
        (False, [[20, 22, 2, 10, 24], [12, 10, 15, 5, 9], [12, 11, 15, 5, 23], [6, 5, 1, 20, 4]]),
    ],
)
def test_without_a_share_a_seed_draws_what_it_always_drew(generated: bool, expected: list[list[int]]) -> None:
    assert QuartetSampler(MIXED, 4, 8, 3, generated=generated).batch(1, 1).tolist() == expected


@given(SHARES, SIZES, st.integers(0, 99), st.integers(0, 3), st.integers(0, 9))
def test_a_batch_holds_exactly_its_share_of_generated_crops(
    share: float, size: int, seed: int, epoch: int, step: int
) -> None:
    batch = QuartetSampler(MIXED, size, 100, seed, share=share).batch(epoch, step)
    assert batch.shape == (size, 4)
    assert_equation_12(MIXED, batch)
    assert generated_in(MIXED, batch) == round(share * 4 * size)
    np.testing.assert_array_equal(batch, QuartetSampler(MIXED, size, 100, seed, share=share).batch(epoch, step))


@given(tables(), SHARES, SIZES, st.integers(0, 99))
def test_where_a_kind_is_short_the_other_steps_in_and_no_crop_is_its_own_positive(
    crops: list[Crop], share: float, size: int, seed: int
) -> None:
    if not any(one.generated for one in crops):
        with pytest.raises(InputError, match=r"none of the .* training crops is generated"):
            QuartetSampler(crops, size, 100, seed, share=share)
        return
    batch = QuartetSampler(crops, size, 100, seed, share=share).batch(0, 0)
    assert_equation_12(crops, batch)
    fewest, most = 0, 0
    for row in batch:
        for places in (row[:2], row[2:3], row[3:]):
            kinds = [one.generated for one in crops if one.identity == crops[places[0]].identity]
            fewest += max(0, len(places) - kinds.count(False))
            most += min(len(places), kinds.count(True))
    assert generated_in(crops, batch) == min(max(round(share * batch.size), fewest), most)


def test_a_share_reaches_every_place_of_a_quartet_and_every_crop() -> None:
    sampler = QuartetSampler(MIXED, 50, 500, 0, share=0.5)
    batches = np.concatenate([sampler.batch(0, step) for step in range(10)])
    frequency = np.array([[MIXED[position].generated for position in row] for row in batches]).mean(0)
    np.testing.assert_allclose(frequency, 0.5, atol=0.08)
    assert set(batches.flat) == set(range(len(MIXED)))


@given(SHARES, SIZES, st.integers(0, 99))
def test_outside_quartets_each_row_has_the_nearest_whole_number_of_generated_crops(
    share: float, size: int, seed: int
) -> None:
    batch = QuartetSampler(MIXED, size, 100, seed, generated=False, share=share).batch(0, 0)
    extra = batch.shape[1] - 4
    assert generated_in(MIXED, batch[:, :4]) == 0
    assert generated_in(MIXED, batch[:, 4:]) == size * extra
    # With g generated beside 4 real ones the share is g / (4 + g): solved for g.
    assert abs(extra - 4 * share / (1 - share)) <= 0.5 or extra == 1


def test_identities_without_a_generated_crop_are_counted() -> None:
    crops = [crop(1, 0), crop(1, 1), crop(2, 0, generated=True), crop(3), crop(0), crop(4, 0), crop(4, 1)]
    assert QuartetSampler(crops, 4, 8, 0).identities_without_generated == 3
    assert QuartetSampler(crops, 4, 8, 0, generated=False).identities_without_generated == 3


def test_a_generated_crop_of_nobody_known_is_never_drawn() -> None:
    crops = [*MIXED, crop(0, 9, generated=True), crop(-1, 9, generated=True)]
    for generated in (True, False):
        assert QuartetSampler(crops, 60, 60, 0, generated=generated).batch(0, 0).max() < len(MIXED)


@given(st.one_of(st.none(), SHARES), st.integers(1, 3), st.integers(0, 9))
def test_epochs_of_the_warm_up_hold_generated_crops_only_and_later_ones_are_as_without(
    share: float | None, warmup: int, step: int
) -> None:
    sampler = QuartetSampler(MIXED, 6, 60, 4, share=share, warmup=warmup)
    without = QuartetSampler(MIXED, 6, 60, 4, share=share)
    for epoch in range(warmup):
        assert generated_in(MIXED, sampler.batch(epoch, step)) == 24
        assert_equation_12(MIXED, sampler.batch(epoch, step))
    for epoch in (warmup, warmup + 1):
        np.testing.assert_array_equal(sampler.batch(epoch, step), without.batch(epoch, step))


@pytest.mark.parametrize(
    "crops",
    [
        [one for one in MIXED if one.identity < 3 or not one.generated],
        [one for one in MIXED if one.name[-1] != "4"],
        [one for one in MIXED if not one.generated],
    ],
    ids=["two identities", "no positive pair", "none generated"],
)
def test_a_warm_up_needs_quartets_of_generated_crops(crops: list[Crop]) -> None:
    with pytest.raises(InputError, match=r"generated training crops of the warm-up hold .* at least 3 identities"):
        QuartetSampler(crops, 4, 8, 0, warmup=1)


# --- determinism and sharing among processes ---------------------------------------------------------------

TABLE = [crop(identity, number) for identity in range(1, 9) for number in range(3)]


@pytest.mark.parametrize("sampler", [PosePairSampler, QuartetSampler])
def test_a_batch_is_a_function_of_seed_epoch_and_step(sampler) -> None:
    first, again = sampler(TABLE, 6, 60, 7), sampler(TABLE, 6, 60, 7)
    again.batch(0, 0)
    np.testing.assert_array_equal(first.batch(2, 3), again.batch(2, 3))
    others = [sampler(TABLE, 6, 60, 8).batch(2, 3), first.batch(3, 2), first.batch(2, 4), first.batch(1, 3)]
    assert not any(np.array_equal(first.batch(2, 3), other) for other in others)


@given(st.sampled_from([1, 2, 3, 6]), st.integers(1, 25), st.integers(0, 5))
def test_processes_share_each_batch_without_overlap_and_without_loss(world: int, steps: int, seed: int) -> None:
    sampler = PosePairSampler(TABLE, 6, 24, seed)
    whole = list(ShardedBatches(sampler, steps))
    shares = [list(ShardedBatches(sampler, steps, rank=rank, world_size=world)) for rank in range(world)]
    assert len(whole) == steps
    for step in range(steps):
        assert [row for share in shares for row in share[step]] == whole[step]
        epoch, place = step // 4, step % 4
        assert [row[1:] for row in whole[step]] == [tuple(pair) for pair in sampler.batch(epoch, place)]
        assert len({len(share[step]) for share in shares}) == 1


@given(st.integers(0, 20), st.integers(1, 20), st.sampled_from([1, 2]))
def test_a_resumed_run_draws_exactly_the_rest(first_step: int, more: int, world: int) -> None:
    sampler = QuartetSampler(TABLE, 4, 12, 1)
    steps = first_step + more
    for rank in range(world):
        whole = ShardedBatches(sampler, steps, rank=rank, world_size=world)
        rest = ShardedBatches(sampler, steps, first_step=first_step, rank=rank, world_size=world)
        assert len(rest) == more
        assert list(rest) == list(whole)[first_step:]


def test_the_seed_of_a_rows_mirroring_differs_from_row_to_row_and_step_to_step() -> None:
    draws = [row[0] for batch in ShardedBatches(PosePairSampler(TABLE, 8, 80, 0), 20) for row in batch]
    assert len(set(draws)) == len(draws) == 160


def test_batches_that_do_not_divide_among_processes_are_refused() -> None:
    with pytest.raises(InputError, match="batch of 6 does not divide among 4 processes"):
        ShardedBatches(PosePairSampler(TABLE, 6, 60, 0), 5, rank=1, world_size=4)


# --- quartets inside a batch -------------------------------------------------------------------------------


@given(st.data(), st.integers(3, 6), st.integers(0, 99))
def test_each_drawable_image_with_a_partner_is_once_the_anchor(data: st.DataObject, people: int, seed: int) -> None:
    labels = data.draw(st.permutations([label for label in range(people) for _ in range(3)]))
    drawable = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    usable = Counter(label for label, use in zip(labels, drawable, strict=True) if use)
    if len(usable) < 3:
        with pytest.raises(ValueError, match="3 identities"):
            batch_quartets(labels, drawable, np.random.default_rng(seed))
        return
    quartets = batch_quartets(labels, drawable, np.random.default_rng(seed))
    expected = [n for n, label in enumerate(labels) if drawable[n] and usable[label] > 1]
    assert sorted(quartets[:, 0].tolist()) == expected
    for one, two, three, four in quartets:
        assert one != two
        assert labels[one] == labels[two]
        assert len({labels[one], labels[three], labels[four]}) == 3
        assert all(drawable[position] for position in (one, two, three, four))


def test_a_batch_of_lone_images_has_no_quartet() -> None:
    quartets = batch_quartets([1, 2, 3], [True] * 3, np.random.default_rng(0))
    assert quartets.shape == (0, 4)


def test_positives_and_negatives_inside_a_batch_vary_with_the_random_numbers() -> None:
    labels = [0, 1, 2, 3] * 4
    drawn = {batch_quartets(labels, [True] * 16, np.random.default_rng(seed)).tobytes() for seed in range(5)}
    assert len(drawn) == 5


def test_identities_are_grouped_in_ascending_order_without_junk_and_distractors() -> None:
    crops = [crop(7, 0), crop(-1), crop(2, 0, HEADLESS), crop(0), crop(7, 1, None), crop(2, 1)]
    assert crops_by_identity(crops) == {2: [2, 5], 7: [0, 4]}
    assert list(crops_by_identity(crops)) == [2, 7]
    assert crops_by_identity(crops, posed=True) == {2: [5], 7: [0]}
