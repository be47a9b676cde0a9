# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The cache's share of an offline batch: what it answers itself, and who waits.

Offline, all requests are added before the first step, so a request that is in the
same batch already is never found in the cache. It is held back instead and answered
when the first of its kind is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .engine_adapter import EngineAdapter, Planned
from .hit_output import AnswerCollector, Recipient, whole
from .request import Answer

Submit = Callable[[], Any]


@dataclass(slots=True)
class Waiting:
    """A request that is held back.

    Attributes:
        handle: What its caller was given to abort it by.
        to: How it wants its answer.
        submit: Gives it to the engine after all.
    """

    handle: str
    to: Recipient
    submit: Submit


@dataclass(slots=True)
class Leading:
    """A request that runs on the engine and whose answer is of use.

    Attributes:
        handle: The engine's own id of it.
        key: What identical requests share.
        ticket: For the cache.
        collector: Puts its answer together.
        followers: Identical requests that wait for it.
    """

    handle: str
    key: bytes
    ticket: Any
    collector: AnswerCollector
    followers: list[Waiting] = field(default_factory=list)


class OfflineBatch:
    """One per offline engine; not thread-safe, like the engine itself.

    Args:
        adapter: The engine's.
    """

    def __init__(self, adapter: EngineAdapter) -> None:
        self.adapter = adapter
        self._ready: list[Any] = []
        self._ready_handles: list[str] = []
        # By the id that callers know and outputs carry.
        self._leading: dict[str, Leading] = {}
        self._leader_of: dict[bytes, Leading] = {}
        # Requests that were held back first: what aborts them, the engine's id.
        self._submitted: dict[str, str] = {}

    def __len__(self) -> int:
        """Requests that the engine does not know about."""
        waiting = sum(len(leader.followers) for leader in self._leading.values())
        return len(self._ready) + waiting

    @property
    def has_ready(self) -> bool:
        """Whether answers are there without a step of the engine."""
        return bool(self._ready)

    def add(self, planned: Planned, to: Recipient, submit: Submit) -> Any:
        """Answer a request, hold it back, or submit it to the engine.

        Args:
            planned: From the adapter.
            to: How the request wants its answer.
            submit: Gives it to the engine and returns the engine's id of it.

        Returns:
            What aborts it.
        """
        handle = _handle(to.request_id)
        request = planned.request
        leader = self._leader_of.get(request.exact_key)
        if leader is not None:
            leader.followers.append(Waiting(handle, to, submit))
            return handle
        hit, ticket = self.adapter.lookup_sync(planned)
        if hit is not None and self._answer(handle, to, hit.answer):
            return handle
        return self._lead(planned, to, submit, ticket)

    def _lead(
        self,
        planned: Planned,
        to: Recipient,
        submit: Submit,
        ticket: Any,
    ) -> Any:
        try:
            handle = submit()
        except BaseException:
            self.adapter.conclude(ticket, None)
            raise
        if to.request_id in self._leading:
            # Outputs carry this id, so those of the two could not be told apart.
            self.adapter.conclude(ticket, None)
            return handle
        key = planned.request.exact_key
        leader = Leading(str(handle), key, ticket, AnswerCollector(to.params))
        self._leading[to.request_id] = leader
        if planned.request.store and self.adapter.cache.config.coalesce:
            self._leader_of[key] = leader
        return handle

    def _answer(self, handle: str, to: Recipient, answer: Answer) -> bool:
        try:
            self._ready.append(whole(to, answer))
        except Exception as error:
            self.adapter.cache.fault("replay", error)
            return False
        self._ready_handles.append(handle)
        return True

    def take_ready(self) -> list[Any]:
        """Return the answers that need no step."""
        ready, self._ready = self._ready, []
        self._ready_handles.clear()
        return ready

    def learn(self, outputs: Iterable[Any]) -> None:
        """Take note of what a step of the engine returned."""
        for output in outputs:
            if output.finished:
                self._submitted.pop(_handle(output.request_id), None)
            leader = self._leading.get(output.request_id)
            if leader is None:
                continue
            answer = self.adapter.collected(leader.collector.add, output)
            if output.finished:
                self.adapter.conclude(leader.ticket, answer)
                self._end(output.request_id, answer)

    def _end(self, request_id: str, answer: Answer | None) -> None:
        """Answer those who waited; without an answer, have all of them run at once."""
        leader = self._leading.pop(request_id)
        if self._leader_of.get(leader.key) is leader:
            del self._leader_of[leader.key]
        for follower in leader.followers:
            if answer is None or not self._answer(follower.handle, follower.to, answer):
                self._submitted[follower.handle] = str(follower.submit())
            else:
                self.adapter.cache.metrics.hit("coalesced")

    def engine_id(self, handle: str) -> str:
        """Return the engine's id of a request that may have been held back."""
        return self._submitted.pop(handle, handle)

    def abort(self, request_ids: Iterable[str], internal: bool) -> None:
        """Forget requests, as their callers or the engine know them."""
        gone = set(request_ids)
        for request_id in gone:
            self._submitted.pop(_handle(request_id), None)
        aborted = partial(_is_among, gone, internal)
        self._drop_ready(aborted)
        for request_id, leader in list(self._leading.items()):
            leader.followers = [
                follower
                for follower in leader.followers
                if not aborted(follower.to.request_id, follower.handle)
            ]
            if aborted(request_id, leader.handle):
                self.adapter.conclude(leader.ticket, None)
                self._end(request_id, None)

    def _drop_ready(self, aborted: Callable[[str, str], bool]) -> None:
        kept = [
            (output, handle)
            for output, handle in zip(self._ready, self._ready_handles, strict=True)
            if not aborted(output.request_id, handle)
        ]
        self._ready = [output for output, _ in kept]
        self._ready_handles = [handle for _, handle in kept]


def _handle(request_id: str) -> str:
    """Return what aborts a request that the engine does not know."""
    # It cannot be an id of the engine: those end in hexadecimal digits.
    return f"{request_id}-vectorq"


def _is_among(gone: set[str], internal: bool, request_id: str, handle: str) -> bool:
    """Say whether a request is meant: by its handle, or by its caller's id."""
    return (handle if internal else request_id) in gone
