# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Clients that leave, and an engine put to sleep: a running server keeps nothing."""

import asyncio
import random
import time
from typing import Any

import httpx
import pytest

from tests.program_sched.conftest import ProgramServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

STORM_REQUESTS = 150
STORM_PROGRAMS = 30
SETTLE_S = 60.0


def wait_until_idle(server: ProgramServer) -> dict[str, Any]:
    """Wait until neither vLLM nor the plugin holds a call; return the table."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        table: dict[str, Any] = server.client.get("/v1/programs?limit=1000").json()
        held = {
            "active calls": table["engines"][0]["active_calls"],
            "waiting calls": table["engines"][0]["waiting_calls"],
            "running": server.metric("vllm:num_requests_running"),
            "waiting": server.metric("vllm:num_requests_waiting"),
            "KV blocks in use": server.metric("vllm:kv_cache_usage_perc"),
        }
        if not any(held.values()):
            return table
        assert time.monotonic() < deadline_s, held
        time.sleep(0.2)


async def storm(server: ProgramServer, rng: random.Random) -> tuple[int, int]:
    """Send many calls and leave most of them; return (answered, left)."""
    client = httpx.AsyncClient(
        base_url=server.base_url, headers=dict(server.client.headers), timeout=120
    )
    model = server.client.get("/v1/models").json()["data"][0]["id"]

    async def call(number: int, patience_s: float | None, stream: bool) -> bool:
        words = " ".join(rng.choices(["river", "stone", "cloud"], k=30))
        body = {
            "model": model,
            "prompt": f"{number} {words}",
            "max_tokens": 24,
            "ignore_eos": True,
            "stream": stream,
        }
        headers = {"X-Program-ID": f"storm-{number % STORM_PROGRAMS}"}
        answer = client.post("/v1/completions", json=body, headers=headers)
        try:
            async with asyncio.timeout(patience_s):
                return (await answer).status_code == 200
        except TimeoutError:
            return False

    async def leave_in_mid_stream(number: int) -> bool:
        body = {
            "model": model,
            "prompt": f"stream {number}",
            "max_tokens": 200,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"X-Program-ID": f"storm-{number % STORM_PROGRAMS}"}
        url = "/v1/completions"
        async with client.stream("POST", url, json=body, headers=headers) as answer:
            chunks = rng.randrange(1, 6)
            async for _ in answer.aiter_lines():
                chunks -= 1
                if chunks == 0:
                    break
        return False

    async with client:
        calls = []
        for number in range(STORM_REQUESTS):
            kind = rng.random()
            if kind < 0.15:
                calls.append(call(number, None, stream=bool(number % 2)))
            elif kind < 0.3:
                calls.append(leave_in_mid_stream(number))
            else:
                patience_s = rng.choice([0.0, 0.01, 0.1, 0.5, 1.0, 2.0])
                calls.append(call(number, patience_s, stream=bool(number % 2)))
        answered = sum(await asyncio.gather(*calls))
    return answered, STORM_REQUESTS - answered


def test_clients_that_leave_leave_nothing(program_server: ProgramServer) -> None:
    answered, left = asyncio.run(storm(program_server, random.Random(17)))
    assert answered >= 15
    assert left > 75
    table = wait_until_idle(program_server)
    assert table["engines"][0]["faults"] == 0
    mine = [row for row in table["data"] if row["program_id"].startswith("storm-")]
    assert 0 < len(mine) <= STORM_PROGRAMS
    assert all(row["active_calls"] == 0 for row in mine)
    for row in mine:
        url = f"/v1/programs/{row['program_id']}/end"
        assert program_server.client.post(url).json()["ended"]
    names = {
        row["program_id"]
        for row in program_server.client.get("/v1/programs?limit=1000").json()["data"]
    }
    assert not any(name.startswith("storm-") for name in names)


@pytest.mark.parametrize("mode", ["keep", "wait", "abort"])
def test_an_engine_that_sleeps_keeps_what_it_should(
    program_server: ProgramServer, mode: str
) -> None:
    """Level 0 is all that a CPU offers: higher ones need a GPU memory allocator."""
    asyncio.run(_sleep_and_wake(program_server, mode))
    table = wait_until_idle(program_server)
    assert table["engines"][0]["faults"] == 0


async def _sleep_and_wake(server: ProgramServer, mode: str) -> None:
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    client = httpx.AsyncClient(
        base_url=server.base_url, headers=dict(server.client.headers), timeout=120
    )

    async def call(name: str, tokens: int) -> dict[str, Any]:
        body = {
            "model": model,
            "prompt": f"Once upon a time {name}",
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        headers = {"X-Program-ID": f"sleep-{mode}-{name}"}
        answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    async with client:
        early = [asyncio.create_task(call(f"early{i}", 60)) for i in range(12)]
        while server.metric("vllm:num_requests_running") == 0:
            await asyncio.sleep(0.05)
        asleep = await client.post(f"/sleep?level=0&mode={mode}")
        assert asleep.status_code == 200, asleep.text
        late = [asyncio.create_task(call(f"late{i}", 8)) for i in range(4)]
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in late), "a sleeping engine answered"
        awake = await client.post("/wake_up?tags=scheduling")
        assert awake.status_code == 200, awake.text
        for choice in await asyncio.gather(*late):
            assert choice["finish_reason"] == "length"
        reasons = {choice["finish_reason"] for choice in await asyncio.gather(*early)}
    assert reasons <= ({"length", "abort"} if mode == "abort" else {"length"})
