# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Clients of a running server that hang up at any moment."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

NUM_CALLS = 150
NUM_PROGRAMS = 30
# How many clients send at a time: far more than the server has slots.
CLIENTS = 50
DEADLINE_S = 45.0
ANSWERED = "answered"
IN_STREAM = "hung up in the stream"
WAITING = "hung up while waiting"


class ProgramServer(Protocol):
    """A running server, see the fixture ``program_server``."""

    base_url: str
    api_key: str
    client: httpx.Client

    def metric(self, name: str, **labels: str) -> float: ...


@dataclass(frozen=True)
class Client:
    """What a client asks for, and when it hangs up.

    Attributes:
        after_s: Hangs up that long after it sent its request; None waits.
        after_chunks: Hangs up after that many pieces of a stream; None waits.
    """

    path: str
    body: dict[str, Any]
    program_id: str
    after_s: float | None
    after_chunks: int | None


def clients(model: str) -> list[Client]:
    """Two thirds stream; five out of six hang up."""
    rng = random.Random(17)
    storm = []
    for i in range(NUM_CALLS):
        text = "tell the tale of " + " ".join(
            rng.choices(["stone", "river", "cloud", "light"], k=rng.randrange(5, 120))
        )
        chat = bool(i % 2)
        stream = bool(i % 3)
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": rng.randrange(4, 40),
            "ignore_eos": True,
            "stream": stream,
            "temperature": 0.0,
        }
        if chat:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        after_s = after_chunks = None
        match rng.randrange(6):
            case 0:
                pass
            case 1:
                after_s = rng.uniform(0.002, 0.03)
            case 2 | 3 if stream:
                after_chunks = rng.randrange(1, 6)
            case _:
                after_s = rng.uniform(0.01, 2.0)
        storm.append(
            Client(
                "/v1/chat/completions" if chat else "/v1/completions",
                body,
                f"storm-{i % NUM_PROGRAMS}",
                after_s,
                after_chunks,
            )
        )
    return storm


async def run_client(http: httpx.AsyncClient, client: Client) -> str:
    """Send one request; returns how it ended for the client."""
    headers = {"X-Program-ID": client.program_id}

    async def exchange() -> str:
        async with http.stream(
            "POST", client.path, json=client.body, headers=headers
        ) as answer:
            assert answer.status_code == 200, await answer.aread()
            num_chunks = 0
            async for line in answer.aiter_lines():
                num_chunks += line.startswith("data: {")
                if num_chunks == client.after_chunks:
                    return IN_STREAM
        return ANSWERED

    try:
        return await asyncio.wait_for(exchange(), client.after_s)
    except TimeoutError:
        return WAITING


async def run_storm(server: ProgramServer, storm: list[Client]) -> Counter[str]:
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=0)
    gate = asyncio.Semaphore(CLIENTS)
    async with httpx.AsyncClient(
        base_url=server.base_url,
        headers={"Authorization": f"Bearer {server.api_key}"},
        limits=limits,
        timeout=DEADLINE_S,
    ) as http:

        async def one(client: Client) -> str:
            async with gate:
                return await run_client(http, client)

        return Counter(await asyncio.gather(*map(one, storm)))


def poll(what: str, value: Callable[[], float], deadline_s: float) -> None:
    """Wait until the value is 0."""
    deadline = time.monotonic() + deadline_s
    while (last := value()) != 0:
        assert time.monotonic() < deadline, f"{what} is still {last}"
        time.sleep(0.1)


def test_clients_that_hang_up_leave_nothing(program_server: ProgramServer) -> None:
    server = program_server
    model = server.client.get("/v1/models").json()["data"][0]["id"]

    def table() -> dict[str, Any]:
        answer = server.client.get("/v1/programs?limit=1000")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    faults = table()["engines"][0]["faults"]
    ends = asyncio.run(run_storm(server, clients(model)))
    assert sum(ends.values()) == NUM_CALLS
    assert min(ends[end] for end in (ANSWERED, IN_STREAM, WAITING)) >= 10, ends

    poll("active_calls", lambda: table()["engines"][0]["active_calls"], DEADLINE_S)
    assert table()["engines"][0]["waiting_calls"] == 0
    # vLLM updates its gauges when a step ends, so one more call is needed to see them.
    body = {"model": model, "prompt": "Once", "max_tokens": 2}
    answer = server.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2
    for gauge in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
    ):
        poll(gauge, lambda gauge=gauge: server.metric(gauge), DEADLINE_S)

    after = table()
    assert after["engines"][0]["faults"] == faults
    programs = {entry["program_id"] for entry in after["data"]}
    storm = {f"storm-{i}" for i in range(NUM_PROGRAMS)}
    assert programs >= storm
    assert all(entry["active_calls"] == 0 for entry in after["data"])
    for name in storm:
        ended = server.client.post(f"/v1/programs/{name}/end")
        assert ended.json() == {"program_id": name, "ended": True}
    assert not storm & {entry["program_id"] for entry in table()["data"]}
