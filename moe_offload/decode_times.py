# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How long the operations of one layer take in a decode step.

Each takes the longer of its computing and its memory traffic, and the time of a launch.

Source: MoE-Lightning (2411.11217), section 4.2, with measured rates in place of peaks,
and with all operations of a layer rather than the largest one of each resource.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .machine import Machine
from .model_shape import ModelShape
from .policy import Policy
from .roofline import (
    ACTIVATION_BYTES,
    attention_flops,
    expert_flops,
    touched_experts,
)

# Micro-batches whose attention is under way while one is in the experts, as in alg. 1.
IN_FLIGHT = 2
PAGES_OF_EXPERT = 2

DEVICE = "device"
HOST = "host"
UP = "link up"
DOWN = "link down"
DISK = "disk"
HOST_MEMORY = "host memory"
ROUND_TRIP = "round trip"
# Of the link, for one of these, where pages are fewer than micro-batches.
PAGE_WAITS = {each: f"pages and {each}" for each in (DEVICE, HOST, ROUND_TRIP)}


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Times of one layer; those of a micro-batch where nothing else is said.

    Attributes:
        micro_batches: Of the batch.
        page_groups: That the streamed pages of the layer travel in.
        pre_attention_s: Norm, queries, keys and values, on the device.
        offload_s: What goes from device to host.
        host_attention_s: On the CPU.
        load_hidden_s: What comes back.
        post_attention_s: Output projection, router and experts, on the device.
        load_cache_s: Cache from the host, for attention on the device.
        device_attention_s: On the device.
        host_experts_s: Experts on the CPU.
        pages_s: All streamed pages of the layer, on the link.
        disk_s: Those of them that come from a disk.
        host_memory_s: What all micro-batches and the pages read and write there.
    """

    micro_batches: int
    page_groups: int
    pre_attention_s: float
    offload_s: float
    host_attention_s: float
    load_hidden_s: float
    post_attention_s: float
    load_cache_s: float
    device_attention_s: float
    host_experts_s: float
    pages_s: float
    disk_s: float
    host_memory_s: float

    @property
    def trip_s(self) -> float:
        """One micro-batch's way through the layer, waiting for nobody."""
        return self.offload_s + self._host_s + self.load_hidden_s + self._device_s

    def lanes(self) -> dict[str, float]:
        """Return what each resource needs for the layer, seconds by name.

        A micro-batch's next layer cannot begin before its last one has ended, and no
        more than two are on their way; "round trip" is the time that this takes. Where
        pages are fewer than micro-batches, several of these pass between two pages, and
        "pages and ..." is the time of the link with what it waits.
        """
        many = self.micro_batches
        found = {
            UP: self.pages_s + many * (self.load_hidden_s + self.load_cache_s),
            DEVICE: many * self._device_s,
            HOST: many * self._host_s,
            DOWN: many * self.offload_s,
            DISK: self.disk_s,
            HOST_MEMORY: self.host_memory_s,
        }
        if self.host_attention_s or self.host_experts_s:
            found[ROUND_TRIP] = many * self.trip_s / min(IN_FLIGHT, many)
        # How many micro-batches are not near when a page has crossed the link: the link
        # then waits for whatever is slowest. The simulator knows more; this comes
        # within a tenth of it.
        behind = many - IN_FLIGHT * self.page_groups
        if self.page_groups and behind > 0:
            near = found[UP] - behind * self.load_hidden_s
            for lane, wait in PAGE_WAITS.items():
                if lane in found:
                    found[wait] = near + behind * found[lane] / many
        return found

    @property
    def _device_s(self) -> float:
        return self.pre_attention_s + self.device_attention_s + self.post_attention_s

    @property
    def _host_s(self) -> float:
        return self.host_attention_s + self.host_experts_s

    def exposed(self) -> dict[str, float]:
        """Return how long each resource is idle in a step, seconds by name.

        It waits for the first micro-batch's way to it, and ends before the last one's
        way on. Between, the busiest one never waits.
        """
        trip, group = self.trip_s, self.pages_s / max(self.page_groups, 1)
        found = {
            UP: trip - self.load_hidden_s,
            DEVICE: trip - self._device_s,
            HOST: trip - self._host_s,
            DOWN: trip - self.offload_s,
            DISK: group + self.post_attention_s,
            HOST_MEMORY: trip - self._host_s,
            ROUND_TRIP: trip - trip / min(IN_FLIGHT, self.micro_batches),
        }
        found |= {wait: found[lane] for lane, wait in PAGE_WAITS.items()}
        return found


