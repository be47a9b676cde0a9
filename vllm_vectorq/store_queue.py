# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Changes that wait for the store, bounded in number and memory."""

from __future__ import annotations

import threading
import time
from collections import deque

from .record import (
    AnswerRecord,
    Change,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Removal,
)

_OVERHEAD_BYTES = 400


class ChangeQueue:
    """First in, first out; when full, the oldest is dropped.

    Two kinds outlive others: without its partition no later entry can be loaded, and
    a removal that is forgotten brings back what was invalidated. They are put by,
    bounded in number again, and written before everything younger.

    Args:
        max_changes: Largest number kept.
        max_bytes: Memory for them, estimated.

    Attributes:
        dropped: Changes lost so far.
    """

    def __init__(self, max_changes: int, max_bytes: int) -> None:
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        # All three hold (number, change), and each is older than the next.
        self._taken: deque[tuple[int, Change]] = deque()
        self._put_by: deque[tuple[int, Change]] = deque()
        self._waiting: deque[tuple[int, Change]] = deque()
        self._waiting_bytes = 0
        self._last_number = 0
        self._refusing = False
        self.dropped = 0

    @property
    def pending(self) -> int:
        """Changes not yet settled."""
        return len(self._taken) + len(self._put_by) + len(self._waiting)

    def put(self, change: Change) -> None:
        """Append a change; returns at once and never raises."""
        size = approximate_bytes(change)
        with self._changed:
            if self._refusing:
                self.dropped += 1
                return
            self._last_number += 1
            self._waiting.append((self._last_number, change))
            self._waiting_bytes += size
            self._trim()

    def take(self, number: int) -> list[Change]:
        """The oldest changes, taken out until settled or put back.

        An answer at the end takes what follows along: a reader of the log wants it
        together with the entry that serves it.
        """
        with self._changed:
            while self._put_by and len(self._taken) < number:
                self._taken.append(self._put_by.popleft())
            while self._waiting and (
                len(self._taken) < number
                or isinstance(self._taken[-1][1], AnswerRecord)
            ):
                item = self._waiting.popleft()
                self._waiting_bytes -= approximate_bytes(item[1])
                self._taken.append(item)
            return [change for _, change in self._taken]

    def settle(self, number: int) -> None:
        """Forget the first changes that were taken: they are done with."""
        with self._changed:
            for _ in range(min(number, len(self._taken))):
                self._taken.popleft()
            self._changed.notify_all()

    def put_back(self) -> None:
        """Let the changes that were taken wait again, before all others."""
        with self._changed:
            for items in (self._put_by, self._taken):
                self._waiting.extendleft(reversed(items))
                self._waiting_bytes += sum(approximate_bytes(item[1]) for item in items)
                items.clear()
            self._trim()

    def refuse(self) -> None:
        """Drop and count whatever comes from now on."""
        with self._changed:
            self._refusing = True

    def is_settled(self) -> bool:
        """Whether nothing waits."""
        return self.pending == 0

    def wait_settled(self, timeout_s: float) -> bool:
        """Wait until everything put so far is done with; say whether it is."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            last = self._last_number
            return self._changed.wait_for(
                lambda: self._oldest() > last, deadline_s - time.monotonic()
            )

    def _oldest(self) -> int:
        for items in (self._taken, self._put_by, self._waiting):
            if items:
                return items[0][0]
        return self._last_number + 1

    def _trim(self) -> None:
        dropped = self.dropped
        while (
            len(self._waiting) > self._max_changes
            or self._waiting_bytes > self._max_bytes
        ):
            item = self._waiting.popleft()
            self._waiting_bytes -= approximate_bytes(item[1])
            if not isinstance(item[1], (PartitionRecord, Removal)):
                self.dropped += 1
                continue
            self._put_by.append(item)
            if len(self._put_by) > self._max_changes:
                self._put_by.popleft()
                self.dropped += 1
        if self.dropped != dropped:
            self._changed.notify_all()


def approximate_bytes(change: Change) -> int:
    """Memory that a change takes, estimated without walking through its numbers."""
    match change:
        case PartitionRecord():
            return _OVERHEAD_BYTES + 200 * len(change.facts)
        case AnswerRecord():
            return _OVERHEAD_BYTES + len(change.text) + 36 * len(change.token_ids)
        case EntryRecord():
            text_bytes = 0 if change.text is None else len(change.text)
            vector_bytes = 0 if change.vector is None else change.vector.nbytes
            return _OVERHEAD_BYTES + text_bytes + vector_bytes
        case ObservationRecord():
            return _OVERHEAD_BYTES + change.features.nbytes
        case Removal():
            return _OVERHEAD_BYTES + 40 * len(change.entry_ids)
    raise TypeError(f"{change!r} is no change")
