# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What every store promises, and what only one kind does."""

import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.vectorq.store_cases import Records, StorePlace
from vllm_vectorq.record import Change, Removal, new_id
from vllm_vectorq.store import (
    PURGE_ROWS,
    CursorTooOld,
    StoreError,
    StoreUnavailable,
    open_store,
    sqlite_path,
)

DAY_S = 86_400.0
ODD_TEXTS = [
    "",
    "plain",
    "NUL \0 inside and at the end \0",
    "Größe 東京 🦊 \u2028 \N{ZERO WIDTH JOINER}",
    "lone \ud83d surrogate",
    "two lone ones \ud83d\ude00 side by side",
    'quotes " \\ and \r\n line ends',
]


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


def test_purge_deletes_what_can_never_be_served(
    place: StorePlace, records: Records
) -> None:
    now_s = time.time()
    store = place.open()
    expired = records.entry(2, expires_s=now_s - 1)
    store.write(
        [records.partition(1), records.partition(2), *map(records.answer, (1, 2, 3))]
    )
    store.write([records.entry(1), expired])
    # Entry 2, its answer and answer 3; partition 2 was written just now.
    assert store.purge(now_s) == 3
    assert len(list(store.load())) == 4
    # Everything has expired by tomorrow.
    assert store.purge(now_s + DAY_S) == 4
    assert list(store.load()) == []


def test_purge_leaves_a_new_answer_that_waits_for_its_entry(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    number = new_id()
    store.write([records.partition(), records.answer(number)])
    assert store.purge(time.time()) == 0
    store.write([records.entry(number)])
    assert len(list(store.load())) == 3


def test_purge_does_a_bounded_amount_per_call(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition()])
    total = 2 * PURGE_ROWS + 10
    store.write(records.entry(n, expires_s=1.0) for n in range(1, total + 1))
    purged = [store.purge(time.time()) for _ in range(4)]
    assert purged == [PURGE_ROWS, PURGE_ROWS, 10, 0]


def test_purge_keeps_the_newest_observations_of_each_partition(
    place: StorePlace, records: Records
) -> None:
    store = place.open(max_observations=3)
    other = records.key("partition", 2)
    store.write([records.partition(1), records.partition(2)])
    store.write(map(records.observation, (5, 1, 4, 2, 3)))
    store.write(records.observation(n, partition=other) for n in (8, 9))
    assert store.purge(0.0) == 2
    store.write([records.observation(6)])
    assert store.purge(0.0) == 1
    kept = [r.observation_id for r in store.load() if hasattr(r, "observation_id")]
    assert kept == [4, 5, 6, 8, 9]


def test_a_smaller_limit_of_observations_holds_after_a_restart(
    place: StorePlace, records: Records
) -> None:
    store = place.open()
    store.write([records.partition(), *map(records.observation, range(10))])
    store.close()
    assert place.open(max_observations=4).purge(0.0) == 6


def test_labels_outlive_the_entries_of_a_partition_for_a_week(
    place: StorePlace, records: Records
) -> None:
    now_s = time.time()
    store = place.open()
    store.write([records.partition(), records.observation(new_id())])
    assert store.purge(now_s + 6 * DAY_S) == 0
    assert store.purge(now_s + 8 * DAY_S) == 2
    assert list(store.load()) == []


