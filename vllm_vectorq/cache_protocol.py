# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the vLLM adapter needs of :class:`~vllm_vectorq.cache.SemanticCache`."""

from __future__ import annotations

from typing import Any, Protocol

from .config import VectorQConfig
from .request import Answer, CacheRequest, Hit


class Metrics(Protocol):
    """What is counted by the adapter rather than by the cache."""

    def bypass(self, reason: str) -> None:
        """Count a request that is left alone."""

    def hit(self, stage: str) -> None:
        """Count a hit."""

    def register(self) -> None:
        """Show the counters on ``/metrics``."""


class Cache(Protocol):
    """A cache; a fault inside of it is a miss.

    Attributes:
        config: The operator's options.
        secret: Key for hashing callers.
        embedding_name: Fingerprint of the embedding model; empty without one.
        metrics: Counters.
    """

    config: VectorQConfig
    secret: bytes
    embedding_name: str

    @property
    def metrics(self) -> Metrics:
        """Where to count."""

    def lookup_exact(self, request: CacheRequest) -> Hit | None:
        """Look for the same request, in memory."""

    async def lookup(self, request: CacheRequest) -> tuple[Hit | None, Any]:
        """Look up; a miss comes with a ticket."""

    def lookup_sync(self, request: CacheRequest) -> tuple[Hit | None, Any]:
        """Look up from a thread that may wait."""

    def complete(self, ticket: Any, answer: Answer) -> None:  # noqa: ANN401
        """Learn the answer to a miss."""

    def abandon(self, ticket: Any) -> None:  # noqa: ANN401
        """Forget a miss."""

    def invalidate(self, **facts: str) -> int:
        """Drop the entries of which all these facts are true."""

    def fault(self, where: str, error: Exception) -> None:
        """Count a fault of ours, log it once."""

    def close(self) -> None:
        """Stop."""
