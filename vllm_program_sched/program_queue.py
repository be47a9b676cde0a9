# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""vLLM's waiting-queue interface over the core's ready queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vllm_program_sched.compat import Request, RequestQueue
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Call


class ProgramRequestQueue(RequestQueue):
    """Waiting requests in the order of their programs' ranks.

    "Prepending" means adding: where a request stands is a matter of rank, and its
    arrival number already puts a preempted request ahead of later ones.

    Args:
        core: The scheduling core; it re-sorts this queue when ranks change.
        call_of: Finds, or makes, the call of a request.
    """

    def __init__(self, core: ProgramCore, call_of: Callable[[Request], Call]) -> None:
        """See the class docstring."""
        self.ready = core.new_queue()
        self._call_of = call_of

    def add_request(self, request: Request) -> None:
        """Add a request at its rank."""
        self.ready.push(self._call_of(request))

    def pop_request(self) -> Request:
        """Remove and return the best request."""
        request: Request = self.ready.pop().payload
        return request

    def peek_request(self) -> Request:
        """Return the best request."""
        request: Request = self.ready.peek().payload
        return request

    def prepend_request(self, request: Request) -> None:
        """Add a request at its rank."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Add requests at their ranks."""
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        """Take a request out."""
        self.ready.remove(request.request_id)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take requests out; ones that are not here are ignored, as in vLLM."""
        for request in requests:
            self.ready.remove(request.request_id)

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return len(self.ready) > 0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return len(self.ready)

    def __iter__(self) -> Iterator[Request]:
        """Waiting requests, best first."""
        return (call.payload for call in self.ready.ordered())
