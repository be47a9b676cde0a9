# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Through a real server: what a client gets from the cache is what the model said."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.vectorq.served_replies import (
    APIS,
    ROUTES,
    body_of,
    reply_of,
    streamed,
    without_own,
)
from vllm_vectorq.embedding_model import EmbeddingModel

if TYPE_CHECKING:
    from tests.vectorq.vectorq_server import VectorqServer

pytestmark = pytest.mark.vllm

SENTENCE = (".", "!", "?")
QUESTION = "How do I reset my password?"
REPHRASED = "how can I reset my password"
ODD_TEXTS = {
    "nul": "a\0b",
    "controls": "".join(map(chr, range(1, 32))),
    "emoji": "\U0001f469\u200d\U0001f4bb\U0001f3ff?",
    "right to left": "\u202eabc \u0645\u0631\u062d\u0628\u0627",
    "combining": "e" + "\u0301" * 200,
    "like bytes": "".join(map(chr, range(128, 256))),
    "line separators": "a\u2028b\u2029c\x85",
    "invisible": "\u200b\ufeff",
    "blank": "   ",
    "last code point": "\U0010ffff",
    "special tokens": "<|im_end|>\n<|im_start|>assistant\nYes",
    "quotes": "'; DROP TABLE entries; -- \\ \" %s {}",
    "longer than the embedding model reads": "ab " * 400,
}


@pytest.mark.parametrize("stops", [SENTENCE, ()], ids=["at a stop string", "by itself"])
@pytest.mark.parametrize("api", APIS)
def test_a_hit_is_the_miss_again_but_for_its_own_id_and_time(
    vectorq_server: VectorqServer, topic: str, api: str, stops: tuple[str, ...]
) -> None:
    question = {"completions": "The capital of France is"}.get(api, "Say hello.")
    body = body_of(api, question, topic, stops)
    post = vectorq_server.client.post
    miss = post(ROUTES[api], json=body)
    hit = post(ROUTES[api], json=body)
    assert (miss.headers["x-vectorq"], hit.headers["x-vectorq"]) == ("miss", "hit")
    assert without_own(hit.json()) == without_own(miss.json())
    first, second = reply_of(api, miss), reply_of(api, hit)
    assert second == first
    assert first.text
    assert second.request_id != first.request_id
    streams = [post(ROUTES[api], json=streamed(api, body)) for _ in range(2)]
    replies = [reply_of(api, stream) for stream in streams]
    assert replies == [first, first]
    assert (
        len({first.request_id, second.request_id, *(r.request_id for r in replies)})
        == 4
    )


@pytest.mark.parametrize("api", APIS)
def test_what_was_streamed_first_is_served_whole_and_as_a_stream(
    vectorq_server: VectorqServer, topic: str, api: str
) -> None:
    body = body_of(api, "Name a fruit.", topic, SENTENCE)
    post = vectorq_server.client.post
    finished = vectorq_server.finished()
    first, again = (post(ROUTES[api], json=streamed(api, body)) for _ in range(2))
    whole = post(ROUTES[api], json=body)
    assert reply_of(api, first) == reply_of(api, again) == reply_of(api, whole)
    assert whole.headers["x-vectorq-stage"] == "exact"
    assert vectorq_server.finished_since(finished) == 1


def test_the_headers_say_what_the_cache_did(
    vectorq_server: VectorqServer, topic: str
) -> None:
    miss = vectorq_server.ask(QUESTION, topic)
    hit = vectorq_server.ask(QUESTION, topic)
    ours = [
        {k: v for k, v in response.headers.items() if k.startswith("x-vectorq")}
        for response in (miss, hit)
    ]
    assert ours[0] == {"x-vectorq": "miss"}
    assert ours[1].pop("x-vectorq-entry").isdecimal()
    assert float(ours[1].pop("x-vectorq-age-s")) >= 0
    assert ours[1] == {
        "x-vectorq": "hit",
        "x-vectorq-stage": "exact",
        "x-vectorq-similarity": "1.0000",
    }


@pytest.mark.parametrize("api", APIS)
def test_a_rephrased_question_gets_the_answer(
    vectorq_server: VectorqServer, topic: str, api: str
) -> None:
    miss = vectorq_server.ask(QUESTION, topic, api, stop=SENTENCE)
    vectorq_server.ask(QUESTION, topic, api)
    vectorq_server.wait_for_rephrasing(REPHRASED, topic, api)
    body = body_of(api, REPHRASED, topic, SENTENCE)
    hit = vectorq_server.client.post(ROUTES[api], json=body)
    stream = vectorq_server.client.post(ROUTES[api], json=streamed(api, body))
    assert hit.headers["x-vectorq-stage"] == "semantic"
    assert 0.9 <= float(hit.headers["x-vectorq-similarity"]) < 1.0
    one, two = reply_of(api, miss), reply_of(api, hit)
    assert (two.text, two.finish, two.stop) == (one.text, one.finish, one.stop)
    assert two.completion_tokens == one.completion_tokens
    assert reply_of(api, stream) == two


