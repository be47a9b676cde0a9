# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Explanations say what a look-up would do, and do nothing themselves."""

import asyncio
import json
from typing import Any

import pytest

from tests.vectorq.cache_cases import Core, WordEmbedding, core, request
from vllm_vectorq.policy_suite import SuitePolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.record import Vector
from vllm_vectorq.request import CacheRequest
from vllm_vectorq.tightening import Tightening

RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"
WEATHER = "what is the weather in Paris"


def explain(c: Core, asked: CacheRequest) -> dict[str, Any]:
    found = asyncio.run(c.cache.explain(asked))
    json.dumps(found)
    return found


def test_nothing_stored_yet() -> None:
    with core(embedding_deadline_s=30) as c:
        found = explain(c, request(RESET))
        assert found["served"] is False
        assert "nothing is stored" in found["why"]
        assert found["partition"] == request(RESET).partition.digest.hex()[:16]
        assert found["facts"]["model"] == "m"
        assert found["mode"] == "semantic"


def test_exact_answer() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        found = explain(c, request(RESET))
        assert (found["served"], found["stage"]) == (True, "exact")
        assert found["entry"]["text"] == RESET
        assert found["entry"]["answer"] == "Click reset."


def test_exact_answer_that_is_too_old() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        c.clock.advance(100)
        found = explain(c, request(RESET, ask=Tightening(ttl_s=50)))
        assert found["served"] is False
        assert "longer ago" in found["why"] or "expired" in found["why"]


def test_semantic_answer() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        found = explain(c, request(REPHRASED))
        assert (found["served"], found["stage"]) == (True, "semantic")
        assert found["policy"] == "static"
        assert found["entries_in_partition"] == 2
        assert found["entry"]["text"] == RESET
        assert 0.7 <= found["probability_right"] <= 1.0
        nearest, farthest = found["neighbours"]
        assert nearest["text"] == RESET and nearest["guard"] is None
        assert nearest["similarity"] > farthest["similarity"]
        assert nearest["class"] != farthest["class"]
        assert 0.0 <= nearest["lexical_agreement"] <= 1.0


def test_too_dissimilar() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        found = explain(c, request("how do bees fly"))
        assert found["served"] is False
        assert found["entry"]["text"] == RESET


def test_forbidden_by_a_guard() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request("refund 20 euros to my account"), "Refunded 20 euros.")
        found = explain(c, request("refund 200 euros to my account"))
        assert found["served"] is False
        assert "guard" in found["why"]
        assert found["neighbours"][0]["guard"] == "numbers"


@pytest.mark.parametrize("policy", [SuitePolicy, VCachePolicy])
def test_too_few_labels(policy: type[SuitePolicy | VCachePolicy]) -> None:
    with core(embedding_deadline_s=30, new_policy=policy) as c:
        c.teach(request(RESET), "Click reset.")
        found = explain(c, request(REPHRASED))
        assert found["served"] is False
        assert "too few labels" in found["why"]


def test_no_confirmation_by_others() -> None:
    with core(embedding_deadline_s=30, confirmations=1) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        found = explain(c, request(REPHRASED, principal=b"stranger"))
        assert found["served"] is False
        assert "confirmed" in found["why"]
        assert explain(c, request(REPHRASED, principal=b"author"))["served"]


def test_exact_only_request_says_why() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        found = explain(c, request(RESET, why_exact="temperature is above 0"))
        assert found["served"] is False
        assert "temperature is above 0" in found["why"]
    with core(policy="exact") as c:
        assert "switched off" in explain(c, request(RESET))["why"]


def test_text_that_cannot_be_embedded_says_why() -> None:
    with core(embedding_deadline_s=30, accepts=lambda _text: False) as c:
        found = explain(c, request(RESET))
        assert found["served"] is False
        assert "no embedding" in found["why"]


def test_exact_answer_needs_no_embedding_to_be_explained() -> None:
    with core(embedding_deadline_s=30, accepts=lambda _text: False) as c:
        c.teach(request(RESET), "Click reset.")
        assert c.get(request(RESET)) is not None
        assert explain(c, request(RESET))["served"] is True


def test_broken_embedding_is_explained_and_not_raised() -> None:
    class Failing(WordEmbedding):
        def embed(self, texts: list[str]) -> Vector:
            raise RuntimeError("no model today")

    with core(embedding_deadline_s=30, embedder=Failing()) as c:
        found = explain(c, request(RESET))
        assert found["served"] is False
        assert "embedding" in found["why"]


def test_stale_exact_answer_hides_no_semantic_one() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Old.")
        c.clock.advance(100)
        young = request(REPHRASED, ask=Tightening(ttl_s=50))
        c.teach(young, "Young.")
        asked = request(RESET, ask=Tightening(ttl_s=50))
        found = explain(c, asked)
        hit = c.get(asked)
        assert hit is not None and hit.answer.text == "Young."
        assert found["served"] is True


def test_explaining_counts_and_changes_nothing() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET), "Click reset.")
        submitted, entries = len(c.submitted), len(c.working_set.entries)
        for asked in (request(RESET), request(REPHRASED), request(WEATHER)):
            explain(c, asked)
        c.settle()
        (entry,) = c.working_set.entries.all()
        assert entry.hits == 0
        assert len(c.submitted) == submitted
        assert len(c.working_set.entries) == entries
        assert c.count("requests_total", result="hit") == 0
        assert c.count("requests_total", result="miss") == 1
        assert c.cache.served.take(entry.entry_id, None) is None


def test_explanation_agrees_with_the_lookup() -> None:
    with core(embedding_deadline_s=30) as c:
        replies = {RESET: "Click reset.", WEATHER: "Sunny.", "refund 20 euros": "Done."}
        for text, reply in replies.items():
            c.teach(request(text), reply)
        for text in (RESET, REPHRASED, "refund 30 euros", "how tall are giraffes"):
            found, hit = explain(c, request(text)), c.get(request(text))
            assert found["served"] is (hit is not None), text
            if hit is not None:
                assert found["stage"] == hit.stage
                assert found["entry"]["entry_id"] == hit.entry_id


def test_long_texts_are_cut() -> None:
    with core(embedding_deadline_s=30) as c:
        c.teach(request(RESET * 40), "yes " * 400)
        found = explain(c, request(RESET * 40))
        assert len(found["entry"]["text"]) == 200
        assert len(found["entry"]["answer"]) == 200
