# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How the demo asks the server, and what it notes about each reply."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.vectorq.demo_stream import request_of

_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Reply:
    """One answered message.

    Attributes:
        message: What was asked.
        answer: What came back.
        outcome: ``exact`` or ``semantic`` for a hit, ``miss``, or the reason for which
            the cache left the request alone.
        similarity: Of a hit: cosine to the entry that answered.
        latency_s: What the client waited.
    """

    message: str
    answer: str
    outcome: str
    similarity: float | None
    latency_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def line(self, number: int, width: int = 52) -> str:
        """Return the reply as one line of the live log."""
        message = self.message
        if len(message) > width:
            message = f"{message[: width - 3]}..."
        return (
            f"{number:4} {self.outcome:8} {1e3 * self.latency_s:6.0f} ms  "
            f"{message:{width}}  {self.answer}"
        )


def outcome_of(headers: Mapping[str, str]) -> str:
    """Return what the response headers say that the cache did.

    Raises:
        RuntimeError: They say nothing.
    """
    for name in ("x-vectorq-stage", "x-vectorq-reason", "x-vectorq"):
        if name in headers:
            return headers[name]
    raise RuntimeError(
        "the server does not say what its cache did, so the plugin is not at work; "
        "run `make setup` to install it"
    )


class Desk:
    """A client of the demo's server; a ``with`` block closes it.

    Args:
        base_url: Of the server.
    """

    def __init__(self, base_url: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, message: str, *, cached: bool = True) -> Reply:
        """Send a message and wait for its answer."""
        body = request_of(message, cached=cached)
        started = time.perf_counter()
        response = self._client.post("/v1/chat/completions", json=body)
        latency_s = time.perf_counter() - started
        answer = _json(response)["choices"][0]["message"]["content"]
        similarity = response.headers.get("x-vectorq-similarity")
        return Reply(
            message=message,
            answer=answer.strip(),
            outcome=outcome_of(response.headers),
            similarity=None if similarity is None else float(similarity),
            latency_s=latency_s,
        )

    def explain(self, message: str) -> dict[str, Any]:
        """Ask what a message would get, and why, without asking the model."""
        body = request_of(message)
        return _json(self._client.post("/v1/vectorq/explain", json=body))

    def stats(self) -> dict[str, Any]:
        """Return the cache's own numbers."""
        return _json(self._client.get("/v1/vectorq/stats"))


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise RuntimeError(
            f"{response.request.url.path} answered with status "
            f"{response.status_code}: {response.text[:500]}"
        )
    found: dict[str, Any] = response.json()
    return found
