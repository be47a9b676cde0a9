# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
import asyncio
import inspect
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from starlette.datastructures import State

from vllm_program_sched.programs_api import (
    MAX_LIMIT,
    SORT_FIELDS,
    ProgramsEndpoint,
    merge_snapshots,
)

OURS = "vllm_program_sched.ProgramScheduler"
TENANT = "0123456789abcdef"


class ProgramServer(Protocol):
    """A running server, see the fixture ``program_server``."""

    base_url: str
    api_key: str
    client: httpx.Client


def request(method: str, url: str, scheduler: str | None = OURS) -> httpx.Response:
    """Ask a server that has the routes but, like vLLM's renderer, no engine."""

    async def send() -> httpx.Response:
        app = FastAPI()
        plugin = ProgramsEndpoint()
        plugin.attach_router(app)
        args = Namespace(scheduler_cls=scheduler, middleware=[])
        await plugin.init_state(None, State(), args)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            return await http.request(method, url)

    return asyncio.run(send())


def message_of(response: httpx.Response) -> str:
    error: Mapping[str, Any] = response.json()["error"]
    assert error["code"] == response.status_code
    return str(error["message"])


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/programs"), ("POST", "/v1/programs/p/end")]
)
def test_other_scheduler_is_a_conflict_that_says_what_to_do(
    method: str, path: str
) -> None:
    for scheduler in (None, "somebody.Scheduler"):
        response = request(method, path, scheduler)
        assert response.status_code == 409
        assert f"--scheduler-cls {OURS}" in message_of(response)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/programs"), ("POST", "/v1/programs/p/end")]
)
def test_server_without_engine_says_so(method: str, path: str) -> None:
    response = request(method, path)
    assert response.status_code == 503
    assert "no engine" in message_of(response)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sort=name", "use wait, service, age, calls"),
        ("limit=0", "out of range"),
        (f"limit={MAX_LIMIT + 1}", "out of range"),
    ],
)
def test_query_is_checked(query: str, reason: str) -> None:
    response = request("GET", f"/v1/programs?{query}")
    assert response.status_code == 400
    assert reason in message_of(response)


@pytest.mark.parametrize("name", ["x" * 257, " ", f"{TENANT}/victim", "a\tb"])
def test_ids_are_checked(name: str) -> None:
    response = request("POST", f"/v1/programs/{quote(name, safe='')}/end")
    assert response.status_code == 400
    assert message_of(response).startswith("program_id: ")


def test_ids_may_hold_slashes() -> None:
    assert request("POST", "/v1/programs/team%2Fjob/end").status_code == 503


def entry(name: str, wait_s: float, service: float) -> dict[str, Any]:
    return {"program_id": name, "wait_s": wait_s, "service": service}


def test_tables_of_engines_are_merged_and_cut() -> None:
    snapshots = [
        {
            "programs": [entry("a", 3.0, 1.0), entry("b", 1.0, 9.0)],
            "live_programs": 2,
            "config": {"policy": "plas"},
        },
        {"programs": [entry("c", 2.0, 5.0)], "live_programs": 1, "config": {}},
    ]
    merged = merge_snapshots(snapshots, 2, "wait", None)
    assert [e["program_id"] for e in merged["data"]] == ["a", "c"]
    assert [e["engine"] for e in merged["data"]] == [0, 1]
    assert merged["engines"][0] == {
        "engine": 0,
        "live_programs": 2,
        "config": {"policy": "plas"},
    }
    by_service = merge_snapshots(snapshots, 3, "service", None)["data"]
    assert [e["program_id"] for e in by_service] == ["b", "c", "a"]


def test_callers_see_the_ids_they_sent() -> None:
    snapshot = {"programs": [entry(f"{TENANT}/mine", 1.0, 1.0)]}
    merged = merge_snapshots([snapshot], 5, "wait", TENANT)
    assert [e["program_id"] for e in merged["data"]] == ["mine"]


