# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The index of a partition against a model of it, alone and with other threads."""

import itertools
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.index_graph import Graph
from vllm_vectorq.index_view import Neighbours

Vectors = NDArray[np.float32]

DIMENSIONS = 8
ALL = 1_000_000


def units(rng: np.random.Generator, count: int, dimensions: int) -> Vectors:
    vectors = rng.standard_normal((count, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def clustered(
    rng: np.random.Generator, count: int, dimensions: int, clusters: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """Vectors with a cosine of about 0.8 to their centre, and their cluster."""
    centres = units(rng, clusters, dimensions)
    of = rng.integers(0, clusters, count)
    vectors = centres[of] + 0.75 * units(rng, count, dimensions)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), of


def nearest_ids(
    ids: NDArray[np.int64], vectors: Vectors, query: Vectors, k: int
) -> list[int]:
    """Exact answer, ties by id."""
    cosines = vectors.astype(np.float64) @ query.astype(np.float64)
    order = np.lexsort((ids, -cosines.astype(np.float32)))[:k]
    return [int(i) for i in ids[order]]


# Few vectors, so that many entries are equally near.
PALETTE = units(np.random.default_rng(7), 6, DIMENSIONS)

Step = tuple[str, list[int], int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "reclass", "maintain"]),
        st.lists(st.integers(0, 40), min_size=1, max_size=6),
        st.integers(0, len(PALETTE) - 1),
    ),
    max_size=60,
)


class Twin:
    """An index and, beside it, a dictionary that has been through the same."""

    def __init__(self, flat_limit: int) -> None:
        self.index = PartitionIndex(DIMENSIONS, flat_limit=flat_limit)
        self.entries: dict[int, tuple[int, int]] = {}

    def take(self, step: Step) -> None:
        name, ids, number = step
        if name == "add":
            for entry_id in ids:
                self.index.add(entry_id, entry_id % 3, PALETTE[number])
                self.entries[entry_id] = (entry_id % 3, number)
        elif name == "remove":
            self.index.remove(ids)
            for entry_id in ids:
                self.entries.pop(entry_id, None)
        elif name == "reclass":
            self.index.reclass(ids, 10 + number)
            for entry_id in set(ids) & set(self.entries):
                self.entries[entry_id] = (10 + number, self.entries[entry_id][1])
        else:
            self.index.maintain()

    def check(self, found: Neighbours, query: Vectors, k: int) -> None:
        """What holds for exact and approximate results alike."""
        ids = found.entry_ids.tolist()
        assert len(ids) == len(set(ids)) == min(k, len(self.entries))
        assert len(self.index) == len(self.entries)
        for row, entry_id in enumerate(ids):
            class_id, number = self.entries[entry_id]
            assert found.class_ids[row] == class_id
            assert np.array_equal(found.vectors[row], PALETTE[number])
        cosines = found.vectors @ query
        assert np.allclose(found.similarities, cosines, atol=1e-6)
        places = list(zip(-found.similarities, ids, strict=True))
        assert places == sorted(places)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(0, len(PALETTE) - 1), st.integers(1, 12))
def test_a_flat_index_finds_exactly_the_nearest(
    steps: list[Step], number: int, k: int
) -> None:
    twin = Twin(flat_limit=ALL)
    for step in steps:
        twin.take(step)
    query = PALETTE[number]
    found = twin.index.search(query, k)
    twin.check(found, query, k)
    ids = np.array(list(twin.entries), dtype=np.int64)
    vectors = PALETTE[[number for _, number in twin.entries.values()]]
    assert found.entry_ids.tolist() == nearest_ids(ids, vectors, query, k)


@settings(max_examples=100, deadline=None)
@given(STEPS, st.integers(0, len(PALETTE) - 1), st.integers(1, 50))
def test_an_index_with_a_graph_finds_live_entries_only_and_as_many_as_asked(
    steps: list[Step], number: int, k: int
) -> None:
    pytest.importorskip("faiss")
    twin = Twin(flat_limit=5)
    for step in steps:
        twin.take(step)
        twin.check(twin.index.search(PALETTE[number], k), PALETTE[number], k)


