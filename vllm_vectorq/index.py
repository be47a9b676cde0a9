# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Nearest entries of one partition, searched while others write.

Most partitions are tiny, so an index is a few arrays searched exactly. A large one is
a graph over most entries and, beside it, a tail of those added since. Readers take no
lock: they look at a view, which writers replace as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .index_graph import Graph, GraphRows
from .index_rows import ALIVE, Rows, joined
from .index_view import Neighbours, View
from .policy import Ids
from .record import Vector

# Share of dead rows above which they are worth a rebuild, and rows below which not.
_DEAD_SHARE = 0.2
_FEW_ROWS = 16

# A tail this large beside a graph is moved into it: scanning the tail then takes
# about as long as searching the graph.
_TAIL_SHARE = 0.05

_UNIT_TOLERANCE = 1e-3
_SAME_VECTOR = 0.999


class PartitionIndex:
    """Unit vectors of the entries of one partition.

    Any method may be called from any thread. A search sees all that was done before it
    began; of what is done meanwhile it sees each call wholly or not at all. It is
    exact, except for entries in the graph, of which it may miss a near one.
    """

    __slots__ = (
        "_flat_limit",
        "_highest_id",
        "_maintaining",
        "_view",
        "_writing",
        "dimensions",
    )

    def __init__(self, dimensions: int, *, flat_limit: int = 50_000) -> None:
        """Create an empty index.

        Args:
            dimensions: Length of a vector.
            flat_limit: Entries above which :meth:`maintain` makes a graph.
        """
        self.dimensions = dimensions
        self._flat_limit = flat_limit
        # Taken in this order where both are.
        self._maintaining = threading.Lock()
        self._writing = threading.Lock()
        self._highest_id = -1
        nothing = Rows.empty(dimensions)
        self._view = View.of(0, None, nothing, nothing)

    def __len__(self) -> int:
        return self._view.live

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays and of the graph."""
        return self._view.memory_bytes

    def search(self, vector: Vector, k: int) -> Neighbours:
        """Find the ``k`` nearest entries, or all when there are fewer.

        Args:
            vector: Unit vector, float32 [dimensions].
            k: At least 1.

        Raises:
            ValueError: the vector has another shape or is not a unit vector.
        """
        return self._view.search(self._checked(vector), k)

    def add(self, entry_id: int, class_id: int, vector: Vector) -> None:
        """Add an entry, or replace the one with the same id.

        Args:
            entry_id: Not negative.
            class_id: Class of its answer.
            vector: Unit vector, float32 [dimensions].

        Raises:
            ValueError: the vector has another shape or is not a unit vector.
        """
        checked = self._checked(vector)
        with self._writing:
            view = self._view
            # Ids sort by time, so as a rule there is nothing to replace.
            if entry_id <= self._highest_id:
                view = view.without(np.array([entry_id], dtype=np.int64))
            self._view = view.with_entry(entry_id, class_id, checked)
            self._highest_id = max(self._highest_id, entry_id)

    def remove(self, entry_ids: Iterable[int]) -> None:
        """Remove entries; unknown ones are ignored."""
        ids = np.fromiter(entry_ids, dtype=np.int64)
        with self._writing:
            self._view = self._view.without(ids)

    def reclass(self, entry_ids: Iterable[int], class_id: int) -> None:
        """Give entries another class, all at once; unknown ones are ignored."""
        ids = np.fromiter(entry_ids, dtype=np.int64)
        with self._writing:
            self._view = self._view.with_class(ids, class_id)

    def graph_rows(self) -> GraphRows | None:
        """The graph, to save it; None for an index without one."""
        view = self._view
        if view.graph is None:
            return None
        alive = view.base.died > view.version
        return GraphRows(view.graph, np.where(alive, view.base.entry_ids, -1))

    def adopt(self, saved: GraphRows) -> None:
        """Use a graph made earlier for the entries that it knows.

        For an index without a graph, once its entries are back from the store: these
        stay what they are. Entries that the graph lacks, or knows with another vector,
        are kept beside it; entries that only the graph has stay out.
        """
        with self._maintaining, self._writing:
            view = self._view
            if view.graph is not None:
                return
            rows = view.tail.selected(view.tail.living(view.tail_count, view.version))
            base, known = _base_of(saved, rows)
            tail = rows.selected(np.flatnonzero(~known))
            self._view = View.of(view.version, saved.graph, base, tail)

    def maintain(self) -> None:
        """Drop dead rows and move the tail into a graph, when that is worth it.

        For a background thread: making a graph takes a minute or so per 100,000
        entries. Searches and writes go on meanwhile, and nothing they do is lost.
        """
        with self._maintaining:
            view = self._view
            dead = view.rows - view.live
            compact = view.rows > _FEW_ROWS and dead > _DEAD_SHARE * view.rows
            longest = self._flat_limit
            if view.graph is not None:
                longest = int(_TAIL_SHARE * view.base.capacity)
            if compact or view.tail_live > longest:
                self._rebuild(view, compact)

    def _rebuild(self, view: View, compact: bool) -> None:
        """Replace a view by one without its tail or without its dead rows.

        Args:
            view: The current view; writers may leave it behind meanwhile.
            compact: Whether to leave dead rows out, for which a graph is made anew
                rather than extended.
        """
        in_base = np.arange(view.base.capacity)
        if compact:
            in_base = view.base.living(view.base.capacity, view.version)
        in_tail = view.tail.living(view.tail_count, view.version)
        vectors = view.tail.vectors[in_tail]
        graph = None
        if view.graph is not None and not compact:
            graph = view.graph.extended(vectors)
        else:
            vectors = np.concatenate([view.base.vectors[in_base], vectors])
            if len(vectors) > self._flat_limit:
                graph = Graph.build(vectors)
        if graph is not None:
            vectors = graph.vectors
        nothing = Rows.empty(self.dimensions)
        with self._writing:
            now = self._view
            base = _as_they_are_now(now, in_base, in_tail, vectors)
            tail = joined(nothing, now.tail.sliced(view.tail_count, now.tail_count))
            if graph is None:
                base, tail = nothing, joined(base, tail)
            self._view = View.of(now.version, graph, base, tail)

    def _checked(self, vector: Vector) -> Vector:
        """Contiguous copy of a unit vector."""
        checked = np.array(vector, dtype=np.float32, order="C")
        if checked.shape != (self.dimensions,):
            raise ValueError(
                f"vectorq: asked for a vector of shape {checked.shape} in an index of "
                f"{self.dimensions} dimensions; use one embedding model per store."
            )
        if not abs(float(checked @ checked) - 1.0) <= 2 * _UNIT_TOLERANCE:
            raise ValueError(
                "vectorq: asked for a vector whose length is not 1; normalise what "
                "the embedding model returns."
            )
        return checked


def _as_they_are_now(now: View, in_base: Ids, in_tail: Ids, vectors: Vector) -> Rows:
    """Rows of a view and their vectors, which were copied before."""
    base, tail = now.base, now.tail
    return Rows(
        vectors,
        np.concatenate([base.entry_ids[in_base], tail.entry_ids[in_tail]]),
        np.concatenate([base.class_ids[in_base], tail.class_ids[in_tail]]),
        np.concatenate([base.died[in_base], tail.died[in_tail]]),
    )


def _base_of(saved: GraphRows, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """What a saved graph knows of these rows.

    Returns:
        Rows of the graph, dead where none of the given has that id and vector; and
        which of the given are among them, bool [n].
    """
    alive = np.flatnonzero(saved.entry_ids >= 0)
    _, in_alive, in_rows = np.intersect1d(
        saved.entry_ids[alive], rows.entry_ids, assume_unique=True, return_indices=True
    )
    in_graph = alive[in_alive]
    cosines = np.einsum(
        "ij,ij->i", saved.graph.vectors[in_graph], rows.vectors[in_rows]
    )
    same = cosines > _SAME_VECTOR
    in_graph, in_rows = in_graph[same], in_rows[same]
    class_ids = np.zeros_like(saved.entry_ids)
    class_ids[in_graph] = rows.class_ids[in_rows]
    died = np.zeros_like(saved.entry_ids)
    died[in_graph] = ALIVE
    known = np.zeros(rows.capacity, dtype=np.bool_)
    known[in_rows] = True
    return Rows(saved.graph.vectors, saved.entry_ids, class_ids, died), known
