# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Explanations by the admin routes, with vLLM's handlers."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
from vllm.entrypoints.openai.completion import api_router as completion_routes
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.input_processor import InputProcessor

from tests.vectorq.admin_cases import (
    CHAT,
    COMPLETION,
    FACTS,
    ONE,
    TWO,
    Server,
    application,
)
from vllm_vectorq import hooks_render
from vllm_vectorq.admin_api import PREFIX
from vllm_vectorq.admin_rehearsal import CHAT_HANDLER, COMPLETION_HANDLER
from vllm_vectorq.bypass_words import WORDS
from vllm_vectorq.cacheability import Bypass
from vllm_vectorq.engine_adapter import ATTRIBUTE, EngineAdapter
from vllm_vectorq.hooks_engine import caching


def test_every_bypass_has_words() -> None:
    assert set(WORDS) == set(Bypass)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"model": "demo"}, "give a chat completion request"),
        ({**CHAT, **COMPLETION}, "give a chat completion request"),
        ({"prompt": ["a", "b"]}, "one prompt at a time"),
        ({"prompt": [[1], [2]]}, "one prompt at a time"),
    ],
)
def test_what_is_to_be_explained_is_checked(
    server: Server, body: dict[str, object], reason: str
) -> None:
    assert reason in server.refusal("explain", body)


