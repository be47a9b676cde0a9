# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Estimate of the errors that were served, from the requests that were explored.

A served answer is not labelled. A request that was explored with probability
``propensity`` stands for ``(1 - propensity) / propensity`` requests like it that were
served (Horvitz and Thompson, 1952), whatever the policy. Those explored for certain
stand for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorEstimate:
    """Estimated share of wrong answers with a 95 % confidence interval.

    Attributes:
        per_request: Wrong answers over all requests.
        per_hit: Wrong answers over hits.
        low_per_hit: Lower end of the interval of ``per_hit``.
        high_per_hit: Upper end.
        audits: Labels the estimate rests on.
        effective_audits: Equally weighted labels that would be worth as much.
    """

    per_request: float
    per_hit: float
    low_per_hit: float
    high_per_hit: float
    audits: int
    effective_audits: float


class ServedErrorEstimator:
    """Running estimate; old evidence fades so that drift shows.

    Args:
        half_life: Requests after which evidence counts half.
    """

    def __init__(self, half_life: int = 20_000) -> None:
        self._keep = 0.5 ** (1.0 / half_life)
        self._requests = 0.0
        self._hits = 0.0
        self._weight = 0.0
        self._weight_squared = 0.0
        self._wrong = 0.0
        self._audits = 0

    def request(self, hit: bool) -> None:
        """Count a request."""
        keep = self._keep
        self._requests = self._requests * keep + 1.0
        self._hits = self._hits * keep + hit
        self._weight *= keep
        self._weight_squared *= keep * keep
        self._wrong *= keep

    def label(self, right: bool, propensity: float) -> None:
        """Count the label of an explored request."""
        weight = (1.0 - propensity) / propensity
        if weight <= 0.0:
            return
        self._audits += 1
        self._weight += weight
        self._weight_squared += weight * weight
        self._wrong += weight * (not right)

    def estimate(self) -> ErrorEstimate:
        """The estimate now; the interval is [0, 1] without any audit."""
        # The square is the first to vanish when all evidence is old.
        if self._weight_squared <= 0.0:
            return ErrorEstimate(0.0, 0.0, 0.0, 1.0, self._audits, 0.0)
        share = self._wrong / self._weight
        effective = self._weight**2 / self._weight_squared
        low, high = wilson_interval(share, effective)
        hit_rate = self._hits / self._requests if self._requests else 0.0
        return ErrorEstimate(
            share * hit_rate, share, low, high, self._audits, effective
        )


def wilson_interval(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share seen in ``n`` trials; ``n`` may be fractional.

    Raises:
        ValueError: ``n`` is not positive.
    """
    if n <= 0:
        raise ValueError(f"an interval needs at least one trial, not n={n}")
    scale = 1.0 + z * z / n
    centre = share + z * z / (2.0 * n)
    spread = z * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n))
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)
