# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A stream through a real cache, whose judges have to find out which answers agree.

The model is replaced by templates: every intent has one answer, worded and marked up
differently each time. The embedding of questions is looked up. All else is the
product's, learning in step with the requests as in a replay.
"""

from __future__ import annotations

import hashlib
import logging
import random
from typing import Any
from unittest.mock import patch

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.vectorq.quality_outcome import measured
from benchmarks.vectorq.quality_streams import Stream
from benchmarks.vectorq.quality_templates import Templates
from vllm_vectorq import service as services
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.metrics import process_metrics
from vllm_vectorq.record import Vector
from vllm_vectorq.replay import Outcome
from vllm_vectorq.request import Answer, CacheRequest, Hit, Partition

_LOGGER = logging.getLogger("benchmarks.vectorq")
_PARTITION = Partition(b"answers of templates".ljust(32, b"."), {"model": "benchmark"})
_PREFIX, _TOTAL = "vllm:vectorq_", "_total"
_COUNTED = frozenset(f"{_PREFIX}{n}{_TOTAL}" for n in ("verdicts", "explorations"))


class _TextTable:
    """Vectors of known texts; the model is asked for others, once each."""

    def __init__(self, model: EmbeddingModel, stream: Stream) -> None:
        self._model = model
        self._vectors = dict(zip(stream.texts, stream.vectors, strict=True))
        self.fingerprint = model.fingerprint
        self.dimensions = stream.vectors.shape[1]

    def embed(self, texts: list[str]) -> Vector:
        """Unit vectors, float32 [texts, dimensions]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._model.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def fits(self, text: str) -> bool:
        """Known questions are taken as they are."""
        return text in self._vectors or self._model.fits(text)


def serve(
    stream: Stream, model: EmbeddingModel, delta: float, seed: int, alike: bool
) -> dict[str, Any]:
    """Run a stream through a cache.

    Args:
        stream: The requests.
        model: Embeds the answers.
        delta: Error budget per request.
        seed: For exploration.
        alike: As for :class:`Templates`.

    Returns:
        What a replay measures, what the judges said, and how many requests were exact
        repeats.
    """
    config = VectorQConfig(enabled=True, store="memory", delta=delta, log_interval_s=0)
    table = _TextTable(model, stream)
    with patch.object(services, "_embedding_model", lambda config: table):
        service = services.Service(config, "benchmark", _LOGGER)
    before = _verdicts()
    random.seed(seed)
    try:
        # Learning keeps step, so what is tuned does not depend on the clock.
        service.tuning.close()
        outcome, exact = _serve(service, stream, Templates(stream, alike))
        found = measured(outcome)
        state = service.working_set.partition(_PARTITION.digest)
        found["entries"] = len(service.working_set.entries)
        found["indexed"] = len(state.index) if state and state.index else 0
        found["faults"] = service.cache.stats()["faults"]
    finally:
        service.close()
    after = _verdicts()
    verdicts = {
        name: count - before.get(name, 0) for name, count in sorted(after.items())
    }
    found["judge_calls"] = sum(
        count for name, count in verdicts.items() if name.startswith("explorations")
    )
    return {**found, "exact_repeats": exact, "verdicts": verdicts}


def _serve(
    service: services.Service, stream: Stream, templates: Templates
) -> tuple[Outcome, int]:
    n = len(stream.texts)
    intent_of: dict[str, int] = {}
    outcome = Outcome(
        np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.float32)
    )
    exact = 0
    for i, (text, intent) in enumerate(
        zip(stream.texts, stream.classes.tolist(), strict=True)
    ):
        key = hashlib.sha256(text.encode()).digest()
        hit, ticket = service.cache.lookup_sync(
            CacheRequest(_PARTITION, key, text, "semantic")
        )
        if hit is not None:
            _note(outcome, i, hit, intent_of[hit.answer.text] == intent)
            exact += hit.stage == "exact"
        elif ticket is not None:
            answer = templates.answer(intent, i)
            intent_of[answer] = intent
            service.cache.complete(ticket, Answer(answer, (1,), None, 1.0))
            service.labeller.flush(timeout_s=60.0)
        state = service.working_set.partition(_PARTITION.digest)
        if state is not None:
            state.policy.tune()
    return outcome, exact


def _note(outcome: Outcome, i: int, hit: Hit, right: bool) -> None:
    outcome.hit[i] = True
    outcome.wrong[i] = not right
    outcome.probability[i] = hit.probability


def _verdicts() -> dict[str, int]:
    """What judges and labels said in this process so far."""
    registry = CollectorRegistry()
    process_metrics().register(registry)
    return {
        " ".join((sample.name[len(_PREFIX) : -len(_TOTAL)], *sample.labels.values())): (
            int(sample.value)
        )
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name in _COUNTED
    }
