# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Semantic hits of late, so that feedback on them can be learned from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from .policy import Decision

CAPACITY = 10_000


class ServedHits:
    """What was decided when an entry was last served to a client.

    Args:
        capacity: Hits remembered; the oldest go first.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._hits: OrderedDict[tuple[int, bytes | None], Decision] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, entry_id: int, principal: bytes | None, decision: Decision) -> None:
        """Remember a hit.

        Args:
            entry_id: The entry served.
            principal: Who got it, hashed; None when unknown.
            decision: Why.
        """
        with self._lock:
            self._hits[entry_id, principal] = decision
            self._hits.move_to_end((entry_id, principal))
            if len(self._hits) > self._capacity:
                self._hits.popitem(last=False)

    def take(self, entry_id: int, principal: bytes | None) -> Decision | None:
        """The decision behind a hit, once.

        Its propensity is 1: who complains is no random sample, so feedback is no
        audit.
        """
        with self._lock:
            decision = self._hits.pop((entry_id, principal), None)
        return None if decision is None else replace(decision, propensity=1.0)
