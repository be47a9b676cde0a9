# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Runs a schedule: one thread per lane, which waits only for what it needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Self
from weakref import WeakKeyDictionary

from .operations import Kind, Lane, Operation, Schedule
from .simulation import Timeline

__all__ = ["Executor", "OperationError", "StalledError", "Timeline"]
Work = Mapping[Kind, Callable[[Operation], object]]
Context = Callable[[], AbstractContextManager[object]]
Pace = Callable[[Operation], float]
# How long threads may take to leave a run that is given up, before they are replaced.
GRACE_S = 0.2


class OperationError(RuntimeError):
    """An operation raised; what it raised is the cause of this error."""


class StalledError(RuntimeError):
    """No operation ended for too long."""


class _Wiring:
    """What all runs of a schedule have in common."""

    def __init__(self, schedule: Schedule) -> None:
        self.operations = schedule.operations
        self.names, self.lanes = zip(*schedule.lanes().items(), strict=True)
        self.kinds = {each.kind for each in self.operations}
        self.lane_of = [self.names.index(each.lane) for each in self.operations]
        self.missing = [0] * len(self.operations)
        self.followers: list[list[int]] = [[] for _ in self.operations]
        for number, each in enumerate(self.operations):
            for need in each.needs:
                if self.lane_of[need] != self.lane_of[number]:  # else by its order
                    self.missing[number] += 1
                    self.followers[need].append(number)


class _Run:
    """One run; ``guard`` protects what several threads write."""

    def __init__(
        self, wiring: _Wiring, work: Work, context: Context, pace: Pace | None
    ) -> None:
        self.wiring, self.work = wiring, work
        self.context, self.pace = context, pace
        self.missing = list(wiring.missing)
        self.start_s = [-1.0] * len(self.missing)
        self.end_s = list(self.start_s)
        self.guard = threading.Lock()
        self.inside = set(range(len(wiring.lanes)))
        self.blocked = [-1 for _ in self.inside]  # what each lane waits to begin
        self.gates: list[SimpleQueue[None]] = [SimpleQueue() for _ in self.inside]
        self.finished = threading.Event()
        self.stopped = False
        self.failure: Exception | None = None
        self.began_s, self.moved_s = time.perf_counter(), 0.0

    def now_s(self) -> float:
        """Time since the run began."""
        return time.perf_counter() - self.began_s

    def drive(self, lane: int) -> None:
        """Do the work of a lane, in its thread."""
        doing: Operation | None = None
        try:
            with self.context():
                for doing in self.wiring.lanes[lane]:
                    if not self._may_start(doing.number, lane):
                        break
                    self._do(doing)
        except BaseException as cause:
            error = OperationError(
                f"moe_offload: asked to run {doing or 'a context'}, but it raised "
                f"{cause!r}. The step is lost; see the cause above."
            )
            error.__cause__ = cause
            self.stop(error)
        with self.guard:
            self.inside.discard(lane)
            if not self.inside:
                self.finished.set()

    def _may_start(self, number: int, lane: int) -> bool:
        if self.missing[number]:
            with self.guard:
                waits = self.missing[number] > 0 and not self.stopped
                self.blocked[lane] = number if waits else -1
            if waits:
                self.gates[lane].get()
        return not self.stopped

    def _do(self, operation: Operation) -> None:
        number = operation.number
        self.start_s[number] = self.now_s()
        self.work[operation.kind](operation)
        if self.pace is not None:
            due_s = self.start_s[number] + self.pace(operation)
            time.sleep(max(due_s - self.now_s(), 0.0))
        self.end_s[number] = self.moved_s = self.now_s()
        if followers := self.wiring.followers[number]:
            with self.guard:
                for follower in followers:
                    self.missing[follower] -= 1
                    lane = self.wiring.lane_of[follower]
                    if self.blocked[lane] == follower and not self.missing[follower]:
                        self.gates[lane].put(None)

    def stop(self, failure: Exception | None) -> None:
        """Let no operation begin any more; the first failure is kept."""
        with self.guard:
            self.failure = self.failure or failure
            self.stopped = True
        for gate in self.gates:
            gate.put(None)

    def wait(self, timeout_s: float) -> None:
        """Wait for all lanes; stop after so long without progress."""
        while (rest_s := self.moved_s + timeout_s - self.now_s()) > 0.0:
            if self.finished.wait(rest_s):
                return
        self.stop(StalledError(self._stall(timeout_s)))

    def _stall(self, timeout_s: float) -> str:
        found = []
        for lane in self.wiring.lanes:
            for at in [each for each in lane if self.end_s[each.number] < 0.0][:1]:
                needs = (n for n in at.needs if self.end_s[n] < 0.0)
                awaited = " and ".join(str(self.wiring.operations[n]) for n in needs)
                state = f"waits for {awaited or 'its context'} before"
                state = "is in" if self.start_s[at.number] >= 0.0 else state
                found.append(f"lane {at.lane.value} {state} {at}")
        return (
            f"moe_offload: asked to run a step, but nothing ended for {timeout_s:g} s: "
            f"{'; '.join(found)}. Find out what blocks it, or allow more time."
        )


