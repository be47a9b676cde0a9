# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Answers are worth the expected strings in them, within an interval."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_hashattn.long_context import Kind, Question
from vllm_hashattn.long_context_score import score_answer, summarise, wilson_interval


def test_scores_are_recall_of_the_expected_strings() -> None:
    question = Question(Kind.TRACKING, "Which?", "These:", ("ABCDE", "FGHIJ", "KLMNO"))
    all_found = score_answer(question, " fghij, KLMNO and abcde, and XYZVW.")
    assert (all_found.share, all_found.exact) == (1.0, True)
    part = score_answer(question, "KLMNO, ABCD, FGHIK")
    assert part.share == pytest.approx(1 / 3)
    assert not part.exact
    one = replace(question, kind=Kind.PASSKEY, expected=("1234567",))
    assert score_answer(one, "123456").share == 0.0
    found = summarise([part, all_found, score_answer(one, "is 1234567.")])
    assert list(found) == [Kind.PASSKEY, Kind.TRACKING]
    tracking = found[Kind.TRACKING]
    assert (tracking.n, tracking.exact) == (2, 1)
    assert tracking.mean_share == pytest.approx(2 / 3)
    assert (tracking.low, tracking.high) == wilson_interval(1, 2)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(45, 50, 0.786, 0.957), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0),
     (1, 1, 0.207, 1.0), (50, 100, 0.404, 0.596)],
)  # fmt: skip
def test_wilson_interval_is_the_known_one(
    hits: int, n: int, low: float, high: float
) -> None:
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=6e-4)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_share(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson_interval(hits, n)
    assert 0.0 <= low <= hits / n <= high <= 1.0
    mirrored = wilson_interval(n - hits, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_impossible_counts_are_refused() -> None:
    for hits, n in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match=f"{hits} hits of {n}"):
            wilson_interval(hits, n)
