# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Where experts and cache lie, given the batch: the largest shares that fit.

Whole experts are placed, as many in each layer, as the arena does.

Source: MoE-Lightning (2411.11217), section 4.2. The paper gives the shares to a solver.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .machine import Machine
from .memory_use import (
    PAGE_BUFFERS,
    cache_buffer_bytes,
    cache_bytes,
    device_memory,
    host_memory,
    page_buffer_bytes,
    staging_bytes,
)
from .model_shape import ModelShape
from .policy import Policy, Workload
from .roofline import expert_flops

_SMALLEST_PASS_TOKENS = 256


def placed(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    policy: Policy,
    cache_first: bool = False,
) -> Policy:
    """Return a policy with its shares chosen anew, whether or not they fit then.

    As many experts stay on the device as fit, because of a step only the link's time
    depends on them, and it falls with each. What is left on the device then goes to the
    cache, if attention is there. The other experts go to host memory, and those that do
    not fit there to the disk, if there is one.

    Args:
        shape: Of the model.
        machine: That is to run it.
        workload: Requests.
        policy: Its batch and what is computed where are kept.
        cache_first: Whether the cache goes to the device before experts do. It is worth
            it where little can be written to the host.
    """
    bare = replace(
        policy, device_share=0, host_share=1, disk_share=0, cache_on_device_share=0
    )
    room = machine.device.capacity_bytes
    room -= sum(device_memory(shape, workload, bare).values())
    # Cache buffers are part of what is taken already, and shrink with its share.
    cost = cache_bytes(shape, workload, bare)
    cost -= cache_buffer_bytes(shape, workload, bare)
    cached = 0.0
    if policy.attention_on_device and cache_first:
        cached = _fitting_share(cost, room)
        room -= cached * cost
    resident = 0
    if policy.experts_on_device:
        room += page_buffer_bytes(shape, 0.0)
        resident = _resident_experts(shape, room)
        share = resident / shape.experts
        room -= share * shape.layers * shape.layer_expert_bytes
        room -= page_buffer_bytes(shape, share)
    if policy.attention_on_device and not cache_first:
        cached = _fitting_share(cost, room)
    kept = replace(bare, cache_on_device_share=cached)
    disk = _disk_experts(shape, machine, workload, kept, resident)
    device_share, disk_share = resident / shape.experts, disk / shape.experts
    return replace(
        kept,
        device_share=device_share,
        host_share=max(0.0, 1.0 - device_share - disk_share),
        disk_share=disk_share,
    )


def _fitting_share(cost_bytes: float, room_bytes: float) -> float:
    """How much of something fits, from 0 to 1."""
    if cost_bytes <= room_bytes:
        return 1.0
    return max(0.0, room_bytes / cost_bytes)


def _resident_experts(shape: ModelShape, room_bytes: float) -> int:
    """Experts of each layer that stay, where the others share two layers' room."""
    whole = shape.layers * shape.layer_expert_bytes
    if whole <= room_bytes:
        return shape.experts
    spare = room_bytes - min(PAGE_BUFFERS, shape.layers) * shape.layer_expert_bytes
    if spare < 0 or shape.layers <= PAGE_BUFFERS:
        return 0
    return int(spare // ((shape.layers - PAGE_BUFFERS) * shape.expert_bytes))


def _disk_experts(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    bare: Policy,
    resident: int,
) -> int:
    """Experts of each layer that host memory has no room for and a disk has."""
    if machine.disk_bytes_per_s is None or not bare.experts_on_device:
        return 0
    room = machine.host.capacity_bytes
    room -= sum(host_memory(shape, workload, bare).values())
    room += shape.layers * shape.layer_expert_bytes
    others, one = shape.experts - resident, shape.layers * shape.expert_bytes
    disk = max(0, others - int(max(room, 0.0) // one))
    # What comes from a disk passes through host memory, which takes some, too.
    while disk < others:
        staged = staging_bytes(shape, disk / shape.experts, bare.micro_batches)
        if (others - disk) * one + staged <= room:
            break
        disk += 1
    return disk


def pass_tokens(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    batch: int,
    halvings: int = 0,
) -> int:
    """Return the tokens of a prefill pass.

    So many that computing them takes as long as streaming all experts, or fewer, which
    leaves memory to experts.

    Args:
        shape: Of the model.
        machine: That is to run it.
        workload: Requests.
        batch: Requests; a pass is no longer than all their prompts.
        halvings: How often the pass is halved, as far as that is sensible.
    """
    streamed_s = shape.layer_expert_bytes / machine.up_bytes_per_s
    computed_s = expert_flops(shape, 1.0) / machine.expert_flops_per_s
    tokens = min(
        math.ceil(batch * workload.prompt_tokens),
        max(_SMALLEST_PASS_TOKENS, math.ceil(streamed_s / computed_s)),
    )
    return max(min(tokens, _SMALLEST_PASS_TOKENS), tokens >> halvings)
