# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the scheduler counts.

The scheduler lives in the engine-core process, ``/metrics`` in the API server;
``metrics_textfile`` and ``metrics_collector`` carry the values across.
"""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .metrics_textfile import TextfileExporter

__all__ = ["MAX_LEVELS", "ProgramMetrics", "TextfileExporter"]

MAX_LEVELS = 16

ServiceUnit = Literal["tokens", "time"]
CallState = Literal["waiting", "running"]
PreemptionReason = Literal["slots", "kv", "forced"]

_LABELS = ("model_name", "engine")
_PROGRAM_SECONDS = (
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60),
    *(120, 300, 600, 1200, 3600, 7200),
)
_CALL_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600)
_TOKENS = tuple(float(2**exponent) for exponent in range(4, 21))


class ProgramMetrics:
    """Counters, gauges and histograms of one scheduler.

    Labels are the model, the engine's index and small closed sets; program ids
    never become labels, because clients choose them.

    Attributes:
        registry: Holds all metrics, apart from vLLM's own registry.
    """

    def __init__(
        self,
        model_name: str,
        engine_index: int = 0,
        service_unit: ServiceUnit = "tokens",
    ) -> None:
        """Create every metric with its constant labels bound.

        Args:
            model_name: The name vLLM serves the model under.
            engine_index: Data-parallel rank of this engine core.
            service_unit: What attained service counts; part of metric names.
                With ``time``, service arrives in milliseconds and is exported
                in seconds, Prometheus' base unit.
        """
        self.registry = CollectorRegistry(auto_describe=False)
        self._constant = (model_name, str(engine_index))
        self._levels: dict[tuple[int, str], Gauge] = {}
        self._create_distributions(service_unit)
        self._create_counts()

    def _create_distributions(self, service_unit: ServiceUnit) -> None:
        in_tokens = service_unit == "tokens"
        unit = "tokens" if in_tokens else "seconds"
        service_buckets = _TOKENS if in_tokens else _PROGRAM_SECONDS
        self._service_scale = 1.0 if in_tokens else 1e-3
        self._program_latency = self._histogram(
            "latency_seconds",
            "Time from a program's first arrival to its last completion.",
            _PROGRAM_SECONDS,
        )
        self._program_wait = self._histogram(
            "wait_seconds", "Time a program's calls spent waiting.", _PROGRAM_SECONDS
        )
        self._program_service = self._histogram(
            f"service_{unit}",
            "Service a program attained (tokens are weighted).",
            service_buckets,
        )
        self._call_wait = self._histogram(
            "call_wait_seconds", "Time a call spent waiting.", _CALL_SECONDS
        )
        self._call_service = self._histogram(
            f"call_service_{unit}",
            "Service a call attained (tokens are weighted).",
            service_buckets,
        )

    def _create_counts(self) -> None:
        self._finished = self._counter("finished", "Programs that ended.", "reason")
        self._preemptions = self._counter(
            "preemptions", "Calls preempted by the program scheduler.", "reason"
        )
        self._recomputed = self._counter(
            "recomputed_tokens", "Tokens to compute again after preemptions."
        ).labels(*self._constant)
        self._promotions = self._counter(
            "promotions", "Calls promoted because their program starved."
        ).labels(*self._constant)
        self._identity_errors = self._counter(
            "identity_errors", "Calls whose identity fields could not be used."
        ).labels(*self._constant)
        self._faults = self._counter(
            "scheduler_faults", "Faults after which plain vLLM order was used."
        ).labels(*self._constant)
        self._live = self._gauge("live", "Programs in the table.").labels(
            *self._constant
        )
        self._calls = self._gauge("calls", "Calls by level.", "level", "state")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"vllm:program_{name}",
            text,
            labelnames=_LABELS,
            buckets=buckets,
            registry=self.registry,
        ).labels(*self._constant)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(
            f"vllm:program_{name}",
            text,
            labelnames=(*_LABELS, *labels),
            registry=self.registry,
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        # "mostrecent": one engine index has one writer at a time, so the last
        # value is the value, and no process id is added as a label.
        return Gauge(
            f"vllm:program_{name}",
            text,
            labelnames=(*_LABELS, *labels),
            registry=self.registry,
            multiprocess_mode="mostrecent",
        )

    def program_finished(
        self, latency_s: float, wait_s: float, service: float, reason: str
    ) -> None:
        """Record a program that left the table; ``reason`` is of a closed set."""
        self._program_latency.observe(latency_s)
        self._program_wait.observe(wait_s)
        self._program_service.observe(service * self._service_scale)
        self._finished.labels(*self._constant, reason).inc()

    def call_finished(self, wait_s: float, service: float) -> None:
        """Record a call that finished or was aborted."""
        self._call_wait.observe(wait_s)
        self._call_service.observe(service * self._service_scale)

    def preempted(self, reason: PreemptionReason) -> None:
        """Count a preemption by what was short."""
        self._preemptions.labels(*self._constant, reason).inc()

    def recomputed(self, tokens: int) -> None:
        """Count tokens whose key-value blocks a preemption gave up."""
        self._recomputed.inc(tokens)

    def promoted(self) -> None:
        """Count a call moved to the best level because its program starved."""
        self._promotions.inc()

    def identity_error(self) -> None:
        """Count a call that fell back to being its own program."""
        self._identity_errors.inc()

    def fault(self) -> None:
        """Count a fault of the plugin after which plain order was used."""
        self._faults.inc()

    def set_live_programs(self, n: int) -> None:
        """Set the number of programs in the table."""
        self._live.set(n)

    def set_calls(self, level: int, state: CallState, n: int) -> None:
        """Set how many calls of a level wait or run.

        Raises:
            ValueError: If the level is outside ``0 .. MAX_LEVELS - 1``; the
                number of levels bounds the number of time series.
        """
        gauge = self._levels.get((level, state))
        if gauge is None:
            if not 0 <= level < MAX_LEVELS:
                raise ValueError(
                    f"level {level} cannot be reported: metrics hold levels "
                    f"0 to {MAX_LEVELS - 1}; configure fewer levels."
                )
            gauge = self._calls.labels(*self._constant, str(level), state)
            self._levels[level, state] = gauge
        gauge.set(n)