def test_plugin_meets_vllms_contract() -> None:
    pytest.importorskip("vllm")
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    plugin = ProgramsEndpoint()
    assert isinstance(plugin, EndpointPlugin)
    assert plugin.name == "program_sched"
    for method in ("attach_router", "init_state"):
        theirs = inspect.signature(getattr(EndpointPlugin, method))
        ours = inspect.signature(getattr(ProgramsEndpoint, method))
        assert list(ours.parameters) == list(theirs.parameters)


def test_route_from_api_server_to_scheduler_exists_in_vllm() -> None:
    """The engine core calls whatever attribute a utility call names."""
    pytest.importorskip("vllm")
    from vllm.v1.engine.core import EngineCore, EngineCoreProc
    from vllm.v1.engine.core_client import AsyncMPClient

    call = inspect.signature(AsyncMPClient.call_utility_all_async)
    assert list(call.parameters) == ["self", "method", "args"]
    assert "self.scheduler" in inspect.getsource(EngineCore.__init__)

    class Answering:
        def __call__(
            self, command: str, argument: dict[str, Any] | None = None
        ) -> None:
            """Stand where the scheduler stands; only the signature matters."""

    arguments = ("snapshot", {"limit": 1, "tenant": None})
    assert EngineCoreProc._convert_msgspec_args(Answering(), arguments) == arguments


def test_paths_are_guarded_by_the_api_key() -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.serve.middleware.authenticate import GUARDED_PREFIX

    app = FastAPI()
    ProgramsEndpoint().attach_router(app)
    paths = [path for path in app.openapi()["paths"] if "programs" in path]
    assert len(paths) == 2
    assert all(path.startswith(GUARDED_PREFIX) for path in paths)


def complete(server: ProgramServer, program_id: str, **more: object) -> None:
    model = server.client.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "prompt": "Once", "max_tokens": 2, **more}
    headers = {"X-Program-ID": program_id}
    answer = server.client.post("/v1/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.vllm
def test_program_is_listed_until_it_is_ended(program_server: ProgramServer) -> None:
    name = "team/api e2e"

    def listed() -> list[str]:
        answer = program_server.client.get("/v1/programs?limit=1000")
        assert answer.status_code == 200, answer.text
        return [found["program_id"] for found in answer.json()["data"]]

    complete(program_server, name)
    assert name in listed()
    url = f"/v1/programs/{quote(name, safe='')}/end"
    assert program_server.client.post(url).json() == {"program_id": name, "ended": True}
    assert name not in listed()
    assert program_server.client.post(url).json()["ended"] is False


@pytest.mark.vllm
@pytest.mark.parametrize("sort", SORT_FIELDS)
def test_table_is_sorted_and_cut(program_server: ProgramServer, sort: str) -> None:
    for index in range(3):
        complete(program_server, f"sorted-{index}", max_tokens=2 + 2 * index)
    answer = program_server.client.get(f"/v1/programs?limit=2&sort={sort}").json()
    values = [found[SORT_FIELDS[sort]] for found in answer["data"]]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    assert answer["engines"][0]["config"]["policy"]


@pytest.mark.vllm
def test_routes_need_the_key(program_server: ProgramServer) -> None:
    base = program_server.base_url
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.get(f"{base}/v1/programs", headers=headers).status_code == 401
        ended = httpx.post(f"{base}/v1/programs/p/end", headers=headers)
        assert ended.status_code == 401


@pytest.mark.vllm
def test_keys_do_not_see_or_end_each_others_programs(
    program_server: ProgramServer,
) -> None:
    name = "private-e2e"
    complete(program_server, name)
    stranger = httpx.Client(
        base_url=program_server.base_url,
        headers={"Authorization": "Bearer other-key"},
        timeout=60,
    )
    with stranger:
        table = stranger.get("/v1/programs?limit=1000")
        assert table.status_code == 200, table.text
        assert name not in {found["program_id"] for found in table.json()["data"]}
        assert stranger.post(f"/v1/programs/{name}/end").json()["ended"] is False
    ended = program_server.client.post(f"/v1/programs/{name}/end").json()["ended"]
    assert ended is True
