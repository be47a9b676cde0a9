# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A proximity graph (HNSW) over vectors that do not change, for large partitions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .policy import Ids
from .record import Vector

if TYPE_CHECKING:
    import faiss

# Chosen by measurement on clustered vectors; see the tests for the recall they hold.
LINKS = 16
EF_CONSTRUCTION = 100
EF_SEARCH = 96


class Graph:
    """Approximate nearest rows by inner product of unit vectors.

    It never changes once made, so any number of threads may search it; extending it
    makes another one.

    Attributes:
        vectors: What it was made of, float32 [n, dimensions]; read-only, and valid
            only while the graph is.
    """

    __slots__ = ("_hnsw", "vectors")

    def __init__(self, hnsw: faiss.IndexHNSWFlat) -> None:
        import faiss

        self._hnsw = hnsw
        storage = faiss.downcast_index(hnsw.storage)
        size = hnsw.ntotal * hnsw.d
        # The graph keeps its own copy of the vectors; a second one would double what
        # an entry costs.
        flat: Vector = faiss.rev_swig_ptr(storage.get_xb(), size)  # type: ignore[attr-defined]
        self.vectors = flat.reshape(hnsw.ntotal, hnsw.d)
        self.vectors.flags.writeable = False

    @classmethod
    def build(cls, vectors: Vector) -> Graph:
        """Make a graph of vectors, float32 [n, dimensions]; takes a while."""
        import faiss

        hnsw = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        hnsw.hnsw.efConstruction = EF_CONSTRUCTION
        hnsw.hnsw.efSearch = EF_SEARCH
        with _one_thread():
            hnsw.add(np.ascontiguousarray(vectors))
        return cls(hnsw)

    def extended(self, vectors: Vector) -> Graph:
        """Make a graph of these vectors and, after them, some more."""
        import faiss

        hnsw = faiss.clone_index(self._hnsw)
        with _one_thread():
            hnsw.add(np.ascontiguousarray(vectors))
        return Graph(hnsw)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Read a file that :meth:`write` wrote.

        Raises:
            ValueError: it holds something else.
            RuntimeError: faiss cannot read it.
        """
        import faiss

        hnsw = faiss.read_index(str(path))
        if (
            not isinstance(hnsw, faiss.IndexHNSWFlat)
            or hnsw.metric_type != faiss.METRIC_INNER_PRODUCT
        ):
            raise ValueError(f"{path.name} holds {type(hnsw).__name__}, not this graph")
        return cls(hnsw)

    def write(self, path: Path) -> None:
        """Write it to a file.

        Raises:
            RuntimeError: faiss cannot write there.
        """
        import faiss

        faiss.write_index(self._hnsw, str(path))

    def nearest(self, query: Vector, count: int) -> Ids:
        """Up to ``count`` rows near a unit vector, float32 [dimensions], best first."""
        rows: Ids = self._hnsw.search(query[None, :], count)[1][0]
        return rows[rows >= 0]

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors and links."""
        links = self._hnsw.hnsw
        sizes: tuple[int, ...] = (
            4 * links.neighbors.size(),  # type: ignore[attr-defined]
            8 * links.offsets.size(),  # type: ignore[attr-defined]
            4 * links.levels.size(),
        )
        return self.vectors.nbytes + sum(sizes)


@dataclass(frozen=True, slots=True, eq=False)
class GraphRows:
    """A graph and whose vectors it was made of.

    Attributes:
        entry_ids: Entry of each row, -1 for one that is gone, int64 [n].
    """

    graph: Graph
    entry_ids: Ids


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have faiss use only the calling thread for what the calling thread asks.

    The number of threads belongs to the thread that sets it in the OpenMP runtimes
    faiss is built with, so others are not slowed down; searches for one vector run
    on the caller's thread anyway.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
