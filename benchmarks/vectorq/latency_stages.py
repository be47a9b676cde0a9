# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What every stage of a look-up costs in a process, and what an entry weighs."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vectorq import latency_comparators
from benchmarks.vectorq.latency_population import (
    DIMENSIONS,
    Population,
)
from benchmarks.vectorq.latency_store import (
    config_for,
    look_vectors_up,
    open_service,
    records,
)
from benchmarks.vectorq.measuring import Stopwatch, milliseconds, rss_bytes
from vllm_vectorq import guards
from vllm_vectorq.lexical_evidence import lexical_evidence
from vllm_vectorq.request import Partition
from vllm_vectorq.service import Service

PARTITION = Partition(b"benchmark partition".ljust(32, b"."), {"model": "benchmark"})
_SEED = 11
_NO_BUDGET = 1e-12
_PROGRESS_REQUESTS = 500


def measure(
    entries: int, requests: int, training: int, embedding_model: str, folder: Path
) -> dict[str, Any]:
    """One row of the report.

    Args:
        entries: Entries of the one partition.
        requests: Requests to time; none of them is an entry.
        training: Labelled requests that the policy learns from first.
        embedding_model: Directory of the embedding model.
        folder: Where the store goes; it is emptied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    population = Population(entries)
    config = config_for(folder / "cache.db", embedding_model)
    service, _ = open_service(config)
    try:
        row: dict[str, Any] = {"entries": entries, "policy": config.policy}
        row |= _load(service, population, entries)
        look_vectors_up(service, population)
        _train(service, population, entries, training)
        row["stages"] = _stages(service, population, entries + training, requests)
        first = entries + training + requests
        row["lookup"] = _lookups(service, population, entries, first, requests)
    finally:
        service.close()
    row |= _restart(config, population)
    row["comparators"] = _comparators(population, entries, requests, folder)
    shutil.rmtree(folder)
    return row


def _load(service: Service, population: Population, entries: int) -> dict[str, Any]:
    """Fill the store, read it as a start does, and make the graph."""
    _say(f"{entries:,} entries: writing them")
    write = Stopwatch()
    with write:
        service.store.write(records(population, PARTITION, entries))
    guards.signature("Loads the tables of the guards")
    before = rss_bytes()
    load = Stopwatch()
    _say("reading them")
    with load:
        service.working_set.apply(service.store.load())
    loaded = rss_bytes()
    _say("making the graph, if they are many")
    graph = Stopwatch()
    with graph:
        service.tuning.once()
    accounted = service.working_set.entries.size_bytes
    return {
        "write_s": write.samples_s[0],
        "load_s": load.samples_s[0],
        "graph_s": graph.samples_s[0],
        "store_bytes_per_entry": service.store.size_bytes() / entries,
        "memory_bytes_per_entry": {
            "rss": (loaded - before) / entries,
            "rss_with_graph": (rss_bytes() - before) / entries,
            "accounted": accounted / entries,
        },
    }


def _train(service: Service, population: Population, first: int, labels: int) -> None:
    """Let the policy learn what the true intents say about its candidates."""
    cache, state = service.cache, service.working_set.partition(PARTITION.digest)
    assert state is not None
    random = np.random.default_rng(_SEED)
    for number in range(first, first + labels):
        request = population.request(number, PARTITION)
        evidence, entries = cache.evidence(state, request, population.vector(number))
        decision = state.policy.decide(evidence, 0.02, float(random.random()))
        if decision.candidate is not None:
            entry = entries[decision.candidate]
            right = entry.stored.answer.text == population.answer(number).text
            state.policy.observe(
                entry.entry_id, decision.features, right, decision.propensity
            )
        state.policy.tune()
        if (number - first) % _PROGRESS_REQUESTS == 0:
            _say(f"training: {number - first:,} of {labels:,} labels")


def _stages(
    service: Service, population: Population, first: int, requests: int
) -> dict[str, Any]:
    """Time each stage by itself."""
    _say("timing the stages")
    cache, state = service.cache, service.working_set.partition(PARTITION.digest)
    assert state is not None and state.index is not None
    names = ("exact", "search", "signature", "guards", "decide")
    watches = {name: Stopwatch() for name in names}
    served = 0
    for number in range(first, first + requests):
        known = population.request(number % first, PARTITION)
        request = population.request(number, PARTITION)
        vector = population.vector(number)
        with watches["exact"]:
            cache.lookup_exact(known)
        with watches["search"]:
            near = state.index.search(vector, cache.config.neighbours)
        entries = [cache.working_set.entries.get(i) for i in near.entry_ids.tolist()]
        with watches["signature"]:
            signature = guards.signature(request.text or "")
        with watches["guards"]:
            lexical_evidence(signature, [e.signature for e in entries if e])
        evidence, _ = cache.evidence(state, request, vector)
        with watches["decide"]:
            decision = state.policy.decide(evidence, cache.config.delta, 0.5)
        served += decision.serve
    result: dict[str, Any] = {n: milliseconds(w.samples_s) for n, w in watches.items()}
    result["served_share"] = served / requests
    return result


def _lookups(
    service: Service,
    population: Population,
    entries: int,
    first: int,
    requests: int,
) -> dict[str, Any]:
    """Time the whole look-up as the server makes it, by what came of it."""
    _say("timing whole look-ups")
    cache = service.cache
    times: dict[str, list[float]] = {"exact": [], "semantic": [], "miss": []}

    async def ask(number: int, known: int) -> None:
        asked = population.request(number, PARTITION)
        # Nothing is served within a budget of next to nothing.
        strict = replace(asked, delta=_NO_BUDGET)
        for request in (population.request(known, PARTITION), asked, strict):
            started = time.perf_counter()
            hit, ticket = await cache.lookup(request)
            seconds = time.perf_counter() - started
            times["miss" if hit is None else hit.stage].append(seconds)
            if ticket is not None:
                cache.abandon(ticket)

    async def ask_all() -> None:
        for number in range(first, first + requests):
            await ask(number, number % entries)

    asyncio.run(ask_all())
    return {name: milliseconds(each) for name, each in times.items() if each}


def _restart(config: Any, population: Population) -> dict[str, Any]:  # noqa: ANN401
    """Start on the store as it is now, graph included."""
    _say("starting again")
    service, start_s = open_service(config)
    try:
        hit = service.cache.lookup_exact(population.request(0, PARTITION))
        if hit is None:
            raise RuntimeError("an entry is gone after a restart")
        return {
            "start_s": start_s,
            "start_without_entries_s": _empty_start_s(config.embedding_model),
        }
    finally:
        service.close()


def _empty_start_s(embedding_model: str) -> float:
    """What a start takes that has nothing to load, the embedding model included."""
    config = config_for(Path("unused"), embedding_model, store="memory")
    service, start_s = open_service(config)
    service.close()
    return start_s


def _comparators(
    population: Population, entries: int, requests: int, folder: Path
) -> dict[str, Any]:
    _say("timing the comparators")
    vectors = np.empty((entries, DIMENSIONS), dtype=np.float32)
    for number in range(entries):
        vectors[number] = population.vector(number)
    queries = np.stack([population.vector(entries + i) for i in range(requests)])
    answers = [population.answer(number).text for number in range(entries)]
    database = folder / "comparator.db"
    return {
        "row_per_hit": latency_comparators.row_per_hit(
            vectors, answers, queries, database
        ),
        "fit_per_request": latency_comparators.fit_per_request(vectors, queries, _SEED),
    }


def _say(what: str) -> None:
    print(f"  stages: {what}", file=sys.stderr, flush=True)
