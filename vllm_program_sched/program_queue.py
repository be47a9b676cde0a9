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
        self._held: list[Call] = []

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
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take requests out; ones that are not here are ignored, as in vLLM."""
        ids = {request.request_id for request in requests}
        for request_id in ids:
            self.ready.remove(request_id)
        self._held = [call for call in self._held if call.call_id not in ids]

    def hold(self, request: Request) -> None:
        """Keep a waiting request from being admitted until :meth:`release`."""
        self.ready.remove(request.request_id)
        self._held.append(self._call_of(request))

    def release(self) -> None:
        """Let held requests be admitted again."""
        for call in self._held:
            self.ready.push(call)
        self._held.clear()

    def __bool__(self) -> bool:
        """Whether anything may be admitted."""
        return len(self.ready) > 0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return len(self.ready) + len(self._held)

    def __iter__(self) -> Iterator[Request]:
        """Waiting requests, best first; held ones last."""
        return (call.payload for call in (*self.ready.ordered(), *self._held))
