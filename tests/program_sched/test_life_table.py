# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Life tables and the Gittins index against brute force and theory."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_program_sched.life_table import (
    EDGES,
    NUM_BINS,
    ClassTables,
    LifeTable,
    bin_of,
    inverse_gittins,
)

HAZARDS = st.lists(st.floats(0.01, 1.0), min_size=NUM_BINS, max_size=NUM_BINS)


def brute_force(hazards: list[float], start: int) -> float:
    """Best ratio of E[min(S - a, d)] to P(S - a <= d) over all bin ends d."""
    ratios = []
    for stop in range(start + 1, NUM_BINS + 1):
        density, alive = [], 1.0
        for k in range(start, stop):
            density.append(alive * hazards[k])
            alive *= 1.0 - hazards[k]
        # Ended in bin k: all bins before it whole, and half of this one.
        invested = alive * (EDGES[stop] - EDGES[start]) + sum(
            p * (0.5 * (EDGES[start + i] + EDGES[start + i + 1]) - EDGES[start])
            for i, p in enumerate(density)
        )
        ratios.append(invested / sum(density))
    return min(ratios)


def learn(sizes: list[float], table: LifeTable | None = None) -> LifeTable:
    table = table or LifeTable(prior_strength=0.5)
    for size in sizes:
        table.advance(0, bin_of(size))
        table.finish(bin_of(size))
    return table


@settings(max_examples=25, deadline=None)
@given(HAZARDS, st.integers(0, NUM_BINS - 1))
def test_index_is_the_best_stopping_ratio(hazards: list[float], start: int) -> None:
    got = inverse_gittins(hazards)[start]
    assert got == pytest.approx(brute_force(hazards, start), rel=5e-3)


@pytest.mark.parametrize("k", range(1, NUM_BINS))
def test_bin_edges_are_half_open(k: int) -> None:
    assert bin_of(EDGES[k]) == k
    assert bin_of(math.nextafter(EDGES[k], 0.0)) == k - 1


@pytest.mark.parametrize("service", [1e30, 1e308, math.inf, EDGES[-1]])
def test_huge_service_falls_in_the_last_bin(service: float) -> None:
    assert bin_of(service) == NUM_BINS - 1
    assert math.isfinite(LifeTable().service_per_completion(service))


@pytest.mark.parametrize("service", [0.0, -0.0, 1e-300, -1e-9])
def test_no_service_falls_in_the_first_bin(service: float) -> None:
    assert bin_of(service) == 0


def test_without_observations_order_is_least_attained_service() -> None:
    table = LifeTable()
    # Below the first edges bins are not log-spaced; the last octaves see the end.
    services = [2.0**i for i in range(4, 18)]
    indices = [table.service_per_completion(s) for s in services]
    assert indices == sorted(indices)
    growth = [b / a for a, b in itertools.pairwise(indices[4:])]
    assert all(1.8 < g < 2.2 for g in growth), growth


def test_index_falls_as_a_program_of_known_size_nears_its_end() -> None:
    table = learn([1000.0] * 500)
    attained = [0.0, 100.0, 300.0, 600.0, 800.0]
    indices = [table.service_per_completion(a) for a in attained]
    assert indices == sorted(indices, reverse=True)
    assert indices[0] == pytest.approx(1000.0, rel=0.2)
    assert indices[-1] < 0.5 * indices[0]


def test_index_is_flat_for_memoryless_sizes() -> None:
    rng = random.Random(3)
    table = LifeTable(prior_strength=0.5, max_programs=10**9)
    learn([rng.expovariate(1 / 1000.0) for _ in range(40_000)], table)
    indices = [table.service_per_completion(a) for a in (50.0, 200.0, 800.0, 2000.0)]
    assert max(indices) / min(indices) < 1.35, indices
    assert indices[1] == pytest.approx(1000.0, rel=0.25)


def test_index_rises_with_heavy_tails_and_so_prefers_newcomers() -> None:
    rng = random.Random(4)
    table = learn([20.0 * rng.paretovariate(1.1) for _ in range(5000)])
    indices = [table.service_per_completion(a) for a in (40.0, 160.0, 640.0, 2560.0)]
    assert indices == sorted(indices)
    assert indices[-1] > 8 * indices[0]


def test_live_programs_do_not_bias_the_hazards() -> None:
    rng = random.Random(5)
    sizes = [rng.expovariate(1 / 500.0) for _ in range(4000)]
    whole = LifeTable(prior_strength=0.5, max_programs=10**9)
    cut = LifeTable(prior_strength=0.5, max_programs=10**9)
    learn(sizes, whole)
    # Every second program has only come as far as one edge.
    reached = EDGES[bin_of(300.0)]
    learn(sizes[::2], cut)
    for size in sizes[1::2]:
        if size < reached:
            learn([size], cut)
        else:
            cut.advance(0, bin_of(reached))
    first, last = bin_of(64.0), bin_of(1200.0)
    for k in range(first, last):
        assert cut.hazards()[k] == pytest.approx(whole.hazards()[k], abs=0.06)


def test_old_behaviour_is_forgotten() -> None:
    table = LifeTable(prior_strength=0.5, max_programs=200)
    learn([100.0] * 1000, table)
    before = table.service_per_completion(0.0)
    learn([10_000.0] * 2000, table)
    assert before == pytest.approx(100.0, rel=0.3)
    assert table.service_per_completion(0.0) == pytest.approx(10_000.0, rel=0.3)
    assert table.num_finished <= 201


def test_a_small_class_follows_the_pool_and_a_large_one_itself() -> None:
    tables = ClassTables(prior_strength=4.0)
    for _ in range(400):
        tables.advance("large", 0, bin_of(10_000.0))
        tables.finish("large", bin_of(10_000.0))
        tables.advance("short", 0, bin_of(100.0))
        tables.finish("short", bin_of(100.0))
    pooled = tables.pooled.service_per_completion(0.0)
    assert tables.get("new").service_per_completion(0.0) == pytest.approx(
        pooled, rel=0.1
    )
    assert tables.get("short").service_per_completion(0.0) < 1.5 * 100.0
    assert tables.get("large").service_per_completion(0.0) > 3 * pooled


def test_classes_are_bounded_and_the_least_recent_leaves() -> None:
    tables = ClassTables(max_classes=3)
    kept = tables.get("a")
    for key in ("b", "c"):
        tables.get(key)
    assert tables.get("a") is kept
    tables.get("d")
    assert len(tables) == 3
    assert tables.get("a") is kept


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e15), max_size=60), st.floats(0, 1e15))
def test_index_is_positive_and_finite(sizes: list[float], attained: float) -> None:
    value = learn(sizes).service_per_completion(attained)
    assert math.isfinite(value)
    assert value > 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80))
def test_quantiles_ascend_and_lie_in_the_bin_of_the_sample(
    sizes: list[float],
) -> None:
    table = learn(sizes)
    values = [table.quantile(q / 10) for q in range(1, 11)]
    assert values == sorted(values)
    assert values[-1] <= EDGES[bin_of(max(sizes)) + 1]
