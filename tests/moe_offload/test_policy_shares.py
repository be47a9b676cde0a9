# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Shares that are placed are the largest that fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.machine import Machine
from moe_offload.memory_use import (
    cache_buffer_bytes,
    cache_bytes,
    device_memory,
    missing_bytes,
)
from moe_offload.policy import Workload
from moe_offload.policy_shares import pass_tokens, placed
from tests.moe_offload.planner_cases import (
    TINY,
    machines,
    streaming,
    tiny_machine,
    with_disk,
)

WORKLOAD = Workload(30, 20)


@settings(max_examples=50, deadline=None)
@given(machines(), st.booleans(), st.booleans(), st.integers(1, 12), st.integers(1, 4))
def test_no_more_experts_fit_and_no_more_are_on_disk_than_needed(
    machine: Machine, disk: bool, attention: bool, size: int, many: int
) -> None:
    machine = with_disk(machine) if disk else machine
    asked = replace(streaming(size * many, size), attention_on_device=attention)
    policy = placed(TINY, machine, WORKLOAD, asked)
    assert placed(TINY, machine, WORKLOAD, policy) == policy
    missing = missing_bytes(TINY, machine, WORKLOAD, policy)
    if "device memory" not in missing and policy.device_share < 1.0:
        more = replace(
            policy,
            device_share=policy.device_share + 0.25,
            host_share=1.0 - policy.device_share - 0.25,
            disk_share=0.0,
            cache_on_device_share=0.0,
        )
        assert "device memory" in missing_bytes(TINY, machine, WORKLOAD, more)
    if policy.disk_share and policy.disk_share + policy.device_share < 1.0:
        assert "host memory" not in missing
    if policy.disk_share:
        less = replace(
            policy,
            disk_share=policy.disk_share - 0.25,
            host_share=policy.host_share + 0.25,
        )
        assert "host memory" in missing_bytes(TINY, machine, WORKLOAD, less)


def test_what_experts_leave_goes_to_the_cache() -> None:
    asked = replace(streaming(12, 4), attention_on_device=True)
    bare = sum(device_memory(TINY, WORKLOAD, asked).values())
    whole = cache_bytes(TINY, WORKLOAD, asked)
    whole -= cache_buffer_bytes(TINY, WORKLOAD, asked)
    for share in (0.0, 0.25, 0.5):
        machine = tiny_machine(bare + share * whole)
        policy = placed(TINY, machine, WORKLOAD, asked)
        assert policy.device_share == 0.0
        assert policy.cache_on_device_share == pytest.approx(share)
    # The cache first: experts get what it leaves, and that was enough for one.
    one = 3 * TINY.expert_bytes
    machine = tiny_machine(bare + whole + one)
    policy = placed(TINY, machine, WORKLOAD, asked, cache_first=True)
    assert (policy.device_share, policy.cache_on_device_share) == (0.25, 1.0)
    machine = tiny_machine(bare + whole + 0.99 * one)
    policy = placed(TINY, machine, WORKLOAD, asked, cache_first=True)
    assert (policy.device_share, policy.cache_on_device_share) == (0.0, 1.0)
    policy = placed(TINY, machine, WORKLOAD, asked)
    assert policy.device_share == 0.5
    policy = placed(TINY, tiny_machine(1e9), WORKLOAD, asked)
    assert (policy.device_share, policy.cache_on_device_share) == (1.0, 1.0)


def test_a_pass_computes_as_long_as_experts_are_streamed() -> None:
    # 393,216 bytes at 2e7 a second, 196,608 operations of a token at 5e10.
    streamed_s, token_s = 393216 / 2e7, 196608 / 5e10
    machine, most = tiny_machine(), math.ceil(streamed_s / token_s)
    assert pass_tokens(TINY, machine, WORKLOAD, 1000) == most
    assert pass_tokens(TINY, machine, WORKLOAD, 1000, 2) == most // 4
    # No shorter than is sensible, and no longer than all prompts.
    assert pass_tokens(TINY, machine, WORKLOAD, 1000, 30) == 256
    assert pass_tokens(TINY, machine, WORKLOAD, 10) == 300
    assert pass_tokens(TINY, machine, WORKLOAD, 10, 1) == 256
    assert pass_tokens(TINY, machine, WORKLOAD, 2, 5) == 60
