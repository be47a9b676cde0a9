# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Estimates are what simulation and hand calculation give, and near the paper's."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.decode_times import layer_times
from moe_offload.estimate import Estimate, estimate, mean_of_largest
from moe_offload.machine import Machine
from moe_offload.policy import Workload
from moe_offload.published_hardware import L4
from moe_offload.published_hrm import published_estimate
from moe_offload.schedule import cgopipe
from tests.moe_offload.planner_cases import (
    GIB,
    MIXTRAL_8X7B,
    TINY,
    l4,
    machines,
    streaming,
    tiny_machine,
    with_disk,
)

# Making a schedule takes longer than simulating it.
made = functools.cache(cgopipe)


# Answers, micro-batch x micro-batches, and what the paper measured on an L4, figure 7.
MEASURED = [
    (32, 324, 14, 203.0),
    (64, 228, 16, 294.5),
    (128, 164, 16, 217.5),
    (256, 132, 12, 167.9),
]


@pytest.mark.parametrize(("generated", "size", "many", "measured"), MEASURED)
def test_measured_rates_come_near_what_was_measured(
    generated: int, size: int, many: int, measured: float
) -> None:
    workload = Workload(77, generated)
    found = estimate(MIXTRAL_8X7B, l4(), workload, streaming(size * many, size))
    published = published_estimate(MIXTRAL_8X7B, L4, workload, size, many, 0.0)
    mine = found.throughput_tokens_per_s / measured
    theirs = published.throughput_tokens_per_s / measured
    assert 1.0 < mine < 1.9
    assert theirs > 1.4 * mine
    assert found.bottleneck == "link up"


def test_a_slow_disk_is_the_limit() -> None:
    machine = with_disk(tiny_machine(), 1e5)
    policy = replace(streaming(12, 4), host_share=0.5, disk_share=0.5)
    found = estimate(TINY, machine, Workload(20, 20), policy)
    half = 0.5 * TINY.layer_expert_bytes / 1e5
    assert found.lane_s["disk"] == pytest.approx(3e-5 + half)
    assert found.bottleneck == found.prefill_bottleneck == "disk"
    assert found.disk_bytes == {"experts": 0.5 * 5 * TINY.layer_expert_bytes}
    assert found.host_bytes["staging"] > 0.0
    # One pass reads half of each layer, which also goes through host memory.
    read = 0.5 * TINY.layer_expert_bytes
    assert found.prefill_lane_s["disk"] == pytest.approx(5 * read / 1e5)
    written = TINY.layer_expert_bytes + read + 240 * 128
    assert found.prefill_lane_s["host memory"] == pytest.approx(5 * written / 1e8)


@settings(max_examples=60, deadline=None)
@given(machines(), st.integers(1, 20), st.integers(1, 40), st.integers(2, 60))
def test_steps_are_summed_as_contexts_grow(
    machine: Machine, size: int, many: int, generated: int
) -> None:
    policy, workload = streaming(size * many, size), Workload(30, generated)
    found = estimate(TINY, machine, workload, policy)
    one_by_one = sum(
        estimate(TINY, machine, Workload(30 + step - 0.5, 1.0 + 1e-9), policy).step_s
        for step in range(1, generated)
    )
    # Where the busiest resource changes within a step, it is not one straight line.
    assert found.decode_s == pytest.approx(one_by_one, rel=0.01)


def test_growing_contexts_are_exact_where_one_resource_is_the_limit() -> None:
    machine = tiny_machine().scaled(0.01, "host_attention_bytes_per_s")
    found = estimate(TINY, machine, Workload(30, 41), streaming(12, 4))
    at_mean = estimate(TINY, machine, Workload(50, 1), streaming(12, 4))
    assert found.bottleneck == "host"
    assert found.step_s == pytest.approx(at_mean.step_s, rel=1e-12)
    # Steps have contexts of 31 to 70 tokens.
    times = layer_times(TINY, machine, streaming(12, 4), 50.5)
    assert found.lane_s == times.lanes()
    assert found.exposed_s == times.exposed()["host"]
    whole = 5 * found.lane_s["host"] + found.exposed_s
    assert found.step_s == pytest.approx(whole + 2 * 100 * 64 / 1e9 + 1e-5)


LINES = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_mean_of_the_largest_line(lines: list[tuple[float, float]]) -> None:
    points = np.linspace(0.0, 1.0, 20001)
    heights = [start + (end - start) * points for start, end in lines]
    largest = np.max(heights, axis=0)
    expected = np.mean((largest[1:] + largest[:-1]) / 2)
    assert mean_of_largest(lines) == pytest.approx(expected, abs=1e-6)


