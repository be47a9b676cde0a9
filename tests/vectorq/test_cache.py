# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is served, to whom, for how long, and what happens when parts fail."""

import asyncio
import logging
import threading

import pytest

from tests.vectorq.cache_cases import (
    BrokenJudge,
    Core,
    WordEmbedding,
    answer,
    core,
    request,
)
from vllm_vectorq.policy import NOTHING_NEAR, Decision, Evidence
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.record import EntryRecord, Vector
from vllm_vectorq.tightening import Tightening

RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"
WEATHER = "what is the weather in Paris"


# -- exact ---------------------------------------------------------------------


def test_repetition_gets_the_stored_answer() -> None:
    with core() as c:
        c.teach(request(RESET), answer("Click reset.", generation_s=1.5))
        c.clock.advance(10)
        hit = c.cache.lookup_exact(request(RESET))
        assert hit is not None
        assert hit.answer == answer("Click reset.", generation_s=1.5)
        assert (hit.stage, hit.similarity, hit.probability) == ("exact", 1.0, 1.0)
        assert hit.age_s == pytest.approx(10)
        assert c.count("hits_total", stage="exact") == 1
        assert c.count("saved_seconds_total") == 1.5


def test_answer_is_there_for_repeats_before_it_is_labelled() -> None:
    with core() as c:
        held = threading.Event()
        c.labeller.run(lambda: held.wait(30))
        c.cache.complete(c.miss(request(RESET)), answer("Click reset."))
        assert c.cache.lookup_exact(request(RESET)) is not None
        held.set()


def test_exact_entry_expires_with_the_operators_lifetime() -> None:
    with core(ttl_s=60) as c:
        c.teach(request(RESET), "Click reset.")
        c.clock.advance(59)
        assert c.get(request(RESET)) is not None
        c.clock.advance(1)
        c.miss(request(RESET))
        c.miss(request(REPHRASED))


def test_answer_lives_no_longer_than_its_request_wants() -> None:
    with core(ttl_s=60) as c:
        c.teach(request(RESET, ask=Tightening(ttl_s=10)), "Click reset.")
        c.clock.advance(10)
        c.miss(request(RESET))


def test_request_cannot_lengthen_the_lifetime() -> None:
    with core(ttl_s=60) as c:
        c.teach(request(RESET, ask=Tightening(ttl_s=900), ttl_s=60), "Click reset.")
        c.clock.advance(60)
        c.miss(request(RESET))


def test_request_refuses_answers_older_than_it_wants() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.clock.advance(30)
        c.miss(request(RESET, ask=Tightening(ttl_s=29)))
        c.miss(request(REPHRASED, ask=Tightening(ttl_s=29)))
        assert c.get(request(RESET, ask=Tightening(ttl_s=31))) is not None
        assert c.get(request(REPHRASED, ask=Tightening(ttl_s=31))) is not None


def test_newer_answer_replaces_the_expired_one() -> None:
    with core(ttl_s=60) as c:
        c.teach(request(RESET), "Old.")
        c.clock.advance(61)
        c.teach(request(RESET), "New.")
        hit = c.get(request(RESET))
        assert hit is not None and hit.answer.text == "New."
        assert len(c.working_set.entries) == 1
        state = c.working_set.partition(request(RESET).partition.digest)
        assert state is not None and state.index is not None
        assert len(state.index) == state.entries == 1


def test_request_that_must_not_be_stored_leaves_nothing() -> None:
    with core() as c:
        c.teach(request(RESET, ask=Tightening(store=False)), "Click reset.")
        c.miss(request(RESET))
        assert not c.submitted
        assert not c.working_set.partitions()


def test_request_that_must_not_be_stored_is_served_all_the_same() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        ask = Tightening(store=False)
        assert c.get(request(RESET, ask=ask)) is not None
        assert c.get(request(REPHRASED, ask=ask)) is not None


@pytest.mark.parametrize(
    "exact_only",
    [
        {"ask": Tightening(mode="exact")},
        {"allowed": "exact"},
        {"why_exact": "temperature is above 0"},
    ],
)
def test_exact_request_is_matched_exactly_only(exact_only: dict[str, object]) -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        asked = request(REPHRASED, **exact_only)  # type: ignore[arg-type]
        assert asked.text is None
        c.teach(asked, "Click reset!")
        again = c.get(asked)
        assert again is not None and again.stage == "exact"
        c.miss(request(WEATHER, **exact_only))  # type: ignore[arg-type]
        entry = c.working_set.entries.exact(asked.exact_key)
        assert entry is not None and not entry.indexed


