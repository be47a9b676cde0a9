# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The admin routes as a plugin of vLLM: where they are and what they take."""

import inspect
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.generate.api_router import init_generate_state
from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from tests.vectorq.admin_cases import CHAT, ONE, ROUTES, Server, application
from vllm_vectorq.admin_api import PREFIX, VectorQEndpoint
from vllm_vectorq.admin_rehearsal import CHAT_HANDLER, COMPLETION_HANDLER


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


def test_stats_are_those_of_the_cache(server: Server) -> None:
    server.store("a", ONE)
    response = server.http.get(f"{PREFIX}/stats", headers=ONE)
    assert response.status_code == 200
    stats = response.json()
    assert stats["entries"] == 1
    assert stats["config"]["policy"] == "exact"
