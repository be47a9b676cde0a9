# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Requests to a server's text APIs, and their replies in one comparable form."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.program_sched.server import SERVED_NAME

ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
APIS = tuple(ROUTES)

# Where a short answer ends: a chat's after a word, a continuation's after a clause,
# because it may begin with a blank.
SHORT = {api: (" ", "\n") for api in APIS} | {"completions": (".", ",", "!", "?")}

# Names of what belongs to one reply alone. How much of a prompt vLLM had in its own
# prefix cache is not part of the answer either.
_PARTS_OF_A_PROMPT = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
_OWN = frozenset(
    {
        *("id", "created", "created_at", "prompt_tokens_details"),
        *("input_tokens_details", *_PARTS_OF_A_PROMPT),
    }
)


@dataclass(frozen=True)
class Reply:
    """What a client reads; ids are not compared."""

    text: str
    finish: str
    stop: str | None
    prompt_tokens: int
    completion_tokens: int
    request_id: str = field(compare=False)


def body_of(
    api: str,
    question: str,
    topic: str,
    stop: tuple[str, ...] = (),
    tokens: int = 200,
    **changes: object,
) -> dict[str, Any]:
    """A greedy request; requests of different topics share no answers."""
    turn = [{"role": "user", "content": question}]
    questions: dict[str, dict[str, Any]] = {
        "chat": {"messages": turn},
        "completions": {"prompt": question},
        "responses": {"input": question},
        "messages": {"messages": turn},
    }
    asked = questions[api]
    limit = "max_output_tokens" if api == "responses" else "max_tokens"
    if stop:
        asked["stop_sequences" if api == "messages" else "stop"] = list(stop)
    common = {"model": SERVED_NAME, "temperature": 0.0, "cache_salt": topic}
    return {**common, **asked, limit: tokens, **changes}


def streamed(api: str, body: dict[str, Any]) -> dict[str, Any]:
    """The same request as a stream with token counts."""
    counts = {"stream_options": {"include_usage": True}}
    return {**body, "stream": True, **(counts if api in _LISTS else {})}


def without_own(value: Any) -> Any:  # noqa: ANN401
    """A body without what belongs to one reply alone."""
    if isinstance(value, dict):
        return {k: without_own(v) for k, v in value.items() if k not in _OWN}
    return [without_own(v) for v in value] if isinstance(value, list) else value


def reply_of(api: str, response: httpx.Response) -> Reply:
    """Read a reply, streamed or not."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        return _STREAMED[api](events_of(api, response.text))
    body = response.json()
    return _LISTS[api]([body]) if api in _LISTS else _WHOLE[api](body)


def events_of(api: str, text: str) -> list[dict[str, Any]]:
    """Check the form of a stream and return what its events carry."""
    assert text.endswith("\n\n")
    blocks = [block.split("\n") for block in text.rstrip("\n").split("\n\n")]
    if api in _LISTS:
        assert blocks.pop() == ["data: [DONE]"]
    found = []
    for *name, data in blocks:
        assert data.startswith("data: ")
        event = json.loads(data.removeprefix("data: "))
        assert name == ([] if api in _LISTS else [f"event: {event['type']}"])
        found.append(event)
    return found


def _chat(parts: list[dict[str, Any]]) -> Reply:
    return _listed(parts, lambda c: (c.get("message") or c["delta"]).get("content"))


def _completions(parts: list[dict[str, Any]]) -> Reply:
    return _listed(parts, lambda choice: choice["text"])


def _listed(parts: list[dict[str, Any]], text_of: Callable[[Any], str | None]) -> Reply:
    """Join the pieces of the APIs that answer with a list of choices."""
    [request_id] = {part["id"] for part in parts}
    choices = [choice for part in parts for choice in part["choices"]]
    [last] = [choice for choice in choices if choice["finish_reason"]]
    usage = parts[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return Reply(
        text="".join(text_of(choice) or "" for choice in choices),
        finish=last["finish_reason"],
        stop=last["stop_reason"],
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        request_id=request_id,
    )


def _response(body: dict[str, Any]) -> Reply:
    [message] = body["output"]
    return Reply(
        text="".join(content["text"] for content in message["content"]),
        finish=body["status"],
        stop=None,
        prompt_tokens=body["usage"]["input_tokens"],
        completion_tokens=body["usage"]["output_tokens"],
        request_id=body["id"],
    )


def _response_events(events: list[dict[str, Any]]) -> Reply:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    reply = _response(events[-1]["response"])
    pieces = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(pieces) == reply.text
    return reply


def _message(body: dict[str, Any]) -> Reply:
    usage = body["usage"]
    return Reply(
        text="".join(content["text"] for content in body["content"]),
        finish=body["stop_reason"],
        stop=body.get("stop_sequence"),
        prompt_tokens=sum(usage[name] for name in _PARTS_OF_A_PROMPT),
        completion_tokens=usage["output_tokens"],
        request_id=body["id"],
    )


def _message_events(events: list[dict[str, Any]]) -> Reply:
    pieces = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
    [end] = [event for event in events if event["type"] == "message_delta"]
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    whole = {
        **events[0]["message"],
        **end["delta"],
        "content": [{"text": "".join(pieces)}],
        "usage": end["usage"],
    }
    return _message(whole)


_LISTS = {"chat": _chat, "completions": _completions}
_WHOLE = {"responses": _response, "messages": _message}
_STREAMED = {**_LISTS, "responses": _response_events, "messages": _message_events}
