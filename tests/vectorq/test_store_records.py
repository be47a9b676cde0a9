# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a store gives back of the records that were written to it."""

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.vectorq.store_cases import ODD_TEXTS, Records, StorePlace
from vllm_vectorq.record import Change, Removal
from vllm_vectorq.store import StoreError, open_store


def test_an_empty_store_holds_nothing(place: StorePlace) -> None:
    store = place.open()
    assert list(store.load()) == []
    assert store.size_bytes() > 0


def test_every_field_survives_a_restart(place: StorePlace, records: Records) -> None:
    written = [
        records.partition(1, weights="w", tenant="\ud800"),
        records.answer(1, stop_reason="stop\0\udfff", token_ids=()),
        records.answer(2, stop_reason=13, token_ids=(-1, 0, 2**31 - 1)),
        records.answer(3),
        records.entry(1, principal=b"\0\xff", class_id=-(2**63), text=None),
        records.entry(2, vector=None, class_id=2**63 - 1),
        records.entry(3, vector=records.vector(3, 384), principal=b""),
        records.observation(1, principal=b"p", source="feedback \ud83d"),
        records.observation(2, features=np.zeros(0, np.float32), propensity=1.0),
    ]
    store = place.open()
    store.write(written)
    store.close()
    assert records.plain(place.open().load()) == records.plain(written)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_text_comes_back_exactly(
    place: StorePlace, records: Records, text: str
) -> None:
    store = place.open()
    store.write(
        [
            records.partition(1, odd=text),
            records.answer(1, text=text, stop_reason=text),
            records.entry(1, text=text),
        ]
    )
    partition, answer, entry = store.load()
    assert partition.facts["odd"] == text
    assert (answer.text, answer.stop_reason, entry.text) == (text, text, text)


def test_vectors_keep_every_bit(place: StorePlace, records: Records) -> None:
    tiny = np.finfo(np.float32)
    vector = np.array(
        [tiny.smallest_subnormal, tiny.max, tiny.min, 1 / 3, -0.0, tiny.eps],
        dtype=np.float32,
    )
    store = place.open()
    store.write([records.partition(), records.answer(), records.entry(vector=vector)])
    assert list(store.load())[-1].vector.tobytes() == vector.tobytes()


def test_ids_and_numbers_of_numpy_are_kept_as_numbers(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write(
        [
            records.partition(),
            records.answer(np.int64(5), token_ids=np.arange(3, dtype=np.int32)),
            records.entry(np.int64(5), created_s=np.float32(0.5)),
            records.observation(9, label=np.bool_(True)),
        ]
    )
    _, answer, entry, observation = store.load()
    assert (answer.answer_id, answer.token_ids) == (5, (0, 1, 2))
    assert (entry.entry_id, entry.answer_id, entry.created_s) == (5, 5, 0.5)
    assert observation.label is True


def test_records_come_by_kind_and_in_order_of_id(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    numbers = [5, 3, 9, 1]
    for number in numbers:
        store.write([records.observation(number), *records.stored_request(number)])
    store.write([records.partition(2), records.partition(1)])
    kinds = [type(record).__name__ for record in store.load()]
    assert kinds == (
        ["PartitionRecord"] * 2
        + ["AnswerRecord"] * 4
        + ["EntryRecord"] * 4
        + ["ObservationRecord"] * 4
    )
    ids = [getattr(r, "entry_id", None) for r in store.load()][6:10]
    assert ids == sorted(numbers)


def test_writing_twice_is_writing_once(place: StorePlace, records: Records) -> None:
    store = place.open()
    changes = [
        records.partition(),
        *records.stored_request(1),
        records.observation(),
        Removal((1,)),
        *records.stored_request(2),
    ]
    store.write(changes)
    once = records.plain(store.load())
    store.write(changes)
    assert records.plain(store.load()) == once
    assert len(once) == 4


def test_a_record_replaces_the_one_with_its_id(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition(), records.answer(), records.entry(vector=None)])
    indexed = records.entry(text="again", class_id=77)
    store.write([records.partition(1, new="fact"), records.answer(1, text="b")])
    store.write([indexed])
    partition, answer, entry = store.load()
    assert partition.facts["new"] == "fact"
    assert answer.text == "b"
    assert records.plain([entry]) == records.plain([indexed])


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_newer_entry_wins_an_exact_key(
    place: StorePlace, records: Records, order: tuple[int, int]
) -> None:
    store = place.open()
    store.write([records.partition(), records.answer(1), records.answer(2)])
    key = records.key("exact", 0)
    for number in order:
        store.write([records.entry(number, exact_key=key)])
    *_, entry = store.load()
    assert entry.entry_id == 2
    assert len(list(store.load())) == 3  # the loser's answer is not live


def test_removed_entries_and_their_answers_are_gone(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition()])
    for number in (1, 2, 3):
        store.write(records.stored_request(number))
    store.write([Removal(tuple(range(2, 1203))), Removal(())])
    _, answer, entry = store.load()
    assert (answer.answer_id, entry.entry_id) == (1, 1)


