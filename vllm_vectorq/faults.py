# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Faults of the plugin: counted, logged once per place, never passed on."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable


class Faults:
    """Where every part of the cache reports an exception that it survived.

    Args:
        logger: Gets one message with a traceback per place.
        on_fault: Called with the place, for a metric.
    """

    def __init__(
        self, logger: logging.Logger, on_fault: Callable[[str], None] | None = None
    ) -> None:
        self._logger = logger
        self._on_fault = on_fault
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()

    def report(self, where: str, error: BaseException) -> None:
        """Count a fault; log the first one at this place."""
        with self._lock:
            self._seen[where] += 1
            first = self._seen[where] == 1
        if self._on_fault is not None:
            self._on_fault(where)
        if first:
            self._logger.error(
                "vectorq: fault in %s; the request is served without the cache "
                "and further faults there are only counted",
                where,
                exc_info=error,
            )

    def counts(self) -> dict[str, int]:
        """Faults so far by place."""
        with self._lock:
            return dict(self._seen)
