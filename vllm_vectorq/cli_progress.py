# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How far long work has come, on standard error."""

from __future__ import annotations

import sys
import time

# A terminal is refreshed; a log gets a line now and then.
_TERMINAL_INTERVAL_S = 0.2
_LOG_INTERVAL_S = 10.0


class Progress:
    """Counts up to a total; call it with the number done.

    Args:
        what: What is done, for instance ``embedded``.
        total: Where it ends; None when that is unknown.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._interval_s = _TERMINAL_INTERVAL_S if self._terminal else _LOG_INTERVAL_S
        self._told_s = time.monotonic()
        self._open_line = False

    def __call__(self, done: int) -> None:
        """Tell how many are done, unless that was told a moment ago."""
        now_s = time.monotonic()
        if now_s - self._told_s < self._interval_s:
            return
        self._told_s = now_s
        of = "" if self._total is None else f" of {self._total}"
        self._write(f"{self._what}: {done}{of}")

    def end(self) -> None:
        """Leave the line that was refreshed."""
        if self._open_line:
            print(file=sys.stderr, flush=True)
            self._open_line = False

    def _write(self, text: str) -> None:
        end = "" if self._terminal else "\n"
        start = "\r\x1b[K" if self._terminal else ""
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
        self._open_line = self._terminal
