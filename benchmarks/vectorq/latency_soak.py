# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Whether memory stays flat: many requests through one cache that is always full.

Nothing is left out but the model and the embedding: look-up, policy, labelling
by the equality judge, storing and eviction all run.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vectorq.latency_population import Population
from benchmarks.vectorq.latency_store import (
    config_for,
    look_vectors_up,
    open_service,
)
from benchmarks.vectorq.measuring import rss_bytes
from vllm_vectorq.request import Partition

_PARTITIONS = 4
_SAMPLES = 200
_FLUSH_EVERY = 256
_FLUSH_S = 60.0
# Questions are drawn so that some come again and most do not.
_ZIPF = 1.1


def measure(
    requests: int, max_entries: int, embedding_model: str, folder: Path
) -> dict[str, Any]:
    """Send the requests and watch the memory.

    Args:
        requests: How many.
        max_entries: Entries that the cache may keep; more are evicted.
        embedding_model: Directory of the embedding model.
        folder: Where the store goes; it is emptied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = config_for(
        folder / "cache.db",
        embedding_model,
        judges=("equality",),
        max_entries=max_entries,
    )
    population = Population(requests)
    service, _ = open_service(config)
    try:
        look_vectors_up(service, population)
        random = np.random.default_rng(5)
        results: Counter[str] = Counter()
        samples: list[list[float]] = []
        every = max(1, requests // _SAMPLES)
        started = time.perf_counter()
        for i in range(requests):
            number = int(random.zipf(_ZIPF)) % requests
            partition = _partition(i % _PARTITIONS)
            request = population.request(number, partition)
            hit, ticket = service.cache.lookup_sync(request)
            results["miss" if hit is None else hit.stage] += 1
            if ticket is not None:
                service.cache.complete(ticket, population.answer(number))
            if i % _FLUSH_EVERY == 0:
                service.labeller.flush(_FLUSH_S)
            if i % every == 0:
                entries = len(service.working_set.entries)
                samples.append([i, rss_bytes() / 2**20, entries])
                if len(samples) % 20 == 0:
                    _say(i, requests, samples[-1], time.perf_counter() - started)
        faults = service.cache.stats()["faults"]
    finally:
        service.close()
    shutil.rmtree(folder)
    return {
        "requests": requests,
        "max_entries": max_entries,
        "seconds": time.perf_counter() - started,
        "results": dict(results),
        "faults": faults,
        "columns": ["requests", "rss_mib", "entries"],
        "samples": [[round(value, 2) for value in sample] for sample in samples],
        "slope_mib_per_100k_requests": _slope(samples),
    }


def _partition(number: int) -> Partition:
    digest = f"soak partition {number}".encode().ljust(32, b".")
    return Partition(digest, {"model": "benchmark", "tenant": str(number)})


def _slope(samples: list[list[float]]) -> float:
    """Growth of the memory over the second half, from a straight line."""
    later = np.array(samples[len(samples) // 2 :])
    return float(np.polyfit(later[:, 0], later[:, 1], 1)[0] * 1e5)


def _say(done: int, requests: int, sample: list[float], elapsed_s: float) -> None:
    print(
        f"  soak: {done:,} of {requests:,} requests, {sample[2]:,.0f} entries, "
        f"{sample[1]:.0f} MiB, {elapsed_s:.0f} s",
        file=sys.stderr,
        flush=True,
    )
