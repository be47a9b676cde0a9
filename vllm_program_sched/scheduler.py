# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``ProgramScheduler``: vLLM's scheduler with the order of ``core.ProgramCore``.

What is left to vLLM is everything but order: admission checks, KV allocation, chunked
prefill, batching. The adapter replaces the two waiting queues, keeps ``running`` sorted
so that vLLM's own KV preemption takes the worst program, and preempts before a step
when a better call waits and slots or KV blocks are short. Hooks run inside a guard: a
fault of the plugin restores vLLM's own queues and serving goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_program_sched.activation import check_vllm_version, read_options
from vllm_program_sched.compat import (
    AsyncScheduler,
    FCFSRequestQueue,
    PauseState,
    PriorityRequestQueue,
    Request,
    Scheduler,
    SchedulerOutput,
    SchedulingPolicy,
    init_logger,
    refuse_unsupported,
)
from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.observer import Observer
from vllm_program_sched.process_table import Call
from vllm_program_sched.program_queue import ProgramRequestQueue
from vllm_program_sched.request_identity import arrive
from vllm_program_sched.room import RoomMaker

# The mixin stands before one of vLLM's schedulers; type checkers see it as one.
if TYPE_CHECKING:
    _SchedulerBase = Scheduler
else:
    _SchedulerBase = object

logger = init_logger("vllm.plugins.program_sched")

# Attained service is booked for a slice of the running calls per step, so each is
# booked every sixteenth step and a step's cost stays flat.
_SETTLE_EVERY = 16


