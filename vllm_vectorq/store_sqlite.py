# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A store in one SQLite file, for one process.

The file is in WAL mode: a killed process loses only the transaction it was in. SQLite
does not notice a changed bit in a value, so every row ends with a checksum; a damaged
row is left out, a damaged file is set aside and a new one begun.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .record import AnswerRecord, Change, EntryRecord, PartitionRecord, Record
from .store import MAX_OBSERVATIONS, StoreError, StoreUnavailable
from .store_codec import pack_vector, unpack_vector
from .store_file import StoreFile
from .store_purge import Sweep
from .store_sqlite_schema import check_version, create_tables, examine, pragma
from .store_tables import TABLES, Execute, Rows, Tables

logger = logging.getLogger("vllm.plugins.vectorq")

BUSY_TIMEOUT_S = 5.0
_WAL_LIMIT_BYTES = 4 << 20
_VACUUM_PAGES = 2_000
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# A message that quotes a damaged schema may not be text.
_ERRORS = (sqlite3.Error, UnicodeDecodeError)
# What the surroundings do to a sound file.
_SURROUNDINGS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}


class SqliteStore:
    """A store in a file.

    One connection, guarded by a lock, does everything but reading, which has a
    connection of its own; so a long read delays no write.

    Args:
        path: The file, made if it does not exist.
        max_observations: Newest observations kept per partition.

    Raises:
        StoreError: The file is in use, not ours, newer, or cannot be written.
    """

    shared = False

    def __init__(self, path: Path, *, max_observations: int = MAX_OBSERVATIONS) -> None:
        self._file = StoreFile(path)
        self._tables = Tables(pack_vector, unpack_vector, checksums=True)
        self._sweep = Sweep(max_observations)
        self._guard = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._file.acquire()
        try:
            with self._session():
                pass
        except BaseException:
            self._file.release()
            raise

    def secret(self) -> bytes:
        """See :class:`~vllm_vectorq.store.Store`."""
        with self._session() as connection:
            return bytes(connection.execute("SELECT secret FROM state").fetchone()[0])

    def load(self) -> Iterator[Record]:
        """See :class:`~vllm_vectorq.store.Store`; damaged rows are left out."""
        with self._session():
            reader = self._attach()
        reader.text_factory = bytes  # a damaged type must not fail to decode
        try:
            reader.execute("BEGIN")
            yield from self._read(reader)
        except _ERRORS as error:
            with self._guard:
                failure = self._failure(error)
            # What damage left unread is lost; serving goes on with the rest.
            if not _is_damage(error):
                raise failure from error
        finally:
            reader.close()

    def write(self, changes: Iterable[Change]) -> None:
        """See :class:`~vllm_vectorq.store.Store`."""
        with self._transaction() as connection:
            execute = _executor(connection)
            for change in changes:
                self._tables.write(execute, change)
                self._sweep.note(change)

    def changes_since(self, cursor: int | None) -> tuple[list[Change], int]:
        """Nothing: nobody else writes."""
        return [], 0

    def purge(self, now_s: float) -> int:
        """See :class:`~vllm_vectorq.store.Store`; also gives disk space back."""
        with self._transaction() as connection:
            deleted = self._sweep.run(_executor(connection), now_s)
        with self._session() as connection:
            # As a script: a single statement would stop at the first page.
            connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return deleted

    def size_bytes(self) -> int:
        """See :class:`~vllm_vectorq.store.Store`."""
        return self._file.size_bytes()

    def close(self) -> None:
        """See :class:`~vllm_vectorq.store.Store`."""
        with self._guard:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._file.release()

    def _read(self, reader: sqlite3.Connection) -> Iterator[Record]:
        damaged: set[object] = set()  # ids of answers and partitions left out
        num_damaged = 0
        now_s = time.time()
        for table in TABLES:
            for row in reader.execute(*self._tables.select(table, now_s)):
                try:
                    record = self._tables.read(table, row)
                except ValueError:
                    num_damaged += 1
                    if table.record in (AnswerRecord, PartitionRecord):
                        damaged.add(row[0])
                    continue
                if isinstance(record, EntryRecord) and (
                    record.partition in damaged or record.answer_id in damaged
                ):
                    continue
                yield record
        if num_damaged:
            logger.warning(
                "vectorq: %d damaged records in %s are left out; check the disk.",
                num_damaged,
                self._file.path,
            )

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            if self._closed:
                raise StoreError("vectorq: the store was closed; open it again.")
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            except _ERRORS as error:
                raise self._failure(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._session() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection:
        damage = self._file.check()
        if not damage:
            try:
                return self._examined()
            except _ERRORS as error:
                if _code(error) in _SURROUNDINGS:
                    raise
                damage = str(error)
        self._set_aside(damage)
        self._file.check()
        return self._examined()

    def _examined(self) -> sqlite3.Connection:
        connection = self._attach()
        try:
            if pragma(connection, "page_count") == 0:
                create_tables(connection)
            check_version(connection, self._file.path)
            examine(connection)
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StoreError(
                    f"vectorq: asked to keep the cache in {self._file.path}, but its "
                    "file system does not support SQLite's write-ahead log. Name a "
                    "file on a local disk."
                )
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _attach(self) -> sqlite3.Connection:
        # Threads take turns under the guard, or own the connection alone.
        connection = sqlite3.connect(
            self._file.path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        return connection

    def _failure(self, error: Exception) -> Exception:
        """What to raise for an error; sets a damaged file aside."""
        if _is_damage(error) and self._connection is not None:
            self._connection.close()
            self._connection = None
            self._set_aside(str(error))
        if isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError)):
            return ValueError(f"vectorq: SQLite refused a record: {error}")
        return StoreUnavailable(
            f"vectorq: the cache file {self._file.path} cannot be used now: {error}. "
            "Check the free space and the permissions of its disk."
        )

    def _set_aside(self, why: str) -> None:
        moved = self._file.set_aside()
        logger.warning(
            "vectorq: the cache file %s is damaged (%s). It was renamed to %s and a "
            "new one is begun; check the disk, then delete it.",
            self._file.path,
            why,
            moved,
        )


def _executor(connection: sqlite3.Connection) -> Execute:
    def execute(statement: str, parameters: Sequence[object]) -> Rows:
        return connection.execute(statement, parameters)

    return execute


def _code(error: Exception) -> int:
    # The primary code; absent when Python and not SQLite raised the error.
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _is_damage(error: Exception) -> bool:
    return isinstance(error, UnicodeDecodeError) or _code(error) in _DAMAGE
