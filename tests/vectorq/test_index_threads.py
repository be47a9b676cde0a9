# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""An index that several threads write and search at once."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from tests.vectorq.index_cases import ALL, Vectors, units
from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.index_graph import Graph


class History:
    """When each entry was certainly there and certainly not, by a shared clock."""

    def __init__(self) -> None:
        self.clock: Callable[[], int] = itertools.count(1).__next__
        self.adding: dict[int, int] = {}
        self.added: dict[int, int] = {}
        self.removing: dict[int, int] = {}
        self.removed: dict[int, int] = {}

    def check(self, began: int, ended: int, found: set[int]) -> None:
        never = sys.maxsize
        for entry_id in self.adding:
            there = (
                self.added.get(entry_id, never) < began
                and self.removing.get(entry_id, never) > ended
            )
            absent = (
                self.adding[entry_id] > ended
                or self.removed.get(entry_id, never) < began
            )
            assert not (there and entry_id not in found), f"missed {entry_id}"
            assert not (absent and entry_id in found), f"returned {entry_id}"
        assert found <= set(self.adding)


def write(
    index: PartitionIndex,
    history: History,
    vectors: Vectors,
    ids: range,
    rng: np.random.Generator,
) -> None:
    """Add all ids, replace some by the same, and remove most again."""
    live: list[int] = []
    for entry_id in ids:
        history.adding[entry_id] = history.clock()
        index.add(entry_id, entry_id, vectors[entry_id])
        history.added[entry_id] = history.clock()
        live.append(entry_id)
        again = live[rng.integers(len(live))]
        index.add(again, again, vectors[again])
        if len(live) > 300:
            gone = [live.pop(rng.integers(len(live))) for _ in range(40)]
            now = history.clock()
            history.removing.update(dict.fromkeys(gone, now))
            index.remove(gone)
            now = history.clock()
            history.removed.update(dict.fromkeys(gone, now))


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Have threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize("flat_limit", [ALL, 250])
def test_every_search_sees_what_was_done_before_it(flat_limit: int) -> None:
    if flat_limit != ALL:
        pytest.importorskip("faiss")
    vectors = units(np.random.default_rng(9), 3_000, 16)
    index = PartitionIndex(16, flat_limit=flat_limit)
    history = History()
    results: list[tuple[int, int, set[int]]] = []
    errors: list[BaseException] = []
    stop = threading.Event()
    graphs: set[Graph] = set()

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
                stop.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def read(k: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            query = vectors[rng.integers(len(vectors))]
            size = len(index)
            began = history.clock()
            found = index.search(query, k)
            ended = history.clock()
            ids = found.entry_ids.tolist()
            assert len(set(ids)) == len(ids)
            assert found.class_ids.tolist() == ids
            assert np.array_equal(found.vectors, vectors[ids])
            assert np.all(np.diff(found.similarities) <= 0)
            if k == ALL:
                results.append((began, ended, set(ids)))
            elif size >= k:
                assert len(ids) == k

    def maintain() -> None:
        while not stop.is_set():
            index.maintain()
            rows = index.graph_rows()
            if rows is not None:
                graphs.add(rows.graph)

    others = [guarded(partial(read, *job)) for job in ((ALL, 1), (ALL, 2), (5, 3))]
    others.append(guarded(maintain))
    writers = [
        guarded(
            partial(
                write,
                index,
                history,
                vectors,
                range(start, 2_000, 2),
                np.random.default_rng(start),
            )
        )
        for start in (0, 1)
    ]
    for thread in writers:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert errors == []
    assert len(results) > 50
    assert (len(graphs) > 1) == (flat_limit != ALL)
    for began, ended, found in results:
        history.check(began, ended, found)
