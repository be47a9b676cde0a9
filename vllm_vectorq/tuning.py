# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A thread for what takes long: graphs of large indices, and fits of policies."""

from __future__ import annotations

import time
from logging import Logger
from pathlib import Path

from . import index_snapshot
from .background import BackgroundThread
from .faults import Faults
from .working_set import WorkingSet

INTERVAL_S = 2.0
EMPTY_INTERVAL_S = 60.0
SAVE_INTERVAL_S = 600.0


class Tuning:
    """A background thread; stopped by :meth:`close`.

    Args:
        working_set: Whose partitions are looked after.
        snapshot: Directory for the graphs of large indices, which take a minute or
            more to make; None to keep none.
        fingerprint: Of the embedding model.
        faults: Where to report faults of ours.
        logger: Told when a snapshot cannot be used.
    """

    def __init__(
        self,
        working_set: WorkingSet,
        snapshot: Path | None,
        fingerprint: str,
        faults: Faults,
        logger: Logger,
    ) -> None:
        self._working_set = working_set
        self._snapshot = snapshot
        self._fingerprint = fingerprint
        self._faults = faults
        self._logger = logger
        self._save_at_s = time.monotonic() + SAVE_INTERVAL_S
        self._empty_at_s = time.monotonic() + EMPTY_INTERVAL_S
        self._thread = BackgroundThread("tuning", INTERVAL_S, self._round, faults)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop; the graphs are saved once more unless one is being made."""
        if self._thread.close(timeout_s):
            self.save()

    def restore(self, dimensions: int) -> int:
        """Take over the graphs of an earlier process; returns how many."""
        if self._snapshot is None or not self._snapshot.exists():
            return 0
        snapshot = index_snapshot.load(self._snapshot, self._fingerprint, dimensions)
        if snapshot.why_none:
            self._logger.warning(
                "vectorq: indices are made anew: %s", snapshot.why_none
            )
        adopted = 0
        for digest, rows in snapshot.graphs.items():
            state = self._working_set.partition(digest)
            if state is not None and state.index is not None:
                state.index.adopt(rows)
                adopted += 1
        return adopted

    def save(self) -> int:
        """Save the graphs; returns how many there are."""
        indexes = {
            state.digest: state.index
            for state in self._working_set.partitions()
            if state.index is not None and state.index.graph_rows() is not None
        }
        if self._snapshot is None or not indexes:
            return 0
        try:
            return index_snapshot.save(self._snapshot, indexes, self._fingerprint)
        except Exception as error:
            self._faults.report("index snapshot", error)
            return 0

    def once(self) -> None:
        """One round over all partitions."""
        for state in self._working_set.partitions():
            if self._thread.stopping:
                return
            try:
                if state.index is not None:
                    state.index.maintain()
                state.policy.tune()
            except Exception as error:
                self._faults.report("tuning", error)

    def _round(self) -> None:
        self.once()
        now_s = time.monotonic()
        if now_s >= self._empty_at_s:
            self._working_set.drop_empty()
            self._empty_at_s = now_s + EMPTY_INTERVAL_S
        if now_s >= self._save_at_s:
            self.save()
            self._save_at_s = now_s + SAVE_INTERVAL_S
