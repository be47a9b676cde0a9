# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Through a real server: who may see which answers, and what requests may ask for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.vectorq.served_replies import (
    APIS,
    ROUTES,
    SHORT,
    body_of,
    reply_of,
)

if TYPE_CHECKING:
    from tests.vectorq.vectorq_server import VectorqServer

pytestmark = pytest.mark.vllm

QUESTION = "How do I reset my password?"
REPHRASED = "how can I reset my password"
WITH_TOOLS: dict[str, Any] = {
    "tool_choice": "none",
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "reset",
                "description": "Resets a password.",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ],
}


@pytest.mark.parametrize("api", APIS)
def test_another_tenant_learns_nothing(
    vectorq_server: VectorqServer, topic: str, api: str
) -> None:
    assert vectorq_server.result(QUESTION, topic, api) == "miss"
    vectorq_server.wait_for_rephrasing(REPHRASED, topic, api)
    for question in (REPHRASED, QUESTION):
        probe = vectorq_server.ask(
            question,
            topic,
            api,
            client=vectorq_server.other,
            vllm_xargs={"vectorq_no_store": 1},
        )
        ours = [item for item in probe.headers.items() if "vectorq" in item[0]]
        assert ours == [("x-vectorq", "miss")]
    assert vectorq_server.result(QUESTION, topic, api) == "exact"


def test_a_second_key_in_another_header_opens_nothing(
    vectorq_server: VectorqServer, topic: str
) -> None:
    vectorq_server.ask(QUESTION, topic)
    stolen = vectorq_server.client.headers["authorization"].removeprefix("Bearer ")
    private = {"vectorq_no_store": 1}
    body = body_of("chat", QUESTION, topic, SHORT["chat"], vllm_xargs=private)
    for header in ("x-api-key", "x-vectorq-tenant", "x-tenant"):
        response = vectorq_server.other.post(
            ROUTES["chat"], json=body, headers={header: stolen}
        )
        assert response.headers["x-vectorq"] == "miss"
    # The same request with the key in its place.
    response = vectorq_server.client.post(ROUTES["chat"], json=body)
    assert response.headers["x-vectorq"] == "hit"


def test_cache_salts_separate(vectorq_server: VectorqServer, topic: str) -> None:
    assert vectorq_server.result(QUESTION, f"{topic} a") == "miss"
    vectorq_server.wait_for_rephrasing(REPHRASED, f"{topic} a")
    assert vectorq_server.result(QUESTION, f"{topic} b") == "miss"
    assert vectorq_server.result(REPHRASED, f"{topic} c") == "miss"
    assert vectorq_server.result(QUESTION, f"{topic} a") == "exact"


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "system", "content": "Answer in French."}]},
        {"stop": [" "]},
        {"tokens": 50},
        {"frequency_penalty": 0.5},
    ],
    ids=["system prompt", "stop", "limit", "penalty"],
)
def test_other_conditions_get_another_answer(
    vectorq_server: VectorqServer, topic: str, changes: dict[str, Any]
) -> None:
    assert vectorq_server.result(QUESTION, topic) == "miss"
    vectorq_server.wait_for_rephrasing(REPHRASED, topic)
    if "messages" in changes:
        turn = {"role": "user", "content": QUESTION}
        changes = {"messages": [*changes["messages"], turn]}
    assert vectorq_server.result(QUESTION, topic, **changes) == "miss"


def test_a_request_may_switch_the_cache_off(
    vectorq_server: VectorqServer, topic: str
) -> None:
    off = {"vectorq_mode": "off"}
    assert vectorq_server.result(QUESTION, topic, vllm_xargs=off) == "switched_off"
    assert vectorq_server.result(QUESTION, topic) == "miss"
    assert vectorq_server.result(QUESTION, topic, vllm_xargs=off) == "switched_off"


def test_a_request_may_ask_for_exact_matches_only(
    vectorq_server: VectorqServer, topic: str
) -> None:
    exact = {"vectorq_mode": "exact"}
    assert vectorq_server.result(QUESTION, topic) == "miss"
    vectorq_server.wait_for_rephrasing(REPHRASED, topic)
    assert vectorq_server.result(REPHRASED, topic, vllm_xargs=exact) == "miss"
    assert vectorq_server.result(REPHRASED, topic, vllm_xargs=exact) == "exact"


def test_a_request_may_keep_its_answer_to_itself(
    vectorq_server: VectorqServer, topic: str
) -> None:
    private = {"vectorq_no_store": 1}
    for _ in range(2):
        assert vectorq_server.result(QUESTION, topic, vllm_xargs=private) == "miss"
    assert vectorq_server.result(QUESTION, topic) == "miss"
    assert vectorq_server.result(QUESTION, topic, vllm_xargs=private) == "exact"


def test_a_request_may_want_a_younger_answer(
    vectorq_server: VectorqServer, topic: str
) -> None:
    young = {"vectorq_ttl": 0.5, "vectorq_no_store": 1}
    assert vectorq_server.result(QUESTION, topic) == "miss"
    time.sleep(0.6)
    assert vectorq_server.result(QUESTION, topic, vllm_xargs=young) == "miss"
    assert vectorq_server.result(QUESTION, topic) == "exact"


