# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Simulated times: against cases by hand, another simulator and the published ones."""

from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_offload.operations import Kind, Lane, Operation, Schedule
from moe_offload.schedule import cgopipe
from moe_offload.schedule_rivals import NAMES, schedule
from moe_offload.simulation import lower_bound, simulate

K = Kind
Seconds = Callable[[Operation], float]


def by_kind(times: Mapping[Kind, float], pages: int, layer_s: float) -> Seconds:
    """Durations by kind; pages take their share of a layer's."""

    def seconds(each: Operation) -> float:
        if each.pages:
            return layer_s * len(each.pages) / pages
        return times.get(each.kind, 0.0)

    return seconds


TEN = {
    K.PRE_ATTENTION: 1.0,
    K.OFFLOAD_QKV: 1.0,
    K.HOST_ATTENTION: 4.0,
    K.LOAD_HIDDEN: 1.0,
    K.POST_ATTENTION: 3.0,
}


def test_one_micro_batch_goes_step_by_step() -> None:
    made = cgopipe(1, 1, 0)
    timeline = simulate(made, by_kind(TEN, 1, 0.0))
    assert timeline.start_s == (0.0, 1.0, 2.0, 6.0, 7.0)
    assert timeline.end_s == (1.0, 2.0, 6.0, 7.0, 10.0)
    assert timeline.makespan_s == 10.0
    assert timeline.busy_s() == {
        Lane.DEVICE: 4.0,
        Lane.HOST: 4.0,
        Lane.UP: 1.0,
        Lane.DOWN: 1.0,
    }


def test_two_micro_batches_overlap() -> None:
    """The second one's attention follows the first's at 6 and ends at 10."""
    ends = simulate(cgopipe(1, 2, 0), by_kind(TEN, 1, 0.0)).end_s
    assert max(ends) == 14.0
    assert simulate(schedule("s3", 1, 2, 0), by_kind(TEN, 1, 0.0)).makespan_s == 20.0


def test_pages_between_hidden_states_delay_them_less_than_a_layer() -> None:
    """Two layers of two pages of 5 s each, counted by hand.

    CGOPipe: hidden 6-7, page 7-12, hidden 12-13, page 13-18; the second layer's
    attentions end at 16 and 22; hidden 18-19, page 19-24, hidden 24-25, page 25-30.
    In S2, layers travel 0-10 and from 18 on, when the first layer is done: its hidden
    states come 10-11 and 11-12, its experts take 11-14 and, after a q, k, v, 15-18.
    """
    seconds = by_kind(TEN, 2, 10.0)
    made = cgopipe(2, 2, 2)
    up = [each.number for each in made.lanes()[Lane.UP]]
    timeline = simulate(made, seconds)
    assert [timeline.start_s[n] for n in up] == [6, 7, 12, 13, 18, 19, 24, 25]
    assert timeline.makespan_s == 30.0
    other = schedule("s2", 2, 2, 2)
    timeline = simulate(other, seconds)
    loads = [each.number for each in other.operations if each.kind is K.LOAD_PAGES]
    assert [timeline.start_s[n] for n in loads] == [0.0, 18.0]


def test_bounds_by_hand() -> None:
    bounds = lower_bound(cgopipe(1, 3, 0), by_kind(TEN, 1, 0.0))
    assert (bounds.lane, bounds.lane_bound_s) == (Lane.DEVICE, 12.0)
    assert bounds.path_bound_s == 10.0
    assert bounds.bound_s == 12.0


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_durations_have_to_be_durations(wrong: float) -> None:
    made = cgopipe(1, 1, 0)
    for compute in (simulate, lower_bound):
        with pytest.raises(ValueError, match=r"pre-attention of step 0.*duration"):
            compute(made, lambda _: wrong)


