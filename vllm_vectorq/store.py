# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the cache keeps when its process ends: the interface, and how to open one.

Every process works on what it holds in memory. A store is the durable log and table
behind it: read once at start, written in the background, and, where several processes
share one, asked now and then what the others wrote.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from .record import Change, Record

MAX_OBSERVATIONS = 20_000
PURGE_ROWS = 1_000
SECRET_BYTES = 32


class StoreError(Exception):
    """A store cannot be used as asked; the message says what to do."""


class StoreUnavailable(StoreError):
    """A store cannot be used now; a later call connects again."""


class CursorTooOld(StoreError):
    """Changes after this cursor are gone from the log: load everything again."""


class Store(Protocol):
    """Durable copy of the cache; every method may be called from any thread.

    Attributes:
        shared: Whether several processes may use it at once.
    """

    shared: bool

    def secret(self) -> bytes:
        """32 random bytes, made with the store and the same for all its users."""
        ...

    def load(self) -> Iterator[Record]:
        """Everything live: partitions, answers, entries, observations.

        Each kind comes in order of its id. An entry comes only if it has not expired
        and after its partition and its answer. Memory stays bounded. To miss nothing
        that others write meanwhile, take ``changes_since(None)`` first.

        Raises:
            StoreUnavailable: The store went away while reading.
        """
        ...

    def write(self, changes: Iterable[Change]) -> None:
        """Write all changes in one transaction, in their order.

        A record replaces the one that has its id, so writing twice is writing once.
        Of two entries with one exact key the one with the larger id stays. An entry
        whose partition or answer was never written, or was purged, is not loaded:
        send the partition again with the first entry after it was empty.

        Raises:
            StoreUnavailable: Nothing was written, or the connection broke while
                committing; write the same changes again.
            ValueError: A record cannot be stored; nothing was written.
        """
        ...

    def changes_since(self, cursor: int | None) -> tuple[list[Change], int]:
        """What other writers committed after a cursor, and the next cursor.

        In commit order, nothing skipped. A call returns a bounded number; one that
        returns the cursor it was given has reached the end.

        Args:
            cursor: From an earlier call; None: from now on.

        Raises:
            CursorTooOld: The log no longer reaches back to the cursor.
            StoreUnavailable: Try again later.
        """
        ...

    def purge(self, now_s: float) -> int:
        """Delete what can never be served again; bounded work per call.

        That is: expired entries, answers without an entry, observations above the
        limit of their partition, and partitions without entries.

        Args:
            now_s: The present, in Unix time.

        Returns:
            Rows deleted; from ``PURGE_ROWS`` on there is probably more.
        """
        ...

    def size_bytes(self) -> int:
        """Disk space in use, indexes included."""
        ...

    def close(self) -> None:
        """Release everything; safe to call twice."""
        ...


class MemoryStore:
    """Keeps nothing: the cache starts empty."""

    shared = False

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(SECRET_BYTES)

    def secret(self) -> bytes:
        """A key that lasts as long as the process."""
        return self._secret

    def load(self) -> Iterator[Record]:
        """Nothing."""
        return iter(())

    def write(self, changes: Iterable[Change]) -> None:
        """Forget the changes."""

    def changes_since(self, cursor: int | None) -> tuple[list[Change], int]:
        """Nothing."""
        return [], 0

    def purge(self, now_s: float) -> int:
        """Nothing to do."""
        return 0

    def size_bytes(self) -> int:
        """Nothing is kept."""
        return 0

    def close(self) -> None:
        """Nothing to release."""


def open_store(
    url: str, *, max_observations: int = MAX_OBSERVATIONS, schema: str = "vectorq"
) -> Store:
    """Open a store, made if it does not exist.

    Args:
        url: ``sqlite:///ABSOLUTE/PATH.db``, ``postgresql://...`` as libpq reads it, or
            ``memory``.
        max_observations: Observations kept per partition, the newest ones.
        schema: Schema of the tables; PostgreSQL only.

    Raises:
        StoreError: The URL, the driver, the permissions, or what is already there do
            not fit; the message says what to do.
        StoreUnavailable: The server cannot be reached.
    """
    if url == "memory":
        return MemoryStore()
    if max_observations < 1:
        raise StoreError(
            f"vectorq: asked to keep {max_observations} observations per partition; "
            "give 1 or more."
        )
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        from .store_sqlite import SqliteStore

        return SqliteStore(sqlite_path(url), max_observations=max_observations)
    if scheme in ("postgresql", "postgres"):
        from .store_postgres import PostgresStore

        return PostgresStore(url, schema=schema, max_observations=max_observations)
    raise StoreError(
        f"vectorq: asked for the store {scheme!r}, which is not known. Write "
        "sqlite:///ABSOLUTE/PATH.db, postgresql://USER@HOST/DATABASE or memory."
    )


def sqlite_path(url: str) -> Path:
    """Return the file that a ``sqlite:///`` URL names.

    As in ``file:///``, what follows the two slashes is an absolute path, with ``%20``
    for a blank and so on.

    Raises:
        StoreError: It names no file.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    extra = parts.netloc or parts.query or parts.fragment or "\0" in path
    if extra or not path.strip("/") or path.endswith("/"):
        raise StoreError(
            f"vectorq: asked for the store {url!r}, which names no file. Write "
            "sqlite:///ABSOLUTE/PATH.db, with %3F for ? and %23 for #."
        )
    return Path("/" + path.lstrip("/"))


def without_password(url: str) -> str:
    """Return a store's URL as it may be logged."""
    parts = urlsplit(url)
    if parts.password is None and not parts.query:
        return url
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{user}{parts.hostname or ''}{port}{parts.path}"
