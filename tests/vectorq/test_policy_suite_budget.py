# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The default policy keeps its budgets with every seed, and spends them on hits."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.vectorq.budget import nearest
from tests.vectorq.synthetic_streams import (
    DELTA,
    REQUESTS,
    SEEDS,
    Watched,
    broken_budgets,
    limit,
    run,
    stream,
    suite,
    watched,
)
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.replay import replay
from vllm_vectorq.suite_budget import Correction

# Requests of a run in which chance alone decides what is right.
CHANCES = 1_000


@pytest.mark.parametrize(("delta", "hit_rate"), [(DELTA, 0.45), (0.005, 0.25)])
def test_budget_holds_for_every_seed_and_is_spent_on_hits(
    delta: float, hit_rate: float
) -> None:
    outcomes = [watched(seed, delta)[1] for seed in range(SEEDS)]
    assert broken_budgets(np.array([o.wrong for o in outcomes]), delta) == []
    assert np.mean([o.hit_rate for o in outcomes]) > hit_rate
    assert min(o.hit_rate for o in outcomes) > 0.5 * hit_rate


def test_each_request_may_have_a_budget_of_its_own() -> None:
    deltas = (0.005, 0.05)
    hits, wrong = [], []
    for seed in range(8):
        vectors, ids = stream(seed, REQUESTS + 1)
        policy = Watched(suite(seed), deltas)
        outcome = replay(policy, vectors, ids, 0.5, seed)
        # The first request has no neighbours, so the policy is not asked.
        hits.append(outcome.hit[1:].reshape(-1, 2))
        wrong.append(outcome.wrong[1:].reshape(-1, 2))
    for place, delta in enumerate(deltas):
        assert broken_budgets(np.array(wrong)[:, :, place], delta) == []
    strict, lax = np.mean(hits, axis=(0, 1))
    assert lax > 1.1 * strict > 0.1


def test_budget_per_hit_holds_when_the_one_per_request_is_large() -> None:
    rates = []
    for hit_delta in (0.05, 0.02):
        outcomes = [run(suite(seed, hit_delta), seed, 0.5) for seed in range(6)]
        hits = sum(int(o.hit.sum()) for o in outcomes)
        wrong = sum(int(o.wrong.sum()) for o in outcomes)
        assert wrong <= limit(hit_delta, hits)
        rates.append(hits)
    assert 0.1 * 6 * REQUESTS < rates[1] < 0.95 * rates[0]


def by_chance(
    true_error: float, delta: float, hit_delta: float, spread: float, seed: int
) -> tuple[int, int]:
    """Hits and errors when similarity tells nothing and answers are wrong by chance."""
    policy = suite(seed, hit_delta)
    random = np.random.default_rng(seed)
    hits = errors = 0
    for similarity in random.uniform(0.9 - spread, 0.9 + spread, CHANCES).tolist():
        wrong = bool(random.random() < true_error)
        decision = policy.decide(nearest(similarity), delta, random.random())
        if decision.serve:
            hits += 1
            errors += wrong
        else:
            policy.observe(0, decision.features, not wrong, decision.propensity)
        policy.tune()
    return hits, errors


def test_hits_that_would_all_be_too_doubtful_are_soon_not_served() -> None:
    # A lucky start is found out by audits, not at once.
    runs = [by_chance(0.08, 0.5, 0.05, 0.05, seed) for seed in range(6)]
    hits, _ = np.sum(runs, axis=0)
    assert hits < 0.4 * len(runs) * CHANCES


def test_hits_that_are_all_good_enough_are_served() -> None:
    runs = [by_chance(0.08, 0.5, 0.2, 0.05, seed) for seed in range(3)]
    hits, _ = np.sum(runs, axis=0)
    assert hits > 0.7 * 3 * CHANCES


@pytest.mark.parametrize("spread", [0.05, 0.0])
def test_budget_holds_when_nothing_tells_requests_apart(spread: float) -> None:
    runs = [by_chance(0.02, 0.005, 0.1, spread, seed) for seed in range(6)]
    _, errors = np.sum(runs, axis=0)
    assert errors <= limit(0.005, 6 * CHANCES)


def test_check_of_the_budget_finds_a_threshold() -> None:
    wrong = [run(StaticPolicy(0.8), seed, DELTA).wrong for seed in range(4)]
    assert broken_budgets(np.array(wrong), DELTA) != []


def test_check_of_the_budget_finds_expected_errors_that_are_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def optimistic(
        self: Correction, expected: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return 0.05 * expected

    monkeypatch.setattr(Correction, "apply", optimistic)
    wrong = [run(suite(seed, 0.3), seed, DELTA).wrong for seed in range(4)]
    assert broken_budgets(np.array(wrong), DELTA) != []


def test_noise_in_the_labels_makes_it_more_careful() -> None:
    clean = [watched(seed, DELTA)[1] for seed in range(5)]
    noisy = [run(suite(seed), seed, DELTA, noise=0.1) for seed in range(5)]
    assert sum(o.hit.sum() for o in noisy) < 0.5 * sum(o.hit.sum() for o in clean)
    assert broken_budgets(np.array([o.wrong for o in noisy]), DELTA) == []


def test_probability_is_about_the_share_of_right_answers() -> None:
    runs = [watched(seed, DELTA)[1] for seed in range(SEEDS)]
    hit = np.concatenate([o.hit for o in runs])
    right = ~np.concatenate([o.wrong for o in runs])[hit]
    stated = np.concatenate([o.probability for o in runs])[hit]
    assert stated.mean() == pytest.approx(right.mean(), abs=0.03)
