# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The tables that every store has, in the SQL that SQLite and PostgreSQL share.

Statements use ``?`` for parameters; a store gives a function that executes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .record import (
    AnswerRecord,
    Change,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Record,
    Removal,
    Vector,
)
from .store_codec import Row, checksum, columns, from_row, integer, to_row

_IDS_PER_STATEMENT = 500
_VECTOR = columns(EntryRecord).index("vector")


class Rows(Protocol):
    """Result of a statement; what both database drivers return."""

    @property
    def rowcount(self) -> int:
        """Rows changed."""
        ...

    def fetchone(self) -> Any:  # noqa: ANN401
        """The next row or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows left."""
        ...


Execute = Callable[[str, Sequence[object]], Rows]


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of record.

    Attributes:
        name: Name of the table.
        record: What a row holds.
        key: Column with the id.
        live: Condition for loading a row; ``?`` is the present time.
    """

    name: str
    record: type[Record]
    key: str
    live: str


TABLES = (
    Table("partitions", PartitionRecord, "digest", "1 = 1"),
    Table(
        "answers",
        AnswerRecord,
        "answer_id",
        "EXISTS (SELECT 1 FROM entries e"
        " WHERE e.answer_id = answers.answer_id AND e.expires_s > ?)",
    ),
    Table(
        "entries",
        EntryRecord,
        "entry_id",
        "expires_s > ? AND EXISTS (SELECT 1 FROM answers a"
        " WHERE a.answer_id = entries.answer_id) AND EXISTS"
        " (SELECT 1 FROM partitions p WHERE p.digest = entries.partition)",
    ),
    Table(
        "observations",
        ObservationRecord,
        "observation_id",
        "EXISTS (SELECT 1 FROM partitions p WHERE p.digest = observations.partition)",
    ),
)


class Tables:
    """Writes and reads records.

    Args:
        pack: Turns a vector into what the vector column takes.
        unpack: Undoes it, for what ``vector_column`` gives.
        checksums: Whether rows end with a checksum, in a column ``crc``.
        vector_column: Expression that selects a vector.
    """

    def __init__(
        self,
        pack: Callable[[Vector], object],
        unpack: Callable[[bytes], Vector],
        *,
        checksums: bool,
        vector_column: str = "vector",
    ) -> None:
        self._pack = pack
        self._unpack = unpack
        self._checksums = checksums
        self._vector_column = vector_column
        self._inserts = {table.record: self._insert(table) for table in TABLES}

    def write(self, execute: Execute, change: Change) -> None:
        """Apply one change.

        Raises:
            ValueError: The record cannot be stored.
        """
        if isinstance(change, Removal):
            _remove(execute, [integer(entry_id) for entry_id in change.entry_ids])
            return
        row = to_row(change)
        if isinstance(change, EntryRecord):
            if change.vector is not None:
                row = _replaced(row, self._pack(row[_VECTOR]))
            execute(
                "DELETE FROM entries"
                " WHERE entry_id = ? OR (exact_key = ? AND entry_id < ?)",
                (row[0], row[2], row[0]),
            )
        if self._checksums:
            row = (*row, checksum(row))
        if isinstance(change, PartitionRecord):
            row = (*row, time.time())
        execute(self._inserts[type(change)], row)

    def select(self, table: Table, now_s: float) -> tuple[str, tuple[float, ...]]:
        """Statement and parameters that read everything live, in order of id."""
        names = [
            self._vector_column if name == "vector" else name
            for name in self._columns(table)
        ]
        statement = (
            f"SELECT {', '.join(names)} FROM {table.name}"
            f" WHERE {table.live} ORDER BY {table.key}"
        )
        return statement, (now_s,) * table.live.count("?")

    def read(self, table: Table, row: Row) -> Record:
        """The record in a row of :meth:`select`.

        Raises:
            ValueError: The row is damaged.
        """
        if self._checksums:
            *values, crc = row
            if checksum(values) != crc:
                raise ValueError("checksum does not fit")
            row = tuple(values)
        if table.record is EntryRecord and row[_VECTOR] is not None:
            row = _replaced(row, self._unpack(row[_VECTOR]))
        return from_row(table.record, row)

    def _columns(self, table: Table) -> tuple[str, ...]:
        return columns(table.record) + (("crc",) if self._checksums else ())

    def _insert(self, table: Table) -> str:
        names = self._columns(table)
        if table.name == "partitions":
            names += ("stored_s",)
        # An entry that had the id or an older one with the key was deleted before; a
        # newer one with the key stays.
        conflict = "DO NOTHING"
        if table.name != "entries":
            updates = ", ".join(f"{name} = excluded.{name}" for name in names)
            conflict = f"({table.key}) DO UPDATE SET {updates}"
        return (
            f"INSERT INTO {table.name} ({', '.join(names)})"
            f" VALUES ({', '.join('?' * len(names))}) ON CONFLICT {conflict}"
        )


def _replaced(row: Row, vector: object) -> Row:
    return (*row[:_VECTOR], vector, *row[_VECTOR + 1 :])


def _remove(execute: Execute, entry_ids: list[int]) -> None:
    for ids in _pieces(entry_ids):
        marks = ", ".join("?" * len(ids))
        execute(f"DELETE FROM entries WHERE entry_id IN ({marks})", ids)


def _pieces(entry_ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(entry_ids), _IDS_PER_STATEMENT):
        yield entry_ids[start : start + _IDS_PER_STATEMENT]
