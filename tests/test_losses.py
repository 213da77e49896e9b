import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from posereid.losses import (
    discriminator_loss,
    generator_adversarial_loss,
    identity_loss,
    perceptual_loss,
    quartet_loss,
    reconstruction_loss,
    semantic_consistency_loss,
    structure_loss,
    weighted_sum,
)


def arrays(*shape: st.SearchStrategy[int] | int, bound: float = 5.0) -> st.SearchStrategy[Tensor]:
    sizes = st.tuples(*(size if isinstance(size, st.SearchStrategy) else st.just(size) for size in shape))
    values = st.floats(-bound, bound, allow_nan=False, width=32)
    return sizes.flatmap(lambda size: hnp.arrays("float64", size, elements=values)).map(torch.from_numpy)


def pairs_of(strategy_shape: tuple[int, ...], count: int, bound: float = 5.0):
    return st.tuples(*(arrays(*strategy_shape, bound=bound) for _ in range(count)))


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / max(length, 1e-12) for value in vector]


def squared_distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


# --- equations 7 and 8 -------------------------------------------------------------------------------------


@given(pairs_of((2, 1, 2, 3), 2))
def test_discriminator_loss_is_the_negative_of_equation_7_patch_by_patch(logits: tuple[Tensor, Tensor]) -> None:
    real, generated = (part.flatten().tolist() for part in logits)
    expected = 0.0
    for logit in real:
        expected -= math.log(probability(logit)) / len(real)
    for logit in generated:
        expected -= math.log(1 - probability(logit)) / len(generated)
    assert discriminator_loss(*logits).item() == pytest.approx(expected, rel=1e-6)


@given(arrays(2, 1, 2, 2))
def test_generator_loss_is_minus_log_d_or_literally_log_of_one_minus_d(logits: Tensor) -> None:
    values = logits.flatten().tolist()
    non_saturating = sum(-math.log(probability(v)) for v in values) / len(values)
    literal = sum(math.log(1 - probability(v)) for v in values) / len(values)
    assert generator_adversarial_loss(logits).item() == pytest.approx(non_saturating, rel=1e-6)
    assert generator_adversarial_loss(logits, saturating=True).item() == pytest.approx(literal, rel=1e-6)


def test_an_undecided_discriminator_costs_two_log_two_and_the_generator_log_two() -> None:
    undecided = torch.zeros(3, 1, 4, 2)
    assert discriminator_loss(undecided, undecided).item() == pytest.approx(2 * math.log(2))
    assert generator_adversarial_loss(undecided).item() == pytest.approx(math.log(2))
    assert generator_adversarial_loss(undecided, saturating=True).item() == pytest.approx(-math.log(2))


def test_real_and_generated_logits_may_have_different_batch_sizes() -> None:
    real, generated = torch.full((1, 1, 1, 1), 2.0), torch.full((5, 1, 1, 1), -3.0)
    expected = -math.log(probability(2.0)) - math.log(1 - probability(-3.0))
    assert discriminator_loss(real, generated).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extreme_logits_keep_adversarial_losses_and_gradients_finite(value: float) -> None:
    logits = torch.full((2, 1, 2, 2), value, requires_grad=True)
    total = (
        discriminator_loss(logits, logits)
        + generator_adversarial_loss(logits)
        + generator_adversarial_loss(logits, saturating=True)
    )
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("saturating", [False, True])
def test_both_forms_push_the_generators_logits_up(saturating: bool) -> None:
    logits = torch.tensor([-6.0, -1.0, 0.0, 2.0], requires_grad=True)
    generator_adversarial_loss(logits, saturating=saturating).backward()
    assert (logits.grad < 0).all()


def test_only_the_non_saturating_form_keeps_its_gradient_while_the_discriminator_wins() -> None:
    def gradient(saturating: bool) -> float:
        logit = torch.tensor([-10.0], requires_grad=True)
        generator_adversarial_loss(logit, saturating=saturating).backward()
        return abs(logit.grad.item())

    assert gradient(saturating=False) > 0.99
    assert gradient(saturating=True) < 1e-4


def test_the_discriminator_learns_upwards_on_real_and_downwards_on_generated() -> None:
    real, generated = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminator_loss(real, generated).backward()
    assert (real.grad < 0).all()
    assert (generated.grad > 0).all()


# --- equations 9 and 10 ------------------------------------------------------------------------------------