def test_purge_goes_through_everything_in_the_end(
    place: StorePlace, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_vectorq.store_purge.SWEPT_ANSWERS", 4)
    store = place.open()
    store.write([records.partition(), *map(records.answer, range(1, 11))])
    store.write([records.entry(2)])
    purged = [store.purge(time.time()) for _ in range(4)]
    assert purged == [3, 4, 2, 0]


def test_size_grows_and_shrinks(
    place: StorePlace, records: Records, postgres_vacuum: Callable[[StorePlace], None]
) -> None:
    store = place.open()
    before = store.size_bytes()
    text = "".join(map(chr, random.Random(1).choices(range(32, 0xD000), k=2_000)))
    store.write([records.partition()])
    for start in range(1, 2_001, 500):
        numbers = range(start, start + 500)
        store.write(records.answer(n, text=text) for n in numbers)
        store.write(records.entry(n, text=text) for n in numbers)
    store.purge(time.time())
    grown = store.size_bytes()
    assert grown > before + 2_000 * 4_000
    store.write([Removal(tuple(range(1, 2_001)))])
    for _ in range(10):
        store.purge(time.time() + DAY_S)
    postgres_vacuum(place)
    assert store.size_bytes() < before + (grown - before) / 2
    assert list(store.load()) == []


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


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://localhost", "'redis', which is not known"),
        ("", "is not known"),
        ("sqlite://relative.db", "ABSOLUTE"),
        ("sqlite:///", "names no file"),
        ("sqlite:///tmp/", "names no file"),
        ("sqlite:///a.db?mode=ro", "names no file"),
        ("sqlite:///a%00b", "names no file"),
        ("sqlite:///no/such/directory/a.db", "existing directory"),
    ],
)
def test_a_url_that_does_not_fit_is_explained(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_store(url)


def test_sqlite_urls_name_absolute_paths() -> None:
    assert sqlite_path("sqlite:///a/b%20c.db") == Path("/a/b c.db")
    assert sqlite_path("sqlite:////a/b.db") == Path("/a/b.db")


def test_a_limit_below_one_observation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="1 or more"):
        open_store(f"sqlite://{tmp_path}/a.db", max_observations=0)


def test_sqlite_files_are_private(sqlite_place: StorePlace, records: Records) -> None:
    path = sqlite_path(sqlite_place.url)
    path.touch(mode=0o666)
    store = sqlite_place.open()
    store.write([records.partition()])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert {f.suffix for f in path.parent.iterdir()} > {".db", ".lock", ".db-wal"}


def test_sqlite_has_no_foreign_changes(
    sqlite_place: StorePlace, records: Records
) -> None:
    store = sqlite_place.open()
    store.write([records.partition()])
    assert not store.shared
    assert store.changes_since(None) == ([], 0)
    assert store.changes_since(0) == ([], 0)


def test_one_process_opens_a_sqlite_file_once(sqlite_place: StorePlace) -> None:
    sqlite_place.open()
    with pytest.raises(StoreError, match="PostgreSQL"):
        sqlite_place.open()


def test_another_process_is_kept_out_until_the_first_one_dies(
    sqlite_place: StorePlace, records: Records
) -> None:
    code = (
        "import sys, time; from vllm_vectorq.store import open_store;"
        "store = open_store(sys.argv[1]); print('open', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, sqlite_place.url], stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match="PostgreSQL"):
            sqlite_place.open()
        first.kill()
    sqlite_place.open().write([records.partition()])


@pytest.mark.parametrize(
    "content",
    [b"a file of somebody\n", b"x" * 5000, b"\0" * 200],
    ids=["text", "long text", "zeros"],
)
def test_a_file_that_is_not_ours_is_left_as_it_is(
    sqlite_place: StorePlace, content: bytes
) -> None:
    path = sqlite_path(sqlite_place.url)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not made by this plugin"):
        sqlite_place.open()
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_left_as_it_is(
    sqlite_place: StorePlace,
) -> None:
    path = sqlite_path(sqlite_place.url)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match="not made by this plugin"):
        sqlite_place.open()
    assert path.read_bytes() == content


