# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What takes memory under a policy, item by item.

Source: MoE-Lightning (2411.11217), section 4.2 and appendix A.1. The paper keeps cache
for the longest that a request becomes. vLLM takes blocks as they are needed and refills
the batch, so that requests are at all stages of their answers: here cache is kept for
their mean length and a margin. With an uncommon excess vLLM preempts a request.
"""

from __future__ import annotations

from .machine import Machine
from .model_shape import ModelShape
from .policy import Policy, Workload
from .roofline import ACTIVATION_BYTES

# Buffers for the experts that come and go: one layer computes as the next arrives.
PAGE_BUFFERS = 2
# Groups of pages between a disk and the link, and caches between host and device.
STAGING_BUFFERS = 2
# The batch's need for cache varies around its mean.
CACHE_MARGIN = 1.1
# A request's last block of cache is half empty on average.
_HALF_BLOCK_TOKENS = 8.0
# Beside the inputs and outputs of operations, libraries take workspaces.
_WORKSPACE = 1.2
# Logits in half precision, and in single precision for sampling.
_LOGIT_BYTES = 6.0
# Of an expert's weights, what its larger page holds: gate and up projection.
_LARGER_PAGE = 2 / 3


def cached_tokens(workload: Workload) -> float:
    """Return the tokens of cache to keep for each request of a batch."""
    mean = workload.mean_context_tokens + _HALF_BLOCK_TOKENS
    longest = workload.prompt_tokens + workload.generated_tokens + _HALF_BLOCK_TOKENS
    return min(mean * CACHE_MARGIN, longest)


def cache_bytes(shape: ModelShape, workload: Workload, policy: Policy) -> float:
    """Return the whole cache of a batch, wherever it lies."""
    tokens = policy.batch * cached_tokens(workload)
    return tokens * shape.layers * shape.cache_bytes_per_token


def cache_buffer_bytes(shape: ModelShape, workload: Workload, policy: Policy) -> float:
    """Return the room on the device for caches that come and go, if all of them do."""
    longest = workload.prompt_tokens + workload.generated_tokens
    tokens = policy.micro_batch * longest * STAGING_BUFFERS
    return tokens * shape.cache_bytes_per_token


def page_buffer_bytes(shape: ModelShape, device_share: float) -> float:
    """Return the room on the device for experts that come and go."""
    buffers = min(PAGE_BUFFERS, shape.layers)
    return buffers * (1.0 - device_share) * shape.layer_expert_bytes


def device_memory(
    shape: ModelShape, workload: Workload, policy: Policy
) -> dict[str, float]:
    """Return what lies on the device, bytes by name.

    Args:
        shape: Of the model.
        workload: Requests.
        policy: How it is run.
    """
    prefill = min(policy.prefill_tokens, policy.batch * workload.prompt_tokens)
    # The residual stream of all tokens of a step, and what a layer adds to it.
    hidden = 2 * max(policy.batch, prefill) * shape.hidden * ACTIVATION_BYTES
    together = max(policy.micro_batch, prefill / policy.micro_batches)
    used = {
        "dense weights": shape.dense_bytes,
        "hidden states": hidden,
        "activations": together * _activation_bytes(shape) * _WORKSPACE,
        "logits": policy.batch * shape.vocab * _LOGIT_BYTES,
    }
    if policy.experts_on_device:
        used["resident experts"] = (
            policy.device_share * shape.layers * shape.layer_expert_bytes
        )
        used["page buffers"] = page_buffer_bytes(shape, policy.device_share)
    if policy.attention_on_device:
        share = policy.cache_on_device_share
        used["cache"] = share * cache_bytes(shape, workload, policy)
        used["cache buffers"] = (1.0 - share) * cache_buffer_bytes(
            shape, workload, policy
        )
    return used


def host_memory(
    shape: ModelShape, workload: Workload, policy: Policy
) -> dict[str, float]:
    """Return what lies in host memory, bytes by name.

    Args:
        shape: Of the model.
        workload: Requests.
        policy: How it is run.
    """
    away = 1.0 - policy.cache_on_device_share
    moved = 2 * (shape.heads + shape.kv_heads) * shape.head_dim * ACTIVATION_BYTES
    return {
        "experts": policy.host_share * shape.layers * shape.layer_expert_bytes,
        "cache": away * cache_bytes(shape, workload, policy),
        "transfers": 0.0 if policy.attention_on_device else policy.batch * moved,
        "staging": staging_bytes(shape, policy.disk_share, policy.micro_batches),
    }


def staging_bytes(shape: ModelShape, disk_share: float, micro_batches: int) -> float:
    """Return the host memory that pages from a disk pass through."""
    if not disk_share:
        return 0.0
    group = disk_share * shape.layer_expert_bytes / micro_batches
    return STAGING_BUFFERS * max(group, shape.expert_bytes * _LARGER_PAGE)


def disk_memory(shape: ModelShape, policy: Policy) -> dict[str, float]:
    """Return what lies on the disk, bytes by name."""
    return {"experts": policy.disk_share * shape.layers * shape.layer_expert_bytes}


def missing_bytes(
    shape: ModelShape, machine: Machine, workload: Workload, policy: Policy
) -> dict[str, float]:
    """Return by how much each memory is too small, by name; nothing if all are enough.

    Args:
        shape: Of the model.
        machine: That is to run it.
        workload: Requests.
        policy: How it is to be run.
    """
    device, host = machine.device.capacity_bytes, machine.host.capacity_bytes
    lacks = {
        "device memory": sum(device_memory(shape, workload, policy).values()) - device,
        "host memory": sum(host_memory(shape, workload, policy).values()) - host,
        "disk": sum(disk_memory(shape, policy).values()) - machine.disk_capacity_bytes,
    }
    # A share that just fits may be a rounding error above.
    return {name: lack for name, lack in lacks.items() if lack > 0.5}


def _activation_bytes(shape: ModelShape) -> float:
    """What a layer keeps for a token.

    Queries, keys, values and the attention output, and for each chosen expert its input
    or output, gate, up and their product.
    """
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    chosen = shape.experts_per_token * (shape.hidden + 3 * shape.expert_hidden)
    return ACTIVATION_BYTES * (attention + chosen + 3 * shape.shared_expert_hidden)
