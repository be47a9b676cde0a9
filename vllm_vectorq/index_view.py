# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One state of an index, which a search looks at while the next ones are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .index_graph import Graph
from .index_rows import Rows
from .policy import Ids
from .record import Vector

# A search of the graph asks for more than it needs, because dead rows are dropped
# from what it finds; a rebuild keeps them under a fifth.
_SPARE_SHARE = 2
_SPARE = 32


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest entries, best first; equally near ones by entry id.

    Attributes:
        entry_ids: int64 [n].
        class_ids: int64 [n].
        similarities: Cosine to each, float32 [n].
        vectors: Unit vectors, float32 [n, dimensions].
    """

    entry_ids: Ids
    class_ids: Ids
    similarities: Vector
    vectors: Vector


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """State of an index as of a version; methods that change it return the next one.

    Attributes:
        graph: Over the rows of ``base``; None while ``base`` is empty.
        base: Rows that the graph knows.
        base_live: How many of them live.
        tail: Rows that are searched one by one.
        tail_live: How many of them live.
        tail_count: How many of them are in use, dead ones included.
    """

    version: int
    graph: Graph | None
    base: Rows
    base_live: int
    tail: Rows
    tail_live: int
    tail_count: int

    @classmethod
    def of(cls, version: int, graph: Graph | None, base: Rows, tail: Rows) -> View:
        """State in which all rows are in use and as alive as they say."""
        return cls(
            version=version,
            graph=graph,
            base=base,
            base_live=len(base.living(base.capacity, version)),
            tail=tail,
            tail_live=len(tail.living(tail.capacity, version)),
            tail_count=tail.capacity,
        )

    @property
    def live(self) -> int:
        """Entries that a search can find."""
        return self.base_live + self.tail_live

    @property
    def rows(self) -> int:
        """Rows in use, dead ones included."""
        return self.base.capacity + self.tail_count

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays and of the graph."""
        arrays = self.base.memory_bytes + self.tail.memory_bytes
        if self.graph is None:
            return arrays
        # The graph and the base share their vectors.
        return arrays - self.base.vectors.nbytes + self.graph.memory_bytes

    def with_entry(self, entry_id: int, class_id: int, vector: Vector) -> View:
        """The next state with one entry more."""
        tail = self.tail
        if self.tail_count == tail.capacity:
            tail = tail.grown()
        tail.put(self.tail_count, entry_id, class_id, vector)
        return replace(
            self,
            version=self.version + 1,
            tail=tail,
            tail_live=self.tail_live + 1,
            tail_count=self.tail_count + 1,
        )

    def without(self, entry_ids: Ids) -> View:
        """The next state without these entries."""
        version = self.version + 1
        in_base = self.base.find(entry_ids, self.base.capacity)
        in_tail = self.tail.find(entry_ids, self.tail_count)
        self.base.died[in_base] = version
        self.tail.died[in_tail] = version
        return replace(
            self,
            version=version,
            base_live=self.base_live - len(in_base),
            tail_live=self.tail_live - len(in_tail),
        )

    def with_class(self, entry_ids: Ids, class_id: int) -> View:
        """The next state with these entries in one class."""
        in_base = self.base.find(entry_ids, self.base.capacity)
        in_tail = self.tail.find(entry_ids, self.tail_count)
        return replace(
            self,
            version=self.version + 1,
            base=self.base.with_class(in_base, class_id),
            tail=self.tail.with_class(in_tail, class_id),
        )

    def search(self, query: Vector, k: int) -> Neighbours:
        """The ``k`` nearest entries to a unit vector, float32 [dimensions]."""
        base, tail = self.base, self.tail
        in_base = self._near_in_base(query, k)
        in_tail = tail.nearest(query, k, self.tail_count, self.version)
        vectors = np.concatenate([base.vectors[in_base], tail.vectors[in_tail]])
        ids = np.concatenate([base.entry_ids[in_base], tail.entry_ids[in_tail]])
        classes = np.concatenate([base.class_ids[in_base], tail.class_ids[in_tail]])
        # Double precision makes equal vectors equally near wherever they are stored.
        exact = np.einsum("ij,j->i", vectors, query, dtype=np.float64)
        similarities = np.clip(exact, -1.0, 1.0).astype(np.float32)
        best = np.lexsort((ids, -similarities))[:k]
        return Neighbours(ids[best], classes[best], similarities[best], vectors[best])

    def _near_in_base(self, query: Vector, k: int) -> Ids:
        wanted = min(k, self.base_live)
        if self.graph is None or wanted == 0:
            return np.zeros(0, dtype=np.int64)
        rows = self.graph.nearest(query, _SPARE_SHARE * k + _SPARE)
        rows = rows[self.base.died[rows] > self.version]
        if len(rows) >= wanted:
            return rows
        # Too many of the nearest are dead, as after an invalidation.
        return self.base.nearest(query, k, self.base.capacity, self.version)
