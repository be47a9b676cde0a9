# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real server with the cache, and how the end-to-end tests ask it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.program_sched.server import VllmServer
from tests.vectorq.served_replies import ROUTES, SHORT, body_of

API_KEYS = ("one-key", "other-key")


@dataclass(frozen=True)
class VectorqServer:
    """A running `vllm serve` with the cache.

    Attributes:
        client: Sends the API key of one tenant.
        other: Sends that of another.
        server: The process.
    """

    client: httpx.Client
    other: httpx.Client
    server: VllmServer

    def ask(
        self,
        question: str,
        topic: str,
        api: str = "chat",
        *,
        client: httpx.Client | None = None,
        stop: tuple[str, ...] | None = None,
        **changes: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """Ask one question; the answer is short unless told otherwise."""
        body = body_of(
            api, question, topic, SHORT[api] if stop is None else stop, **changes
        )
        # As ASCII, so that every text can be sent.
        return (client or self.client).post(
            ROUTES[api],
            content=json.dumps(body),
            headers={"content-type": "application/json"},
        )

    def result(
        self,
        question: str,
        topic: str,
        api: str = "chat",
        **how: Any,  # noqa: ANN401
    ) -> str:
        """What the cache says that it did: ``miss``, a stage, or a reason."""
        response = self.ask(question, topic, api, **how)
        assert response.status_code == 200, response.text
        headers = response.headers
        for name in ("x-vectorq-stage", "x-vectorq-reason"):
            if name in headers:
                return str(headers[name])
        return str(headers["x-vectorq"])

    def wait_for_rephrasing(self, question: str, topic: str, api: str = "chat") -> None:
        """Wait until what was stored is found by meaning, which takes a moment."""
        deadline_s = time.monotonic() + 60
        probe = {"vectorq_no_store": 1}
        while self.result(question, topic, api, vllm_xargs=probe) != "semantic":
            assert time.monotonic() < deadline_s, "never found by meaning"

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of one series on ``/metrics``."""
        text = self.client.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
            and all(sample.labels.get(k) == v for k, v in labels.items())
        )

    def finished(self) -> float:
        """Requests that the model has finished."""
        return self.metric("vllm:request_success_total")

    def finished_since(self, before: float) -> float:
        """How many more there are, at least one; it is counted a moment later."""
        deadline_s = time.monotonic() + 60
        while (now := self.finished()) <= before:
            assert time.monotonic() < deadline_s, "the model finished nothing"
        return now - before


@contextmanager
def serving(
    model_path: str, embedding_model_path: str, folder: Path
) -> Iterator[VectorqServer]:
    """Start a server that serves a rephrased question from the first time on."""
    options = {
        "enabled": True,
        "policy": "static",
        "static_threshold": 0.9,
        "embedding_model": embedding_model_path,
        # A busy machine must not turn hits into misses.
        "embedding_deadline_s": 30.0,
        "store": f"sqlite://{folder}/cache.db",
    }
    flags = (
        *("--max-model-len=1024", "--api-key", *API_KEYS, "--additional-config"),
        json.dumps({"vectorq": options}),
    )
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        environment.setenv("VLLM_PLUGINS", "vectorq")
        server = VllmServer(model_path, folder / "server.log", flags)
        stack.enter_context(server)
        one, other = (
            stack.enter_context(
                httpx.Client(
                    base_url=server.base_url,
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=120,
                )
            )
            for key in API_KEYS
        )
        yield VectorqServer(one, other, server)
