# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Measured errors of judges: exact intervals, and what they cost the budget."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_vectorq.judge_error import Agreement, JudgeErrors, clopper_pearson


def tail(wrong: int, trials: int, rate: float) -> float:
    """Probability of at most ``wrong`` errors."""
    return sum(
        math.comb(trials, i) * rate**i * (1.0 - rate) ** (trials - i)
        for i in range(wrong + 1)
    )


def test_no_error_in_n_gives_the_closed_form() -> None:
    for trials in (1, 10, 300, 5000):
        lower, upper = clopper_pearson(0, trials, 0.95)
        assert lower == 0.0
        assert upper == pytest.approx(1.0 - 0.05 ** (1.0 / trials), rel=1e-9)


def test_only_errors_give_the_closed_form() -> None:
    lower, upper = clopper_pearson(20, 20, 0.95)
    assert upper == 1.0
    assert lower == pytest.approx(0.05 ** (1.0 / 20), rel=1e-9)


def test_nothing_is_known_without_trials() -> None:
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


@given(st.integers(1, 60), st.data())
def test_bounds_are_the_rates_at_which_the_tails_have_the_given_probability(
    trials: int, data: st.DataObject
) -> None:
    wrong = data.draw(st.integers(0, trials))
    lower, upper = clopper_pearson(wrong, trials, 0.9)
    assert lower <= wrong / trials <= upper
    if wrong < trials:
        assert tail(wrong, trials, upper) == pytest.approx(0.1, rel=1e-6)
    if wrong > 0:
        assert 1.0 - tail(wrong - 1, trials, lower) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("trials", [5, 50, 200])
def test_the_upper_bound_covers_at_least_as_often_as_it_says(
    rate: float, trials: int
) -> None:
    covered = sum(
        math.comb(trials, k) * rate**k * (1.0 - rate) ** (trials - k)
        for k in range(trials + 1)
        if clopper_pearson(k, trials, 0.95)[1] >= rate
    )
    assert covered >= 0.95


def test_many_pairs_do_not_underflow() -> None:
    lower, upper = clopper_pearson(2500, 5000, 0.95)
    assert 0.48 < lower < 0.5 < upper < 0.52


@pytest.mark.parametrize(("wrong", "trials"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(wrong: int, trials: int) -> None:
    with pytest.raises(ValueError, match="no such share"):
        clopper_pearson(wrong, trials, 0.95)


def test_errors_are_counted_per_judge_and_per_verdict() -> None:
    errors = JudgeErrors()
    for verdict, truth in [(True, True), (True, False), (False, False), (False, True)]:
        errors.count("embedding", verdict, truth)
    errors.count("embedding", True, True)
    errors.count("model", False, True)
    same = errors.false_equivalent("embedding")
    assert (same.wrong, same.pairs) == (1, 3)
    different = errors.false_different("embedding")
    assert (different.wrong, different.pairs) == (1, 2)
    assert errors.false_equivalent("model").pairs == 0
    assert errors.false_different("model").wrong == 1


def test_an_unknown_judge_may_be_always_wrong() -> None:
    assert JudgeErrors().false_equivalent("model").upper == 1.0


def test_a_measured_judge_starts_with_what_was_measured_and_copies_it() -> None:
    known = Agreement(false_equivalent=1, true_equivalent=99)
    errors = JudgeErrors(measured={"embedding": known})
    errors.count("embedding", True, True)
    assert errors.false_equivalent("embedding").pairs == 101
    assert known.true_equivalent == 99


def test_old_behaviour_of_a_judge_fades() -> None:
    errors = JudgeErrors()
    for _ in range(5_000):
        errors.count("judge", True, False)
    for _ in range(20_000):
        errors.count("judge", True, True)
    rate = errors.false_equivalent("judge")
    assert rate.pairs <= 5_000
    assert rate.wrong / rate.pairs < 0.05


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_that_is_no_probability_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="probability between 0 and 1"):
        JudgeErrors(confidence)
