# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Parts of the cache that fail: requests go on, faults are counted."""

import asyncio
import logging

import pytest

from tests.vectorq.cache_cases import (
    REPHRASED,
    RESET,
    WEATHER,
    BrokenJudge,
    Core,
    WordEmbedding,
    answer,
    core,
    request,
)
from vllm_vectorq.policy import Decision, Evidence
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.record import Vector


class FailingEmbedding(WordEmbedding):
    def embed(self, texts: list[str]) -> Vector:
        raise RuntimeError("no model today")


@pytest.mark.parametrize("awaited", [True, False])
def test_broken_embedding_leaves_exact_matches(
    awaited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with core(embedder=FailingEmbedding(), embedding_deadline_s=30) as c:
        for number in range(3):
            asked = request(f"{RESET} {number}")
            if awaited:
                hit, ticket = asyncio.run(c.cache.lookup(asked))
            else:
                hit, ticket = c.cache.lookup_sync(asked)
            assert hit is None and ticket is not None
            c.reply(ticket, "Click reset.")
            assert c.get(asked) is not None
        assert c.faults.counts()["embedding"] >= 1
        logged = [r for r in caplog.records if "fault in embedding" in r.message]
        assert len(logged) == 1


class BrokenPolicy(StaticPolicy):
    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        raise ZeroDivisionError("policy")


def break_index(c: Core) -> None:
    for state in c.working_set.partitions():
        assert state.index is not None
        # What a store with the vectors of another model leads to.
        state.index.dimensions += 1


@pytest.mark.parametrize("part", ["policy", "index"])
def test_fault_while_deciding_is_a_miss(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    policy = BrokenPolicy(0.7) if part == "policy" else StaticPolicy(0.7)
    with core(new_policy=lambda: policy) as c:
        c.teach(request(RESET), "Click reset.")
        if part == "index":
            break_index(c)
        for number in range(3):
            asked = request(f"{REPHRASED} {number}")
            c.reply(c.miss(asked), f"Click {number}.")
            again = c.cache.lookup_exact(asked)
            assert again is not None and again.answer.text == f"Click {number}."
        assert c.faults.counts() == {"decide": 3}
        assert c.count("faults_total", place="decide") == 3
        logged = [r for r in caplog.records if "fault in decide" in r.getMessage()]
        assert len(logged) == 1 and logged[0].exc_info


def test_fault_while_deciding_is_counted_as_a_miss() -> None:
    with core(new_policy=lambda: BrokenPolicy(0.7)) as c:
        c.teach(request(RESET), "Click reset.")
        before = c.count("requests_total", result="miss")
        c.miss(request(REPHRASED))
        assert c.count("requests_total", result="miss") == before + 1


def test_broken_judge_costs_the_label_only() -> None:
    with core(judges=[BrokenJudge()]) as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        for text, reply in ((RESET, "Click reset."), (WEATHER, "Sunny.")):
            hit = c.get(request(text))
            assert hit is not None and hit.answer.text == reply
        failures = c.cache.learner.judge_stats()["labelling"]["failures"]
        assert sum(failures.values()) == 1
        assert not [r for r in c.submitted if type(r).__name__ == "ObservationRecord"]


def test_fault_of_the_exact_table_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        monkeypatch.setattr(c.working_set, "entries", None)
        assert c.cache.lookup_exact(request(RESET)) is None
        assert c.faults.counts() == {"lookup": 1}


def test_fault_while_completing_does_not_reach_the_client() -> None:
    def full(_change: object) -> None:
        raise MemoryError("store")

    with core(submit=full) as c:
        c.cache.complete(c.miss(request(RESET)), answer("Click reset."))
        assert c.faults.counts() == {"complete": 1}
        assert c.cache.lookup_exact(request(RESET)) is not None
