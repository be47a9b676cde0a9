# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Leaves something alone for a while that fails again and again."""

from __future__ import annotations

from collections.abc import Callable


class CircuitBreaker:
    """Counts failures in a row and says when to try again.

    It takes no lock; its owner calls it under one.
    """

    def __init__(
        self, max_failures: int, rest_s: float, clock: Callable[[], float]
    ) -> None:
        """Create a breaker that admits everything.

        Args:
            max_failures: Failures in a row after which it admits nothing.
            rest_s: For how long, in seconds; then it admits one trial per ``rest_s``
                until one succeeds.
            clock: Monotonic time in seconds.
        """
        self._max_failures = max_failures
        self._rest_s = rest_s
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0

    @property
    def open(self) -> bool:
        """Whether too many failures came in a row."""
        return self._failures >= self._max_failures

    def admits(self) -> bool:
        """Whether to try now; True while open means: this is the trial."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._rests_until:
            return False
        self._rests_until = now + self._rest_s
        return True

    def succeeded(self) -> None:
        """Admit everything again."""
        self._failures = 0

    def failed(self) -> None:
        """Count a failure."""
        self._failures += 1
        self._rests_until = self._clock() + self._rest_s
