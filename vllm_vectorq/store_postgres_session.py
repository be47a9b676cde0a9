# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Connections to a PostgreSQL server, and vectors on their way to it and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .record import Vector
from .store import StoreError, StoreUnavailable
from .store_postgres_schema import check_schema_name, prepare_schema

if TYPE_CHECKING:
    import psycopg

# A stuck peer must not hold up the other writers for long.
_SETTINGS = {
    "lock_timeout": "5s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
}
_CONNECTION_OPTIONS = {
    "application_name": "vllm_vectorq",
    "connect_timeout": "5",
    "tcp_user_timeout": "10000",  # in milliseconds: a peer that vanished is noticed
}


class Server:
    """Where to connect, and how to say so without the password.

    Args:
        url: As libpq reads it.
        schema: Where the tables are; made at the first connection.

    Raises:
        StoreError: psycopg is missing, or the URL or the schema's name is malformed.
    """

    def __init__(self, url: str, schema: str) -> None:
        check_schema_name(schema)
        try:
            import psycopg
        except ImportError as error:
            raise StoreError(
                "vectorq: asked to keep the cache in PostgreSQL, which needs the "
                f"driver psycopg 3 ({error}). Run: pip install 'psycopg[binary]>=3.1'"
            ) from error
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            # The message of the driver may repeat the password.
            raise StoreError(
                "vectorq: asked to keep the cache in PostgreSQL, but the URL cannot be "
                "read. Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %40 "
                "for @ in a password and so on."
            ) from error
        self._schema = schema
        self._options: dict[str, Any] = {**_CONNECTION_OPTIONS, **given}
        self.place = (
            f"PostgreSQL at {given.get('host', 'the default host')}"
            f"/{given.get('dbname', 'default database')}, schema {schema}"
        )

    def connect(self) -> psycopg.Connection[Any]:
        """A new connection, with the tables in its search path.

        Raises:
            StoreError: The tables are missing and cannot be made, or are not ours.
            StoreUnavailable: The server cannot be reached.
        """
        import psycopg

        try:
            connection = psycopg.connect(**self._options, autocommit=True)
            try:
                # The server's default may be stricter; the log relies on this one.
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                for name, value in _SETTINGS.items():
                    connection.execute(
                        "SELECT set_config(%s, %s, false)", (name, value)
                    )
                prepare_schema(connection, self._schema)
            except BaseException:
                connection.close()
                raise
        except psycopg.Error as error:
            raise self.unavailable(error) from error
        return connection

    def unavailable(self, error: psycopg.Error) -> StoreUnavailable:
        """What to raise for an error of the driver."""
        return StoreUnavailable(
            f"vectorq: {self.place} cannot be used now: {str(error).strip()}. Check "
            "that the server runs and that its user may create or use the tables."
        )


def pack_text(vector: Vector) -> str:
    """A vector as pgvector reads it, with all the digits that float32 needs."""
    return json.dumps(vector.tolist())


def unpack_sent(data: bytes) -> Vector:
    """A vector from what ``vector_send`` gives; float32 [dimensions].

    That is two 16-bit numbers, then the elements, all big-endian.
    """
    return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)
