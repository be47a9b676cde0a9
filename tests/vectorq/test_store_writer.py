# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The writer thread: bounds, errors, order, foreign changes."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.vectorq.store_cases import Records, StorePlace
from vllm_vectorq.record import AnswerRecord, Change, EntryRecord, Removal
from vllm_vectorq.store import (
    PURGE_ROWS,
    CursorTooOld,
    MemoryStore,
    StoreUnavailable,
)
from vllm_vectorq.store_queue import ChangeQueue, approximate_bytes
from vllm_vectorq.store_writer import StoreWriter

LOGGER = logging.getLogger("test.store_writer")
WaitUntil = Callable[[Callable[[], bool]], None]


class ScriptedStore(MemoryStore):
    """Keeps batches; fails, waits and hands out changes as a test says."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared
        self.batches: list[list[Change]] = []
        self.failure: Exception | None = None
        self.refused: Change | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.attempts = 0
        self.foreign: list[list[Change] | Exception] = []
        self.purges: list[int] = []
        self.num_purges = 0

    def write(self, changes: Iterable[Change]) -> None:
        batch = list(changes)
        self.attempts += 1
        self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        if self.refused in batch:
            raise ValueError("refused")
        self.batches.append(batch)

    def changes_since(self, cursor: int | None) -> tuple[list[Change], int]:
        if cursor is None:
            return [], 100
        if cursor - 100 >= len(self.foreign):
            return [], cursor
        step = self.foreign[cursor - 100]
        if isinstance(step, Exception):
            raise step
        return step, cursor + 1

    def purge(self, now_s: float) -> int:
        self.num_purges += 1
        return self.purges.pop(0) if self.purges else 0

    @property
    def written(self) -> list[Change]:
        return [change for batch in self.batches for change in batch]


@pytest.fixture
def start() -> Iterator[Callable[..., StoreWriter]]:
    """Makes writers and ends their threads."""
    writers: list[StoreWriter] = []
    stores: list[ScriptedStore] = []

    def make(store: ScriptedStore, **options: object) -> StoreWriter:
        options = {"interval_s": 0.01, **options}
        writers.append(StoreWriter(store, LOGGER, **options))
        stores.append(store)
        return writers[-1]

    yield make
    for store in stores:
        store.gate.set()
    for writer in writers:
        writer.close(10)


def test_everything_is_written_once_and_in_order(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    store = ScriptedStore()
    writer = start(store)
    for number in range(2_000):
        writer.submit(records.answer(number))
    assert writer.flush(60)
    assert [change.answer_id for change in store.written] == list(range(2_000))
    counts = writer.counts()
    assert (counts["written"], counts["pending"], counts["dropped"]) == (2_000, 0, 0)


def test_changes_are_written_without_being_asked(
    start: Callable[..., StoreWriter], records: Records, wait_until: WaitUntil
) -> None:
    store = ScriptedStore()
    start(store, interval_s=0.2).submit(records.partition())
    wait_until(lambda: len(store.written) == 1)


def test_batches_are_bounded_and_keep_an_answer_with_its_entry(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    store = ScriptedStore()
    store.gate.clear()
    writer = start(store)
    writer.submit(records.partition())
    while not store.attempts:
        time.sleep(0.001)
    for number in range(1_000):
        for change in records.stored_request(number):
            writer.submit(change)
    store.gate.set()
    assert writer.flush(60)
    assert len(store.written) == 2_001
    assert max(map(len, store.batches)) <= 501
    assert not any(isinstance(batch[-1], AnswerRecord) for batch in store.batches)


def test_submitting_does_not_wait_for_the_store(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    store = ScriptedStore()
    store.gate.clear()
    writer = start(store, max_changes=100)
    for number in range(10_000):
        writer.submit(records.answer(number))
    assert not writer.flush(0.05)
    assert not store.batches


def test_while_the_store_is_away_the_newest_changes_are_kept(
    start: Callable[..., StoreWriter],
    records: Records,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
) -> None:
    store = ScriptedStore()
    store.failure = StoreUnavailable("server is away")
    writer = start(store, max_changes=100)
    for number in range(1_000):
        writer.submit(records.answer(number))
    wait_until(lambda: writer.counts()["pending"] == 100)
    wait_until(lambda: writer.counts().get("failed_write", 0) > 0)
    store.failure = None
    assert writer.flush(60)
    assert [change.answer_id for change in store.written] == list(range(900, 1_000))
    counts = writer.counts()
    assert (counts["written"], counts["dropped"]) == (100, 900)
    assert counts["failed_write"] >= 1
    assert caplog.text.count("server is away") == 1


def test_partitions_and_removals_are_dropped_last(
    start: Callable[..., StoreWriter], records: Records, wait_until: WaitUntil
) -> None:
    store = ScriptedStore()
    store.failure = StoreUnavailable("server is away")
    writer = start(store, max_changes=10)
    for number in range(5):
        writer.submit(records.partition(number))
        writer.submit(Removal((number,)))
        for step in range(20):
            writer.submit(records.answer(100 * number + step))
    wait_until(lambda: writer.counts()["pending"] == 20)
    store.failure = None
    assert writer.flush(60)
    kept = store.written
    assert records.plain(kept[:10:2]) == records.plain(map(records.partition, range(5)))
    assert [change.entry_ids for change in kept[1:10:2]] == [(n,) for n in range(5)]
    assert [change.answer_id for change in kept[10:]] == list(range(410, 420))


def test_memory_is_bounded_in_bytes(records: Records) -> None:
    queue = ChangeQueue(10**6, 100_000)
    for number in range(100):
        queue.put(records.answer(number, text="x" * 10_000))
    assert queue.pending == 9
    assert queue.dropped == 91
    queue.put(records.answer(1, text="x" * 200_000))
    assert (queue.pending, queue.dropped) == (0, 101)


def test_what_is_put_by_is_bounded_too(records: Records) -> None:
    queue = ChangeQueue(10, 10**9)
    for number in range(100):
        queue.put(Removal((number,)))
    assert (queue.pending, queue.dropped) == (20, 80)
    taken = queue.take(100)
    assert [change.entry_ids[0] for change in taken] == list(range(80, 100))


def test_order_survives_putting_back_and_dropping(records: Records) -> None:
    queue = ChangeQueue(4, 10**9)
    for number in range(4):
        queue.put(Removal((number,)))
    assert len(queue.take(2)) == 2
    for number in range(4, 8):
        queue.put(Removal((number,)))
    queue.put_back()
    assert [change.entry_ids[0] for change in queue.take(100)] == list(range(8))


def test_sizes_are_estimated_for_every_kind(records: Records) -> None:
    sizes = [
        approximate_bytes(change)
        for change in (
            records.partition(),
            records.answer(text="x" * 1000),
            records.entry(text=None, vector=records.vector(1, 384)),
            records.observation(),
            Removal(tuple(range(100))),
        )
    ]
    assert sizes[1] > 1000
    assert sizes[2] > 4 * 384
    assert sizes[4] > 8 * 100
    assert min(sizes) > 0


def test_a_change_that_cannot_be_stored_does_not_hold_up_others(
    start: Callable[..., StoreWriter],
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ScriptedStore()
    store.refused = records.answer(50)
    writer = start(store, interval_s=0.2)
    for number in range(100):
        writer.submit(records.answer(number))
    assert writer.flush(60)
    expected = [number for number in range(100) if number != 50]
    assert [change.answer_id for change in store.written] == expected
    assert writer.counts()["rejected"] == 1
    assert writer.counts()["written"] == 99
    assert caplog.text.count("rejected: ValueError") == 1


def test_a_store_that_goes_away_in_between_loses_and_doubles_nothing(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    class Flaky(ScriptedStore):
        def write(self, changes: Iterable[Change]) -> None:
            batch = list(changes)
            if len(batch) > 1:
                raise ValueError("refused")
            self.attempts += 1
            if self.attempts % 3 == 0:
                raise StoreUnavailable("away")
            super().write(batch)

    store = Flaky()
    writer = start(store)
    for number in range(20):
        writer.submit(records.answer(number))
    deadline_s = time.monotonic() + 60
    while not writer.flush(0.02) and time.monotonic() < deadline_s:
        pass
    assert [change.answer_id for change in store.written] == list(range(20))
    assert writer.counts()["rejected"] == 0


def test_the_thread_survives_everything(
    start: Callable[..., StoreWriter],
    records: Records,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
) -> None:
    class Broken(ScriptedStore):
        broken = True

        def write(self, changes: Iterable[Change]) -> None:
            if self.broken:
                raise MemoryError("write")
            super().write(changes)

        def changes_since(self, cursor: int | None) -> tuple[list[Change], int]:
            if self.broken:
                raise KeyError("foreign")
            return super().changes_since(cursor)

        def purge(self, now_s: float) -> int:
            if self.broken:
                raise ZeroDivisionError("purge")
            return super().purge(now_s)

    store = Broken(shared=True)
    writer = start(store, cursor=100, on_foreign=list, purge_interval_s=0.0)
    writer.submit(records.partition())
    kinds = ("failed_write", "failed_foreign", "failed_purge")
    wait_until(lambda: all(writer.counts().get(kind, 0) for kind in kinds))
    wait_until(lambda: writer.counts()["failed_purge"] > 3)
    store.broken = False
    writer.submit(records.partition(2))
    assert writer.flush(60)
    wait_until(lambda: store.num_purges > 0)
    assert len(store.written) == 1
    for name in ("MemoryError", "KeyError", "ZeroDivisionError"):
        assert f"{name}:" in caplog.text
    assert caplog.text.count("KeyError:") == 1


def test_an_object_that_is_no_change_is_rejected_quietly(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    store = ScriptedStore()
    writer = start(store)
    writer.submit("no change")
    writer.submit(records.partition())
    assert writer.flush(60)
    assert (writer.counts()["rejected"], writer.counts()["written"]) == (1, 1)


def test_foreign_changes_are_handed_on_in_order(
    start: Callable[..., StoreWriter], records: Records, wait_until: WaitUntil
) -> None:
    store = ScriptedStore(shared=True)
    store.foreign = [[records.answer(1), records.answer(2)], [], [records.answer(3)]]
    seen: list[int] = []
    writer = start(
        store,
        cursor=100,
        on_foreign=lambda changes: seen.extend(c.answer_id for c in changes),
    )
    wait_until(lambda: len(seen) == 3)
    assert seen == [1, 2, 3]
    assert writer.counts()["foreign"] == 3
    assert len(store.written) == 0


def test_foreign_changes_start_when_the_writer_is_made_and_wait_for_a_taker(
    start: Callable[..., StoreWriter], records: Records, wait_until: WaitUntil
) -> None:
    store = ScriptedStore(shared=True)
    seen: list[Change] = []
    writer = start(store, purge_interval_s=0.0)
    store.foreign = [[records.answer(1)]]
    wait_until(lambda: store.num_purges > 3)
    assert writer.counts()["foreign"] == 0
    writer.on_foreign = seen.extend
    wait_until(lambda: len(seen) == 1)


def test_a_gap_in_foreign_changes_is_told(
    start: Callable[..., StoreWriter],
    records: Records,
    wait_until: WaitUntil,
) -> None:
    store = ScriptedStore(shared=True)
    store.foreign = [[records.answer(1)], CursorTooOld("too old")]
    gaps: list[int] = []

    def on_gap() -> None:
        gaps.append(1)
        store.foreign = []

    writer = start(store, cursor=100, on_foreign=list, on_gap=on_gap)
    wait_until(lambda: len(gaps) == 1)
    assert writer.counts()["gaps"] == 1


def test_a_failing_callback_costs_only_itself(
    start: Callable[..., StoreWriter],
    records: Records,
    wait_until: WaitUntil,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ScriptedStore(shared=True)
    store.foreign = [[records.answer(1)], [records.answer(2)]]
    seen: list[Change] = []

    def on_foreign(changes: list[Change]) -> None:
        seen.extend(changes)
        raise RuntimeError("callback broke")

    writer = start(store, cursor=100, on_foreign=on_foreign)
    writer.submit(records.partition())
    wait_until(lambda: len(seen) == 2)
    assert writer.flush(60)
    wait_until(lambda: writer.counts()["failed_callback"] == 2)
    assert caplog.text.count("callback broke") == 1


def test_stores_of_one_process_are_not_asked_for_foreign_changes(
    start: Callable[..., StoreWriter], records: Records, wait_until: WaitUntil
) -> None:
    store = ScriptedStore(shared=False)
    store.foreign = [[records.answer(1)]]
    writer = start(store, cursor=100, purge_interval_s=0.0)
    wait_until(lambda: store.num_purges > 3)
    assert writer.counts()["foreign"] == 0


def test_purging_goes_on_at_once_while_there_is_more(
    start: Callable[..., StoreWriter], wait_until: WaitUntil
) -> None:
    store = ScriptedStore()
    store.purges = [PURGE_ROWS, PURGE_ROWS, 5]
    writer = start(store, purge_interval_s=0.05)
    wait_until(lambda: not store.purges)
    wait_until(lambda: writer.counts()["purged"] == 2 * PURGE_ROWS + 5)


def test_closing_writes_what_is_left_and_refuses_the_rest(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    store = ScriptedStore()
    writer = start(store, interval_s=60.0)
    for number in range(1_200):
        writer.submit(records.answer(number))
    assert writer.close(60)
    assert len(store.written) == 1_200
    writer.submit(records.answer(1))
    assert writer.counts()["dropped"] == 1
    assert writer.close(1)
    assert writer.flush(1)


def test_closing_does_not_wait_longer_than_asked(
    start: Callable[..., StoreWriter], records: Records
) -> None:
    store = ScriptedStore()
    store.gate.clear()
    writer = start(store)
    writer.submit(records.partition())
    assert not writer.close(0.05)
    assert writer.counts()["pending"] == 1


def test_two_processes_share_what_they_write(
    postgres_place: StorePlace, records: Records, wait_until: WaitUntil
) -> None:
    seen: list[list[Change]] = [[], []]
    stores = [postgres_place.open(), postgres_place.open()]
    writers = [
        StoreWriter(
            store,
            LOGGER,
            on_foreign=seen[index].extend,
            cursor=store.changes_since(None)[1],
            interval_s=0.02,
        )
        for index, store in enumerate(stores)
    ]
    for index, writer in enumerate(writers):
        writer.submit(records.partition(index))
        for number in range(300):
            for change in records.stored_request(1 + 1_000 * index + number):
                writer.submit(change)
    assert all(writer.flush(60) for writer in writers)
    wait_until(lambda: all(len(changes) == 601 for changes in seen))
    for index, changes in enumerate(seen):
        entries = [c.entry_id for c in changes if isinstance(c, EntryRecord)]
        assert entries == [1 + 1_000 * (1 - index) + n for n in range(300)]
    assert all(writer.close(60) for writer in writers)


def test_nothing_is_lost_when_the_server_goes_away_for_a_while(
    postgres_place: StorePlace, records: Records
) -> None:
    import psycopg

    store = postgres_place.open()
    writer = StoreWriter(store, LOGGER, interval_s=0.01)
    writer.submit(records.partition())
    with psycopg.connect(postgres_place.url, autocommit=True) as admin:
        for number in range(1, 400):
            for change in records.stored_request(number):
                writer.submit(change)
            if number % 50 == 0:
                writer.flush(0.1)
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'vllm_vectorq'"
                )
    deadline_s = time.monotonic() + 60
    while not writer.flush(0.5) and time.monotonic() < deadline_s:
        pass
    entries = [r.entry_id for r in store.load() if isinstance(r, EntryRecord)]
    assert entries == list(range(1, 400))
    counts = writer.counts()
    assert sum(n for name, n in counts.items() if name.startswith("failed_")) > 0
    assert writer.close(60)
