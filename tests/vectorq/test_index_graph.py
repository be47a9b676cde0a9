# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The graph of a large index: what it finds, and when it is made."""

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.vectorq.index_cases import ALL, DIMENSIONS, Vectors, nearest_ids, units
from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.index_graph import Graph


def clustered(
    rng: np.random.Generator, count: int, dimensions: int, clusters: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """Vectors with a cosine of about 0.8 to their centre, and their cluster."""
    centres = units(rng, clusters, dimensions)
    of = rng.integers(0, clusters, count)
    vectors = centres[of] + 0.75 * units(rng, count, dimensions)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), of


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
