# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""vCache's exploration and what the policy does with labels."""

import gc
import threading
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.vectorq.budget import nearest
from vllm_vectorq.policy import NOTHING_NEAR, Decision, Evidence, Policy
from vllm_vectorq.policy_vcache import MAX_LABELS, VCachePolicy, exploration

PROBABILITIES = st.floats(0.0, 0.999)
DELTAS = st.floats(0.001, 0.999)
LABELS = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=80)
GOOD = [(0.95, True), (0.92, True), (0.9, True), (0.88, True), (0.7, False)]


def taught(
    labels: Sequence[tuple[float, bool]],
    policy: VCachePolicy | None = None,
    entry_id: int = 0,
) -> VCachePolicy:
    policy = VCachePolicy() if policy is None else policy
    for similarity, label in labels:
        policy.observe(entry_id, np.array([similarity], np.float32), label, 1.0)
    return policy


def decided(
    policy: VCachePolicy, similarity: float, delta: float = 0.02, uniform: float = 0.5
) -> Decision:
    return policy.decide(nearest(similarity), delta, uniform)


@pytest.mark.parametrize(
    ("bound", "delta", "tau"),
    [
        (0.0, 0.02, 0.98),
        (0.5, 0.02, 0.96),
        (0.9, 0.02, 0.8),
        (0.98, 0.02, 0.0),
        (0.75, 0.25, 0.0),
        (0.5, 0.25, 0.5),
        (0.9, 0.2, -1.0),
    ],
)
def test_exploration_is_one_minus_budget_over_doubt(
    bound: float, delta: float, tau: float
) -> None:
    assert exploration(bound, delta) == pytest.approx(tau, abs=1e-12)


@given(PROBABILITIES, DELTAS)
def test_exploration_spends_exactly_the_budget(bound: float, delta: float) -> None:
    tau = exploration(bound, delta)
    assert tau <= 1.0 - delta
    if tau > 0.0:
        assert tau + (1.0 - tau) * bound == pytest.approx(1.0 - delta)
    else:
        assert bound >= 1.0 - delta - 1e-12


@given(PROBABILITIES, PROBABILITIES, DELTAS, DELTAS)
def test_exploration_falls_with_the_bound_and_with_the_budget(
    one: float, other: float, delta: float, larger: float
) -> None:
    low, high = sorted((one, other))
    small, large = sorted((delta, larger))
    assert exploration(high, small) <= exploration(low, small)
    assert exploration(low, large) <= exploration(low, small)


@settings(max_examples=40, deadline=None)
@given(LABELS, st.floats(0.0, 1.0), st.floats(0.0, 1.0), DELTAS, DELTAS)
def test_propensity_falls_with_similarity_and_budget(
    labels: list[tuple[float, bool]], one: float, other: float, a: float, b: float
) -> None:
    policy = taught(labels)
    low, high = sorted((one, other))
    small, large = sorted((a, b))
    far = decided(policy, low, small)
    assert decided(policy, high, small).propensity <= far.propensity
    assert decided(policy, low, large).propensity <= far.propensity
    assert 0.01 <= far.propensity <= 1.0
    assert 0.0 <= far.probability < 1.0


@settings(max_examples=40, deadline=None)
@given(LABELS, st.floats(0.0, 1.0), DELTAS, st.floats(0.0, 0.999))
def test_request_is_explored_with_its_propensity(
    labels: list[tuple[float, bool]], similarity: float, delta: float, uniform: float
) -> None:
    decision = decided(taught(labels), similarity, delta, uniform)
    assert decision.serve == (uniform >= decision.propensity)


def test_probability_and_propensity_satisfy_the_budget_equation() -> None:
    decision = decided(taught(GOOD * 4), 0.93)
    assert decision.propensity == pytest.approx(
        1.0 - 0.02 / (1.0 - decision.probability)
    )


def test_unknown_entry_is_explored_for_certain() -> None:
    decision = decided(VCachePolicy(), 1.0, uniform=0.999999)
    assert (decision.serve, decision.candidate) == (False, 0)
    assert (decision.probability, decision.propensity) == (0.0, 1.0)
    assert decision.features.tolist() == [1.0]


@pytest.mark.parametrize(("num_labels", "propensity"), [(3, 1.0), (4, None)])
def test_entry_needs_its_least_number_of_labels(
    num_labels: int, propensity: float | None
) -> None:
    decision = decided(taught(GOOD[:num_labels]), 0.95)
    assert (decision.propensity == 1.0) is (propensity == 1.0)


def test_good_record_is_served_and_a_bad_one_is_not() -> None:
    good, bad = taught(GOOD * 12), taught([(0.9, False)] * 20)
    assert decided(good, 0.99, delta=0.05).propensity < 0.1
    assert decided(bad, 0.95, delta=0.05).propensity > 0.9


def test_labels_of_one_entry_say_nothing_about_another() -> None:
    policy = taught(GOOD * 8, entry_id=5)
    assert policy.decide(nearest(0.99, 5), 0.05, 0.5).propensity < 1.0
    assert policy.decide(nearest(0.99, 6), 0.05, 0.5).propensity == 1.0


def test_share_of_requests_is_explored_even_where_the_budget_needs_none() -> None:
    assert decided(taught(GOOD * 12), 1.0, delta=0.5).propensity == 0.01
    never = taught(GOOD * 12, VCachePolicy(min_exploration=0.0))
    assert decided(never, 1.0, delta=0.5, uniform=0.0).serve


