# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Shows a timeline in a trace viewer: one row per lane (Chrome's trace events)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .operations import Lane
from .simulation import Timeline

_ROWS = {lane: row for row, lane in enumerate(Lane, start=1)}
_PROCESS = 1
_US_PER_S = 1e6


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """Return a timeline as the content of a trace file, times in microseconds."""
    lanes = timeline.schedule.lanes()
    events = [_name("process_name", 0, f"schedule {timeline.schedule.name}")]
    for lane, own in lanes.items():
        events.append(_name("thread_name", _ROWS[lane], lane.value))
        for each in own:
            start_s, end_s = timeline.start_s[each.number], timeline.end_s[each.number]
            events.append(
                {
                    "name": f"{each.kind.value} {each.layer}.{each.micro_batch}",
                    "cat": each.kind.value,
                    "ph": "X",
                    "pid": _PROCESS,
                    "tid": _ROWS[lane],
                    "ts": start_s * _US_PER_S,
                    "dur": (end_s - start_s) * _US_PER_S,
                    "args": {
                        "operation": each.number,
                        "step": each.step,
                        "layer": each.layer,
                        "micro_batch": each.micro_batch,
                        "pages": list(each.pages),
                        "needs": list(each.needs),
                    },
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(timeline: Timeline, path: Path) -> None:
    """Write a timeline to a file for a trace viewer.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(json.dumps(trace_events(timeline)), encoding="utf-8")


def _name(what: str, row: int, name: str) -> dict[str, Any]:
    args = {"name": name}
    return {"name": what, "ph": "M", "pid": _PROCESS, "tid": row, "args": args}
