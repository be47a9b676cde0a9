# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The cache as the vLLM adapter sees it: look up, complete, abandon.

Nothing here waits for a model, a disk or a lock held for long. What takes time - the
labels, the store, eviction - happens in :mod:`.learner` and :mod:`.upkeep`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import guards
from .config import VectorQConfig
from .embedding import EmbeddingPool
from .embedding_request import EmbeddingRefused
from .entries import Entry
from .error_estimate import ServedErrorEstimator
from .explanation import explain
from .faults import Faults
from .judge import Verdict
from .learner import FEEDBACK, Learner
from .lexical_evidence import lexical_evidence
from .metrics import CacheMetrics
from .partition_state import PartitionState
from .policy import NOTHING_NEAR, Decision, Evidence
from .record import Vector
from .request import Answer, CacheRequest, Hit, Stage
from .served_hits import ServedHits
from .tightening import tightest
from .working_set import WorkingSet

Outcome = tuple[Hit | None, "Ticket | None"]


@dataclass(slots=True, eq=False)
class Ticket:
    """What a miss needs so that its answer can be learned from.

    Attributes:
        vector: The request's embedding; None when there was none in time.
        decision: What the policy decided; None without semantic look-up.
        candidate: The entry that would have answered.
        open: Whether the answer is still expected.
    """

    request: CacheRequest
    vector: Vector | None = None
    decision: Decision | None = None
    candidate: Entry | None = None
    open: bool = True


