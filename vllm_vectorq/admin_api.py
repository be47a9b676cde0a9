# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``/v1/vectorq``: what the cache does, why, and how to correct it.

An endpoint plugin of vLLM, on when ``VLLM_PLUGINS`` names ``vectorq``. The paths start
with ``/v1``, so vLLM's API key guards them. Callers act on the answers that they may be
served: those of their own API key or tenant.
"""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from .admin_rehearsal import HandlerRefusedError, rehearse
from .admin_request import (
    RefusedError,
    check_explainable,
    entry_id_of,
    read_body,
    selection_of,
)
from .bypass_words import WORDS
from .config import VectorQConfig
from .engine_adapter import ATTRIBUTE, EngineAdapter, LeftAlone
from .http_identity import HttpCall, current_call
from .request import CacheRequest

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient
    from vllm.tasks import SupportedTask

PREFIX = "/v1/vectorq"

_NOT_OURS = (
    "this server does not run the semantic response cache; start it with "
    "--additional-config.vectorq.enabled true."
)


class AdminCache(Protocol):
    """What the routes need of :class:`~vllm_vectorq.cache.SemanticCache`."""

    config: VectorQConfig

    def stats(self) -> dict[str, Any]:
        """What an operator wants to know at a glance."""

    async def explain(self, request: CacheRequest) -> dict[str, Any]:
        """Say what would be served for a request, and why."""

    def invalidate(self, **facts: str) -> int:
        """Drop the entries of which all these facts are true."""

    def invalidate_prefix(self, prefix: str, **facts: str) -> int:
        """The same for entries whose text begins so."""

    def feedback(
        self, entry_id: int, right: bool, principal: bytes | None, tenant: str
    ) -> bool | None:
        """Take a user's word on an answer; None for an unknown entry."""


Handler = Callable[[Request], Awaitable[dict[str, Any]]]


class VectorQEndpoint:
    """Adds the routes to vLLM's API server.

    Attributes:
        name: Plugin name, the one ``VLLM_PLUGINS`` has to list.
        required_tasks: Only servers that generate text have the cache.
    """

    name = "vectorq"
    required_tasks: tuple[SupportedTask, ...] | None = ("generate",)

    def __init__(self) -> None:
        """Start without an engine; vLLM provides it in ``init_state``."""
        self._engine: EngineClient | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        routes: tuple[tuple[str, Handler], ...] = (
            ("GET", self.stats),
            ("POST", self.explain),
            ("POST", self.invalidate),
            ("POST", self.feedback),
        )
        for method, handler in routes:
            name = handler.__name__
            app.add_api_route(
                f"{PREFIX}/{name}",
                _answering(handler),
                methods=[method],
                name=f"vectorq_{name}",
                description=handler.__doc__,
            )

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Remember the engine, which has the cache."""
        self._engine = engine_client

    async def stats(self, request: Request) -> dict[str, Any]:
        """Numbers about the cache of this process."""
        return self._cache().stats()

    async def explain(self, request: Request) -> dict[str, Any]:
        """Say what a chat completion or completion request would get, and why.

        Nothing is generated, stored or counted.
        """
        adapter = self._adapter()
        body = await read_body(request)
        check_explainable(body)
        call = await rehearse(request.app.state, self._engine, body)
        planned = adapter.consider(call)
        if isinstance(planned, LeftAlone):
            why = WORDS[planned.reason]
            why += f": {planned.detail}" if planned.detail else ""
            return {"served": False, "bypass": planned.reason.value, "why": why}
        return await self._cache().explain(planned.request)

    async def invalidate(self, request: Request) -> dict[str, Any]:
        """Drop the caller's entries with given facts; return how many."""
        cache = self._cache()
        facts, prefix = selection_of(await read_body(request))
        facts |= _tenant_facts(cache.config)

        def drop() -> int:
            if prefix:
                return cache.invalidate_prefix(prefix, **facts)
            return cache.invalidate(**facts)

        # All entries are looked at, which others must not wait for.
        return {"removed": await asyncio.to_thread(drop)}

    async def feedback(self, request: Request) -> dict[str, Any]:
        """Learn whether an answer that was served was right."""
        cache = self._cache()
        body = await read_body(request)
        entry_id = entry_id_of(body.get("entry_id"))
        right = body.get("right")
        if not isinstance(right, bool):
            raise RefusedError(f"right: {right!r} is neither true nor false.", "right")
        call = _caller(cache.config)
        learned = await asyncio.to_thread(
            cache.feedback, entry_id, right, call.principal, call.tenant
        )
        if learned is None:
            message = f"entry_id: there is no entry {entry_id} among the caller's."
            raise RefusedError(message, "entry_id", HTTPStatus.NOT_FOUND)
        return {"entry_id": str(entry_id), "learned": learned}

    def _adapter(self) -> EngineAdapter:
        adapter: EngineAdapter | None = getattr(self._engine, ATTRIBUTE, None)
        if adapter is None:
            raise RefusedError(_NOT_OURS, status=HTTPStatus.CONFLICT)
        return adapter

    def _cache(self) -> AdminCache:
        cache: Any = self._adapter().cache
        found: AdminCache = cache
        return found


def _answering(handler: Handler) -> Callable[[Request], Awaitable[JSONResponse]]:
    """Make a route of a handler: its errors become answers."""

    async def answer(request: Request) -> JSONResponse:
        try:
            return _AsciiResponse(await handler(request))
        except RefusedError as error:
            return _error(error.status, str(error), error.param)
        except HandlerRefusedError as error:
            return JSONResponse(error.answer, status_code=error.status)

    return answer


def _caller(config: VectorQConfig) -> HttpCall:
    """Return who calls; everybody is the same where nobody can be told apart."""
    call = current_call.get() or HttpCall()
    if call.tenant_missing:
        name = config.tenant_header
        raise RefusedError(f"{name}: the header must name the tenant.", name)
    return call


def _tenant_facts(config: VectorQConfig) -> dict[str, str]:
    call = _caller(config)
    if config.tenants == "shared" and not config.tenant_header:
        return {}
    return {"tenant": call.tenant}


def _error(status: HTTPStatus, message: str, param: str | None) -> JSONResponse:
    """Answer in the shape of vLLM's own errors."""
    kind = f"{status.phrase.replace(' ', '')}Error"
    error = {"message": message, "type": kind, "param": param, "code": status.value}
    return _AsciiResponse({"error": error}, status_code=status)


class _AsciiResponse(JSONResponse):
    """JSON that can hold halves of characters, as what clients send can."""

    def render(self, content: object) -> bytes:
        """Encode."""
        return json.dumps(content, allow_nan=False).encode()