def _start_thread(lane: Lane) -> SimpleQueue[Callable[[], None] | None]:
    jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def live() -> None:
        while (job := jobs.get()) is not None:
            job()
            del job  # it holds the caller's tensors

    name = f"moe_offload-{lane.value}"
    threading.Thread(target=live, name=name, daemon=True).start()
    return jobs


class Executor:
    """Threads that run schedules, one after the other; they know nothing of tensors.

    Args:
        lanes: That schedules may use.
        context: Called in the thread of each lane for each run, to be entered there,
            such as ``torch.inference_mode``, which holds for one thread only.
    """

    def __init__(
        self, lanes: Iterable[Lane] = Lane, context: Context = nullcontext
    ) -> None:
        self._context = context
        self._jobs = {lane: _start_thread(lane) for lane in lanes}
        self._wirings: WeakKeyDictionary[Schedule, _Wiring] = WeakKeyDictionary()
        self._running = threading.Lock()

    def run(
        self, schedule: Schedule, work: Work, timeout_s: float, pace: Pace | None = None
    ) -> Timeline:
        """Run a schedule; return when each operation began and ended.

        After an error, operations that had begun are waited for, at most
        ``timeout_s``. A thread that does not come back is replaced for the next run;
        what it still does to buffers is the caller's risk.

        Args:
            schedule: What to run, any number of times.
            work: What to do for each kind of operation.
            timeout_s: Longest time in which no operation ends.
            pace: Seconds that an operation takes at least, the rest of them asleep.

        Raises:
            OperationError: An operation raised.
            StalledError: Nothing ended for ``timeout_s``.
            ValueError: Something is missing, or another thread is in a run.
        """
        wiring = self._wirings.get(schedule) or _Wiring(schedule)
        self._wirings[schedule] = wiring
        self._begin(wiring, work, timeout_s)  # takes the lock
        try:
            run = _Run(wiring, work, self._context, pace)
            try:
                for index, lane in enumerate(wiring.names):
                    self._jobs[lane].put(partial(run.drive, index))
                run.wait(timeout_s)
            finally:
                run.stop(None)
                run.finished.wait(GRACE_S)
                for lane in [wiring.names[index] for index in tuple(run.inside)]:
                    self._jobs[lane].put(None)
                    self._jobs[lane] = _start_thread(lane)
        finally:
            self._running.release()
        if run.failure is not None:
            raise run.failure
        return Timeline(schedule, tuple(run.start_s), tuple(run.end_s))

    def _begin(self, wiring: _Wiring, work: Work, timeout_s: float) -> None:
        wrong = ""
        if lost := [each.value for each in wiring.names if each not in self._jobs]:
            wrong = f"lanes {lost} have no thread. Name them; do not close it before"
        elif lost := [each.value for each in wiring.kinds if each not in work]:
            wrong = f"there is no work for {lost}. Give a callable for each"
        elif not 0.0 < timeout_s <= threading.TIMEOUT_MAX:
            wrong = f"timeout_s is {timeout_s!r}. Give seconds, above 0"
        elif not self._running.acquire(blocking=False):
            wrong = "it is in a run. Wait for its end, or use one more executor"
        if wrong:
            raise ValueError(f"moe_offload: asked an executor to run, but {wrong}.")

    def close(self) -> None:
        """End the threads, after a run that is under way; harmless when repeated."""
        with self._running:
            while self._jobs:
                self._jobs.popitem()[1].put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