def test_exact_policy_needs_no_embedding() -> None:
    with core(policy="exact") as c:
        c.teach(request(RESET), "Click reset.")
        assert c.get(request(RESET)) is not None
        c.miss(request(REPHRASED))
        assert all(s.index is None for s in c.working_set.partitions())


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "other"},
        {"model": "other"},
        {"context": "Be verbose."},
    ],
)
def test_other_partitions_never_share(other: dict[str, str]) -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.miss(request(RESET, **other))  # type: ignore[arg-type]
        c.miss(request(REPHRASED, **other))  # type: ignore[arg-type]
        assert c.get(request(REPHRASED)) is not None


# -- semantic ------------------------------------------------------------------


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


def test_confirmations_keep_an_entry_from_strangers() -> None:
    with core(confirmations=2) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        assert c.get(request(REPHRASED, principal=b"author")) is not None
        c.miss(request(REPHRASED, principal=b"stranger"))
        c.miss(request(REPHRASED))


def test_entry_is_served_to_strangers_once_confirmed() -> None:
    def new_policy() -> StaticPolicy:
        return StaticPolicy(0.7, inserts_equivalent=False)

    with core(confirmations=2, new_policy=new_policy) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        for name in ("please", "kindly"):
            asked = request(f"{RESET} {name}", principal=name.encode())
            c.teach(asked, "Click reset.")
        assert c.cache.learner.judge_stats()["labelling"]["failures"] == {}
        assert c.get(request(REPHRASED, principal=b"stranger")) is not None


def test_author_cannot_confirm_an_entry_alone() -> None:
    with core(confirmations=1, new_policy=VCachePolicy, uniform=0.0) as c:
        c.teach(request(RESET, principal=b"author"), "Poison.")
        c.teach(request(f"{RESET} please", principal=b"author"), "Poison.")
        (entry,) = (e for e in c.working_set.entries.all() if e.text == RESET)
        assert not c.cache.learner.may_serve(
            entry, request(REPHRASED, principal=b"stranger")
        )


def test_authors_praise_does_not_confirm_an_entry() -> None:
    with core(confirmations=1) as c:
        c.teach(request(RESET, principal=b"author"), "Poison.")
        hit = c.get(request(REPHRASED, principal=b"author"))
        assert hit is not None
        c.cache.feedback(hit.entry_id, True, b"author", "")
        c.miss(request(REPHRASED, principal=b"stranger"))


def test_request_that_is_withheld_was_explored_for_certain() -> None:
    # The policy would serve it; that it may not is no chance, so its label stands
    # for no other request.
    with core(confirmations=1) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        c.teach(request(REPHRASED, principal=b"one"), "Click reset.")
        labels = [r for r in c.submitted if type(r).__name__ == "ObservationRecord"]
        assert [label.propensity for label in labels] == [1.0]  # type: ignore[union-attr]
        assert c.errors.estimate().audits == 0


# -- tickets -------------------------------------------------------------------


def test_second_completion_changes_nothing() -> None:
    with core() as c:
        ticket = c.teach(request(RESET), "First.")
        c.reply(ticket, "Second.")
        hit = c.get(request(RESET))
        assert hit is not None and hit.answer.text == "First."


def test_completion_after_abandoning_stores_nothing() -> None:
    with core() as c:
        ticket = c.miss(request(RESET))
        c.cache.abandon(ticket)
        c.reply(ticket, "Too late.")
        c.miss(request(RESET))
        assert not c.submitted


def test_abandoning_after_completion_keeps_the_answer() -> None:
    with core() as c:
        ticket = c.teach(request(RESET), "First.")
        c.cache.abandon(ticket)
        assert c.get(request(RESET)) is not None


def test_two_identical_misses_leave_one_entry_everywhere() -> None:
    with core() as c:
        first, second = c.miss(request(RESET)), c.miss(request(RESET))
        c.reply(first, "First.")
        c.clock.advance(0)
        c.reply(second, "Second.")
        hit = c.get(request(RESET))
        assert hit is not None and hit.answer.text == "Second."
        (state,) = c.working_set.partitions()
        assert state.index is not None
        assert state.entries == len(state.index) == len(c.working_set.entries) == 1


# -- embedding -----------------------------------------------------------------


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


# -- faults --------------------------------------------------------------------


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


def test_ticket_of_an_empty_partition_has_no_candidate() -> None:
    with core() as c:
        ticket = c.miss(request(RESET))
        assert ticket.decision is NOTHING_NEAR and ticket.candidate is None


# -- what others may do --------------------------------------------------------


