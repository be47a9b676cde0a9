# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Micro-batching in front of an embedding model, with bounds on everything.

One thread embeds what is queued as soon as it is free. It never waits for a batch to
fill, so an idle pool adds no delay and a busy one makes larger batches.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from .circuit_breaker import CircuitBreaker
from .embedding_request import (
    DeadlinePassed,
    EmbeddingRefused,
    Job,
    PoolClosed,
    PoolFull,
    PoolLimits,
    PoolResting,
    TextUnsuitable,
    Waiter,
    settle_all,
)
from .record import Vector

logger = logging.getLogger(__name__)

# How long closing waits for the batch in progress.
_CLOSE_S = 5.0

_DEFAULT_LIMITS = PoolLimits()


class Embedder(Protocol):
    """What the pool needs of a model."""

    def embed(self, texts: list[str]) -> Vector:
        """Embed texts; returns finite float32 [len(texts), dimensions]."""
        ...


class EmbeddingPool:
    """Embeds texts on a thread of its own.

    Equal texts share one computation, and recent vectors are kept. Nothing raises or
    blocks on the caller's thread: refusals arrive through the future.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        accepts: Callable[[str], bool] = lambda _text: True,
        on_batch: Callable[[int, float], None] = lambda _texts, _seconds: None,
        limits: PoolLimits = _DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a pool; its thread starts with the first text.

        Args:
            embedder: Called on the pool's thread only.
            accepts: Whether the model can tell a text from others; called on the
                pool's thread only.
            on_batch: Told the number of texts and the seconds of each batch.
            limits: What it may hold.
            clock: Monotonic time in seconds.
        """
        self._embedder = embedder
        self._accepts = accepts
        self._on_batch = on_batch
        self._limits = limits
        self._clock = clock
        # Guards everything below.
        self._changed = threading.Condition()
        self._breaker = CircuitBreaker(limits.max_failures, limits.rest_s, clock)
        self._queue: deque[Job] = deque()
        self._in_flight: dict[str, Job] = {}
        self._recent: OrderedDict[str, Vector] = OrderedDict()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def queued(self) -> int:
        """Texts that wait."""
        return len(self._queue)

    def submit(self, text: str, deadline_s: float | None = None) -> Future[Vector]:
        """Ask for the vector of a text, float32 [dimensions], read-only.

        Args:
            text: What to embed.
            deadline_s: Seconds from now after which it is not begun any more.

        Returns:
            A future that fails with an :class:`EmbeddingRefused` or with what the
            model raised. Cancelling it affects nobody else who wants the same text.
        """
        wait_s = float("inf") if deadline_s is None else deadline_s
        waiter = Waiter(Future(), self._clock() + wait_s)
        with self._changed:
            outcome = self._admit(text, waiter)
        if outcome is not None:
            waiter.settle(outcome)
        return waiter.future

    async def embed(self, text: str, deadline_s: float) -> Vector:
        """Wait for the vector of a text, float32 [dimensions], read-only.

        Raises:
            EmbeddingRefused: there is none, or not within ``deadline_s``.
        """
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(self.submit(text, deadline_s))
        except TimeoutError:
            raise DeadlinePassed(f"no vector within {deadline_s} s") from None

    def close(self) -> None:
        """Refuse what waits and all that comes; a batch in progress still ends."""
        with self._changed:
            self._closed = True
            waiters = self._drain()
            thread = self._thread
            self._changed.notify()
        settle_all(waiters, PoolClosed("the embedding pool was closed"))
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_S)

    def _admit(self, text: str, waiter: Waiter) -> Vector | EmbeddingRefused | None:
        """Queue a text; returns the outcome where there is no need to."""
        if self._closed:
            return PoolClosed("the embedding pool was closed")
        if (vector := self._recent.get(text)) is not None:
            self._recent.move_to_end(text)
            return vector
        if (job := self._in_flight.get(text)) is not None:
            job.waiters.append(waiter)
            return None
        if len(self._queue) >= self._limits.max_queue:
            return PoolFull(f"{self._limits.max_queue} texts are waiting")
        if not self._breaker.admits():
            return PoolResting("the embedding model failed and rests")
        job = self._in_flight[text] = Job(text, [waiter])
        self._queue.append(job)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="vectorq-embedding", daemon=True
            )
            self._thread.start()
        self._changed.notify()
        return None

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            if jobs:
                self._embed(jobs)

    def _take(self) -> list[Job] | None:
        """Wait for texts; returns those to embed, shortest first, None to stop."""
        late: list[Waiter] = []
        jobs: list[Job] = []
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            now = self._clock()
            while self._queue and len(jobs) < self._limits.max_batch:
                job = self._queue.popleft()
                late += job.drop_late(now)
                if job.waiters:
                    jobs.append(job)
                else:
                    del self._in_flight[job.text]
        settle_all(late, DeadlinePassed("the deadline passed in the queue"))
        return sorted(jobs, key=lambda job: len(job.text))

    def _embed(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        try:
            vectors = self._vectors([job.text for job in jobs])
        # Whatever it is: without this thread every request would wait for nothing.
        except BaseException as error:
            self._fail(jobs, error)
            return
        seconds = time.perf_counter() - started
        with self._changed:
            for job in jobs:
                del self._in_flight[job.text]
            if vectors:
                self._breaker.succeeded()
            self._recent.update(vectors)
            while len(self._recent) > self._limits.max_recent:
                self._recent.popitem(last=False)
        unsuitable = TextUnsuitable("the embedding model cannot represent this text")
        for job in jobs:
            settle_all(job.waiters, vectors.get(job.text, unsuitable))
        try:
            self._on_batch(len(vectors), seconds)
        except Exception:
            logger.exception("vectorq: counting a batch of embeddings failed")

    def _vectors(self, texts: list[str]) -> dict[str, Vector]:
        """Vector of every text that the model accepts."""
        accepted = [text for text in texts if self._accepts(text)]
        if not accepted:
            return {}
        rows = np.asarray(self._embedder.embed(accepted), dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(accepted) or not np.isfinite(rows).all():
            raise ValueError(
                f"the embedding model returned an array of shape {rows.shape}, or "
                f"values that are not finite, for {len(accepted)} texts"
            )
        # Copies: a view would keep its whole batch in memory.
        vectors = dict(zip(accepted, map(np.copy, rows), strict=True))
        for vector in vectors.values():
            vector.flags.writeable = False
        return vectors

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        refused: list[Waiter] = []
        with self._changed:
            for job in jobs:
                del self._in_flight[job.text]
            self._breaker.failed()
            if rests := self._breaker.open:
                refused = self._drain()
        for job in jobs:
            settle_all(job.waiters, error)
        settle_all(refused, PoolResting("the embedding model failed and rests"))
        if rests:
            logger.warning(
                "vectorq: embedding failed too often, the last time with %r; trying "
                "again in %.0f s",
                error,
                self._limits.rest_s,
            )

    def _drain(self) -> list[Waiter]:
        """Empty the queue; returns who waited."""
        waiters: list[Waiter] = []
        for job in self._queue:
            del self._in_flight[job.text]
            waiters += job.waiters
        self._queue.clear()
        return waiters
