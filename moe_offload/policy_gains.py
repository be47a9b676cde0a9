# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which way a machine would have to change for a policy to be faster."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .estimate import Estimate, estimate
from .machine import Machine
from .model_shape import ModelShape
from .policy import Policy, Workload
from .policy_search import best_policy
from .roofline import (
    balance_point,
    expert_intensity,
    tokens_at_intensity,
    turning_point_device,
    turning_point_host,
)

_MORE = 1.1
# What could be had faster, and the numbers of a machine that it changes.
_FASTER = {
    "link bandwidth": ("up_bytes_per_s", "down_bytes_per_s"),
    "device compute": (
        "device.flops_per_s",
        "expert_flops_per_s",
        "dense_flops_per_s",
    ),
    "device memory bandwidth": ("device.bandwidth_bytes_per_s",),
    "CPU speed": (
        "host.flops_per_s",
        "host.bandwidth_bytes_per_s",
        "host_attention_bytes_per_s",
    ),
    "disk bandwidth": ("disk_bytes_per_s",),
}
_LARGER = {
    "device memory": "device.capacity_bytes",
    "host memory": "host.capacity_bytes",
}


@dataclass(frozen=True, slots=True)
class TurningPoints:
    """Where a batch stands on the rooflines of the experts, in tokens of a decode step.

    Attributes:
        host_tokens: Below it the CPU computes experts faster than they come (P1).
        device_tokens: Above it the device is the limit, at this micro-batch (P2).
        balance_tokens: At it, device memory and the link, or the disk behind it, take
            equally long.
    """

    host_tokens: float
    device_tokens: float
    balance_tokens: float


def turning_points(
    shape: ModelShape, machine: Machine, policy: Policy
) -> TurningPoints:
    """Return where the limits of the experts change, if all of them are streamed.

    Args:
        shape: Of the model.
        machine: That runs it.
        policy: Whose micro-batch is taken.
    """
    device = machine.device.bandwidth_bytes_per_s
    link = _streaming_bandwidth(machine, policy)
    local = expert_intensity(shape, policy.batch / policy.micro_batches)
    peak, memory = machine.host.flops_per_s, machine.host.bandwidth_bytes_per_s
    # The host is never the better place if its memory is slower than the link, or if
    # experts are on a disk, for which it would have to wait too.
    nearer = memory > link and not policy.disk_share
    points = (
        turning_point_host(peak, memory, peak / link, link) if nearer else 0.0,
        turning_point_device(machine.expert_flops_per_s, device, local, link),
        balance_point(device, local, link),
    )
    return TurningPoints(*(tokens_at_intensity(shape, each) for each in points))


def _streaming_bandwidth(machine: Machine, policy: Policy) -> float:
    """Bytes per second in which experts come: the link's, or less behind a disk."""
    if not policy.disk_share or machine.disk_bytes_per_s is None:
        return machine.up_bytes_per_s
    streamed = policy.host_share + policy.disk_share
    disk = machine.disk_bytes_per_s * streamed / policy.disk_share
    return min(machine.up_bytes_per_s, disk)


def gains(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    policy: Policy,
    found: Estimate,
) -> dict[str, float]:
    """Return by what share throughput grows with 10 % more of each thing, by name.

    For what is faster the policy stays. For more memory the batch and the shares are
    searched for again, with the micro-batch of the policy.

    Args:
        shape: Of the model.
        machine: That runs it.
        workload: Requests.
        policy: How it is run.
        found: What is expected of it.
    """
    result: dict[str, float] = {}
    for name, numbers in _FASTER.items():
        if name == "disk bandwidth" and not policy.disk_share:
            continue
        faster = machine.scaled(_MORE, *numbers)
        new = estimate(shape, faster, workload, policy).throughput_tokens_per_s
        result[name] = new / found.throughput_tokens_per_s - 1.0
    now = _refitted(shape, machine, workload, policy)
    for name, number in _LARGER.items():
        new = _refitted(shape, machine.scaled(_MORE, number), workload, policy)
        result[name] = max(0.0, new / now - 1.0)
    return result


def _refitted(
    shape: ModelShape, machine: Machine, workload: Workload, policy: Policy
) -> float:
    """Throughput with the micro-batch of a policy and the best of everything else."""
    try:
        _, found = best_policy(
            shape,
            machine,
            workload,
            # What a tenth more memory can hold, with room to spare.
            max_batch=math.ceil(policy.batch * _MORE * _MORE) + policy.micro_batch,
            micro_batch=policy.micro_batch,
            attention_on_device=policy.attention_on_device,
            experts_on_device=policy.experts_on_device,
        )
    except ValueError:
        # The policy fits only by what is not searched for, such as very short passes.
        found = estimate(shape, machine, workload, policy)
    return found.throughput_tokens_per_s
