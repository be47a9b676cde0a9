# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The admin routes: in a real application, with a real cache and vLLM's handlers."""

import asyncio
import hashlib
import inspect
import logging
from argparse import Namespace
from collections.abc import AsyncGenerator, Iterator, Mapping
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import State
from vllm.entrypoints.generate.api_router import init_generate_state
from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
from vllm.entrypoints.openai.completion import api_router as completion_routes
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.v1.engine.input_processor import InputProcessor

from vllm_vectorq import hooks_render
from vllm_vectorq.admin_api import PREFIX, VectorQEndpoint
from vllm_vectorq.admin_rehearsal import CHAT_HANDLER, COMPLETION_HANDLER
from vllm_vectorq.bypass_words import WORDS
from vllm_vectorq.cache import SemanticCache
from vllm_vectorq.cacheability import Bypass
from vllm_vectorq.compat import ModelFacts
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.engine_adapter import ATTRIBUTE, EngineAdapter
from vllm_vectorq.hooks_engine import caching
from vllm_vectorq.http_identity import HttpIdentity, identify
from vllm_vectorq.request import Answer, CacheRequest, Partition
from vllm_vectorq.service import Service

ROUTES = {"stats": "GET", "explain": "POST", "invalidate": "POST", "feedback": "POST"}
ONE = {"Authorization": "Bearer one"}
TWO = {"Authorization": "Bearer two"}
CHAT = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is rain?"}],
    "temperature": 0.0,
    "max_tokens": 16,
}
COMPLETION = {"model": "demo", "prompt": "Rain is", "temperature": 0.0}

FACTS = ModelFacts("demo", "build", "tokenizer", 512, 1)


def application(engine: Any, cache: SemanticCache | None) -> FastAPI:  # noqa: ANN401
    """An application as vLLM builds it, with the routes and the middleware."""
    app = FastAPI()
    app.state.args = Namespace(log_error_stack=False)
    plugin = VectorQEndpoint()
    plugin.attach_router(app)
    asyncio.run(plugin.init_state(engine, State(), Namespace()))
    init_exception_handler(app)
    if cache is not None:
        app.add_middleware(HttpIdentity, config=cache.config, secret=cache.secret)
    return app


class Server:
    """A cache and a client of its routes, without vLLM's handlers."""

    def __init__(self, **options: object) -> None:
        config = VectorQConfig(
            enabled=True,
            policy="exact",
            store="memory",
            **options,  # type: ignore[arg-type]
        )
        self.cache = Service(config, "demo", logging.getLogger("test")).cache
        engine = SimpleNamespace()
        setattr(engine, ATTRIBUTE, EngineAdapter(self.cache, FACTS, None))
        self.http = TestClient(application(engine, self.cache))

    def store(self, text: str, caller: Mapping[str, str], **facts: str) -> int:
        """Have an answer stored for a caller; return its entry's id."""
        headers = {name.lower(): value for name, value in caller.items()}
        call = identify(headers, "/", self.cache.config, self.cache.secret)
        facts = {"model": "demo", "lora": "", **facts, "tenant": call.tenant}
        digest = hashlib.sha256(repr(sorted(facts.items())).encode()).digest()
        request = CacheRequest(
            partition=Partition(digest, facts),
            exact_key=hashlib.sha256(digest + text.encode()).digest(),
            text=text,
            mode="exact",
            principal=call.principal,
        )
        _, ticket = self.cache.lookup_sync(request)
        assert ticket is not None
        self.cache.complete(ticket, Answer("an answer", (1, 2), None, 0.5))
        hit, _ = self.cache.lookup_sync(request)
        assert hit is not None
        return hit.entry_id

    def left(self) -> int:
        """Entries that are left."""
        return len(self.cache.working_set.entries)

    def post(
        self,
        route: str,
        body: object,
        caller: Mapping[str, str] = ONE,
        status: int = 200,
    ) -> dict[str, Any]:
        response = self.http.post(f"{PREFIX}/{route}", json=body, headers=dict(caller))
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def refusal(self, route: str, body: object, **options: Any) -> str:  # noqa: ANN401
        status = options.pop("status", 400)
        error = self.post(route, body, status=status, **options)["error"]
        assert error["code"] == status
        return str(error["message"])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.cache.close()


