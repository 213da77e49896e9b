import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from posereid.generator.pagn import adaptive_instance_normalisation, normalised_feature


def naive(content: list[list[float]], style: list[list[float]], epsilon: float) -> list[list[float]]:
    """One channel, pixel by pixel, from the definition."""

    def statistics(channel: list[list[float]]) -> tuple[float, float]:
        values = [value for row in channel for value in row]
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + epsilon)

    (mean, deviation), (style_mean, style_deviation) = statistics(content), statistics(style)
    return [[style_deviation * (value - mean) / deviation + style_mean for value in row] for row in content]


MAPS = hnp.arrays("float32", (2, 2, 3, 2), elements=st.floats(-4, 4, width=32)).map(torch.from_numpy)
OTHER_MAPS = hnp.arrays("float32", (2, 2, 2, 4), elements=st.floats(-4, 4, width=32)).map(torch.from_numpy)


@given(MAPS, OTHER_MAPS)
def test_adain_equals_its_definition_channel_by_channel(content: torch.Tensor, style: torch.Tensor) -> None:
    found = adaptive_instance_normalisation(content, style, epsilon=1e-2)
    for sample in range(2):
        for channel in range(2):
            expected = naive(content[sample, channel].tolist(), style[sample, channel].tolist(), 1e-2)
            torch.testing.assert_close(found[sample, channel], torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_output_has_the_styles_mean_and_deviation_and_the_contents_layout() -> None:
    torch.manual_seed(0)
    content, style = 5 + 3 * torch.randn(2, 4, 16, 8), torch.randn(2, 4, 8, 4) * 0.5 - 1
    found = adaptive_instance_normalisation(content, style)
    torch.testing.assert_close(found.mean((2, 3)), style.mean((2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.std((2, 3), correction=0), style.std((2, 3), correction=0), rtol=1e-3, atol=1e-4)
    flat_found, flat_content = found.flatten(2), content.flatten(2)
    assert torch.equal(flat_found.argsort(dim=2), flat_content.argsort(dim=2))


def test_statistics_are_each_samples_own() -> None:
    torch.manual_seed(1)
    content, style = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    together = adaptive_instance_normalisation(content, style)
    alone = torch.cat([adaptive_instance_normalisation(content[n : n + 1], style[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(together, alone)


def test_content_without_variance_becomes_the_styles_mean_and_keeps_finite_gradients() -> None:
    torch.manual_seed(2)
    content = torch.full((2, 3, 4, 4), 3.0, requires_grad=True)
    style = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = adaptive_instance_normalisation(content, style)
    torch.testing.assert_close(found, style.mean((2, 3), keepdim=True).expand_as(found), rtol=0, atol=1e-3)
    found.square().sum().backward()
    assert torch.isfinite(content.grad).all()
    assert torch.isfinite(style.grad).all()


def test_style_without_variance_gives_a_nearly_constant_map() -> None:
    found = adaptive_instance_normalisation(torch.randn(1, 1, 8, 8), torch.full((1, 1, 8, 8), -2.0))
    assert (found + 2).abs().max() < 0.02


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_bfloat16_stays_close_to_float32_even_where_the_mean_outweighs_the_deviation(offset: float) -> None:
    torch.manual_seed(3)
    content = (offset + 0.1 * torch.randn(2, 4, 16, 8)).bfloat16()
    style = torch.randn(2, 4, 16, 8).bfloat16()
    exact = adaptive_instance_normalisation(content.float(), style.float())
    found = adaptive_instance_normalisation(content, style)
    assert found.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: half a unit in the last place of values up to 4 is 0.008.
    assert (found.float() - exact).abs().max() < 0.03


def test_a_bfloat16_channel_without_variance_becomes_the_styles_mean() -> None:
    torch.manual_seed(4)
    style = torch.randn(1, 2, 8, 4).bfloat16()
    found = adaptive_instance_normalisation(torch.full((1, 2, 8, 4), 3.0).bfloat16(), style)
    expected = style.float().mean((2, 3), keepdim=True).expand(1, 2, 8, 4)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


def test_the_two_readings_of_equation_3_exchange_layout_and_statistics() -> None:
    torch.manual_seed(5)
    style, content = torch.randn(1, 2, 4, 4) * 2 + 1, torch.randn(1, 2, 4, 4) * 0.5 - 3

    def layout(maps: torch.Tensor) -> torch.Tensor:
        centred = maps - maps.mean((2, 3), keepdim=True)
        return centred / centred.std((2, 3), keepdim=True)

    literal = normalised_feature(style, content, "literal")
    torch.testing.assert_close(layout(literal), layout(content), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(literal.mean((2, 3)), style.mean((2, 3)), rtol=1e-4, atol=1e-4)
    pose_content = normalised_feature(style, content, "pose_content")
    torch.testing.assert_close(layout(pose_content), layout(style), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pose_content.mean((2, 3)), content.mean((2, 3)), rtol=1e-4, atol=1e-4)