def test_a_directory_is_not_taken_for_a_file(sqlite_place: StorePlace) -> None:
    sqlite_path(sqlite_place.url).mkdir()
    with pytest.raises(StoreError, match="no file"):
        sqlite_place.open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(sqlite_place: StorePlace) -> None:
    path = sqlite_path(sqlite_place.url)
    path.touch()
    os.chown(path, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to user 12345"):
        sqlite_place.open()


def test_a_newer_sqlite_file_is_refused_and_kept(sqlite_place: StorePlace) -> None:
    sqlite_place.open().close()
    path = sqlite_path(sqlite_place.url)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer version"):
        sqlite_place.open()
    assert [f.name for f in path.parent.glob("*damaged*")] == []


def test_a_full_disk_is_unavailable_and_heals(
    sqlite_place: StorePlace, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sqlite_place.open()
    store._connection.execute("PRAGMA max_page_count = 1")
    big = [records.partition(), records.answer(1, text="x" * 5_000_000)]
    with pytest.raises(StoreUnavailable, match="full"):
        store.write(big)
    assert list(store.load()) == []
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.write([*big, records.entry()])
    assert len(list(store.load())) == 3


def test_postgres_writers_see_each_others_changes_once_and_in_order(
    postgres_place: StorePlace, records: Records
) -> None:
    stores = [postgres_place.open() for _ in range(3)]
    onlooker = postgres_place.open()
    starts = [store.changes_since(None)[1] for store in [*stores, onlooker]]
    seen: list[list[int]] = [[] for _ in range(4)]
    written: list[list[int]] = [[] for _ in range(3)]

    def poll(index: int, cursor: int) -> int:
        store = [*stores, onlooker][index]
        changes, cursor = store.changes_since(cursor)
        seen[index] += [change.answer_id for change in changes]
        return cursor

    def work(index: int) -> None:
        chance = random.Random(index)
        cursor = starts[index]
        for _ in range(40):
            numbers = [1 + len(written[index]) + n for n in range(chance.randint(1, 5))]
            batch = [index * 1_000_000 + number for number in numbers]
            stores[index].write(map(records.answer, batch))
            written[index] += batch
            for _ in range(chance.randint(0, 2)):
                cursor = poll(index, cursor)
        starts[index] = cursor

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        starts[3] = poll(3, starts[3])
        time.sleep(0.001)
    for index in range(4):
        while (cursor := poll(index, starts[index])) != starts[index]:
            starts[index] = cursor
    everything = seen[3]
    assert sorted(everything) == sorted(chain(*written))
    for index in range(3):
        own = range(index * 1_000_000, (index + 1) * 1_000_000)
        assert [n for n in everything if n in own] == written[index]
        assert seen[index] == [n for n in everything if n not in own]


def test_postgres_hands_on_every_kind_of_change(
    postgres_place: StorePlace, records: Records
) -> None:
    writer, reader = postgres_place.open(), postgres_place.open()
    _, cursor = reader.changes_since(None)
    changes = [
        records.partition(1, odd="\ud83d\ude00 \0"),
        records.answer(1, stop_reason="x", text=ODD_TEXTS[5]),
        records.entry(1),
        records.entry(2, vector=None, principal=b"\0"),
        records.observation(),
        Removal((1, 2**62)),
    ]
    writer.write(changes)
    received, cursor = reader.changes_since(cursor)
    assert records.plain(received) == records.plain(changes)
    assert reader.changes_since(cursor) == ([], cursor)
    assert writer.changes_since(None)[1] == cursor


def test_postgres_hands_on_a_large_transaction_in_pieces(
    postgres_place: StorePlace, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_vectorq.store_postgres.CHANGES_PER_LOG_ROW", 7)
    monkeypatch.setattr("vllm_vectorq.store_postgres.LOG_ROWS_PER_CALL", 3)
    writer, reader = postgres_place.open(), postgres_place.open()
    _, cursor = reader.changes_since(None)
    writer.write(map(records.answer, range(100)))
    sizes, ids = [], []
    while True:
        changes, following = reader.changes_since(cursor)
        if following == cursor:
            break
        cursor = following
        sizes.append(len(changes))
        ids += [change.answer_id for change in changes]
    assert sizes == [21, 21, 21, 21, 16]
    assert ids == list(range(100))


def test_postgres_says_when_the_log_no_longer_reaches_back(
    postgres_place: StorePlace, records: Records
) -> None:
    writer, reader = postgres_place.open(), postgres_place.open()
    writer.write([records.partition()])
    _, old = reader.changes_since(None)
    writer.write([records.answer()])
    writer.purge(time.time() + 60)
    assert len(reader.changes_since(old)[0]) == 1
    writer.purge(time.time() + 2 * DAY_S)
    with pytest.raises(CursorTooOld, match="Load everything again"):
        reader.changes_since(old)
    _, new = reader.changes_since(None)
    assert reader.changes_since(new) == ([], new)
    with pytest.raises(CursorTooOld):
        reader.changes_since(new + 1)


def test_postgres_reconnects_after_the_connection_broke(
    postgres_place: StorePlace, records: Records
) -> None:
    import psycopg

    store = postgres_place.open()
    with psycopg.connect(postgres_place.url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'vllm_vectorq'"
        )
    with pytest.raises(StoreUnavailable, match="cannot be used now"):
        store.write([records.partition()])
    store.write([records.partition()])
    assert len(list(store.load())) == 1


def test_postgres_may_be_opened_by_many_at_once(postgres_place: StorePlace) -> None:
    failures: list[Exception] = []

    def open_one() -> None:
        try:
            postgres_place.open()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({store.secret() for store in postgres_place.opened}) == 1


def test_postgres_refuses_a_schema_with_other_tables(
    postgres_place: StorePlace,
) -> None:
    import psycopg

    with psycopg.connect(postgres_place.url, autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {postgres_place.schema}")
        admin.execute(f"CREATE TABLE {postgres_place.schema}.photos (name text)")
    with pytest.raises(StoreError, match="did not make"):
        postgres_place.open()


def test_postgres_refuses_a_newer_schema(postgres_place: StorePlace) -> None:
    import psycopg

    postgres_place.open().close()
    with psycopg.connect(postgres_place.url, autocommit=True) as admin:
        admin.execute(f"UPDATE {postgres_place.schema}.state SET version = 99")
    with pytest.raises(StoreError, match="newer version"):
        postgres_place.open()


@pytest.mark.parametrize("schema", ["", "Vectorq", 'a"; DROP TABLE x', "pg_own"])
def test_postgres_refuses_an_odd_schema_name(schema: str) -> None:
    with pytest.raises(StoreError, match="schema"):
        open_store("postgresql://localhost/x", schema=schema)


def test_postgres_takes_reserved_words_as_schema(
    postgres_place: StorePlace, records: Records
) -> None:
    import psycopg

    with psycopg.connect(postgres_place.url, autocommit=True) as admin:
        postgres_place.schema = "select"
        try:
            store = postgres_place.open()
            store.write([records.partition()])
            assert len(list(store.load())) == 1
        finally:
            postgres_place.close_all()
            admin.execute('DROP SCHEMA IF EXISTS "select" CASCADE')
            postgres_place.schema = "unused"


def test_a_missing_driver_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install 'psycopg\[binary\]>=3.1'"):
        open_store("postgresql://localhost/x")


def test_an_unreachable_server_is_explained_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1") as raised:
        open_store("postgresql://me:hunter2@127.0.0.1:1/cache")
    assert "hunter2" not in str(raised.value)


def test_a_malformed_url_is_explained_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="cannot be read") as raised:
        open_store("postgresql://me:hunter2@host:port@x/cache?nonsense=1")
    assert "hunter2" not in str(raised.value)


def test_a_server_that_refuses_its_user_is_explained(
    postgres_place: StorePlace,
) -> None:
    import psycopg

    with psycopg.connect(postgres_place.url, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS nobody")
        admin.execute("CREATE ROLE nobody LOGIN")
    postgres_place.url = postgres_place.url.replace("postgres:@", "nobody@")
    with pytest.raises(StoreError, match="permission denied"):
        postgres_place.open()


@pytest.fixture
def postgres_vacuum() -> Callable[[StorePlace], None]:
    """Does what autovacuum does within a minute."""

    def vacuum(place: StorePlace) -> None:
        if place.kind == "postgres":
            import psycopg

            with psycopg.connect(place.url, autocommit=True) as admin:
                for table in ("answers", "entries", "changes"):
                    admin.execute(f"VACUUM {place.schema}.{table}")

    return vacuum