def test_an_empty_index_finds_nothing() -> None:
    found = PartitionIndex(DIMENSIONS).search(PALETTE[0], 3)
    assert found.entry_ids.shape == found.similarities.shape == (0,)
    assert found.vectors.shape == (0, DIMENSIONS)
    assert (found.entry_ids.dtype, found.similarities.dtype) == (np.int64, np.float32)


def test_the_lowest_ids_win_among_many_equally_near() -> None:
    index = PartitionIndex(DIMENSIONS)
    for entry_id in np.random.default_rng(0).permutation(500):
        index.add(int(entry_id), 0, PALETTE[entry_id % 2])
    assert index.search(PALETTE[1], 4).entry_ids.tolist() == [1, 3, 5, 7]


def test_a_result_stays_what_it_is_when_the_index_changes() -> None:
    index = PartitionIndex(DIMENSIONS)
    index.add(1, 5, PALETTE[0])
    found = index.search(PALETTE[0], 1)
    index.add(1, 6, PALETTE[1])
    index.reclass([1], 7)
    assert found.class_ids.tolist() == [5]
    assert np.array_equal(found.vectors[0], PALETTE[0])


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (np.ones(DIMENSIONS, np.float32), "length is not 1"),
        (np.full(DIMENSIONS, np.nan, np.float32), "length is not 1"),
        (np.ones(1, np.float32), r"shape \(1,\)"),
        (PALETTE, r"shape \(6, 8\)"),
    ],
)
def test_only_unit_vectors_of_the_right_length_are_taken(
    vector: Vectors, says: str
) -> None:
    index = PartitionIndex(DIMENSIONS)
    with pytest.raises(ValueError, match=says):
        index.add(1, 1, vector)
    with pytest.raises(ValueError, match=says):
        index.search(vector, 1)
    assert len(index) == 0


def test_a_partition_of_three_entries_costs_little_more_than_its_vectors() -> None:
    vectors = units(np.random.default_rng(0), 3, 384)
    tracemalloc.start()
    indexes = []
    for _ in range(200):
        index = PartitionIndex(384)
        for entry_id, vector in enumerate(vectors):
            index.add(entry_id, 0, vector)
        indexes.append(index)
    each = tracemalloc.get_traced_memory()[0] / len(indexes)
    tracemalloc.stop()
    assert each < 3 * 384 * 4 + 4096
    assert indexes[0].memory_bytes <= each


def test_dead_rows_are_given_back_when_they_are_a_fifth() -> None:
    index = PartitionIndex(DIMENSIONS)
    for entry_id in range(100):
        index.add(entry_id, 0, PALETTE[entry_id % 6])
    full = index.memory_bytes
    index.remove(range(20))
    index.maintain()
    assert index.memory_bytes == full
    index.remove(range(30))
    index.maintain()
    assert index.memory_bytes < 0.75 * full
    assert index.search(PALETTE[0], ALL).entry_ids.min() == 30


