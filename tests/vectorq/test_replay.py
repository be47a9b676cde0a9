# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A replay shows the nearest entries, keeps count, and learning runs in step."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectorq.synthetic_streams import Watched, stream
from vllm_vectorq import guards
from vllm_vectorq.policy import Decision, Evidence
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.record import Vector
from vllm_vectorq.replay import GrowingIndex, replay

VECTORS, IDS = stream(0, 300)


class Scripted:
    """Serves every so many requests that have neighbours, or none.

    Args:
        every: Which are served; 0: none.
    """

    name = "scripted"

    def __init__(self, every: int) -> None:
        self.calls: list[str] = []
        self.labels: list[bool] = []
        self.propensities: list[float] = []
        self._every = every
        self._decided = 0

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        self.calls.append("decide")
        self._decided += 1
        serve = bool(self._every) and self._decided % self._every == 0
        return Decision(serve, 0, 0.75, 0.25, evidence.similarities[:1])

    def observe(
        self, entry_id: int, features: Vector, label: bool, propensity: float
    ) -> None:
        self.calls.append("observe")
        self.labels.append(label)
        self.propensities.append(propensity)

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        return label is not True

    def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
        self.calls.append("learn")

    def forget(self, entry_ids: Sequence[int]) -> None:
        raise AssertionError("nothing goes in a replay")

    def tune(self) -> None:
        self.calls.append("tune")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 100))
