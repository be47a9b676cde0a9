# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How well a run kept its lanes busy, and what the device waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .operations import Lane, Operation
from .simulation import Timeline

START = "start"
DRAIN = "drain"
LAUNCH = "launch"


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Where the time of a run went.

    Attributes:
        schedule: Its name.
        makespan_s: Of the whole run.
        busy_s: Time that each lane spent in operations.
        bubbles_s: Idle time of the device by cause: the kind of operation that ended
            last of those needed next; ``start`` and ``drain`` before its first and
            after its last operation; ``launch`` where nothing was missing any more.
    """

    schedule: str
    makespan_s: float
    busy_s: dict[Lane, float]
    bubbles_s: dict[str, float]

    def busy_share(self, lane: Lane) -> float:
        """Part of the run in which a lane was in an operation."""
        return self.busy_s.get(lane, 0.0) / self.makespan_s if self.makespan_s else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "schedule": self.schedule,
            "makespan_s": self.makespan_s,
            "busy_s": {lane.value: busy_s for lane, busy_s in self.busy_s.items()},
            "busy_share": {lane.value: self.busy_share(lane) for lane in self.busy_s},
            "device_bubbles_s": dict(self.bubbles_s),
        }

    def as_text(self) -> str:
        """A table to read."""
        lines = [f"{self.schedule}: {self.makespan_s:.4g} s", "  lane      busy"]
        lines += [
            f"  {lane.value:<8}{self.busy_share(lane):>6.1%}  {busy_s:.4g} s"
            for lane, busy_s in self.busy_s.items()
        ]
        lines.append("  the device waited for")
        worst = sorted(self.bubbles_s.items(), key=lambda each: -each[1])
        lines += [
            f"  {cause:<18}{idle_s / self.makespan_s:>6.1%}  {idle_s:.4g} s"
            for cause, idle_s in worst
            if idle_s > 0.0
        ]
        return "\n".join(lines)


def report(timeline: Timeline) -> OverlapReport:
    """Return where the time of a run went."""
    bubbles_s: dict[str, float] = {}
    free_s, before = 0.0, START
    for each in timeline.schedule.lanes().get(Lane.DEVICE, ()):
        start_s = timeline.start_s[each.number]
        missing, came_s = _last_need(timeline, each)
        # Until the last need came the device waits for it, from then on for nobody.
        waited_s = min(max(came_s - free_s, 0.0), start_s - free_s)
        _add(bubbles_s, before or missing, waited_s)
        _add(bubbles_s, before or LAUNCH, start_s - free_s - waited_s)
        free_s, before = timeline.end_s[each.number], ""
    makespan_s = timeline.makespan_s
    _add(bubbles_s, DRAIN, makespan_s - free_s)
    name = timeline.schedule.name
    return OverlapReport(name, makespan_s, timeline.busy_s(), bubbles_s)


def _last_need(timeline: Timeline, operation: Operation) -> tuple[str, float]:
    """The kind of what an operation waited for longest, and when that ended."""
    if not operation.needs:
        return LAUNCH, 0.0
    last = max(operation.needs, key=lambda need: timeline.end_s[need])
    return timeline.schedule.operations[last].kind.value, timeline.end_s[last]


def _add(bubbles_s: dict[str, float], cause: str, idle_s: float) -> None:
    bubbles_s[cause] = bubbles_s.get(cause, 0.0) + idle_s
