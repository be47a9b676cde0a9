# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The roofline model gives the numbers of the paper's figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.roofline import (
    attainable,
    attention_flops,
    attention_intensity,
    balance_point,
    expert_flops,
    expert_intensity,
    tokens_at_intensity,
    touched_experts,
    turning_point_device,
    turning_point_host,
)
from tests.moe_offload.planner_cases import MIXTRAL_8X7B, QWEN3_30B_A3B

# The L4 of the paper's figures: bytes and operations per second.
HOST_BANDWIDTH, DEVICE_BANDWIDTH, LINK = 100e9, 300e9, 16e9
HOST_PEAK, DEVICE_PEAK = 1.3e12, 242e12


@pytest.mark.parametrize(
    ("tokens", "intensity"), [(32, 8.0), (128, 32.0), (1024, 252.6), (16384, 3373.0)]
)
def test_intensity_of_mixtral_experts(tokens: int, intensity: float) -> None:
    assert expert_intensity(MIXTRAL_8X7B, tokens) == pytest.approx(intensity, rel=3e-3)


def test_host_turning_point_of_experts() -> None:
    point = turning_point_host(HOST_PEAK, HOST_BANDWIDTH, 81.25, LINK)
    assert point == 81.25
    tokens = tokens_at_intensity(MIXTRAL_8X7B, point)
    assert math.ceil(tokens) == 327
    # Just there, the link gives the device as much as the host can do itself.
    moved = attainable(DEVICE_PEAK, DEVICE_BANDWIDTH, math.inf, LINK, point)
    assert moved == attainable(HOST_PEAK, HOST_BANDWIDTH, point)


def test_device_turning_point_of_experts() -> None:
    local = expert_intensity(MIXTRAL_8X7B, 128)
    assert attainable(DEVICE_PEAK, DEVICE_BANDWIDTH, local) == pytest.approx(
        9.58e12, rel=1e-3
    )
    point = turning_point_device(DEVICE_PEAK, DEVICE_BANDWIDTH, local, LINK)
    assert point == pytest.approx(599, abs=1)
    assert tokens_at_intensity(MIXTRAL_8X7B, point) == pytest.approx(2474, rel=2e-3)
    # Memory is the limit of so small a micro-batch, so here is the balance too.
    assert balance_point(DEVICE_BANDWIDTH, local, LINK) == point
    large = expert_intensity(MIXTRAL_8X7B, 16384)
    assert turning_point_device(DEVICE_PEAK, DEVICE_BANDWIDTH, large, LINK) == (
        DEVICE_PEAK / LINK
    )
    assert balance_point(DEVICE_BANDWIDTH, large, LINK) > DEVICE_PEAK / LINK


@pytest.mark.parametrize(
    ("value_bytes", "intensity", "point"), [(2.0, 2.0, 12.5), (0.5, 8.0, 50.0)]
)
def test_attention_stays_on_the_host(
    value_bytes: float, intensity: float, point: float
) -> None:
    found = attention_intensity(32, 8, value_bytes, products=1)
    assert found == intensity
    assert turning_point_host(HOST_PEAK, HOST_BANDWIDTH, found, LINK) == point
    # With both products, which the paper does not count, it stays as well.
    both = attention_intensity(32, 8, value_bytes)
    assert both == 2 * intensity
    assert both < turning_point_host(HOST_PEAK, HOST_BANDWIDTH, both, LINK)


def test_attention_intensity_is_operations_over_bytes() -> None:
    shape = QWEN3_30B_A3B
    # Scores and the sum of values, two operations for each number and query head.
    assert attention_flops(shape, 7) == 2 * 2 * 32 * 128 * 7
    expected = attention_flops(shape, 1) / shape.cache_bytes_per_token
    found = attention_intensity(shape.heads, shape.kv_heads, shape.cache_value_bytes)
    assert found == expected


def test_operations_of_experts() -> None:
    # Gate, up and down: three products with two operations for each weight.
    assert expert_flops(MIXTRAL_8X7B, 5) == 2 * 3 * 4096 * 14336 * 2 * 5


@settings(max_examples=50, deadline=None)
@given(*[st.floats(1.0, 1e6) for _ in range(5)])
def test_the_lowest_roof_counts(
    peak: float, local: float, intensity: float, link: float, moved: float
) -> None:
    found = attainable(peak, local, intensity, link, moved)
    assert found == sorted([peak, local * intensity, link * moved])[0]
    assert attainable(peak, local, intensity) == min(peak, local * intensity)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.5, 1e6))
def test_tokens_and_intensity_are_each_others_inverse(tokens: float) -> None:
    for shape in (MIXTRAL_8X7B, QWEN3_30B_A3B):
        found = tokens_at_intensity(shape, expert_intensity(shape, tokens))
        assert found == pytest.approx(tokens, rel=1e-6)


def test_no_number_of_tokens_exceeds_the_intensity_of_activations() -> None:
    assert tokens_at_intensity(MIXTRAL_8X7B, 1e9) == math.inf
    assert expert_intensity(MIXTRAL_8X7B, 1e12) < 1e9


def test_experts_that_tokens_touch() -> None:
    assert touched_experts(MIXTRAL_8X7B, 1) == pytest.approx(2)
    assert touched_experts(MIXTRAL_8X7B, 2) == pytest.approx(2 + 2 * 6 / 8)
    assert touched_experts(MIXTRAL_8X7B, 1000) == pytest.approx(8)