class ProgramSchedulingMixin(_SchedulerBase):
    """The adapter, over either of vLLM's scheduler classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build vLLM's scheduler, then put the program core in charge of order.

        Raises:
            RuntimeError: vLLM is too old.
            ValueError: An option is wrong, or the model is not supported.
        """
        vllm_config: Any = kwargs.get("vllm_config", args[0] if args else None)
        check_vllm_version("program_sched")
        options = read_options(
            vllm_config.additional_config, "program_sched", ProgramSchedConfig.names()
        )
        config = ProgramSchedConfig.from_options(options)
        refuse_unsupported(vllm_config)
        super().__init__(*args, **kwargs)
        engine_index = vllm_config.parallel_config.data_parallel_index
        self.core = ProgramCore(config, self._program_ended, engine_index)
        model = vllm_config.model_config
        name = model.served_model_name
        self.observer = Observer(
            self.core,
            (name[0] if isinstance(name, list) else name) or model.model,
            engine_index,
            export=self.log_stats,
        )
        self.room = RoomMaker(self, self.core, self.observer)
        self._guarded = True
        self._user_policy = self.policy
        # User priority is the outer tier of every rank. With FCFS as the inner
        # policy vLLM preempts the tail of ``running``, which is kept sorted.
        self.policy = SchedulingPolicy.FCFS
        self._ranked_waiting = ProgramRequestQueue(self.core, self._call_of)
        self.waiting = self._ranked_waiting
        self.kv_holding_waiting = ProgramRequestQueue(self.core, self._call_of)
        self._steps = 0
        self._ranks_changed = False
        self._step_starts: deque[tuple[float, int, int]] = deque()
        self._last_output_s = 0.0
        logger.info("program_sched: %s, %s", type(self).__name__, config.as_dict())

    # Seams of vLLM's scheduler

    def add_request(self, request: Request) -> None:
        """Rank a new request by its program before vLLM queues it."""
        if self._guarded and request.request_id not in self.requests:
            self._guard(self._arrive, request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Prepare the order, let vLLM schedule, then book what it did."""
        if not self._guarded:
            return super().schedule(*args, **kwargs)
        now_s = time.monotonic()
        self._guard(self._before_step, now_s)
        output = super().schedule(*args, **kwargs)
        if self._guarded:
            self._guard(self._after_schedule, output, now_s)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any
    ) -> Any:
        """Measure the step, then let vLLM process its output."""
        if self._guarded and scheduler_output.total_num_scheduled_tokens > 0:
            self._guard(self._measure_step)
        return super().update_from_output(scheduler_output, *args, **kwargs)

    def shutdown(self) -> None:
        """Stop publishing metrics, then shut vLLM's scheduler down."""
        self.observer.close()
        super().shutdown()

    def _preempt_request(
        self, request: Request, timestamp: float, *args: Any, **kwargs: Any
    ) -> None:
        """Book a preemption, whoever decided it, before the request is queued."""
        if self._guarded:
            self._guard(self._preempted, request, timestamp)
        super()._preempt_request(request, timestamp, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Fold a request that ended, in whatever way, into its program."""
        if self._guarded:
            self._guard(self._finished, request)
        return super()._free_request(request, *args, **kwargs)

    def __call__(self, command: str, argument: dict[str, Any] | None = None) -> Any:
        """Answer the admin route.

        vLLM's utility channel calls an attribute of the engine core by name; the
        scheduler is one, so being callable is all it takes to be reached.

        Args:
            command: ``snapshot`` or ``end``.
            argument: Its parameters.

        Raises:
            ValueError: The command is not known.
        """
        argument = argument or {}
        if command == "snapshot":
            return self.observer.snapshot(
                int(argument.get("limit", 100)),
                str(argument.get("sort", "wait")),
                argument.get("tenant"),
            )
        if command == "end":
            program_id = str(argument["program_id"])
            return {"ended": self.core.end_program(program_id, time.monotonic())}
        raise ValueError(f"program_sched: command {command!r} is not known")

    # What happens in the hooks

    def _call_of(self, request: Request) -> Call:
        call = self.core.table.calls.get(request.request_id)
        if call is None:
            call = self._arrive(request)
        return call

    def _arrive(self, request: Request) -> Call:
        return arrive(
            self.core, request, time.monotonic(), self.observer.identity_error
        )

    def _before_step(self, now_s: float) -> None:
        self._steps += 1
        self.core.table.expire(now_s)
        if self.waiting or self.kv_holding_waiting:
            self.core.promote_starving(now_s)
        calls = self.core.table.calls
        for request in self.running[self._steps % _SETTLE_EVERY :: _SETTLE_EVERY]:
            self._ranks_changed |= self.core.settle(calls[request.request_id])
        if self.pause_state == PauseState.UNPAUSED:
            self.room.make_room(now_s)
        if self._ranks_changed and self.room.kv_is_tight():
            self.running.sort(key=lambda r: calls[r.request_id].rank)
            self._ranks_changed = False

    def _after_schedule(self, output: SchedulerOutput, now_s: float) -> None:
        self._ranked_waiting.release()
        calls = self.core.table.calls
        core = self.core
        for new in output.scheduled_new_reqs:
            core.start(calls[new.req_id], now_s)
        for req_id in output.scheduled_cached_reqs.resumed_req_ids:
            core.start(calls[req_id], now_s)
        if output.scheduled_new_reqs or output.scheduled_cached_reqs.resumed_req_ids:
            self._ranks_changed = True
        requests = self.requests
        for req_id, tokens in output.num_scheduled_tokens.items():
            if tokens == 1:
                calls[req_id].pending_decode += 1
                continue
            request = requests[req_id]
            again = core.computed(
                calls[req_id],
                tokens,
                request.num_computed_tokens,
                generates=not request.is_prefill_chunk,
            )
            if again:
                self.observer.recomputed(again)
        total = output.total_num_scheduled_tokens
        if total > 0:
            size = len(output.num_scheduled_tokens)
            self._step_starts.append((now_s, size, total))
        self.room.note_admission(output)
        self.observer.step(now_s, self.running)

    def _measure_step(self) -> None:
        started_s, num_calls, num_tokens = self._step_starts.popleft()
        now_s = time.monotonic()
        # Steps overlap under async scheduling: one begins when the one before ended.
        step_s = now_s - max(started_s, self._last_output_s)
        self._last_output_s = now_s
        self.core.meter.step(step_s, num_calls, num_tokens)

    def _preempted(self, request: Request, timestamp: float) -> None:
        call = self.core.table.calls[request.request_id]
        self.core.preempt(call, timestamp, request.num_computed_tokens)
        self.observer.preempted(self.room.reason)

    def _finished(self, request: Request) -> None:
        call = self.core.table.calls.get(request.request_id)
        if call is None:
            return
        now_s = time.monotonic()
        aborted = request.get_finished_reason() in self.room.abort_reasons
        self.core.finish(call, now_s, aborted)
        self.observer.call_ended(call, now_s)

    def _program_ended(self, program: Any, reason: str) -> None:
        self.observer.program_ended(program, reason)

    # Failing open

    def _guard(self, hook: Callable[..., Any], *args: Any) -> None:
        try:
            hook(*args)
        except Exception:
            self._fail_open(hook.__name__)

    def _fail_open(self, hook: str) -> None:
        """Go back to vLLM's own queues and order; every request is kept."""
        logger.exception(
            "program_sched: fault in %s; scheduling continues in vLLM's own order. "
            "Please report this with the traceback.",
            hook,
        )
        self._guarded = False
        self.policy = self._user_policy
        plain = (
            PriorityRequestQueue
            if self.policy == SchedulingPolicy.PRIORITY
            else FCFSRequestQueue
        )
        for name in ("waiting", "kv_holding_waiting"):
            queue = plain()
            for request in sorted(getattr(self, name), key=lambda r: r.arrival_time):
                queue.add_request(request)
            setattr(self, name, queue)
        self.observer.fault()


class SyncProgramScheduler(ProgramSchedulingMixin, Scheduler):
    """The adapter over vLLM's synchronous scheduler (CPU, or async switched off)."""


class ProgramScheduler(ProgramSchedulingMixin, AsyncScheduler):
    """The class to name in ``--scheduler-cls``.

    Over ``AsyncScheduler`` where vLLM schedules asynchronously (GPU), and over
    ``Scheduler`` where it does not (CPU): the name is the same.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Choose the base that fits the configuration."""
        vllm_config = kwargs.get("vllm_config", args[0] if args else None)
        if vllm_config is None or vllm_config.scheduler_config.async_scheduling:
            return super().__new__(cls)
        return SyncProgramScheduler(*args, **kwargs)