def layer_times(
    shape: ModelShape, machine: Machine, policy: Policy, context_tokens: float
) -> LayerTimes:
    """Return how long the operations of a layer take.

    All times but those of attention are independent of the context, and those grow in
    proportion to it, besides the launch.

    Args:
        shape: Of the model.
        machine: That runs it.
        policy: How it is run.
        context_tokens: That each request has.
    """
    rows = policy.batch / policy.micro_batches
    launch, many = machine.launch_s, policy.micro_batches
    moved = _moved(shape, policy, rows, context_tokens)
    streamed = (1.0 - policy.device_share) * shape.layer_expert_bytes
    streamed = streamed if policy.experts_on_device else 0.0
    staged = policy.disk_share * shape.layer_expert_bytes
    pages = math.ceil(streamed / shape.expert_bytes * PAGES_OF_EXPERT)
    groups = min(many, pages)
    traffic = streamed + staged + many * (moved.down + moved.up + moved.host)
    experts_s, host_experts_s = _experts(shape, machine, policy, rows)
    here_s, away_s = _attention(shape, machine, policy, rows * context_tokens)
    output_s = _dense(shape, machine, rows, shape.output_weights)

    def transfer_s(size: float, bytes_per_s: float | None, launches: int = 1) -> float:
        return launches * launch + size / bytes_per_s if size and bytes_per_s else 0.0

    return LayerTimes(
        micro_batches=many,
        page_groups=groups,
        pre_attention_s=launch + _dense(shape, machine, rows, shape.qkv_weights),
        offload_s=transfer_s(moved.down, machine.down_bytes_per_s),
        host_attention_s=away_s,
        load_hidden_s=transfer_s(moved.up, machine.up_bytes_per_s),
        post_attention_s=launch + output_s + experts_s,
        load_cache_s=transfer_s(moved.cache, machine.up_bytes_per_s),
        device_attention_s=here_s,
        host_experts_s=host_experts_s,
        pages_s=transfer_s(streamed, machine.up_bytes_per_s, groups),
        disk_s=transfer_s(staged, machine.disk_bytes_per_s, groups),
        host_memory_s=traffic / machine.host.bandwidth_bytes_per_s,
    )


class _Moved(NamedTuple):
    """Bytes of a micro-batch: what goes down and up the link, and is read on the host.

    The cache that goes up is apart.
    """

    down: float
    up: float
    cache: float
    host: float


def _moved(
    shape: ModelShape, policy: Policy, rows: float, context_tokens: float
) -> _Moved:
    # Experts on the host: hidden states go there and back.
    hidden = 0.0 if policy.experts_on_device else rows * shape.hidden * ACTIVATION_BYTES
    new = rows * shape.cache_bytes_per_token
    if policy.attention_on_device:
        away = 1.0 - policy.cache_on_device_share
        read = away * context_tokens * new
        return _Moved(hidden + away * new, hidden, read, read)
    head = rows * shape.head_dim * ACTIVATION_BYTES
    queries = head * shape.heads
    qkv = queries + 2 * head * shape.kv_heads
    return _Moved(hidden + qkv, hidden + queries, 0.0, context_tokens * new)


def _dense(shape: ModelShape, machine: Machine, rows: float, weights: int) -> float:
    """A micro-batch times a matrix on the device."""
    return max(
        2.0 * rows * weights / machine.dense_flops_per_s,
        weights * shape.dense_weight_bytes / machine.device.bandwidth_bytes_per_s,
    )


def _experts(
    shape: ModelShape, machine: Machine, policy: Policy, rows: float
) -> tuple[float, float]:
    """A micro-batch through the experts, on the device or on the host."""
    flops = expert_flops(shape, rows)
    touched = touched_experts(shape, rows) * shape.expert_bytes
    touched += rows * ACTIVATION_BYTES * (shape.hidden + shape.expert_hidden)
    if policy.experts_on_device:
        memory = touched / machine.device.bandwidth_bytes_per_s
        return max(flops / machine.expert_flops_per_s, memory), 0.0
    memory = touched / machine.host.bandwidth_bytes_per_s
    return 0.0, machine.launch_s + max(flops / machine.host.flops_per_s, memory)


def _attention(
    shape: ModelShape, machine: Machine, policy: Policy, tokens: float
) -> tuple[float, float]:
    """A micro-batch's attention to all its tokens, on the device or on the CPU."""
    read, flops = tokens * shape.cache_bytes_per_token, attention_flops(shape, tokens)
    if policy.attention_on_device:
        memory = read / machine.device.bandwidth_bytes_per_s
        return machine.launch_s + max(memory, flops / machine.dense_flops_per_s), 0.0
    memory = read / machine.host_attention_bytes_per_s
    return 0.0, machine.launch_s + max(memory, flops / machine.host.flops_per_s)