@pytest.fixture
def shared_server() -> Iterator[Server]:
    server = Server(tenants="shared")
    yield server
    server.cache.close()


# -- the plugin --------------------------------------------------------------------


def test_plugin_meets_vllms_contract() -> None:
    plugin = VectorQEndpoint()
    assert isinstance(plugin, EndpointPlugin)
    assert plugin.name == "vectorq"
    for method in ("attach_router", "init_state"):
        theirs = inspect.signature(getattr(EndpointPlugin, method))
        ours = inspect.signature(getattr(VectorQEndpoint, method))
        assert list(ours.parameters) == list(theirs.parameters)


def test_paths_are_guarded_by_the_api_key() -> None:
    app = FastAPI()
    VectorQEndpoint().attach_router(app)
    paths = [path for path in app.openapi()["paths"] if "vectorq" in path]
    assert sorted(paths) == sorted(f"{PREFIX}/{name}" for name in ROUTES)
    assert all(path.startswith(GUARDED_PREFIX) for path in paths)


def test_the_handlers_are_where_vllm_keeps_them() -> None:
    source = inspect.getsource(init_generate_state)
    for name in (CHAT_HANDLER, COMPLETION_HANDLER):
        assert f"state.{name} =" in source


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("engine", [None, SimpleNamespace()])
def test_a_server_without_the_cache_says_how_to_get_it(
    name: str, engine: object
) -> None:
    http = TestClient(application(engine, None))
    response = http.request(ROUTES[name], f"{PREFIX}/{name}", json=CHAT)
    assert response.status_code == 409
    error = response.json()["error"]
    assert error["type"] == "ConflictError"
    assert "--additional-config.vectorq.enabled true" in error["message"]


@pytest.mark.parametrize("name", [n for n, method in ROUTES.items() if method != "GET"])
@pytest.mark.parametrize(
    ("content", "media_type", "reason"),
    [
        ("{}", "text/plain", "not application/json"),
        ("{", "application/json", "not JSON"),
        ("[]", "application/json", "not a JSON object"),
        ("[" * 100_000, "application/json", "not JSON"),
    ],
)
def test_bodies_are_checked(
    server: Server, name: str, content: str, media_type: str, reason: str
) -> None:
    response = server.http.post(
        f"{PREFIX}/{name}", content=content, headers={"Content-Type": media_type}
    )
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]