@given(pairs_of((2, 3, 2, 2), 2, bound=1.0))
def test_reconstruction_loss_is_the_mean_absolute_difference(images: tuple[Tensor, Tensor]) -> None:
    generated, target = (part.flatten().tolist() for part in images)
    expected = sum(abs(a - b) for a, b in zip(generated, target, strict=True)) / len(generated)
    assert reconstruction_loss(*images).item() == pytest.approx(expected, abs=1e-9)


def test_reconstruction_loss_spans_zero_to_two_for_images() -> None:
    black, white = -torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert reconstruction_loss(black, black).item() == 0
    assert reconstruction_loss(black, white).item() == 2


def similarity_by_loops(one: Tensor, other: Tensor) -> float:
    """SSIM of (B, 3, H, W) in [-1, 1] from its definition; pictures mirrored at their borders, ends not repeated."""
    window = [math.exp(-((k - 5) ** 2) / (2 * 1.5**2)) for k in range(11)]
    weights = [[a * b / sum(window) ** 2 for b in window] for a in window]
    batch, channels, height, width = one.shape
    first, second = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    total = 0.0
    for b, c, y, x in itertools.product(range(batch), range(channels), range(height), range(width)):
        sums = [0.0] * 5
        for dy, dx in itertools.product(range(11), range(11)):
            row, column = (
                abs(at) if at < size else 2 * (size - 1) - at
                for at, size in ((y + dy - 5, height), (x + dx - 5, width))
            )
            u, v = one[b, c, row, column].item(), other[b, c, row, column].item()
            for place, value in enumerate((u, v, u * u, v * v, u * v)):
                sums[place] += weights[dy][dx] * value
        mean_u, mean_v, squares_u, squares_v, products = sums
        variances = squares_u - mean_u**2 + squares_v - mean_v**2
        covariance = products - mean_u * mean_v
        total += (
            (2 * mean_u * mean_v + first)
            * (2 * covariance + second)
            / ((mean_u**2 + mean_v**2 + first) * (variances + second))
        )
    return total / (batch * channels * height * width)


def test_structure_loss_is_one_minus_ssim_written_as_a_loop() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (torch.rand(1, 3, 9, 7, generator=random, dtype=torch.float64) * 2 - 1 for _ in range(2))
    assert structure_loss(one, other).item() == pytest.approx(1 - similarity_by_loops(one, other), abs=1e-9)
    assert structure_loss(one, one).item() == pytest.approx(0, abs=1e-9)


@given(pairs_of((2, 3, 2, 2), 4))
def test_perceptual_loss_compares_unit_features_pixel_by_pixel(maps: tuple[Tensor, ...]) -> None:
    drawn, wanted = maps[:2], maps[2:]
    stages = []
    for one, other in zip(drawn, wanted, strict=True):
        distances = [
            squared_distance(unit(one[b, :, y, x].tolist()), unit(other[b, :, y, x].tolist()))
            for b, y, x in itertools.product(range(2), range(2), range(2))
        ]
        stages.append(sum(distances) / len(distances))
    assert perceptual_loss(drawn, wanted).item() == pytest.approx(sum(stages) / 2, abs=1e-9)


@given(pairs_of((3, 4), 2))
def test_semantic_loss_compares_unit_embeddings_element_by_element(embeddings: tuple[Tensor, Tensor]) -> None:
    total = 0.0
    for source, generated in zip(*(part.tolist() for part in embeddings), strict=True):
        total += sum(abs(a - b) for a, b in zip(unit(source), unit(generated), strict=True))
    assert semantic_consistency_loss(*embeddings).item() == pytest.approx(total / 12, abs=1e-9)


def test_semantic_loss_sees_direction_and_not_length() -> None:
    source = torch.tensor([[3.0, 4.0]])
    assert semantic_consistency_loss(source, 7 * source).item() == pytest.approx(0, abs=1e-7)
    assert semantic_consistency_loss(source, -source).item() == pytest.approx(2 * (0.6 + 0.8) / 2)


# --- equation 12 -------------------------------------------------------------------------------------------