def test_evidence_is_the_nearest_rows_in_order(size: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((size, 4)).astype(np.float32)
    request = random.standard_normal(4).astype(np.float32)
    index = GrowingIndex(4, size)
    for i, row in enumerate(rows):
        index.add(row, i % 3)
    found = index.evidence(request, k)
    expected = sorted((rows @ request).tolist(), reverse=True)[:k]
    assert found.similarities.tolist() == pytest.approx(expected)
    assert found.size == len(index) == size
    assert np.array_equal(found.vectors, rows[found.entry_ids])
    assert np.array_equal(found.class_ids, found.entry_ids % 3)
    assert not found.conflicts.any()


def test_empty_index_has_no_neighbours() -> None:
    found = GrowingIndex(4, 10).evidence(np.ones(4, np.float32), 5)
    assert (found.size, len(found.entry_ids)) == (0, 0)


def test_hits_are_neither_learned_from_nor_added() -> None:
    policy = Scripted(every=3)
    outcome = replay(policy, VECTORS, IDS, 0.02, 0)
    decided = len(IDS) - 1  # the first request has no neighbours
    assert outcome.hit.sum() == decided // 3
    assert outcome.judge_calls == len(policy.labels) == decided - decided // 3
    assert policy.calls.count("tune") == len(IDS) - decided // 3
    wrong_labels = policy.labels.count(False)
    assert outcome.entries == policy.calls.count("learn") == 1 + wrong_labels
    assert set(policy.propensities) == {0.25}


def test_label_comes_before_the_entry_and_tuning_after_both() -> None:
    policy = Scripted(every=0)
    replay(policy, VECTORS[:2], np.array([1, 2]), 0.02, 0)
    steps = ["learn", "tune", "decide", "observe", "learn", "tune"]
    assert policy.calls == steps


def test_errors_are_hits_of_another_class() -> None:
    watched = Watched(Scripted(every=2))
    outcome = replay(watched, VECTORS, IDS, 0.02, 0)
    assert not (outcome.wrong & ~outcome.hit).any()
    for place, seen in enumerate(watched.seen, start=1):
        right = seen.evidence.class_ids[0] == IDS[place]
        assert outcome.wrong[place] == (outcome.hit[place] and not right)
    assert 0 < outcome.wrong.sum() < outcome.hit.sum()
    assert outcome.error_per_hit == pytest.approx(
        outcome.error_per_request / outcome.hit_rate
    )


def test_without_hits_no_hit_is_wrong() -> None:
    outcome = replay(Scripted(every=0), VECTORS, IDS, 0.02, 0)
    rates = (outcome.hit_rate, outcome.error_per_request, outcome.error_per_hit)
    assert rates == (0.0, 0.0, 0.0)
    assert outcome.probability[1:] == pytest.approx(0.75)
    assert outcome.probability[0] == 0.0


def test_noise_flips_its_share_of_the_labels_and_nothing_else() -> None:
    runs = {}
    for noise in (0.0, 0.2, 1.0):
        watched = Watched(Scripted(every=0))
        outcome = replay(watched, VECTORS, IDS, 0.02, 0, judge_noise=noise)
        truth = [
            seen.evidence.class_ids[0] == IDS[place]
            for place, seen in enumerate(watched.seen, start=1)
        ]
        labels = [label for _, _, label, _ in watched.labels]
        assert len(labels) == len(truth) == outcome.judge_calls
        runs[noise] = float(np.mean(np.array(labels) != np.array(truth)))
    assert runs[0.0] == 0.0
    assert runs[1.0] == 1.0
    assert runs[0.2] == pytest.approx(0.2, abs=0.08)


def test_seed_decides_what_chance_does() -> None:
    runs = [
        [seen.uniform for seen in watched.seen]
        for seed in (1, 1, 2)
        for watched in [Watched(Scripted(every=0))]
        if replay(watched, VECTORS[:50], IDS[:50], 0.02, seed)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert all(0.0 <= uniform < 1.0 for uniform in runs[0])


def test_policy_is_shown_as_many_neighbours_as_asked_for() -> None:
    watched = Watched(Scripted(every=0))
    replay(watched, VECTORS[:30], IDS[:30], 0.02, 0, neighbours=4)
    counts = [len(seen.evidence.entry_ids) for seen in watched.seen]
    assert counts == [min(seen.evidence.size, 4) for seen in watched.seen]
    assert max(counts) == 4


def test_texts_bring_the_guards_in() -> None:
    texts = ["refund of 20 euros", "refund of 200 euros", "refund of 20 euros"]
    vectors = np.ones((3, 1), np.float32)
    ids = np.array([1, 2, 1])
    guarded = Watched(StaticPolicy(0.5))
    outcome = replay(guarded, vectors, ids, 0.02, 0, texts=texts)
    assert guards.conflict(*map(guards.signature, texts[:2])) is not None
    assert outcome.hit.tolist() == [False, False, True]
    assert not outcome.wrong.any()
    last = guarded.seen[-1].evidence
    assert sorted(last.conflicts.tolist()) == [False, True]
    plain = replay(StaticPolicy(0.5), vectors, ids, 0.02, 0)
    assert plain.wrong.tolist() == [False, True, False]


def test_deciles_add_up_to_the_whole() -> None:
    outcome = replay(StaticPolicy(0.9), VECTORS, IDS, 0.02, 0)
    assert len(outcome.deciles) == 10
    for name in ("hit_rate", "error_per_request"):
        mean = np.mean([decile[name] for decile in outcome.deciles])
        assert mean == pytest.approx(getattr(outcome, name))
    late = outcome.deciles[-1]
    assert late["hit_rate"] == outcome.hit[-30:].mean()
    assert late["error_per_hit"] == pytest.approx(
        outcome.wrong[-30:].sum() / max(outcome.hit[-30:].sum(), 1)
    )


@pytest.mark.parametrize("requests", [1, 9])
def test_short_stream_has_rates_that_are_numbers(requests: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = replay(StaticPolicy(0.9), VECTORS[:requests], IDS[:requests], 0.02, 0)
    assert all(
        math.isfinite(rate) for decile in outcome.deciles for rate in decile.values()
    )


def test_progress_is_told_now_and_then() -> None:
    vectors, ids = stream(1, 1_200)
    told: list[int] = []
    replay(Scripted(every=0), vectors, ids, 0.02, 0, progress=told.append)
    assert told == sorted(told)
    assert 1 < len(told) < 20
    assert told[-1] < 1_200
