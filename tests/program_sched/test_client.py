# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The client helper, with real clients over real sockets."""

import asyncio
import contextvars
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import pytest
import uvicorn
from openai import AsyncOpenAI, OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vllm_program_sched.client import Program, instrument, program
from vllm_program_sched.identity import IdentityError, identify

MESSAGES: Any = [{"role": "user", "content": "hi"}]
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "ok"},
        }
    ],
}


class ProgramServer(Protocol):
    """A running server, see the fixture ``program_server``."""

    base_url: str
    api_key: str
    client: httpx.Client


@dataclass
class Recorder:
    """A server that keeps what it was sent."""

    url: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    ended: list[tuple[str, str | None]] = field(default_factory=list)
    other: list[dict[str, str]] = field(default_factory=list)
    end_status: int = 200

    async def call(self, request: Request) -> JSONResponse:
        self.calls.append(dict(request.headers))
        return JSONResponse(COMPLETION)

    async def end(self, request: Request) -> JSONResponse:
        name = request.path_params["program_id"]
        self.ended.append((name, request.headers.get("authorization")))
        return JSONResponse({}, status_code=self.end_status)

    async def tool(self, request: Request) -> JSONResponse:
        self.other.append(dict(request.headers))
        return JSONResponse({})

    def programs(self) -> list[str | None]:
        return [headers.get("x-program-id") for headers in self.calls]

    def threads(self) -> list[str | None]:
        return [headers.get("x-thread-id") for headers in self.calls]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    found = Recorder()
    routes = [
        Route("/proxy/v1/chat/completions", found.call, methods=["POST"]),
        Route("/proxy/v1/programs/{program_id:path}/end", found.end, methods=["POST"]),
        Route("/tool", found.tool, methods=["POST"]),
    ]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        found.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(Starlette(routes=routes), log_level="warning")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield found
        running.should_exit = True
        thread.join(10)


def openai_client(recorder: Recorder) -> OpenAI:
    url = f"{recorder.url}/proxy/v1"
    return instrument(OpenAI(api_key="k", base_url=url, max_retries=0))


def call(client: OpenAI) -> None:
    client.chat.completions.create(model="m", messages=MESSAGES)


def test_openai_calls_carry_the_program(recorder: Recorder) -> None:
    with openai_client(recorder) as client:
        call(client)
        with program("research", program_class="kind") as p:
            call(client)
            with p.thread("critic"):
                call(client)
            call(client)
        call(client)
    assert recorder.programs() == [None, p.id, p.id, p.id, None]
    assert recorder.threads() == [None, None, "critic", None, None]
    assert recorder.calls[1]["x-program-class"] == "kind"
    assert p.id.startswith("research-")
    assert recorder.ended == [(p.id, "Bearer k")]


def test_async_openai_calls_carry_their_own_program(recorder: Recorder) -> None:
    async def one(client: AsyncOpenAI, name: str) -> str:
        async with program(name) as p:
            for _ in range(2):
                await client.chat.completions.create(model="m", messages=MESSAGES)
                await asyncio.sleep(0)
        return p.id

    async def run() -> list[str]:
        url = f"{recorder.url}/proxy/v1"
        async with instrument(AsyncOpenAI(api_key="k", base_url=url)) as client:
            return await asyncio.gather(*(one(client, f"p{i}") for i in range(5)))

    ids = asyncio.run(run())
    assert sorted(map(str, recorder.programs())) == sorted(ids * 2)
    assert sorted(name for name, _ in recorder.ended) == sorted(ids)


def test_plain_httpx_is_named_only_where_text_is_generated(recorder: Recorder) -> None:
    with instrument(httpx.Client()) as client, program("p") as p:
        client.post(f"{recorder.url}/proxy/v1/chat/completions", json={})
        client.post(f"{recorder.url}/tool", json={})
    assert recorder.programs() == [p.id]
    assert "x-program-id" not in recorder.other[0], "tools need not know"


def test_headers_of_the_caller_win(recorder: Recorder) -> None:
    with instrument(httpx.Client()) as client, program("p"):
        url = f"{recorder.url}/proxy/v1/chat/completions"
        client.post(url, json={}, headers={"X-Program-ID": "mine"})
    assert recorder.programs() == ["mine"]


def test_other_clients_are_not_touched(recorder: Recorder) -> None:
    instrument(httpx.Client())
    with httpx.Client() as client, program("p"):
        client.post(f"{recorder.url}/proxy/v1/chat/completions", json={})
    assert recorder.programs() == [None]


