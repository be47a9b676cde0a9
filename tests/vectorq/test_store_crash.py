# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Stores that were killed in the middle of writing, and files that were damaged."""

import random
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.vectorq.store_cases import Records, StorePlace
from vllm_vectorq.record import AnswerRecord, EntryRecord
from vllm_vectorq.store import StoreUnavailable, sqlite_path

# Submits requests as fast as a busy server does and reports each, with the time.
WRITER = """
import logging, sys, time
from tests.vectorq.store_cases import Records
from vllm_vectorq.store import open_store
from vllm_vectorq.store_writer import StoreWriter

records = Records()
store = open_store(sys.argv[1], schema=sys.argv[2])
writer = StoreWriter(store, logging.getLogger("test"))
writer.submit(records.partition())
for number in range(1, 200_000):
    for change in records.stored_request(number):
        writer.submit(change)
    print(number, time.monotonic(), writer.counts()["written"], flush=True)
    if number % 10 == 0:
        time.sleep(0.02)
"""


class KilledWriter:
    """A process that wrote to a store until it was killed."""

    def __init__(self, place: StorePlace, seconds: float) -> None:
        self.reports: list[tuple[int, float, int]] = []
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, place.url, place.schema],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        assert process.stdout is not None
        self._report(process.stdout.readline())  # it has started
        killer = threading.Timer(seconds, process.kill)
        killer.start()
        with process:
            for line in process.stdout:
                self._report(line)
        killer.join()
        assert process.returncode == -9

    def _report(self, line: str) -> None:
        parts = line.split()
        if len(parts) == 3 and line.endswith("\n"):
            self.reports.append((int(parts[0]), float(parts[1]), int(parts[2])))

    @property
    def submitted(self) -> int:
        return self.reports[-1][0]

    @property
    def written(self) -> int:
        """Changes of which the process knew that they were written."""
        return self.reports[-1][2]

    def submitted_before(self, seconds: float) -> int:
        """Requests submitted this long before the end, or before a longer standstill.

        A machine that does not let the process run for a second does not let it
        write either.
        """
        times = [at_s for _, at_s, _ in self.reports]
        standstill_s = max((b - a for a, b in pairwise(times)), default=0.0)
        end_s = times[-1] - seconds - 2 * standstill_s
        return max((n for n, at_s, _ in self.reports if at_s <= end_s), default=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_writer_leaves_a_prefix_and_loses_at_most_a_second(
    place: StorePlace, seed: int
) -> None:
    seconds = random.Random(seed).uniform(0.2, 3.0)
    killed = KilledWriter(place, seconds)
    store = place.open()
    loaded = list(store.load())
    entries = [r.entry_id for r in loaded if isinstance(r, EntryRecord)]
    answers = [r.answer_id for r in loaded if isinstance(r, AnswerRecord)]
    assert entries == list(range(1, len(entries) + 1))
    assert answers == entries
    # One more may have been submitted than was reported.
    assert len(entries) <= killed.submitted + 1
    assert 1 + 2 * len(entries) >= killed.written - 1
    assert len(entries) >= killed.submitted_before(1.0)


def test_a_store_goes_on_where_a_killed_writer_stopped(
    place: StorePlace, records: Records
) -> None:
    KilledWriter(place, 1.2)
    store = place.open()
    before = len(list(store.load()))
    store.write([records.partition(), *records.stored_request(10**9)])
    assert len(list(store.load())) >= before + 2
    store.close()
    assert list(place.open().load())[-1].entry_id == 10**9


@pytest.fixture
def filled(sqlite_place: StorePlace, records: Records) -> tuple[Path, list[object]]:
    """A closed file with all kinds of records, and what is in it."""
    store = sqlite_place.open()
    store.write([records.partition(n) for n in range(1, 30)])
    for kind in (records.answer, records.entry, records.observation):
        store.write(map(kind, range(1, 300)))
    content = records.plain(store.load())
    store.close()
    return sqlite_path(sqlite_place.url), content


def damaged_files(path: Path) -> list[Path]:
    return [f for f in path.parent.glob("*.damaged-*") if not f.name.endswith("-wal")]


def overwrite(path: Path) -> None:
    """Destroy everything but the first page."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def check_that_it_serves(place: StorePlace, records: Records) -> None:
    """Writing works, at the latest after damage was noticed while writing."""
    store = place.open()
    for _ in range(3):
        try:
            store.write([records.partition(), *records.stored_request(10**6)])
            store.purge(time.time())
        except StoreUnavailable:
            continue
        if 10**6 in [getattr(r, "entry_id", None) for r in store.load()]:
            break
    else:
        pytest.fail("nothing can be kept")
    store.close()


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_never_changes_a_record(
    sqlite_place: StorePlace,
    records: Records,
    filled: tuple[Path, list[object]],
    seed: int,
) -> None:
    path, content = filled
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    # In some files the schema, in the others anything. What tells whose file it is
    # and of which version cannot be told from another program's.
    end = 8_192 if seed % 4 == 0 else len(data)
    place = chance.choice([n for n in range(end) if not 60 <= n < 72])
    data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)

    store = sqlite_place.open()
    loaded = records.plain(store.load())
    store.close()
    assert set(loaded) <= set(content)
    assert loaded or damaged_files(path)
    check_that_it_serves(sqlite_place, records)


def test_most_flipped_bits_cost_one_record(
    sqlite_place: StorePlace,
    records: Records,
    filled: tuple[Path, list[object]],
    plugin_log: pytest.LogCaptureFixture,
) -> None:
    path, content = filled
    data = path.read_bytes()
    place = data.index(b"answer 177")
    path.write_bytes(data[:place] + b"Answer 177" + data[place + 10 :])
    store = sqlite_place.open()
    loaded = records.plain(store.load())
    # The answer and the entry that would have served it.
    assert len(loaded) == len(content) - 2
    assert set(loaded) < set(content)
    assert "1 damaged records" in plugin_log.text
    assert not damaged_files(path)


@pytest.mark.parametrize("length", [1, 15, 50, 71, 90, 100, 4096, 5000, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_set_aside(
    sqlite_place: StorePlace,
    records: Records,
    filled: tuple[Path, list[object]],
    length: float,
    plugin_log: pytest.LogCaptureFixture,
) -> None:
    path, _ = filled
    data = path.read_bytes()
    kept = data[: length if isinstance(length, int) else int(length * len(data))]
    path.write_bytes(kept)
    store = sqlite_place.open()
    assert list(store.load()) == []
    store.close()
    check_that_it_serves(sqlite_place, records)
    (damaged,) = damaged_files(path)
    assert damaged.read_bytes() == kept
    assert f"renamed to {damaged}" in plugin_log.text


def test_an_empty_file_is_begun(
    sqlite_place: StorePlace, records: Records, filled: tuple[Path, list[object]]
) -> None:
    filled[0].write_bytes(b"")
    check_that_it_serves(sqlite_place, records)
    assert not damaged_files(filled[0])


def test_damaged_files_do_not_overwrite_each_other(
    sqlite_place: StorePlace, records: Records, filled: tuple[Path, list[object]]
) -> None:
    path, _ = filled
    for number in range(3):
        data = bytearray(path.read_bytes())
        data[1] ^= 0xFF
        data.append(number)
        path.write_bytes(data)
        check_that_it_serves(sqlite_place, records)
    assert len(damaged_files(path)) == 3


def test_a_file_damaged_while_in_use_is_set_aside(
    sqlite_place: StorePlace,
    records: Records,
    filled: tuple[Path, list[object]],
    plugin_log: pytest.LogCaptureFixture,
) -> None:
    path, _ = filled
    store = sqlite_place.open()
    overwrite(path)
    assert list(store.load()) == []
    store.write([records.partition(), *records.stored_request(10**6)])
    assert [r.entry_id for r in store.load() if isinstance(r, EntryRecord)] == [10**6]
    assert len(damaged_files(path)) == 1
    assert "is damaged" in plugin_log.text


def test_loading_a_file_that_is_damaged_meanwhile_ends_early(
    sqlite_place: StorePlace, records: Records, filled: tuple[Path, list[object]]
) -> None:
    path, content = filled
    store = sqlite_place.open()
    loading = store.load()
    loaded = [next(loading)]
    overwrite(path)
    loaded += loading
    assert len(loaded) < len(content)
    assert set(records.plain(loaded)) <= set(content)
    store.write([records.partition(), *records.stored_request(10**6)])
    assert len(damaged_files(path)) == 1
    assert len(list(store.load())) == 3
