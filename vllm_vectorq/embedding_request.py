# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Requests for the vector of a text, and the reasons for which there is none."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from .record import Vector


class EmbeddingRefused(RuntimeError):
    """There is no vector, and the request goes on without one."""


class PoolFull(EmbeddingRefused):
    """Too many texts are waiting."""


class PoolClosed(EmbeddingRefused):
    """The pool was closed."""


class PoolResting(EmbeddingRefused):
    """The model failed repeatedly and is left alone for a while."""


class DeadlinePassed(EmbeddingRefused):
    """The vector did not come in time."""


class TextUnsuitable(EmbeddingRefused):
    """The model cannot tell this text from others."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a pool may hold, and when it gives the model a rest.

    Attributes:
        max_batch: Texts embedded together.
        max_queue: Texts waiting; more are refused.
        max_recent: Vectors kept for texts that come again.
        max_failures: Batches failing in a row before the model is left alone.
        rest_s: For how long it is, in seconds; then one text is tried.
    """

    max_batch: int = 32
    max_queue: int = 256
    max_recent: int = 1024
    max_failures: int = 3
    rest_s: float = 30.0


Outcome = Vector | BaseException


@dataclass(slots=True)
class Waiter:
    """Somebody who wants a vector before ``deadline``, in seconds of the pool's clock.

    ``settle`` is called once, and never under a lock: it runs callbacks.
    """

    future: Future[Vector]
    deadline: float

    def late(self, now: float) -> bool:
        """Whether nobody is interested any more."""
        return self.future.cancelled() or self.deadline <= now

    def settle(self, outcome: Outcome) -> None:
        """Hand over the outcome, unless the future was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


@dataclass(slots=True)
class Job:
    """A text that is queued or being embedded, and who waits for its vector."""

    text: str
    waiters: list[Waiter]

    def drop_late(self, now: float) -> list[Waiter]:
        """Remove and return those who are not interested any more."""
        late = [waiter for waiter in self.waiters if waiter.late(now)]
        self.waiters = [waiter for waiter in self.waiters if waiter not in late]
        return late


def settle_all(waiters: Iterable[Waiter], outcome: Outcome) -> None:
    """Hand one outcome over to several."""
    for waiter in waiters:
        waiter.settle(outcome)
