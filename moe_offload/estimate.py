# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How fast a policy is, what it takes, and what limits it: the planner's model.

Source: MoE-Lightning (2411.11217), eq. 12: a layer takes as long as its busiest
resource. Added here are prefill, measured rates, launches, what of a step cannot
overlap, contexts that grow, a disk, and the capacity of host memory. Prefill and decode
are counted as steps of their own; a server that mixes them streams weights less often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .decode_times import DEVICE, DISK, DOWN, HOST, HOST_MEMORY, UP, layer_times
from .machine import Machine
from .memory_use import device_memory, disk_memory, host_memory
from .model_shape import ModelShape
from .policy import Policy, Workload
from .roofline import attention_flops, expert_flops

CGOPIPE = "cgopipe"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is to be expected of a policy.

    Attributes:
        throughput_tokens_per_s: Generated tokens, over prefill and decode.
        prefill_s: Of the whole batch.
        decode_s: Of the whole batch, without the first token, which prefill makes.
        step_s: A decode step, on average.
        lane_s: What each resource needs for one layer of a decode step, by name, at the
            mean context.
        exposed_s: Of a decode step, in which the busiest resource waits.
        bottleneck: The busiest resource of decoding.
        prefill_lane_s: What each needs for all prefill, by name.
        prefill_bottleneck: The busiest resource of prefill.
        device_bytes: Use of device memory, by name.
        host_bytes: Use of host memory, by name.
        disk_bytes: Use of the disk, by name.
    """

    throughput_tokens_per_s: float
    prefill_s: float
    decode_s: float
    step_s: float
    lane_s: Mapping[str, float]
    exposed_s: float
    bottleneck: str
    prefill_lane_s: Mapping[str, float]
    prefill_bottleneck: str
    device_bytes: Mapping[str, float]
    host_bytes: Mapping[str, float]
    disk_bytes: Mapping[str, float]


def estimate(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    policy: Policy,
    schedule: str = CGOPIPE,
) -> Estimate:
    """Return what is to be expected of a policy, whether or not it fits.

    Args:
        shape: Of the model.
        machine: That runs it.
        workload: Requests.
        policy: How it is run.
        schedule: Order of operations; only "cgopipe" is modelled. With attention on
            the device, caches take the place of hidden states on the link.

    Raises:
        ValueError: The schedule is not modelled, or experts lie on a disk that the
            machine does not have.
    """
    _check(machine, policy, schedule)
    # Steps 1, 2, ... of an answer, each as the middle of an interval of length one.
    first = workload.prompt_tokens + 0.5
    steps = workload.generated_tokens - 1.0
    at_first, at_last = (
        _step_lines(shape, machine, policy, first + after) for after in (0.0, steps)
    )
    mean_s = mean_of_largest([(at_first[lane], at_last[lane]) for lane in at_first])
    step_s = mean_s + _head_s(shape, machine, policy.batch)
    middle = layer_times(shape, machine, policy, first + steps / 2)
    lane_s, exposed = middle.lanes(), middle.exposed()
    bottleneck = max(
        lane_s, key=lambda lane: shape.layers * lane_s[lane] + exposed[lane]
    )
    prefill_lane_s = _prefill_lanes(shape, machine, workload, policy)
    prefill_s = max(prefill_lane_s.values())
    decode_s = steps * step_s
    return Estimate(
        policy.batch * workload.generated_tokens / (prefill_s + decode_s),
        prefill_s,
        decode_s,
        step_s,
        lane_s,
        exposed[bottleneck],
        bottleneck,
        prefill_lane_s,
        max(prefill_lane_s, key=lambda lane: prefill_lane_s[lane]),
        device_memory(shape, workload, policy),
        host_memory(shape, workload, policy),
        disk_memory(shape, policy),
    )


def _check(machine: Machine, policy: Policy, schedule: str) -> None:
    if schedule != CGOPIPE:
        raise ValueError(
            f"moe_offload: asked to estimate the schedule {schedule!r}, which has no "
            f"model. Give {CGOPIPE!r}, or simulate it."
        )
    if policy.disk_share and machine.disk_bytes_per_s is None:
        raise ValueError(
            f"moe_offload: asked to estimate a policy with {policy.disk_share:.0%} of "
            "the experts on a disk, but the machine has none. Give its "
            "disk_bytes_per_s."
        )


def _step_lines(
    shape: ModelShape, machine: Machine, policy: Policy, context_tokens: float
) -> dict[str, float]:
    """How long a step takes if one resource is the busiest, for each of them."""
    times = layer_times(shape, machine, policy, context_tokens)
    exposed = times.exposed()
    return {
        lane: shape.layers * seconds + exposed[lane]
        for lane, seconds in times.lanes().items()
    }


def mean_of_largest(lines: Sequence[tuple[float, float]]) -> float:
    """Return the mean of the largest of straight lines.

    It is exact: between the places where two lines cross, the largest is straight.

    Args:
        lines: Each given by its heights at the two ends.
    """
    at_start, at_end = max(lines), max(lines, key=lambda line: line[::-1])
    if at_start == at_end:
        return sum(at_start) / 2
    corners = {0.0, 1.0}
    for number, (start, end) in enumerate(lines):
        for other_start, other_end in lines[:number]:
            closing = (start - end) - (other_start - other_end)
            if closing:
                where = (start - other_start) / closing
                if 0.0 < where < 1.0:
                    corners.add(where)
    ordered = sorted(corners)
    heights = [
        max(start + (end - start) * where for start, end in lines) for where in ordered
    ]
    return sum(
        (ordered[i + 1] - ordered[i]) * (heights[i] + heights[i + 1]) / 2
        for i in range(len(ordered) - 1)
    )


def _head_s(shape: ModelShape, machine: Machine, rows: float) -> float:
    """Output embedding of a step, which nothing overlaps."""
    weights = shape.vocab * shape.hidden
    return machine.launch_s + max(
        2.0 * rows * weights / machine.dense_flops_per_s,
        weights * shape.dense_weight_bytes / machine.device.bandwidth_bytes_per_s,
    )


def _prefill_lanes(
    shape: ModelShape, machine: Machine, workload: Workload, policy: Policy
) -> dict[str, float]:
    """What each resource needs to read all prompts of a batch.

    Prompts pass through the layers in passes of the policy's tokens. Attention is
    computed on the device from keys and values that are there still; if the cache is
    on the host, they are written to it.
    """
    tokens = policy.batch * workload.prompt_tokens
    passes = math.ceil(tokens / policy.prefill_tokens)
    dense = shape.qkv_weights + shape.output_weights
    # A token attends to half of its prompt on average.
    attention = attention_flops(shape, workload.prompt_tokens / 2)
    dense_s = tokens * (2.0 * dense + attention) / machine.dense_flops_per_s
    experts_s = expert_flops(shape, tokens) / machine.expert_flops_per_s
    weights = shape.layer_expert_bytes + shape.dense_layer_bytes
    read_s = passes * weights / machine.device.bandwidth_bytes_per_s
    # Two operations for each micro-batch, as in decode.
    launches_s = 2 * passes * policy.micro_batches * machine.launch_s
    host_s = moved = 0.0
    if policy.experts_on_device:
        moved = passes * (1.0 - policy.device_share) * shape.layer_expert_bytes
    else:
        host_s, experts_s = expert_flops(shape, tokens) / machine.host.flops_per_s, 0.0
    staged = passes * policy.disk_share * shape.layer_expert_bytes
    written = tokens * shape.cache_bytes_per_token
    written *= 1.0 - policy.cache_on_device_share
    lanes = {
        DEVICE: max(dense_s + experts_s, read_s) + launches_s,
        HOST: host_s,
        UP: moved / machine.up_bytes_per_s,
        DOWN: written / machine.down_bytes_per_s,
        DISK: staged / machine.disk_bytes_per_s if machine.disk_bytes_per_s else 0.0,
        HOST_MEMORY: (moved + staged + written) / machine.host.bandwidth_bytes_per_s,
    }
    found = {lane: shape.layers * seconds for lane, seconds in lanes.items()}
    found[DEVICE] += _head_s(shape, machine, policy.batch)
    return found
