# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What must be done now and then: expiry, eviction, gauges, the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import Logger

from .background import BackgroundThread
from .config import VectorQConfig
from .error_estimate import ServedErrorEstimator
from .faults import Faults
from .metrics import CacheMetrics
from .working_set import WorkingSet

INTERVAL_S = 1.0
# Entries removed at a time; between two batches requests get their turn.
BATCH = 256


class Upkeep:
    """A background thread; stopped by :meth:`close`.

    Args:
        config: The operator's options.
        working_set: What is kept in order.
        served_errors: Shown in the gauges and the log.
        metrics: Where the gauges are.
        faults: Where to report faults of ours.
        logger: Gets a summary line now and then.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        config: VectorQConfig,
        working_set: WorkingSet,
        served_errors: ServedErrorEstimator,
        metrics: CacheMetrics,
        faults: Faults,
        logger: Logger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._working_set = working_set
        self._served_errors = served_errors
        self._metrics = metrics
        self._logger = logger
        self._clock = clock
        self._next_line_s = time.monotonic() + config.log_interval_s
        self._thread = BackgroundThread("upkeep", INTERVAL_S, self._round, faults)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop, and wait for the round in progress."""
        self._thread.close(timeout_s)

    def once(self) -> None:
        """One round: expire, evict, refresh gauges."""
        self._expire()
        self._evict()
        entries = self._working_set.entries
        estimate = self._served_errors.estimate()
        self._metrics.set_state(
            len(entries), entries.size_bytes, estimate, self._config.delta
        )

    def _round(self) -> None:
        self.once()
        self._log()

    def _expire(self) -> None:
        while expired := self._working_set.entries.expired(self._clock(), BATCH):
            self._working_set.remove(expired, "expired")

    def _evict(self) -> None:
        entries = self._working_set.entries
        while not self._thread.stopping:
            surplus = len(entries) - self._config.max_entries
            if entries.size_bytes > self._config.max_bytes:
                surplus = max(surplus, 1 + len(entries) // 100)
            if surplus <= 0:
                return
            victims = entries.victims(min(surplus, BATCH), self._clock())
            self._working_set.remove(victims, "evicted")

    def _log(self) -> None:
        interval_s = self._config.log_interval_s
        if not interval_s or time.monotonic() < self._next_line_s:
            return
        self._next_line_s = time.monotonic() + interval_s
        estimate = self._served_errors.estimate()
        entries = self._working_set.entries
        self._logger.info(
            "vectorq: %d entries, %.1f MiB; estimated error per request %.3f %% "
            "(budget %.3f %%), per hit %.2f %% [%.2f to %.2f] from %d labels",
            len(entries),
            entries.size_bytes / 2**20,
            100 * estimate.per_request,
            100 * self._config.delta,
            100 * estimate.per_hit,
            100 * estimate.low_per_hit,
            100 * estimate.high_per_hit,
            estimate.audits,
        )
