# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Discrete-event simulator: the real scheduling core over a model of the engine.

It replays a workload in milliseconds, to compare policies and options before an engine
is spent on them. Step time is linear in decoding calls and prefill tokens; the prefix
cache holds whole blocks and is never short of space. Everything that decides about
order is `vllm_program_sched.core`, as in the vLLM adapter.
"""

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.program_sched.workload import SYSTEM_TOKENS, CallSpec, ProgramSpec
from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Call


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A serving engine as the scheduler sees it.

    Attributes:
        slots: Calls that run at once (`max_num_seqs`).
        token_budget: Tokens per step (`max_num_batched_tokens`).
        block_tokens: Granularity of the prefix cache.
        base_s: Time of an empty step.
        decode_s: Additional time per decoding call.
        prefill_s: Additional time per prefill token.
    """

    slots: int = 8
    token_budget: int = 2048
    block_tokens: int = 32
    base_s: float = 0.0195
    decode_s: float = 0.0010
    prefill_s: float = 0.0008


@dataclass(slots=True)
class _Run:
    """One call inside the engine: what is still to compute."""

    spec: CallSpec
    program: int
    prompt_left: int
    decode_left: int
    computed: int


@dataclass(slots=True)
class SimulationResult:
    """Outcome per program and totals."""

    latencies_s: dict[str, float] = field(default_factory=dict)
    token_latencies_s: dict[str, float] = field(default_factory=dict)
    makespan_s: float = 0.0
    output_tokens: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    promotions: int = 0
    waiting_units: float = 0.0

    def percentile(self, q: float) -> float:
        """Nearest-rank percentile of program latency, in seconds."""
        ordered = sorted(self.latencies_s.values())
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def mean_s(self) -> float:
        """Mean program latency, in seconds."""
        return statistics.fmean(self.latencies_s.values())

    @property
    def mean_token_latency_s(self) -> float:
        """Mean over programs of response time per generated token, in seconds."""
        return statistics.fmean(self.token_latencies_s.values())


