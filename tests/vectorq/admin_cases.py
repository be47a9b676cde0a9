# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A server of the admin routes in front of a real cache, for their tests."""

import asyncio
import hashlib
import logging
from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import State
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from vllm_vectorq.admin_api import PREFIX, VectorQEndpoint
from vllm_vectorq.cache import SemanticCache
from vllm_vectorq.compat import ModelFacts
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.engine_adapter import ATTRIBUTE, EngineAdapter
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
