# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Regions of the reconstructed first version."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.vectorq.budget import nearest
from vllm_vectorq.policy import NOTHING_NEAR, Decision, Policy
from vllm_vectorq.policy_vectorq_v1 import THRESHOLDS, VectorQV1Policy

Labels = Sequence[tuple[float, bool]]
LABELS = st.lists(
    st.tuples(st.floats(0.0, 1.0, width=32), st.booleans()), min_size=2, max_size=40
)
SIMILARITIES = st.floats(0.0, 1.0, width=32)


def taught(labels: Labels, policy: VectorQV1Policy | None = None) -> VectorQV1Policy:
    policy = VectorQV1Policy() if policy is None else policy
    for similarity, label in labels:
        policy.observe(0, np.array([similarity], np.float32), label, 1.0)
    return policy


def decided(
    policy: VectorQV1Policy, similarity: float, uniform: float = 0.5
) -> Decision:
    return policy.decide(nearest(similarity), 0.02, uniform)


def reference(labels: Labels, similarity: float, slope: float = 64.0) -> float:
    """Posterior mean of the sigmoid, one threshold at a time."""

    def sigmoid(odds: float) -> float:
        return 1.0 / (1.0 + math.exp(-odds))

    weights = []
    for t in THRESHOLDS.tolist():
        weight = 1.0
        for s, label in labels:
            weight *= sigmoid((slope if label else -slope) * (s - t))
        weights.append(weight)
    right = [sigmoid(slope * (similarity - t)) for t in THRESHOLDS.tolist()]
    return math.fsum(map(math.prod, zip(weights, right, strict=True))) / math.fsum(
        weights
    )


SEPARATE = [(0.9, True), (0.85, True), (0.7, False), (0.6, False)]
OVERLAP = [(0.9, True), (0.75, True), (0.8, False), (0.6, False)]


@pytest.mark.parametrize(
    ("labels", "similarity", "propensity"),
    [
        (SEPARATE, 0.85, 0.0),
        (SEPARATE, 0.97, 0.0),
        (SEPARATE, 0.7, 1.0),
        (SEPARATE, 0.3, 1.0),
        (OVERLAP, 0.81, 0.0),
        (OVERLAP, 0.74, 1.0),
    ],
)
def test_chance_decides_nothing_outside_the_uncertain_region(
    labels: Labels, similarity: float, propensity: float
) -> None:
    policy = taught(labels)
    for uniform in (0.0, 0.999999):
        decision = decided(policy, similarity, uniform)
        assert decision.serve is (propensity == 0.0)
        assert decision.propensity == propensity


@settings(max_examples=60, deadline=None)
@given(LABELS, SIMILARITIES)
def test_regions_are_bounded_by_the_labels(labels: Labels, similarity: float) -> None:
    wrong = max((s for s, label in labels if not label), default=-math.inf)
    right = min((s for s, label in labels if label), default=math.inf)
    low, high = min(wrong, right), max(wrong, right)
    decision = decided(taught(labels), similarity)
    if similarity > high:
        assert (decision.serve, decision.propensity) == (True, 0.0)
    if similarity < low:
        assert (decision.serve, decision.propensity) == (False, 1.0)


@pytest.mark.parametrize("labels", [SEPARATE, OVERLAP, SEPARATE * 3])
@pytest.mark.parametrize("similarity", [0.72, 0.78, 0.8, 0.83])
def test_probability_is_the_posterior_mean(labels: Labels, similarity: float) -> None:
    found = decided(taught(labels), similarity).probability
    assert found == pytest.approx(reference(labels, similarity), abs=1e-4)


def test_within_the_region_chance_decides_by_the_probability() -> None:
    policy = taught(SEPARATE)
    right = decided(policy, 0.84).probability
    assert 0.8 < right < 1.0
    assert decided(policy, 0.84).propensity == pytest.approx(1.0 - right)
    assert not decided(policy, 0.84, uniform=1.0 - right - 1e-6).serve
    assert decided(policy, 0.84, uniform=1.0 - right + 1e-6).serve


