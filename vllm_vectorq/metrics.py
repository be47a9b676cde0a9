# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the cache counts, on vLLM's own ``/metrics``.

The cache lives in the API server process, so its metrics join the default registry.
Labels are small closed sets; nothing that a client chooses becomes a label.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from .error_estimate import ErrorEstimate

_SECONDS = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)


class CacheMetrics:
    """Counters, gauges and histograms of one process.

    They are on no registry until :meth:`register`: an engine that starts throws
    everything off the default one whose name is like vLLM's.
    """

    def __init__(self) -> None:
        self._collectors: list[Counter | Gauge | Histogram] = []

        def histogram(name: str, text: str) -> Histogram:
            made = Histogram(
                f"vllm:vectorq_{name}_seconds", text, buckets=_SECONDS, registry=None
            )
            self._collectors.append(made)
            return made

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"vllm:vectorq_{name}", text, labels, registry=None)
            self._collectors.append(made)
            return made

        def gauge(name: str, text: str) -> Gauge:
            # Replicas of one server hold copies of the same entries.
            made = Gauge(
                f"vllm:vectorq_{name}",
                text,
                registry=None,
                multiprocess_mode="mostrecent",
            )
            self._collectors.append(made)
            return made

        self.embedding_seconds = histogram("embedding", "Wait for an embedding.")
        self.search_seconds = histogram("search", "Neighbours and lexical guards.")
        self.decide_seconds = histogram("decide", "Decision of the policy.")
        self.judge_seconds = histogram("judge", "Labelling one answer.")
        self._requests = counter(
            "requests", "Requests by result: hit, miss, bypass.", "result"
        )
        self._hits = counter("hits", "Answers served from the cache.", "stage")
        self._bypass = counter("bypassed", "Requests left alone.", "reason")
        self._explored = counter(
            "explorations", "Misses that had a candidate.", "outcome"
        )
        self._verdicts = counter("verdicts", "Labels by judge.", "judge", "verdict")
        self._no_embedding = counter("no_embedding", "Texts not embedded.", "reason")
        self._evictions = counter("removed", "Entries removed.", "reason")
        self._faults = counter("faults", "Faults that the cache survived.", "place")
        self._saved = counter("saved_seconds", "Model time saved by hits.")
        self._entries = gauge("entries", "Entries.")
        self._bytes = gauge("bytes", "Memory for entries and answers.")
        self._error_per_request = gauge(
            "error_per_request", "Estimated share of requests answered wrongly."
        )
        self._error_per_hit = gauge(
            "error_per_hit", "Estimated share of semantic hits that are wrong."
        )
        self._error_low = gauge("error_per_hit_low", "Lower 95 % confidence bound.")
        self._error_high = gauge("error_per_hit_high", "Upper 95 % confidence bound.")
        self._delta = gauge("delta", "Error budget per request.")

    def register(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Show them on a registry, the one of ``/metrics`` by default."""
        for collector in self._collectors:
            # Another engine of this process may have shown some already.
            with suppress(ValueError):
                registry.register(collector)

    def hit(self, stage: str, saved_s: float = 0.0) -> None:
        """Count a hit."""
        self._requests.labels("hit").inc()
        self._hits.labels(stage).inc()
        self._saved.inc(saved_s)

    def miss(self) -> None:
        """Count a request that was looked up and goes to the model."""
        self._requests.labels("miss").inc()

    def bypass(self, reason: str) -> None:
        """Count a request that the cache does not handle; ``reason`` is closed."""
        self._requests.labels("bypass").inc()
        self._bypass.labels(reason).inc()

    def explored(self, outcome: str) -> None:
        """Count the label of a candidate: right, wrong or unknown."""
        self._explored.labels(outcome).inc()

    def verdict(self, judge: str, verdict: str) -> None:
        """Count a judge's verdict."""
        self._verdicts.labels(judge, verdict).inc()

    def no_embedding(self, reason: str) -> None:
        """Count a text that was not embedded in time."""
        self._no_embedding.labels(reason).inc()

    def removed(self, reason: str, n: int) -> None:
        """Count entries removed: expired, evicted, invalidated or replaced."""
        self._evictions.labels(reason).inc(n)

    def fault(self, place: str) -> None:
        """Count a fault of the plugin."""
        self._faults.labels(place).inc()

    def set_state(
        self, entries: int, size_bytes: int, estimate: ErrorEstimate, delta: float
    ) -> None:
        """Set the gauges."""
        self._entries.set(entries)
        self._bytes.set(size_bytes)
        self._error_per_request.set(estimate.per_request)
        self._error_per_hit.set(estimate.per_hit)
        self._error_low.set(estimate.low_per_hit)
        self._error_high.set(estimate.high_per_hit)
        self._delta.set(delta)


@cache
def process_metrics() -> CacheMetrics:
    """The metrics of this process; their names can be on a registry only once."""
    return CacheMetrics()
