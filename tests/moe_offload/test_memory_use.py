# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What takes memory, as calculated by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_offload.memory_use import (
    cached_tokens,
    device_memory,
    disk_memory,
    host_memory,
    missing_bytes,
)
from moe_offload.policy import Workload
from tests.moe_offload.planner_cases import TINY, streaming, tiny_machine


def test_device_memory_by_hand() -> None:
    policy = replace(streaming(12, 4, 0.25), prefill_tokens=48)
    found = device_memory(TINY, Workload(20, 10), policy)
    layer = 4 * 3 * 64 * 256 * 2
    dense = 5 * 2 * 64 * (16 * 8 + 64 + 4) + 2 * 2 * 100 * 64
    token = 2 * (2 * 6 * 16 + 2 * (64 + 3 * 256))
    assert found == {
        "dense weights": dense,
        "hidden states": 2 * 48 * 64 * 2,
        "activations": pytest.approx(16 * token * 1.2),
        "logits": 12 * 100 * 6,
        "resident experts": 0.25 * 5 * layer,
        "page buffers": 2 * 0.75 * layer,
    }
    whole = device_memory(TINY, Workload(20, 10), streaming(12, 4, 1.0))
    assert whole["resident experts"] == 5 * layer
    assert whole["page buffers"] == 0.0
    # No pass is longer than all prompts.
    assert whole["hidden states"] == 2 * 240 * 64 * 2
    single = device_memory(replace(TINY, layers=1), Workload(20, 10), policy)
    assert single["page buffers"] == 0.75 * layer


def test_host_memory_by_hand() -> None:
    workload = Workload(20, 10)
    found = host_memory(TINY, workload, streaming(12, 4, 0.25))
    layer, tokens = 4 * 3 * 64 * 256 * 2, 1.1 * (20 + 5 + 8)
    assert found == {
        "experts": 0.75 * 5 * layer,
        "cache": pytest.approx(12 * tokens * 5 * 128),
        "transfers": 12 * 2 * 6 * 16 * 2,
        "staging": 0.0,
    }
    policy = replace(
        streaming(12, 4), attention_on_device=True, cache_on_device_share=0.5
    )
    shared = host_memory(TINY, workload, policy)
    on_device = device_memory(TINY, workload, policy)
    assert shared["cache"] == on_device["cache"] == found["cache"] / 2
    assert shared["transfers"] == 0.0
    assert on_device["cache buffers"] == 0.5 * 2 * 4 * 30 * 128


def test_a_shared_expert_takes_memory_too() -> None:
    shape, policy = replace(TINY, shared_expert_hidden=10), streaming(12, 4)
    plain = device_memory(TINY, Workload(20, 10), policy)
    found = device_memory(shape, Workload(20, 10), policy)
    assert found["dense weights"] - plain["dense weights"] == 5 * 3 * 64 * 10 * 2
    more = found["activations"] - plain["activations"]
    assert more == pytest.approx(80 * 2 * 3 * 10 * 1.2)


def test_pages_from_a_disk_pass_through_host_memory() -> None:
    layer = 4 * 3 * 64 * 256 * 2
    policy = replace(streaming(12, 4), host_share=0.25, disk_share=0.75)
    # Two groups, each for one of three micro-batches.
    found = host_memory(TINY, Workload(20, 10), policy)
    assert found["staging"] == pytest.approx(2 * 0.75 * layer / 3)
    assert found["experts"] == 0.25 * 5 * layer
    assert disk_memory(TINY, policy) == {"experts": 0.75 * 5 * layer}
    # A group is at least the larger page of an expert, two thirds of it.
    many = host_memory(TINY, Workload(20, 10), replace(policy, micro_batch=1))
    assert many["staging"] == pytest.approx(2 * 2 / 3 * layer / 4)


def test_cache_is_kept_for_the_mean_but_never_above_the_longest() -> None:
    assert cached_tokens(Workload(100, 100)) == pytest.approx(1.1 * (150 + 8))
    assert cached_tokens(Workload(1000, 2)) == 1000 + 2 + 8


def test_what_is_missing() -> None:
    policy, workload = streaming(12, 4), Workload(20, 10)
    machine = tiny_machine()
    device = sum(device_memory(TINY, workload, policy).values())
    host = sum(host_memory(TINY, workload, policy).values())
    exact = replace(
        machine,
        device=replace(machine.device, capacity_bytes=device),
        host=replace(machine.host, capacity_bytes=host),
    )
    assert missing_bytes(TINY, exact, workload, policy) == {}
    less = exact.scaled(0.9, "device.capacity_bytes", "host.capacity_bytes")
    assert missing_bytes(TINY, less, workload, policy) == pytest.approx(
        {"device memory": 0.1 * device, "host memory": 0.1 * host}
    )
    disk = replace(policy, host_share=0.0, disk_share=1.0)
    need = sum(disk_memory(TINY, disk).values())
    assert missing_bytes(TINY, exact, workload, disk)["disk"] == need
    has = replace(exact, disk_bytes_per_s=1e9, disk_capacity_bytes=0.75 * need)
    assert missing_bytes(TINY, has, workload, disk)["disk"] == 0.25 * need
