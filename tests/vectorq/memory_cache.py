# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A small real cache for tests of the adapter: exact matches, in a dict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.request import Answer, CacheRequest, Hit


@dataclass(eq=False)
class MemoryTicket:
    """A miss whose answer is expected."""

    request: CacheRequest


@dataclass
class MemoryMetrics:
    """Counters by name."""

    bypasses: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)

    def bypass(self, reason: str) -> None:
        self.bypasses[reason] += 1

    def register(self) -> None:
        pass

    def hit(self, stage: str) -> None:
        self.hits[stage] += 1


class MemoryCache:
    """Answers by exact key, and what the adapter did with its tickets."""

    secret = b"secret"
    embedding_name = ""

    def __init__(self, **options: object) -> None:
        self.config = VectorQConfig(enabled=True, **options)  # type: ignore[arg-type]
        self.metrics = MemoryMetrics()
        self.answers: dict[bytes, tuple[CacheRequest, Answer]] = {}
        self.requests: list[CacheRequest] = []
        self.open: set[MemoryTicket] = set()
        self.abandoned = 0
        self.forgotten: list[dict[str, str]] = []
        self.faults: list[tuple[str, Exception]] = []
        self.closed = False
        self.broken: Exception | None = None
        self.semantic: Hit | None = None

    def lookup_exact(self, request: CacheRequest) -> Hit | None:
        if self.broken is not None:
            raise self.broken
        stored = self.answers.get(request.exact_key)
        if stored is None:
            return None
        self.metrics.hit("exact")
        return Hit(stored[1], "exact", 1, 1.0, 1.0, 2.0)

    def lookup_sync(self, request: CacheRequest) -> tuple[Hit | None, object]:
        self.requests.append(request)
        hit = self.lookup_exact(request)
        if hit is None and request.text is not None:
            hit = self.semantic
        if hit is not None:
            return hit, None
        ticket = MemoryTicket(request)
        self.open.add(ticket)
        return None, ticket

    async def lookup(self, request: CacheRequest) -> tuple[Hit | None, object]:
        return self.lookup_sync(request)

    def complete(self, ticket: object, answer: Answer) -> None:
        assert isinstance(ticket, MemoryTicket)
        self.open.remove(ticket)
        if ticket.request.store:
            self.answers[ticket.request.exact_key] = ticket.request, answer

    def abandon(self, ticket: object) -> None:
        assert isinstance(ticket, MemoryTicket)
        self.open.remove(ticket)
        self.abandoned += 1

    def invalidate(self, **facts: str) -> int:
        self.forgotten.append(facts)
        gone = [
            key
            for key, (request, _) in self.answers.items()
            if facts.items() <= dict(request.partition.facts).items()
        ]
        for key in gone:
            del self.answers[key]
        return len(gone)

    def fault(self, where: str, error: Exception) -> None:
        self.faults.append((where, error))

    def close(self) -> None:
        self.closed = True
