# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Changed answers are noticed, and only they; the error is bounded afterwards."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectorq.synthetic_streams import changed_answers, stream
from vllm_vectorq.policy_suite import SuitePolicy
from vllm_vectorq.replay import Flags, replay
from vllm_vectorq.suite_drift import WINDOW, DriftWatch, poisson_tail

DELTA = 0.02
# All answers change at a request; errors are counted from there, and from when the
# policy should have come to terms with it.
CHANGE, SETTLED, REQUESTS = 1_000, 1_400, 1_800
SEEDS = range(3)


@given(st.integers(0, 60), st.floats(0.0, 40.0))
def test_poisson_tail_is_one_minus_the_terms_below(count: int, mean: float) -> None:
    below = math.fsum(
        math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) if mean else k == 0
        for k in range(count)
    )
    assert poisson_tail(count, mean) == pytest.approx(1.0 - below, abs=1e-12)


@given(st.integers(0, 60), st.floats(0.0, 40.0), st.floats(0.0, 40.0))
def test_poisson_tail_falls_with_the_count_and_grows_with_the_mean(
    count: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert 0.0 <= poisson_tail(count + 1, low) <= poisson_tail(count, low) <= 1.0
    assert poisson_tail(count, low) <= poisson_tail(count, high) + 1e-12


def alarms(watch: DriftWatch, expected: float, wrong: list[bool]) -> list[int]:
    return [i for i, missed in enumerate(wrong) if watch.drifted(expected, missed)]


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.1])
def test_errors_as_often_as_expected_raise_no_alarm(rate: float) -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        wrong = (random.random(500) < rate).tolist()
        assert alarms(DriftWatch(), rate, wrong) == []


@pytest.mark.parametrize("rate", [0.002, 0.02])
def test_errors_of_half_the_audits_raise_an_alarm_within_a_window(rate: float) -> None:
    noticed = alarms(DriftWatch(), rate, [i % 2 == 0 for i in range(WINDOW)])
    assert noticed


def test_more_expected_errors_need_more_errors() -> None:
    wrong = [True] * WINDOW
    first = [alarms(DriftWatch(), rate, wrong)[0] for rate in (0.001, 0.05, 0.2)]
    assert first[0] >= 2
    assert first == sorted(set(first))


def test_alarm_comes_with_an_error_and_not_with_a_right_answer() -> None:
    watch = DriftWatch()
    assert alarms(watch, 0.9, [True] * 10) == []
    assert alarms(watch, 0.0, [False] * WINDOW) == []
    noticed = alarms(DriftWatch(), 0.001, [True, False] * 20)
    assert noticed
    assert all(i % 2 == 0 for i in noticed)


def test_watch_starts_anew_after_an_alarm() -> None:
    noticed = alarms(DriftWatch(), 0.001, [True] * WINDOW)
    gaps = np.diff([-1, *noticed])
    assert len(noticed) > 1
    assert len(set(gaps.tolist())) == 1


def test_errors_of_long_ago_are_forgotten() -> None:
    needed = alarms(DriftWatch(), 0.001, [True] * WINDOW)[0]
    pattern = [True] * needed + [False] * WINDOW
    assert alarms(DriftWatch(), 0.001, pattern * 10) == []
    assert alarms(DriftWatch(10 * WINDOW), 0.001, pattern * 10) != []


class Blind(DriftWatch):
    def drifted(self, expected: float, wrong: bool) -> bool:
        return False


@cache
def after_change(watching: bool) -> tuple[list[int], Flags, Flags]:
    """Alarms of each seed; hits and errors, bool [seeds, requests]."""
    drifts, hits, wrong = [], [], []
    for seed in SEEDS:
        vectors, ids = stream(seed, REQUESTS, classes=30, twins=0.2, strangers=0.05)
        policy = SuitePolicy(hit_delta=0.05, audit=0.1, seed=seed)
        if not watching:
            policy._drift = Blind()
        changing = changed_answers(ids, CHANGE, every=1)
        outcome = replay(policy, vectors, changing, DELTA, seed, neighbours=8)
        drifts.append(policy.drifts)
        hits.append(outcome.hit)
        wrong.append(outcome.wrong)
    return drifts, np.array(hits), np.array(wrong)


def test_changed_answers_are_noticed_with_every_seed() -> None:
    drifts, hits, wrong = after_change(watching=True)
    assert all(drifts)
    # The change hurts: it would not be worth noticing otherwise.
    assert wrong[:, CHANGE : CHANGE + 100].mean() > 5 * DELTA
    assert hits[:, :CHANGE].mean() > 0.5


def test_error_is_within_the_budget_again_after_the_change() -> None:
    _, hits, wrong = after_change(watching=True)
    late = wrong[:, SETTLED:]
    assert late.mean() <= DELTA + 3.0 * (DELTA / late.size) ** 0.5
    assert hits[:, SETTLED:].any()


def test_watching_saves_errors_over_not_watching() -> None:
    _, _, wrong = after_change(watching=True)
    unwatched, _, missed = after_change(watching=False)
    assert not any(unwatched)
    assert np.array_equal(wrong[:, :CHANGE], missed[:, :CHANGE])
    assert wrong[:, CHANGE:].sum() < 0.85 * missed[:, CHANGE:].sum()


def test_steady_answers_raise_no_alarm() -> None:
    for seed in SEEDS:
        vectors, ids = stream(seed, 800)
        policy = SuitePolicy(hit_delta=0.05, audit=0.1, seed=seed)
        replay(policy, vectors, ids, DELTA, seed, neighbours=8)
        assert policy.drifts == 0
