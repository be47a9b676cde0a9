# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Identical requests in flight: the first one asks the model, the others wait for it.

The wait is bounded. That matters beyond patience: the first request advances only as
fast as its client reads, and a program that reads its answers one after the other may
itself be what the first request waits for.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Lead(Generic[Result]):
    """The duty of the first request to say how it ended, in every case."""

    def __init__(
        self, flights: dict[bytes, Lead[Result]], key: bytes, ended: asyncio.Event
    ) -> None:
        self._flights = flights
        self._key = key
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._result: Result | None = None

    def settle(self, result: Result | None) -> None:
        """Give the result to everybody who waits; only the first call counts.

        Args:
            result: What they get; None when there is nothing to share, and then one
                of them takes the lead.
        """
        if self._ended.is_set():
            return
        self._result = result
        del self._flights[self._key]
        self._ended.set()


class SingleFlight(Generic[Result]):
    """Requests in flight by key.

    Args:
        wait_s: Longest time a request waits for others, in seconds; 0 for never.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._flights: dict[bytes, Lead[Result]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def enter(self, key: bytes, may_lead: bool) -> Lead[Result] | Result | None:
        """Take the lead, or wait for the one who has it.

        Cancelling a request that waits affects nobody else.

        Args:
            key: Equal for identical requests.
            may_lead: Whether others may get this request's answer.

        Returns:
            The lead, which must be settled; or the leader's result; or None to go
            ahead alone: the time is up or there is nobody to wait for.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s
        while True:
            leader = self._flights.get(key)
            if leader is None:
                return self._lead(key) if may_lead and self._wait_s > 0 else None
            left_s = deadline - loop.time()
            # An event belongs to one loop; engines are rarely driven by two.
            if left_s <= 0 or leader._loop is not loop:
                return None
            try:
                await asyncio.wait_for(leader._ended.wait(), left_s)
            except TimeoutError:
                return None
            if leader._result is not None:
                return leader._result

    def _lead(self, key: bytes) -> Lead[Result]:
        lead = Lead(self._flights, key, asyncio.Event())
        self._flights[key] = lead
        return lead
