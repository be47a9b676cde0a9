# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a store deletes from time to time, the same for SQLite and PostgreSQL."""

from __future__ import annotations

from .record import Change, ObservationRecord, first_id_at
from .store import PURGE_ROWS
from .store_tables import Execute

# An answer or partition is written before its first entry, by a queue that may lag.
GRACE_S = 3_600.0
# Labels outlive the entries of their partition: it may come back after a weekend.
ABANDONED_AFTER_S = 7 * 86_400.0
SWEPT_ANSWERS = 10_000
_FIRST_ID = -(1 << 63)
_LAST_ID = (1 << 63) - 1
_LAST_KEY = b"\xff" * 33


class Sweep:
    """Deletes what nobody needs any more, a bounded amount per call.

    Large tables are gone through in pieces, one piece per call. What is expired has
    an index; what exceeds the limit of observations is looked for only in partitions
    that got one, and everywhere at the first call.

    Args:
        max_observations: Newest observations kept per partition.
    """

    def __init__(self, max_observations: int) -> None:
        self._max_observations = max_observations
        self._after_answer = _FIRST_ID
        self._after_partition = b""
        self._observed: set[bytes] | None = None

    def note(self, change: Change) -> None:
        """Take note of a change that was written."""
        if isinstance(change, ObservationRecord) and self._observed is not None:
            self._observed.add(change.partition)

    def run(self, execute: Execute, now_s: float) -> int:
        """Delete; return how many rows went."""
        expired = execute(
            "DELETE FROM entries WHERE entry_id IN (SELECT entry_id FROM entries"
            " WHERE expires_s <= ? ORDER BY expires_s LIMIT ?)",
            (now_s, PURGE_ROWS),
        ).rowcount
        return (
            expired
            + self._answers(execute, now_s)
            + self._excess_observations(execute)
            + self._partitions(execute, now_s)
        )

    def _answers(self, execute: Execute, now_s: float) -> int:
        last = execute(
            "SELECT answer_id FROM answers WHERE answer_id > ?"
            " ORDER BY answer_id LIMIT 1 OFFSET ?",
            (self._after_answer, SWEPT_ANSWERS - 1),
        ).fetchone()
        deleted = execute(
            "DELETE FROM answers WHERE answer_id > ? AND answer_id <= ?"
            " AND answer_id < ? AND NOT EXISTS"
            " (SELECT 1 FROM entries e WHERE e.answer_id = answers.answer_id)",
            (
                self._after_answer,
                last[0] if last else _LAST_ID,
                first_id_at(now_s - GRACE_S),
            ),
        ).rowcount
        self._after_answer = last[0] if last else _FIRST_ID
        return deleted

    def _excess_observations(self, execute: Execute) -> int:
        if self._observed is None:
            rows = execute(
                "SELECT partition FROM observations"
                " GROUP BY partition HAVING count(*) > ?",
                (self._max_observations,),
            ).fetchall()
            self._observed = {bytes(row[0]) for row in rows}
        deleted = 0
        for partition in list(self._observed)[:PURGE_ROWS]:
            if deleted >= PURGE_ROWS:
                break
            newest_to_delete = execute(
                "SELECT observation_id FROM observations WHERE partition = ?"
                " ORDER BY observation_id DESC LIMIT 1 OFFSET ?",
                (partition, self._max_observations),
            ).fetchone()
            if newest_to_delete is None:
                self._observed.discard(partition)
                continue
            deleted += execute(
                "DELETE FROM observations WHERE observation_id IN"
                " (SELECT observation_id FROM observations WHERE partition = ?"
                " AND observation_id <= ? ORDER BY observation_id LIMIT ?)",
                (partition, newest_to_delete[0], PURGE_ROWS - deleted),
            ).rowcount
        return deleted

    def _partitions(self, execute: Execute, now_s: float) -> int:
        last = execute(
            "SELECT digest FROM partitions WHERE digest > ?"
            " ORDER BY digest LIMIT 1 OFFSET ?",
            (self._after_partition, PURGE_ROWS - 1),
        ).fetchone()
        piece = (self._after_partition, bytes(last[0]) if last else _LAST_KEY)
        abandoned = execute(
            "DELETE FROM observations WHERE observation_id IN"
            " (SELECT observation_id FROM observations o WHERE o.partition > ?"
            " AND o.partition <= ? AND o.observation_id < ? AND NOT EXISTS"
            " (SELECT 1 FROM entries e WHERE e.partition = o.partition) LIMIT ?)",
            (*piece, first_id_at(now_s - ABANDONED_AFTER_S), PURGE_ROWS),
        ).rowcount
        empty = execute(
            "DELETE FROM partitions WHERE digest > ? AND digest <= ?"
            " AND stored_s < ? AND NOT EXISTS"
            " (SELECT 1 FROM entries e WHERE e.partition = partitions.digest)"
            " AND NOT EXISTS"
            " (SELECT 1 FROM observations o WHERE o.partition = partitions.digest)",
            (*piece, now_s - GRACE_S),
        ).rowcount
        if abandoned < PURGE_ROWS:
            self._after_partition = piece[1] if last else b""
        return abandoned + empty
