# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A bounded sample of the entries of a partition, for fitting a projection."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from .policy import Ids
from .record import Vector

_FIRST_ROWS = 1

# Id and class of an entry.
Sampled = tuple[int, int]


class EntrySample:
    """A uniform sample without repetition (Vitter's algorithm R); not thread-safe.

    Args:
        capacity: Entries kept at most.
        seed: For the choice of those that make room.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self._capacity = capacity
        self._seed = seed
        # A generator takes kilobytes, and most samples are never full.
        self._random: random.Random | None = None
        self._ids: list[int] = []
        self._row: dict[int, int] = {}
        self._vectors: Vector = np.zeros((0, 0), dtype=np.float32)
        self._class_ids: Ids = np.zeros(0, dtype=np.int64)
        self._seen = 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def entry_ids(self) -> list[int]:
        """Their ids; not a copy."""
        return self._ids

    @property
    def vectors(self) -> Vector:
        """Their vectors, float32 [n, dimensions]; a view."""
        return self._vectors[: len(self)]

    @property
    def class_ids(self) -> Ids:
        """Their answer classes, int64 [n]; a view."""
        return self._class_ids[: len(self)]

    def add(self, entry_id: int, vector: Vector, class_id: int) -> list[Sampled] | None:
        """Offer an entry.

        Returns:
            The entries that left for it; None when it was not taken.
        """
        if entry_id in self._row:
            return None
        self._seen += 1
        gone: list[Sampled] = []
        if len(self) >= self._capacity:
            self._random = self._random or random.Random(self._seed)
            row = self._random.randrange(self._seen)
            if row >= self._capacity:
                return None
            gone = self._remove([self._ids[row]])
        row = len(self)
        self._grow(row + 1, len(vector))
        self._ids.append(entry_id)
        self._row[entry_id] = row
        self._vectors[row] = vector
        self._class_ids[row] = class_id
        return gone

    def remove(self, entry_ids: Sequence[int]) -> list[Sampled]:
        """Drop entries; returns those that were in the sample."""
        before = len(self)
        gone = self._remove(entry_ids)
        if gone:
            # As many of those that are not in the sample will have left, too.
            self._seen = max(round(self._seen * len(self) / before), len(self))
        return gone

    def _remove(self, entry_ids: Sequence[int]) -> list[Sampled]:
        gone: list[Sampled] = []
        for entry_id in entry_ids:
            row = self._row.pop(entry_id, None)
            if row is None:
                continue
            gone.append((entry_id, int(self._class_ids[row])))
            last = self._ids.pop()
            if last != entry_id:
                end = len(self._ids)
                self._ids[row] = last
                self._row[last] = row
                self._vectors[row] = self._vectors[end]
                self._class_ids[row] = self._class_ids[end]
        return gone

    def _grow(self, rows: int, dimensions: int) -> None:
        if rows <= len(self._vectors):
            return
        size = min(max(_FIRST_ROWS, 2 * len(self._vectors)), self._capacity)
        vectors = np.zeros((size, dimensions), dtype=np.float32)
        class_ids = np.zeros(size, dtype=np.int64)
        if len(self):
            vectors[: len(self)] = self.vectors
            class_ids[: len(self)] = self.class_ids
        self._vectors, self._class_ids = vectors, class_ids