def test_halves_of_characters_are_no_fault_of_the_server(server: Server) -> None:
    response = server.http.post(
        f"{PREFIX}/invalidate",
        content=r'{"\ud800": 1}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "\ud800"


# -- stats -------------------------------------------------------------------------


def test_stats_are_those_of_the_cache(server: Server) -> None:
    server.store("a", ONE)
    response = server.http.get(f"{PREFIX}/stats", headers=ONE)
    assert response.status_code == 200
    stats = response.json()
    assert stats["entries"] == 1
    assert stats["config"]["policy"] == "exact"


# -- invalidate --------------------------------------------------------------------


def test_facts_choose_what_is_dropped(server: Server) -> None:
    server.store("a", ONE, lora="x")
    server.store("b", ONE, lora="x", protocol="chat")
    server.store("c", ONE)
    assert server.post("invalidate", {"lora": "x", "protocol": "chat"}) == {
        "removed": 1
    }
    assert server.post("invalidate", {"lora": "x"}) == {"removed": 1}
    assert server.post("invalidate", {"lora": "x"}) == {"removed": 0}
    assert server.post("invalidate", {"lora": ""}) == {"removed": 1}
    assert server.left() == 0


def test_a_prefix_chooses_by_text(server: Server) -> None:
    for text in ("price of tea", "price of milk", "colour of tea"):
        server.store(text, ONE)
    server.store("price of tea", ONE, lora="x")
    assert server.post("invalidate", {"prefix": "price", "lora": "x"})["removed"] == 1
    assert server.post("invalidate", {"prefix": "price of"})["removed"] == 2
    assert server.left() == 1


@pytest.mark.parametrize("body", [{"everything": True}, {"model": "demo"}])
@pytest.mark.parametrize("caller", [ONE, TWO, {}])
def test_callers_drop_their_own_entries_only(
    server: Server, body: dict[str, object], caller: dict[str, str]
) -> None:
    for who in (ONE, TWO, {}):
        server.store("question", who)
    assert server.post("invalidate", body, caller) == {"removed": 1}
    assert server.post("invalidate", body, caller) == {"removed": 0}
    assert server.left() == 2


def test_whoever_shares_answers_may_drop_them(shared_server: Server) -> None:
    for text in ("a", "b"):
        shared_server.store(text, ONE)
    assert shared_server.post("invalidate", {"everything": True}, TWO) == {"removed": 2}


def test_a_proxy_has_to_name_the_tenant() -> None:
    server = Server(tenants="shared", tenant_header="X-Tenant")
    for name in ("a", "b"):
        server.store("question", {**ONE, "X-Tenant": name})
    everything = {"everything": True}
    assert "X-Tenant" in server.refusal("invalidate", everything)
    assert server.left() == 2
    caller = {**TWO, "X-Tenant": "a"}
    assert server.post("invalidate", everything, caller) == {"removed": 1}
    server.cache.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "the body is empty: say which entries to drop"),
        ({"everything": False}, "everything: give it alone, and true"),
        ({"everything": True, "model": "demo"}, "everything: give it alone"),
        ({"tenant": "somebody"}, "tenant: unknown"),
        ({"model": None}, "model: None is not a string"),
        ({"prefix": ""}, "prefix: it is empty"),
        ({"prefix": 5}, "prefix: 5 is not a string"),
    ],
)
def test_what_is_dropped_must_be_said(
    server: Server, body: dict[str, object], reason: str
) -> None:
    server.store("a", ONE)
    assert reason in server.refusal("invalidate", body)
    assert server.left() == 1


# -- feedback ----------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [False, True])
def test_a_wrong_answer_is_dropped_by_who_asked_for_it(
    server: Server, as_text: bool
) -> None:
    entry_id = server.store("a", ONE)
    given = str(entry_id) if as_text else entry_id
    praise = server.post("feedback", {"entry_id": given, "right": True})
    assert praise == {"entry_id": str(entry_id), "learned": False}
    assert server.left() == 1
    blame = server.post("feedback", {"entry_id": given, "right": False})
    assert blame["learned"] is True
    assert server.left() == 0


def test_unknown_entries_and_those_of_others_are_not_told_apart(
    server: Server,
) -> None:
    entry_id = server.store("a", ONE)
    wrong = {"entry_id": entry_id, "right": False}
    others = server.refusal("feedback", wrong, caller=TWO, status=404)
    assert server.left() == 1
    server.post("feedback", wrong)
    assert server.refusal("feedback", wrong, caller=TWO, status=404) == others
    assert server.refusal("feedback", wrong, status=404) == others


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"entry_id": 1}, "right: None is neither"),
        ({"entry_id": 1, "right": 1}, "right: 1 is neither"),
        ({"right": True}, "entry_id: None is no number"),
        ({"entry_id": True, "right": True}, "entry_id: True is no number"),
        ({"entry_id": "-1", "right": True}, "entry_id: '-1' is no number"),
        ({"entry_id": "1" * 5_000, "right": True}, "is no number"),
        ({"entry_id": 1.0, "right": True}, "entry_id: 1.0 is no number"),
    ],
)
def test_feedback_is_checked(
    server: Server, body: dict[str, object], reason: str
) -> None:
    assert reason in server.refusal("feedback", body)


# -- explain -----------------------------------------------------------------------


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
