# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real server with hash attention, started by flags as a user does."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.program_sched.server import SERVED_NAME, VllmServer
from vllm_hashattn.request_density import FIELD

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(
    model_path: str,
    hash_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[VllmServer]:
    options = {
        "weights": str(hash_file),
        "density": "0.2",
        "min_tokens": "0",
        "sink_tokens": "4",
        "recent_tokens": "16",
        "dense_below": "32",
    }
    flags: list[str] = []
    for name, value in options.items():
        flags += [f"--additional-config.hashattn.{name}", value]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with VllmServer(model_path, log, flags) as running:
        yield running


def complete(server: VllmServer, **extra: object) -> httpx.Response:
    body = {
        "model": SERVED_NAME,
        "prompt": "time light river stone " * 40,
        "max_tokens": 8,
        "temperature": 0.0,
        **extra,
    }
    return httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=120)


def counted(server: VllmServer, read: str) -> float:
    text = httpx.get(f"{server.base_url}/metrics", timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:hashattn_decode_tokens_total"
        and sample.labels["read"] == read
    )


def wait_for(server: VllmServer, read: str, tokens: float) -> None:
    """The worker hands its counts over once a second."""
    deadline_s = time.monotonic() + 20
    while counted(server, read) < tokens:
        assert time.monotonic() < deadline_s, "never on /metrics"
        time.sleep(0.5)


def test_metrics_say_that_it_runs(server: VllmServer) -> None:
    assert complete(server).status_code == 200
    wait_for(server, "sparse", 7.0)
    assert counted(server, "dense") == 0.0


def test_a_request_may_read_everything(server: VllmServer) -> None:
    assert complete(server, vllm_xargs={FIELD: 1.0}).status_code == 200
    wait_for(server, "dense", 7.0)


def test_what_is_no_density_is_a_bad_request(server: VllmServer) -> None:
    refused = complete(server, vllm_xargs={FIELD: 2.0})
    assert refused.status_code == 400
    assert "a number above 0 and at most 1" in refused.text


def test_the_log_says_what_runs(server: VllmServer) -> None:
    log = server.log_path.read_text("utf-8")
    assert "hashattn: decode attention reads 20 % of contexts" in log
