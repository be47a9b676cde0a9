# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Models and machines that the planner is tested with."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from moe_offload.machine import Machine, Tier
from moe_offload.model_shape import ModelShape
from moe_offload.policy import Policy

GIB = 2.0**30

MIXTRAL_8X7B = ModelShape(
    layers=32,
    hidden=4096,
    expert_hidden=14336,
    experts=8,
    experts_per_token=2,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=32000,
)
QWEN3_30B_A3B = ModelShape(
    layers=48,
    hidden=2048,
    expert_hidden=768,
    experts=128,
    experts_per_token=8,
    heads=32,
    kv_heads=4,
    head_dim=128,
    vocab=151936,
)
TINY = ModelShape(
    layers=5,
    hidden=64,
    expert_hidden=256,
    experts=4,
    experts_per_token=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=100,
)


def l4(
    device_gib: float = 24.0, host_gib: float = 184.5, launch_s: float = 50e-6
) -> Machine:
    """An L4 with rates from figure 9 of the paper, and what it uses of memory."""
    return Machine(
        Tier("L4", 0.86 * device_gib * GIB, 229e9, 104e12),
        Tier("its host", 0.8 * host_gib * GIB, 100e9, 1.6e12),
        up_bytes_per_s=12.3e9,
        down_bytes_per_s=12.3e9,
        host_attention_bytes_per_s=46e9,
        expert_flops_per_s=104e12,
        dense_flops_per_s=104e12,
        launch_s=launch_s,
    )


def tiny_machine(device_bytes: float = 1.2e6, host_bytes: float = 4e6) -> Machine:
    """A machine for which the tiny model is large."""
    return Machine(
        Tier("device", device_bytes, 1e9, 1e11),
        Tier("host", host_bytes, 1e8, 1e9),
        up_bytes_per_s=2e7,
        down_bytes_per_s=2e7,
        host_attention_bytes_per_s=5e7,
        expert_flops_per_s=5e10,
        dense_flops_per_s=5e10,
        launch_s=1e-5,
    )


def with_disk(machine: Machine, bytes_per_s: float = 1e7) -> Machine:
    """The machine with a disk that holds any tiny model."""
    return replace(machine, disk_bytes_per_s=bytes_per_s, disk_capacity_bytes=1e9)


def streaming(batch: int, micro_batch: int, device_share: float = 0.0) -> Policy:
    """CGOPipe as published."""
    return Policy(
        batch=batch,
        micro_batch=micro_batch,
        attention_on_device=False,
        experts_on_device=True,
        device_share=device_share,
        host_share=1.0 - device_share,
        disk_share=0.0,
        cache_on_device_share=0.0,
        prefill_tokens=16384,
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Machines on which any resource may be the limit."""
    rate = st.floats(1e6, 1e9)
    return Machine(
        Tier("device", draw(st.floats(8e5, 4e6)), draw(rate), 1e11),
        Tier("host", draw(st.floats(2e6, 1e7)), draw(rate), 1e10),
        up_bytes_per_s=draw(rate),
        down_bytes_per_s=draw(rate),
        host_attention_bytes_per_s=draw(rate),
        expert_flops_per_s=draw(st.floats(1e8, 1e11)),
        dense_flops_per_s=draw(st.floats(1e8, 1e11)),
        launch_s=draw(st.sampled_from((0.0, 1e-5))),
    )
