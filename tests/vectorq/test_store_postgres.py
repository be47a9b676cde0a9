# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A store in PostgreSQL: what its users see of each other, and what it refuses."""

import random
import sys
import threading
import time
from itertools import chain

import pytest

from tests.vectorq.store_cases import DAY_S, ODD_TEXTS, Records, StorePlace
from vllm_vectorq.record import Removal
from vllm_vectorq.store import CursorTooOld, StoreError, StoreUnavailable, open_store


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
