# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Hits are remembered for feedback, once and not for ever."""

import threading

from vllm_vectorq.policy import Decision
from vllm_vectorq.served_hits import ServedHits


def decision(probability: float = 0.9) -> Decision:
    return Decision(True, 0, probability, 0.02)


def test_hit_is_taken_once_and_only_by_who_got_it() -> None:
    hits = ServedHits()
    hits.note(1, b"p", decision())
    assert hits.take(1, b"q") is None
    assert hits.take(1, None) is None
    assert hits.take(2, b"p") is None
    assert hits.take(1, b"p") is not None
    assert hits.take(1, b"p") is None


def test_feedback_is_no_random_sample() -> None:
    hits = ServedHits()
    hits.note(1, None, decision())
    taken = hits.take(1, None)
    assert taken is not None
    assert (taken.propensity, taken.probability) == (1.0, 0.9)


def test_latest_decision_counts() -> None:
    hits = ServedHits()
    hits.note(1, b"p", decision(0.5))
    hits.note(1, b"p", decision(0.8))
    taken = hits.take(1, b"p")
    assert taken is not None and taken.probability == 0.8


def test_oldest_hits_are_forgotten() -> None:
    hits = ServedHits(capacity=3)
    for entry_id in (1, 2, 3):
        hits.note(entry_id, b"p", decision())
    hits.note(1, b"p", decision())
    hits.note(4, b"p", decision())
    assert hits.take(2, b"p") is None
    assert all(hits.take(entry_id, b"p") for entry_id in (1, 3, 4))


def test_each_hit_is_taken_by_one_thread_only() -> None:
    hits = ServedHits()
    for entry_id in range(500):
        hits.note(entry_id, None, decision())
    taken: list[int] = []

    def work() -> None:
        taken.extend(i for i in range(500) if hits.take(i, None) is not None)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(500))
