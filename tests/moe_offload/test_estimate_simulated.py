# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Estimated steps take as long as simulated ones."""

from __future__ import annotations

import functools

import pytest

from moe_offload.decode_times import layer_times
from moe_offload.estimate import estimate
from moe_offload.machine import Machine
from moe_offload.model_shape import ModelShape
from moe_offload.operations import Kind, Operation
from moe_offload.policy import Policy, Workload
from moe_offload.schedule import cgopipe
from moe_offload.simulation import simulate
from tests.moe_offload.planner_cases import (
    MIXTRAL_8X7B,
    QWEN3_30B_A3B,
    l4,
    streaming,
)

# Making a schedule takes longer than simulating it.
made = functools.cache(cgopipe)


def simulated_step_s(
    shape: ModelShape, machine: Machine, policy: Policy, context: float
) -> float:
    """A step of the schedule itself, operation by operation."""
    times = layer_times(shape, machine, policy, context)
    pages = 2 * shape.experts
    resident = round(policy.device_share * pages)
    seconds = {
        Kind.PRE_ATTENTION: times.pre_attention_s,
        Kind.OFFLOAD_QKV: times.offload_s,
        Kind.HOST_ATTENTION: times.host_attention_s,
        Kind.LOAD_HIDDEN: times.load_hidden_s,
        Kind.POST_ATTENTION: times.post_attention_s,
    }

    def duration(operation: Operation) -> float:
        if operation.kind is Kind.LOAD_PAGES:
            return times.pages_s * len(operation.pages) / (pages - resident)
        return seconds[operation.kind]

    schedule = made(shape.layers, policy.micro_batches, pages, resident)
    return simulate(schedule, duration).makespan_s


def step_without_head_s(shape: ModelShape, machine: Machine, policy: Policy) -> float:
    """An estimated step, of a context that does not grow, as far as it is scheduled."""
    found = estimate(shape, machine, Workload(300, 1), policy)
    weights = shape.vocab * shape.hidden
    head = max(
        2 * policy.batch * weights / machine.dense_flops_per_s,
        2 * weights / machine.device.bandwidth_bytes_per_s,
    )
    return found.step_s - head - machine.launch_s


@pytest.mark.parametrize("link", [0.25, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("cpu", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("memory", [0.5, 1.0, 10.0])
def test_a_step_takes_as_long_as_simulated(
    link: float, cpu: float, memory: float
) -> None:
    machine = l4().scaled(link, "up_bytes_per_s", "down_bytes_per_s")
    machine = machine.scaled(cpu, "host_attention_bytes_per_s")
    machine = machine.scaled(memory, "device.bandwidth_bytes_per_s")
    # Whose memory traffic and compute are not on any lane of the simulator.
    machine = machine.scaled(100.0, "host.bandwidth_bytes_per_s", "host.flops_per_s")
    for shape, size, many, share in (
        (MIXTRAL_8X7B, 32, 1, 0.0),
        (MIXTRAL_8X7B, 64, 2, 0.0),
        (MIXTRAL_8X7B, 64, 3, 0.25),
        (MIXTRAL_8X7B, 128, 8, 0.0),
        (MIXTRAL_8X7B, 200, 15, 0.125),
        (QWEN3_30B_A3B, 40, 24, 0.5),
    ):
        policy = streaming(size * many, size, share)
        simulated = simulated_step_s(shape, machine, policy, 300.5)
        estimated = step_without_head_s(shape, machine, policy)
        assert estimated == pytest.approx(simulated, rel=0.06), (shape, policy)


# Twice as many micro-batches as pages and more; one page holds up several of them.
@pytest.mark.parametrize("link", [0.25, 1.0, 4.0, 16.0])
def test_fewer_pages_than_micro_batches(link: float) -> None:
    machine = l4().scaled(link, "up_bytes_per_s", "down_bytes_per_s")
    machine = machine.scaled(100.0, "host.bandwidth_bytes_per_s", "host.flops_per_s")
    for size, many in ((24, 24), (16, 40), (10, 64), (10, 100)):
        policy = streaming(size * many, size)
        simulated = simulated_step_s(MIXTRAL_8X7B, machine, policy, 300.5)
        estimated = step_without_head_s(MIXTRAL_8X7B, machine, policy)
        assert estimated == pytest.approx(simulated, rel=0.1)
