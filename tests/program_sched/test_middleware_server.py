# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The middleware in a running server."""

from typing import Any, Protocol

import httpx
import pytest

CHAT = "/v1/chat/completions"


class ProgramServer(Protocol):
    """A running server, see the fixture ``program_server``."""

    base_url: str
    api_key: str
    client: httpx.Client


@pytest.mark.vllm
def test_header_reaches_the_scheduler(program_server: ProgramServer) -> None:
    """One call with a header shows up in the live table under that id."""
    model = program_server.client.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "prompt": "Once", "max_tokens": 4}
    headers = {"X-Program-ID": "middleware-e2e"}
    answer = program_server.client.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    table = program_server.client.get("/v1/programs?limit=1000").json()["data"]
    assert "middleware-e2e" in {entry["program_id"] for entry in table}


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Once"}),
        (CHAT, {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}]}),
    ],
)
def test_malformed_id_never_reaches_the_engine(
    program_server: ProgramServer, path: str, body: dict[str, Any]
) -> None:
    answer = program_server.client.post(
        path, json={"max_tokens": 4, **body}, headers={"X-Program-ID": "x" * 300}
    )
    assert answer.status_code == 400
    assert "program_id: has 300 characters" in answer.json()["error"]["message"]


@pytest.mark.vllm
def test_stranger_gets_vllms_own_answer(program_server: ProgramServer) -> None:
    answer = httpx.post(
        f"{program_server.base_url}/v1/completions",
        json={"prompt": "x"},
        headers={"X-Program-ID": "x" * 300},
    )
    assert answer.status_code == 401
