# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Error budgets under the true model, over 200 seeds; and that breaking them shows."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.vectorq.budget import World, simulate
from vllm_vectorq import policy_vcache
from vllm_vectorq.policy import Policy
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.sigmoid_posterior import LEVELS

DELTA = 0.05
SEEDS = 200
REQUESTS = 200
# Entries that are never right, flat, hard, middling and easy, one of each per seed.
WORLD = World(
    boundaries=np.array([1.3, 0.6, 0.95, 0.8, 0.6]),
    slopes=np.array([40.0, 6.0, 60.0, 30.0, 100.0]),
)
# Chance for a budget that is spent to the last error to fail one of the checks below:
# one in a thousand for 205 of them.
QUANTILE = NormalDist().inv_cdf(1.0 - 0.001 / (SEEDS + len(WORLD.boundaries)))


def limit(requests: float) -> float:
    """Errors that a policy just within the budget exceeds with little chance."""
    spread = (DELTA * (1.0 - DELTA) * requests) ** 0.5
    return DELTA * requests + QUANTILE * spread + 1.0


def run(make: Callable[[], Policy], seeds: int = SEEDS) -> NDArray[np.int64]:
    """Requests, hits and errors, int64 [seeds, 3, entries]."""
    outcomes = [simulate(make(), WORLD, REQUESTS, DELTA, seed) for seed in range(seeds)]
    return np.array([[o.requests, o.hits, o.errors] for o in outcomes])


def broken_budgets(counts: NDArray[np.int64]) -> list[str]:
    """Seeds and kinds of entry with more errors than the budget explains."""
    seeds = [
        f"seed {seed}: {errors.sum()} of {requests.sum()}"
        for seed, (requests, _, errors) in enumerate(counts)
        if errors.sum() > limit(requests.sum())
    ]
    pooled = counts.sum(axis=0)
    kinds = [
        f"entry {kind}: {errors} of {requests}"
        for kind, (requests, _, errors) in enumerate(pooled.T)
        if errors > limit(requests)
    ]
    return seeds + kinds


@pytest.fixture(scope="module")
def counts() -> NDArray[np.int64]:
    return run(VCachePolicy)


def test_budget_holds_for_every_seed_and_every_kind_of_entry(
    counts: NDArray[np.int64],
) -> None:
    assert broken_budgets(counts) == []


def test_budget_is_spent_on_hits(counts: NDArray[np.int64]) -> None:
    requests, hits, _ = counts.sum(axis=0)
    share = hits / requests
    # The easy entry is served, the one that is never right hardly beyond the budget.
    assert share[4] > 0.2
    assert share[0] < 2.0 * DELTA


def test_no_wrong_answer_is_served_beyond_what_the_floor_allows() -> None:
    floor = 0.8
    _, hits, errors = run(lambda: VCachePolicy(hit_floor=floor), 40).sum(axis=0)
    assert hits.sum() > 300
    assert errors.sum() < (1.0 - floor) * hits.sum()
    assert hits[0] == 0


def test_without_the_floor_hits_of_a_bad_entry_are_wrong(
    counts: NDArray[np.int64],
) -> None:
    _, hits, errors = counts.sum(axis=0)
    assert errors[0] == hits[0] > 0


def test_an_optimistic_bound_breaks_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def optimistic(chances: NDArray[np.float64]) -> NDArray[np.float64]:
        """The upper end of the band in place of the lower one."""
        reached = (chances >= 0.05).sum(axis=1)
        return np.asarray(np.concatenate([[0.0], LEVELS])[reached])

    monkeypatch.setattr(policy_vcache, "lower_bound", optimistic)
    assert broken_budgets(run(VCachePolicy, 40)) != []


def test_exploring_half_as_often_breaks_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        policy_vcache,
        "exploration",
        lambda bound, delta: 0.5 * (1.0 - delta / (1.0 - bound)),
    )
    assert broken_budgets(run(VCachePolicy, 40)) != []


def test_a_threshold_breaks_the_budget() -> None:
    assert broken_budgets(run(lambda: StaticPolicy(0.8), 40)) != []
