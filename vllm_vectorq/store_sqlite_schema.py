# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The tables of a SQLite store: made once, and examined at every start."""

from __future__ import annotations

import secrets
import sqlite3

from .store import SECRET_BYTES, StoreError
from .store_file import APPLICATION_ID

SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE state (secret BLOB NOT NULL)",
    (
        "CREATE TABLE partitions (digest BLOB NOT NULL PRIMARY KEY,"
        " facts BLOB NOT NULL, crc INTEGER NOT NULL,"
        " stored_s REAL NOT NULL) WITHOUT ROWID"
    ),
    (
        "CREATE TABLE answers (answer_id INTEGER PRIMARY KEY, text BLOB NOT NULL,"
        " token_ids BLOB NOT NULL, stop_reason BLOB NOT NULL,"
        " generation_s REAL NOT NULL, crc INTEGER NOT NULL)"
    ),
    (
        "CREATE TABLE entries (entry_id INTEGER PRIMARY KEY, partition BLOB NOT NULL,"
        " exact_key BLOB NOT NULL UNIQUE, text BLOB, vector BLOB,"
        " class_id INTEGER NOT NULL, answer_id INTEGER NOT NULL,"
        " created_s REAL NOT NULL, expires_s REAL NOT NULL, principal BLOB,"
        " crc INTEGER NOT NULL)"
    ),
    "CREATE INDEX entries_by_partition ON entries (partition)",
    "CREATE INDEX entries_by_answer ON entries (answer_id)",
    "CREATE INDEX entries_by_expiry ON entries (expires_s)",
    (
        "CREATE TABLE observations (observation_id INTEGER PRIMARY KEY,"
        " partition BLOB NOT NULL, entry_id INTEGER NOT NULL, features BLOB NOT NULL,"
        " label INTEGER NOT NULL, propensity REAL NOT NULL, source BLOB NOT NULL,"
        " principal BLOB, crc INTEGER NOT NULL)"
    ),
    (
        "CREATE INDEX observations_by_partition ON observations"
        " (partition, observation_id)"
    ),
)


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables and the secret in an empty file."""
    # Before WAL mode: then the header, by which the file is known as ours, is in the
    # file itself and not only in the log.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("BEGIN EXCLUSIVE")
    for statement in _SCHEMA:
        connection.execute(statement)
    secret = secrets.token_bytes(SECRET_BYTES)
    connection.execute("INSERT INTO state (secret) VALUES (?)", (secret,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def check_version(connection: sqlite3.Connection, place: object) -> None:
    """Refuse a file whose tables this version does not know.

    Raises:
        StoreError: A newer version made it.
    """
    version = pragma(connection, "user_version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"vectorq: asked to keep the cache in {place}, which a newer version of "
            f"this plugin made (schema {version}, this one knows {SCHEMA_VERSION}). "
            "Upgrade the plugin or name another file."
        )


def examine(connection: sqlite3.Connection) -> None:
    """Look whether pages and tables are as they were made.

    Raises:
        sqlite3.DatabaseError: They are not.
    """
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    found = connection.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
    ).fetchall()
    if [row[0] for row in found] != list(_SCHEMA):
        raise sqlite3.DatabaseError("its tables are not as they were made")
    if connection.execute("SELECT count(*) FROM state").fetchone()[0] != 1:
        raise sqlite3.DatabaseError("its secret is missing")


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """A whole number that SQLite keeps in the header."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
