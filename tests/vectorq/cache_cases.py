# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A cache of real parts around a quick embedding, for the tests of the core."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry

from vllm_vectorq.cache import SemanticCache, Ticket
from vllm_vectorq.config import VectorQConfig
from vllm_vectorq.embedding import Embedder, EmbeddingPool
from vllm_vectorq.error_estimate import ServedErrorEstimator
from vllm_vectorq.faults import Faults
from vllm_vectorq.judge import EqualityJudge, Judge, Verdict
from vllm_vectorq.label_quota import LabelQuota
from vllm_vectorq.labelling import Labeller
from vllm_vectorq.learner import Learner
from vllm_vectorq.metrics import CacheMetrics
from vllm_vectorq.partition import Annotation, Prompt, Scope, build_request
from vllm_vectorq.policy import Policy
from vllm_vectorq.record import Change, Vector
from vllm_vectorq.request import Answer, CacheRequest, Hit, Mode
from vllm_vectorq.service import policy_factory
from vllm_vectorq.store import MemoryStore, Store
from vllm_vectorq.tightening import Tightening
from vllm_vectorq.working_set import WorkingSet

DIMENSIONS = 32
LOGGER = logging.getLogger("test.vectorq.core")
RESET = "how do I reset my password"
REPHRASED = "how can I reset my password"
WEATHER = "what is the weather in Paris"


class WordEmbedding:
    """Texts are as similar as the words they share; made from nothing but the text."""

    def embed(self, texts: list[str]) -> Vector:
        rows = [sum(map(word_vector, text.lower().split())) for text in texts]
        array = np.array(rows, dtype=np.float32).reshape(len(texts), DIMENSIONS)
        unit: Vector = array / np.linalg.norm(array, axis=1, keepdims=True)
        return unit


def word_vector(word: str) -> Vector:
    seed = int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    )
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class Synonyms:
    """Judge that knows which answers say the same; unsure about all others."""

    name = "synonyms"

    def __init__(self, *groups: set[str]) -> None:
        self.groups = groups
        self.asked: list[tuple[str, str]] = []

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        self.asked.append((answer, other_answer))
        same = any({answer, other_answer} <= group for group in self.groups)
        return Verdict(same, 1.0, self.name)


class BrokenJudge:
    name = "broken"

    def judge(
        self, prompt: str, answer: str, other_prompt: str, other_answer: str
    ) -> Verdict:
        raise OSError("no judge today")


class Clock:
    """Unix time that moves when told to."""

    def __init__(self) -> None:
        self.now_s = time.time()

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        # Real time passes as well: ids are made from it and must be in order.
        time.sleep(0.002)
        self.now_s += seconds


def request(
    text: str,
    *,
    context: str = "Be brief.",
    tenant: str = "",
    principal: bytes | None = None,
    model: str = "m",
    allowed: Mode = "semantic",
    ask: Tightening | None = None,
    why_exact: str = "",
    ttl_s: float = 3600.0,
    embedding: str = "",
) -> CacheRequest:
    """A request as the adapter makes it from a rendered prompt."""
    whole = f"<system>{context}<user>{text}<end>"
    scope = Scope(
        facts={"namespace": "default", "model": model, "tenant": tenant}
        | ({"embedding": embedding} if embedding else {}),
        mode=allowed,
        delta=0.02,
        ttl_s=ttl_s,
        secret=b"secret",
        special_tokens=None,
        semantic_tools=False,
        principal=principal,
    )
    prompt = Prompt(
        whole, list(whole.encode("utf-8", "surrogatepass")), Annotation("chat", (text,))
    )
    return build_request(scope, prompt, "greedy", ask or Tightening(), why_exact)


def answer(text: str, generation_s: float = 0.5) -> Answer:
    return Answer(text, tuple(range(len(text))), None, generation_s)


@dataclass
class Core:
    """A cache and the parts it was made of."""

    cache: SemanticCache
    working_set: WorkingSet
    labeller: Labeller
    quota: LabelQuota
    errors: ServedErrorEstimator
    clock: Clock
    faults: Faults
    registry: CollectorRegistry
    submitted: list[Change] = field(default_factory=list)

    def get(self, asked: CacheRequest) -> Hit | None:
        return self.cache.lookup_sync(asked)[0]

    def miss(self, asked: CacheRequest) -> Ticket:
        hit, ticket = self.cache.lookup_sync(asked)
        assert hit is None, f"expected a miss, got {hit}"
        assert ticket is not None
        return ticket

    def teach(self, asked: CacheRequest, reply: Answer | str) -> Ticket:
        """Ask, answer, and wait until all of it is learned."""
        ticket = self.miss(asked)
        self.reply(ticket, reply)
        return ticket

    def reply(self, ticket: Ticket, reply: Answer | str) -> None:
        self.cache.complete(ticket, answer(reply) if isinstance(reply, str) else reply)
        self.settle()

    def settle(self) -> None:
        assert self.labeller.flush(30)

    def class_of(self, asked: CacheRequest) -> int:
        entry = self.working_set.entries.exact(asked.exact_key)
        assert entry is not None
        return entry.class_id

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"vllm:vectorq_{name}", labels) or 0.0


@contextmanager
def core(
    *,
    store: Store | None = None,
    submit: Callable[[Change], None] | None = None,
    judges: Sequence[Judge] = (EqualityJudge(),),
    embedder: Embedder | None = None,
    accepts: Callable[[str], bool] = lambda _text: True,
    new_policy: Callable[[], Policy] | None = None,
    uniform: float = 0.999,
    check: float = 0.999,
    per_entry: int = 3,
    **options: object,
) -> Iterator[Core]:
    """A cache with the policy ``static`` at 0.7, unless told otherwise."""
    options = {"policy": "static", "static_threshold": 0.7} | options
    config = VectorQConfig(**options)  # type: ignore[arg-type]
    metrics, registry = CacheMetrics(), CollectorRegistry()
    metrics.register(registry)
    faults, errors, clock = (
        Faults(LOGGER, metrics.fault),
        ServedErrorEstimator(),
        Clock(),
    )
    submitted: list[Change] = []
    hand_in = submit or submitted.append
    quota = LabelQuota(per_entry=per_entry, confirmations=config.confirmations)
    pool = None
    if config.policy != "exact":
        pool = EmbeddingPool(embedder or WordEmbedding(), accepts=accepts)
    working_set = WorkingSet(
        dimensions=DIMENSIONS if pool is not None else 0,
        new_policy=new_policy or policy_factory(config),
        submit=hand_in,
        metrics=metrics,
        quota=quota,
        keep_text=config.keep_text,
    )
    working_set.apply((store or MemoryStore()).load())
    labeller = Labeller(LOGGER)
    learner = Learner(
        config=config,
        working_set=working_set,
        judges=judges,
        labeller=labeller,
        quota=quota,
        embedding=pool,
        submit=hand_in,
        served_errors=errors,
        metrics=metrics,
        faults=faults,
        clock=clock,
        uniform=lambda: check,
    )
    cache = SemanticCache(
        config=config,
        working_set=working_set,
        learner=learner,
        embedding=pool,
        metrics=metrics,
        faults=faults,
        secret=b"secret",
        served_errors=errors,
        clock=clock,
        uniform=lambda: uniform,
    )
    try:
        yield Core(
            cache,
            working_set,
            labeller,
            quota,
            errors,
            clock,
            faults,
            registry,
            submitted,
        )
    finally:
        labeller.close(30)
        if pool is not None:
            pool.close()