@given(pairs_of((3, 4), 4), st.floats(-2, 1), st.floats(0, 0.5))
def test_quartet_loss_equals_equation_12_written_as_a_loop(
    parts: tuple[Tensor, ...], margin: float, intra_margin: float
) -> None:
    total = 0.0
    for quartet in zip(*(part.tolist() for part in parts), strict=True):
        one, two, three, four = (unit(vector) for vector in quartet)
        first = (
            squared_distance(one, two)
            - squared_distance(one, three)
            + squared_distance(one, two)
            - squared_distance(four, three)
        )
        total += max(first, margin) + max(squared_distance(one, two), intra_margin)
    assert quartet_loss(*parts, margin, intra_margin).item() == pytest.approx(total / 3, abs=1e-9)


X, Y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("quartet", "expected"),
    [
        ((X, X, Y, -Y), -1 + 0.01),  # 0 - 2 - 4 lies under the margin
        ((X, Y, X, X), 4 + 2),  # 2·2 - 0 - 0, and the positive pair's 2
        ((X, X, X, X), 0 + 0.01),
        ((X, Y, -X, X), -1 + 2),  # 4 - 4 - 4, and the positive pair's 2
    ],
)
def test_quartet_loss_of_known_directions(quartet: tuple[Tensor, ...], expected: float) -> None:
    assert quartet_loss(*quartet).item() == pytest.approx(expected, abs=1e-6)


@given(pairs_of((2, 3), 4))
def test_a_margin_of_minus_one_is_a_hinge_of_margin_one_shifted_by_a_constant(parts: tuple[Tensor, ...]) -> None:
    ones, twos, threes, fours = ([unit(row) for row in part.tolist()] for part in parts)
    hinge, intra = 0.0, 0.0
    for one, two, three, four in zip(ones, twos, threes, fours, strict=True):
        gap = squared_distance(one, three) + squared_distance(four, three) - 2 * squared_distance(one, two)
        hinge += max(0.0, 1 - gap) / 2
        intra += max(squared_distance(one, two), 0.01) / 2
    assert quartet_loss(*parts).item() == pytest.approx(hinge - 1 + intra, abs=1e-9)


def test_a_satisfied_quartet_has_no_gradient_and_a_violated_one_pulls_the_positives_together() -> None:
    def gradients(*vectors: Tensor) -> list[Tensor]:
        leaves = [vector.clone().requires_grad_() for vector in vectors]
        quartet_loss(*leaves).backward()
        return [leaf.grad for leaf in leaves]

    nearly_x = torch.tensor([[1.0, 0.05]])
    assert all(not gradient.any() for gradient in gradients(X, nearly_x, Y, -Y))
    anchor, positive, *_ = gradients(X, Y, X + 0.2 * Y, X - 0.2 * Y)
    assert (anchor * (Y - X)).sum() < 0
    assert (positive * (X - Y)).sum() < 0


def test_the_other_negative_enters_through_its_distance_to_the_first_negative() -> None:
    near, far = Y + 0.1 * X, -Y
    assert quartet_loss(X, -X, Y, near) > quartet_loss(X, -X, Y, far)


# --- equation 13 -------------------------------------------------------------------------------------------


@given(arrays(3, 4), st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_identity_loss_is_minus_log_of_the_true_identitys_softmax(logits: Tensor, labels: list[int]) -> None:
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(value) for value in row))
    assert identity_loss(logits, torch.tensor(labels)).item() == pytest.approx(total / 3, abs=1e-9)


def test_identity_loss_of_equal_logits_is_log_of_the_number_of_identities() -> None:
    assert identity_loss(torch.zeros(2, 751), torch.tensor([0, 750])).item() == pytest.approx(math.log(751), rel=1e-5)


def test_identity_loss_stays_finite_for_extreme_logits() -> None:
    assert identity_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).item() == pytest.approx(2e4)


