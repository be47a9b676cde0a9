# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Where the time of a run went, as a report and as a trace."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.operations import Kind, Lane, Operation
from moe_offload.overlap import report
from moe_offload.schedule import cgopipe
from moe_offload.schedule_rivals import NAMES, schedule
from moe_offload.simulation import Timeline, simulate
from moe_offload.trace_file import trace_events, write_trace

K = Kind
TIMES = {
    K.PRE_ATTENTION: 1.0,
    K.OFFLOAD_QKV: 1.0,
    K.HOST_ATTENTION: 4.0,
    K.LOAD_HIDDEN: 1.0,
    K.LOAD_PAGES: 5.0,
    K.POST_ATTENTION: 3.0,
}


def seconds(each: Operation) -> float:
    return TIMES.get(each.kind, 2.0)


def test_busy_time_and_bubbles_by_hand() -> None:
    """Of one micro-batch: 0-1 q, k, v; 7-10 experts; then the next pages until 12."""
    found = report(simulate(cgopipe(1, 1, 1), seconds))
    assert found.makespan_s == 12.0
    assert found.busy_s == {
        Lane.DEVICE: 4.0,
        Lane.HOST: 4.0,
        Lane.UP: 6.0,
        Lane.DOWN: 1.0,
    }
    assert found.busy_share(Lane.UP) == 0.5
    assert found.busy_share(Lane.STAGE) == 0.0
    assert {cause: idle_s for cause, idle_s in found.bubbles_s.items() if idle_s} == {
        "load-hidden": 6.0,
        "drain": 2.0,
    }


def test_the_start_is_told_apart() -> None:
    """The first layer's pages have to come before anything is computed."""
    found = report(simulate(schedule("no-prefetch", 2, 1, 1), seconds))
    assert found.bubbles_s["start"] == 5.0
    assert found.bubbles_s["load-pages"] == 5.0
    assert found.bubbles_s["load-hidden"] == 12.0
    assert found.bubbles_s["drain"] == 0.0


def test_time_in_which_nothing_was_missing_is_told_apart() -> None:
    made = cgopipe(1, 1, 0)
    late = Timeline(made, (0.5, 2.0, 3.0, 7.0, 9.0), (1.5, 3.0, 7.0, 8.0, 12.0))
    assert report(late).bubbles_s == {
        "start": 0.5,
        "load-hidden": 6.5,
        "launch": 1.0,
        "drain": 0.0,
    }


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    layers=st.integers(1, 4),
    parts=st.integers(1, 5),
    pages=st.integers(0, 6),
    eighths=st.lists(st.integers(0, 16), min_size=10, max_size=10),
)
def test_busy_time_and_bubbles_are_the_whole_run(
    name: str, layers: int, parts: int, pages: int, eighths: list[int]
) -> None:
    times = dict(zip(Kind, (each / 8 for each in eighths), strict=True))
    timeline = simulate(schedule(name, layers, parts, pages), lambda e: times[e.kind])
    found = report(timeline)
    assert all(idle_s >= 0.0 for idle_s in found.bubbles_s.values())
    idle_s = sum(found.bubbles_s.values())
    assert idle_s + found.busy_s[Lane.DEVICE] == timeline.makespan_s


def test_the_report_is_read_by_people_and_programs() -> None:
    found = report(simulate(cgopipe(1, 1, 1), seconds))
    again = json.loads(json.dumps(found.as_json()))
    assert again["makespan_s"] == 12.0
    assert again["busy_share"]["up"] == 0.5
    assert again["device_bubbles_s"]["load-hidden"] == 6.0
    assert found.as_text().splitlines() == [
        "cgopipe: 12 s",
        "  lane      busy",
        "  device   33.3%  4 s",
        "  host     33.3%  4 s",
        "  up       50.0%  6 s",
        "  down      8.3%  1 s",
        "  the device waited for",
        "  load-hidden        50.0%  6 s",
        "  drain              16.7%  2 s",
    ]


def test_a_trace_has_a_row_for_each_lane(tmp_path: Path) -> None:
    timeline = simulate(cgopipe(2, 2, 4), seconds)
    path = tmp_path / "trace.json"
    write_trace(timeline, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == trace_events(timeline)
    events = found["traceEvents"]
    rows = {
        each["tid"]: each["args"]["name"]
        for each in events
        if each["ph"] == "M" and each["name"] == "thread_name"
    }
    assert sorted(rows.values()) == ["device", "down", "host", "up"]
    done = [each for each in events if each["ph"] == "X"]
    assert len(done) == len(timeline.schedule.operations)
    for each in done:
        number = each["args"]["operation"]
        of = timeline.schedule.operations[number]
        assert rows[each["tid"]] == of.lane.value
        assert each["ts"] == timeline.start_s[number] * 1e6
        assert each["ts"] + each["dur"] == pytest.approx(timeline.end_s[number] * 1e6)
        assert each["cat"] == of.kind.value
        assert each["args"]["pages"] == list(of.pages)
