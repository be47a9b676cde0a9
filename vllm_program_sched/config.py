# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Options of the program scheduler, read once from ``--additional-config``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

POLICIES = ("fcfs", "program_fcfs", "mlfq", "plas", "atlas", "gittins", "srpt")
SERVICE_UNITS = ("tokens", "time")


class ConfigError(ValueError):
    """An option that cannot be used; the message says what to change."""


@dataclass(frozen=True, slots=True)
class ProgramSchedConfig:
    """Options under ``--additional-config.program_sched``.

    Attributes:
        policy: Order of the waiting queue, one of :data:`POLICIES`.
        service_unit: What attained service counts: ``tokens`` or ``time`` (seconds of
            engine steps, shared equally among the calls of a step; x 1000).
        prefill_weight: Service units per uncached prefill token (``tokens``).
        decode_weight: Service units per decoded token (``tokens``).
        levels: Number of queues (K), 2..16.
        level_bounds: K - 1 ascending service values between the queues; empty means
            calibrated online from quantiles of observed program service.
        quanta: K service quanta after which a running call drops one queue; empty
            means a call drops when its program's service crosses a bound.
        prior_strength: ``gittins``: weight of the prior, in programs per bin.
        class_prefix_tokens: Prompt tokens hashed into the program class when the call
            names none.
        starvation_ratio: Waiting/execution ratio (beta) from which a program is served
            first; 0 switches the guard off.
        starvation_floor_s: Execution time assumed for a program that has less, until
            the mean execution time of finished programs is known, in seconds.
        preemption: Whether running calls may be preempted for better waiting ones.
        preempt_min_run_tokens: Tokens a call computes after admission before it may be
            preempted; doubles with every preemption of the same call.
        preempt_hysteresis_levels: A victim is at least this many levels worse.
        preempt_max_per_step: Upper bound of preemptions in one engine step.
        preempt_every_step: Test mode: preempt one running call in every step.
        program_ttl_s: Idle time after which a program counts as ended, in seconds.
        max_programs: Idle programs remembered.
        max_id_length: Longest accepted program or thread id, in characters.
        log_interval_s: Seconds between summary log lines; 0 switches them off.
    """

    policy: str = "gittins"
    service_unit: str = "tokens"
    prefill_weight: float = 0.25
    decode_weight: float = 1.0
    levels: int = 8
    level_bounds: tuple[float, ...] = ()
    quanta: tuple[float, ...] = ()
    prior_strength: float = 0.5
    size_exponent: float = 0.25
    class_prefix_tokens: int = 64
    starvation_ratio: float = 32.0
    starvation_floor_s: float = 5.0
    preemption: bool = True
    preempt_min_run_tokens: int = 16
    preempt_hysteresis_levels: int = 3
    preempt_max_per_step: int = 1
    preempt_every_step: bool = False
    program_ttl_s: float = 900.0
    max_programs: int = 100_000
    max_id_length: int = 256
    log_interval_s: float = 60.0

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ConfigError: An option has the wrong type or is out of range.
        """
        _check_choice("policy", self.policy, POLICIES)
        _check_choice("service_unit", self.service_unit, SERVICE_UNITS)
        for name, (low, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, high)
            if name in _INTEGERS:
                object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("preemption", "preempt_every_step"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"program_sched.{name}={getattr(self, name)!r}: give true or false"
                )
        object.__setattr__(
            self, "level_bounds", _floats("level_bounds", self.level_bounds)
        )
        object.__setattr__(self, "quanta", _floats("quanta", self.quanta))
        self._check_queues()

    def _check_queues(self) -> None:
        bounds, quanta = self.level_bounds, self.quanta
        if bounds and len(bounds) != self.levels - 1:
            raise ConfigError(
                f"program_sched.level_bounds has {len(bounds)} values, but "
                f"{self.levels} levels need {self.levels - 1}; give that many or none"
            )
        if any(b <= a for a, b in pairwise(bounds)) or (bounds and bounds[0] <= 0):
            raise ConfigError(
                f"program_sched.level_bounds={list(bounds)}: values must be positive "
                "and strictly ascending"
            )
        if quanta and (len(quanta) != self.levels or min(quanta) <= 0):
            raise ConfigError(
                f"program_sched.quanta={list(quanta)}: give {self.levels} positive "
                "values, one per level, or none"
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ProgramSchedConfig:
        """Build the configuration from validated option names.

        Raises:
            ConfigError: An option has the wrong type or is out of range.
        """
        return cls(**options)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the log and the admin route."""
        return asdict(self)


_RANGES: dict[str, tuple[float, float]] = {
    "prefill_weight": (0.0, 1e6),
    "decode_weight": (1e-9, 1e6),
    "levels": (2, 16),
    "prior_strength": (1e-3, 1e6),
    "size_exponent": (0.0, 2.0),
    "class_prefix_tokens": (1, 1 << 20),
    "starvation_ratio": (0.0, 1e9),
    "starvation_floor_s": (1e-9, 1e9),
    "preempt_min_run_tokens": (0, 1 << 30),
    "preempt_hysteresis_levels": (1, 15),
    "preempt_max_per_step": (0, 1 << 20),
    "program_ttl_s": (1e-9, 1e12),
    "max_programs": (1, 1 << 40),
    "max_id_length": (1, 1 << 16),
    "log_interval_s": (0.0, 1e9),
}
_INTEGERS = frozenset(f.name for f in fields(ProgramSchedConfig) if f.type == "int")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"program_sched.{name}={value!r} is not known; choose one of "
            + ", ".join(choices)
        )


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (name in _INTEGERS and value % 1 != 0)
    ):
        kind = "an integer" if name in _INTEGERS else "a number"
        raise ConfigError(f"program_sched.{name}={value!r}: give {kind}")
    if not low <= value <= high:
        raise ConfigError(
            f"program_sched.{name}={value!r} is out of range; it must lie between "
            f"{low:g} and {high:g}"
        )


def _floats(name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or any(
        isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v)
        for v in value
    ):
        raise ConfigError(
            f"program_sched.{name}={value!r}: give a list of finite numbers"
        )
    return tuple(float(v) for v in value)