# ---- with a graph


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the graphs made from nothing."""
    pytest.importorskip("faiss")
    sizes: list[int] = []
    build = Graph.build

    def counted(vectors: Vectors) -> Graph:
        sizes.append(len(vectors))
        return build(vectors)

    monkeypatch.setattr(Graph, "build", counted)
    return sizes


def large_index(vectors: Vectors, flat_limit: int = 200) -> PartitionIndex:
    index = PartitionIndex(vectors.shape[1], flat_limit=flat_limit)
    for entry_id, vector in enumerate(vectors):
        index.add(entry_id, entry_id % 5, vector)
    index.maintain()
    assert index.graph_rows() is not None
    return index


def test_nine_of_ten_neighbours_are_found_and_more() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(11)
    vectors, _ = clustered(rng, 12_000, 384, clusters=300)
    index = large_index(vectors[:10_000], flat_limit=1_000)
    index.remove(range(0, 10_000, 10))
    ids = np.setdiff1d(np.arange(10_000), np.arange(0, 10_000, 10))
    found = expected = 0
    for query in vectors[10_000:10_300]:
        exact = nearest_ids(ids, vectors[ids], query, 10)
        found += len(set(exact) & set(index.search(query, 10).entry_ids.tolist()))
        expected += 10
    assert found / expected >= 0.97


def test_a_repeated_text_finds_itself_in_a_graph() -> None:
    pytest.importorskip("faiss")
    vectors, _ = clustered(np.random.default_rng(3), 3_000, 64, clusters=100)
    index = large_index(vectors)
    own = [index.search(v, 1).entry_ids[0] == i for i, v in enumerate(vectors)]
    assert np.mean(own) > 0.999


def test_what_is_near_is_found_though_all_that_was_nearer_is_gone() -> None:
    pytest.importorskip("faiss")
    vectors, of = clustered(np.random.default_rng(5), 2_000, 32, clusters=8)
    index = large_index(vectors)
    gone = np.flatnonzero(of == of[0])
    index.remove(gone.tolist())
    left = np.flatnonzero(of != of[0])
    found = index.search(vectors[0], 10).entry_ids.tolist()
    assert found == nearest_ids(left, vectors[left], vectors[0], 10)


def test_a_graph_is_made_once_and_then_extended(builds: list[int]) -> None:
    vectors = units(np.random.default_rng(1), 400, DIMENSIONS)
    index = large_index(vectors[:300])
    for entry_id in range(300, 400):
        index.add(entry_id, 0, vectors[entry_id])
    index.maintain()
    rows = index.graph_rows()
    assert rows is not None
    assert rows.entry_ids.tolist() == list(range(400))
    assert builds == [300]
    index.maintain()
    assert index.graph_rows().graph is rows.graph  # type: ignore[union-attr]


def test_a_graph_is_made_anew_without_the_dead_and_given_up_when_small(
    builds: list[int],
) -> None:
    vectors = units(np.random.default_rng(1), 400, DIMENSIONS)
    index = large_index(vectors)
    index.remove(range(100))
    index.maintain()
    assert builds == [400, 300]
    index.remove(range(250))
    index.maintain()
    assert index.graph_rows() is None
    assert builds == [400, 300]
    assert index.search(vectors[0], ALL).entry_ids.min() == 250


def test_nothing_done_during_a_rebuild_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("faiss")
    began, go_on = threading.Event(), threading.Event()
    build = Graph.build

    def slow(vectors: Vectors) -> Graph:
        began.set()
        assert go_on.wait(30)
        return build(vectors)

    monkeypatch.setattr(Graph, "build", slow)
    vectors = units(np.random.default_rng(2), 400, DIMENSIONS)
    index = PartitionIndex(DIMENSIONS, flat_limit=200)
    for entry_id in range(300):
        index.add(entry_id, 0, vectors[entry_id])
    thread = threading.Thread(target=index.maintain)
    thread.start()
    assert began.wait(30)
    for entry_id in range(300, 350):
        index.add(entry_id, 1, vectors[entry_id])
    index.remove([0, 1, 300])
    index.reclass([2, 301], 2)
    index.add(3, 3, vectors[399])
    during = index.search(vectors[5], ALL)
    go_on.set()
    thread.join()
    assert index.graph_rows() is not None
    after = index.search(vectors[5], ALL)
    for found in (during, after):
        classes = dict(zip(found.entry_ids, found.class_ids, strict=True))
        assert set(classes) == set(range(350)) - {0, 1, 300}
        assert {classes[2], classes[301]} == {2}
        assert (classes[3], classes[4], classes[302]) == (3, 0, 1)
        row = found.entry_ids.tolist().index(3)
        assert np.array_equal(found.vectors[row], vectors[399])


def test_making_a_graph_leaves_the_thread_settings_of_others_alone() -> None:
    faiss = pytest.importorskip("faiss")
    own: list[int] = []
    others: list[int] = []
    looked, made = threading.Event(), threading.Event()

    def other() -> None:
        others.append(faiss.omp_get_max_threads())
        looked.set()
        assert made.wait(30)
        others.append(faiss.omp_get_max_threads())

    def maintain() -> None:
        faiss.omp_set_num_threads(3)
        large_index(units(np.random.default_rng(0), 300, DIMENSIONS))
        own.append(faiss.omp_get_max_threads())

    here = faiss.omp_get_max_threads()
    threads = [threading.Thread(target=other), threading.Thread(target=maintain)]
    threads[0].start()
    assert looked.wait(30)
    threads[1].start()
    threads[1].join()
    made.set()
    threads[0].join()
    assert own == [3]
    assert others[0] == others[1]
    assert faiss.omp_get_max_threads() == here


# ---- with other threads


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
