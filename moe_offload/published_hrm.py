# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The planner as published, to compare with: it ranks policies, and finds the paper's.

It counts a decode step with attention on the host, from peaks of datasheets and without
prefill: its throughputs are 2 to 9 times those that the paper measured. What this
plugin plans with is in :mod:`moe_offload.estimate`.

The paper gives a mixed-integer program to a solver. None is needed: of a step only the
link's time depends on the share of experts that stay, and it falls with it, so the
largest share that fits is best.

With the machines of :mod:`moe_offload.published_hardware` these policies of the paper
are found exactly (micro-batch x micro-batches). MTBench with answers of 32, 64 and 128
tokens: L4 324x14, 228x16, 164x16, T4 164x19, 164x19, 164x14; padded, T4 36x14. HELM:
padded synthetic reasoning on L4 100x15, summarization on T4 4x19. MTBench on L4 with
answers of 256, 132x12, needs 179.75 to 183.25 GiB of host memory. Not found with any:
HELM synthetic reasoning on T4, 36x26, and summarization on L4, 8x36, whose micro-batch
is not on the published grid.

Source: MoE-Lightning (2411.11217), section 4.2, eq. 12, and constants of the program
published with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .model_shape import ModelShape
from .policy import Policy, Workload
from .published_hardware import GIB, PublishedHardware

# Micro-batches that the published search tries. It leaves out 5 to 35 and most others.
PUBLISHED_GRID = (1, 2, 3, *range(4, 4 + 32 * 64, 32))

