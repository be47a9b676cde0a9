# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Times of operations as calculated by hand, and what follows for a layer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_offload.decode_times import LayerTimes, layer_times
from moe_offload.estimate import estimate
from moe_offload.policy import Workload
from tests.moe_offload.planner_cases import TINY, streaming, tiny_machine


def _times() -> LayerTimes:
    return LayerTimes(
        micro_batches=4,
        page_groups=4,
        pre_attention_s=1.0,
        offload_s=2.0,
        host_attention_s=3.0,
        load_hidden_s=4.0,
        post_attention_s=5.0,
        load_cache_s=0.5,
        device_attention_s=0.25,
        host_experts_s=0.0,
        pages_s=7.0,
        disk_s=9.0,
        host_memory_s=10.0,
    )


def test_lanes_are_sums_of_operations() -> None:
    assert _times().lanes() == {
        "link up": 7.0 + 4 * 4.5,
        "device": 4 * 6.25,
        "host": 4 * 3.0,
        "link down": 4 * 2.0,
        "disk": 9.0,
        "host memory": 10.0,
        "round trip": 2 * 15.25,
    }
    assert replace(_times(), micro_batches=1).lanes()["round trip"] == 15.25
    assert "round trip" not in replace(_times(), host_attention_s=0.0).lanes()


def test_experts_on_the_host_share_it_with_attention() -> None:
    both = replace(_times(), host_experts_s=1.5)
    assert both.lanes()["host"] == 4 * 4.5
    assert both.lanes()["round trip"] == 2 * 16.75
    assert both.exposed()["host"] == 16.75 - 4.5


def test_what_a_step_cannot_overlap() -> None:
    exposed = _times().exposed()
    assert exposed["link up"] == 1.0 + 2.0 + 3.0 + 0.25 + 5.0
    assert exposed["device"] == 2.0 + 3.0 + 4.0
    assert exposed["host"] == exposed["host memory"] == 15.25 - 3.0
    assert exposed["disk"] == 7.0 / 4 + 5.0
    # Two are on the way at once, one of which is counted with the layers.
    assert exposed["round trip"] == 15.25 / 2
    assert replace(_times(), micro_batches=1).exposed()["round trip"] == 0.0


def test_the_link_waits_where_pages_are_few() -> None:
    few = replace(_times(), micro_batches=12)
    # Three micro-batches between two pages, of which two are near in time.
    lanes, exposed = few.lanes(), few.exposed()
    assert lanes["link up"] == 7.0 + 12 * 4.5
    for name, each_s in (("device", 6.25), ("host", 3.0), ("round trip", 15.25 / 2)):
        waits = 4 * 1 * (each_s - 4.0)
        assert lanes[f"pages and {name}"] == pytest.approx(7.0 + 12 * 4.5 + waits)
        assert exposed[f"pages and {name}"] == exposed[name]
    for groups in (0, 6):
        assert len(replace(few, page_groups=groups).lanes()) == 7


def test_times_by_hand() -> None:
    machine = tiny_machine()
    rows, context = 4, 10
    times = layer_times(TINY, machine, streaming(12, 4), context)
    launch, head = 1e-5, 4 * 16 * 2
    qkv = 64 * 16 * 8
    assert times.micro_batches == 3
    assert times.page_groups == 3
    assert times.pre_attention_s == pytest.approx(launch + qkv * 2 / 1e9)
    assert times.offload_s == pytest.approx(launch + rows * 2 * head / 2e7)
    assert times.load_hidden_s == pytest.approx(launch + rows * head / 2e7)
    read = rows * context * 2 * 2 * 16 * 2
    assert times.host_attention_s == pytest.approx(launch + read / 5e7)
    output = 64 * (64 + 4) * 2 / 1e9
    touched = 4 * (1 - 0.5**4) * 3 * 64 * 256 * 2 + rows * 2 * (64 + 256)
    assert times.post_attention_s == pytest.approx(launch + output + touched / 1e9)
    assert times.pages_s == pytest.approx(3 * launch + TINY.layer_expert_bytes / 2e7)
    moved = 3 * (rows * 3 * head + read) + TINY.layer_expert_bytes
    assert times.host_memory_s == pytest.approx(moved / 1e8)
    assert times.load_cache_s == times.device_attention_s == times.disk_s == 0.0
    assert times.host_experts_s == 0.0


def test_compute_may_be_the_limit() -> None:
    machine = replace(
        tiny_machine(), dense_flops_per_s=1e7, expert_flops_per_s=2e7, launch_s=0.0
    )
    machine = machine.scaled(1e-4, "host.flops_per_s")
    times = layer_times(TINY, machine, streaming(12, 4), 10)
    assert times.pre_attention_s == pytest.approx(2 * 4 * 64 * 16 * 8 / 1e7)
    assert times.host_attention_s == pytest.approx(4 * 4 * 4 * 16 * 10 / 1e5)
    experts = 6 * 4 * 64 * 256 * 2 / 2e7
    assert times.post_attention_s == pytest.approx(2 * 4 * 64 * 68 / 1e7 + experts)


def test_attention_on_the_device() -> None:
    machine = tiny_machine()
    policy = replace(
        streaming(12, 4), attention_on_device=True, cache_on_device_share=0.25
    )
    times = layer_times(TINY, machine, policy, 10)
    read, new = 4 * 10 * 128, 4 * 128
    assert times.load_cache_s == pytest.approx(1e-5 + 0.75 * read / 2e7)
    assert times.offload_s == pytest.approx(1e-5 + 0.75 * new / 2e7)
    assert times.device_attention_s == pytest.approx(1e-5 + read / 1e9)
    assert times.host_attention_s == times.load_hidden_s == 0.0
    whole = replace(policy, cache_on_device_share=1.0)
    times = layer_times(TINY, machine, whole, 10)
    assert times.load_cache_s == times.offload_s == 0.0


def test_experts_on_the_host() -> None:
    policy = replace(streaming(12, 4), experts_on_device=False)
    times = layer_times(TINY, tiny_machine(), policy, 10)
    plain = layer_times(TINY, tiny_machine(), streaming(12, 4), 10)
    hidden = 4 * 64 * 2 / 2e7
    assert times.pages_s == 0.0
    assert times.page_groups == 0
    assert times.offload_s == pytest.approx(plain.offload_s + hidden)
    assert times.load_hidden_s == pytest.approx(plain.load_hidden_s + hidden)
    touched = 4 * (1 - 0.5**4) * 3 * 64 * 256 * 2 + 4 * 2 * (64 + 256)
    assert times.host_experts_s == pytest.approx(1e-5 + touched / 1e8)
    assert times.post_attention_s < plain.post_attention_s
    found = estimate(TINY, tiny_machine(), Workload(20, 20), policy)
    flops = 6 * 64 * 256 * 2 * 12 * 20
    assert found.prefill_lane_s["host"] == pytest.approx(5 * flops / 1e9)
    assert found.prefill_lane_s["link up"] == 0.0
    assert "resident experts" not in found.device_bytes
