# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The tables of a PostgreSQL store, in a schema of their own."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any

from .store import SECRET_BYTES, StoreError

if TYPE_CHECKING:
    import psycopg

SCHEMA_VERSION = 1
# One number for all schemas of a database: they share the extension.
_CREATION_LOCK = 0x7665635101
_TABLES = {"state", "partitions", "answers", "entries", "observations", "changes"}
_STATEMENTS = (
    (
        "CREATE TABLE state (version integer NOT NULL, secret bytea NOT NULL,"
        " pruned_seq bigint NOT NULL)"
    ),
    (
        "CREATE TABLE partitions (digest bytea PRIMARY KEY, facts bytea NOT NULL,"
        " stored_s double precision NOT NULL)"
    ),
    (
        "CREATE TABLE answers (answer_id bigint PRIMARY KEY, text bytea NOT NULL,"
        " token_ids bytea NOT NULL, stop_reason bytea NOT NULL,"
        " generation_s double precision NOT NULL)"
    ),
    # A vector column without dimensions takes the vectors of several embedding
    # models. It has no index for nearest neighbours, which would need dimensions:
    # every process has an index of its own in memory.
    (
        "CREATE TABLE entries (entry_id bigint PRIMARY KEY, partition bytea NOT NULL,"
        " exact_key bytea NOT NULL UNIQUE, text bytea, vector vector,"
        " class_id bigint NOT NULL, answer_id bigint NOT NULL,"
        " created_s double precision NOT NULL, expires_s double precision NOT NULL,"
        " principal bytea)"
    ),
    "CREATE INDEX entries_by_partition ON entries (partition)",
    "CREATE INDEX entries_by_answer ON entries (answer_id)",
    "CREATE INDEX entries_by_expiry ON entries (expires_s)",
    (
        "CREATE TABLE observations (observation_id bigint PRIMARY KEY,"
        " partition bytea NOT NULL, entry_id bigint NOT NULL, features bytea NOT NULL,"
        " label boolean NOT NULL, propensity double precision NOT NULL,"
        " source bytea NOT NULL, principal bytea)"
    ),
    (
        "CREATE INDEX observations_by_partition ON observations"
        " (partition, observation_id)"
    ),
    # What other processes read: one row per piece of a transaction, lines of JSON.
    (
        "CREATE TABLE changes (seq bigserial PRIMARY KEY, writer bigint NOT NULL,"
        " committed_s double precision NOT NULL"
        " DEFAULT extract(epoch FROM clock_timestamp()), payload bytea NOT NULL)"
    ),
)


def check_schema_name(schema: str) -> None:
    """Refuse a name that would need quotes.

    Raises:
        StoreError: It is no plain name.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema) or schema.startswith("pg_"):
        raise StoreError(
            f"vectorq: asked for the schema {schema!r}. Give a name of lower-case "
            "letters, digits and _ that does not start with pg_."
        )


def prepare_schema(connection: psycopg.Connection[Any], schema: str) -> None:
    """Make what is missing, once among all servers, and set the search path.

    Raises:
        StoreError: The server lacks pgvector, or the schema is newer or not ours.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATION_LOCK,))
        extension_schema = _require_pgvector(connection)
        is_there = "SELECT to_regnamespace(quote_ident(%s)) IS NOT NULL"
        if not _value(connection, is_there, schema):
            connection.execute(f'CREATE SCHEMA "{schema}"')
        connection.execute(
            "SELECT set_config('search_path', format('%%I, %%I', %s::text, %s::text),"
            " false)",
            (schema, extension_schema),
        )
        rows = connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            (schema,),
        ).fetchall()
        found = {row[0] for row in rows}
        if not found:
            _create(connection)
        elif not found >= _TABLES:
            raise StoreError(
                f"vectorq: asked to keep the cache in the schema {schema!r}, which "
                "holds tables that this plugin did not make. Name another schema."
            )
        version = _value(connection, "SELECT max(version) FROM state")
        if version is None or version > SCHEMA_VERSION:
            raise StoreError(
                f"vectorq: asked to keep the cache in the schema {schema!r}, which a "
                f"newer version of this plugin made (schema {version}, this one knows "
                f"{SCHEMA_VERSION}). Upgrade the plugin or name another schema."
            )


def _require_pgvector(connection: psycopg.Connection[Any]) -> str:
    import psycopg

    where = (
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n"
        " ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    )
    found = _value(connection, where)
    if found is None:
        try:
            connection.execute("CREATE EXTENSION vector")
        except psycopg.Error as error:
            raise StoreError(
                "vectorq: asked to keep the cache in PostgreSQL, but the database "
                f"lacks the extension pgvector ({str(error).strip()}). Install it on "
                "the server and run CREATE EXTENSION vector as a superuser."
            ) from error
        found = _value(connection, where)
    return str(found)


def _create(connection: psycopg.Connection[Any]) -> None:
    for statement in _STATEMENTS:
        connection.execute(statement)
    connection.execute(
        "INSERT INTO state (version, secret, pruned_seq) VALUES (%s, %s, 0)",
        (SCHEMA_VERSION, secrets.token_bytes(SECRET_BYTES)),
    )


def _value(connection: psycopg.Connection[Any], query: str, *parameters: object) -> Any:  # noqa: ANN401
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]
