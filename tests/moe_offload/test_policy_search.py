# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The search finds what trying everything finds, and says what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.estimate import estimate
from moe_offload.machine import Machine
from moe_offload.memory_use import (
    missing_bytes,
)
from moe_offload.policy import Policy, Workload
from moe_offload.policy_search import best_policy
from moe_offload.policy_shares import pass_tokens, placed
from tests.moe_offload.planner_cases import (
    GIB,
    MIXTRAL_8X7B,
    QWEN3_30B_A3B,
    TINY,
    l4,
    machines,
    streaming,
    tiny_machine,
    with_disk,
)

WORKLOAD = Workload(30, 20)
MAX_BATCH = 12


def all_policies(machine: Machine, max_batch: int) -> Iterator[Policy]:
    """Every policy of the tiny model: sizes, places, shares, and lengths of a pass."""
    sizes = [
        (batch, size)
        for size in range(1, max_batch + 1)
        for batch in range(size, max_batch + 1, size)
    ]
    places = [(False, 0.0), *((True, share / 4) for share in range(5))]
    disks = range(5) if machine.disk_bytes_per_s is not None else (0,)
    for batch, size in sizes:
        passes = {
            pass_tokens(TINY, machine, WORKLOAD, batch, halvings)
            for halvings in range(8)
        }
        for tokens in passes:
            for resident in range(5):
                for disk in disks:
                    if resident + disk > 4:
                        continue
                    host = 4 - resident - disk
                    shares = resident / 4, host / 4, disk / 4
                    for place, cache in places:
                        yield Policy(batch, size, place, True, *shares, cache, tokens)


def tried_everything(machine: Machine, max_batch: int) -> float:
    """The best throughput of all policies that fit; 0 if none does."""
    return max(
        (
            estimate(TINY, machine, WORKLOAD, policy).throughput_tokens_per_s
            for policy in all_policies(machine, max_batch)
            if not missing_bytes(TINY, machine, WORKLOAD, policy)
        ),
        default=0.0,
    )


@settings(max_examples=25, deadline=None)
@given(machines(), st.booleans())
def test_search_finds_what_trying_everything_finds(
    machine: Machine, disk: bool
) -> None:
    machine = with_disk(machine) if disk else machine
    best = tried_everything(machine, MAX_BATCH)
    if not best:
        with pytest.raises(ValueError, match="moe_offload: "):
            best_policy(TINY, machine, WORKLOAD, MAX_BATCH)
        return
    policy, found = best_policy(TINY, machine, WORKLOAD, MAX_BATCH)
    assert not missing_bytes(TINY, machine, WORKLOAD, policy)
    assert found == estimate(TINY, machine, WORKLOAD, policy)
    # Half a percent is given away for a smaller batch.
    assert found.throughput_tokens_per_s >= 0.9949 * best


@settings(max_examples=15, deadline=None)
@given(machines(), st.sampled_from(("device", "host")), st.floats(1.0, 2.0))
def test_more_memory_is_never_worse(machine: Machine, tier: str, factor: float) -> None:
    def throughput(machine: Machine) -> float:
        try:
            _, found = best_policy(TINY, machine, WORKLOAD, MAX_BATCH)
        except ValueError:
            return 0.0
        return found.throughput_tokens_per_s

    now = throughput(machine)
    more = throughput(machine.scaled(factor, f"{tier}.capacity_bytes"))
    # Both may be half a percent below the best.
    assert more >= 0.9949 * now


def test_mixtral_on_an_l4() -> None:
    workload = Workload(77, 128)
    policy, found = best_policy(MIXTRAL_8X7B, l4(), workload)
    assert not policy.attention_on_device
    assert policy.device_share == 0.125  # one expert of eight
    assert found.bottleneck == "link up"
    # At least as good as the policy of the paper, with the shares that fit.
    paper = placed(MIXTRAL_8X7B, l4(), workload, streaming(2624, 164))
    theirs = estimate(MIXTRAL_8X7B, l4(), workload, paper)
    assert found.throughput_tokens_per_s > theirs.throughput_tokens_per_s
    # Host memory is what limits the batch.
    assert sum(found.host_bytes.values()) > 0.99 * l4().host.capacity_bytes


def test_a_model_that_fits_is_not_streamed() -> None:
    policy, found = best_policy(QWEN3_30B_A3B, l4(100.0), Workload(500, 300), 256)
    assert policy.device_share == 1.0
    assert found.device_bytes["page buffers"] == 0.0
    assert found.lane_s["link up"] < found.lane_s[found.bottleneck]


def test_few_requests_keep_their_cache_on_the_device() -> None:
    policy, _ = best_policy(MIXTRAL_8X7B, l4(), Workload(77, 128), 16)
    assert policy.attention_on_device
    assert policy.cache_on_device_share == 1.0
    assert policy.micro_batches == 1


