# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The hierarchical roofline model: where a kernel should run, and what limits it there.

A kernel runs on the device while some of what it reads comes over the link from the
host. Three roofs limit it: what the device computes, what its memory delivers, and what
the link delivers. An intensity is the operations per byte that crosses one of the two.

Source: MoE-Lightning (2411.11217), section 3 (HRM).
"""

from __future__ import annotations

import math

from .model_shape import ModelShape

# Of what is handed from one operation to the next.
ACTIVATION_BYTES = 2.0


def attainable(
    peak: float,
    local_bandwidth: float,
    local_intensity: float,
    link_bandwidth: float = math.inf,
    link_intensity: float = math.inf,
) -> float:
    """Return the rate that a kernel reaches at most, in operations per second.

    Args:
        peak: Of the processor, operations per second.
        local_bandwidth: Of its own memory, bytes per second.
        local_intensity: Operations per byte of that memory.
        link_bandwidth: Of the link; left out: nothing crosses it.
        link_intensity: Operations per byte that crosses it.
    """
    moved = math.inf if link_intensity == math.inf else link_bandwidth * link_intensity
    return min(peak, local_bandwidth * local_intensity, moved)


def turning_point_host(
    host_peak: float, host_bandwidth: float, intensity: float, link_bandwidth: float
) -> float:
    """Return P1: the link intensity below which the host computes faster.

    Moving data cannot pay there: the link delivers less than what the host does with
    the data where it lies.

    Args:
        host_peak: Operations per second.
        host_bandwidth: Of its memory, bytes per second.
        intensity: Of the kernel on the host, operations per byte.
        link_bandwidth: Bytes per second.
    """
    return attainable(host_peak, host_bandwidth, intensity) / link_bandwidth


def turning_point_device(
    device_peak: float,
    device_bandwidth: float,
    local_intensity: float,
    link_bandwidth: float,
) -> float:
    """Return P2: the link intensity above which the device is the limit.

    Args:
        device_peak: Operations per second.
        device_bandwidth: Of its memory, bytes per second.
        local_intensity: Of the kernel there, operations per byte.
        link_bandwidth: Bytes per second.
    """
    return attainable(device_peak, device_bandwidth, local_intensity) / link_bandwidth


def balance_point(
    device_bandwidth: float, local_intensity: float, link_bandwidth: float
) -> float:
    """Return the link intensity at which device memory and link take equally long.

    Beyond it a larger batch helps only as far as its micro-batches grow.

    Args:
        device_bandwidth: Of its memory, bytes per second.
        local_intensity: Of the kernel there, operations per byte.
        link_bandwidth: Bytes per second.
    """
    return device_bandwidth * local_intensity / link_bandwidth


def expert_flops(shape: ModelShape, tokens: float) -> float:
    """Return the operations of one layer's experts, a multiply-add being two."""
    return 6.0 * shape.hidden * shape.expert_hidden * shape.experts_per_token * tokens


def _token_bytes(shape: ModelShape) -> float:
    """What experts read and write for a token; as published, whatever their number."""
    return ACTIVATION_BYTES * (shape.hidden + shape.expert_hidden)


def expert_intensity(shape: ModelShape, tokens: float) -> float:
    """Return the operations of one layer's experts per byte that they touch.

    With the tokens of a micro-batch this is the intensity in device memory, where the
    weights are read anew for each; with those of a batch it is the one on the link,
    which the weights cross once.

    Args:
        shape: Of the model.
        tokens: That are computed with one reading of the weights.
    """
    touched = shape.layer_expert_bytes + tokens * _token_bytes(shape)
    return expert_flops(shape, tokens) / touched


def tokens_at_intensity(shape: ModelShape, intensity: float) -> float:
    """Return how many tokens give experts an intensity; infinite if none do.

    Args:
        shape: Of the model.
        intensity: Operations per byte.
    """
    gained = expert_flops(shape, 1.0) - intensity * _token_bytes(shape)
    return intensity * shape.layer_expert_bytes / gained if gained > 0 else math.inf


def attention_flops(shape: ModelShape, context_tokens: float) -> float:
    """Return the operations of one layer's attention for one new token."""
    return 4.0 * shape.heads * shape.head_dim * context_tokens


def attention_intensity(
    heads: int, kv_heads: int, cache_value_bytes: float, products: int = 2
) -> float:
    """Return the operations of decode attention per byte of cache.

    It does not depend on the batch, as each request has a cache of its own.

    Args:
        heads: Query heads.
        kv_heads: Key-value heads, each read for ``heads / kv_heads`` query heads.
        cache_value_bytes: Of one number in the cache.
        products: 2: scores and the weighted sum of values. The paper's program counts
            the first only, 1.
    """
    return products * heads / (kv_heads * cache_value_bytes)


def touched_experts(shape: ModelShape, tokens: float) -> float:
    """Return how many experts of a layer some tokens choose, if any is as likely."""
    missed = 1.0 - shape.experts_per_token / shape.experts
    return float(shape.experts * (1.0 - missed**tokens))
