# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Rows of an index: vectors, ids and lifetimes in parallel arrays, searched exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .policy import Ids
from .record import Vector

# Lifetime of a row that nobody removed.
ALIVE = np.iinfo(np.int64).max

# Single precision sums of products of unit vectors differ by less than this from
# exact ones, so rows this close to the last place are ranked again exactly.
_ROUNDING = np.float32(1e-5)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows that readers share with one writer without a lock.

    A reader looks at a number of rows as of a version of the index. The writer fills
    only rows beyond that number, marks deaths with later versions, and puts anything
    else into new arrays, so what a reader looks at never changes under it.

    Attributes:
        vectors: Unit vectors, float32 [capacity, dimensions].
        entry_ids: int64 [capacity].
        class_ids: int64 [capacity].
        died: Version of the index from which a row is gone, int64 [capacity].
    """

    vectors: Vector
    entry_ids: Ids
    class_ids: Ids
    died: Ids

    @classmethod
    def empty(cls, dimensions: int) -> Rows:
        """Room for nothing, which :meth:`grown` extends."""
        none = np.zeros(0, dtype=np.int64)
        return cls(np.zeros((0, dimensions), dtype=np.float32), none, none, none)

    @property
    def capacity(self) -> int:
        """Rows that fit, used or not."""
        return len(self.entry_ids)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        ids = self.entry_ids.nbytes + self.class_ids.nbytes + self.died.nbytes
        return self.vectors.nbytes + ids

    def grown(self) -> Rows:
        """Copy with room for half as many rows again, at least one."""
        return joined(self, self.sliced(0, 0), spare=self.capacity // 2 + 1)

    def sliced(self, start: int, stop: int) -> Rows:
        """Rows from ``start`` to before ``stop``, sharing memory."""
        part = slice(start, stop)
        return Rows(
            self.vectors[part],
            self.entry_ids[part],
            self.class_ids[part],
            self.died[part],
        )

    def selected(self, rows: Ids) -> Rows:
        """Copy of some rows."""
        return Rows(
            self.vectors[rows],
            self.entry_ids[rows],
            self.class_ids[rows],
            self.died[rows],
        )

    def put(self, row: int, entry_id: int, class_id: int, vector: Vector) -> None:
        """Fill a row that no reader looks at yet."""
        self.vectors[row] = vector
        self.entry_ids[row] = entry_id
        self.class_ids[row] = class_id
        self.died[row] = ALIVE

    def find(self, entry_ids: Ids, count: int) -> Ids:
        """Of the first ``count`` rows those of these entries that live now."""
        alive = self.died[:count] == ALIVE
        return np.flatnonzero(alive & np.isin(self.entry_ids[:count], entry_ids))

    def living(self, count: int, version: int) -> Ids:
        """Of the first ``count`` rows those that live as of ``version``."""
        return np.flatnonzero(self.died[:count] > version)

    def with_class(self, rows: Ids, class_id: int) -> Rows:
        """The same rows, some with another class; other arrays stay shared."""
        class_ids = self.class_ids.copy()
        class_ids[rows] = class_id
        return replace(self, class_ids=class_ids)

    def nearest(self, query: Vector, k: int, count: int, version: int) -> Ids:
        """Rows that hold the ``k`` nearest, in no order, and perhaps a few more.

        Args:
            query: Unit vector, float32 [dimensions].
            k: How many are wanted; all that live are returned when fewer do.
            count: Rows to look at.
            version: Version of the index as of which rows live.
        """
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        alive = self.died[:count] > version
        if count <= k:
            return np.flatnonzero(alive)
        scores = inner_products(self.vectors[:count], query)
        scores[~alive] = -np.inf
        last = np.partition(scores, count - k)[count - k]
        return np.flatnonzero(alive & (scores >= last - _ROUNDING))


def inner_products(vectors: Vector, query: Vector) -> Vector:
    """Inner products of [n, dimensions] and [dimensions], float32 [n].

    ``einsum`` and not ``@``: a matrix product wakes a thread per core even for a few
    dozen rows, and those threads belong to the server that hosts the cache.
    """
    products: Vector = np.einsum("ij,j->i", vectors, query)
    return products


def joined(first: Rows, second: Rows, spare: int = 0) -> Rows:
    """Copy of all rows of both, in this order, and room for ``spare`` more."""
    length = first.capacity + second.capacity

    def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        both = np.empty((length + spare, *a.shape[1:]), dtype=a.dtype)
        both[: len(a)] = a
        both[len(a) : length] = b
        return both

    return Rows(
        join(first.vectors, second.vectors),
        join(first.entry_ids, second.entry_ids),
        join(first.class_ids, second.class_ids),
        join(first.died, second.died),
    )
