# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The entries in memory: by id, by exact key, by age, and by worth."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from . import guards
from .guards import Signature
from .partition_state import PartitionState
from .request import Answer

# An entry beside its text, vector and answer: object, two dictionary slots, heap
# and index bookkeeping. Measured by the latency benchmark.
OVERHEAD_BYTES = 700
# A signature of the lexical guards, on average.
SIGNATURE_BYTES = 6_000
SAMPLE = 32


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class StoredAnswer:
    """An answer that several entries may share.

    Attributes:
        answer_id: Id in the store.
        size_bytes: Memory it takes.
    """

    answer_id: int
    answer: Answer
    size_bytes: int


@dataclass(slots=True, eq=False)
class Entry:
    """A stored request.

    Attributes:
        indexed: Whether the partition's index holds its vector.
        hits: Times it was served.
        last_used_s: Time of the last hit, or of creation.
    """

    entry_id: int
    partition: PartitionState
    exact_key: bytes
    text: str | None
    class_id: int
    stored: StoredAnswer
    created_s: float
    expires_s: float
    principal: bytes | None
    indexed: bool = False
    hits: int = 0
    last_used_s: float = 0.0
    _signature: Signature | None = None

    @property
    def signature(self) -> Signature | None:
        """What the lexical guards compare; None when the text is not known.

        Made when it is first asked for, so that a large store loads quickly.
        """
        if self._signature is None and self.text is not None:
            self._signature = guards.signature(self.text)
        return self._signature

    def size_bytes(self) -> int:
        """Memory this entry takes; a shared answer counts in full, so it is an upper
        bound.
        """  # noqa: D205
        text = 2 * len(self.text) if self.text else 0
        vector = 4 * self.partition.dimensions if self.indexed else 0
        signature = SIGNATURE_BYTES if self.indexed and self.text else 0
        return OVERHEAD_BYTES + text + vector + signature + self.stored.size_bytes

    def worth(self, now_s: float) -> float:
        """Model time it is expected to save per byte and second of age."""
        saved = (self.hits + 1) * max(self.stored.answer.generation_s, 1e-3)
        idle = max(now_s - self.last_used_s, 1.0)
        return saved / (idle * self.size_bytes())


class EntryTable:
    """All live entries of a process.

    Writes take a lock; reads are single dictionary look-ups and take none.
    """

    def __init__(self, seed: int = 0) -> None:
        self._by_id: dict[int, Entry] = {}
        self._by_key: dict[bytes, Entry] = {}
        self._ids: list[int] = []
        self._position: dict[int, int] = {}
        self._expiry: list[tuple[float, int]] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._bytes: dict[int, int] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, entry_id: int) -> Entry | None:
        """The entry with this id."""
        return self._by_id.get(entry_id)

    def exact(self, exact_key: bytes) -> Entry | None:
        """The entry with this exact key."""
        return self._by_key.get(exact_key)

    def add(self, entry: Entry) -> Entry | None:
        """Add an entry; return the one with the same key that it replaces.

        Of two entries with one key the newer stays, in whatever order they arrive.
        """
        with self._lock:
            if entry.entry_id in self._by_id:
                return None
            old = self._by_key.get(entry.exact_key)
            if old is not None:
                if old.entry_id > entry.entry_id:
                    return entry
                self._remove(old)
            self._by_id[entry.entry_id] = entry
            self._by_key[entry.exact_key] = entry
            self._position[entry.entry_id] = len(self._ids)
            self._ids.append(entry.entry_id)
            heapq.heappush(self._expiry, (entry.expires_s, entry.entry_id))
            self._account(entry)
            entry.partition.entries += 1
            return old

    def resized(self, entry: Entry) -> None:
        """Count an entry's memory again after it changed."""
        with self._lock:
            if entry.entry_id in self._by_id:
                self._account(entry)

    def remove(self, entry_ids: Iterable[int]) -> list[Entry]:
        """Remove entries; return those that were there."""
        with self._lock:
            found = {
                entry_id: entry
                for entry_id in entry_ids
                if (entry := self._by_id.get(entry_id)) is not None
            }
            for entry in found.values():
                self._remove(entry)
            return list(found.values())

    def expired(self, now_s: float, at_most: int = 1000) -> list[int]:
        """Ids of entries whose time is over, oldest first."""
        # Once each: an entry that left and came back is in the heap twice.
        found: dict[int, None] = {}
        with self._lock:
            while self._expiry and len(found) < at_most:
                expires_s, entry_id = self._expiry[0]
                if expires_s > now_s:
                    break
                heapq.heappop(self._expiry)
                if entry_id in self._by_id:
                    found[entry_id] = None
        return list(found)

    def victims(self, n: int, now_s: float) -> list[int]:
        """Ids of ``n`` entries of little worth.

        Each is the least worthy of a random sample, which costs the same however
        many entries there are.
        """
        chosen: dict[int, None] = {}
        with self._lock:
            for _ in range(min(n, len(self._ids))):
                sample = self._random.choices(self._ids, k=SAMPLE)
                entries = [self._by_id[i] for i in sample if i not in chosen]
                if entries:
                    worst = min(entries, key=lambda entry: entry.worth(now_s))
                    chosen[worst.entry_id] = None
        return list(chosen)

    def all(self) -> list[Entry]:
        """All entries now."""
        with self._lock:
            return list(self._by_id.values())

    def _account(self, entry: Entry) -> None:
        size = entry.size_bytes()
        self.size_bytes += size - self._bytes.get(entry.entry_id, 0)
        self._bytes[entry.entry_id] = size

    def _remove(self, entry: Entry) -> None:
        del self._by_id[entry.entry_id]
        if self._by_key.get(entry.exact_key) is entry:
            del self._by_key[entry.exact_key]
        self.size_bytes -= self._bytes.pop(entry.entry_id)
        entry.partition.entries -= 1
        position = self._position.pop(entry.entry_id)
        last = self._ids.pop()
        if last != entry.entry_id:
            self._ids[position] = last
            self._position[last] = position
        # Its place in the expiry heap is dropped when its time comes; the heap is
        # made anew when most of it is dead.
        if len(self._expiry) > 2 * len(self._by_id) + 1024:
            self._expiry = [(e.expires_s, e.entry_id) for e in self._by_id.values()]
            heapq.heapify(self._expiry)
