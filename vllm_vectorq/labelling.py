# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Worker threads that label answers after they were sent.

Labels are worth having, never worth waiting for. The queue is bounded, and handing in
a job costs the request path a lock and an append. When judging is slower than the
traffic, jobs are sampled: above half of the queue they are taken with a probability
that falls to zero when it is full. What is labelled is then a random part of the
traffic, not the start of every burst, so shares estimated from labels stay right.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger

Job = Callable[[], object]


@dataclass(frozen=True, slots=True)
class LabellingStats:
    """What became of the jobs so far.

    Attributes:
        submitted: Jobs handed in.
        dropped: Refused because the queue was full, or lost by closing.
        sampled_out: Refused by sampling, before the queue was full.
        finished: Jobs that returned or raised.
        failures: Exceptions by kind of job and type, as in ``label: ValueError``.
        depth: Jobs waiting now.
    """

    submitted: int
    dropped: int
    sampled_out: int
    finished: int
    failures: dict[str, int]
    depth: int


class Labeller:
    """Runs jobs in the background; threads start with the first job.

    A job asks judges and hands on what they say. Exceptions are counted and logged
    once per kind; they never end a thread.

    Args:
        logger: Where to log them.
        workers: Threads.
        capacity: Longest queue, in jobs.
        on_latency: Called with the kind of each job and its duration in seconds.
        rng: Chance for sampling.

    Raises:
        ValueError: ``workers`` or ``capacity`` is not positive.
    """

    def __init__(
        self,
        logger: Logger,
        workers: int = 1,
        capacity: int = 1024,
        on_latency: Callable[[str, float], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if workers < 1 or capacity < 1:
            raise ValueError(
                f"labelling was asked for with {workers} workers and a queue of "
                f"{capacity} jobs; both must be at least 1."
            )
        self._logger = logger
        self._num_workers = workers
        self._capacity = capacity
        self._on_latency = on_latency
        self._rng = rng or random.Random()
        self._queue: deque[tuple[Job, str]] = deque()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._available = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._closed = False
        self._running = 0
        self._submitted = self._dropped = self._sampled_out = self._finished = 0
        self._failures: Counter[str] = Counter()

    def run(self, job: Job, kind: str = "label") -> bool:
        """Hand in a job without waiting for room.

        Args:
            job: Called once in a worker thread; may block.
            kind: Name under which its duration and exceptions are counted.

        Returns:
            Whether it was taken; if not, it never runs.
        """
        with self._lock:
            self._submitted += 1
            if self._closed or len(self._queue) >= self._capacity:
                self._dropped += 1
                return False
            if self._rng.random() >= self._admission(len(self._queue)):
                self._sampled_out += 1
                return False
            self._queue.append((job, kind))
            if len(self._threads) < self._num_workers:
                self._start_worker()
            self._available.notify()
            return True

    def _admission(self, depth: int) -> float:
        """Probability with which a job is taken at this length of the queue."""
        return min(2.0 * (self._capacity - depth) / self._capacity, 1.0)

    def _start_worker(self) -> None:
        name = f"vectorq-label-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._closed:
                    self._available.wait()
                if self._closed:
                    return
                job, kind = self._queue.popleft()
                self._running += 1
            self._run(job, kind)
            # Otherwise the last answers stay in memory until the next job.
            del job
            with self._lock:
                self._running -= 1
                self._finished += 1
                if not self._queue and not self._running:
                    self._idle.notify_all()

    def _run(self, job: Job, kind: str) -> None:
        started_s = time.perf_counter()
        # BaseException: sys.exit() inside a library would end the thread quietly.
        try:
            job()
        except BaseException as error:
            self._failed(kind, error)
        try:
            if self._on_latency is not None:
                self._on_latency(kind, time.perf_counter() - started_s)
        except BaseException as error:
            self._failed("on_latency", error)

    def _failed(self, place: str, error: BaseException) -> None:
        kind = f"{place}: {type(error).__name__}"
        with self._lock:
            self._failures[kind] += 1
            first = self._failures[kind] == 1
        if first:
            self._logger.warning(
                "Labelling goes on after an exception in %s; further ones of this "
                "kind are only counted.",
                place,
                exc_info=error,
            )

    def stats(self) -> LabellingStats:
        """What became of the jobs so far."""
        with self._lock:
            return LabellingStats(
                self._submitted,
                self._dropped,
                self._sampled_out,
                self._finished,
                dict(self._failures),
                len(self._queue),
            )

    def flush(self, timeout_s: float) -> bool:
        """Wait until no job waits or runs; not from within a job.

        Returns:
            Whether that was so within ``timeout_s`` seconds.
        """
        with self._lock:
            return self._idle.wait_for(
                lambda: not self._queue and not self._running, timeout_s
            )

    def close(self, timeout_s: float) -> bool:
        """Take no more jobs, drop those that wait, and end after the running ones.

        Returns:
            Whether all threads ended within ``timeout_s`` seconds. Threads that did
            not are daemons and end with the process.
        """
        with self._lock:
            self._closed = True
            self._dropped += len(self._queue)
            self._queue.clear()
            self._available.notify_all()
            if not self._running:
                self._idle.notify_all()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline_s - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)