def test_a_changing_limit_takes_longer_than_the_mean_context_says() -> None:
    # Attention passes the link when the context is 500 tokens long.
    shape = replace(TINY, layers=200)
    machine = replace(tiny_machine(), launch_s=0.0)
    streamed = shape.layer_expert_bytes / 2e7
    rate = 12 * 500 * shape.cache_bytes_per_token / streamed
    machine = replace(machine, host_attention_bytes_per_s=rate).scaled(
        1e3, "host.bandwidth_bytes_per_s", "host.flops_per_s"
    )
    policy = streaming(12, 4)
    found = estimate(shape, machine, Workload(1, 1000), policy).step_s
    at_mean = estimate(shape, machine, Workload(500, 1), policy).step_s
    # The mean of max(1, x) for x from 0 to 2 is 1.25.
    assert found / at_mean == pytest.approx(1.25, abs=0.02)


def test_throughput_is_over_prefill_and_decode() -> None:
    found = estimate(TINY, tiny_machine(), Workload(20, 10), streaming(12, 4))
    assert found.decode_s == pytest.approx(9 * found.step_s)
    expected = 12 * 10 / (found.prefill_s + found.decode_s)
    assert found.throughput_tokens_per_s == pytest.approx(expected)
    one = estimate(TINY, tiny_machine(), Workload(20, 1), streaming(12, 4))
    assert one.decode_s == 0.0
    assert one.prefill_s == pytest.approx(found.prefill_s)


def test_prefill_by_hand() -> None:
    machine = replace(tiny_machine(), launch_s=0.0)
    machine = machine.scaled(100.0, "device.bandwidth_bytes_per_s")
    policy = replace(streaming(12, 4, 0.25), prefill_tokens=100)
    found = estimate(TINY, machine, Workload(20, 10), policy).prefill_lane_s
    tokens, passes, layers = 240, 3, 5
    moved = passes * 0.75 * TINY.layer_expert_bytes
    assert found["link up"] == pytest.approx(layers * moved / 2e7)
    assert found["link down"] == pytest.approx(layers * tokens * 128 / 2e7)
    weights = 64 * 16 * 8 + 64 * (64 + 4)
    attention = 4 * 4 * 16 * 10
    flops = tokens * (2 * weights + attention + 6 * 64 * 256 * 2)
    # The output embedding is for the last token of each prompt.
    head = 2 * 12 * 100 * 64
    assert found["device"] == pytest.approx((layers * flops + head) / 5e10)
    written = moved + tokens * 128
    assert found["host memory"] == pytest.approx(layers * written / 1e8)
    assert max(found.values()) == found["link up"]
    # Only cache that lies on the host is written to it.
    most = replace(policy, attention_on_device=True, cache_on_device_share=0.75)
    shared = estimate(TINY, machine, Workload(20, 10), most).prefill_lane_s
    assert shared["link down"] == pytest.approx(0.25 * found["link down"])
    # With little to compute, each pass reads the weights once from device memory.
    slow = machine.scaled(1e-3, "device.bandwidth_bytes_per_s")
    again = estimate(TINY, slow, Workload(20, 10), policy).prefill_lane_s
    read = layers * passes * (TINY.layer_expert_bytes + TINY.dense_layer_bytes)
    assert again["device"] == pytest.approx((read + 2 * 100 * 64) / 1e8)


@settings(max_examples=60, deadline=None)
@given(machines(), st.integers(1, 20), st.integers(1, 40), st.sampled_from([0.25, 0.5]))
def test_more_of_anything_is_never_worse(
    machine: Machine, size: int, many: int, share: float
) -> None:
    workload = Workload(30, 50)

    def throughput(machine: Machine, share: float) -> float:
        policy = streaming(size * many, size, share)
        return estimate(TINY, machine, workload, policy).throughput_tokens_per_s

    now = throughput(machine, share)
    assert throughput(machine, 2 * share) >= now * (1 - 1e-12)
    for name in (
        "up_bytes_per_s",
        "down_bytes_per_s",
        "host_attention_bytes_per_s",
        "expert_flops_per_s",
        "dense_flops_per_s",
        "device.bandwidth_bytes_per_s",
        "host.bandwidth_bytes_per_s",
        "host.flops_per_s",
    ):
        assert throughput(machine.scaled(1.5, name), share) >= now * (1 - 1e-12)
    slower = replace(machine, launch_s=machine.launch_s + 1e-3)
    assert throughput(slower, share) < now


def test_memory_of_the_papers_policy() -> None:
    found = estimate(MIXTRAL_8X7B, l4(), Workload(77, 128), streaming(2624, 164))
    assert found.device_bytes["page buffers"] == pytest.approx(5.25 * GIB)
    assert found.host_bytes["experts"] == pytest.approx(84 * GIB)
    assert found.device_bytes["dense weights"] == pytest.approx(2.99 * GIB, rel=1e-3)
    assert _total(found) < 0.86 * 24 * GIB


def _total(found: Estimate) -> float:
    return sum(found.device_bytes.values())


def test_refusals() -> None:
    args = TINY, tiny_machine(), Workload(20, 10)
    with pytest.raises(ValueError, match=r"^moe_offload: .*'s2'.*'cgopipe'"):
        estimate(*args, streaming(12, 4), "s2")
    disk = replace(streaming(12, 4), host_share=0.5, disk_share=0.5)
    with pytest.raises(ValueError, match=r"^moe_offload: .*50% of the experts on"):
        estimate(*args, disk)