def event_by_event(made: Schedule, seconds: Seconds) -> list[float]:
    """Another simulator: lanes are queues, time jumps from end to end.

    It fails if nothing runs and nothing can begin, which is a deadlock.
    """
    queues = {lane: deque(own) for lane, own in made.lanes().items()}
    running: dict[Lane, tuple[float, Operation]] = {}
    ended: dict[int, float] = {}
    now_s = 0.0
    while any(queues.values()) or running:
        for lane, queue in queues.items():
            ready = lane not in running and queue
            if ready and all(need in ended for need in queue[0].needs):
                each = queue.popleft()
                running[lane] = (now_s + seconds(each), each)
        assert running, "deadlock"
        lane = min(running, key=lambda lane: running[lane][0])
        now_s, each = running.pop(lane)
        ended[each.number] = now_s
    return [ended[number] for number in range(len(ended))]


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    layers=st.integers(1, 7),
    micro_batches=st.integers(1, 16),
    pages=st.integers(0, 20),
    carried=st.booleans(),
    steps=st.integers(1, 2),
    slots=st.integers(0, 3),
    random=st.randoms(use_true_random=False),
)
def test_nothing_deadlocks_or_beats_the_bounds(
    name: str,
    layers: int,
    micro_batches: int,
    pages: int,
    carried: bool,
    steps: int,
    slots: int,
    random: Random,
) -> None:
    made = schedule(
        name, layers, micro_batches, pages, 0, carried, 2, steps, staging_slots=slots
    )
    # Multiples of 1/8 add up without rounding.
    times = [random.randrange(17) / 8 for _ in made.operations]

    def seconds(each: Operation) -> float:
        return times[each.number]

    timeline = simulate(made, seconds)
    assert list(timeline.end_s) == event_by_event(made, seconds)
    bounds = lower_bound(made, seconds)
    assert timeline.makespan_s >= bounds.bound_s
    assert timeline.makespan_s <= sum(times)
    for each in made.operations:
        start_s = timeline.start_s[each.number]
        assert all(timeline.end_s[need] <= start_s for need in each.needs)
    for own in made.lanes().values():
        for before, after in pairwise(own):
            assert timeline.end_s[before.number] <= timeline.start_s[after.number]


# Parts of the time that the busiest lane spends on a micro-batch and its pages.
CASES = {
    "link": {"device": 0.5, "host": 0.5, "link": 1.0},
    "host": {"device": 0.9, "host": 1.0, "link": 0.9},
    "device": {"device": 1.0, "host": 0.9, "link": 0.9},
    "balanced": {"device": 0.99, "host": 1.0, "link": 0.99},
}


def seconds_of(case: Mapping[str, float], micro_batches: int, pages: int) -> Seconds:
    times = {
        K.PRE_ATTENTION: 0.02,
        K.POST_ATTENTION: case["device"] - 0.02,
        K.HOST_ATTENTION: case["host"],
        K.LOAD_HIDDEN: 0.01,
        K.OFFLOAD_QKV: 0.01,
    }
    return by_kind(times, pages, (case["link"] - 0.01) * micro_batches)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("micro_batches", [8, 11, 16, 32])
@pytest.mark.parametrize("layers", [7, 8])
def test_cgopipe_is_within_3_percent_of_the_busiest_lane(
    case: str, micro_batches: int, layers: int
) -> None:
    pages = 2 * micro_batches
    made = cgopipe(layers, micro_batches, pages, steps=6)
    seconds = seconds_of(CASES[case], micro_batches, pages)
    bound_s = lower_bound(made, seconds).lane_bound_s
    assert simulate(made, seconds).makespan_s <= 1.03 * bound_s


def loss(lookahead: int, micro_batches: int, pages: int) -> float:
    """Time over that of the busiest lane where all lanes are busy."""
    made = cgopipe(8, micro_batches, pages, steps=6, lookahead=lookahead)
    seconds = seconds_of(CASES["balanced"], micro_batches, pages)
    return simulate(made, seconds).makespan_s / lower_bound(made, seconds).lane_bound_s