def test_an_answer_lives_no_longer_than_its_request_says(
    vectorq_server: VectorqServer, topic: str
) -> None:
    short = {"vectorq_ttl": 0.5}
    assert vectorq_server.result(QUESTION, topic, vllm_xargs=short) == "miss"
    time.sleep(0.6)
    assert vectorq_server.result(QUESTION, topic) == "miss"


@pytest.mark.parametrize(
    "xargs",
    [
        {"vectorq_mode": "everything"},
        {"vectorq_ttl": -1},
        {"vectorq_delta": 2},
        {"vectorq_no_store": "perhaps"},
        {"vectorq_tenant": "other"},
        {"vectorq_threshold": 0.1},
    ],
    ids=str,
)
def test_a_control_that_is_not_understood_keeps_the_cache_away(
    vectorq_server: VectorqServer, topic: str, xargs: dict[str, Any]
) -> None:
    for _ in range(2):
        result = vectorq_server.result(QUESTION, topic, vllm_xargs=xargs)
        assert result == "malformed_control"
    assert vectorq_server.result(QUESTION, topic) == "miss"


def test_controls_cannot_loosen(vectorq_server: VectorqServer, topic: str) -> None:
    wide = {"vectorq_mode": "semantic", "vectorq_delta": 0.99, "vectorq_ttl": 1e12}
    assert vectorq_server.result(QUESTION, topic) == "miss"
    vectorq_server.wait_for_rephrasing(REPHRASED, topic)
    ask = vectorq_server.result
    unlike = "How do I change my e-mail address?"
    assert ask(unlike, topic, vllm_xargs=wide) == "miss"
    assert ask(QUESTION, topic, vllm_xargs=wide, client=vectorq_server.other) == "miss"
    assert ask(QUESTION, topic, vllm_xargs=wide, temperature=0.7) == "sampled"
    assert ask(QUESTION, topic, vllm_xargs=wide, **WITH_TOOLS) == "miss"
    assert ask(REPHRASED, topic, vllm_xargs=wide, **WITH_TOOLS) == "miss"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperature": 0.7}, "sampled"),
        ({"temperature": 0.7, "n": 2}, "several_answers"),
        ({"logprobs": True, "top_logprobs": 1}, "logprobs"),
        ({"min_tokens": 2}, "forced_length"),
        ({"ignore_eos": True}, "forced_length"),
    ],
    ids=["temperature", "n", "logprobs", "min_tokens", "ignore_eos"],
)
def test_what_a_stored_answer_cannot_give_is_left_to_vllm(
    vectorq_server: VectorqServer, topic: str, changes: dict[str, Any], reason: str
) -> None:
    vectorq_server.ask(QUESTION, topic)
    bypassed = vectorq_server.metric("vllm:vectorq_bypassed_total", reason=reason)
    for _ in range(2):
        response = vectorq_server.ask(QUESTION, topic, tokens=4, **changes)
        assert response.headers["x-vectorq"] == "bypass"
        assert response.headers["x-vectorq-reason"] == reason
        assert len(response.json()["choices"]) == changes.get("n", 1)
    now = vectorq_server.metric("vllm:vectorq_bypassed_total", reason=reason)
    assert now == bypassed + 2


def test_requests_with_tools_get_exact_matches_only(
    vectorq_server: VectorqServer, topic: str
) -> None:
    assert vectorq_server.result(QUESTION, topic, **WITH_TOOLS) == "miss"
    assert vectorq_server.result(QUESTION, topic, **WITH_TOOLS) == "exact"
    # By now a plain request's answer is found by meaning.
    assert vectorq_server.result(QUESTION, topic) == "miss"
    vectorq_server.wait_for_rephrasing(REPHRASED, topic)
    assert vectorq_server.result(REPHRASED, topic, **WITH_TOOLS) == "miss"


@pytest.mark.parametrize("authorization", ["", "Bearer wrong-key", "Basic one-key"])
def test_who_may_not_ask_gets_vllms_refusal(
    vectorq_server: VectorqServer, topic: str, authorization: str
) -> None:
    vectorq_server.ask(QUESTION, topic)
    for api in APIS:
        response = httpx.post(
            f"{vectorq_server.server.base_url}{ROUTES[api]}",
            json=body_of(api, QUESTION, topic),
            headers={"Authorization": authorization},
            timeout=60,
        )
        assert response.status_code == 401
        assert not [name for name in response.headers if "vectorq" in name]


def test_a_conversation_gets_no_answer_of_another(
    vectorq_server: VectorqServer, topic: str
) -> None:
    def turns(city: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"I live in {city}."},
            {"role": "assistant", "content": "A fine city."},
            {"role": "user", "content": "How many people live there?"},
        ]

    def ask(city: str) -> httpx.Response:
        return vectorq_server.ask("", topic, messages=turns(city))

    results = [ask(city).headers["x-vectorq"] for city in ("Rome", "Oslo", "Rome")]
    assert results == ["miss", "miss", "hit"]
    assert reply_of("chat", ask("Oslo")).finish == "stop"
