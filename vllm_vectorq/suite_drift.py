# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Notices when served answers turn wrong more often than expected."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 50
# Chance of a false alarm per audit; alarms cost labels, not errors.
SIGNIFICANCE = 1e-4
# Expected errors are themselves uncertain.
_SLACK = 1.5
_FEWEST = 0.5


class DriftWatch:
    """Watches the audits: requests explored by chance that would have been served.

    Args:
        window: Audits looked at together.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._audits: deque[tuple[float, bool]] = deque(maxlen=window)

    def drifted(self, expected: float, wrong: bool) -> bool:
        """Take an audit; says whether the latest ones are beyond chance.

        After an alarm the watch starts anew.

        Args:
            expected: Corrected expected error of the candidate.
            wrong: Whether it was wrong.
        """
        self._audits.append((expected, wrong))
        if not wrong:
            return False
        mean = _SLACK * sum(error for error, _ in self._audits) + _FEWEST
        count = sum(missed for _, missed in self._audits)
        if poisson_tail(count, mean) >= SIGNIFICANCE:
            return False
        self._audits.clear()
        return True


def poisson_tail(count: int, mean: float) -> float:
    """Probability that a Poisson variable reaches a count."""
    below, term = 0.0, math.exp(-mean)
    for k in range(count):
        below += term
        term *= mean / (k + 1)
    return max(1.0 - below, 0.0)