class SemanticCache:
    """One per process; every method may be called from any thread.

    Args:
        config: The operator's options.
        working_set: Entries, indices and policies in memory.
        learner: Labels and stores answers in the background.
        embedding: Embeds the texts; None without semantic matching.
        metrics: Where to count.
        faults: Where to report faults of ours.
        secret: Key for hashing callers.
        served_errors: Running estimate of the errors served.
        embedding_name: Fingerprint of the embedding model; empty without one.
        on_close: Called by :meth:`close`.
        clock: Unix time in seconds.
        uniform: Random numbers in [0, 1) for exploration.
    """

    def __init__(
        self,
        config: VectorQConfig,
        working_set: WorkingSet,
        learner: Learner,
        embedding: EmbeddingPool | None,
        metrics: CacheMetrics,
        faults: Faults,
        secret: bytes,
        served_errors: ServedErrorEstimator,
        embedding_name: str = "",
        on_close: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self.working_set = working_set
        self.learner = learner
        self.embedding = embedding
        self.metrics = metrics
        self.faults = faults
        self.secret = secret
        self.served_errors = served_errors
        self.served = ServedHits()
        self.embedding_name = embedding_name
        self._on_close = on_close
        self._clock = clock
        self._uniform = uniform

    # -- look up ---------------------------------------------------------------

    def lookup_exact(self, request: CacheRequest) -> Hit | None:
        """The stored answer to the same request; microseconds, in memory."""
        try:
            entry = self.working_set.entries.exact(request.exact_key)
            if entry is None or not self.fresh(entry, request):
                return None
            return self._hit(entry, "exact", 1.0, 1.0)
        except Exception as error:
            self.faults.report("lookup", error)
            return None

    async def lookup(self, request: CacheRequest) -> Outcome:
        """Look up; a miss comes with the ticket for its answer.

        Waits for the embedding without blocking the event loop, at most the
        configured deadline.
        """
        hit = self.lookup_exact(request)
        if hit is not None:
            return hit, None
        vector = None
        if self.embedding is not None and request.text is not None:
            with self._timed_embedding():
                vector = await self.embedding.embed(
                    request.text, self.config.embedding_deadline_s
                )
        return self._semantic(request, vector)

    def lookup_sync(self, request: CacheRequest) -> Outcome:
        """Look up from a thread that may wait."""
        hit = self.lookup_exact(request)
        if hit is not None:
            return hit, None
        vector = None
        if self.embedding is not None and request.text is not None:
            with self._timed_embedding():
                vector = self.embedding.submit(request.text).result()
        return self._semantic(request, vector)

    @contextmanager
    def _timed_embedding(self) -> Iterator[None]:
        """Time the embedding; without one the request goes on."""
        started = time.perf_counter()
        try:
            yield
        except EmbeddingRefused as reason:
            self.metrics.no_embedding(type(reason).__name__)
        except Exception as error:
            self.faults.report("embedding", error)
        self.metrics.embedding_seconds.observe(time.perf_counter() - started)

    def _semantic(self, request: CacheRequest, vector: Vector | None) -> Outcome:
        ticket = Ticket(request, vector)
        try:
            hit = None if vector is None else self._decide(request, vector, ticket)
        except Exception as error:
            self.faults.report("decide", error)
            hit = None
        if hit is not None:
            return hit, None
        self.metrics.miss()
        self.served_errors.request(hit=False)
        return None, ticket

    def _decide(
        self, request: CacheRequest, vector: Vector, ticket: Ticket
    ) -> Hit | None:
        """Ask the policy; what it said goes into the ticket."""
        state = self.working_set.partition(request.partition.digest)
        if state is None or state.index is None or len(state.index) == 0:
            ticket.decision = NOTHING_NEAR
            return None
        started = time.perf_counter()
        evidence, entries = self.evidence(state, request, vector)
        searched = time.perf_counter()
        decision = state.policy.decide(evidence, self.delta(request), self._uniform())
        self.metrics.search_seconds.observe(searched - started)
        self.metrics.decide_seconds.observe(time.perf_counter() - searched)
        ticket.decision = decision
        if decision.candidate is None:
            return None
        entry = entries[decision.candidate]
        ticket.candidate = entry
        if not self.learner.may_serve(entry, request):
            # No chance is involved in exploring it, so it is no audit.
            ticket.decision = replace(decision, serve=False, propensity=1.0)
            return None
        if not decision.serve:
            return None
        similarity = float(evidence.similarities[decision.candidate])
        self.served.note(entry.entry_id, request.principal, decision)
        return self._hit(entry, "semantic", similarity, decision.probability)

    def evidence(
        self, state: PartitionState, request: CacheRequest, vector: Vector
    ) -> tuple[Evidence, list[Entry]]:
        """What a policy is given about a request, and the entries it names."""
        assert state.index is not None and request.text is not None
        near = state.index.search(vector, self.config.neighbours)
        entries: list[Entry] = []
        kept: list[int] = []
        for place, entry_id in enumerate(near.entry_ids.tolist()):
            entry = self.working_set.entries.get(entry_id)
            if entry is not None and self.fresh(entry, request):
                entries.append(entry)
                kept.append(place)
        signature: guards.Signature | None = None
        others: list[guards.Signature | None] = [None] * len(entries)
        if self.config.guards:
            signature = guards.signature(request.text)
            others = [entry.signature for entry in entries]
        conflicts, lexical = lexical_evidence(signature, others)
        return (
            Evidence(
                vector=vector,
                entry_ids=near.entry_ids[kept],
                class_ids=near.class_ids[kept],
                similarities=near.similarities[kept],
                vectors=near.vectors[kept],
                conflicts=conflicts,
                lexical=lexical,
                size=len(state.index),
            ),
            entries,
        )

    def delta(self, request: CacheRequest) -> float:
        """Error budget of a request."""
        return tightest(self.config.delta, request.delta) or self.config.delta

    def fresh(self, entry: Entry, request: CacheRequest) -> bool:
        """Whether an entry is young enough for a request."""
        now_s = self._clock()
        if now_s >= entry.expires_s:
            return False
        return request.ttl_s is None or now_s - entry.created_s <= request.ttl_s

    def _hit(
        self, entry: Entry, stage: Stage, similarity: float, probability: float
    ) -> Hit:
        now_s = self._clock()
        entry.hits += 1
        entry.last_used_s = now_s
        self.metrics.hit(stage, entry.stored.answer.generation_s)
        self.served_errors.request(hit=stage == "semantic")
        return Hit(
            answer=entry.stored.answer,
            stage=stage,
            entry_id=entry.entry_id,
            similarity=similarity,
            probability=probability,
            age_s=max(now_s - entry.created_s, 0.0),
        )

    # -- learn -----------------------------------------------------------------

    def complete(self, ticket: Ticket, answer: Answer) -> None:
        """A miss was answered completely; returns at once.

        The answer is there for exact repeats when this returns.
        """
        if not ticket.open:
            return
        ticket.open = False
        try:
            self.learner.learn(ticket, answer)
        except Exception as error:
            self.faults.report("complete", error)

    def abandon(self, ticket: Ticket) -> None:
        """A miss ended without a complete answer; nothing is kept."""
        ticket.open = False

    def feedback(
        self, entry_id: int, right: bool, principal: bytes | None, tenant: str
    ) -> bool | None:
        """Take a user's word on an answer that was served.

        An answer that was wrong for the very question it was given to is dropped.

        Args:
            entry_id: As the response's header named it.
            right: Whether the answer was right.
            principal: Who says so, hashed.
            tenant: Whose answers they may see, hashed.

        Returns:
            Whether something was learned; None for an entry that is unknown to them.
        """
        entry = self.working_set.entries.get(entry_id)
        if entry is None or entry.partition.facts.get("tenant", "") != tenant:
            return None
        decision = self.served.take(entry_id, principal)
        if decision is not None:
            verdict = Verdict(right, 1.0, FEEDBACK)
            return self.learner.teach(entry, decision, verdict, principal)
        if not right and entry.principal == principal:
            self.working_set.remove([entry_id], "feedback")
            return True
        return False

    # -- look after ------------------------------------------------------------

    def invalidate(self, **facts: str) -> int:
        """Drop the entries of every partition with these facts; return how many."""
        return self.working_set.invalidate(facts)

    def invalidate_prefix(self, prefix: str, **facts: str) -> int:
        """The same for entries whose text begins so."""
        return self.working_set.invalidate(facts, prefix)

    def stats(self) -> dict[str, Any]:
        """What an operator wants to know at a glance."""
        estimate = self.served_errors.estimate()
        entries = self.working_set.entries
        return {
            "config": self.config.as_dict(),
            "entries": len(entries),
            "partitions": len(self.working_set.partitions()),
            "bytes": entries.size_bytes,
            "error": asdict(estimate),
            "budget": {
                "per_request": self.config.delta,
                "per_hit": self.config.hit_delta,
            },
            "judges": self.learner.judge_stats(),
            "faults": self.faults.counts(),
        }

    async def explain(self, request: CacheRequest) -> dict[str, Any]:
        """Say what would be served for a request, and why; changes nothing."""
        vector, why_none = None, request.why_exact
        if self.embedding is not None and request.text is not None:
            try:
                vector = await self.embedding.embed(
                    request.text, self.config.embedding_deadline_s
                )
            except Exception as reason:
                why_none = f"its text has no embedding: {reason}"
        return explain(self, request, vector, why_none)

    def close(self) -> None:
        """Stop; what was learned is in the store afterwards."""
        self._on_close()

    def fault(self, where: str, error: BaseException) -> None:
        """Count a fault of ours, log it once per place."""
        self.faults.report(where, error)
