# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A thread that does something every so often until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .faults import Faults


class BackgroundThread:
    """Calls a function at intervals; a fault in it is reported and it goes on.

    Args:
        name: What it does; also the place of its faults.
        interval_s: Pause between two calls, in seconds.
        work: What to call.
        faults: Where to report faults of ours.
    """

    def __init__(
        self, name: str, interval_s: float, work: Callable[[], None], faults: Faults
    ) -> None:
        self._name = name
        self._interval_s = interval_s
        self._work = work
        self._faults = faults
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"vectorq-{name}", daemon=True
        )

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop; long work looks at it."""
        return self._stop.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Stop, and wait for the call in progress; whether it ended in time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._work()
            except Exception as error:
                self._faults.report(self._name, error)
