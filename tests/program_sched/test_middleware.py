# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The middleware in a real Starlette application behind a real ASGI transport."""

import asyncio
import hashlib
import json
import logging
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from vllm_program_sched import ProgramHeaders
from vllm_program_sched.annotation import XARGS_OF_ROUTE, workload_class

CHAT = "/v1/chat/completions"
OURS = "vllm_program_sched.ProgramScheduler"
KEY_TENANT = hashlib.sha256(b"test-key").hexdigest()[:16]


async def echo(request: Request) -> Response:
    """Answer with what vLLM's handler would have been given."""
    raw = await request.body()
    return JSONResponse(
        {
            "raw": raw.decode("utf-8", "replace"),
            "length": request.headers.get("content-length"),
            "size": len(raw),
        }
    )


async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"data: x\n\n"

    await request.body()
    return StreamingResponse(chunks(), media_type="text/event-stream")


def server(**args: object) -> Starlette:
    """A server as vLLM builds it: arguments on the state, class added bare."""
    names = (*XARGS_OF_ROUTE, "/v1/embeddings")
    routes = [Route(path, echo, methods=["POST"]) for path in names]
    app = Starlette(routes=[*routes, Route("/stream", stream, methods=["POST"])])
    defaults: dict[str, object] = {
        "api_key": None,
        "additional_config": {},
        "scheduler_cls": OURS,
    }
    app.state.args = Namespace(**{**defaults, **args})
    app.add_middleware(ProgramHeaders)
    return app


