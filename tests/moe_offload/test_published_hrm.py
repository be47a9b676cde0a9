# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The published planner finds the paper's policies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_offload.policy import Workload
from moe_offload.published_hardware import GIB, L4, T4, PublishedHardware
from moe_offload.published_hrm import (
    PUBLISHED_GRID,
    fixed_device_bytes,
    fixed_host_bytes,
    published_estimate,
    published_policy,
)
from tests.moe_offload.planner_cases import MIXTRAL_8X7B

LAYER = 6 * 4096 * 14336 * 8


@pytest.mark.parametrize(
    ("hardware", "prompt", "generated", "policy"),
    [
        (L4, 77, 32, (324, 14)),
        (L4, 77, 64, (228, 16)),
        (L4, 77, 128, (164, 16)),
        (replace(L4, host_bytes=181 * GIB), 77, 256, (132, 12)),
        (T4, 77, 32, (164, 19)),
        (T4, 77, 64, (164, 19)),
        (T4, 77, 128, (164, 14)),
        (T4, 418, 32, (36, 14)),
        (T4, 418, 64, (36, 14)),
        (T4, 418, 128, (36, 14)),
        (T4, 418, 256, (36, 14)),
        (L4, 256, 50, (100, 15)),
        (T4, 1693, 64, (4, 19)),
        (T4, 1984, 64, (4, 19)),
    ],
)
def test_policies_of_the_paper(
    hardware: PublishedHardware, prompt: int, generated: int, policy: tuple[int, int]
) -> None:
    found = published_policy(MIXTRAL_8X7B, hardware, Workload(prompt, generated))
    assert (found.policy.micro_batch, found.policy.micro_batches) == policy


@pytest.mark.parametrize("host_gib", [184.25, 184.75])
def test_host_memory_that_finds_them_is_as_documented(host_gib: float) -> None:
    for hardware, generated, policy in (
        (L4, 32, (324, 14)),
        (L4, 64, (228, 16)),
        (L4, 128, (164, 16)),
        (T4, 128, (164, 14)),
    ):
        changed = replace(hardware, host_bytes=host_gib * GIB)
        found = published_policy(MIXTRAL_8X7B, changed, Workload(77, generated))
        assert (found.policy.micro_batch, found.policy.micro_batches) == policy


# If this fails, the documentation of the module lists too much as not reproduced.
@pytest.mark.parametrize(
    ("hardware", "prompt", "policy"),
    [(T4, 256, (36, 26)), (L4, 1984, (8, 36))],
)
def test_policies_that_are_not_found(
    hardware: PublishedHardware, prompt: int, policy: tuple[int, int]
) -> None:
    generated = 50 if prompt < 1000 else 64
    found = published_policy(MIXTRAL_8X7B, hardware, Workload(prompt, generated))
    assert (found.policy.micro_batch, found.policy.micro_batches) != policy


def test_numbers_of_the_best_known_policy() -> None:
    found = published_policy(MIXTRAL_8X7B, L4, Workload(77, 32))
    assert found.policy.batch == 4536
    assert found.policy.device_share == pytest.approx(0.0559, abs=5e-5)
    assert found.layer_s == pytest.approx(0.1549, abs=5e-5)
    assert found.throughput_tokens_per_s == pytest.approx(944.66, abs=0.005)
    # The link is the limit, and no whole expert of eight stays.
    assert found.layer_s == found.link_s
    assert int(8 * found.policy.device_share) == 0


def test_padded_policy_of_table_5() -> None:
    found = published_policy(MIXTRAL_8X7B, T4, Workload(418, 128))
    assert (found.policy.micro_batch, found.policy.batch) == (36, 504)
    # All prompts pass through each layer together.
    assert found.policy.prefill_tokens == 504 * 418


def test_a_finer_grid_is_never_worse() -> None:
    for hardware, prompt in ((L4, 77), (T4, 418)):
        workload = Workload(prompt, 128)
        coarse = published_policy(MIXTRAL_8X7B, hardware, workload)
        fine = published_policy(
            MIXTRAL_8X7B, hardware, workload, range(1, 400), max_micro_batches=64
        )
        assert fine.throughput_tokens_per_s >= coarse.throughput_tokens_per_s
    # Sizes between the published ones do better for padded prompts.
    assert fine.policy.micro_batch not in PUBLISHED_GRID
    assert fine.throughput_tokens_per_s > 1.02 * coarse.throughput_tokens_per_s


def test_grid_is_the_published_one() -> None:
    assert PUBLISHED_GRID[:7] == (1, 2, 3, 4, 36, 68, 100)


def test_times_are_as_published() -> None:
    found = published_estimate(MIXTRAL_8X7B, L4, Workload(100, 100), 64, 10, 0.25)
    assert found.link_s == pytest.approx(0.75 * LAYER / (16 * GIB))
    moved = 2 * 64 * (4096 + 14336) + LAYER
    assert found.device_s == pytest.approx(10 * moved / (285 * GIB))
    # Queries and outputs of 4096 numbers, 200 keys and values of 1024, 2 bytes each.
    read = 64 * 2 * (2 * 4096 + 2 * 200 * 1024)
    assert found.host_s == pytest.approx(10 * read / (76 * GIB))
    slow = replace(L4, host_flops_per_s=1e9, device_flops_per_s=1e12)
    found = published_estimate(MIXTRAL_8X7B, slow, Workload(100, 100), 64, 10, 0.25)
    assert found.host_s == pytest.approx(10 * 2 * 64 * 200 * (4096 + 32) / 1e9)
    assert found.device_s == pytest.approx(10 * 6 * 64 * 4096 * 14336 * 2 / 1e12)


def test_fixed_memory_is_as_published() -> None:
    dense = 4 * 4096 * (4096 + 1024) * 32
    working = 2.4 * 10 * 2 * (4096 + 3 * 14336)
    # Decode takes more than prefill only where prompts are of one token.
    found = fixed_device_bytes(MIXTRAL_8X7B, Workload(1, 8), 10, 50)
    assert found == pytest.approx(dense + 4 * 4096 * 500 + working)
    found = fixed_device_bytes(MIXTRAL_8X7B, Workload(100, 8), 10, 50)
    prefill = 4 * 4096 * 10 * 100 + 2 * 4096 * 500 * 100 + 8 * 1024 * 10 * 100
    assert found == pytest.approx(dense + prefill + 100 * working)
    cache = 4 * 108 * 1024 * 500 * 32
    found = fixed_host_bytes(MIXTRAL_8X7B, Workload(100, 8), 500)
    assert found == pytest.approx(cache + 2 * 4096 * 500 * 100)


def test_nothing_fits() -> None:
    small = replace(L4, device_bytes=4 * GIB)
    with pytest.raises(ValueError, match=r"^moe_offload: .*4.0 GiB of device memory"):
        published_policy(MIXTRAL_8X7B, small, Workload(77, 32))
