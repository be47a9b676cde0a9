# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Makes room before a step: preempts running calls for better waiting ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from vllm_program_sched.compat import FinishReason, Request, SchedulerOutput
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.metrics import PreemptionReason
from vllm_program_sched.observer import Observer
from vllm_program_sched.process_table import Call

_SCAN_LIMIT = 8
# Looking for a victim reads every running call; every fourth step is soon enough.
_LOOK_EVERY = 4


class RoomMaker:
    """Finds out what the best waiting call lacks, and preempts for it.

    A slot is short when as many requests run as vLLM may admit. KV blocks are short
    when vLLM had a slot free and still left the best call waiting: its own admission
    check, with every rule of the KV manager, is the judge.

    Args:
        scheduler: The adapter.
        core: The scheduling core.
        observer: Told about preemptions through the adapter.
    """

    abort_reasons = frozenset({FinishReason.ABORT})

    def __init__(self, scheduler: Any, core: ProgramCore, observer: Observer) -> None:
        """See the class docstring."""
        self.scheduler = scheduler
        self.core = core
        self.observer = observer
        # What a preemption is booked under; vLLM's own ones are for KV blocks.
        self.reason: PreemptionReason = "kv"
        self._kv_blocked_id: str | None = None
        self._steps = 0

    def kv_is_tight(self) -> bool:
        """Whether vLLM may soon preempt by itself, so that order matters to it."""
        scheduler = self.scheduler
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return bool(free < 2 * len(scheduler.running) + 8)

    def make_room(self, now_s: float) -> None:
        """Preempt up to ``preempt_max_per_step`` running calls."""
        config = self.core.config
        if config.preempt_every_step:
            self._preempt_for_test(now_s)
            return
        if not config.preemption or not self.core.policy.preemptive:
            return
        self._steps += 1
        if self._steps % _LOOK_EVERY:
            return
        for _ in range(config.preempt_max_per_step):
            candidate = self._best_candidate()
            if candidate is None:
                return
            short = self._what_is_short(candidate)
            if short is None:
                return
            victim = self.core.choose_victim(
                candidate,
                self._preemptible(self._lets_in(candidate.payload)),
                self._recompute_tokens(short),
            )
            if victim is None:
                return
            self._preempt(victim.payload, now_s, short)

    def note_admission(self, output: SchedulerOutput) -> None:
        """Remember whether KV blocks kept the best call from a free slot."""
        scheduler = self.scheduler
        self._kv_blocked_id = None
        if output.preempted_req_ids or not scheduler.waiting:
            return
        budget_left = (
            output.total_num_scheduled_tokens < scheduler.max_num_scheduled_tokens
        )
        best = scheduler.waiting.peek_request()
        if (
            budget_left
            and not self._slots_are_taken()
            and best not in scheduler.deferred_waiting
        ):
            self._kv_blocked_id = best.request_id

    def _slots_are_taken(self) -> bool:
        scheduler = self.scheduler
        occupied = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        return bool(occupied >= scheduler.max_num_active_reqs)

    def _what_is_short(self, candidate: Call) -> PreemptionReason | None:
        if self._slots_are_taken():
            return "slots"
        return "kv" if candidate.call_id == self._kv_blocked_id else None

    def _best_candidate(self) -> Call | None:
        """The best waiting call that vLLM would admit if there were room.

        Calls that vLLM deferred (grammar not compiled, KV transfer under way) or would
        defer for the LoRA limit whoever made room cannot use a slot; a few at the head
        are looked past.
        """
        scheduler = self.scheduler
        ready = (scheduler.kv_holding_waiting or scheduler.waiting).ready
        if not len(ready):
            return None
        passed: list[Call] = []
        found: Call | None = None
        while len(ready) and len(passed) < _SCAN_LIMIT:
            call = ready.peek()
            if call.payload not in scheduler.deferred_waiting and any(
                map(self._lets_in(call.payload), scheduler.running)
            ):
                found = call
                break
            passed.append(ready.pop())
        for call in passed:
            ready.push(call)
        return found

    def _lets_in(self, candidate: Request) -> Callable[[Request], bool]:
        """Whether a running request, once gone, leaves the candidate's adapter room.

        Any does, unless vLLM already runs as many LoRA adapters as it may load; then
        only the last request of an adapter takes the adapter with it.
        """
        limits, wanted = self.scheduler.lora_config, candidate.lora_request
        if limits is None or wanted is None:
            return lambda _: True
        users = Counter(
            request.lora_request.lora_int_id
            for request in self.scheduler.running
            if request.lora_request is not None
        )
        if wanted.lora_int_id in users or len(users) < limits.max_loras:
            return lambda _: True
        return lambda request: (
            request.lora_request is not None
            and users[request.lora_request.lora_int_id] == 1
        )

    def _preemptible(self, allowed: Callable[[Request], bool]) -> list[Call]:
        scheduler, calls = self.scheduler, self.core.table.calls
        return [
            calls[request.request_id]
            for request in scheduler.running
            if allowed(request) and scheduler._request_blocks_can_be_freed(request)
        ]

    def _recompute_tokens(self, short: PreemptionReason) -> Callable[[Call], int]:
        """How many tokens a victim would compute again.

        When slots are short, its full blocks stay in the prefix cache. When blocks are
        short they are what the candidate takes, unless a connector offloads them.
        """
        manager = self.scheduler.kv_cache_manager
        block = self.scheduler.block_size
        kept = manager.enable_caching and (
            short == "slots" or self.scheduler.connector is not None
        )

        def tokens(call: Call) -> int:
            computed = int(call.payload.num_computed_tokens)
            return computed % block + 1 if kept else computed

        return tokens

    def _preempt(
        self, request: Request, now_s: float, reason: PreemptionReason
    ) -> None:
        scheduler = self.scheduler
        self.reason = reason
        try:
            scheduler.running.remove(request)
            scheduler._preempt_request(
                request, now_s, drop_stale_output=scheduler.requires_kv_delivery
            )
            if scheduler.connector is not None:
                # A connector is told of the preemption when the step is complete, and
                # must not find a load of the same request in it.
                scheduler.waiting.hold(request)
            # Otherwise it may be resumed in this very step: the V1 runner must then be
            # sent its tokens again, as after a reset of the prefix cache.
            scheduler.prev_step_scheduled_req_ids.discard(request.request_id)
        finally:
            self.reason = "kv"

    def _preempt_for_test(self, now_s: float) -> None:
        calls = self.core.table.calls
        running = self.scheduler.running
        for request in running:
            self.core.settle(calls[request.request_id])
        started = [r for r in running if calls[r.request_id].run_tokens > 0]
        if started:
            victim = min(started, key=lambda r: calls[r.request_id].preemptions)
            self._preempt(victim, now_s, "forced")
