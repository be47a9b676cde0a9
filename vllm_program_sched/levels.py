# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Queue bounds: which level a value of attained service belongs to.

The paper divides programs over K queues by half-open service ranges but publishes
neither K nor the bounds. Here they start log-spaced and are then set to evenly spaced
quantiles of the service that finished programs really used, so every queue sees its
share of the programs whatever the workload's scale. Source: Autellix, section 4.2.
"""

from __future__ import annotations

from bisect import bisect_right

from vllm_program_sched.life_table import LifeTable

_COLD_START_FIRST_BOUND = 64.0
_COLD_START_RATIO = 4.0
_MIN_PROGRAMS = 32
_RECALIBRATE_EVERY = 32


class LevelBounds:
    """Ascending bounds between ``levels`` queues; level 1 is the best.

    Level 0 is left to programs promoted by the starvation guard.

    Args:
        levels: Number of queues, K.
        fixed: K - 1 bounds set by the user; empty means calibrated online.
    """

    def __init__(self, levels: int, fixed: tuple[float, ...] = ()) -> None:
        """See the class docstring."""
        self.levels = levels
        self.calibrated = not fixed
        self.bounds: tuple[float, ...] = fixed or tuple(
            _COLD_START_FIRST_BOUND * _COLD_START_RATIO**i for i in range(levels - 1)
        )
        self._ended_since = 0

    def level_of(self, service: float) -> int:
        """Level, 1..K, whose half-open range [low, high) holds ``service``."""
        return 1 + bisect_right(self.bounds, service)

    def observe_end(self, sizes: LifeTable) -> bool:
        """Count an ended program; returns whether the bounds moved.

        Args:
            sizes: Distribution of the service of ended programs.
        """
        if not self.calibrated:
            return False
        self._ended_since += 1
        if sizes.num_finished < _MIN_PROGRAMS or self._ended_since < _RECALIBRATE_EVERY:
            return False
        self._ended_since = 0
        bounds: list[float] = []
        for i in range(1, self.levels):
            value = sizes.quantile(i / self.levels)
            floor = bounds[-1] * 1.01 if bounds else 1e-9
            bounds.append(max(value, floor))
        moved = any(
            abs(new - old) > 0.1 * old
            for new, old in zip(bounds, self.bounds, strict=True)
        )
        if moved:
            self.bounds = tuple(bounds)
        return moved