def test_instrumenting_twice_adds_one_hook() -> None:
    client = httpx.Client(event_hooks={"response": [lambda response: None]})
    assert instrument(instrument(client)) is client
    assert [len(client.event_hooks[kind]) for kind in ("request", "response")] == [1, 1]


def test_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match=r"object is not supported; give a client"):
        instrument(object())


def test_inner_program_is_a_thread_of_the_outer(recorder: Recorder) -> None:
    with openai_client(recorder) as client, program("outer") as outer:
        with program("inner") as inner:
            call(client)
        call(client)
    assert recorder.programs() == [outer.id, outer.id]
    assert recorder.threads() == [inner.id, None]
    assert [name for name, _ in recorder.ended] == [outer.id]


def test_context_follows_into_threads_on_request(recorder: Recorder) -> None:
    with openai_client(recorder) as client, program("p") as p:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.copy_context().run, call, client).result()
        asyncio.run(asyncio.to_thread(call, client))
    assert recorder.programs() == [p.id, p.id]


def test_async_client_in_a_plain_with_block_is_ended(recorder: Recorder) -> None:
    async def run() -> str:
        async with instrument(httpx.AsyncClient()) as client:
            with program("p") as p:
                url = f"{recorder.url}/proxy/v1/chat/completions"
                await client.post(url, json={})
            while not recorder.ended:
                await asyncio.sleep(0.01)
        return p.id

    name = asyncio.run(asyncio.wait_for(run(), 10))
    assert [ended for ended, _ in recorder.ended] == [name]


def test_sync_client_in_an_async_block_is_ended(recorder: Recorder) -> None:
    async def run() -> str:
        with openai_client(recorder) as client:
            async with program("p") as p:
                await asyncio.to_thread(call, client)
        return p.id

    name = asyncio.run(run())
    assert [ended for ended, _ in recorder.ended] == [name]


@pytest.mark.parametrize("status", [200, 404, 401, 409, 500])
def test_users_error_is_the_one_that_is_seen(recorder: Recorder, status: int) -> None:
    recorder.end_status = status
    with openai_client(recorder) as client:
        with pytest.raises(ZeroDivisionError), program("p"):
            call(client)
            raise ZeroDivisionError
        with program("q"):
            call(client)
    assert len(recorder.ended) == 2


def test_unreachable_server_does_not_break_the_exit(recorder: Recorder) -> None:
    client = openai_client(recorder)
    with pytest.raises(ZeroDivisionError), program("p"):
        call(client)
        client.close()
        raise ZeroDivisionError


def test_end_can_be_left_to_the_server(recorder: Recorder) -> None:
    with openai_client(recorder) as client, program("p", end_on_exit=False):
        call(client)
    assert recorder.ended == []


def test_program_runs_once_at_a_time() -> None:
    p = program("p")
    with p, pytest.raises(RuntimeError, match="open already"):
        p.__enter__()
    with p:
        assert p.headers() == {"X-Program-ID": p.id}


def test_leaving_in_another_context_raises_nothing() -> None:
    p = program("p")
    contextvars.copy_context().run(p.__enter__)
    p.__exit__(None, None, None)
    assert p.headers() == {"X-Program-ID": p.id}


def test_every_run_has_its_own_id() -> None:
    assert len({program("same").id for _ in range(100)}) == 100


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 220])
def test_names_that_the_server_would_refuse_are_refused_here(name: str) -> None:
    with pytest.raises(IdentityError):
        program(name)


def test_longest_name_gives_an_id_that_servers_accept() -> None:
    assert len(program("x" * 219).id) == 256


def test_extra_body_says_the_same_without_the_middleware() -> None:
    with program("p", program_class="kind") as p, p.thread("t"):
        body = p.extra_body(end=True)
    found = identify("r", body["vllm_xargs"], None)
    assert (found.program_id, found.thread_id) == (p.id, "t")
    assert (found.program_class, found.program_end) == ("kind", True)
    assert isinstance(p, Program)


@pytest.mark.vllm
def test_program_ends_on_a_real_server(program_server: ProgramServer) -> None:
    url = f"{program_server.base_url}/v1"
    client = OpenAI(api_key=program_server.api_key, base_url=url, max_retries=0)
    model = client.models.list().data[0].id

    def live() -> set[str]:
        answer = program_server.client.get("/v1/programs?limit=1000")
        return {entry["program_id"] for entry in answer.json()["data"]}

    with instrument(client), program("client-e2e") as p:
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4)
        assert p.id in live()
        # The client is closed when its block ends, so leave the program first.
        p.__exit__(None, None, None)
        assert p.id not in live()
