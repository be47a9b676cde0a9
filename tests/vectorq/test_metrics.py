# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The counters on vLLM's registry, and that no client can make them grow."""

import asyncio

from prometheus_client import CollectorRegistry, Counter, generate_latest

from tests.vectorq.cache_cases import BrokenJudge, Core, answer, core, request
from vllm_vectorq.error_estimate import ErrorEstimate
from vllm_vectorq.metrics import CacheMetrics, process_metrics
from vllm_vectorq.policy_vcache import VCachePolicy
from vllm_vectorq.tightening import Tightening

RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"


def names(registry: CollectorRegistry) -> set[str]:
    return {metric.name for metric in registry.collect()}


def test_everything_is_on_the_registry_under_vllms_prefix() -> None:
    registry = CollectorRegistry()
    CacheMetrics().register(registry)
    found = names(registry)
    assert len(found) == 20
    assert all(name.startswith("vllm:vectorq_") for name in found)


def test_second_registration_changes_nothing() -> None:
    registry, metrics = CollectorRegistry(), CacheMetrics()
    metrics.register(registry)
    metrics.hit("exact", 2.0)
    metrics.register(registry)
    assert names(registry) == names(registry)
    assert len(names(registry)) == 20
    assert registry.get_sample_value("vllm:vectorq_saved_seconds_total") == 2.0


def test_counts_survive_an_engine_that_clears_the_registry() -> None:
    # vLLM unregisters everything whose name is like its own when an engine starts.
    registry, metrics = CollectorRegistry(), CacheMetrics()
    metrics.register(registry)
    metrics.miss()
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert names(registry) == set()
    metrics.miss()
    metrics.register(registry)
    assert len(names(registry)) == 20
    misses = registry.get_sample_value(
        "vllm:vectorq_requests_total", {"result": "miss"}
    )
    assert misses == 2.0


def test_registration_completes_what_is_missing() -> None:
    registry, metrics = CollectorRegistry(), CacheMetrics()
    metrics.register(registry)
    registry.unregister(next(iter(registry._collector_to_names)))
    metrics.register(registry)
    assert len(names(registry)) == 20


def test_metrics_of_others_are_left_alone() -> None:
    registry = CollectorRegistry()
    other = Counter("vllm:requests", "Of vLLM.", registry=registry)
    other.inc()
    CacheMetrics().register(registry)
    assert registry.get_sample_value("vllm:requests_total") == 1.0


def test_a_process_has_one_set() -> None:
    assert process_metrics() is process_metrics()


def test_every_counter_can_be_read() -> None:
    registry, metrics = CollectorRegistry(), CacheMetrics()
    metrics.register(registry)
    metrics.hit("semantic", 1.5)
    metrics.bypass("sampled")
    metrics.explored("right")
    metrics.verdict("equality", "same")
    metrics.no_embedding("PoolFull")
    metrics.removed("evicted", 7)
    metrics.fault("decide")
    estimate = ErrorEstimate(0.01, 0.02, 0.005, 0.05, 30, 25.0)
    metrics.set_state(5, 1234, estimate, 0.02)
    text = generate_latest(registry).decode()
    for line in (
        'vllm:vectorq_requests_total{result="hit"} 1.0',
        'vllm:vectorq_requests_total{result="bypass"} 1.0',
        'vllm:vectorq_hits_total{stage="semantic"} 1.0',
        "vllm:vectorq_saved_seconds_total 1.5",
        'vllm:vectorq_bypassed_total{reason="sampled"} 1.0',
        'vllm:vectorq_explorations_total{outcome="right"} 1.0',
        'vllm:vectorq_verdicts_total{judge="equality",verdict="same"} 1.0',
        'vllm:vectorq_no_embedding_total{reason="PoolFull"} 1.0',
        'vllm:vectorq_removed_total{reason="evicted"} 7.0',
        'vllm:vectorq_faults_total{place="decide"} 1.0',
        "vllm:vectorq_entries 5.0",
        "vllm:vectorq_bytes 1234.0",
        "vllm:vectorq_error_per_request 0.01",
        "vllm:vectorq_error_per_hit 0.02",
        "vllm:vectorq_error_per_hit_low 0.005",
        "vllm:vectorq_error_per_hit_high 0.05",
        "vllm:vectorq_delta 0.02",
    ):
        assert line in text.splitlines(), line


def traffic(c: Core, mark: str) -> None:
    """Requests in which whatever a client chooses bears a mark."""
    principal = mark.encode()
    asked = request(f"{RESET} {mark}", tenant=mark, model=mark, principal=principal)
    c.teach(asked, f"Reply {mark}.")
    c.get(asked)
    again = request(f"{REPHRASED} {mark}", tenant=mark, model=mark, principal=principal)
    c.teach(again, f"Other {mark}.")
    no_text = request(mark, tenant=mark, why_exact=f"because {mark}")
    c.teach(no_text, mark)
    asyncio.run(c.cache.lookup(request(f"{mark} " * 50, ask=Tightening(store=False))))
    entry = c.working_set.entries.exact(asked.exact_key)
    assert entry is not None
    c.cache.feedback(entry.entry_id, False, principal, mark)
    c.cache.invalidate(tenant=mark)


def test_nothing_that_a_client_chooses_becomes_a_label() -> None:
    options: dict[str, object] = {"new_policy": VCachePolicy, "uniform": 0.0}
    with core(accepts=lambda text: len(text) < 90, **options) as c:  # type: ignore[arg-type]
        traffic(c, "warmup")
        series = generate_latest(c.registry).decode().count("\n")
        for mark in ("alpha", "beta", "gamma"):
            traffic(c, mark)
        text = generate_latest(c.registry).decode()
        assert text.count("\n") == series
        for mark in ("warmup", "alpha", "beta", "gamma"):
            assert mark not in text


def test_latencies_are_observed() -> None:
    with core() as c:
        c.teach(request(RESET), "Click reset.")
        c.get(request(REPHRASED))
        assert c.count("embedding_seconds_count") == 2
        assert c.count("search_seconds_count") == 1
        assert c.count("decide_seconds_count") == 1
    with core(judges=[BrokenJudge()]) as c:
        c.teach(request(RESET), "Click reset.")
        c.cache.complete(c.miss(request("what is up")), answer("Nothing."))
        c.settle()
        assert c.count("judge_seconds_count") == 1
