# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A store in an SQLite file: its URL, its file, and whom it keeps out."""

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vectorq.store_cases import Records, StorePlace
from vllm_vectorq.store import StoreError, StoreUnavailable, open_store, sqlite_path


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
