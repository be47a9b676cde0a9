# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A progress line for a replay: a bar on a terminal, a line now and then in a log."""

import asyncio
import sys
import time
from typing import TextIO

_BAR_WIDTH = 28
_TERMINAL_INTERVAL_S = 0.5
_LOG_INTERVAL_S = 10.0


class Progress:
    """Counts finished programs and calls and prints them from time to time."""

    def __init__(self, label: str, programs: int, stream: TextIO | None = None) -> None:
        """Start counting; `stream` defaults to standard error."""
        self._label = label
        self._programs = programs
        self._stream = stream or sys.stderr
        self._finished = 0
        self._failed = 0
        self._calls = 0
        self._started = time.monotonic()

    def call_finished(self) -> None:
        """Count one finished call."""
        self._calls += 1

    def program_finished(self, *, failed: bool) -> None:
        """Count one program that came to its end, well or badly."""
        self._finished += 1
        self._failed += failed

    def line(self) -> str:
        """Return the present state as one line."""
        filled = _BAR_WIDTH * self._finished // self._programs
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        elapsed_s = time.monotonic() - self._started
        failed = f", {self._failed} FAILED" if self._failed else ""
        return (
            f"{self._label} [{bar}] {self._finished}/{self._programs} programs, "
            f"{self._calls} calls{failed}, {elapsed_s:.0f} s"
        )

    async def follow(self) -> None:
        """Print until all programs have finished."""
        terminal = self._stream.isatty()
        interval_s = _TERMINAL_INTERVAL_S if terminal else _LOG_INTERVAL_S
        printed = time.monotonic()
        while self._finished < self._programs:
            await asyncio.sleep(0.1)
            if time.monotonic() - printed >= interval_s:
                printed = time.monotonic()
                self._print(terminal)
        self._print(terminal)
        if terminal:
            print(file=self._stream)

    def _print(self, terminal: bool) -> None:
        if terminal:
            print(f"\r{self.line()}", end="", file=self._stream, flush=True)
        else:
            print(self.line(), file=self._stream, flush=True)
