# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Queue bounds: cold start, calibration to quantiles, fixed ones left alone."""

import itertools
import random
from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from vllm_program_sched.levels import LevelBounds
from vllm_program_sched.life_table import EDGES, LifeTable, bin_of


def feed(bounds: LevelBounds, sizes: list[float]) -> LifeTable:
    table = LifeTable()
    for size in sizes:
        table.finish(bin_of(size))
        bounds.observe_end(table)
    return table


def test_cold_start_is_log_spaced() -> None:
    bounds = LevelBounds(5).bounds
    ratios = {b / a for a, b in itertools.pairwise(bounds)}
    assert len(bounds) == 4
    assert len(ratios) == 1
    assert ratios.pop() > 1


@given(st.floats(0, 1e9))
def test_levels_are_half_open_ranges(service: float) -> None:
    bounds = LevelBounds(4, (1.0, 10.0, 100.0))
    expected = 1 + sum(service >= bound for bound in (1.0, 10.0, 100.0))
    assert bounds.level_of(service) == expected
    assert bounds.level_of(10.0) == 3


def test_few_programs_leave_the_cold_start_alone() -> None:
    bounds = LevelBounds(4)
    before = bounds.bounds
    feed(bounds, [5000.0] * 31)
    assert bounds.bounds == before


def test_every_queue_gets_its_share_of_programs() -> None:
    rng = random.Random(7)
    sizes = [rng.lognormvariate(6.0, 1.2) for _ in range(1600)]
    bounds = LevelBounds(4)
    feed(bounds, sizes)
    counts = [0] * 4
    for size in sizes:
        counts[bisect_right(bounds.bounds, size)] += 1
    assert all(0.17 < count / len(sizes) < 0.33 for count in counts), counts


def test_fixed_bounds_never_move() -> None:
    fixed = (3.0, 30.0, 300.0)
    bounds = LevelBounds(4, fixed)
    feed(bounds, [7000.0] * 200)
    assert bounds.bounds == fixed
    assert not bounds.calibrated


@given(
    st.lists(st.floats(0, 1e12, allow_nan=False), min_size=32, max_size=200),
    st.integers(2, 16),
)
def test_calibrated_bounds_are_positive_and_ascend(
    sizes: list[float], levels: int
) -> None:
    bounds = LevelBounds(levels)
    feed(bounds, sizes)
    assert len(bounds.bounds) == levels - 1
    assert bounds.bounds[0] > 0
    assert all(a < b for a, b in itertools.pairwise(bounds.bounds))


def test_same_workload_again_moves_nothing() -> None:
    bounds = LevelBounds(4)
    table = feed(bounds, [100.0, 1000.0, 10_000.0] * 64)
    settled = bounds.bounds
    moved = [bounds.observe_end(table) for _ in range(64)]
    assert not any(moved)
    assert bounds.bounds == settled
    assert EDGES[0] == 0.0