def test_expired_entries_are_never_loaded(place: StorePlace, records: Records) -> None:
    store = place.open()
    store.write(
        [
            records.partition(),
            *records.stored_request(1),
            records.answer(2),
            records.entry(2, expires_s=time.time() - 0.001),
            records.answer(3),
        ]
    )
    assert [type(r).__name__ for r in store.load()] == [
        "PartitionRecord",
        "AnswerRecord",
        "EntryRecord",
    ]


def test_an_entry_without_its_answer_or_partition_is_not_loaded(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    elsewhere = records.key("partition", 2)
    store.write([records.partition(), records.answer(1)])
    store.write([records.entry(1, partition=elsewhere), records.entry(2)])
    assert not [r for r in store.load() if type(r).__name__ == "EntryRecord"]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda r: r.answer(2**63), "answer_id"),
        (lambda r: r.answer(token_ids=(2**31,)), "token_ids"),
        (lambda r: r.answer(text=None), "text"),
        (lambda r: r.answer(generation_s=float("nan")), "generation_s"),
        (lambda r: r.answer(stop_reason=1.5), "stop_reason"),
        (lambda r: r.entry(exact_key=b"short"), "exact_key"),
        (lambda r: r.entry(vector=np.array([np.inf], np.float32)), "vector"),
        (lambda r: r.entry(vector=np.zeros((2, 2), np.float32)), "vector"),
        (lambda r: r.entry(expires_s=float("inf")), "expires_s"),
        (lambda r: r.observation(label="yes"), "label"),
        (lambda r: r.partition(1, odd=3), "facts"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name_and_nothing_is_written(
    place: StorePlace, records: Records, make: Callable[[Records], Change], field: str
) -> None:
    store = place.open()
    with pytest.raises(ValueError, match=field):
        store.write([records.partition(5), make(records)])
    assert list(store.load()) == []
    store.write([records.partition(5)])
    assert len(list(store.load())) == 1


def test_a_failing_source_of_changes_writes_nothing(
    place: StorePlace, records: Records
) -> None:
    def changes() -> Iterator[Change]:
        yield records.partition()
        yield from (records.answer(number) for number in range(700))
        raise RuntimeError("source broke")

    store = place.open()
    with pytest.raises(RuntimeError, match="source broke"):
        store.write(changes())
    assert list(store.load()) == []


def test_loading_is_a_snapshot_and_does_not_delay_writing(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition(), *records.stored_request(1)])
    loading = store.load()
    first = next(loading)
    store.write(records.stored_request(2))
    assert len([first, *loading]) == 3
    assert len(list(store.load())) == 5


def test_a_load_that_is_given_up_leaves_the_store_usable(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition(), *records.stored_request(1)])
    loading = store.load()
    next(loading)
    loading.close()
    store.write(records.stored_request(2))
    assert len(list(store.load())) == 5


def test_the_secret_is_made_once(place: StorePlace) -> None:
    store = place.open()
    secret = store.secret()
    assert len(secret) == 32
    store.close()
    assert place.open().secret() == secret


def test_a_closed_store_says_so(place: StorePlace, records: Records) -> None:
    store = place.open()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.write([records.partition()])


def test_several_threads_write_and_read_at_once(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition()])
    failures: list[Exception] = []

    def work(worker: int) -> None:
        try:
            for step in range(10):
                store.write(records.stored_request(1 + worker * 10 + step))
                list(store.load())
                store.purge(time.time())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    entries = [r for r in store.load() if type(r).__name__ == "EntryRecord"]
    assert len(entries) == 40


def test_memory_keeps_nothing(records: Records) -> None:
    store = open_store("memory")
    store.write([records.partition()])
    assert list(store.load()) == []
    assert (store.size_bytes(), store.purge(0.0)) == (0, 0)
    assert store.changes_since(None) == ([], 0)
    assert not store.shared
    assert len(store.secret()) == 32
    store.close()
