# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is in memory stays in step with a store and with other processes."""

import random
import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest

from tests.vectorq.cache_cases import LOGGER, Core, core, request
from tests.vectorq.store_cases import StorePlace
from vllm_vectorq.policy_static import StaticPolicy
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.record import (
    AnswerRecord,
    Change,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Removal,
    Vector,
    first_id_at,
)
from vllm_vectorq.store_writer import StoreWriter

RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"
WEATHER = "what is the weather in Paris"
SUFFIXES = ("then", "again", "please", "maybe", "here")


def changes_of(text: str = RESET, reply: str = "Click reset.") -> list[Change]:
    """What another process hands to the store for one answer."""
    with core() as other:
        other.teach(request(text), reply)
        other.clock.advance(0)
        return list(other.submitted)


def index_sizes(c: Core) -> list[tuple[int, int]]:
    return [
        (s.entries, len(s.index) if s.index is not None else -1)
        for s in c.working_set.partitions()
    ]


# -- a restart -----------------------------------------------------------------


def test_everything_comes_back_after_a_restart(sqlite_place: StorePlace) -> None:
    store = sqlite_place.open()
    writer = StoreWriter(store, LOGGER)
    with core(submit=writer.submit, new_policy=VCachePolicy, uniform=0.0) as c:
        asked = request(RESET, principal=b"author", tenant="t")
        c.teach(asked, "Click reset.")
        for word in SUFFIXES:
            c.teach(request(f"{RESET} {word}", tenant="t"), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        c.teach(request(REPHRASED, why_exact="a schema"), "Exact.")
        before = c.working_set.entries.exact(asked.exact_key)
        size_bytes = c.working_set.entries.size_bytes
    assert writer.close(30)
    store.close()

    with core(store=sqlite_place.open(), new_policy=VCachePolicy, delta=0.5) as c:
        after = c.working_set.entries.exact(asked.exact_key)
        assert before is not None and after is not None
        for name in ("entry_id", "class_id", "text", "principal", "created_s"):
            assert getattr(after, name) == getattr(before, name)
        assert after.expires_s == before.expires_s
        assert after.stored.answer == before.stored.answer
        assert after.signature == before.signature is not None
        assert after.indexed
        assert c.working_set.entries.size_bytes == size_bytes
        exact = c.get(request(REPHRASED, why_exact="a schema"))
        assert exact is not None and exact.answer.text == "Exact."
        facts = [s.facts for s in c.working_set.partitions()]
        assert {f["tenant"] for f in facts} == {"", "t"}
        # Five labels came back, so the policy serves at once.
        hit = c.get(request(REPHRASED, tenant="t"))
        assert hit is not None and hit.stage == "semantic"


def test_any_text_survives_a_restart(sqlite_place: StorePlace) -> None:
    texts = [
        "na\u00efve \u2603",
        "half \ud800 a character",
        "nul \0 inside",
        "\U0001f600",
    ]
    store = sqlite_place.open()
    writer = StoreWriter(store, LOGGER)
    with core(submit=writer.submit) as c:
        for text in texts:
            c.teach(request(f"{text} {text}"), f"Reply to {text}.")
    assert writer.close(30)
    with core(store=store) as c:
        for text in texts:
            hit = c.get(request(f"{text} {text}"))
            assert hit is not None and hit.answer.text == f"Reply to {text}."


def test_expired_entries_do_not_come_back(sqlite_place: StorePlace) -> None:
    store = sqlite_place.open()
    partition, answer, _, entry = changes_of()
    assert isinstance(entry, EntryRecord)
    store.write([partition, answer, replace(entry, expires_s=entry.created_s - 1)])
    with core(store=store) as c:
        assert len(c.working_set.entries) == 0
        c.miss(request(RESET))


def test_removed_entries_do_not_come_back(sqlite_place: StorePlace) -> None:
    store = sqlite_place.open()
    writer = StoreWriter(store, LOGGER)
    with core(submit=writer.submit) as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        c.cache.invalidate_prefix("how")
    assert writer.close(30)
    with core(store=store) as c:
        c.miss(request(RESET))
        assert c.get(request(WEATHER)) is not None
        assert len(c.working_set.entries) == 1


def test_confirmations_come_back(sqlite_place: StorePlace) -> None:
    store = sqlite_place.open()
    writer = StoreWriter(store, LOGGER)
    with core(submit=writer.submit, static_threshold=0.999) as c:
        c.teach(request(RESET, principal=b"author"), "Click reset.")
        c.teach(request(REPHRASED, principal=b"one"), "Click reset.")
    assert writer.close(30)
    with core(store=store, confirmations=1) as c:
        assert c.get(request(f"{RESET} please", principal=b"stranger")) is not None


def test_removal_while_indexing_reaches_the_store(sqlite_place: StorePlace) -> None:
    """An invalidation between the last look and the write must not be undone."""
    store = sqlite_place.open()
    writer = StoreWriter(store, LOGGER)

    class Interrupted(StaticPolicy):
        def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
            other = threading.Thread(target=c.cache.invalidate)
            other.start()
            other.join()

    with core(submit=writer.submit, new_policy=lambda: Interrupted(0.7)) as c:
        c.teach(request(RESET), "Wrong answer.")
        assert len(c.working_set.entries) == 0
        assert index_sizes(c) == [(0, 0)]
    assert writer.close(30)
    with core(store=store) as c:
        assert len(c.working_set.entries) == 0


# -- other processes -----------------------------------------------------------


def test_answers_of_another_process_are_served() -> None:
    changes = changes_of()
    with core() as c:
        c.working_set.apply(changes)
        exact = c.get(request(RESET))
        assert exact is not None and exact.stage == "exact"
        semantic = c.get(request(REPHRASED))
        assert semantic is not None and semantic.stage == "semantic"
        assert not c.submitted


@pytest.mark.parametrize("calls", [1, 2])
def test_entry_that_becomes_semantic_later_is_served_as_such(calls: int) -> None:
    # The other process writes an entry when it is answered and once more when it is
    # labelled, often in two batches.
    changes = changes_of()
    assert [type(change).__name__ for change in changes] == [
        "PartitionRecord",
        "AnswerRecord",
        "EntryRecord",
        "EntryRecord",
    ]
    last = changes[-1]
    assert isinstance(last, EntryRecord) and last.vector is not None
    split = 4 if calls == 1 else 3
    with core() as c:
        c.working_set.apply(changes[:split])
        c.working_set.apply(changes[split:])
        entry = c.working_set.entries.get(last.entry_id)
        assert entry is not None
        assert entry.class_id == last.class_id
        assert entry.indexed
        assert entry.signature is not None
        assert c.working_set.entries.size_bytes == entry.size_bytes()
        hit = c.get(request(REPHRASED))
        assert hit is not None and hit.stage == "semantic"


def test_class_of_an_entry_of_another_process_is_passed_on() -> None:
    with core(static_threshold=0.999) as c:
        changes = changes_of()
        c.working_set.apply(changes[:3])
        c.working_set.apply(changes[3:])
        c.teach(request(REPHRASED), "Click reset.")
        last = changes[-1]
        assert isinstance(last, EntryRecord)
        assert c.class_of(request(REPHRASED)) == last.class_id != 0


def test_the_same_changes_twice_change_nothing() -> None:
    changes = changes_of()
    with core() as c:
        c.working_set.apply(changes)
        size_bytes = c.working_set.entries.size_bytes
        c.working_set.apply(changes)
        assert index_sizes(c) == [(1, 1)]
        assert c.working_set.entries.size_bytes == size_bytes


def test_removal_by_another_process_is_taken_over() -> None:
    changes = changes_of()
    last = changes[-1]
    assert isinstance(last, EntryRecord)
    with core() as c:
        c.working_set.apply([*changes, Removal((last.entry_id, 12345))])
        c.miss(request(RESET))
        c.miss(request(REPHRASED))
        assert index_sizes(c) == [(0, 0)]
        assert c.working_set.entries.size_bytes == 0
        assert not c.submitted


def test_newest_entry_of_a_key_wins_in_either_order() -> None:
    older, newer = changes_of(reply="Old."), changes_of(reply="New.")
    for changes in (older + newer, newer + older):
        with core() as c:
            c.working_set.apply(changes)
            hit = c.get(request(RESET))
            assert hit is not None and hit.answer.text == "New."
            assert index_sizes(c) == [(1, 1)]


def test_own_newer_entry_is_not_replaced_by_an_older_foreign_one() -> None:
    older = changes_of(reply="Old.")
    with core() as c:
        c.teach(request(RESET), "New.")
        c.working_set.apply(older)
        hit = c.get(request(RESET))
        assert hit is not None and hit.answer.text == "New."
        assert index_sizes(c) == [(1, 1)]


def test_entry_without_its_answer_or_partition_is_left_out() -> None:
    partition, answer, _, entry = changes_of()
    for changes in ([partition, entry], [answer, entry]):
        with core() as c:
            c.working_set.apply(changes)
            assert len(c.working_set.entries) == 0


def test_labels_of_another_process_reach_the_policy() -> None:
    with core(new_policy=VCachePolicy, uniform=0.0) as other:
        other.teach(request(RESET), "Click reset.")
        for word in SUFFIXES:
            other.teach(request(f"{RESET} {word}"), "Click reset.")
        changes = list(other.submitted)
    assert sum(isinstance(change, ObservationRecord) for change in changes) == 5
    with core(new_policy=VCachePolicy, delta=0.5, guards=False) as c:
        c.working_set.apply(changes)
        assert c.get(request(REPHRASED)) is not None


# -- resynchronising -----------------------------------------------------------


def test_resynchronising_drops_what_the_store_lacks_and_keeps_the_young() -> None:
    with core() as c:
        c.teach(request(RESET), "Held by the store.")
        held = list(c.submitted)
        c.teach(request(WEATHER), "Not held.")
        c.clock.advance(100)
        c.teach(request("how far do bees fly"), "Young.")
        c.working_set.resynchronise(held, c.clock.now_s - 50)
        assert c.get(request(RESET)) is not None
        c.miss(request(WEATHER))
        assert c.get(request("how far do bees fly")) is not None
        # It is the store that has changed: nothing is to be written.
        assert not any(isinstance(change, Removal) for change in c.submitted)


def test_resynchronising_brings_in_what_is_new_and_no_label_twice() -> None:
    observed: list[int] = []

    class Counting(StaticPolicy):
        def observe(self, entry_id: int, *rest: object) -> None:
            observed.append(entry_id)

    with core(static_threshold=0.999) as other:
        other.teach(request(RESET), "Click reset.")
        other.teach(request(REPHRASED), "Click reset.")
        changes = list(other.submitted)
    with core(new_policy=lambda: Counting(0.7)) as c:
        c.working_set.apply(changes)
        assert len(observed) == 1
        c.working_set.resynchronise([*changes, *changes_of(WEATHER)], 0.0)
        assert len(observed) == 1
        assert c.get(request(WEATHER)) is not None


def test_store_that_goes_away_meanwhile_costs_nothing() -> None:
    def broken() -> Iterable[Change]:
        yield from changes_of(WEATHER)
        raise ConnectionError("gone")

    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.clock.advance(1000)
        with pytest.raises(ConnectionError):
            c.working_set.resynchronise(broken(), c.clock.now_s)
        assert c.get(request(RESET)) is not None


# -- partitions ----------------------------------------------------------------


def test_partition_that_stays_empty_is_forgotten() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.working_set.drop_empty()
        c.working_set.drop_empty()
        assert len(c.working_set.partitions()) == 1
        c.cache.invalidate()
        c.working_set.drop_empty()
        assert len(c.working_set.partitions()) == 1
        c.working_set.drop_empty()
        assert c.working_set.partitions() == []
        c.miss(request(REPHRASED))
        c.teach(request(RESET), "Click reset.")
        assert c.get(request(REPHRASED)) is not None


def test_partition_in_use_again_is_not_forgotten() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.cache.invalidate()
        c.working_set.drop_empty()
        c.working_set.partition_for(request(RESET).partition)
        c.working_set.drop_empty()
        assert len(c.working_set.partitions()) == 1


def test_partition_is_stored_again_with_every_entry() -> None:
    # The store drops partitions that were empty for a while.
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.teach(request(WEATHER), "Sunny.")
        stored = [r for r in c.submitted if isinstance(r, PartitionRecord)]
        assert len(stored) == 2
        order = [type(r).__name__ for r in c.submitted[:3]]
        assert order == ["PartitionRecord", "AnswerRecord", "EntryRecord"]


def test_removing_counts_only_what_was_there() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        (entry,) = c.working_set.entries.all()
        assert c.working_set.remove([entry.entry_id, 5], "evicted") == 1
        assert c.working_set.remove([entry.entry_id], "evicted") == 0
        assert c.count("removed_total", reason="evicted") == 1
        removals = [r for r in c.submitted if isinstance(r, Removal)]
        assert removals == [Removal((entry.entry_id,))]


def test_entry_of_another_process_without_text_is_never_guessed() -> None:
    partition, answer, _, entry = changes_of()
    assert isinstance(entry, EntryRecord)
    changes = [partition, answer, replace(entry, text=None)]
    with core() as c:
        c.working_set.apply(changes)
        assert c.get(request(RESET)) is not None
        c.miss(request(REPHRASED))
    with core(guards=False) as c:
        c.working_set.apply(changes)
        assert c.get(request(REPHRASED)) is not None


def made_at_random(rng: random.Random, vectors_only: bool) -> list[Change]:
    """Changes of several writers: entries come and go, some twice, a key often."""
    partitions = [PartitionRecord(bytes([n]) * 32, {"n": str(n)}) for n in range(2)]
    template = changes_of()[-1]
    assert isinstance(template, EntryRecord)
    first_id = first_id_at(template.created_s)
    changes: list[Change] = []
    for _ in range(150):
        number = rng.randrange(40)
        bare = rng.choice([None, template.vector])
        entry = replace(
            template,
            entry_id=first_id + number,
            partition=partitions[number % 2].digest,
            # A key belongs to one partition.
            exact_key=bytes([number % 10]),
            vector=template.vector if vectors_only else bare,
            answer_id=number,
        )
        changes += [AnswerRecord(number, f"answer {number}", (1,), None, 0.1), entry]
        if rng.random() < 0.3:
            changes.append(Removal((first_id + rng.randrange(40),)))
    return [*partitions, *changes]


@pytest.mark.parametrize("vectors_only", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_right_in_any_order_of_changes(
    seed: int, vectors_only: bool
) -> None:
    with core() as c:
        c.working_set.apply(made_at_random(random.Random(seed), vectors_only))
        entries = c.working_set.entries
        for state in c.working_set.partitions():
            held = [e for e in entries.all() if e.partition is state]
            assert state.entries == len(held)
            assert state.index is not None
            assert len(state.index) == sum(e.indexed for e in held)
        assert entries.size_bytes == sum(e.size_bytes() for e in entries.all())
        c.cache.invalidate()
        assert entries.size_bytes == 0
        assert [n for pair in index_sizes(c) for n in pair] == [0, 0, 0, 0]
