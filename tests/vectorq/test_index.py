# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The index of a partition against a model of it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectorq.index_cases import (
    ALL,
    DIMENSIONS,
    PALETTE,
    Vectors,
    nearest_ids,
    units,
)
from vllm_vectorq.index import PartitionIndex
from vllm_vectorq.index_view import Neighbours

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
