# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Bounds on what one client can teach the cache.

Labels come from traffic, so a client that sends chosen prompts gives chosen labels: it
can drag an entry's threshold down until other users get its answer. Three bounds:

* labels per client and entry, so that no client makes an entry's history alone;
* labels per client and minute, over all entries;
* if the operator wants it, an entry is served to others than its author only after a
  number of distinct clients gave it the label "equivalent".

Memory is bounded. What was not used for longest is forgotten, which gives a client its
labels back, but takes confirmations away: forgetting never opens an entry.
Clients without identity cannot be told apart. They are not limited, since a common
limit would stop all learning on a server without API keys, and they confirm nothing.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_MINUTE_S = 60.0


class LabelQuota:
    """Admits labels and says who may be served; may be used from any thread.

    Args:
        per_entry: Labels one client may give to one entry.
        per_minute: Labels one client may give per minute, and at once after a pause.
        confirmations: Distinct clients that must have found an entry equivalent
            before it is served to others than its author; 0 asks for none.
        capacity: Clients, entries, and pairs of them remembered.
        clock: Monotonic time in seconds.

    Attributes:
        refused_per_entry: Labels refused by the first bound.
        refused_per_minute: Labels refused by the second.

    Raises:
        ValueError: a bound is not positive, or ``confirmations`` is negative.
    """

    def __init__(
        self,
        per_entry: int = 3,
        per_minute: int = 120,
        confirmations: int = 0,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(per_entry, per_minute, capacity) < 1 or confirmations < 0:
            raise ValueError(
                f"a label quota was asked for with per_entry={per_entry}, "
                f"per_minute={per_minute}, capacity={capacity} and confirmations="
                f"{confirmations}; the first three must be at least 1, the last 0."
            )
        self._per_entry = per_entry
        self._per_minute = per_minute
        self._confirmations = confirmations
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._given: OrderedDict[tuple[bytes, int], int] = OrderedDict()
        # Labels a client may still give, and the time at which that was so.
        self._allowances: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._confirmed_by: OrderedDict[int, frozenset[bytes]] = OrderedDict()
        self.refused_per_entry = 0
        self.refused_per_minute = 0

    def admit(self, principal: bytes | None, entry_id: int, equivalent: bool) -> bool:
        """Whether a label may be learned from; counts it if so.

        Args:
            principal: Client whose request was labelled, hashed; None when unknown.
            entry_id: Entry it was compared with.
            equivalent: What the label says.
        """
        if principal is None:
            return True
        with self._lock:
            given = self._given.get((principal, entry_id), 0)
            if given >= self._per_entry:
                # Used, so that repeating it does not make it the oldest.
                self._given.move_to_end((principal, entry_id))
                self.refused_per_entry += 1
                return False
            if not self._spend(principal):
                self.refused_per_minute += 1
                return False
            _put(self._given, (principal, entry_id), given + 1, self._capacity)
            if equivalent:
                self._confirm(principal, entry_id)
            return True

    def _spend(self, principal: bytes) -> bool:
        now_s = self._clock()
        full = float(self._per_minute)
        left, at_s = self._allowances.get(principal, (full, now_s))
        left = min(left + (now_s - at_s) * full / _MINUTE_S, full)
        spends = left >= 1.0
        allowance = (left - 1.0 if spends else left, now_s)
        _put(self._allowances, principal, allowance, self._capacity)
        return spends

    def restore(self, principal: bytes | None, entry_id: int) -> None:
        """Take over a stored label "equivalent", which was admitted earlier."""
        if principal is not None:
            with self._lock:
                self._confirm(principal, entry_id)

    def _confirm(self, principal: bytes, entry_id: int) -> None:
        known = self._confirmed_by.get(entry_id, frozenset())
        if len(known) < self._confirmations:
            known |= {principal}
        if self._confirmations:
            _put(self._confirmed_by, entry_id, known, self._capacity)

    def may_serve(
        self, entry_id: int, author: bytes | None, principal: bytes | None
    ) -> bool:
        """Whether an entry may be served to a client.

        Args:
            entry_id: The entry.
            author: Client whose request made it; None when unknown.
            principal: Client that asks now; None when unknown.
        """
        if not self._confirmations or (principal is not None and principal == author):
            return True
        with self._lock:
            known = self._confirmed_by.get(entry_id, frozenset())
            return len(known) >= self._confirmations

    def forget(self, entry_ids: Iterable[int]) -> None:
        """Drop the confirmations of entries that are gone."""
        with self._lock:
            for entry_id in entry_ids:
                self._confirmed_by.pop(entry_id, None)


def _put(
    table: OrderedDict[_Key, _Value], key: _Key, value: _Value, capacity: int
) -> None:
    """Store as the most recently used, and forget the least recently used."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > capacity:
        table.popitem(last=False)
