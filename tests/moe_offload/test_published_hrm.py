# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The published planner finds the paper's policies, and needs no solver for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moe_offload.policy import Workload
from moe_offload.published_hardware import GIB, L4, T4, PublishedHardware
from moe_offload.published_hrm import (
    PUBLISHED_GRID,
    fixed_device_bytes,
    fixed_host_bytes,
    published_estimate,
    published_policy,
    resident_share,
)
from tests.moe_offload.planner_cases import MIXTRAL_8X7B, TINY

# Usable shares of memory, as published.
DEVICE_USABLE, HOST_USABLE = 0.86, 0.8
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


HARDWARE = st.builds(
    PublishedHardware,
    device_bytes=st.floats(10, 120).map(lambda gib: gib * GIB),
    host_bytes=st.floats(40, 400).map(lambda gib: gib * GIB),
    link_bytes_per_s=st.floats(1e9, 2e11),
    device_bytes_per_s=st.floats(1e11, 2e12),
    host_bytes_per_s=st.floats(1e10, 5e11),
    device_flops_per_s=st.floats(1e13, 1e15),
    host_flops_per_s=st.floats(1e11, 1e13),
)
SIZES = (st.integers(1, 300), st.integers(1, 20), st.floats(1, 600), st.floats(2, 256))


def _fits(
    hardware: PublishedHardware, fixed: tuple[float, float], share: float
) -> bool:
    layers = MIXTRAL_8X7B.layers
    device = fixed[0] + LAYER * layers * share + 2 * LAYER * (1 - share)
    host = fixed[1] + LAYER * (layers + 2) * (1 - share)
    return (
        device <= DEVICE_USABLE * hardware.device_bytes
        and host <= HOST_USABLE * hardware.host_bytes
    )


@settings(max_examples=100, deadline=None)
@given(HARDWARE, *SIZES)
def test_closed_form_is_the_best_of_all_shares(
    hardware: PublishedHardware, size: int, many: int, prompt: float, generated: float
) -> None:
    workload = Workload(prompt, generated)
    fixed = (
        fixed_device_bytes(MIXTRAL_8X7B, workload, size, many),
        fixed_host_bytes(MIXTRAL_8X7B, workload, size * many),
    )
    shares = [
        share for share in np.linspace(0, 1, 501) if _fits(hardware, fixed, share)
    ]
    found = resident_share(MIXTRAL_8X7B, hardware, workload, size, many)
    if found is None:
        assert not shares
        return
    # A rounding error less: the largest share fills memory to the last byte.
    assert _fits(hardware, fixed, found - 1e-9) or found < 1e-8
    assert not _fits(hardware, fixed, found + 1e-9) or found == 1.0
    args = MIXTRAL_8X7B, hardware, workload, size, many
    best = published_estimate(*args, found).throughput_tokens_per_s
    for share in shares:
        assert found >= share - 1e-9
        other = published_estimate(*args, share).throughput_tokens_per_s
        assert best >= other * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(HARDWARE, *SIZES)
def test_closed_form_is_the_solution_of_the_linear_program(
    hardware: PublishedHardware, size: int, many: int, prompt: float, generated: float
) -> None:
    workload, layers = Workload(prompt, generated), MIXTRAL_8X7B.layers
    device = fixed_device_bytes(MIXTRAL_8X7B, workload, size, many)
    host = fixed_host_bytes(MIXTRAL_8X7B, workload, size * many)
    device_room = DEVICE_USABLE * hardware.device_bytes - device - 2 * LAYER
    host_room = HOST_USABLE * hardware.host_bytes - host - LAYER * (layers + 2)
    args = MIXTRAL_8X7B, hardware, workload, size, many
    found = resident_share(*args)
    zero = published_estimate(*args, 0.0)
    # Of the share w and the time T of a layer, in units of that of moving all experts.
    other = max(zero.host_s, zero.device_s) / zero.link_s
    solved = linprog(
        c=[0.0, 1.0],
        A_ub=[
            [-1.0, -1.0],  # link: 1 - w <= T
            [layers - 2.0, 0.0],  # device memory, in units of a layer
            [-(layers + 2.0), 0.0],  # host memory
        ],
        b_ub=[-1.0, device_room / LAYER, host_room / LAYER],
        bounds=[(0.0, 1.0), (other, None)],
    )
    # On the edge of what fits, the solver's tolerance decides.
    assume(abs(device_room) > 1e-4 * LAYER)
    if found is None:
        assert not solved.success
        return
    assert solved.success
    mine = published_estimate(*args, found).layer_s / zero.link_s
    assert mine == pytest.approx(solved.fun, rel=1e-6, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(HARDWARE, st.floats(20, 600), st.floats(2, 256), st.floats(1.0, 3.0))
def test_more_memory_and_a_faster_link_are_never_worse(
    hardware: PublishedHardware, prompt: float, generated: float, factor: float
) -> None:
    workload, grid = Workload(prompt, generated), (1, 4, 36, 132)

    def throughput(machine: PublishedHardware) -> float:
        try:
            found = published_policy(MIXTRAL_8X7B, machine, workload, grid, 12)
        except ValueError:
            return 0.0
        return found.throughput_tokens_per_s

    now = throughput(hardware)
    for name in ("device_bytes", "host_bytes", "link_bytes_per_s"):
        more = replace(hardware, **{name: getattr(hardware, name) * factor})
        assert throughput(more) >= now * (1 - 1e-9)


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


@pytest.mark.parametrize("layers", [1, 2])
def test_models_of_two_layers_fit_whole_or_not_at_all(layers: int) -> None:
    shape = replace(TINY, layers=layers)
    size = 6.0 * 64 * 256 * 4
    fixed = fixed_device_bytes(shape, Workload(8, 8), 2, 2)
    for spare, expected in ((1.0, 1.0), (-1.0, None)):
        room = (fixed + layers * size + spare) / DEVICE_USABLE
        hardware = replace(L4, device_bytes=room)
        assert resident_share(shape, hardware, Workload(8, 8), 2, 2) == expected


def test_nothing_fits() -> None:
    small = replace(L4, device_bytes=4 * GIB)
    with pytest.raises(ValueError, match=r"^moe_offload: .*4.0 GiB of device memory"):
        published_policy(MIXTRAL_8X7B, small, Workload(77, 32))