@given(
    arrays(3, 4),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_a_smoothed_identity_loss_is_the_cross_entropy_with_each_images_own_mixture(
    logits: Tensor, labels: list[int], smoothing: list[float]
) -> None:
    total = 0.0
    for row, label, share in zip(logits.tolist(), labels, smoothing, strict=True):
        for identity, value in enumerate(row):
            target = (1 - share) * (identity == label) + share / len(row)
            total -= target * math.log(math.exp(value) / sum(math.exp(other) for other in row))
    loss = identity_loss(logits, torch.tensor(labels), torch.tensor(smoothing, dtype=torch.float64))
    assert loss.item() == pytest.approx(total / 3, abs=1e-9)


@given(arrays(3, 4), st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_no_smoothing_and_a_smoothing_of_zero_ask_for_the_same(logits: Tensor, labels: list[int]) -> None:
    sharp, smoothed = (identity_loss(logits, torch.tensor(labels), s) for s in (None, torch.zeros(3)))
    assert smoothed.item() == pytest.approx(sharp.item(), abs=1e-9)
    assert torch.equal(sharp, torch.nn.functional.cross_entropy(logits, torch.tensor(labels)))


@given(arrays(2, 4), st.lists(st.integers(0, 3), min_size=2, max_size=2))
def test_labels_for_anybody_give_the_same_loss_and_gradient_whatever_the_label(
    logits: Tensor, labels: list[int]
) -> None:
    def loss_and_gradient(names: list[int]) -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        loss = identity_loss(leaf, torch.tensor(names), torch.ones(2))
        loss.backward()
        return loss, leaf.grad

    for one, other in zip(loss_and_gradient(labels), loss_and_gradient([0, 0]), strict=True):
        assert torch.equal(one, other)


def test_labels_for_anybody_pull_every_logit_towards_the_mean_and_real_labels_beside_them_stay_sharp() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], requires_grad=True)
    identity_loss(logits, torch.tensor([0, 0]), torch.tensor([1.0, 0.0])).backward()
    anybody, somebody = logits.grad
    assert anybody[0] > 0 > anybody[1]
    assert somebody[0] < 0 < somebody[1]
    sharp = logits.detach()[1:].requires_grad_()
    identity_loss(sharp, torch.tensor([0])).backward()
    torch.testing.assert_close(somebody, sharp.grad[0] / 2)


# --- equations 11 and 14 -----------------------------------------------------------------------------------


def test_weighted_sum_with_the_papers_weights() -> None:
    weights = {"adversarial": 5.0, "reconstruction": 10.0, "semantic": 10.0, "quartet": 1.0, "identity": 1.0}
    values = {"adversarial": 0.3, "reconstruction": 0.2, "semantic": 0.01, "quartet": -0.5, "identity": 2.0}
    terms = {name: torch.tensor(value) for name, value in values.items()}
    assert weighted_sum(terms, weights).item() == pytest.approx(1.5 + 2 + 0.1 - 0.5 + 2, rel=1e-6)


def test_weighted_sum_passes_each_weight_on_as_gradient() -> None:
    first, second = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    weighted_sum({"a": first, "b": second}, {"a": 3.0, "b": 0.5, "unused": 9.0}).backward()
    assert (first.grad.item(), second.grad.item()) == (3.0, 0.5)


def test_weighted_sum_refuses_a_term_without_a_weight_and_an_empty_sum() -> None:
    with pytest.raises(KeyError, match="semantic"):
        weighted_sum({"semantic": torch.tensor(1.0)}, {"identity": 1.0})
    with pytest.raises(ValueError, match="at least one term"):
        weighted_sum({}, {"identity": 1.0})


# --- gradients ---------------------------------------------------------------------------------------------


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR, requires_grad=True)


GENERATOR = torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    [
        (discriminator_loss, (random(2, 1, 2, 2), random(2, 1, 2, 2))),
        (generator_adversarial_loss, (random(2, 1, 2, 2),)),
        (lambda logits: generator_adversarial_loss(logits, saturating=True), (random(2, 1, 2, 2),)),
        (reconstruction_loss, (random(1, 3, 2, 2), random(1, 3, 2, 2))),
        (semantic_consistency_loss, (random(3, 4), random(3, 4))),
        (quartet_loss, tuple(random(4, 5) for _ in range(4))),
        (lambda logits: identity_loss(logits, torch.tensor([2, 0])), (random(2, 3),)),
        (lambda logits: identity_loss(logits, torch.tensor([2, 0]), torch.tensor([0.3, 1])), (random(2, 3),)),
    ],
    ids=["discriminator", "generator", "saturating", "reconstruction", "semantic", "quartet", "identity", "smoothed"],
)
def test_gradients_agree_with_finite_differences(loss, inputs: tuple[Tensor, ...]) -> None:
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("loss", [semantic_consistency_loss, lambda a, b: quartet_loss(a, a, b, -b)])
def test_a_zero_embedding_gives_finite_values_and_gradients(loss) -> None:
    nothing = torch.zeros(2, 4, requires_grad=True)
    value = loss(nothing, torch.ones(2, 4))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(nothing.grad).all()