class Simulator:
    """Runs one workload under one configuration.

    Args:
        programs: The workload.
        config: Options of the scheduler.
        engine: The engine model.
        settle_every: Steps between bookings of attained service, as in the adapter.
    """

    def __init__(
        self,
        programs: Sequence[ProgramSpec],
        config: ProgramSchedConfig,
        engine: EngineModel | None = None,
        settle_every: int = 16,
    ) -> None:
        """See the class docstring."""
        self.programs = programs
        self.engine = engine or EngineModel()
        self.core = ProgramCore(config)
        self.queue = self.core.new_queue()
        self.settle_every = settle_every
        self.result = SimulationResult()
        self._now_s = 0.0
        self._running: list[Call] = []
        self._done: list[set[str]] = [set() for _ in programs]
        self._sent: list[set[str]] = [set() for _ in programs]
        self._warm: set[str] = set()
        self._events: list[tuple[float, int, int, CallSpec]] = []
        self._event_seq = 0
        self._steps = 0

    def run(self) -> SimulationResult:
        """Replay everything and return the outcome."""
        for index, program in enumerate(self.programs):
            self._send_ready(index, program.arrival_s)
        while self._events or self._running or len(self.queue):
            if not self._running and not len(self.queue):
                self._now_s = max(self._now_s, self._events[0][0])
            self._admit_events()
            self._step()
        self.result.makespan_s = self._now_s - self.programs[0].arrival_s
        self.result.promotions = self.core.num_promotions
        return self.result

    def _send_ready(self, index: int, now_s: float) -> None:
        for call in self.programs[index].calls:
            if call.call_id in self._sent[index]:
                continue
            if all(p in self._done[index] for p in call.parents):
                self._sent[index].add(call.call_id)
                self._event_seq += 1
                at_s = now_s + call.think_time_s
                heapq.heappush(self._events, (at_s, self._event_seq, index, call))

    def _admit_events(self) -> None:
        while self._events and self._events[0][0] <= self._now_s:
            at_s, _, index, spec = heapq.heappop(self._events)
            program = self.programs[index]
            cached = self._cached_tokens(program, spec)
            run = _Run(spec, index, spec.prompt_tokens - cached, spec.output_tokens, 0)
            run.computed = cached
            last = len(self._sent[index]) == len(program.calls)
            call = self.core.arrive(
                f"{program.program_id}/{spec.call_id}",
                program.program_id,
                at_s,
                class_key=program.kind,
                ends_program=last,
                oracle_remaining=self._remaining(index),
                payload=run,
            )
            self.queue.push(call)

    def _cached_tokens(self, program: ProgramSpec, spec: CallSpec) -> int:
        block = self.engine.block_tokens
        if spec.context is None:
            warm = program.kind in self._warm
            self._warm.add(program.kind)
            return SYSTEM_TOKENS[program.kind] // block * block if warm else 0
        before = spec.prompt_tokens - spec.new_prompt_tokens
        return before // block * block

    def _remaining(self, index: int) -> float | None:
        if self.core.config.policy != "srpt":
            return None
        program = self.programs[index]
        return sum(
            self.core.units(c.new_prompt_tokens, c.output_tokens, 0.0)
            for c in program.calls
            if c.call_id not in self._done[index]
        )

    def _step(self) -> None:
        core = self.core
        core.promote_starving(self._now_s)
        if self._steps % self.settle_every == 0:
            for call in self._running:
                self.core.settle(call)
        full = len(self._running) >= self.engine.slots
        if full and len(self.queue) and core.policy.preemptive:
            self._maybe_preempt()
        while len(self.queue) and len(self._running) < self.engine.slots:
            self._start(self.queue.pop())
        self._running.sort(key=lambda call: call.rank)
        budget = self.engine.token_budget
        decodes = prefill_tokens = 0
        finished: list[Call] = []
        for call in self._running:
            run: _Run = call.payload
            if budget <= 0:
                break
            if run.prompt_left > 0:
                chunk = min(run.prompt_left, budget)
                run.prompt_left -= chunk
                run.computed += chunk
                budget -= chunk
                prefill_tokens += chunk
                self.result.recomputed_tokens += core.computed(
                    call, chunk, run.computed, generates=run.prompt_left == 0
                )
                if run.prompt_left > 0:
                    continue
            else:
                decodes += 1
                budget -= 1
                run.computed += 1
                core.computed(call, 1, run.computed)
            run.decode_left -= 1
            if run.decode_left == 0:
                finished.append(call)
        engine = self.engine
        step_s = (
            engine.base_s
            + engine.decode_s * decodes
            + engine.prefill_s * prefill_tokens
        )
        self._now_s += step_s
        self._steps += 1
        core.meter.step(step_s, len(self._running), prefill_tokens + decodes)
        for call in finished:
            self._finish(call)

    def _start(self, call: Call) -> None:
        self.core.start(call, self._now_s)
        self._running.append(call)

    def _maybe_preempt(self) -> None:
        block = self.engine.block_tokens

        def lost(call: Call) -> int:
            return int(call.payload.computed % block) + 1

        for _ in range(self.core.config.preempt_max_per_step):
            victim = self.core.choose_victim(self.queue.peek(), self._running, lost)
            if victim is None:
                return
            run: _Run = victim.payload
            self._running.remove(victim)
            self.core.preempt(victim, self._now_s, run.computed)
            # A decoding victim also computes its last sampled token again; one in
            # the middle of its prompt still has the rest of it to go.
            redo = run.computed % block
            run.prompt_left = (run.prompt_left or 1) + redo
            run.computed -= redo
            self.queue.push(victim)
            self.result.preemptions += 1
            self._start(self.queue.pop())

    def _finish(self, call: Call) -> None:
        run: _Run = call.payload
        self._running.remove(call)
        self.core.finish(call, self._now_s)
        index, program = run.program, self.programs[run.program]
        self._done[index].add(run.spec.call_id)
        self.result.output_tokens += run.spec.output_tokens
        if len(self._done[index]) == len(program.calls):
            latency_s = self._now_s - program.arrival_s
            self.result.latencies_s[program.program_id] = latency_s
            self.result.token_latencies_s[program.program_id] = (
                latency_s / program.output_tokens
            )
        else:
            self._send_ready(index, self._now_s)


def simulate(
    programs: Sequence[ProgramSpec],
    config: ProgramSchedConfig,
    engine: EngineModel | None = None,
) -> SimulationResult:
    """Replay ``programs`` under ``config``; see :class:`Simulator`."""
    return Simulator(programs, config, engine).run()