def test_within_the_region_the_accuracy_target_is_a_floor() -> None:
    right = decided(taught(SEPARATE), 0.84).probability
    strict = taught(SEPARATE, VectorQV1Policy(accuracy_target=right + 0.01))
    assert not decided(strict, 0.84, uniform=0.999999).serve
    assert decided(strict, 0.84).propensity == 1.0


def test_larger_random_numbers_explore_more() -> None:
    policy = taught(SEPARATE, VectorQV1Policy(random_upper_bound=2.0))
    decision = decided(policy, 0.84)
    assert decision.propensity == pytest.approx(1.0 - decision.probability / 2.0)


@settings(max_examples=60, deadline=None)
@given(LABELS, SIMILARITIES, SIMILARITIES)
def test_probability_rises_with_similarity(
    labels: Labels, one: float, other: float
) -> None:
    policy = taught(labels)
    low, high = sorted((one, other))
    found = [decided(policy, s).probability for s in (low, high)]
    assert found[0] <= found[1] + 1e-5
    assert all(0.0 <= p <= 1.0 for p in found)


def test_labels_inside_the_region_narrow_it() -> None:
    labels = [(0.95, True), (0.6, False)]
    before = decided(taught(labels), 0.9).propensity
    after = decided(taught([*labels, (0.88, True)]), 0.9).propensity
    assert before > 0.0
    assert after == 0.0


def test_wrong_label_above_a_right_one_widens_the_region() -> None:
    assert decided(taught(SEPARATE), 0.86).propensity == 0.0
    widened = taught([*SEPARATE, (0.88, False)])
    assert decided(widened, 0.86).propensity > 0.0
    assert decided(widened, 0.89).propensity == 0.0


@pytest.mark.parametrize("num_labels", [0, 1])
def test_entry_with_too_few_labels_is_explored_for_certain(num_labels: int) -> None:
    decision = decided(taught(SEPARATE[:num_labels]), 1.0, uniform=0.999999)
    assert (decision.serve, decision.propensity) == (False, 1.0)


def test_many_contradicting_labels_stay_finite() -> None:
    policy = taught([(1.0, False), (0.0, True)] * 500)
    assert math.isfinite(decided(policy, 0.5).probability)


def test_similarity_that_is_no_number_is_neither_served_nor_learned() -> None:
    assert not decided(taught(SEPARATE), math.nan).serve
    assert taught([(math.nan, True)]).num_known == 0


def test_labels_of_another_policy_teach_nothing() -> None:
    policy = VectorQV1Policy()
    policy.observe(0, np.zeros(12, np.float32), True, 1.0)
    assert policy.num_known == 0


def test_forgotten_entry_is_unknown_again() -> None:
    policy = taught(SEPARATE)
    policy.forget([0, 5])
    assert policy.num_known == 0
    assert decided(policy, 1.0).propensity == 1.0


def test_nothing_near_asks_the_model_without_a_candidate() -> None:
    near = nearest(0.99)
    near.conflicts[0] = True
    assert taught(SEPARATE).decide(near, 0.02, 0.999) is NOTHING_NEAR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy_target": 1.1}, "accuracy_target 1.1"),
        ({"random_upper_bound": 0.0}, "random_upper_bound 0.0"),
        ({"slope": math.inf}, "slope inf"),
        ({"min_labels": 0}, "min_labels 0"),
    ],
)
def test_argument_out_of_range_is_refused(
    options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=f"asked for {message}.*give a number"):
        VectorQV1Policy(**options)  # type: ignore[arg-type]


def test_equivalent_requests_do_not_become_entries() -> None:
    policy: Policy = VectorQV1Policy()
    assert not policy.indexes(NOTHING_NEAR, True)
    assert policy.indexes(NOTHING_NEAR, False)
    assert policy.name == "vectorq_v1"
