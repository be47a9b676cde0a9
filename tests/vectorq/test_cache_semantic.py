# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Requests that are near a stored one: which get its answer."""

import asyncio
import threading

import pytest

from tests.vectorq.cache_cases import (
    REPHRASED,
    RESET,
    WEATHER,
    WordEmbedding,
    answer,
    core,
    request,
)
from vllm_vectorq.policy import NOTHING_NEAR, Decision, Evidence
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.record import Vector
from vllm_vectorq.tightening import Tightening


def test_rephrasing_gets_a_semantic_hit() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.clock.advance(5)
        hit = c.get(request(REPHRASED))
        assert hit is not None
        assert hit.stage == "semantic"
        assert hit.answer.text == "Click reset."
        assert 0.7 <= hit.similarity < 1.0
        assert hit.age_s == pytest.approx(5)
        entry = c.working_set.entries.exact(request(RESET).exact_key)
        assert entry is not None
        assert (hit.entry_id, entry.hits) == (entry.entry_id, 1)
        assert entry.last_used_s == c.clock.now_s


def test_semantic_hit_leaves_no_entry_of_its_own() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.get(request(REPHRASED))
        assert len(c.working_set.entries) == 1


def test_dissimilar_request_is_a_miss_with_the_nearest_as_candidate() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        ticket = c.miss(request(WEATHER))
        assert ticket.candidate is not None
        assert ticket.candidate.text == RESET
        assert c.count("requests_total", result="miss") == 2


def test_guard_forbids_a_near_request() -> None:
    with core() as c:
        c.teach(request("refund 20 euros to my account"), "Refunded 20 euros.")
        c.miss(request("refund 200 euros to my account"))
    with core(guards=False) as c:
        c.teach(request("refund 20 euros to my account"), "Refunded 20 euros.")
        assert c.get(request("refund 200 euros to my account")) is not None


def test_ticket_of_an_empty_partition_has_no_candidate() -> None:
    with core() as c:
        ticket = c.miss(request(RESET))
        assert ticket.decision is NOTHING_NEAR and ticket.candidate is None


def test_awaited_lookup_finds_the_same() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        hit, ticket = asyncio.run(c.cache.lookup(request(REPHRASED)))
        assert hit is not None and hit.stage == "semantic" and ticket is None
        hit, ticket = asyncio.run(c.cache.lookup(request(WEATHER)))
        assert hit is None and ticket is not None


def test_request_gets_no_wider_budget_than_the_operators() -> None:
    seen: list[float] = []

    class Recording(StaticPolicy):
        def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
            seen.append(delta)
            return super().decide(evidence, delta, uniform)

    with core(new_policy=lambda: Recording(0.7)) as c:
        c.teach(request(RESET), "Click reset.")
        c.get(request(REPHRASED))
        c.get(request(REPHRASED, ask=Tightening(delta=0.001)))
        c.get(request(REPHRASED, ask=Tightening(delta=0.5)))
    assert seen == [0.02, 0.001, 0.02]


class SlowEmbedding(WordEmbedding):
    """Waits until it may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def embed(self, texts: list[str]) -> Vector:
        self.may_go_on.wait(30)
        return super().embed(texts)


def test_late_embedding_is_a_miss_that_is_indexed_later() -> None:
    slow = SlowEmbedding()
    with core(embedder=slow, embedding_deadline_s=0.01) as c:
        hit, ticket = asyncio.run(c.cache.lookup(request(RESET)))
        assert hit is None and ticket is not None and ticket.vector is None
        assert c.count("no_embedding_total", reason="DeadlinePassed") == 1
        c.cache.complete(ticket, answer("Click reset."))
        slow.may_go_on.set()
        c.settle()
        hit = c.get(request(REPHRASED))
        assert hit is not None and hit.answer.text == "Click reset."
        assert c.faults.counts() == {}


def test_text_that_the_model_cannot_represent_is_no_fault() -> None:
    with core(accepts=lambda text: len(text) < 40) as c:
        long = RESET * 4
        c.teach(request(long), "Click reset.")
        again = c.get(request(long))
        assert again is not None and again.stage == "exact"
        assert c.count("no_embedding_total", reason="TextUnsuitable") >= 1
        assert c.faults.counts() == {}
