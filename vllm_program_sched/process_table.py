# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Process table: what the scheduler remembers about every live program.

Source: Autellix (arXiv 2502.13965), section 4.1 and algorithm 1 (``UPDATE``). The paper
publishes no eviction rule; here an entry ends when the client says so, when it has been
idle for ``ttl_s``, or, beyond ``max_programs``, in least-recently-used order. A program
with an active call is never evicted, so the table is bounded by
``max_programs + active calls``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_program_sched.identity import client_request_id

EndListener = Callable[["Program", str], None]
"""Called once with every program that leaves the table, and why.

Reasons: ``end`` (the client said so), ``call`` (a call without a program id is its own
program), ``ttl`` and ``lru`` (evicted), ``abort`` (its only call was aborted).
"""


_MAX_FINISHED_PATHS = 256


@dataclass(slots=True, eq=False)
class Call:
    """One active LLM call: the paper's per-thread metadata.

    Attributes:
        seq: Arrival order over all calls; the last tie-break, so order is total.
        tier: The user's own vLLM priority; smaller is served first, always.
        inherited_service: Critical path of the program when the call arrived
            (``c.service`` in algorithm 1).
        service: Service attained by this call, in service units.
        execution_s: Wall time of the engine steps that ran this call.
        wait_s: Time spent in the waiting queue, without the current stretch.
        waiting_since_s: Start of the current stretch, None while running.
        run_tokens: Tokens computed since the last admission, up to the last settling.
        pending_prefill: Prompt tokens computed but not yet charged.
        pending_decode: Tokens generated but not yet charged.
        share_mark_s: ``StepMeter.share_s`` up to which time is charged.
        elapsed_mark_s: ``StepMeter.elapsed_s`` up to which time is charged.
        high_water_tokens: Tokens already computed once; below it is recomputation.
        starving_at_s: When the starvation guard last expected the call to starve.
        rank: Cached sort key; see ``core.ProgramCore.rank``.
        payload: Whatever the adapter schedules (a vLLM ``Request``).
    """

    call_id: str
    program: Program
    seq: int
    arrival_s: float
    tier: int = 0
    thread_id: str | None = None
    ends_program: bool = False
    inherited_service: float = 0.0
    service: float = 0.0
    execution_s: float = 0.0
    wait_s: float = 0.0
    waiting_since_s: float | None = None
    run_tokens: int = 0
    high_water_tokens: int = 0
    pending_prefill: int = 0
    pending_decode: int = 0
    share_mark_s: float = 0.0
    elapsed_mark_s: float = 0.0
    preemptions: int = 0
    queue_index: int = 0
    quantum_left: float = 0.0
    queued_seq: int = 0
    promoted: bool = False
    starving_at_s: float = 0.0
    rank: tuple[int, int, float, int] = (0, 0, 0.0, 0)
    payload: Any = None

    def total_wait_s(self, now_s: float) -> float:
        """Waiting time of this call including the current stretch."""
        if self.waiting_since_s is None:
            return self.wait_s
        return self.wait_s + max(0.0, now_s - self.waiting_since_s)


@dataclass(slots=True, eq=False)
class Program:
    """One live program.

    Attributes:
        attained_service: Service of all its calls, finished and active (PLAS, eq. 1).
        critical_path: Longest chain of finished calls (ATLAS, eq. 2 as implemented by
            algorithm 1, line 4).
        execution_s: Engine time of its finished calls, summed.
        wait_s: Waiting time of its finished calls, summed.
        class_key: What the program's service distribution is learned under.
        oracle_remaining: Remaining service told by the client (``srpt`` only).
        engine_ids: Engines that hold a part of its KV cache.
    """

    program_id: str
    seq: int
    arrival_s: float
    explicit: bool = True
    class_key: str = ""
    attained_service: float = 0.0
    critical_path: float = 0.0
    execution_s: float = 0.0
    wait_s: float = 0.0
    num_calls: int = 0
    num_finished_calls: int = 0
    oracle_remaining: float | None = None
    ending: bool = False
    last_arrival_s: float = 0.0
    last_completion_s: float | None = None
    life_bin: int = 0
    engine_ids: set[int] = field(default_factory=set)
    calls: dict[str, Call] = field(default_factory=dict)
    finished_paths: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def path_after(self, parent_call_ids: tuple[str, ...]) -> float:
        """Critical path that a new call inherits, in service units.

        With parents named, ATLAS eq. 2: the longest path through one of them. Without,
        or when none is known any more, the longest path of the program (algorithm 1).
        """
        known = [
            self.finished_paths[parent]
            for parent in parent_call_ids
            if parent in self.finished_paths
        ]
        return max(known) if known else self.critical_path


