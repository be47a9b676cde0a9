# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Policies and workloads that cannot be are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_offload.policy import Workload
from tests.moe_offload.planner_cases import streaming


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("micro_batch", 13),
        ("prefill_tokens", 0),
        ("device_share", 0.1),
        ("disk_share", -0.1),
        ("host_share", float("nan")),
        ("cache_on_device_share", 0.5),
    ],
)
def test_impossible_policies(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^moe_offload: .*{name}.*cannot be"):
        replace(streaming(12, 4), **{name: value})


def test_experts_on_the_host_lie_there() -> None:
    with pytest.raises(ValueError, match=r"^moe_offload: .*host_share=0.5"):
        replace(streaming(12, 4, 0.5), experts_on_device=False)


def test_micro_batches_are_rounded_up() -> None:
    assert [streaming(12, size).micro_batches for size in (1, 4, 5, 12)] == [
        12,
        3,
        3,
        1,
    ]


@pytest.mark.parametrize(("prompt", "generated"), [(0, 5), (5, 0), (float("nan"), 5)])
def test_impossible_workloads(prompt: float, generated: float) -> None:
    with pytest.raises(ValueError, match=r"^moe_offload: .*_tokens="):
        Workload(prompt, generated)
