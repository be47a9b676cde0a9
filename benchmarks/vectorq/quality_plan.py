# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which runs the quality benchmark makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.vectorq.quality_policies import ABLATIONS, LEARNING, STATIC, SUITE
from benchmarks.vectorq.quality_runs import ANSWERS, Run
from benchmarks.vectorq.quality_streams import BANKING, DRIFT, TRAPS, Source

# Budget at which parts of the policy are taken away, labels flipped and answers judged.
STUDIED_DELTA = 0.01
TRAP_DELTA = 0.02
_RIVALS = ("static 0.80", "static 0.90", "static 0.95")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        requests: Length of every stream; None: whole sets.
        shuffles: Orders of the main set, besides the drifting one.
        deltas: Budgets on the main set.
        further_shuffles: Orders of each further set.
        further_deltas: Budgets there.
        repeats: Orders with parts taken away, flipped labels and judged answers.
        noises: Shares of flipped labels.
        trap_orders: Orders of the trap pairs.
    """

    requests: int | None = None
    shuffles: int = 5
    deltas: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.05)
    further_shuffles: int = 3
    further_deltas: tuple[float, ...] = (0.01, 0.02)
    repeats: int = 2
    noises: tuple[float, ...] = (0.01, 0.02, 0.05)
    trap_orders: int = 5


FULL = Plan()
QUICK = Plan(
    requests=3_000,
    shuffles=1,
    deltas=(0.01, 0.02),
    further_shuffles=1,
    repeats=1,
    noises=(0.02,),
    trap_orders=1,
)


def runs_of(plan: Plan, further: Sequence[Source]) -> Iterator[Run]:
    """All runs, what matters most first."""
    main = Source(BANKING)
    few = plan.further_shuffles, plan.further_deltas
    yield from _own(main, plan.shuffles, plan.deltas)
    yield from _traps(plan)
    yield from _studies(main, plan)
    for source in further:
        yield from _own(source, *few)
    yield from _rivals(main, plan.shuffles, plan.deltas)
    for source in further:
        yield from _rivals(source, *few)
    for order in _orders(plan.shuffles):
        for delta in plan.deltas:
            yield Run("policies", main, order, SUITE, delta, guards=False)


def _orders(shuffles: int) -> list[str]:
    return [*map(str, range(shuffles)), DRIFT]


def _own(source: Source, shuffles: int, deltas: Sequence[float]) -> Iterator[Run]:
    """The policy, and the thresholds that it is held against."""
    for order in _orders(shuffles):
        for guards in (True, False):
            yield Run("policies", source, order, STATIC, guards=guards)
        yield Run("policies", source, order, "exact")
        for delta in deltas:
            yield Run("policies", source, order, SUITE, delta)


def _rivals(source: Source, shuffles: int, deltas: Sequence[float]) -> Iterator[Run]:
    for order in _orders(shuffles):
        for delta in deltas:
            for policy in LEARNING:
                if policy != SUITE:
                    yield Run("policies", source, order, policy, delta)


def _studies(source: Source, plan: Plan) -> Iterator[Run]:
    for order in map(str, range(plan.repeats)):
        for part in ANSWERS:
            yield Run(part, source, order, SUITE, STUDIED_DELTA)
        for noise in plan.noises:
            yield Run(
                "judge_noise", source, order, SUITE, STUDIED_DELTA, judge_noise=noise
            )
        for name in ABLATIONS:
            yield Run("ablations", source, order, f"{SUITE} {name}", STUDIED_DELTA)


def _traps(plan: Plan) -> Iterator[Run]:
    source = Source(TRAPS)
    for order in map(str, range(plan.trap_orders)):
        yield Run(TRAPS, source, order, SUITE, TRAP_DELTA)
        yield Run(TRAPS, source, order, SUITE, TRAP_DELTA, guards=False)
        for policy in _RIVALS:
            yield Run(TRAPS, source, order, policy, guards=False)
