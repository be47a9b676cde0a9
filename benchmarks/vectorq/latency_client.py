# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Many clients of one server, and what the server itself says about their waits."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.program_sched.server import SERVED_NAME
from benchmarks.vectorq.measuring import milliseconds

CHAT = "/v1/chat/completions"
# Renders and tokenises a chat and does nothing else: what no cache can save.
TOKENIZE = "/tokenize"
_TIMEOUT_S = 300.0
_HISTOGRAMS = ("embedding", "search", "decide")


@dataclass(frozen=True)
class Phase:
    """Requests of one kind.

    Attributes:
        name: Kind.
        path: Where they go.
        questions: What they ask.
        expected: What the cache should make of them; others are left out.
        keep: Whether the cache may keep the answers.
    """

    name: str
    path: str
    questions: Sequence[str]
    expected: str
    keep: bool = True


def run(base_url: str, phase: Phase, clients: int) -> dict[str, Any]:
    """Ask everything with so many clients at a time.

    Returns:
        Times of the requests that went as expected, how many went how, and the mean
        times that the plugin's own histograms saw meanwhile.
    """
    before = _histograms(base_url)
    seconds: list[float] = []
    results: Counter[str] = Counter()
    asyncio.run(_ask_all(base_url, phase, clients, seconds, results))
    after = _histograms(base_url)
    if not seconds:
        raise RuntimeError(
            f"no {phase.name} request went as expected ({phase.expected}): "
            f"{dict(results)}"
        )
    plugin = {}
    for name in _HISTOGRAMS:
        count = after[name][1] - before[name][1]
        if count:
            mean_s = (after[name][0] - before[name][0]) / count
            plugin[f"{name}_mean_ms"] = round(1e3 * mean_s, 4)
    return {
        "kind": phase.name,
        "clients": clients,
        "results": dict(results),
        **milliseconds(seconds),
        **plugin,
    }


async def _ask_all(
    base_url: str,
    phase: Phase,
    clients: int,
    seconds: list[float],
    results: Counter[str],
) -> None:
    queue = list(phase.questions)
    connector = aiohttp.TCPConnector(limit=clients)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(
        base_url, connector=connector, timeout=timeout
    ) as session:

        async def client() -> None:
            while queue:
                body = body_of(queue.pop(0), phase.keep)
                started = time.perf_counter()
                async with session.post(phase.path, json=body) as response:
                    await response.read()
                    response.raise_for_status()
                elapsed_s = time.perf_counter() - started
                headers = response.headers
                result = headers.get("x-vectorq-stage", headers.get("x-vectorq", ""))
                results[result] += 1
                if result == phase.expected:
                    seconds.append(elapsed_s)

        await asyncio.gather(*(client() for _ in range(clients)))


def body_of(question: str, keep: bool) -> dict[str, Any]:
    """A request whose answer is one word, so that the model has little to do."""
    body: dict[str, Any] = {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "max_tokens": 8,
        "stop": [" "],
    }
    if not keep:
        body["vllm_xargs"] = {"vectorq_no_store": 1}
    return body


def _histograms(base_url: str) -> dict[str, tuple[float, float]]:
    """Sum in seconds and count of each histogram; zeros without the plugin."""
    found = {name: [0.0, 0.0] for name in _HISTOGRAMS}
    text = httpx.get(f"{base_url}/metrics", timeout=60).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for name, values in found.items():
                stem = f"vllm:vectorq_{name}_seconds"
                if sample.name == f"{stem}_sum":
                    values[0] += sample.value
                elif sample.name == f"{stem}_count":
                    values[1] += sample.value
    return {name: (values[0], values[1]) for name, values in found.items()}
