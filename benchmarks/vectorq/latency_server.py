# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How long clients of a real server wait for hits, and how much longer for misses.

The same requests go to a server with the plugin and to one without, one after the
other and several times over. The first server only finds out what its partition is
called; then the store is filled with many entries of it and the graph made, as after
days of traffic. The policy is a fixed threshold, because a new server would first have
to learn; what the learning policy's decision costs is measured in the process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.program_sched.server import VllmServer
from benchmarks.vectorq.latency_client import CHAT, TOKENIZE, Phase, run
from benchmarks.vectorq.latency_population import MAX_INTENTS, Population
from benchmarks.vectorq.latency_store import config_for, open_service, records
from scripts.model_cache import resolve_model
from vllm_vectorq.record import PartitionRecord
from vllm_vectorq.request import Partition
from vllm_vectorq.store import open_store

_THRESHOLD = 0.97
_DEADLINE_S = 30.0
_TTL_S = 86_400.0


def measure(
    entries: int,
    requests: int,
    repeats: int,
    clients: list[int],
    embedding_model: str,
    folder: Path,
) -> dict[str, Any]:
    """All cells, and what follows from them.

    Args:
        entries: Entries that the cache starts with.
        requests: Requests of each kind per cell.
        repeats: How often both servers are started.
        clients: Numbers of concurrent clients.
        embedding_model: Directory of the embedding model.
        folder: Where stores and logs go; it is emptied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = folder / "cache.db"
    known = [_question(number) for number in range(requests)]
    with _serving(folder / "first.log", store, embedding_model) as (url, _):
        run(url, Phase("first", CHAT, known, "miss"), 4)
    filled = _fill(store, entries, embedding_model)
    cells: list[dict[str, Any]] = []
    starts_s: list[float] = []
    for repeat in range(repeats):
        for name, path in (("vectorq", store), ("plain", None)):
            log = folder / f"{name}-{repeat}.log"
            with _serving(log, path, embedding_model) as (url, start_s):
                if path is not None:
                    starts_s.append(start_s)
                for number in clients:
                    asked = _phases(path is not None, known, repeat, clients, number)
                    for phase in asked:
                        cell = run(url, phase, number)
                        cells.append({"server": name, "repeat": repeat, **cell})
                        _say(_line(cells[-1]))
    return {
        "entries": filled,
        "threshold": _THRESHOLD,
        "starts_s": starts_s,
        "cells": cells,
        "summary": _summary(cells, clients),
    }


def _question(number: int) -> str:
    """A question; those of other numbers ask for something else."""
    text = Population(10 * MAX_INTENTS).text(number % MAX_INTENTS)
    place = number // MAX_INTENTS
    return f"{text}?" if place == 0 else f"{text} in country number {place}?"


def _phases(
    cached: bool, known: list[str], repeat: int, clients: list[int], number: int
) -> Iterator[Phase]:
    """What is asked with one number of clients; misses are new every time."""
    n = len(known)
    first = n * (1 + repeat * len(clients) + clients.index(number))
    new = [_question(first + i) for i in range(n)]
    yield Phase("render only", TOKENIZE, known, "")
    yield Phase("miss", CHAT, new, "miss" if cached else "")
    if cached:
        yield Phase("exact hit", CHAT, known, "exact")
        # Blanks make them new to the memory of recent embeddings.
        blanks = 1 + clients.index(number)
        rephrased = [
            text.rstrip("?").lower().replace(" ", "  ", blanks) for text in known
        ]
        # Not kept: what is a miss by chance would be an exact hit in the next cell.
        yield Phase("semantic hit", CHAT, rephrased, "semantic", keep=False)


@contextmanager
def _serving(
    log: Path, store: Path | None, embedding_model: str
) -> Iterator[tuple[str, float]]:
    """A server with the plugin on a store, or one without; and its start's seconds."""
    flags = ["--max-num-seqs=64"]
    plugins = ""
    if store is not None:
        plugins = "vectorq"
        options = {
            "enabled": True,
            "policy": "static",
            "static_threshold": _THRESHOLD,
            "embedding_model": embedding_model,
            "embedding_deadline_s": _DEADLINE_S,
            "store": f"sqlite://{store.absolute()}",
            "max_entries": 1_000_000,
            "max_bytes": 16 << 30,
        }
        flags += ["--additional-config", json.dumps({"vectorq": options})]
    before = os.environ.get("VLLM_PLUGINS")
    os.environ["VLLM_PLUGINS"] = plugins
    try:
        started = time.perf_counter()
        with VllmServer(resolve_model(), log, flags) as server:
            yield server.base_url, time.perf_counter() - started
    finally:
        if before is None:
            del os.environ["VLLM_PLUGINS"]
        else:
            os.environ["VLLM_PLUGINS"] = before


def _fill(path: Path, entries: int, embedding_model: str) -> int:
    """Add entries to the partition that a server made, and make its graph."""
    _say(f"filling the store with {entries:,} entries")
    url = f"sqlite://{path.absolute()}"
    store = open_store(url)
    [partition] = [r for r in store.load() if isinstance(r, PartitionRecord)]
    added = Partition(partition.digest, partition.facts)
    store.write(records(Population(entries), added, entries, _TTL_S))
    store.close()
    service, start_s = open_service(config_for(path, embedding_model))
    try:
        _say(f"read in {start_s:.1f} s; making the graph, if they are many")
        service.tuning.once()
        return len(service.working_set.entries)
    finally:
        service.close()


def _summary(cells: list[dict[str, Any]], clients: list[int]) -> list[dict[str, Any]]:
    """Medians over the repetitions, and what the targets are about."""

    def middle(server: str, kind: str, number: int, value: str) -> float:
        wanted = (server, kind, number)
        found: list[float] = [
            cell.get(value, 0.0)
            for cell in cells
            if (cell["server"], cell["kind"], cell["clients"]) == wanted
        ]
        return median(found)

    rows = []
    for number in clients:
        rendering_ms = middle("plain", "render only", number, "p50_ms")
        row: dict[str, Any] = {"clients": number, "render_only_p50_ms": rendering_ms}
        for kind in ("exact hit", "semantic hit"):
            name = kind.replace(" ", "_")
            embedding_ms = middle("vectorq", kind, number, "embedding_mean_ms")
            for share in ("p50", "p99"):
                waited_ms = middle("vectorq", kind, number, f"{share}_ms")
                row[f"{name}_{share}_ms"] = waited_ms
                row[f"{name}_{share}_beyond_embedding_ms"] = waited_ms - embedding_ms
        embedding_ms = middle("vectorq", "miss", number, "embedding_mean_ms")
        for share in ("p50", "p99"):
            # Holds all noise of the model's part, which is far larger.
            row[f"added_to_miss_{share}_beyond_embedding_ms"] = (
                middle("vectorq", "miss", number, f"{share}_ms")
                - middle("plain", "miss", number, f"{share}_ms")
                - embedding_ms
            )
        row["miss_search_and_decide_mean_ms"] = sum(
            middle("vectorq", "miss", number, f"{part}_mean_ms")
            for part in ("search", "decide")
        )
        rows.append({k: round(v, 3) for k, v in row.items()})
    return rows


def _line(cell: dict[str, Any]) -> str:
    return (
        f"{cell['server']:8} {cell['clients']:3} clients {cell['kind']:12} "
        f"p50 {cell['p50_ms']:8.1f} ms, p99 {cell['p99_ms']:8.1f} ms, "
        f"{cell['n']} of {sum(cell['results'].values())}"
    )


def _say(what: str) -> None:
    print(f"  server: {what}", file=sys.stderr, flush=True)
