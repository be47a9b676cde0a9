# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How large an expected error may be so that the budgets are kept.

Of the requests of late, those with the smallest expected errors are served until the
sum of their errors is what the budget allows. How far expected errors are off is
measured on labels of requests that were explored, and made up for first: risk control
in the manner of Angelopoulos et al. (2022), with a running estimate in place of a
bound.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float64]
Weights = NDArray[np.float64]

# No answer is served that is as likely wrong as right, whatever the budget.
LARGEST = 0.5

# Errors below the first bound are corrected by themselves: tight budgets live there.
# Above the second, nothing is ever served, so it must not dilute the measurement.
_TAIL = 0.02
_RELEVANT = 0.3
_SMALLEST_CORRECTION = 0.7


@dataclass(frozen=True, slots=True)
class Correction:
    """Factors by which wrong answers outnumber the expected ones.

    Attributes:
        body: For all errors that matter.
        tail: For the smallest ones; at least ``body``.
    """

    body: float = 1.0
    tail: float = 1.0

    def apply(self, expected: Errors) -> Errors:
        """Correct expected errors, float64 [n]."""
        factors = np.where(expected < _TAIL, self.tail, self.body)
        corrected: Errors = np.minimum(expected * factors, 1.0)
        return corrected

    def apply_one(self, expected: float) -> float:
        """Correct one expected error."""
        return min(expected * (self.tail if expected < _TAIL else self.body), 1.0)


def measure_correction(expected: Errors, wrong: Errors) -> Correction:
    """Compare what was expected with what happened.

    Args:
        expected: Expected errors of labelled requests, float64 [n].
        wrong: 1 where the candidate was wrong, else 0, float64 [n].
    """
    body = _ratio(expected, wrong, expected < _RELEVANT, prior=2.0)
    body = max(body, _SMALLEST_CORRECTION)
    tail = _ratio(expected, wrong, expected < _TAIL, prior=1.0)
    return Correction(body, max(tail, body))


def _ratio(
    expected: Errors, wrong: Errors, where: NDArray[np.bool_], prior: float
) -> float:
    return float((wrong[where].sum() + prior) / (expected[where].sum() + prior))


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest expected error to serve, for any budget.

    Attributes:
        errors: Expected errors of late, ascending.
        per_request: Corrected errors per request if all up to here are served.
        per_hit: The same per hit.
    """

    errors: list[float]
    per_request: list[float]
    per_hit: list[float]

    def largest(self, delta: float, hit_delta: float) -> float:
        """Largest expected error that keeps both budgets; -1 when none does.

        Args:
            delta: Allowed wrong answers per request.
            hit_delta: Allowed wrong answers per hit.
        """
        n = min(bisect_right(self.per_request, delta), len(self.errors))
        n = min(n, bisect_right(self.per_hit, hit_delta))
        return min(self.errors[n - 1], LARGEST) if n else -1.0


NOTHING_ALLOWED = Limits([], [], [])


def limits_of(expected: Errors, weights: Weights, correction: Correction) -> Limits:
    """Work out the limits from the requests of late.

    Args:
        expected: Expected error of each, 1 for those without a candidate,
            float64 [n].
        weights: Requests that each stands for, float64 [n].
        correction: How far the expected errors are off.
    """
    if not len(expected):
        return NOTHING_ALLOWED
    order = np.argsort(expected, kind="stable")
    ascending, weight = expected[order], weights[order]
    wrong = np.cumsum(weight * correction.apply(ascending))
    per_hit = np.maximum.accumulate(wrong / np.cumsum(weight))
    return Limits(ascending.tolist(), (wrong / weight.sum()).tolist(), per_hit.tolist())
