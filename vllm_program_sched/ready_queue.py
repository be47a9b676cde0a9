# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Priority queue of waiting calls whose ranks may change while they wait."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from vllm_program_sched.process_table import Call

Rank = tuple[int, int, float, int]


class ReadyQueue:
    """Binary heap with lazy deletion, keyed by ``Call.rank``.

    ``push``, ``remove``, ``refresh`` and ``pop`` cost O(log n) amortised: a stale heap
    entry is dropped when it surfaces, and the heap is rebuilt when more than half of it
    is stale, so memory stays proportional to the calls that wait.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._heap: list[tuple[Rank, int, Call]] = []
        self._live: dict[str, tuple[int, Call]] = {}
        self._version = 0

    def __len__(self) -> int:
        """Number of waiting calls."""
        return len(self._live)

    def __contains__(self, call_id: str) -> bool:
        """Whether a call waits here."""
        return call_id in self._live

    def push(self, call: Call) -> None:
        """Add a call, or move it when it is already here."""
        self._version += 1
        self._live[call.call_id] = (self._version, call)
        heapq.heappush(self._heap, (call.rank, self._version, call))
        self._shrink()

    def refresh(self, call: Call) -> None:
        """Re-sort a call whose rank changed; nothing happens if it is not here."""
        if call.call_id in self._live:
            self.push(call)

    def remove(self, call_id: str) -> bool:
        """Take a call out; returns whether it was here."""
        known = self._live.pop(call_id, None) is not None
        self._shrink()
        return known

    def peek(self) -> Call:
        """The best call.

        Raises:
            IndexError: The queue is empty.
        """
        self._drop_stale()
        return self._heap[0][2]

    def pop(self) -> Call:
        """Remove and return the best call.

        Raises:
            IndexError: The queue is empty.
        """
        self._drop_stale()
        call = heapq.heappop(self._heap)[2]
        del self._live[call.call_id]
        self._shrink()
        return call

    def rebuild(self) -> None:
        """Re-sort everything by the current ranks, O(n)."""
        self._heap = [
            (call.rank, version, call) for version, call in self._live.values()
        ]
        heapq.heapify(self._heap)

    def calls(self) -> Iterator[Call]:
        """All waiting calls, in no particular order."""
        return (call for _, call in self._live.values())

    def ordered(self) -> list[Call]:
        """All waiting calls, best first."""
        return sorted(self.calls(), key=lambda call: call.rank)

    def _shrink(self) -> None:
        # Stale entries keep calls, and what hangs on them, in memory.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._live):
            self.rebuild()

    def _drop_stale(self) -> None:
        heap, live = self._heap, self._live
        while heap:
            _, version, call = heap[0]
            entry = live.get(call.call_id)
            if entry is not None and entry[0] == version:
                return
            heapq.heappop(heap)
