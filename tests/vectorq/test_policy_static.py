# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The baselines that learn nothing."""

from collections.abc import Sequence

import numpy as np
import pytest

from vllm_vectorq.policy import NOTHING_NEAR, Evidence, Policy
from vllm_vectorq.policy_static import ExactPolicy, StaticPolicy, nearest_allowed


def evidence(similarities: Sequence[float], conflicts: Sequence[bool]) -> Evidence:
    k = len(similarities)
    return Evidence(
        vector=np.zeros(4, dtype=np.float32),
        entry_ids=np.arange(10, 10 + k, dtype=np.int64),
        class_ids=np.arange(k, dtype=np.int64),
        similarities=np.array(similarities, dtype=np.float32),
        vectors=np.zeros((k, 4), dtype=np.float32),
        conflicts=np.array(conflicts, dtype=np.bool_),
        lexical=np.ones(k, dtype=np.float32),
        size=k,
    )


@pytest.mark.parametrize(
    ("conflicts", "index"),
    [
        ([], None),
        ([False], 0),
        ([True], None),
        ([True, False], 1),
        ([True, True, False, False], 2),
        ([False, True], 0),
        ([True, True], None),
    ],
)
def test_nearest_entry_without_conflict_is_the_candidate(
    conflicts: list[bool], index: int | None
) -> None:
    near = evidence([0.9] * len(conflicts), conflicts)
    assert nearest_allowed(near) == index


@pytest.mark.parametrize(
    ("similarity", "serve"), [(0.75, True), (0.7499, False), (1.0, True), (-0.2, False)]
)
def test_static_serves_from_its_threshold_on(similarity: float, serve: bool) -> None:
    policy: Policy = StaticPolicy(0.75)
    decision = policy.decide(evidence([similarity], [False]), 0.02, 0.5)
    assert decision.serve is serve
    assert decision.candidate == 0
    assert decision.propensity == (0.0 if serve else 1.0)
    assert decision.features.tolist() == [np.float32(similarity)]


def test_static_passes_over_forbidden_entries() -> None:
    decision = StaticPolicy(0.8).decide(
        evidence([0.99, 0.85, 0.5], [True, False, False]), 0.02, 0.5
    )
    assert (decision.serve, decision.candidate) == (True, 1)
    assert decision.probability == pytest.approx(0.85)
    below = StaticPolicy(0.9).decide(evidence([0.99, 0.85], [True, False]), 0.02, 0.5)
    assert (below.serve, below.candidate) == (False, 1)


@pytest.mark.parametrize("conflicts", [[], [True, True]])
def test_static_asks_the_model_when_nothing_may_answer(conflicts: list[bool]) -> None:
    near = evidence([0.99] * len(conflicts), conflicts)
    assert StaticPolicy(0.0).decide(near, 0.02, 0.5) is NOTHING_NEAR


def test_static_does_not_serve_a_similarity_that_is_no_number() -> None:
    decision = StaticPolicy(-1.0).decide(evidence([np.nan], [False]), 0.02, 0.5)
    assert not decision.serve


def test_static_features_do_not_keep_the_evidence_alive() -> None:
    near = evidence([0.9, 0.8], [False, False])
    features = StaticPolicy(0.5).decide(near, 0.02, 0.5).features
    assert features.base is None


@pytest.mark.parametrize("inserts", [True, False])
def test_static_inserts_equivalent_requests_unless_told_otherwise(
    inserts: bool,
) -> None:
    assert StaticPolicy(0.9).indexes(NOTHING_NEAR, True)
    assert StaticPolicy(0.9, inserts).indexes(NOTHING_NEAR, True) is inserts


@pytest.mark.parametrize("threshold", [1.01, -1.01, float("nan"), float("inf")])
def test_static_refuses_a_threshold_that_is_no_cosine(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold .* no cosine; give a number"):
        StaticPolicy(threshold)


def test_exact_never_serves_a_neighbour_and_has_no_candidate() -> None:
    policy: Policy = ExactPolicy()
    decision = policy.decide(evidence([1.0], [False]), 0.5, 0.999)
    assert decision is NOTHING_NEAR
    assert not policy.indexes(NOTHING_NEAR, False)


@pytest.mark.parametrize("policy", [StaticPolicy(0.8), ExactPolicy()])
def test_labels_change_nothing(policy: Policy) -> None:
    near = evidence([0.9], [False])
    before = policy.decide(near, 0.02, 0.5)
    for _ in range(20):
        policy.observe(10, before.features, False, 1.0)
        policy.learn(1, near.vector, 0)
    policy.forget([10])
    after = policy.decide(near, 0.02, 0.5)
    assert (after.serve, after.propensity) == (before.serve, before.propensity)
