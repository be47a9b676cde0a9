# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A policy in plain sentences: what lies where, what limits it, what would help."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from .decode_times import (
    DEVICE,
    DISK,
    DOWN,
    HOST,
    HOST_MEMORY,
    PAGE_WAITS,
    ROUND_TRIP,
    UP,
)
from .estimate import Estimate
from .machine import Machine
from .memory_use import missing_bytes
from .model_shape import ModelShape
from .policy import Policy, Workload
from .policy_gains import gains, turning_points

GIB = 2.0**30
_WORDS = {
    DEVICE: "the device",
    HOST: "the CPU",
    UP: "the link to the device",
    DOWN: "the link to the host",
    DISK: "the disk",
    HOST_MEMORY: "host memory",
    ROUND_TRIP: "the way of a micro-batch from device to CPU and back",
}
_WORDS |= {
    wait: f"the wait for pages, of which there are few, and {_WORDS[lane]}"
    for lane, wait in PAGE_WAITS.items()
}


def explain(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    policy: Policy,
    found: Estimate,
) -> str:
    """Return sentences that say what a policy does and what to expect of it.

    Args:
        shape: Of the model.
        machine: That runs it.
        workload: Requests.
        policy: How it is run.
        found: What is expected of it.
    """
    lines = [
        *_plan_lines(policy),
        *_place_lines(machine, policy, found),
        *_limit_lines(found),
        *_point_lines(shape, machine, policy),
    ]
    lacks = missing_bytes(shape, machine, workload, policy)
    if lacks:
        named = " and ".join(
            f"{lack / GIB:.2f} GiB of {at}" for at, lack in lacks.items()
        )
        lines.append(f"It does not fit: it lacks {named}.")
    else:
        lines += _gain_lines(gains(shape, machine, workload, policy, found))
    if not machine.is_measured:
        lines.append(
            "The rates of this machine are peaks of datasheets: expect less, a half to "
            "a tenth. Measure it for numbers that hold."
        )
    return "\n".join(lines)


def _plan_lines(policy: Policy) -> Iterator[str]:
    attention = "device" if policy.attention_on_device else "CPU"
    experts = "device" if policy.experts_on_device else "CPU"
    many, size = policy.micro_batches, policy.micro_batch
    parts = f"{many} micro-batches of up to {size}" if many > 1 else "one micro-batch"
    yield (
        f"{policy.batch} requests decode together, in {parts}. Attention is computed "
        f"on the {attention}, experts on the {experts}. Prompts are read "
        f"{policy.prefill_tokens} tokens at a time."
    )


def _place_lines(machine: Machine, policy: Policy, found: Estimate) -> Iterator[str]:
    shares = (
        (policy.device_share, "stay on the device"),
        (policy.host_share, "lie in host memory"),
        (policy.disk_share, "lie on the disk"),
    )
    listed = ", ".join(f"{share:.1%} {where}" for share, where in shares if share)
    yield f"Of the experts, {listed}."
    for name, used, has in (
        (machine.device.name, found.device_bytes, machine.device.capacity_bytes),
        (machine.host.name, found.host_bytes, machine.host.capacity_bytes),
        ("disk", found.disk_bytes, machine.disk_capacity_bytes),
    ):
        items = sorted(used.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{item} {size / GIB:.2f}" for item, size in items if size)
        if listed:
            total = sum(used.values())
            yield f"{name}: {total / GIB:.2f} of {has / GIB:.2f} GiB ({listed})."


def _limit_lines(found: Estimate) -> Iterator[str]:
    yield (
        f"Expected are {_number(found.throughput_tokens_per_s)} tokens/s: "
        f"{found.prefill_s:.1f} s of prefill, limited by "
        f"{_WORDS[found.prefill_bottleneck]}, and {found.decode_s:.1f} s of decoding "
        f"in steps of {found.step_s:.3f} s."
    )
    lanes = sorted(found.lane_s.items(), key=lambda item: -item[1])
    busiest = found.lane_s[found.bottleneck]
    second, its_s = next(item for item in lanes if item[0] != found.bottleneck)
    yield (
        f"Decoding is limited by {_WORDS[found.bottleneck]}: it needs "
        f"{busiest * 1e3:.2f} ms for a layer. Next comes {_WORDS[second]}, with "
        f"{its_s / busiest:.0%} of that. {found.exposed_s / found.step_s:.1%} of a "
        "step overlaps nothing."
    )


def _point_lines(shape: ModelShape, machine: Machine, policy: Policy) -> Iterator[str]:
    if policy.device_share == 1.0:
        return
    points = turning_points(shape, machine, policy)
    batch = policy.batch
    if batch < points.host_tokens:
        side = "below the first: experts on the CPU would be faster than moving them"
    elif batch < points.device_tokens:
        side = "between: moving experts pays, and limits them"
    else:
        side = "above the second: the device limits experts, not their way to it"
    yield (
        "If all experts are streamed, moving them pays from "
        f"{_tokens(points.host_tokens)} per step (P1), and the device limits them from "
        f"{_tokens(points.device_tokens)} (P2); moving and device memory balance at "
        f"{_tokens(points.balance_tokens)}. {batch} is {side}."
    )


def _gain_lines(gained: Mapping[str, float]) -> Iterator[str]:
    best = sorted(gained.items(), key=lambda item: -item[1])
    worth = [f"{name} +{gain:.1%}" for name, gain in best if gain >= 0.0005]
    if worth:
        yield f"10 % more of one thing gives: {', '.join(worth)}; of others, nothing."
    else:
        yield "10 % more of any one thing gives nothing."


def _tokens(number: float) -> str:
    return "no number of tokens" if number == math.inf else f"{number:,.0f} tokens"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    policy: Policy,
    found: Estimate,
) -> dict[str, Any]:
    """Return the same as :func:`explain` for programs: only JSON's types.

    Args:
        shape: Of the model.
        machine: That runs it.
        workload: Requests.
        policy: How it is run.
        found: What is expected of it.
    """
    lacks = missing_bytes(shape, machine, workload, policy)
    points = asdict(turning_points(shape, machine, policy))
    gained = {} if lacks else gains(shape, machine, workload, policy, found)
    return {
        "shape": asdict(shape),
        "machine": asdict(machine),
        "workload": asdict(workload),
        "policy": {**asdict(policy), "micro_batches": policy.micro_batches},
        "estimate": asdict(found),
        # JSON has no infinity.
        "turning_points": {
            name: None if value == math.inf else value for name, value in points.items()
        },
        "missing_bytes": lacks,
        "gains_of_ten_percent": gained,
    }
