# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The estimate of served errors against simulations in which the truth is known."""

import math
import random
from dataclasses import dataclass

import pytest

from vllm_vectorq.error_estimate import ServedErrorEstimator, wilson_interval


@dataclass
class World:
    """Requests of which the risky ones are wrong more often and explored more.

    Attributes:
        served: Hits so far.
        wrong: Wrong ones among them, which nobody sees.
    """

    rng: random.Random
    estimator: ServedErrorEstimator
    error_scale: float = 1.0
    served: int = 0
    wrong: int = 0
    requests: int = 0

    def run(self, requests: int) -> None:
        for _ in range(requests):
            self.requests += 1
            if self.rng.random() < 0.3:
                # Nothing near enough: explored for certain, and mostly wrong.
                self.estimator.request(hit=False)
                self.estimator.label(self.rng.random() < 0.2, 1.0)
                continue
            risk = self.rng.choice([0.01, 0.05, 0.15])
            propensity = {0.01: 0.1, 0.05: 0.15, 0.15: 0.3}[risk]
            wrong = self.rng.random() < risk * self.error_scale
            if self.rng.random() < propensity:
                self.estimator.request(hit=False)
                self.estimator.label(not wrong, propensity)
            else:
                self.estimator.request(hit=True)
                self.served += 1
                self.wrong += wrong


def test_estimate_converges_to_the_error_that_was_served() -> None:
    world = World(random.Random(1), ServedErrorEstimator(half_life=10**9))
    world.run(200_000)
    estimate = world.estimator.estimate()
    assert estimate.per_hit == pytest.approx(world.wrong / world.served, rel=0.08)
    assert estimate.per_request == pytest.approx(world.wrong / world.requests, rel=0.08)
    # A plain share of the labels would be several times too high.
    assert estimate.per_hit < 0.1
    assert estimate.low_per_hit < estimate.per_hit < estimate.high_per_hit


# Served requests per risk: a third of them each, less those explored.
_SERVED = {0.01: 0.9, 0.05: 0.85, 0.15: 0.7}
TRUE_PER_HIT = sum(risk * share for risk, share in _SERVED.items()) / sum(
    _SERVED.values()
)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered, estimates = 0, []
    for seed in range(300):
        world = World(random.Random(seed), ServedErrorEstimator(half_life=10**9))
        world.run(1500)
        estimate = world.estimator.estimate()
        covered += estimate.low_per_hit <= TRUE_PER_HIT <= estimate.high_per_hit
        estimates.append(estimate.per_hit)
    assert covered >= 0.93 * 300
    assert sum(estimates) / 300 == pytest.approx(TRUE_PER_HIT, rel=0.05)


@pytest.mark.parametrize(("error", "audit"), [(0.05, 0.02), (0.02, 0.05)])
def test_interval_covers_the_truth_with_few_audits(error: float, audit: float) -> None:
    covered = 0
    for seed in range(300):
        rng, estimator = random.Random(seed), ServedErrorEstimator(half_life=10**9)
        for _ in range(round(60 / audit)):
            explored = rng.random() < audit
            estimator.request(hit=not explored)
            if explored:
                estimator.label(rng.random() >= error, audit)
        estimate = estimator.estimate()
        covered += estimate.low_per_hit <= error <= estimate.high_per_hit
    assert covered >= 0.93 * 300


def test_old_evidence_fades_so_that_drift_shows() -> None:
    world = World(random.Random(2), ServedErrorEstimator(half_life=2_000))
    world.run(10_000)
    before = world.estimator.estimate().per_hit
    world.error_scale = 5.0
    world.run(10_000)
    after = world.estimator.estimate().per_hit
    assert before == pytest.approx(TRUE_PER_HIT, abs=0.03)
    assert after == pytest.approx(5 * TRUE_PER_HIT, abs=0.08)


def test_half_life_is_what_it_says() -> None:
    estimator = ServedErrorEstimator(half_life=100)
    estimator.request(hit=False)
    estimator.label(False, 0.5)
    for _ in range(100):
        estimator.request(hit=True)
    estimator.label(True, 0.5)
    # The wrong one counts half of the right one by now.
    assert estimator.estimate().per_hit == pytest.approx(1 / 3)


def test_requests_explored_for_certain_say_nothing_about_hits() -> None:
    estimator = ServedErrorEstimator()
    for _ in range(50):
        estimator.request(hit=False)
        estimator.label(False, 1.0)
    estimate = estimator.estimate()
    assert (estimate.audits, estimate.per_hit, estimate.effective_audits) == (0, 0, 0)
    assert (estimate.low_per_hit, estimate.high_per_hit) == (0.0, 1.0)


def test_nothing_is_known_at_first() -> None:
    estimate = ServedErrorEstimator().estimate()
    assert (estimate.low_per_hit, estimate.high_per_hit) == (0.0, 1.0)
    assert estimate.per_request == 0.0


def test_rarely_explored_requests_weigh_more() -> None:
    estimator = ServedErrorEstimator()
    estimator.request(hit=True)
    estimator.label(False, 0.1)  # stands for 9 hits
    estimator.label(True, 0.5)  # stands for 1
    estimate = estimator.estimate()
    assert estimate.per_hit == pytest.approx(0.9)
    assert estimate.per_request == pytest.approx(0.9)
    assert estimate.audits == 2
    assert estimate.effective_audits == pytest.approx(100 / 82)


def test_estimate_survives_a_long_time_without_labels() -> None:
    estimator = ServedErrorEstimator(half_life=1)
    estimator.label(True, 0.5)
    for _ in range(1200):
        estimator.request(hit=True)
        estimate = estimator.estimate()
        assert 0.0 <= estimate.low_per_hit <= estimate.high_per_hit <= 1.0


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    # Textbook values (Brown, Cai and DasGupta, 2001, use the same formula).
    [(0.1, 20, 0.0279, 0.3010), (0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775)],
)
def test_wilson_interval_is_the_published_one(
    share: float, n: float, low: float, high: float
) -> None:
    assert wilson_interval(share, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("share", [0.0, 1e-12, 0.3, 1.0 - 1e-12, 1.0])
@pytest.mark.parametrize("n", [0.5, 1.0, 17.3, 1e9])
def test_wilson_interval_holds_the_share(share: float, n: float) -> None:
    low, high = wilson_interval(share, n)
    assert 0.0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1.0


@pytest.mark.parametrize("n", [0.0, -1.0])
def test_wilson_interval_needs_a_trial(n: float) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0.5, n)


def test_interval_narrows_with_labels() -> None:
    widths = []
    for labels in (10, 100, 1000):
        estimator = ServedErrorEstimator()
        for number in range(labels):
            estimator.label(number % 10 != 0, 0.02)
        estimate = estimator.estimate()
        widths.append(estimate.high_per_hit - estimate.low_per_hit)
    assert widths == sorted(widths, reverse=True)
    assert math.isclose(widths[1] / widths[2], math.sqrt(10), rel_tol=0.1)
