# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Callers and response headers, in a real application with authentication."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.http_identity import (
    HttpCall,
    HttpIdentity,
    Outcome,
    add_first,
    current_call,
    identify,
    response_headers,
)
from vllm_vectorq.request import Answer, Hit

SECRET = b"secret"
ROUTE = "/v1/chat/completions"


def config(**options: object) -> VectorQConfig:
    return VectorQConfig(enabled=True, **options)  # type: ignore[arg-type]


def hit(similarity: float = 0.9, age_s: float = 3.0) -> Hit:
    return Hit(Answer("x", (1,), None, 1.0), "semantic", 1, similarity, 0.99, age_s)


def test_callers_differ_by_key() -> None:
    def of(headers: dict[str, str]) -> HttpCall:
        return identify(headers, ROUTE, config(), SECRET)

    one = of({"authorization": "Bearer one"})
    assert one.tenant
    assert one.principal == bytes.fromhex(one.tenant)
    assert one.protocol == "chat"
    assert of({"authorization": "bearer one"}).tenant == one.tenant
    assert of({"x-api-key": "one"}).tenant == one.tenant
    assert of({"authorization": "Bearer two"}).tenant != one.tenant
    assert "one" not in one.tenant
    anonymous = of({})
    assert (anonymous.tenant, anonymous.principal) == ("", None)


def test_shared_answers_have_no_tenant_but_a_principal() -> None:
    shared = config(tenants="shared")
    call = identify({"authorization": "Bearer one"}, ROUTE, shared, SECRET)
    assert call.tenant == ""
    assert call.principal is not None


def test_a_proxy_can_name_the_tenant() -> None:
    options = config(tenant_header="X-Tenant")
    key = {"authorization": "Bearer proxy"}
    one = identify({**key, "x-tenant": "one"}, ROUTE, options, SECRET)
    two = identify({**key, "x-tenant": "two"}, ROUTE, options, SECRET)
    assert one.tenant != two.tenant
    assert not one.tenant_missing
    assert identify(key, ROUTE, options, SECRET).tenant_missing
    # A key that reads like somebody's name is not that somebody.
    posing = identify({"authorization": "Bearer one"}, ROUTE, config(), SECRET)
    assert posing.tenant != one.tenant


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], {}),
        ([Outcome("miss")], {"x-vectorq": "miss"}),
        (
            [Outcome("bypass", "sampled")],
            {"x-vectorq": "bypass", "x-vectorq-reason": "sampled"},
        ),
        (
            [Outcome("hit", hit=hit(0.95, 3)), Outcome("hit", hit=hit(0.912345, 7))],
            {
                "x-vectorq": "hit",
                "x-vectorq-stage": "semantic",
                "x-vectorq-similarity": "0.9123",
                "x-vectorq-entry": "1",
                "x-vectorq-age-s": "7",
            },
        ),
        ([Outcome("hit", hit=hit()), Outcome("miss")], {"x-vectorq": "miss"}),
        ([Outcome("bypass", "logprobs"), Outcome("miss")], {"x-vectorq": "miss"}),
    ],
)
def test_headers_say_what_is_true_for_all_prompts(
    outcomes: list[Outcome], expected: dict[str, str]
) -> None:
    assert response_headers(outcomes) == expected


class Authentication:
    """Stands where vLLM's own authentication does."""

    def __init__(self, app: Any) -> None:  # noqa: ANN401
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and b"authorization" not in headers:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await self.app(scope, receive, send)


def application() -> FastAPI:
    app = FastAPI()
    seen: list[HttpCall | None] = []
    app.state.seen = seen

    def answered() -> None:
        call = current_call.get()
        seen.append(call)
        if call is not None:
            call.outcomes.append(Outcome("hit", hit=hit()))

    @app.post("/v1/completions")
    async def whole() -> dict[str, str]:
        answered()
        return {"text": "x"}

    @app.post(ROUTE)
    async def streamed() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            await asyncio.sleep(0)
            answered()
            yield "data: 1\n\n"
            yield "data: 2\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    @app.post("/v1/broken")
    async def broken() -> None:
        raise HTTPException(418)

    def install(args: Any, app: FastAPI) -> str:  # noqa: ANN401
        app.add_middleware(Authentication)
        return "done"

    surrounded = add_first(config(), SECRET)(install)
    assert surrounded(SimpleNamespace(), app) == "done"
    return app


def post(app: FastAPI, route: str, **headers: str) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://a"
        ) as client:
            return await client.post(route, headers=headers)

    return asyncio.run(main())


@pytest.mark.parametrize("route", ["/v1/completions", ROUTE])
def test_responses_carry_the_headers_streamed_or_not(route: str) -> None:
    app = application()
    response = post(app, route, authorization="Bearer one")
    assert response.status_code == 200
    assert response.headers["x-vectorq"] == "hit"
    assert response.headers["x-vectorq-similarity"] == "0.9000"
    [call] = app.state.seen
    assert call.tenant == identify({"x-api-key": "one"}, route, config(), SECRET).tenant
    if route == ROUTE:
        assert response.text == "data: 1\n\ndata: 2\n\n"


def test_the_layer_is_inside_authentication() -> None:
    app = application()
    response = post(app, "/v1/completions")
    assert response.status_code == 401
    assert "x-vectorq" not in response.headers
    assert app.state.seen == []
    assert [m.cls for m in app.user_middleware] == [Authentication, HttpIdentity]


def test_responses_without_a_decision_are_left_as_they_are() -> None:
    app = application()
    for route, status in (("/v1/broken", 418), ("/v1/nowhere", 404)):
        response = post(app, route, authorization="Bearer one")
        assert response.status_code == status
        assert "x-vectorq" not in response.headers


def test_the_context_ends_with_the_request() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        assert current_call.get() is not None

    async def main() -> None:
        layer = HttpIdentity(app, config(), SECRET)
        scope = {"type": "http", "path": "/", "headers": []}
        await layer(scope, None, None)  # type: ignore[arg-type]
        assert current_call.get() is None

    asyncio.run(main())


def test_other_kinds_of_connection_pass_through() -> None:
    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        passed.append((scope, receive, send, current_call.get()))

    async def main() -> None:
        layer = HttpIdentity(app, config(), SECRET)
        await layer({"type": "websocket"}, "receive", "send")  # type: ignore[arg-type]

    asyncio.run(main())
    assert passed == [({"type": "websocket"}, "receive", "send", None)]
