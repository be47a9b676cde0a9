# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Answers that are stored and repeated: which, for how long, and to whom."""

import threading

import pytest

from tests.vectorq.cache_cases import REPHRASED, RESET, WEATHER, answer, core, request
from vllm_vectorq.record import EntryRecord
from vllm_vectorq.tightening import Tightening


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
