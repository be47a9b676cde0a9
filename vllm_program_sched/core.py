# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The scheduling core: process table, policy, starvation guard and preemption as one.

Plain Python, deterministic, with the clock passed in: the same core drives the vLLM
adapter (``scheduler``) and the discrete-event simulator of the benchmarks. A call lives
through ``arrive`` -> ``start`` -> ``charge``* -> (``preempt`` -> ``start`` ...) ->
``finish``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vllm_program_sched import preemption
from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.life_table import ClassTables
from vllm_program_sched.policy import QuantumPolicy, life_bin, make_policy
from vllm_program_sched.process_table import Call, ProcessTable, Program
from vllm_program_sched.ready_queue import ReadyQueue
from vllm_program_sched.starvation import StarvationGuard
from vllm_program_sched.step_meter import StepMeter

_TIME_UNITS_PER_S = 1000.0
# Up to this many active calls, what happens to one is followed by its siblings at once;
# a program with more threads pays only when its service crosses a bin.
_EAGER_SIBLINGS = 64


class ProgramCore:
    """Ranks calls by what is known about their programs.

    Args:
        config: Options.
        on_program_end: Called with each ended program and the reason, after learning.
        engine_id: Identifier of the engine.
    """

    def __init__(
        self,
        config: ProgramSchedConfig,
        on_program_end: Callable[[Program, str], None] | None = None,
        engine_id: int = 0,
    ) -> None:
        """See the class docstring."""
        self.config = config
        self.tables = ClassTables(
            config.prior_strength, size_exponent=config.size_exponent
        )
        self.policy = make_policy(config, self.tables)
        self.table = ProcessTable(
            config.program_ttl_s, config.max_programs, self._program_ended, engine_id
        )
        self.guard = StarvationGuard(config.starvation_ratio, config.starvation_floor_s)
        self.meter = StepMeter()
        self.queues: list[ReadyQueue] = []
        self.num_promotions = 0
        self._on_program_end = on_program_end
        self._now_s = 0.0

    def new_queue(self) -> ReadyQueue:
        """A waiting queue that follows rank changes."""
        queue = ReadyQueue()
        self.queues.append(queue)
        return queue

    # Life of a call

    def arrive(
        self, call_id: str, program_id: str, now_s: float, **details: Any
    ) -> Call:
        """Add a call (see :meth:`ProcessTable.arrive`) and rank it."""
        self._now_s = now_s
        call = self.table.arrive(call_id, program_id, now_s, **details)
        call.promoted = self.guard.is_starving(call, now_s)
        self.num_promotions += call.promoted
        self.guard.watch(call, now_s)
        self.rank(call)
        program = call.program
        few = len(program.calls) <= _EAGER_SIBLINGS
        if program.oracle_remaining is not None and few:
            self._refresh_siblings(call)
        return call

    def start(self, call: Call, now_s: float) -> None:
        """The call got a slot."""
        call.wait_s = call.total_wait_s(now_s)
        call.waiting_since_s = None
        call.run_tokens = 0
        call.share_mark_s = self.meter.share_s
        call.elapsed_mark_s = self.meter.elapsed_s

    def computed(
        self, call: Call, tokens: int, position: int, *, generates: bool = True
    ) -> int:
        """Note tokens that a running call computes in the current step.

        Cheap on purpose; :meth:`settle` does the booking. One token is a decode step;
        several are a piece of prompt whose last token also yields one output token.
        Tokens below the call's high-water mark were computed before a preemption and
        are not charged again.

        Args:
            call: The running call.
            tokens: Tokens computed, cached ones excluded.
            position: Tokens of the call that are computed after this step.
            generates: False for a chunk that ends inside the prompt.

        Returns:
            How many of the tokens are recomputation.
        """
        if tokens == 1:
            call.pending_decode += 1
            return 0
        new = max(0, position - max(call.high_water_tokens, position - tokens))
        call.pending_prefill += max(0, new - generates)
        call.pending_decode += generates
        return tokens - new

    def settle(self, call: Call) -> bool:
        """Charge what a running call used since last time; True if its rank changed."""
        meter = self.meter
        service = self.units(
            call.pending_prefill,
            call.pending_decode,
            meter.share_s - call.share_mark_s,
        )
        execution_s = meter.elapsed_s - call.elapsed_mark_s
        call.run_tokens += call.pending_prefill + call.pending_decode
        call.pending_prefill = call.pending_decode = 0
        call.share_mark_s, call.elapsed_mark_s = meter.share_s, meter.elapsed_s
        return self.charge(call, service, execution_s)

    def charge(self, call: Call, service: float, execution_s: float) -> bool:
        """Book attained service on a call; returns whether its rank changed."""
        program = call.program
        self.table.charge(call, service, execution_s)
        moved = self._advance(program)
        if isinstance(self.policy, QuantumPolicy) and self.policy.spend(call, service):
            call.queued_seq = self.table.next_seq()
        if not self.policy.follows_service or (self.policy.by_bin and not moved):
            return False
        # Waiting siblings share the program's service. Following it bin by bin (at most
        # 26 % late) keeps a program with very many threads cheap.
        if moved and len(program.calls) > 1:
            self._refresh_siblings(call)
        return self.rank(call)

    def preempt(self, call: Call, now_s: float, computed_tokens: int) -> None:
        """The call lost its slot and waits again.

        Args:
            call: The running call.
            now_s: Current time.
            computed_tokens: Tokens it had computed; they may be computed again.
        """
        self.settle(call)
        call.waiting_since_s = now_s
        call.preemptions += 1
        call.high_water_tokens = max(call.high_water_tokens, computed_tokens)
        call.promoted = call.promoted and self.guard.is_starving(call, now_s)
        self.guard.watch(call, now_s)
        self.rank(call)

    def finish(self, call: Call, now_s: float, aborted: bool = False) -> None:
        """The call ended in whatever way; an aborted one counts with what it used."""
        self._now_s = now_s
        if call.waiting_since_s is None:
            self.settle(call)
            self.meter.released()
        for queue in self.queues:
            queue.remove(call.call_id)
        self.table.finish(call, now_s, aborted)
        siblings = call.program.calls
        if len(siblings) <= _EAGER_SIBLINGS:
            # What the call waited counts for them from now on.
            for sibling in siblings.values():
                if sibling.waiting_since_s is not None and not sibling.promoted:
                    self.guard.watch(sibling, now_s)

    def end_program(self, program_id: str, now_s: float) -> bool:
        """End a program explicitly; returns whether it was known."""
        self._now_s = now_s
        return self.table.end_program(program_id)

    # Order

    def rank(self, call: Call) -> bool:
        """Recompute ``call.rank``; returns whether it changed.

        The rank is ``(tier, level, order, seq)``: the user's priority, then level 0
        for promoted calls or the policy's level, then the order inside the level. The
        arrival number makes the order total.
        """
        if call.promoted:
            rank = (call.tier, 0, float(call.program.seq), call.seq)
        else:
            level, order = self.policy.place(call)
            if level != call.rank[1] and call.rank[1] != 0:
                # A call that changes queue goes to the tail of the new one.
                call.queued_seq = self.table.next_seq()
                level, order = self.policy.place(call)
            rank = (call.tier, level, order, call.seq)
        if rank == call.rank:
            return False
        call.rank = rank
        for queue in self.queues:
            queue.refresh(call)
        return True

    def promote_starving(self, now_s: float) -> int:
        """Promote waiting calls that starve; returns how many."""
        starving = self.guard.pop_due(now_s)
        for call in starving:
            call.promoted = True
            self.rank(call)
        self.num_promotions += len(starving)
        return len(starving)

    def choose_victim(
        self,
        candidate: Call,
        running: Iterable[Call],
        recompute_tokens: Callable[[Call], int],
    ) -> Call | None:
        """Running call to preempt for ``candidate``, or None.

        Gain is weighed against recomputation (see ``preemption``); user priority and
        starving candidates are served whatever it costs.

        Args:
            candidate: The best waiting call.
            running: Calls that hold a slot and may be preempted.
            recompute_tokens: Tokens lost if a call is preempted now.
        """
        if not self.config.preemption:
            return None
        found = preemption.choose(candidate, running, recompute_tokens, self.config)
        if found is None:
            return None
        victim, lost = found
        entitled = victim.rank[0] > candidate.rank[0] or candidate.promoted
        worth = entitled or preemption.pays(
            self.policy.index(candidate),
            self.policy.index(victim),
            lost,
            self.meter.release_interval_s,
            self.meter.prefill_s_per_token,
        )
        return victim if worth else None

    # Accounting helpers

    def units(self, prefill_tokens: int, decode_tokens: int, share_s: float) -> float:
        """Service units of some work.

        Args:
            prefill_tokens: Prompt tokens computed, cached ones excluded.
            decode_tokens: Tokens generated.
            share_s: The call's share of step time.
        """
        if self.config.service_unit == "time":
            return share_s * _TIME_UNITS_PER_S
        return (
            self.config.prefill_weight * prefill_tokens
            + self.config.decode_weight * decode_tokens
        )

    def _advance(self, program: Program) -> bool:
        new_bin = life_bin(program)
        if new_bin <= program.life_bin:
            return False
        self.tables.advance(program.class_key, program.life_bin, new_bin)
        program.life_bin = new_bin
        return True

    def _refresh_siblings(self, call: Call) -> None:
        # Waiting siblings share the program's service; their place follows it.
        for sibling in call.program.calls.values():
            if sibling is not call and sibling.waiting_since_s is not None:
                self.rank(sibling)

    def _program_ended(self, program: Program, reason: str) -> None:
        if reason != "abort":
            self.tables.finish(program.class_key, program.life_bin)
            self.guard.program_ended(program)
            if self.policy.program_ended(program):
                self._rerank_waiting()
        if self._on_program_end is not None:
            self._on_program_end(program, reason)

    def _rerank_waiting(self) -> None:
        for queue in self.queues:
            # Best first, so that calls that change queue together keep their order.
            for call in queue.ordered():
                self.rank(call)
            queue.rebuild()