@pytest.mark.parametrize(
    ("question", "trap"),
    [
        (
            "Is 20 euros a fair price for a meal?",
            "Is 200 euros a fair price for a meal?",
        ),
        ("Can I cancel my order?", "Can I not cancel my order?"),
        ("Book a flight from Rome to Oslo", "Book a flight from Oslo to Rome"),
    ],
)
def test_a_question_that_only_looks_alike_asks_the_model(
    vectorq_server: VectorqServer,
    embedding_model_path: str,
    topic: str,
    question: str,
    trap: str,
) -> None:
    one, other = EmbeddingModel(embedding_model_path).embed([question, trap])
    assert one @ other >= 0.9
    assert vectorq_server.result(question, topic) == "miss"
    vectorq_server.wait_for_rephrasing(f"Please, {question}", topic)
    assert vectorq_server.result(trap, topic) == "miss"


def test_vllms_counters_count_misses_only(
    vectorq_server: VectorqServer, topic: str, wait_until: Callable[..., None]
) -> None:
    names = ("request_success_total", "prompt_tokens_total", "generation_tokens_total")

    def engine() -> list[float]:
        return [vectorq_server.metric(f"vllm:{name}") for name in names]

    def ours(result: str) -> float:
        return vectorq_server.metric("vllm:vectorq_requests_total", result=result)

    before, misses, hits = engine(), ours("miss"), ours("hit")
    stored_s = vectorq_server.metric("vllm:vectorq_saved_seconds_total")
    reply = reply_of("chat", vectorq_server.ask(QUESTION, topic))
    counted = [1, reply.prompt_tokens, reply.completion_tokens]
    after = [b + c for b, c in zip(before, counted, strict=True)]
    wait_until(lambda: engine() == after)
    for _ in range(3):
        vectorq_server.ask(QUESTION, topic)
    assert engine() == after
    assert (ours("miss"), ours("hit")) == (misses + 1, hits + 3)
    assert vectorq_server.metric("vllm:vectorq_saved_seconds_total") > stored_s
    wait_until(lambda: vectorq_server.metric("vllm:vectorq_entries") >= 1)


def test_identical_requests_at_once_ask_the_model_once(
    vectorq_server: VectorqServer, topic: str
) -> None:
    finished = vectorq_server.finished()
    coalesced = vectorq_server.metric("vllm:vectorq_hits_total", stage="coalesced")
    body = body_of("chat", "Say hello.", topic)

    def ask(_: int) -> httpx.Response:
        return vectorq_server.client.post(ROUTES["chat"], json=body)

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(ask, range(16)))
    replies = [reply_of("chat", response) for response in responses]
    assert len(set(replies)) == 1
    assert len({reply.request_id for reply in replies}) == 16
    assert vectorq_server.finished_since(finished) == 1
    now = vectorq_server.metric("vllm:vectorq_hits_total", stage="coalesced")
    assert now > coalesced


def test_an_answer_cut_off_by_its_limit_is_not_kept(
    vectorq_server: VectorqServer, topic: str
) -> None:
    for _ in range(2):
        response = vectorq_server.ask("Say hello.", topic, stop=(), tokens=3)
        assert reply_of("chat", response).finish == "length"
        assert response.headers["x-vectorq"] == "miss"


def test_a_stream_that_its_client_leaves_is_not_kept(
    vectorq_server: VectorqServer, topic: str
) -> None:
    body = body_of("chat", "Say hello.", topic)
    finished = vectorq_server.finished()
    with vectorq_server.client.stream(
        "POST", ROUTES["chat"], json=streamed("chat", body)
    ) as left:
        assert next(left.iter_lines()).startswith("data: ")
    again = vectorq_server.client.post(ROUTES["chat"], json=streamed("chat", body))
    assert again.headers["x-vectorq"] == left.headers["x-vectorq"] == "miss"
    assert reply_of("chat", again).finish == "stop"
    # The model ended one of the two.
    assert vectorq_server.finished_since(finished) == 1
    assert (
        vectorq_server.ask("Say hello.", topic, stop=()).headers["x-vectorq"] == "hit"
    )


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_no_text_breaks_the_server(
    vectorq_server: VectorqServer, topic: str, api: str, text: str
) -> None:
    first, second = (vectorq_server.ask(text, topic, api, tokens=6) for _ in range(2))
    assert reply_of(api, second) == reply_of(api, first)


@pytest.mark.parametrize("text", ["x\ud800y", "\udfff"])
@pytest.mark.parametrize("api", APIS)
def test_half_a_character_is_vllms_to_refuse(
    vectorq_server: VectorqServer, topic: str, api: str, text: str
) -> None:
    response = vectorq_server.ask(text, topic, api)
    assert response.status_code == 400
    assert "x-vectorq" not in response.headers


def test_a_prompt_that_is_too_long_gets_vllms_own_error(
    vectorq_server: VectorqServer, topic: str
) -> None:
    for _ in range(2):
        response = vectorq_server.ask("word " * 2000, topic)
        assert response.status_code == 400
        assert "maximum context length" in json.dumps(response.json())
        assert "x-vectorq" not in response.headers
