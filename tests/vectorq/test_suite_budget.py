# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Limits promise no more errors than budgeted; corrections find what happened."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from vllm_vectorq.suite_budget import (
    NOTHING_ALLOWED,
    Correction,
    Limits,
    limits_of,
    measure_correction,
)

Floats = NDArray[np.float64]
ERRORS = st.floats(0.0, 1.0)
BUDGETS = st.floats(0.0, 1.0)
# Distinct expected errors and the requests that each stands for.
RECENT = st.lists(
    st.tuples(ERRORS, st.floats(0.1, 50.0)),
    min_size=1,
    max_size=40,
    unique_by=lambda pair: pair[0],
)
JUDGED = st.lists(st.tuples(ERRORS, st.booleans()), max_size=60)


def measured(judged: list[tuple[float, bool]]) -> Correction:
    expected = np.array([error for error, _ in judged], dtype=np.float64)
    wrong = np.array([missed for _, missed in judged], dtype=np.float64)
    return measure_correction(expected, wrong)


def limits(
    errors: ArrayLike,
    weights: ArrayLike | None = None,
    correction: Correction | None = None,
) -> Limits:
    expected = np.asarray(errors, dtype=np.float64)
    counted = np.ones(len(expected)) if weights is None else np.asarray(weights)
    return limits_of(expected, counted, correction or Correction())


def spent(
    errors: Floats, weights: Floats, correction: Correction, largest: float
) -> tuple[float, float]:
    """Corrected errors per request and per hit if all up to a limit are served."""
    served = errors <= largest
    wrong = float((weights * correction.apply(errors))[served].sum())
    return wrong / float(weights.sum()), wrong / max(float(weights[served].sum()), 1e-9)


@settings(max_examples=50, deadline=None)
@given(RECENT, JUDGED, BUDGETS, BUDGETS)
def test_limit_keeps_both_budgets(
    recent: list[tuple[float, float]],
    judged: list[tuple[float, bool]],
    delta: float,
    hit_delta: float,
) -> None:
    errors, weights = np.array(recent).T
    correction = measured(judged)
    largest = limits(errors, weights, correction).largest(delta, hit_delta)
    per_request, per_hit = spent(errors, weights, correction, largest)
    assert per_request <= delta + 1e-9
    assert per_hit <= hit_delta + 1e-9


def test_limit_keeps_the_budget_when_requests_are_alike() -> None:
    errors, weights = np.full(1000, 0.03), np.ones(1000)
    largest = limits(errors).largest(0.005, 0.2)
    assert spent(errors, weights, Correction(), largest)[0] <= 0.005


@settings(max_examples=50, deadline=None)
@given(RECENT, st.floats(0.001, 0.2))
def test_limit_spends_most_of_the_budget(
    recent: list[tuple[float, float]], delta: float
) -> None:
    errors, weights = np.array(recent).T
    largest = limits(errors, weights).largest(delta, 2.0)
    beyond = errors[errors > largest]
    if len(beyond):
        per_request, _ = spent(errors, weights, Correction(), float(beyond.min()))
        assert per_request > 0.5 * delta


@settings(max_examples=50, deadline=None)
@given(RECENT, JUDGED, BUDGETS, BUDGETS, BUDGETS, BUDGETS)
def test_limit_grows_with_either_budget(
    recent: list[tuple[float, float]],
    judged: list[tuple[float, bool]],
    delta: float,
    more_delta: float,
    hit_delta: float,
    more_hit_delta: float,
) -> None:
    errors, weights = np.array(recent).T
    found = limits(errors, weights, measured(judged))
    small, large = sorted((delta, more_delta))
    few, many = sorted((hit_delta, more_hit_delta))
    assert found.largest(small, few) <= found.largest(large, few)
    assert found.largest(small, few) <= found.largest(small, many)


def test_requests_without_a_candidate_leave_the_budget_to_others() -> None:
    errors = np.linspace(0.0, 0.4, 100)
    alone = limits(errors).largest(0.02, 1.0)
    among = limits(np.append(errors, np.ones(100))).largest(0.02, 1.0)
    assert among > alone


def test_request_that_stands_for_many_uses_more_of_the_budget() -> None:
    errors = np.linspace(0.0, 0.4, 200)
    even = limits(errors).largest(0.04, 1.0)
    risky = limits(errors, 1.0 + 9.0 * (errors > 0.5 * even)).largest(0.04, 1.0)
    sure = limits(errors, 1.0 + 9.0 * (errors < 0.5 * even)).largest(0.04, 1.0)
    assert risky < even < sure


