# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How long each operation of a schedule takes on a machine, for the simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .decode_times import PAGES_OF_EXPERT, LayerTimes, layer_times
from .machine import Machine
from .model_shape import ModelShape
from .operations import Kind, Operation, Schedule
from .policy import Policy
from .schedule_rivals import NAMES, schedule

# FlexGen as published, whose attention is on the device.
_ON_DEVICE = ("s4",)


def operation_seconds(
    times: LayerTimes, pages: int, launch_s: float
) -> Callable[[Operation], float]:
    """Return how long an operation takes.

    Args:
        times: Of a layer.
        pages: Of a layer that come and go.
        launch_s: That any transfer takes besides its bytes.
    """
    of_kind = {
        Kind.PRE_ATTENTION: times.pre_attention_s,
        Kind.OFFLOAD_QKV: times.offload_s,
        Kind.STORE_CACHE: times.offload_s,
        Kind.HOST_ATTENTION: times.host_attention_s,
        Kind.LOAD_HIDDEN: times.load_hidden_s,
        Kind.LOAD_CACHE: times.load_cache_s,
        Kind.DEVICE_ATTENTION: times.device_attention_s,
        Kind.POST_ATTENTION: times.post_attention_s,
    }
    groups = times.page_groups
    whole = {
        Kind.LOAD_PAGES: max(times.pages_s - groups * launch_s, 0.0),
        Kind.STAGE_PAGES: max(times.disk_s - groups * launch_s, 0.0),
    }

    def seconds(operation: Operation) -> float:
        if operation.kind in whole:
            share = len(operation.pages) / max(pages, 1)
            return launch_s + share * whole[operation.kind]
        return of_kind[operation.kind]

    return seconds


def timed_schedules(
    shape: ModelShape,
    machine: Machine,
    policy: Policy,
    context_tokens: float,
    steps: int = 2,
) -> dict[str, tuple[Schedule, Callable[[Operation], float]]]:
    """Return every schedule of a policy with the times of its operations, by name.

    Args:
        shape: Of the model.
        machine: That runs it.
        policy: Sizes and shares; the place of attention follows from the schedule.
        context_tokens: That each request has.
        steps: Decode steps in a row.
    """
    pages = PAGES_OF_EXPERT * shape.experts
    resident = min(round(policy.device_share * pages), pages)
    staging = 2 if policy.disk_share else 0
    found = {}
    for name in NAMES:
        here = name in _ON_DEVICE
        placed = replace(
            policy,
            attention_on_device=here,
            cache_on_device_share=policy.cache_on_device_share if here else 0.0,
        )
        times = layer_times(shape, machine, placed, context_tokens)
        made = schedule(
            name,
            *(shape.layers, policy.micro_batches, pages, resident),
            steps=steps,
            staging_slots=staging,
        )
        seconds = operation_seconds(times, pages - resident, machine.launch_s)
        found[name] = made, seconds
    return found
