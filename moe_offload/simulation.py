# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How long a schedule takes when each operation takes a known time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .operations import Lane, Operation, Schedule


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each operation of a schedule ran, simulated or measured.

    Attributes:
        schedule: What ran.
        start_s: Of each operation by its number, from the start of the run.
        end_s: The same.
    """

    schedule: Schedule
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]

    @property
    def makespan_s(self) -> float:
        """From the start of the run to the end of its last operation."""
        return max(self.end_s, default=0.0)

    def busy_s(self) -> dict[Lane, float]:
        """Time that each lane spent in operations."""
        return {
            lane: sum(
                self.end_s[each.number] - self.start_s[each.number] for each in own
            )
            for lane, own in self.schedule.lanes().items()
        }


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no order of the operations can beat.

    Attributes:
        lane: The one with the most work.
        lane_bound_s: Its work.
        path_bound_s: The longest chain of operations that need each other, as if no
            lane were ever taken.
    """

    lane: Lane
    lane_bound_s: float
    path_bound_s: float

    @property
    def bound_s(self) -> float:
        """The larger of the two."""
        return max(self.lane_bound_s, self.path_bound_s)


def simulate(schedule: Schedule, seconds: Callable[[Operation], float]) -> Timeline:
    """Run a schedule on paper: each lane takes its operations as soon as it can.

    Args:
        schedule: Its launch order is one in which everything needed comes earlier.
        seconds: Duration of an operation.

    Raises:
        ValueError: A duration is negative or not a number.
    """
    free_s = dict.fromkeys(Lane, 0.0)
    start_s: list[float] = []
    end_s: list[float] = []
    for each in schedule.operations:
        needed_s = max((end_s[need] for need in each.needs), default=0.0)
        start_s.append(max(needed_s, free_s[each.lane]))
        free_s[each.lane] = start_s[-1] + _checked(each, seconds(each))
        end_s.append(free_s[each.lane])
    return Timeline(schedule, tuple(start_s), tuple(end_s))


def lower_bound(schedule: Schedule, seconds: Callable[[Operation], float]) -> Bounds:
    """Return the least time in which the operations of a schedule could run.

    Args:
        schedule: Operations and what they need; its order does not matter.
        seconds: Duration of an operation.

    Raises:
        ValueError: A duration is negative or not a number.
    """
    work_s = dict.fromkeys(Lane, 0.0)
    end_s: list[float] = []
    for each in schedule.operations:
        duration_s = _checked(each, seconds(each))
        work_s[each.lane] += duration_s
        needed_s = max((end_s[need] for need in each.needs), default=0.0)
        end_s.append(needed_s + duration_s)
    lane = max(work_s, key=lambda each: work_s[each])
    return Bounds(lane, work_s[lane], max(end_s, default=0.0))


def _checked(operation: Operation, duration_s: float) -> float:
    if not 0.0 <= duration_s < float("inf"):
        raise ValueError(
            f"moe_offload: asked to simulate {operation} with a duration of "
            f"{duration_s!r} s. Give a finite number that is not negative."
        )
    return duration_s