def test_experts_that_host_memory_cannot_hold_go_to_the_disk() -> None:
    small = l4(host_gib=100.0)
    disk = replace(small, disk_bytes_per_s=3e9, disk_capacity_bytes=200 * GIB)
    policy, found = best_policy(MIXTRAL_8X7B, disk, Workload(77, 128))
    assert policy.disk_share > 0.0
    # Where the policy without a disk fits, a disk is never worse.
    _, without = best_policy(MIXTRAL_8X7B, l4(host_gib=110.0), Workload(77, 128))
    larger = replace(disk, host=l4(host_gib=110.0).host)
    _, with_it = best_policy(MIXTRAL_8X7B, larger, Workload(77, 128))
    assert with_it.throughput_tokens_per_s >= 0.995 * without.throughput_tokens_per_s
    assert sum(found.disk_bytes.values()) <= 200 * GIB


def test_tight_device_memory_shortens_the_prefill_pass() -> None:
    workload = Workload(418, 64)
    for device_gib in (11.0, 10.5, 10.1):
        policy, _ = best_policy(MIXTRAL_8X7B, l4(device_gib), workload)
        assert not missing_bytes(MIXTRAL_8X7B, l4(device_gib), workload, policy)
    assert policy.prefill_tokens < pass_tokens(
        MIXTRAL_8X7B, l4(), workload, policy.batch
    )


def test_sizes_may_be_fixed() -> None:
    args = MIXTRAL_8X7B, l4(), Workload(77, 128)
    for batch in (500, 997):
        policy, _ = best_policy(*args, batch=batch)
        assert policy.batch == batch
    policy, _ = best_policy(*args, micro_batch=36)
    assert policy.micro_batch == 36
    policy, _ = best_policy(*args, batch=500, micro_batch=36)
    assert (policy.batch, policy.micro_batch, policy.micro_batches) == (500, 36, 14)
    for place in (True, False):
        policy, _ = best_policy(*args, attention_on_device=place)
        assert policy.attention_on_device is place
    policy, _ = best_policy(*args, max_batch=64, experts_on_device=False)
    assert not policy.experts_on_device
    assert policy.batch <= 64
    # The largest batch that a search may take is no limit for one that is given.
    policy, _ = best_policy(*args, max_batch=10, batch=50)
    assert policy.batch == 50


def test_few_tokens_are_better_computed_where_experts_lie() -> None:
    args = MIXTRAL_8X7B, l4(), Workload(77, 128)
    _, moved = best_policy(*args, batch=8)
    _, stay = best_policy(*args, batch=8, experts_on_device=False)
    assert stay.throughput_tokens_per_s > moved.throughput_tokens_per_s
    _, moved = best_policy(*args, batch=2000)
    _, stay = best_policy(*args, batch=2000, experts_on_device=False)
    assert stay.throughput_tokens_per_s < moved.throughput_tokens_per_s


@pytest.mark.parametrize("memory", ["device", "host"])
def test_what_is_missing_is_said_and_enough(memory: str) -> None:
    machine = l4(device_gib=6.0) if memory == "device" else l4(host_gib=50.0)
    with pytest.raises(
        ValueError, match=f"^moe_offload: .* of {memory} memory"
    ) as error:
        best_policy(MIXTRAL_8X7B, machine, Workload(77, 128))
    lack = re.search(rf"\((\d+) bytes\) of {memory} memory", str(error.value))
    assert lack is not None
    tier = machine.device if memory == "device" else machine.host
    for share, fits in ((1.0, True), (0.97, False)):
        more = share * int(lack[1])
        enough = replace(tier, capacity_bytes=tier.capacity_bytes + more)
        changed = replace(machine, **{memory: enough})
        if fits:
            best_policy(MIXTRAL_8X7B, changed, Workload(77, 128), 8)
        else:
            with pytest.raises(ValueError, match="moe_offload: "):
                best_policy(MIXTRAL_8X7B, changed, Workload(77, 128), 8)


def test_a_batch_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"^moe_offload: .*a batch of 9000 lacks"):
        best_policy(MIXTRAL_8X7B, l4(), Workload(77, 128), batch=9000)


@pytest.mark.parametrize(
    "sizes", [{"max_batch": 0}, {"batch": 0}, {"batch": 4, "micro_batch": 5}]
)
def test_impossible_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^moe_offload: .*Give at least 1"):
        best_policy(TINY, tiny_machine(), WORKLOAD, **sizes)
    with pytest.raises(ValueError, match=r"^moe_offload: .*Give at least 1"):
        best_policy(TINY, tiny_machine(), WORKLOAD, micro_batch=0)