def test_invalidation_by_facts_drops_exactly_those() -> None:
    with core() as c:
        for model in ("one", "two"):
            for tenant in ("a", "b"):
                c.teach(request(RESET, model=model, tenant=tenant), "Click reset.")
        assert c.cache.invalidate(model="one", tenant="a") == 1
        c.miss(request(RESET, model="one", tenant="a"))
        assert c.cache.invalidate(model="two") == 2
        c.miss(request(REPHRASED, model="two", tenant="b"))
        assert c.get(request(REPHRASED, model="one", tenant="b")) is not None
        assert c.cache.invalidate(model="three") == 0
        assert c.cache.invalidate() == 1
        assert len(c.working_set.entries) == 0
        assert c.count("removed_total", reason="invalidated") == 4


def test_invalidation_by_prefix_drops_texts_that_begin_so() -> None:
    with core() as c:
        for text in (RESET, WEATHER, "how do bees fly"):
            c.teach(request(text), f"About {text}.")
        c.teach(request("how do x", why_exact="a schema"), "Exact only.")
        assert c.cache.invalidate_prefix("how do", model="m") == 2
        c.miss(request(RESET))
        assert c.get(request(WEATHER)) is not None
        assert c.get(request("how do x", why_exact="a schema")) is not None
        assert c.cache.invalidate_prefix("what", model="other") == 0


def test_feedback_on_an_unknown_entry_is_none() -> None:
    with core() as c:
        assert c.cache.feedback(12345, True, b"p", "") is None


def test_feedback_of_another_tenant_is_none_and_changes_nothing() -> None:
    with core() as c:
        c.teach(request(RESET, tenant="a", principal=b"p"), "Click reset.")
        hit = c.get(request(RESET, tenant="a"))
        assert hit is not None
        for tenant in ("", "b"):
            assert c.cache.feedback(hit.entry_id, False, b"p", tenant) is None
        assert c.get(request(RESET, tenant="a")) is not None


@pytest.mark.parametrize("right", [True, False])
def test_feedback_on_a_semantic_hit_is_learned_once(right: bool) -> None:
    with core() as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        hit = c.get(request(REPHRASED, principal=b"asker"))
        assert hit is not None
        assert c.cache.feedback(hit.entry_id, right, b"stranger", "") is False
        assert c.cache.feedback(hit.entry_id, right, b"asker", "") is True
        assert c.cache.feedback(hit.entry_id, right, b"asker", "") is False
        labels = [r for r in c.submitted if type(r).__name__ == "ObservationRecord"]
        (label,) = labels
        assert (label.label, label.source, label.propensity, label.principal) == (  # type: ignore[union-attr]
            right,
            "feedback",
            1.0,
            b"asker",
        )
        assert c.get(request(RESET)) is not None
        assert c.errors.estimate().audits == 0


def test_author_can_have_a_wrong_exact_answer_dropped() -> None:
    with core() as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        hit = c.get(request(RESET, principal=b"stranger"))
        assert hit is not None
        assert c.cache.feedback(hit.entry_id, False, b"stranger", "") is False
        assert c.cache.feedback(hit.entry_id, True, b"author", "") is False
        assert c.get(request(RESET)) is not None
        assert c.cache.feedback(hit.entry_id, False, b"author", "") is True
        c.miss(request(RESET))
        assert c.count("removed_total", reason="feedback") == 1


def test_entry_that_is_stored_matches_what_is_served() -> None:
    with core() as c:
        asked = request(RESET, principal=b"author", ask=Tightening(ttl_s=30))
        c.teach(asked, "Click reset.")
        first, last = (r for r in c.submitted if isinstance(r, EntryRecord))
        assert first.vector is None and last.vector is not None
        assert last.entry_id == first.entry_id
        assert last.exact_key == asked.exact_key
        assert last.partition == asked.partition.digest
        assert last.text == RESET
        assert last.principal == b"author"
        assert last.expires_s - last.created_s == pytest.approx(30)


def test_many_threads_ask_and_answer_at_once() -> None:
    with core() as c:
        problems: list[object] = []

        def work(number: int) -> None:
            for turn in range(25):
                asked = request(f"word{turn} thing{turn}", tenant=str(number % 3))
                hit, ticket = c.cache.lookup_sync(asked)
                if ticket is not None:
                    c.cache.complete(ticket, answer(f"Reply {turn}."))
                elif hit is None or hit.answer.text != f"Reply {turn}.":
                    problems.append((number, turn, hit))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        c.settle()
        assert not problems
        assert c.faults.counts() == {}
        assert len(c.working_set.entries) == 75
        for state in c.working_set.partitions():
            assert state.index is not None
            assert state.entries == len(state.index) == 25