def post(
    body: object,
    headers: dict[str, str] | None = None,
    path: str = CHAT,
    **args: object,
) -> httpx.Response:
    """Send one request through a fresh server."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=server(**args))
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            as_sent = {"content-type": "application/json", **(headers or {})}
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(path, content=content, headers=as_sent)

    return asyncio.run(send())


def xargs_of(response: httpx.Response) -> dict[str, Any]:
    """What reaches the engine; also checks that the length header is right."""
    assert response.status_code == 200, response.text
    seen = response.json()
    assert int(seen["length"]) == seen["size"]
    xargs: dict[str, Any] = json.loads(seen["raw"]).get("vllm_xargs", {})
    return xargs


@pytest.fixture(autouse=True)
def no_key_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {"X-Program-ID": "p", "X-Thread-ID": "t", "X-Program-End": "true"},
            {"program_id": "p", "thread_id": "t", "program_end": "true"},
        ),
        ({"X-Program-Class": "c"}, {"program_class": "c"}),
        (
            {
                "x-claude-code-session-id": "s",
                "x-claude-code-agent-id": "a",
                "x-claude-code-parent-agent-id": "root",
            },
            {"program_id": "s", "thread_id": "a"},
        ),
        ({"session-id": "s", "thread-id": "t"}, {"program_id": "s", "thread_id": "t"}),
        ({"X-Session-ID": "s"}, {"program_id": "s"}),
        ({"X-Session-ID": "s", "X-Program-ID": "p"}, {"program_id": "p"}),
        ({"X-Program-ID": "grün".encode().decode("latin-1")}, {"program_id": "grün"}),
        ({}, {}),
    ],
)
def test_headers_reach_the_body(
    headers: dict[str, str], expected: dict[str, Any]
) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = post({"model": "m", "messages": []}, raw)  # type: ignore[arg-type]
    assert xargs_of(response) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"vllm_xargs": {"program_id": "mine"}},
        {"vllm_xargs": {"agentic_context": '{"program_id": "mine"}'}},
        {"vllm_xargs": {"session_id": "mine"}},
        {"session_id": "mine"},
    ],
)
def test_program_in_the_body_wins_over_headers(body: dict[str, Any]) -> None:
    given = body.get("vllm_xargs", {})
    xargs = xargs_of(post(body, {"X-Program-ID": "other", "X-Thread-ID": "t"}))
    assert xargs == {**given, "thread_id": "t"}


def test_other_arguments_in_the_body_stay() -> None:
    body = {"vllm_xargs": {"custom": [1, "a"], "thread_id": "mine"}, "n": 2}
    response = post(body, {"X-Program-ID": "p", "X-Thread-ID": "t"})
    expected = {"custom": [1, "a"], "thread_id": "mine", "program_id": "p"}
    assert xargs_of(response) == expected
    assert json.loads(response.json()["raw"])["n"] == 2


def test_bytes_of_the_client_are_kept() -> None:
    body = b' {"seed": 12345678901234567890, "temperature": 1e-1, "user": "\\u00e9"} \n'
    raw = post(body, {"X-Program-ID": "p"}).json()["raw"]
    assert raw.startswith(body.decode().rstrip()[:-1])
    assert json.loads(raw)["vllm_xargs"] == {"program_id": "p"}


@pytest.mark.parametrize("body", [b"{}", b" { } ", "{}".encode("utf-16")])
def test_empty_objects_and_other_encodings_stay_valid(body: bytes) -> None:
    assert xargs_of(post(body, {"X-Program-ID": "p"})) == {"program_id": "p"}


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{", b'"x"', b"\xff\xfe\xfd", b'{"vllm_xargs": 3}']
)
def test_what_is_not_ours_to_judge_passes_untouched(body: bytes) -> None:
    response = post(body, {"X-Program-ID": "p"})
    assert response.json()["raw"] == body.decode("utf-8", "replace")


def test_other_media_types_and_routes_pass_untouched() -> None:
    headers = {"X-Program-ID": "p"}
    form = post(b"{}", {**headers, "content-type": "text/plain"})
    assert form.json()["raw"] == "{}"
    assert post(b"{}", headers, path="/v1/embeddings").json()["raw"] == "{}"


@pytest.mark.parametrize("path", XARGS_OF_ROUTE)
def test_every_generating_route_is_covered(path: str) -> None:
    body = {"sampling_params": {"max_tokens": 1}}
    seen = json.loads(post(body, {"X-Program-ID": "p"}, path=path).json()["raw"])
    for key in XARGS_OF_ROUTE[path]:
        seen = seen[key]
    assert seen == {"program_id": "p"}


@pytest.mark.parametrize(
    ("body", "headers", "field"),
    [
        ({}, {"X-Program-ID": "x" * 257}, "program_id"),
        ({}, {"X-Program-ID": " "}, "program_id"),
        ({}, {"X-Program-End": "maybe"}, "program_end"),
        ({}, {"X-Session-ID": "x" * 257}, "program_id"),
        ({"vllm_xargs": {"program_id": 5}}, {}, "program_id"),
        ({"vllm_xargs": {"agentic_context": "no"}}, {}, "agentic_context"),
        ({"session_id": "x" * 257}, {}, "session_id"),
    ],
)
def test_malformed_ids_are_refused_with_the_reason(
    body: dict[str, Any], headers: dict[str, str], field: str
) -> None:
    response = post(body, headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")


def test_header_bytes_that_are_not_text_are_refused_only_in_ids() -> None:
    assert post({}, {"X-Program-ID": b"\xff"}).status_code == 400  # type: ignore[dict-item]
    other = {"User-Agent": b"\xff", "X-Program-ID": "p"}
    assert xargs_of(post({}, other)) == {"program_id": "p"}  # type: ignore[arg-type]


def test_anthropic_clients_get_their_error_shape() -> None:
    response = post({}, {"X-Program-ID": " "}, path="/v1/messages")
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["message"].startswith("program_id: ")


def test_length_limit_follows_the_option() -> None:
    config = {"program_sched": {"max_id_length": 3}}
    response = post({}, {"X-Program-ID": "four"}, additional_config=config)
    assert response.status_code == 400


@pytest.mark.parametrize(
    "key", [{"Authorization": "Bearer test-key"}, {"X-Api-Key": "test-key"}]
)
def test_tenant_is_the_callers_key_whatever_the_body_says(key: dict[str, str]) -> None:
    body = {"vllm_xargs": {"program_tenant": "0" * 16, "program_id": "p"}}
    expected = {"program_id": "p", "program_tenant": KEY_TENANT}
    assert xargs_of(post(body, key)) == expected
    assert xargs_of(post(body)) == {"program_id": "p"}


@pytest.mark.parametrize("source", ["flag", "environment"])
def test_wrong_key_passes_unread_and_untouched(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["other", "test-key"] if source == "flag" else None
    monkeypatch.setenv("VLLM_API_KEY", "test-key")
    invalid = {"vllm_xargs": {"program_id": ""}}
    for headers in ({}, {"Authorization": "Bearer no"}, {"X-Api-Key": "test-key"}):
        response = post(invalid, {**headers, "X-Program-ID": "p"}, api_key=keys)
        assert json.loads(response.json()["raw"]) == invalid
    valid = {"Authorization": "Bearer test-key", "X-Program-ID": "p"}
    assert xargs_of(post({}, valid, api_key=keys))["program_id"] == "p"


def test_body_of_a_stranger_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own authentication answers before anything is received."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.serve.middleware.authenticate import (
        AuthenticationMiddleware,
    )

    # As in vLLM: authentication is added first and runs inside of ours.
    app = ProgramHeaders(AuthenticationMiddleware(server(), tokens=["test-key"]))
    reads: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(b"{}")
        yield b"{}"

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            headers = {"content-type": "application/json", "authorization": "Bearer x"}
            return await http.post(CHAT, content=body(), headers=headers)

    monkeypatch.setenv("VLLM_API_KEY", "test-key")
    assert asyncio.run(send()).status_code == 401
    assert reads == []


def test_class_is_added_unless_given() -> None:
    body = {"messages": [{"role": "developer", "content": "\ud800"}]}
    assert xargs_of(post(body))["program_class"] == workload_class(body)
    assert xargs_of(post(body, {"X-Program-Class": "c"}))["program_class"] == "c"
    context = {"agentic_context": '{"program_class": "c"}'}
    assert xargs_of(post({**body, "vllm_xargs": context})) == context


def exchange(app: Starlette, incoming: list[Message], path: str) -> list[Message]:
    """Drive the application message by message, as an HTTP server does."""
    sent: list[Message] = []
    messages: Iterator[Message] = iter(incoming)

    async def receive() -> Message:
        message = next(messages, None)
        if message is None:
            await asyncio.sleep(3600)
            raise AssertionError("unreachable")
        return message

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"transfer-encoding", b"chunked"),
            (b"x-program-id", b"p"),
        ],
    }
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))
    return sent


def part(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_body_in_parts_is_joined() -> None:
    parts = [part(b'{"a"', True), part(b"", True), part(b": 1}", False)]
    sent = exchange(server(), parts, CHAT)
    seen = json.loads(sent[1]["body"])
    assert seen["length"] is None
    assert json.loads(seen["raw"]) == {"a": 1, "vllm_xargs": {"program_id": "p"}}


def test_client_that_leaves_is_seen_to_leave() -> None:
    left: list[bool] = []

    async def handler(request: Request) -> Response:
        try:
            await request.body()
        except ClientDisconnect:
            left.append(True)
        return Response()

    app = Starlette(routes=[Route(CHAT, handler, methods=["POST"])])
    app.state.args = Namespace(scheduler_cls=OURS)
    app.add_middleware(ProgramHeaders)
    exchange(app, [part(b'{"a"', True), {"type": "http.disconnect"}], CHAT)
    assert left == [True]


def test_streams_are_not_gathered() -> None:
    app = Starlette(routes=[Route(CHAT, stream, methods=["POST"])])
    app.state.args = Namespace(scheduler_cls=OURS)
    app.add_middleware(ProgramHeaders)
    sent = exchange(app, [part(b"{}", False)], CHAT)
    bodies = [m["body"] for m in sent if m["type"] == "http.response.body"]
    assert bodies == [b"data: x\n\n"] * 3 + [b""]


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the plugin logs, each record once.

    Whether pytest's own handler sees vLLM's loggers, and how often, depends on the
    version of pytest and on what was imported before.
    """
    found: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Keeper()
    logger = logging.getLogger("vllm.plugins.program_sched")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_missing_scheduler_is_said_once(records: list[logging.LogRecord]) -> None:
    app = server(scheduler_cls=None)
    for _ in range(2):
        sent = exchange(app, [part(b"{}", False)], CHAT)
        assert sent[0]["status"] == 200
    said = [r for r in records if "--scheduler-cls" in r.getMessage()]
    assert len(said) == 1


def test_other_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        await send(await receive())

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(ProgramHeaders(app)({"type": "lifespan"}, receive, send))
    assert sent == [{"type": "lifespan.startup"}]
    assert seen == ["lifespan"]
