# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The thread between serving and the store: nothing that is served waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from .record import Change
from .store import PURGE_ROWS, CursorTooOld, Store, StoreError, StoreUnavailable
from .store_queue import ChangeQueue

INTERVAL_S = 0.5
PURGE_INTERVAL_S = 60.0
LONGEST_PAUSE_S = 30.0
MAX_CHANGES = 50_000
MAX_BYTES = 256 << 20
_BATCH = 500


class StoreWriter:
    """Writes changes in batches, and hears of those of other processes.

    A change is written within the interval, so a process that is killed loses at most
    that and the batch it was writing. While the store is unavailable the thread tries
    again at growing intervals, and the queue holds what fits. An error never ends the
    thread: it is counted, and logged once per kind.

    Args:
        store: Where to write; closing it is the caller's part.
        logger: Gets the log lines.
        on_foreign: As the attribute.
        on_gap: As the attribute.
        cursor: Where foreign changes start; None: now, so make the writer before
            loading and set ``on_foreign`` afterwards, and nothing is missed.
        interval_s: Longest time that a change waits.
        purge_interval_s: Time between two purges.
        max_changes: Changes kept in memory.
        max_bytes: Memory for them, estimated.

    Attributes:
        on_foreign: Gets changes of other processes, in the writer's thread; they wait
            in the log until it is set.
        on_gap: Called in the writer's thread when the log no longer held them and
            everything must be loaded again.

    Raises:
        StoreUnavailable: A shared store cannot say where its log ends now.
    """

    def __init__(
        self,
        store: Store,
        logger: logging.Logger,
        *,
        on_foreign: Callable[[list[Change]], None] | None = None,
        on_gap: Callable[[], None] | None = None,
        cursor: int | None = None,
        interval_s: float = INTERVAL_S,
        purge_interval_s: float = PURGE_INTERVAL_S,
        max_changes: int = MAX_CHANGES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._store = store
        self._logger = logger
        self.on_foreign = on_foreign
        self.on_gap = on_gap
        if cursor is None and store.shared:
            cursor = store.changes_since(None)[1]
        self._cursor = cursor
        self._interval_s = interval_s
        self._purge_interval_s = purge_interval_s
        self._queue = ChangeQueue(max_changes, max_bytes)
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._logged: set[tuple[str, str]] = set()
        self._pause_s = interval_s
        self._purge_at_s = time.monotonic() + purge_interval_s
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, name="vectorq-store", daemon=True
        )
        self._thread.start()

    def submit(self, change: Change) -> None:
        """Queue a change; returns at once and never raises."""
        try:
            self._queue.put(change)
        except Exception as error:
            self._counts["rejected"] += 1
            self._report("rejected", error)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything submitted so far was written, dropped or rejected.

        Returns:
            Whether that happened in time.
        """
        if not self._thread.is_alive():
            return self._queue.is_settled()
        self._wake.set()
        return self._queue.wait_settled(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write what is left and end the thread; safe to call twice.

        Returns:
            Whether everything was written in time; what was not is lost.
        """
        deadline_s = time.monotonic() + timeout_s
        self._queue.refuse()
        settled = self.flush(timeout_s)
        self._closing = True
        self._wake.set()
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        return settled

    def counts(self) -> dict[str, int]:
        """Changes ``written``, ``dropped``, ``rejected``, ``pending``, ``foreign``.

        Also rows ``purged``, ``gaps`` in what others wrote, and ``failed_KIND`` for
        each kind of error: ``write``, ``rejected``, ``foreign``, ``callback`` and
        ``purge``.
        """
        names = ("written", "rejected", "foreign", "purged", "gaps")
        failures = dict(self._failures)  # the thread adds to it meanwhile
        return {
            **{name: self._counts[name] for name in names},
            **{f"failed_{kind}": number for kind, number in failures.items()},
            "dropped": self._queue.dropped,
            "pending": self._queue.pending,
        }

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._pause_s)
            self._wake.clear()
            available = self._attempt("write", self._write_pending)
            on_foreign = self.on_foreign
            if available and self._store.shared and on_foreign is not None:
                read = partial(self._read_foreign, on_foreign)
                available = self._attempt("foreign", read)
            if available and time.monotonic() >= self._purge_at_s:
                self._attempt("purge", self._purge)
            longer_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._pause_s = self._interval_s if available else longer_s

    def _attempt(self, kind: str, action: Callable[[], None]) -> bool:
        """Do one thing; say whether the store was there for it."""
        try:
            action()
        except StoreError as error:
            self._report(kind, error)
            return False
        except Exception as error:
            self._report(kind, error)
        return True

    def _write_pending(self) -> None:
        # What comes in meanwhile has its turn after foreign changes and a purge.
        for _ in range(self._queue.pending // _BATCH + 1):
            batch = self._queue.take(_BATCH)
            if not batch:
                return
            try:
                self._write(batch)
            except BaseException:
                self._queue.put_back()
                raise
            self._queue.settle(len(batch))

    def _write(self, batch: Sequence[Change]) -> None:
        try:
            self._store.write(batch)
        except StoreError:
            raise
        except Exception as error:
            # One of them cannot be stored; the others must not suffer for it.
            self._report("write", error)
            self._write_singly(batch)
        else:
            self._counts["written"] += len(batch)

    def _write_singly(self, batch: Sequence[Change]) -> None:
        for change in batch:
            try:
                self._store.write([change])
            except StoreError:
                raise
            except Exception as error:
                self._counts["rejected"] += 1
                self._report("rejected", error)
            else:
                self._counts["written"] += 1
            self._queue.settle(1)

    def _read_foreign(self, on_foreign: Callable[[list[Change]], None]) -> None:
        while not self._closing:
            try:
                changes, cursor = self._store.changes_since(self._cursor)
            except CursorTooOld as error:
                self._counts["gaps"] += 1
                self._report("foreign", error)
                self._cursor = self._store.changes_since(None)[1]
                if self.on_gap is not None:
                    self._call(self.on_gap)
                return
            reached_end = cursor == self._cursor
            self._cursor = cursor
            if changes:
                self._counts["foreign"] += len(changes)
                self._call(partial(on_foreign, changes))
            if reached_end:
                return

    def _purge(self) -> None:
        self._purge_at_s = time.monotonic() + self._purge_interval_s
        purged = self._store.purge(time.time())
        self._counts["purged"] += purged
        if purged >= PURGE_ROWS:
            self._purge_at_s = 0.0  # there is more: go on after the next batch

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self._report("callback", error)

    def _report(self, kind: str, error: Exception) -> None:
        self._failures[kind] += 1
        name = (kind, type(error).__name__)
        if name in self._logged:
            return
        self._logged.add(name)
        what = (
            "the newest changes are kept and written when it is back"
            if isinstance(error, StoreUnavailable)
            else "serving goes on"
        )
        self._logger.warning(
            "vectorq: store, %s: %s: %s - %s; further errors of this kind are only "
            "counted.",
            kind,
            type(error).__name__,
            error,
            what,
        )
