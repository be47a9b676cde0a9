# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What ``/metrics`` says: that experts come in pages, how much, and who was busy.

Workers count, the API server shows; ``metrics_textfile`` and ``metrics_collector``
carry the values across.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter

from .expert_memory import ExpertMemory
from .metrics_process import server_process_id
from .metrics_textfile import TextfileExporter
from .operations import Lane
from .simulation import Timeline

_LABELS = ("model_name",)
# What each lane is on a machine whose device is its CPU.
_NAMES = {Lane.DEVICE: "compute", Lane.HOST: "attention", Lane.UP: "pages"}


class StepMetrics:
    """Publishes what the steps of a worker did.

    Args:
        memory: Of the experts.
        model_name: The name vLLM serves the model under.
    """

    def __init__(self, memory: ExpertMemory, model_name: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._memory = memory
        self._model_name = model_name
        self._steps = self._counter("steps", "Steps that were run in pages.")
        self._seconds = self._counter("step_seconds", "Time of these steps.")
        self._moved = self._counter("moved_bytes", "Bytes of experts brought in.")
        self._late = self._counter(
            "late_pages", "Pages that a layer waited for because nobody had asked."
        )
        self._busy = Counter(
            "vllm:moe_offload_busy_seconds",
            "Time in which each resource was busy in these steps.",
            (*_LABELS, "resource"),
            registry=self.registry,
        )
        self._exporter = TextfileExporter(self.registry, server_pid=server_process_id())
        self._before = memory.moved_bytes, memory.late_pages

    def publish(self, timeline: Timeline) -> None:
        """Add a step.

        Args:
            timeline: When its operations ran.
        """
        self._steps.inc()
        self._seconds.inc(timeline.makespan_s)
        moved, late = self._memory.moved_bytes, self._memory.late_pages
        self._moved.inc(moved - self._before[0])
        self._late.inc(late - self._before[1])
        self._before = moved, late
        for lane, busy_s in timeline.busy_s().items():
            name = _NAMES.get(lane, lane.value)
            self._busy.labels(self._model_name, name).inc(busy_s)
        self._exporter.maybe_write(time.monotonic())

    def close(self) -> None:
        """Write no more, and take away what was written."""
        self._exporter.close()

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(
            f"vllm:moe_offload_{name}", text, _LABELS, registry=self.registry
        )
        found: Counter = counter.labels(self._model_name)
        return found
