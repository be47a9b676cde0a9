# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A real server whose experts do not fit, started by flags as a user does."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.program_sched.server import SERVED_NAME, VllmServer
from tests.moe_offload.models import SHAPES, make_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

NAME = "mixtral-deep"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def server(
    model_path: str, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("model")
    model = make_model(NAME, folder, tokenizer=model_path)
    shape = SHAPES[NAME]
    # vLLM computes in bfloat16 unless it is told otherwise.
    two_layers = 2 * shape["experts"] * 3 * 128 * shape["intermediate"] * 4
    options = {
        "enabled": "true",
        "device_memory_gib": str((two_layers + 1) / 2**30),
        "disk": str(disk),
        "micro_batches": "3",
    }
    flags = ["--dtype", "float32"]
    for name, value in options.items():
        flags += [f"--additional-config.moe_offload.{name}", value]
    log = folder / "server.log"
    with VllmServer(str(model), log, flags) as running:
        yield running


def complete(server: VllmServer, prompt: str, tokens: int = 8) -> str:
    body = {
        "model": SERVED_NAME,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    answer = httpx.post(f"{server.base_url}/v1/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def counted(server: VllmServer) -> Counter[str]:
    """Values of our metrics, those of all resources together."""
    text = httpx.get(f"{server.base_url}/metrics", timeout=10).text
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("vllm:moe_offload_"):
                found[sample.name.removeprefix("vllm:moe_offload_")] += sample.value
    return found


def test_answers_are_the_same_for_one_request_and_for_many(
    server: VllmServer,
) -> None:
    prompts = [f"time light river stone {n} " * (1 + n % 5) for n in range(12)]
    alone = [complete(server, prompt) for prompt in prompts]
    assert len(set(alone)) > 6
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda prompt: complete(server, prompt), prompts))
    assert together == alone


def test_clients_that_leave_disturb_nobody(server: VllmServer) -> None:
    prompt = "time light river stone " * 4
    expected = complete(server, prompt, 32)
    left = threading.Event()

    def leave() -> None:
        body = {"model": SERVED_NAME, "prompt": "stone", "stream": True}
        body |= {"max_tokens": 400, "ignore_eos": True}
        url = f"{server.base_url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as stream:
            next(stream.iter_lines())
        left.set()

    leaving = [threading.Thread(target=leave) for _ in range(3)]
    for each in leaving:
        each.start()
    assert complete(server, prompt, 32) == expected
    for each in leaving:
        each.join()
    assert left.is_set()
    assert complete(server, prompt, 32) == expected


def test_metrics_say_that_experts_come_in_pages(server: VllmServer, disk: Path) -> None:
    complete(server, "stone")
    deadline_s = time.monotonic() + 20
    while not (found := counted(server))["steps_total"]:
        assert time.monotonic() < deadline_s, "never on /metrics"
        time.sleep(0.5)
    shape = SHAPES[NAME]
    page_bytes = 3 * 128 * shape["intermediate"] * 4
    whole = shape["layers"] * shape["experts"] * page_bytes
    # Nothing stays here: a step brings everything in.
    assert found["moved_bytes_total"] / found["steps_total"] == pytest.approx(
        whole, rel=0.2
    )
    assert found["late_pages_total"] <= 2 * shape["experts"]
    assert 0 < found["busy_seconds_total"] < 3 * found["step_seconds_total"]
    assert len(list(disk.glob("*.experts"))) == 1


def test_the_log_says_what_runs(server: VllmServer) -> None:
    log = server.log_path.read_text("utf-8")
    assert "GiB of slots; 0 of 4 experts of each layer stay" in log
