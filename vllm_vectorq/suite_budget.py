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

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float64]
Weights = NDArray[np.float64]

# What is planned for leaves room for chance: a budget that is planned to the last error
# would be exceeded in half of all cases. This much less, and it holds for so many
# requests in nine of ten cases, as errors come one by one (Poisson).
_HORIZON_REQUESTS = 10_000
_QUANTILE = 1.28

# Expected errors up to each bound are corrected by a factor of their own. The model is
# not sure enough about what it serves, because it learns from what was not served:
# on banking77, CLINC150 and HWU64 alike, served answers are wrong about half as often
# as expected. These are the factors to start from, and the labels they count for.
_BOUNDS = np.array([0.01, 0.03, 0.1, 0.3])
_PRIOR_FACTORS = np.array([0.55, 0.55, 0.6, 0.9, 1.0])
_PRIOR_WRONG = 5.0
_KNOWN = 3
_SMALLEST_FACTOR = 0.4
# However sure the model, about 0.3 % is wrong on the same three sets, as
# labels and judges are not perfect. The start is as good as so many audits.
_SURE = 0.002
_FLOOR_WRONG, _FLOOR_LABELS = 1.5, 500.0


@dataclass(frozen=True, slots=True)
class Correction:
    """By how much wrong answers outnumber the expected ones.

    Attributes:
        factors: For expected errors up to each bound, and above the last.
        floor: Added to every expected error.
    """

    factors: tuple[float, ...] = tuple(_PRIOR_FACTORS.tolist())
    floor: float = _FLOOR_WRONG / _FLOOR_LABELS

    def apply(self, expected: Errors) -> Errors:
        """Correct expected errors, float64 [n]."""
        factors = np.array(self.factors)[np.searchsorted(_BOUNDS, expected)]
        corrected: Errors = np.minimum(expected * factors + self.floor, 1.0)
        return corrected

    def apply_one(self, expected: float) -> float:
        """Correct one expected error."""
        factor = self.factors[bisect_left(_BOUNDS_LIST, expected)]
        return min(expected * factor + self.floor, 1.0)


_BOUNDS_LIST: list[float] = _BOUNDS.tolist()


def measure_correction(expected: Errors, wrong: Errors) -> Correction:
    """Compare what was expected with what happened.

    Args:
        expected: Expected errors of explored requests before they were labelled,
            float64 [n].
        wrong: 1 where the candidate was wrong, else 0, float64 [n].
    """
    sure = expected < _SURE
    floor = (wrong[sure].sum() + _FLOOR_WRONG) / (sure.sum() + _FLOOR_LABELS)
    group = np.searchsorted(_BOUNDS, expected)
    groups = len(_BOUNDS) + 1
    happened = np.bincount(group, wrong - floor, groups)
    foreseen = np.bincount(group, expected, groups)
    # Much is labelled in the band that is just not served. A model too sure there, as
    # while intents come and go, is so as well where labels are few.
    start = _PRIOR_FACTORS.copy()
    known = (happened[_KNOWN] + _PRIOR_WRONG * start[_KNOWN]) / (
        foreseen[_KNOWN] + _PRIOR_WRONG
    )
    start[:_KNOWN] *= max(known / start[_KNOWN], 1.0)
    factors = (happened + _PRIOR_WRONG * start) / (foreseen + _PRIOR_WRONG)
    factors = np.maximum(factors, _SMALLEST_FACTOR)
    return Correction(tuple(factors.tolist()), float(floor))


def planned(budget: float) -> float:
    """Part of a budget to plan for, so that chance does not exceed it."""
    return max(budget - _QUANTILE * math.sqrt(budget / _HORIZON_REQUESTS), 0.0)


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
        n = bisect_right(self.per_request, planned(delta))
        n = min(n, bisect_right(self.per_hit, planned(hit_delta)))
        # Of requests that are alike, all are served or none.
        if 0 < n < len(self.errors):
            n = bisect_left(self.errors, self.errors[n])
        return self.errors[n - 1] if n else -1.0


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
    corrected = np.maximum.accumulate(correction.apply(ascending))
    wrong = np.cumsum(weight * corrected)
    per_hit = wrong / np.cumsum(weight)
    return Limits(ascending.tolist(), (wrong / weight.sum()).tolist(), per_hit.tolist())