class Engine:
    """An engine that always says the same, in front of it the cache."""

    errored = False
    dead_error = RuntimeError("dead")

    def __init__(self, vllm_config: Any, renderer: Any) -> None:  # noqa: ANN401
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.renderer = renderer
        self.input_processor = InputProcessor(vllm_config, renderer)
        self.calls = 0

    def check_admission(self, n: int) -> None:
        """Take everything."""

    async def generate(
        self,
        prompt: Any,  # noqa: ANN401
        sampling_params: Any,  # noqa: ANN401
        request_id: str,
        *,
        lora_request: Any = None,  # noqa: ANN401
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        session_id: str | None = None,
        reasoning_ended: bool | None = None,
        reasoning_parser_kwargs: dict[str, Any] | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        self.calls += 1
        completion = CompletionOutput(
            0, "Water.", [1, 2], None, None, finish_reason="stop"
        )
        yield RequestOutput(
            request_id, "p", prompt["prompt_token_ids"], None, [completion], True
        )


class CachedEngine(Engine):
    """The same with the cache in front of it."""

    # As the hooks put it in.
    generate = wraps(Engine.generate)(caching(Engine.generate))


@pytest.fixture(scope="module")
def handlers(model_path: str) -> Iterator[SimpleNamespace]:
    """The handlers and renderer of vLLM for the demo model, and an engine of ours."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.renderers import renderer_from_config
    from vllm.renderers.online_renderer import OnlineRenderer

    names = ("preprocess_chat", "preprocess_cmpl")
    originals = {name: vars(OnlineRenderer)[name] for name in names}
    hooks_render.install()
    config = EngineArgs(model=model_path, max_model_len=512).create_engine_config()
    engine: Any = CachedEngine(config, renderer_from_config(config))
    online = OnlineRenderer(
        config.model_config,
        engine.renderer,
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
    )
    models = OpenAIServingModels(engine, [BaseModelPath("demo", model_path)])
    chat = OpenAIServingChat(
        engine,
        models,
        "assistant",
        online_renderer=online,
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
    )
    completion = OpenAIServingCompletion(
        engine, models, online_renderer=online, request_logger=None
    )
    yield SimpleNamespace(engine=engine, chat=chat, completion=completion)
    for name, original in originals.items():
        setattr(OnlineRenderer, name, original)


@pytest.fixture
def serving(handlers: SimpleNamespace) -> Iterator[Server]:
    """A server with vLLM's handlers in it."""
    server = Server()
    engine = handlers.engine
    engine.calls = 0
    adapter = EngineAdapter(server.cache, FACTS, None)
    setattr(engine, ATTRIBUTE, adapter)
    setattr(engine.renderer, ATTRIBUTE, adapter)
    app = application(engine, server.cache)
    setattr(app.state, CHAT_HANDLER, handlers.chat)
    setattr(app.state, COMPLETION_HANDLER, handlers.completion)
    app.state.enable_server_load_tracking = False
    chat_routes.attach_router(app)
    completion_routes.attach_router(app)
    server.http = TestClient(app)
    yield server
    server.cache.close()


@pytest.mark.vllm
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("route", "body"), [("chat/completions", CHAT), ("completions", COMPLETION)]
)
def test_an_explanation_is_about_the_very_request(
    serving: Server,
    handlers: SimpleNamespace,
    route: str,
    body: dict[str, object],
    streamed: bool,
) -> None:
    options = {"include_usage": True}
    asked = {**body, "stream": True, "stream_options": options} if streamed else body
    before = serving.post("explain", asked)
    assert before["served"] is False
    assert handlers.engine.calls == 0
    assert serving.left() == 0
    response = serving.http.post(f"/v1/{route}", json=asked, headers=ONE)
    assert response.status_code == 200, response.text
    assert response.headers["x-vectorq"] == "miss"
    assert handlers.engine.calls == 1
    after = serving.post("explain", asked)
    assert (after["served"], after["stage"]) == (True, "exact")
    assert after["entry"]["answer"] == "Water."
    assert after["facts"]["protocol"] == route.split("/")[0]
    assert handlers.engine.calls == 1
    # Another caller, another limit: not the same request.
    assert serving.post("explain", asked, TWO)["served"] is False
    assert serving.post("explain", {**asked, "max_tokens": 5})["served"] is False


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"temperature": 0.7}, "sampled", "temperature is above 0"),
        ({"n": 2, "temperature": 0.7}, "several_answers", "several answers"),
        ({"logprobs": True}, "logprobs", "log probabilities"),
        ({"use_beam_search": True}, "logprobs", "beam search"),
        (
            {"vllm_xargs": {"vectorq_mode": "off"}},
            "switched_off",
            "switched the cache off",
        ),
        (
            {"vllm_xargs": {"vectorq_dleta": 1}},
            "malformed_control",
            "the fields are vectorq_mode",
        ),
    ],
)
def test_a_bypass_is_explained_and_not_counted(
    serving: Server,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    reason: str,
    words: str,
) -> None:
    counted: list[str] = []
    monkeypatch.setattr(serving.cache.metrics, "bypass", counted.append)
    found = serving.post("explain", {**CHAT, **changes})
    assert (found["served"], found["bypass"]) == (False, reason)
    assert words in found["why"]
    assert counted == []
    response = serving.http.post(f"{PREFIX}/explain", json={**CHAT, **changes})
    assert "x-vectorq" not in response.headers


@pytest.mark.vllm
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "other"}, 404),
        ({"temperature": "hot"}, 400),
        ({"temperature": -1}, 400),
        ({"max_tokens": 100_000}, 400),
    ],
)
def test_what_vllm_refuses_is_refused_alike(
    serving: Server, route: str, changes: dict[str, object], status: int
) -> None:
    body = {**(CHAT if route.startswith("chat") else COMPLETION), **changes}
    theirs = serving.http.post(f"/v1/{route}", json=body, headers=ONE)
    ours = serving.post("explain", body, status=status)
    assert theirs.status_code == status
    assert ours["error"]["type"] == theirs.json()["error"]["type"]


@pytest.mark.vllm
def test_an_explanation_leaves_remote_state_alone(
    serving: Server, handlers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normally vLLM tells the other server when a request does not reach the engine."""
    monkeypatch.setattr(handlers.chat, "has_kv_connector", True)
    remote = {"kv_transfer_params": {"do_remote_prefill": True}}
    found = serving.post("explain", {**CHAT, **remote})
    assert found["bypass"] == "disaggregated"