def test_floor_forbids_what_the_budget_alone_allows() -> None:
    labels = [(0.9, True), (0.9, False)] * 10
    plain = decided(taught(labels), 0.92, uniform=0.999)
    floored = decided(taught(labels, VCachePolicy(hit_floor=0.9)), 0.92, uniform=0.999)
    assert plain.serve
    assert not floored.serve
    assert floored.propensity == 1.0
    assert floored.probability == plain.probability > 0.0


def test_floor_at_the_bound_still_serves() -> None:
    bound = decided(taught(GOOD * 8), 0.95).probability
    policy = taught(GOOD * 8, VCachePolicy(hit_floor=bound))
    assert decided(policy, 0.95).propensity < 1.0


def near(similarities: Sequence[float], conflicts: Sequence[bool]) -> Evidence:
    k = len(similarities)
    return Evidence(
        vector=np.zeros(2, np.float32),
        entry_ids=np.arange(k, dtype=np.int64),
        class_ids=np.arange(k, dtype=np.int64),
        similarities=np.array(similarities, np.float32),
        vectors=np.zeros((k, 2), np.float32),
        conflicts=np.array(conflicts, np.bool_),
        lexical=np.ones(k, np.float32),
        size=k,
    )


def test_forbidden_entry_is_passed_over() -> None:
    policy = taught(GOOD * 12, entry_id=1)
    decision = policy.decide(near([0.99, 0.97], [True, False]), 0.05, 0.999)
    assert (decision.serve, decision.candidate) == (True, 1)
    assert decision.features.tolist() == [np.float32(0.97)]


@pytest.mark.parametrize("conflicts", [[], [True], [True, True]])
def test_nothing_near_asks_the_model_without_a_candidate(
    conflicts: list[bool],
) -> None:
    found = near([0.99] * len(conflicts), conflicts)
    assert VCachePolicy().decide(found, 0.05, 0.999) is NOTHING_NEAR


def test_similarity_that_is_no_number_is_not_believed() -> None:
    decision = decided(taught(GOOD * 12), float("nan"))
    assert decision.probability == 0.0


def test_only_the_newest_labels_count() -> None:
    old = taught([(0.95, False)] * 30 + GOOD * 16)
    fresh = taught((GOOD * 16)[-MAX_LABELS:])
    assert decided(old, 0.95).propensity == decided(fresh, 0.95).propensity < 1.0


def test_labels_of_another_policy_teach_nothing() -> None:
    policy = VCachePolicy()
    policy.observe(0, np.zeros(12, np.float32), True, 1.0)
    policy.observe(0, np.zeros(0, np.float32), True, 1.0)
    assert policy.num_known == 0


def test_forgotten_entry_is_unknown_again_and_others_stay() -> None:
    policy = taught(GOOD, taught(GOOD), entry_id=1)
    policy.forget([0, 77])
    assert policy.num_known == 1
    assert policy.decide(nearest(0.95, 0), 0.02, 0.5).propensity == 1.0
    assert policy.decide(nearest(0.95, 1), 0.02, 0.5).propensity < 1.0


def test_memory_of_an_entry_is_small_and_returned() -> None:
    policy = taught(GOOD)
    gc.collect()
    tracemalloc.start()
    try:
        for entry_id in range(1, 101):
            taught(GOOD * 20, policy, entry_id)
        gc.collect()
        full = tracemalloc.get_traced_memory()[0]
        policy.forget(range(1, 101))
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert full < 100 * 1200
    # The table of a dict does not shrink; everything else is gone.
    assert left < full / 2
    assert policy.num_known == 1


def test_deciding_while_learning_sees_whole_states() -> None:
    policy = VCachePolicy()
    labels = [(0.5 + (i % 50) / 100, i % 3 > 0) for i in range(300)]
    failures: list[BaseException] = []
    done = threading.Event()

    def decide() -> None:
        try:
            while not done.is_set():
                found = [decided(policy, s / 100).propensity for s in range(30, 101)]
                assert all(0.0 < p <= 1.0 for p in found)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=decide) for _ in range(2)]
    writers = [
        threading.Thread(target=taught, args=(labels[i::3], policy)) for i in range(3)
    ]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures


def test_no_label_is_lost_between_threads() -> None:
    policy = VCachePolicy()
    writers = [
        threading.Thread(target=taught, args=([(0.9, True)] * 10, policy))
        for _ in range(6)
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    alone = taught([(0.9, True)] * 60)
    assert decided(policy, 0.9).probability == decided(alone, 0.9).probability
    assert len(policy._learned[0].labels) == 2 * 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hit_floor": 1.0}, "hit_floor 1.0"),
        ({"hit_floor": -0.1}, "hit_floor -0.1"),
        ({"hit_floor": float("nan")}, "hit_floor nan"),
        ({"min_exploration": 1.5}, "min_exploration 1.5"),
        ({"min_labels": 0}, "min_labels 0"),
        ({"min_labels": 65}, "min_labels 65"),
    ],
)
def test_argument_out_of_range_is_refused(
    options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=f"asked for {message}.*give a number"):
        VCachePolicy(**options)  # type: ignore[arg-type]


def test_equivalent_requests_do_not_become_entries() -> None:
    policy: Policy = VCachePolicy()
    assert not policy.indexes(NOTHING_NEAR, True)
    assert policy.indexes(NOTHING_NEAR, False)
    assert policy.name == "vcache"