class ProcessTable:
    """Bounded table of live programs; every event costs O(1) amortised.

    Args:
        ttl_s: Idle time after which a program counts as ended, in seconds.
        max_programs: Idle programs kept; the least recently used leave first.
        on_end: Called with each program that leaves and the reason.
        engine_id: Identifier of the engine this table serves.
    """

    def __init__(
        self,
        ttl_s: float,
        max_programs: int,
        on_end: EndListener | None = None,
        engine_id: int = 0,
    ) -> None:
        """See the class docstring."""
        self.ttl_s = ttl_s
        self.max_programs = max_programs
        self.engine_id = engine_id
        self.programs: dict[str, Program] = {}
        self.calls: dict[str, Call] = {}
        # Programs without an active call, oldest completion first.
        self._idle: OrderedDict[str, Program] = OrderedDict()
        self._on_end = on_end
        self._next_program = 0
        self._next_call = 0

    def __len__(self) -> int:
        """Number of live programs."""
        return len(self.programs)

    def next_seq(self) -> int:
        """A fresh, ever-growing sequence number for queue order."""
        self._next_call += 1
        return self._next_call

    def arrive(
        self,
        call_id: str,
        program_id: str,
        now_s: float,
        *,
        explicit: bool = True,
        class_key: str = "",
        tier: int = 0,
        thread_id: str | None = None,
        ends_program: bool = False,
        parent_call_ids: tuple[str, ...] = (),
        oracle_remaining: float | None = None,
        payload: Any = None,
    ) -> Call:
        """Add a call, creating its program when this is the first one.

        Raises:
            ValueError: A call with this id is already active.
        """
        if call_id in self.calls:
            raise ValueError(
                f"call {call_id!r} is already active; ids of active calls are unique"
            )
        self.expire(now_s)
        program = self.programs.get(program_id)
        if program is None:
            program = Program(
                program_id, self._next_program, now_s, explicit, class_key
            )
            self._next_program += 1
            self.programs[program_id] = program
        self._idle.pop(program_id, None)
        call = Call(call_id, program, self.next_seq(), now_s, tier, thread_id)
        call.ends_program = ends_program
        call.inherited_service = program.path_after(parent_call_ids)
        call.queued_seq = call.seq
        call.waiting_since_s = now_s
        call.payload = payload
        program.calls[call_id] = call
        program.num_calls += 1
        program.last_arrival_s = now_s
        program.engine_ids.add(self.engine_id)
        if oracle_remaining is not None:
            program.oracle_remaining = oracle_remaining
        self.calls[call_id] = call
        return call

    def charge(self, call: Call, service: float, execution_s: float) -> None:
        """Book service units and engine seconds on a call and its program."""
        call.service += service
        call.execution_s += execution_s
        program = call.program
        program.attained_service += service
        if program.oracle_remaining is not None:
            program.oracle_remaining = max(0.0, program.oracle_remaining - service)

    def finish(self, call: Call, now_s: float, aborted: bool = False) -> None:
        """Fold a finished, failed or aborted call into its program.

        Aborted calls count with what they used: the service was spent, and a client
        that retries must not become cheaper by aborting.
        """
        if self.calls.pop(call.call_id, None) is None:
            return
        program = call.program
        del program.calls[call.call_id]
        program.wait_s += call.total_wait_s(now_s)
        program.execution_s += call.execution_s
        path = call.inherited_service + call.service
        program.critical_path = max(program.critical_path, path)
        if program.explicit:
            # The answers of one request (n > 1) count as the longest of them.
            answer_id = client_request_id(call.call_id)
            longest = max(path, program.finished_paths.get(answer_id, 0.0))
            program.finished_paths[answer_id] = longest
            if len(program.finished_paths) > _MAX_FINISHED_PATHS:
                program.finished_paths.popitem(last=False)
        program.num_finished_calls += 1
        program.last_completion_s = now_s
        program.ending |= call.ends_program and not aborted
        if program.calls:
            return
        if not program.explicit:
            self._leave(program, "abort" if aborted else "call")
        elif program.ending:
            self._leave(program, "end")
        else:
            self._idle[program.program_id] = program
            while len(self._idle) > self.max_programs:
                self._leave(self._idle.popitem(last=False)[1], "lru")

    def end_program(self, program_id: str) -> bool:
        """End a program now, or as soon as its active calls are done.

        Returns:
            Whether the program was known.
        """
        program = self.programs.get(program_id)
        if program is None:
            return False
        program.ending = True
        if not program.calls:
            self._idle.pop(program_id, None)
            self._leave(program, "end")
        return True

    def expire(self, now_s: float) -> int:
        """Drop programs idle for longer than the TTL; returns how many."""
        dropped = 0
        while self._idle:
            program = next(iter(self._idle.values()))
            idle_since_s = program.last_completion_s
            if idle_since_s is None or now_s - idle_since_s < self.ttl_s:
                break
            self._idle.popitem(last=False)
            self._leave(program, "ttl")
            dropped += 1
        return dropped

    def _leave(self, program: Program, reason: str) -> None:
        del self.programs[program.program_id]
        if self._on_end is not None:
            self._on_end(program, reason)
