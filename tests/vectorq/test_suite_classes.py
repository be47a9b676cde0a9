# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The sample of entries is bounded and fair; tables of classes keep step with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectorq.synthetic_streams import unit
from vllm_vectorq.policy import Evidence
from vllm_vectorq.record import Vector
from vllm_vectorq.suite_classes import AnswerClasses
from vllm_vectorq.suite_projection import Projection, fit_projection
from vllm_vectorq.suite_sample import EntrySample

VECTORS = unit(np.random.default_rng(0).standard_normal((200, 8))).astype(np.float32)
CLASSES = np.arange(200) % 9


def filled(count: int, capacity: int = 200, seed: int = 0) -> EntrySample:
    sample = EntrySample(capacity, seed)
    for i in range(count):
        sample.add(i, VECTORS[i % 200], int(CLASSES[i % 200]))
    return sample


def held(sample: EntrySample) -> dict[int, tuple[int, list[float]]]:
    """Class and vector of each entry in the sample."""
    rows = zip(
        sample.entry_ids,
        sample.class_ids.tolist(),
        sample.vectors.tolist(),
        strict=True,
    )
    return {entry_id: (class_id, vector) for entry_id, class_id, vector in rows}


# An entry that comes, or ids that go.
STEPS = st.lists(
    st.one_of(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5)),
    max_size=150,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 30), st.integers(0, 5))
def test_sample_holds_what_it_says_it_took_and_nothing_else(
    steps: list[int | list[int]], capacity: int, seed: int
) -> None:
    sample = EntrySample(capacity, seed)
    model: dict[int, tuple[int, list[float]]] = {}
    for step in steps:
        if isinstance(step, int):
            item = (int(CLASSES[step]), VECTORS[step].tolist())
            gone = sample.add(step, VECTORS[step], item[0])
            if gone is None:
                assert step in model or len(model) == capacity
            else:
                for entry_id, class_id in gone:
                    assert model.pop(entry_id)[0] == class_id
                model[step] = item
        else:
            there = [i for i in dict.fromkeys(step) if i in model]
            expected = [(i, model.pop(i)[0]) for i in there]
            assert sample.remove(step) == expected
        assert held(sample) == model
        assert len(sample) == len(model) <= capacity


def test_sample_below_its_capacity_takes_all() -> None:
    assert sorted(filled(150).entry_ids) == list(range(150))


def test_every_entry_is_as_likely_to_be_in_the_sample() -> None:
    runs, offered, capacity = 300, 60, 15
    taken = np.zeros(offered)
    for seed in range(runs):
        taken[filled(offered, capacity, seed).entry_ids] += 1
    expected = runs * capacity / offered
    spread = (expected * (1.0 - capacity / offered)) ** 0.5
    assert np.abs(taken - expected).max() < 4.5 * spread


def test_full_sample_takes_new_entries_after_some_went() -> None:
    sample = filled(200, capacity=20)
    gone = list(sample.entry_ids[:5])
    sample.remove(gone)
    assert len(sample) == 15
    for i in range(1_000, 1_005):
        assert sample.add(i, VECTORS[0], 0) == []
    assert len(sample) == 20


def test_ids_that_were_never_offered_do_not_change_the_chances() -> None:
    runs, capacity = 200, 10

    def newest_taken(unknown: range) -> int:
        count = 0
        for seed in range(runs):
            sample = filled(100, capacity, seed)
            sample.remove(unknown)
            count += sample.add(500, VECTORS[0], 0) is not None
        return count

    usual = newest_taken(range(0))
    assert newest_taken(range(900, 1_000)) <= usual + 4.0 * usual**0.5


def fitted() -> tuple[EntrySample, Projection]:
    sample = filled(180)
    return sample, fit_projection(sample.vectors, sample.class_ids, rank=4)


def evidence(vector: Vector, ids: list[int], size: int = 200) -> Evidence:
    found = VECTORS[ids]
    return Evidence(
        vector=vector,
        entry_ids=np.array(ids, np.int64),
        class_ids=CLASSES[ids],
        similarities=found @ vector,
        vectors=found,
        conflicts=np.zeros(len(ids), np.bool_),
        lexical=np.ones(len(ids), np.float32),
        size=size,
    )


