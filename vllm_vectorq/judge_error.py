# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How often judges are wrong, and what that costs the error budget.

A policy bounds the share ``delta`` of requests that get an answer which the *judge*
would call wrong. What the user sees also includes served answers that the judge wrongly
calls equivalent. With hit share ``h`` and the share ``q`` of wrong ones among the
judge's "equivalent" verdicts on hits,

    P(served, wrong) <= P(served, judged wrong) + P(served, judged right, wrong)
                     <= delta + h * q.

So the rate that matters is the share of wrong verdicts among those saying "equivalent",
and it is estimated from pairs that a human or a stronger judge labelled as well. They
should be a random part of the verdicts; feedback by users who complain overstates it.

The intervals are Clopper-Pearson's: they cover at least as often as they say for every
true rate, also near zero with few pairs, where Wilson's and Jeffreys' can fall short.
An upper bound that carries a promise should err on that side.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Halving beyond this lets old behaviour fade and bounds the cost of an interval.
_MAX_PAIRS = 5_000
_BISECTIONS = 50


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Share of wrong verdicts of one kind.

    Attributes:
        wrong: Verdicts that the reference contradicts.
        pairs: Verdicts compared.
        lower: True rate is at least this, with the given confidence.
        upper: True rate is at most this, with the given confidence.
    """

    wrong: int
    pairs: int
    lower: float
    upper: float


@dataclass(slots=True)
class Agreement:
    """Verdicts of one judge compared with the reference.

    Attributes:
        false_equivalent: Said equivalent, but different.
        true_equivalent: Said equivalent, and is.
        false_different: Said different, but equivalent.
        true_different: Said different, and is.
    """

    false_equivalent: int = 0
    true_equivalent: int = 0
    false_different: int = 0
    true_different: int = 0

    def count(self, verdict: bool, truth: bool) -> None:
        """Add one pair; halve the counts of this verdict when there are many."""
        if verdict:
            self.false_equivalent += not truth
            self.true_equivalent += truth
            if self.false_equivalent + self.true_equivalent > _MAX_PAIRS:
                self.false_equivalent //= 2
                self.true_equivalent //= 2
        else:
            self.false_different += truth
            self.true_different += not truth
            if self.false_different + self.true_different > _MAX_PAIRS:
                self.false_different //= 2
                self.true_different //= 2


class JudgeErrors:
    """Measured errors per judge; may be used from any thread.

    Args:
        confidence: Of each bound by itself, in (0, 1).
        measured: Pairs compared earlier, per judge; for a judge without any pair
            nothing is known, and its upper bound is 1.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.
    """

    def __init__(
        self,
        confidence: float = 0.95,
        measured: Mapping[str, Agreement] | None = None,
    ) -> None:
        if not 0.0 < confidence < 1.0:
            raise ValueError(
                f"judge errors were asked for with confidence={confidence}; choose a "
                "probability between 0 and 1, such as 0.95."
            )
        self._confidence = confidence
        self._lock = threading.Lock()
        self._agreement: dict[str, Agreement] = {}
        for source, known in (measured or {}).items():
            self._agreement[source] = Agreement(
                known.false_equivalent,
                known.true_equivalent,
                known.false_different,
                known.true_different,
            )

    def count(self, source: str, verdict: bool, truth: bool) -> None:
        """Count a verdict for which the truth is known.

        Args:
            source: Name of the judge.
            verdict: Whether it said equivalent.
            truth: Whether a human or a stronger judge did.
        """
        with self._lock:
            self._agreement.setdefault(source, Agreement()).count(verdict, truth)

    def false_equivalent(self, source: str) -> ErrorRate:
        """Wrong ones among the verdicts "equivalent" of a judge."""
        with self._lock:
            known = self._agreement.get(source, Agreement())
            wrong, right = known.false_equivalent, known.true_equivalent
        return self._rate(wrong, wrong + right)

    def false_different(self, source: str) -> ErrorRate:
        """Wrong ones among the verdicts "not equivalent" of a judge."""
        with self._lock:
            known = self._agreement.get(source, Agreement())
            wrong, right = known.false_different, known.true_different
        return self._rate(wrong, wrong + right)

    def _rate(self, wrong: int, pairs: int) -> ErrorRate:
        lower, upper = clopper_pearson(wrong, pairs, self._confidence)
        return ErrorRate(wrong, pairs, lower, upper)


def clopper_pearson(wrong: int, trials: int, confidence: float) -> tuple[float, float]:
    """Exact binomial bounds of a rate, each of which holds with ``confidence``.

    Source: Clopper and Pearson, Biometrika 26 (1934). The upper bound is the rate at
    which ``wrong`` or fewer errors have probability ``1 - confidence``; the lower one
    is that of the successes, mirrored.

    Raises:
        ValueError: ``wrong`` is not between 0 and ``trials``.
    """
    if not 0 <= wrong <= trials:
        raise ValueError(f"{wrong} errors in {trials} trials: no such share")
    lower = 1.0 - _upper_bound(trials - wrong, trials, confidence)
    return lower, _upper_bound(wrong, trials, confidence)


@lru_cache(maxsize=256)
def _upper_bound(wrong: int, trials: int, confidence: float) -> float:
    if wrong == trials:
        return 1.0
    # log C(trials, i) for i = 0..wrong; the binomial tail is summed, which is exact
    # and needs no incomplete beta function.
    i = np.arange(1, wrong + 1, dtype=np.float64)
    log_ways = np.concatenate([[0.0], np.cumsum(np.log((trials - i + 1.0) / i))])
    errors = np.arange(wrong + 1, dtype=np.float64)
    low, high = wrong / trials, 1.0
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2.0
        log_terms = (
            log_ways + errors * np.log(rate) + (trials - errors) * np.log1p(-rate)
        )
        if float(np.exp(log_terms).sum()) > 1.0 - confidence:
            low = rate
        else:
            high = rate
    return high
