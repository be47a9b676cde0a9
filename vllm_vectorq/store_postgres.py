# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A store in PostgreSQL with pgvector, shared by any number of processes.

Writers take turns under an advisory lock, so numbers in the log of changes are given
in the order of commits and a reader that goes by them skips nothing.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from .record import Change, Record
from .store import MAX_OBSERVATIONS, PURGE_ROWS, CursorTooOld, StoreError
from .store_lines import decode_line, encode_line
from .store_postgres_session import Server, pack_text, unpack_sent
from .store_purge import Sweep
from .store_tables import TABLES, Execute, Rows, Tables

if TYPE_CHECKING:
    import psycopg

logger = logging.getLogger("vllm.plugins.vectorq")

LOG_RETENTION_S = 3_600.0
CHANGES_PER_LOG_ROW = 500
LOG_ROWS_PER_CALL = 64
_ROWS_PER_FETCH = 500


class PostgresStore:
    """A store in a PostgreSQL database.

    A connection that broke is made anew at the next call. It must lead to one server
    for as long as it lasts: a pool that changes it between transactions will not do.

    Args:
        url: As libpq reads it.
        schema: Where the tables are; one per cache.
        max_observations: Newest observations kept per partition.
        log_retention_s: How far the log reaches back at least, in seconds.

    Raises:
        StoreError: The URL, the driver or the schema do not fit.
        StoreUnavailable: The server cannot be reached, or refuses its user.
    """

    shared = True

    def __init__(
        self,
        url: str,
        *,
        schema: str = "vectorq",
        max_observations: int = MAX_OBSERVATIONS,
        log_retention_s: float = LOG_RETENTION_S,
    ) -> None:
        self._server = Server(url, schema)
        self._log_retention_s = log_retention_s
        self._writer = secrets.randbits(63)
        digest = hashlib.sha256(b"vllm_vectorq " + schema.encode()).digest()
        self._lock_key = int.from_bytes(digest[:8], "big", signed=True)
        self._tables = Tables(
            pack_text,
            unpack_sent,
            checksums=False,
            vector_column="vector_send(vector)",
        )
        self._sweep = Sweep(max_observations)
        self._guard = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._closed = False
        self._odd_lines = 0
        with self._session():
            pass

    def secret(self) -> bytes:
        """See :class:`~vllm_vectorq.store.Store`."""
        with self._session() as connection:
            return bytes(_first(connection, "SELECT secret FROM state")[0])

    def load(self) -> Iterator[Record]:
        """See :class:`~vllm_vectorq.store.Store`; one snapshot of all tables."""
        import psycopg

        connection = self._server.connect()
        try:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            # Whoever reads may take its time over each record.
            connection.execute("SET idle_in_transaction_session_timeout = 0")
            with connection.transaction():
                yield from self._read(connection)
        except psycopg.Error as error:
            raise self._server.unavailable(error) from error
        finally:
            connection.close()

    def write(self, changes: Iterable[Change]) -> None:
        """See :class:`~vllm_vectorq.store.Store`."""
        left = iter(changes)
        with self._transaction() as connection:
            execute = _executor(connection)
            while piece := list(islice(left, CHANGES_PER_LOG_ROW)):
                # One round trip for all statements of a piece.
                with connection.pipeline():
                    for change in piece:
                        self._tables.write(execute, change)
                        self._sweep.note(change)
                    execute(
                        "INSERT INTO changes (writer, payload) VALUES (?, ?)",
                        (self._writer, b"\n".join(map(encode_line, piece))),
                    )

    def changes_since(self, cursor: int | None) -> tuple[list[Change], int]:
        """See :class:`~vllm_vectorq.store.Store`; the log reaches back an hour.

        After an interrupted commit the log may hold the same changes twice.
        """
        with self._session() as connection:
            rows: list[Any] = []
            if cursor is not None:
                rows = _executor(connection)(
                    "SELECT seq, CASE WHEN writer <> ? THEN payload END FROM changes"
                    " WHERE seq > ? ORDER BY seq LIMIT ?",
                    (self._writer, cursor, LOG_ROWS_PER_CALL),
                ).fetchall()
            # After reading: what was pruned in between is noticed.
            pruned, last = _first(
                connection,
                "SELECT pruned_seq, greatest(pruned_seq,"
                " (SELECT coalesce(max(seq), 0) FROM changes)) FROM state",
            )
        if cursor is None:
            return [], int(last)
        if not pruned <= cursor <= last:
            raise CursorTooOld(
                f"vectorq: the log of changes reaches from {pruned} to {last}, so what "
                f"came after {cursor} is unknown. Load everything again."
            )
        changes = [
            change
            for _, payload in rows
            if payload is not None
            for change in self._decoded(bytes(payload))
        ]
        return changes, int(rows[-1][0]) if rows else cursor

    def purge(self, now_s: float) -> int:
        """See :class:`~vllm_vectorq.store.Store`; also shortens the log."""
        with self._transaction() as connection:
            execute = _executor(connection)
            deleted = self._sweep.run(execute, now_s)
            pruned = execute(
                "DELETE FROM changes WHERE seq IN (SELECT seq FROM changes"
                " WHERE committed_s < ? ORDER BY seq LIMIT ?) RETURNING seq",
                (now_s - self._log_retention_s, PURGE_ROWS),
            ).fetchall()
            if pruned:
                execute(
                    "UPDATE state SET pruned_seq = greatest(pruned_seq, ?)",
                    (max(row[0] for row in pruned),),
                )
        return deleted

    def size_bytes(self) -> int:
        """See :class:`~vllm_vectorq.store.Store`; autovacuum gives space back."""
        with self._session() as connection:
            row = _first(
                connection,
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c"
                " WHERE c.relnamespace = current_schema()::regnamespace"
                " AND c.relkind = 'r'",
            )
        return int(row[0])

    def close(self) -> None:
        """See :class:`~vllm_vectorq.store.Store`."""
        with self._guard:
            self._closed = True
            self._disconnect()

    def _read(self, connection: psycopg.Connection[Any]) -> Iterator[Record]:
        num_odd = 0
        now_s = time.time()
        for table in TABLES:
            query, parameters = self._tables.select(table, now_s)
            with connection.cursor("vectorq_load", binary=True) as rows:
                rows.itersize = _ROWS_PER_FETCH
                rows.execute(_psycopg_form(query), parameters)
                for row in rows:
                    try:
                        record = self._tables.read(table, row)
                    except ValueError:
                        num_odd += 1
                    else:
                        yield record
        if num_odd:
            logger.warning(
                "vectorq: %d rows in %s were not written by this plugin and are left "
                "out.",
                num_odd,
                self._server.place,
            )

    def _decoded(self, payload: bytes) -> Iterator[Change]:
        for line in payload.split(b"\n"):
            try:
                change = decode_line(line)
            except ValueError as error:
                self._odd_lines += 1
                if self._odd_lines == 1:
                    logger.warning(
                        "vectorq: a change of another process cannot be read (%s) and "
                        "is left out, as further ones are; run one version of this "
                        "plugin on all servers.",
                        error,
                    )
            else:
                yield change

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        import psycopg

        with self._guard:
            if self._closed:
                raise StoreError("vectorq: the store was closed; open it again.")
            if self._connection is None:
                self._connection = self._server.connect()
            try:
                yield self._connection
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                raise ValueError(
                    f"vectorq: PostgreSQL refused a record: {str(error).strip()}"
                ) from error
            except psycopg.Error as error:
                self._disconnect()
                raise self._server.unavailable(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        with self._session() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (self._lock_key,))
            yield connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _executor(connection: psycopg.Connection[Any]) -> Execute:
    def execute(statement: str, parameters: Sequence[object]) -> Rows:
        rows: Rows = connection.execute(_psycopg_form(statement), parameters)
        return rows

    return execute


@cache
def _psycopg_form(statement: str) -> str:
    return statement.replace("?", "%s")


def _first(connection: psycopg.Connection[Any], query: str) -> Any:  # noqa: ANN401
    return connection.execute(query).fetchone()