def test_without_projection_vectors_stay_as_they_are() -> None:
    classes = AnswerClasses()
    seen = evidence(VECTORS[0], [3, 1, 2])
    vector, cosines = classes.projected(seen)
    assert vector is seen.vector
    assert cosines == seen.similarities.tolist()


def test_known_and_unknown_neighbours_are_projected_alike() -> None:
    sample, projection = fitted()
    classes = AnswerClasses.of(sample, projection)
    ids = [5, 190, 17, 199]  # the sample ends at 179
    vector, cosines = classes.projected(evidence(VECTORS[0], ids))
    rows = projection.apply(VECTORS[ids])
    assert vector == pytest.approx(projection.apply(VECTORS[0]))
    assert cosines == pytest.approx((rows @ vector).tolist(), abs=1e-6)
    classes.remove(5, int(CLASSES[5]))
    _, after = classes.projected(evidence(VECTORS[0], ids))
    assert after == pytest.approx(cosines, abs=1e-6)


def test_entries_one_by_one_are_as_all_at_once() -> None:
    sample, projection = fitted()
    together, alone = AnswerClasses.of(sample, projection), AnswerClasses(projection)
    for i in range(180):
        alone.add(i, VECTORS[i], int(CLASSES[i]))
    vector = projection.apply(VECTORS[199])
    for class_id in range(9):
        assert alone.towards(class_id, vector) == pytest.approx(
            together.towards(class_id, vector), abs=1e-5
        )
        assert alone.size(class_id, 200) == together.size(class_id, 200)


def test_centre_points_at_the_mean_of_its_class() -> None:
    classes = AnswerClasses()
    members = [i for i in range(50) if CLASSES[i] == 4]
    for i in range(50):
        classes.add(i, VECTORS[i], int(CLASSES[i]))
    centre = unit(VECTORS[members].sum(axis=0).astype(np.float64))
    assert classes.towards(4, VECTORS[77]) == pytest.approx(
        float(centre @ VECTORS[77]), abs=1e-5
    )
    assert classes.towards(4_444, VECTORS[77]) == 0.0


def test_vectors_that_cancel_out_have_no_centre() -> None:
    classes = AnswerClasses()
    classes.add(0, VECTORS[0], 1)
    classes.add(1, -VECTORS[0], 1)
    assert classes.towards(1, VECTORS[0]) == 0.0


def test_size_of_a_class_counts_its_entries_and_is_scaled_up() -> None:
    classes = AnswerClasses()
    for i in range(6):
        classes.add(i, VECTORS[i], i % 2)
    assert classes.size(0, 6) == 3.0
    assert classes.size(99, 6) == 1.0
    sample, projection = fitted()
    sampled = AnswerClasses.of(sample, projection)
    assert sampled.size(0, 1_800) == pytest.approx(10.0 * sampled.size(0, 180))


def tables(classes: AnswerClasses) -> list[int]:
    return [
        len(table)
        for table in (classes._rows, classes._sums, classes._centres, classes._sizes)
    ]


@pytest.mark.parametrize("projected", [False, True])
def test_removed_entries_leave_nothing_behind(projected: bool) -> None:
    sample, projection = fitted()
    classes = AnswerClasses.of(sample, projection) if projected else AnswerClasses()
    if not projected:
        for i in range(180):
            classes.add(i, VECTORS[i], int(CLASSES[i]))
    for i in range(179):
        classes.remove(i, int(CLASSES[i]))
    last = int(CLASSES[179])
    assert classes.size(last, 1) == 1.0
    assert classes.towards(last, classes.projected(evidence(VECTORS[0], [179]))[0])
    classes.remove(179, last)
    assert tables(classes) == [0, 0, 0, 0]


def test_removing_what_is_not_there_does_nothing() -> None:
    classes = AnswerClasses()
    classes.add(0, VECTORS[0], 1)
    classes.remove(7, 3)
    assert tables(classes) == [0, 1, 1, 1]


def test_projected_rows_do_not_keep_the_whole_sample_in_memory() -> None:
    classes = AnswerClasses.of(*fitted())
    assert all(row.base is None for row in classes._rows.values())