@settings(max_examples=50, deadline=None)
@given(RECENT, BUDGETS, st.floats(0.5, 100.0))
def test_only_the_ratio_of_weights_counts(
    recent: list[tuple[float, float]], delta: float, scale: float
) -> None:
    errors, weights = np.array(recent).T
    found, scaled = limits(errors, weights), limits(errors, weights * scale)
    assert scaled.per_request == pytest.approx(found.per_request)
    assert scaled.per_hit == pytest.approx(found.per_hit)


def test_order_of_the_requests_does_not_count() -> None:
    random = np.random.default_rng(0)
    errors, weights = random.random(50), random.random(50) + 0.1
    turned = limits(errors[::-1], weights[::-1])
    assert turned.errors == limits(errors, weights).errors
    assert turned.per_request == pytest.approx(limits(errors, weights).per_request)


def test_without_requests_nothing_is_allowed() -> None:
    assert limits([]) is NOTHING_ALLOWED
    assert NOTHING_ALLOWED.largest(1.0, 1.0) < 0.0


def test_without_budget_nothing_is_allowed() -> None:
    assert limits([0.1, 0.2]).largest(0.0, 1.0) < 0.0
    assert limits([0.1, 0.2]).largest(1.0, 0.0) < 0.0


def drawn(true_factor: float, count: int = 20_000) -> tuple[Floats, Floats]:
    """Expected errors, and whether wrong that many times as often."""
    random = np.random.default_rng(1)
    expected = np.exp(random.uniform(np.log(0.003), np.log(0.4), count))
    return expected, (random.random(count) < true_factor * expected).astype(np.float64)


@pytest.mark.parametrize("true_factor", [0.8, 1.0, 2.0])
def test_corrected_errors_are_those_that_happened(true_factor: float) -> None:
    expected, wrong = drawn(true_factor)
    corrected = measure_correction(expected, wrong).apply(expected)
    for low, high in ((0.0, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 0.5)):
        group = (expected > low) & (expected <= high)
        happened = wrong[group].sum()
        tolerance = 4.0 * happened**0.5 + 0.003 * group.sum()
        assert corrected[group].sum() == pytest.approx(happened, abs=tolerance)


def test_twice_the_errors_double_what_is_expected() -> None:
    once, twice = (measure_correction(*drawn(factor)) for factor in (1.0, 2.0))
    for error in (0.02, 0.07, 0.2, 0.4):
        ratio = twice.apply_one(error) / once.apply_one(error)
        assert ratio == pytest.approx(2.0, rel=0.25)


def test_errors_where_none_were_expected_count_for_all_that_seems_sure() -> None:
    expected = np.full(4_000, 1e-6)
    wrong = (np.arange(4_000) % 50 == 0).astype(np.float64)
    corrected = measure_correction(expected, wrong).apply_one(1e-7)
    assert corrected == pytest.approx(0.02, rel=0.3)
    clean = measure_correction(expected, np.zeros(4_000)).apply_one(1e-7)
    assert clean < 0.001


def test_few_labels_correct_little() -> None:
    lucky = measured([(0.05, False)] * 5).apply_one(0.05)
    unlucky = measured([(0.05, True)]).apply_one(0.05)
    before = Correction().apply_one(0.05)
    assert 0.5 * before < lucky < before < unlucky < 2.0 * before


@settings(max_examples=50, deadline=None)
@given(JUDGED, st.lists(ERRORS, min_size=1, max_size=20))
def test_corrected_errors_are_probabilities_one_by_one_and_together(
    judged: list[tuple[float, bool]], errors: list[float]
) -> None:
    correction = measured(judged)
    together = correction.apply(np.array(errors))
    assert ((together >= 0.0) & (together <= 1.0)).all()
    assert together.tolist() == [correction.apply_one(error) for error in errors]
    assert all(error > 0.0 for error in together)


@settings(max_examples=50, deadline=None)
@given(JUDGED, ERRORS)
def test_wrong_answer_never_lowers_what_is_expected_of_its_like(
    judged: list[tuple[float, bool]], error: float
) -> None:
    right = measured([*judged, (error, False)]).apply_one(error)
    assert measured([*judged, (error, True)]).apply_one(error) >= right - 1e-12


def test_a_model_too_sure_where_labels_are_many_is_corrected_where_they_are_few() -> (
    None
):
    beside = [(0.2, n % 2 == 0) for n in range(200)]  # half wrong, a fifth expected
    too_sure, usual = measured(beside), Correction()
    for few in range(3):
        assert too_sure.factors[few] > 2.0 * usual.factors[few]
    # One that expects too many errors there gains nothing elsewhere.
    assert measured([(0.2, False)] * 200).factors[:3] == usual.factors[:3]


def test_labels_outweigh_what_is_seen_beside_them() -> None:
    beside = [(0.2, n % 2 == 0) for n in range(200)]
    served = [(0.02, n % 100 == 0) for n in range(20_000)]
    assert measured(beside + served).factors[1] < 0.6
