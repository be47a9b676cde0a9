# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Stores as the command line reads them: never changed, never locked, never made.

A SQLite file belongs to the one process that uses it, so it is copied first, which
SQLite can do while a server writes to it.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from .cli_error import CliError
from .store import Store, StoreError, open_store, sqlite_path

POSTGRES_SCHEMA = "vectorq"


def store_url(given: str) -> str:
    """Return the URL of a store; a plain path names a SQLite file."""
    if "://" in given:
        return given
    if given == "memory":
        raise CliError("a store in memory ends with its server; name another one.")
    return sqlite_url(Path(given))


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file."""
    return f"sqlite://{quote(str(path.absolute()))}"


@contextmanager
def reading(url: str) -> Iterator[tuple[Store, int]]:
    """Open a store for reading; gives it and the disk space it uses, in bytes.

    Raises:
        CliError: There is no such store, or it cannot be read.
        StoreError: The URL, the driver or the permissions do not fit.
    """
    if url.startswith("sqlite:"):
        with _copied(sqlite_path(url)) as (store, size_bytes):
            yield store, size_bytes
        return
    if url.startswith(("postgresql:", "postgres:")):
        _check_postgres(url)
    store = open_store(url, schema=POSTGRES_SCHEMA)
    try:
        yield store, store.size_bytes()
    finally:
        store.close()


@contextmanager
def _copied(path: Path) -> Iterator[tuple[Store, int]]:
    if not path.is_file():
        raise CliError(f"there is no store {path}.")
    journal = path.with_name(path.name + "-wal")
    size_bytes = path.stat().st_size
    size_bytes += journal.stat().st_size if journal.exists() else 0
    with tempfile.TemporaryDirectory(prefix="vllm-vectorq-") as folder:
        copy = Path(folder, "copy.db")
        try:
            _copy(path, copy)
            store = open_store(sqlite_url(copy))
        except sqlite3.Error as error:
            raise CliError(f"{path} cannot be read: {error}.") from error
        except StoreError as error:
            raise CliError(
                str(error).replace(str(copy.resolve()), str(path))
            ) from error
        try:
            # Opening sets a damaged file aside and begins a new one.
            if any(Path(folder).glob("*.damaged-*")):
                raise CliError(f"{path} is damaged; its server will begin a new one.")
            yield store, size_bytes
        finally:
            store.close()


def _copy(path: Path, copy: Path) -> None:
    source = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    target = sqlite3.connect(copy)
    try:
        source.backup(target)
    finally:
        target.close()
        source.close()
    copy.chmod(0o600)


def _check_postgres(url: str) -> None:
    """Refuse a database without a cache, in which opening would make one."""
    from .store_postgres_session import Server

    server = Server(url, POSTGRES_SCHEMA)
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
            found = connection.execute(
                "SELECT to_regclass(%s)", (f"{POSTGRES_SCHEMA}.state",)
            ).fetchone()
    except psycopg.Error as error:
        raise server.unavailable(error) from error
    if found is None or found[0] is None:
        raise CliError(f"there is no store in {server.place}.")
