# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Starvation guard: programs that waited too long for what they ran go first.

Source: Autellix, algorithm 1: a call moves to the first queue when
``(W_program + W_call) / (T_program + T_call) >= beta``. The paper leaves three gaps;
the decisions here are:

* A new program has ``T = 0``. Execution time is floored at the mean of finished
  programs, so a new program waits at most ``beta`` mean executions.
* The paper zeroes ``W_call`` and ``T_call`` after promotion, and never ``W_program``.
  Here nothing is zeroed: a program stays promoted until its own execution has brought
  the ratio below beta, which bounds its slowdown by about ``1 + beta`` plus the queue
  of the promoted.
* Promoted calls are served oldest program first (the paper: FCFS in the first queue
  together with newcomers, who could delay them without bound).

While a call waits, its execution time stands still, so the moment at which it becomes
starving is known on arrival and kept in a heap: nothing is scanned. What its siblings
do meanwhile moves that moment: later is noticed when the moment comes, and earlier (a
sibling that waited has finished) by watching the call again.
"""

from __future__ import annotations

import heapq

from vllm_program_sched.process_table import Call, Program

_MIN_COMPACT = 256


def _is_current(entry: tuple[float, int, Call]) -> bool:
    """Whether it is the call's last entry, and the call is alive and may starve."""
    due_s, _, call = entry
    return (
        due_s == call.starving_at_s
        and call.waiting_since_s is not None
        and not call.promoted
        and call.program.calls.get(call.call_id) is call
    )


class StarvationGuard:
    """Promotes waiting calls when their program's waiting ratio reaches ``beta``.

    Args:
        ratio: beta; 0 switches the guard off.
        floor_s: Execution time assumed until programs have finished, in seconds.
    """

    def __init__(self, ratio: float, floor_s: float) -> None:
        """See the class docstring."""
        self.ratio = ratio
        self._cold_floor_s = floor_s
        self._mean_execution_s = 0.0
        self._num_ended = 0
        self._due: list[tuple[float, int, Call]] = []
        self._compact_at = _MIN_COMPACT

    @property
    def floor_s(self) -> float:
        """Execution time assumed for programs that have less, in seconds."""
        # Ten finished programs' worth of trust in the configured value.
        total = 10.0 * self._cold_floor_s + self._num_ended * self._mean_execution_s
        return total / (10.0 + self._num_ended)

    def program_ended(self, program: Program) -> None:
        """Learn the mean execution time from an ended program."""
        self._num_ended = min(self._num_ended + 1, 1000)
        self._mean_execution_s += (
            program.execution_s - self._mean_execution_s
        ) / self._num_ended

    def due_s(self, call: Call, now_s: float) -> float:
        """Moment at which a waiting call becomes starving, if it goes on waiting."""
        program = call.program
        execution_s = program.execution_s + call.execution_s
        waited_s = program.wait_s + call.total_wait_s(now_s)
        return now_s + self.ratio * max(self.floor_s, execution_s) - waited_s

    def watch(self, call: Call, now_s: float) -> None:
        """Keep an eye on a call that starts to wait, or may starve sooner now."""
        if self.ratio > 0.0:
            self._push(call, self.due_s(call, now_s))
            if len(self._due) > self._compact_at:
                self._compact()

    def _push(self, call: Call, due_s: float) -> None:
        call.starving_at_s = due_s
        heapq.heappush(self._due, (due_s, call.seq, call))

    def _compact(self) -> None:
        # Calls that no longer wait would stay until their moment comes, which may be
        # hours away, and keep their requests in memory.
        self._due = [entry for entry in self._due if _is_current(entry)]
        heapq.heapify(self._due)
        self._compact_at = max(_MIN_COMPACT, 2 * len(self._due))

    def is_starving(self, call: Call, now_s: float) -> bool:
        """Whether the call's program has waited beyond the ratio."""
        return self.ratio > 0.0 and self.due_s(call, now_s) <= now_s

    def pop_due(self, now_s: float) -> list[Call]:
        """Waiting calls that are starving now and were not promoted yet."""
        starving: list[Call] = []
        while self._due and self._due[0][0] <= now_s:
            entry = heapq.heappop(self._due)
            if not _is_current(entry):
                continue
            call = entry[2]
            due_s = self.due_s(call, now_s)
            if due_s > now_s:
                self._push(call, due_s)
            else:
                starving.append(call)
        return starving
