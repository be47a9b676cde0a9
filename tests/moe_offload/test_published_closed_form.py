# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The published planner needs no solver: a closed form finds what one finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from moe_offload.policy import Workload
from moe_offload.published_hardware import GIB, L4, PublishedHardware
from moe_offload.published_hrm import (
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


@pytest.mark.parametrize("layers", [1, 2])
def test_models_of_two_layers_fit_whole_or_not_at_all(layers: int) -> None:
    shape = replace(TINY, layers=layers)
    size = 6.0 * 64 * 256 * 4
    fixed = fixed_device_bytes(shape, Workload(8, 8), 2, 2)
    for spare, expected in ((1.0, 1.0), (-1.0, None)):
        room = (fixed + layers * size + spare) / DEVICE_USABLE
        hardware = replace(L4, device_bytes=room)
        assert resident_share(shape, hardware, Workload(8, 8), 2, 2) == expected


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