# Shares of memory that the published program uses.
_DEVICE_USABLE = 0.86
_HOST_USABLE = 0.8
_WORKING_MEMORY = 2.4  # bytes of a half-precision activation, and a fifth more
# Below this, two throughputs are one, and the smaller batch is taken.
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class PublishedEstimate:
    """What the published model says of a policy.

    Attributes:
        policy: As it was planned.
        link_s: Of one layer.
        host_s: The same, attention.
        device_s: The same, experts; the published program counts no other work there.
        throughput_tokens_per_s: Of decoding alone.
    """

    policy: Policy
    link_s: float
    host_s: float
    device_s: float
    throughput_tokens_per_s: float

    @property
    def layer_s(self) -> float:
        """Time of one layer in a decode step (T)."""
        return max(self.link_s, self.host_s, self.device_s)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of a model, as the published program counts them.

    Weights are of half precision, and queries as wide as the residual stream.
    """

    kv_width: float
    experts_bytes: float  # of a layer
    dense_bytes: float  # of all layers

    @classmethod
    def of(cls, shape: ModelShape) -> _Sizes:
        kv_width = shape.hidden * shape.kv_heads / shape.heads
        return cls(
            kv_width,
            6.0 * shape.hidden * shape.expert_hidden * shape.experts,
            4.0 * shape.hidden * (shape.hidden + kv_width) * shape.layers,
        )


def fixed_device_bytes(
    shape: ModelShape, workload: Workload, micro_batch: int, micro_batches: int
) -> float:
    """Return device memory that does not depend on which experts stay."""
    size = _Sizes.of(shape)
    prompt, batch = workload.prompt_tokens, micro_batch * micro_batches
    decode = 4.0 * shape.hidden * batch
    prefill = (
        4.0 * shape.hidden * micro_batch * prompt
        + 2.0 * shape.hidden * batch * prompt
        + 8.0 * size.kv_width * micro_batch * prompt
    )
    chosen = shape.experts_per_token * (shape.hidden + 3.0 * shape.expert_hidden)
    working = _WORKING_MEMORY * micro_batch * prompt * chosen
    return size.dense_bytes + max(decode, prefill) + working


def fixed_host_bytes(shape: ModelShape, workload: Workload, batch: int) -> float:
    """Return host memory that does not depend on which experts stay."""
    kv_width, prompt = _Sizes.of(shape).kv_width, workload.prompt_tokens
    tokens = prompt + workload.generated_tokens
    cache = 4.0 * tokens * kv_width * batch * shape.layers
    return cache + 2.0 * shape.hidden * batch * prompt


def resident_share(
    shape: ModelShape,
    hardware: PublishedHardware,
    workload: Workload,
    micro_batch: int,
    micro_batches: int,
) -> float | None:
    """Return the largest share of experts that can stay on the device (w_g).

    A share w takes w of all layers, and 1 - w of two layers for what arrives and what
    is computed with. The host holds the rest, with as much again of two layers pinned.

    Args:
        shape: Of the model.
        hardware: Of the machine.
        workload: Requests.
        micro_batch: Requests of one.
        micro_batches: Of a batch.

    Returns:
        The share; None where none fits.
    """
    layer = _Sizes.of(shape).experts_bytes
    fixed = fixed_device_bytes(shape, workload, micro_batch, micro_batches)
    room = _DEVICE_USABLE * hardware.device_bytes - fixed
    batch = micro_batch * micro_batches
    host_room = _HOST_USABLE * hardware.host_bytes - fixed_host_bytes(
        shape, workload, batch
    )
    least = max(0.0, 1.0 - host_room / (layer * (shape.layers + 2)))
    if shape.layers > 2:
        share = min(1.0, (room - 2.0 * layer) / (layer * (shape.layers - 2)))
    else:
        # Fewer resident experts take no less memory.
        share = 1.0 if shape.layers * layer <= room else -1.0
    return share if share >= least else None


def published_estimate(
    shape: ModelShape,
    hardware: PublishedHardware,
    workload: Workload,
    micro_batch: int,
    micro_batches: int,
    share: float,
) -> PublishedEstimate:
    """Return what the published model says of a decode step.

    Args:
        shape: Of the model.
        hardware: Of the machine.
        workload: Requests; answers of at least 2 tokens.
        micro_batch: Requests of one.
        micro_batches: Of a batch.
        share: Of the experts of each layer on the device.
    """
    size = _Sizes.of(shape)
    mu, batch = float(micro_batch), micro_batch * micro_batches
    context = workload.prompt_tokens + workload.generated_tokens
    flops = 6.0 * mu * shape.hidden * shape.expert_hidden * shape.experts_per_token
    touched = 2.0 * mu * (shape.hidden + shape.expert_hidden) + size.experts_bytes
    device = max(
        flops / hardware.device_flops_per_s, touched / hardware.device_bytes_per_s
    )
    # The program counts the scores but not the weighted sum of values; reading the
    # cache takes longer than either.
    scores = 2.0 * mu * context * (shape.hidden + shape.heads)
    read = 4.0 * mu * (shape.hidden + context * size.kv_width)
    host = max(scores / hardware.host_flops_per_s, read / hardware.host_bytes_per_s)
    link = size.experts_bytes * (1.0 - share) / hardware.link_bytes_per_s
    policy = Policy(
        batch=batch,
        micro_batch=micro_batch,
        attention_on_device=False,
        experts_on_device=True,
        device_share=share,
        host_share=1.0 - share,
        disk_share=0.0,
        cache_on_device_share=0.0,
        prefill_tokens=math.ceil(batch * workload.prompt_tokens),
    )
    host, device = host * micro_batches, device * micro_batches
    layer_s = max(link, host, device)
    decode_s = layer_s * (workload.generated_tokens - 1) * shape.layers
    return PublishedEstimate(
        policy,
        link,
        host,
        device,
        batch * workload.generated_tokens / decode_s if decode_s else math.inf,
    )


def published_policy(
    shape: ModelShape,
    hardware: PublishedHardware,
    workload: Workload,
    grid: Iterable[int] = PUBLISHED_GRID,
    max_micro_batches: int = 512,
) -> PublishedEstimate:
    """Return the policy with the highest throughput; of equals, the first tried.

    Args:
        shape: Of the model.
        hardware: Of the machine.
        workload: Requests; answers of at least 2 tokens.
        grid: Sizes of micro-batches to try.
        max_micro_batches: Of a batch.

    Raises:
        ValueError: None of them fits into memory.
    """
    best: PublishedEstimate | None = None
    for micro_batch in grid:
        for micro_batches in range(1, max_micro_batches + 1):
            share = resident_share(
                shape, hardware, workload, micro_batch, micro_batches
            )
            if share is None:  # nor does a larger batch fit
                break
            found = published_estimate(
                shape, hardware, workload, micro_batch, micro_batches, share
            )
            gained = found.throughput_tokens_per_s
            if best is None or gained > best.throughput_tokens_per_s * (1.0 + _TIE):
                best = found
    if best is None:
        raise ValueError(
            "moe_offload: asked for the published policy, but no batch fits into "
            f"{hardware.device_bytes / GIB:.1f} GiB of device memory and "
            f"{hardware.host_bytes / GIB:.1f} GiB of host memory. Give more of either, "
            "or a smaller model."
        )
    return best
