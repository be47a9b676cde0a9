# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What operators see of the scheduler: metrics, a log line, the live table."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from vllm_program_sched.compat import init_logger
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.identity import tenant_of_program
from vllm_program_sched.metrics import (
    CallState,
    PreemptionReason,
    ProgramMetrics,
    ServiceUnit,
)
from vllm_program_sched.metrics_textfile import TextfileExporter
from vllm_program_sched.process_table import Call, Program

logger = init_logger("vllm.plugins.program_sched")

_GAUGE_INTERVAL_S = 1.0
_SORT_KEYS = {
    "wait": "wait_s",
    "service": "service",
    "age": "age_s",
    "calls": "active_calls",
}


class Observer:
    """Counts events and publishes them; never decides anything.

    Args:
        core: The scheduling core that is observed.
        model_name: Name vLLM serves the model under.
        engine_index: Data-parallel rank of the engine.
        export: Whether to publish metrics (off with ``--disable-log-stats``).
    """

    def __init__(
        self, core: ProgramCore, model_name: str, engine_index: int, export: bool
    ) -> None:
        """See the class docstring."""
        self.core = core
        unit: ServiceUnit = "time" if core.config.service_unit == "time" else "tokens"
        self.metrics = ProgramMetrics(model_name, engine_index, unit)
        self.exporter = (
            TextfileExporter(self.metrics.registry, engine_index) if export else None
        )
        self.preemptions: Counter[str] = Counter()
        self.recomputed_tokens = 0
        self.programs_ended = 0
        self.faults = 0
        self._promotions_seen = 0
        self._next_gauges_s = 0.0
        self._next_log_s = time.monotonic() + core.config.log_interval_s
        self._interval: Counter[str] = Counter()
        self._interval_latency_s = 0.0
        self._levels_seen: set[tuple[int, CallState]] = set()

    def program_ended(self, program: Program, reason: str) -> None:
        """A program left the table."""
        end_s = program.last_completion_s
        latency_s = (end_s - program.arrival_s) if end_s is not None else 0.0
        self.metrics.program_finished(
            latency_s, program.wait_s, program.attained_service, reason
        )
        self.programs_ended += 1
        self._interval["programs"] += 1
        self._interval_latency_s += latency_s

    def call_ended(self, call: Call, now_s: float) -> None:
        """A call finished or was aborted."""
        self.metrics.call_finished(call.total_wait_s(now_s), call.service)
        self._interval["calls"] += 1
        if not self.core.table.calls:
            # No step follows on an idle engine, and the gauges must not stand still.
            self._set_gauges([])
            if self.exporter is not None:
                self.exporter.maybe_write(now_s)

    def preempted(self, reason: PreemptionReason) -> None:
        """A running call made room."""
        self.metrics.preempted(reason)
        self.preemptions[reason] += 1
        self._interval["preemptions"] += 1

    def recomputed(self, tokens: int) -> None:
        """Tokens were computed again after a preemption."""
        self.metrics.recomputed(tokens)
        self.recomputed_tokens += tokens

    def identity_error(self, reason: str) -> None:
        """A call named its program in a way that cannot be used."""
        self.metrics.identity_error()
        self._interval["identity errors"] += 1
        logger.debug("program_sched: call scheduled on its own: %s", reason)

    def fault(self) -> None:
        """The plugin failed; vLLM's own order is used from here on."""
        self.faults += 1
        self.metrics.fault()

    def step(self, now_s: float, running: list[Any]) -> None:
        """Publish what is due; cheap when nothing is."""
        promotions = self.core.num_promotions
        if promotions != self._promotions_seen:
            for _ in range(promotions - self._promotions_seen):
                self.metrics.promoted()
            self._interval["promotions"] += promotions - self._promotions_seen
            self._promotions_seen = promotions
        if now_s >= self._next_gauges_s:
            self._next_gauges_s = now_s + _GAUGE_INTERVAL_S
            self._set_gauges(running)
        if self.exporter is not None:
            self.exporter.maybe_write(now_s)
        interval_s = self.core.config.log_interval_s
        if interval_s > 0 and now_s >= self._next_log_s:
            self._next_log_s = now_s + interval_s
            self._log(len(running))

    def snapshot(self, limit: int, sort: str, tenant: str | None) -> dict[str, Any]:
        """The live table as plain values.

        Args:
            limit: Most programs to list.
            sort: ``wait``, ``service``, ``age`` or ``calls``; highest first.
            tenant: Only programs of this API key; None means those of nobody.
        """
        now_s = time.monotonic()
        rows = [
            _program_row(program, now_s)
            for program in self.core.table.programs.values()
            if tenant_of_program(program.program_id) == tenant
        ]
        field = _SORT_KEYS.get(sort, "wait_s")
        rows.sort(key=lambda row: -float(row[field] or 0.0))
        return {
            "programs": rows[:limit],
            "live_programs": len(self.core.table),
            "active_calls": len(self.core.table.calls),
            "waiting_calls": sum(len(q) for q in self.core.queues),
            "programs_ended": self.programs_ended,
            "preemptions": dict(self.preemptions),
            "recomputed_tokens": self.recomputed_tokens,
            "promotions": self.core.num_promotions,
            "faults": self.faults,
            "learned_classes": len(self.core.tables),
            "level_bounds": list(self.core.policy.bounds.bounds),
            "config": self.core.config.as_dict(),
        }

    def close(self) -> None:
        """Stop publishing."""
        if self.exporter is not None:
            self.exporter.close()

    def _set_gauges(self, running: list[Any]) -> None:
        self.metrics.set_live_programs(len(self.core.table))
        counts: Counter[tuple[int, CallState]] = Counter()
        for queue in self.core.queues:
            counts.update((call.rank[1], "waiting") for call in queue.calls())
        calls = self.core.table.calls
        for request in running:
            call = calls.get(request.request_id)
            if call is not None:
                counts[call.rank[1], "running"] += 1
        self._levels_seen.update(counts)
        for level, state in self._levels_seen:
            self.metrics.set_calls(level, state, counts[level, state])

    def _log(self, num_running: int) -> None:
        ended = self._interval["programs"]
        mean_s = self._interval_latency_s / ended if ended else 0.0
        logger.info(
            "program_sched: %d live programs, calls: %d running, %d waiting; last "
            "%.0f s: %d programs ended (mean latency %.2f s), %d calls, "
            "%d preemptions, %d promotions, %d identity errors",
            len(self.core.table),
            num_running,
            sum(len(q) for q in self.core.queues),
            self.core.config.log_interval_s,
            ended,
            mean_s,
            self._interval["calls"],
            self._interval["preemptions"],
            self._interval["promotions"],
            self._interval["identity errors"],
        )
        self._interval.clear()
        self._interval_latency_s = 0.0


def _program_row(program: Program, now_s: float) -> dict[str, Any]:
    calls = program.calls.values()
    return {
        "program_id": program.program_id,
        "class": program.class_key,
        "age_s": round(now_s - program.arrival_s, 3),
        "wait_s": round(program.wait_s + sum(c.total_wait_s(now_s) for c in calls), 3),
        "execution_s": round(
            program.execution_s + sum(c.execution_s for c in calls), 3
        ),
        "service": round(program.attained_service, 1),
        "critical_path": round(program.critical_path, 1),
        "active_calls": len(program.calls),
        "running_calls": sum(c.waiting_since_s is None for c in calls),
        "finished_calls": program.num_finished_calls,
        "threads": sorted({c.thread_id for c in calls if c.thread_id}),
        "level": min((c.rank[1] for c in calls), default=None),
        "idle_s": (
            None
            if program.calls or program.last_completion_s is None
            else round(now_s - program.last_completion_s, 3)
        ),
    }
