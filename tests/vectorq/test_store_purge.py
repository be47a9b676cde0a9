# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Purging: what it deletes, what it leaves, and how much it does at once."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vectorq.store_cases import DAY_S, Records, StorePlace
from vllm_vectorq.record import Removal, new_id
from vllm_vectorq.store import PURGE_ROWS, StoreError, open_store


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


def test_a_limit_below_one_observation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="1 or more"):
        open_store(f"sqlite://{tmp_path}/a.db", max_observations=0)


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
