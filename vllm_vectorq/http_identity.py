# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Who calls, and what the cache did for them: an ASGI layer inside authentication.

vLLM adds its middleware in one function; each layer that is added surrounds the ones
before it. Ours is added first, so it is the innermost: it runs after authentication
and right around the handlers, without ``--middleware``.

Headers of a response are sent before its body, and a streamed response starts before
its handler asks the engine. So the start of a response is held back until the first
piece of its body, when the cache has decided; a stream's headers arrive with its first
piece. A handler that writes before it asks the engine, as Responses does when it
streams, sends them without ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .config import VectorQConfig
from .fingerprint import hashed
from .request import Hit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

APP_MODULE = "vllm.entrypoints.launchers.app"
INSTALLER = "init_entrypoints_middleware"

_PROTOCOL_OF_ROUTE: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v2/chat": "cohere",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the cache did for one prompt.

    Attributes:
        result: ``hit``, ``miss`` or ``bypass``.
        reason: Why it was left alone.
        hit: The answer that was served.
    """

    result: Literal["hit", "miss", "bypass"]
    reason: str = ""
    hit: Hit | None = None


@dataclass(slots=True)
class HttpCall:
    """One HTTP request, shared by its handler and everything the handler starts.

    Attributes:
        tenant: Whose answers it may share, hashed; empty for everybody's.
        tenant_missing: Whether it must name a tenant and does not.
        principal: Who asks, hashed; None when unknown.
        protocol: Kind of API, by route; empty when the route does not tell.
        outcomes: What the cache did, in order; a request may hold several prompts.
    """

    tenant: str = ""
    tenant_missing: bool = False
    principal: bytes | None = None
    protocol: str = ""
    outcomes: list[Outcome] = field(default_factory=list)


current_call: ContextVar[HttpCall | None] = ContextVar("vectorq_call", default=None)


def identify(
    headers: Mapping[str, str], route: str, config: VectorQConfig, secret: bytes
) -> HttpCall:
    """Tell the caller of a request.

    Args:
        headers: Header values by lower-case name.
        route: The request's path.
        config: The operator's options.
        secret: Key for hashing.
    """
    key = _bearer_token(headers) or headers.get("x-api-key", "")
    name = headers.get(config.tenant_header.lower(), "") if config.tenant_header else ""
    who = name or key
    identity = hashed(secret, "header" if name else "key", who) if who else ""
    return HttpCall(
        tenant=identity if config.tenant_header or config.tenants == "api_key" else "",
        tenant_missing=bool(config.tenant_header) and not name,
        principal=bytes.fromhex(identity) if identity else None,
        protocol=_PROTOCOL_OF_ROUTE.get(route, ""),
    )


def response_headers(outcomes: list[Outcome]) -> dict[str, str]:
    """Say what the cache did; of several prompts, what is true for all of them."""
    if not outcomes:
        return {}
    hits = [outcome.hit for outcome in outcomes if outcome.hit is not None]
    if len(hits) == len(outcomes):
        weakest = min(hits, key=lambda hit: hit.similarity)
        return {
            "x-vectorq": "hit",
            "x-vectorq-stage": weakest.stage,
            "x-vectorq-similarity": f"{weakest.similarity:.4f}",
            "x-vectorq-entry": str(weakest.entry_id),
            "x-vectorq-age-s": f"{max(hit.age_s for hit in hits):.0f}",
        }
    if all(outcome.result == "bypass" for outcome in outcomes):
        return {"x-vectorq": "bypass", "x-vectorq-reason": outcomes[0].reason}
    return {"x-vectorq": "miss"}


class HttpIdentity:
    """ASGI middleware that puts the caller into the context of each request.

    Args:
        app: What it surrounds.
        config: The operator's options.
        secret: Key for hashing callers.
    """

    def __init__(self, app: ASGIApp, config: VectorQConfig, secret: bytes) -> None:
        self._app = app
        self._config = config
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and add headers to its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"].removeprefix(scope.get("root_path", ""))
        call = identify(_values(scope["headers"]), route, self._config, self._secret)
        token = current_call.set(call)
        try:
            await self._app(scope, receive, _with_headers(send, call))
        finally:
            current_call.reset(token)


def _with_headers(send: Send, call: HttpCall) -> Send:
    """Return a channel that adds the headers when the response's body begins."""
    held: list[Message] = []

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
            return
        if held:
            start = held.pop()
            extra = response_headers(call.outcomes).items()
            added = [(name.encode(), value.encode("latin-1")) for name, value in extra]
            await send({**start, "headers": [*start.get("headers", ()), *added]})
        await send(message)

    return send_with_headers


def _values(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return header values by lower-case name; of a repeated one, the first."""
    values: dict[str, str] = {}
    for name, value in raw:
        text = value.decode("utf-8", "surrogateescape")
        values.setdefault(name.decode("latin-1").lower(), text)
    return values


def _bearer_token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def add_first(config: VectorQConfig, secret: bytes) -> Callable[..., Any]:
    """Return a wrapper for vLLM's function that adds middleware to an app.

    Args:
        config: The operator's options.
        secret: Key for hashing callers.
    """

    def make(install: Callable[..., Any]) -> Callable[..., Any]:
        def install_with_identity(
            args: Any,  # noqa: ANN401
            app: Any,  # noqa: ANN401
            *rest: Any,  # noqa: ANN401
            **options: Any,  # noqa: ANN401
        ) -> Any:  # noqa: ANN401
            app.add_middleware(HttpIdentity, config=config, secret=secret)
            return install(args, app, *rest, **options)

        return install_with_identity

    return make