def test_a_longer_lookahead_absorbs_uneven_groups() -> None:
    """16 pages do not divide by 11 or 32: some micro-batches wait longer for theirs."""
    for micro_batches in (11, 14, 32):
        assert loss(2, micro_batches, 16) > 1.1
        assert loss(3, micro_batches, 16) < 1.06


# Fig. 9 of MoE-Lightning on an L4, in ms: FFN of a micro-batch by its requests; of 64
# requests the cache's way to the device and CPU attention, by context tokens. What it
# does not show is computed for Mixtral 8x7B with the rates that fit it.
FFN_MS = {32: 12.2, 64: 12.3, 128: 12.5, 256: 13.0}
CACHE_MS = {512: 10.9, 1024: 21.76}
ATTENTION_MS = {512: 2.98, 1024: 5.89}
LAYER_MS = 231.0
LINK_BYTES_PER_S, DEVICE_BYTES_PER_S = 12.3e9, 229e9
HIDDEN, KV = 4096, 1024


def figure_9(requests: int, context: int, micro_batches: int) -> Seconds:
    scale = requests / 64

    def moved_ms(values: float, bytes_per_s: float) -> float:
        return 2 * values / bytes_per_s * 1e3

    cached = 2 * KV * requests
    times_ms = {
        K.PRE_ATTENTION: moved_ms(HIDDEN * (HIDDEN + 2 * KV), DEVICE_BYTES_PER_S),
        K.POST_ATTENTION: FFN_MS[requests] + moved_ms(HIDDEN**2, DEVICE_BYTES_PER_S),
        K.HOST_ATTENTION: ATTENTION_MS[context] * scale,
        K.OFFLOAD_QKV: moved_ms(requests * (HIDDEN + 2 * KV), LINK_BYTES_PER_S),
        K.LOAD_HIDDEN: moved_ms(requests * HIDDEN, LINK_BYTES_PER_S),
        K.LOAD_CACHE: CACHE_MS[context] * scale,
        K.DEVICE_ATTENTION: moved_ms(cached * context, DEVICE_BYTES_PER_S),
        K.STORE_CACHE: moved_ms(cached, LINK_BYTES_PER_S),
    }
    return by_kind(times_ms, micro_batches, LAYER_MS)


@pytest.mark.parametrize(
    ("requests", "context", "micro_batches", "s2", "s3", "s4"),
    [
        (64, 512, 15, 1.79, 1.98, None),
        (64, 1024, 15, 1.79, 2.16, 2.39),
        (128, 512, 12, 1.64, 1.96, 2.11),
        (32, 512, 30, 1.59, 1.73, None),
    ],
)
def test_rivals_are_as_much_slower_as_an_earlier_simulation_found(
    requests: int,
    context: int,
    micro_batches: int,
    s2: float,
    s3: float,
    s4: float | None,
) -> None:
    """One step of 32 layers of 231 ms each, with as many pages as micro-batches.

    The number of micro-batches was recorded for 64 requests only; for 32 and 128 it is
    the one that fits. Missed: S4 where the cache is faster than the experts (1.85 and
    1.62, where 1.69 and 1.08 were found by letting weights and cache share the link);
    here a layer travels as one piece, ahead of the caches.
    """
    seconds = figure_9(requests, context, micro_batches)
    times_ms = {
        name: simulate(
            schedule(name, 32, micro_batches, micro_batches), seconds
        ).makespan_s
        for name in NAMES
    }
    base_ms = times_ms["cgopipe"]
    assert times_ms["s2"] / base_ms == pytest.approx(s2, rel=0.02)
    assert times_ms["s3"] / base_ms == pytest.approx(s3, rel=0.02)
    if s4 is not None:
        assert times_ms["s4"] / base_ms == pytest.approx(s4, rel=0.02)
    assert times_ms["no-prefetch"] > times_ms["s2"]


def test_the_link_is_busy_in_cgopipe_where_it_limits() -> None:
    made = cgopipe(32, 15, 15)
    timeline = simulate(made, figure_9(64, 512, 15))
    assert timeline.busy_s()[Lane.UP] / timeline.makespan_s > 0.97
