# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Random lives of calls through the core: what holds after every event."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_program_sched.config import POLICIES, ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Call, Program

SLOTS = 3
OPERATIONS = (
    "arrive",
    "arrive",
    "start",
    "start",
    "compute",
    "compute",
    "preempt",
    "victim",
    "finish",
    "abort",
    "end",
    "wait",
    "promote",
)
EVENTS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 7), st.integers(1, 40)),
    max_size=120,
)
CONFIGS = st.builds(
    ProgramSchedConfig,
    policy=st.sampled_from(POLICIES),
    service_unit=st.sampled_from(["tokens", "time"]),
    levels=st.just(3),
    level_bounds=st.sampled_from([(), (8.0, 64.0)]),
    quanta=st.sampled_from([(), (4.0, 8.0, 16.0)]),
    starvation_ratio=st.sampled_from([0.0, 2.0, 16.0]),
    starvation_floor_s=st.sampled_from([0.5, 5.0]),
    preempt_min_run_tokens=st.sampled_from([0, 4]),
    preempt_hysteresis_levels=st.sampled_from([1, 2]),
    program_ttl_s=st.sampled_from([3.0, 1e6]),
    max_programs=st.sampled_from([2, 1000]),
)


@dataclass
class World:
    """An engine without a model, and what the table should say about it."""

    config: ProgramSchedConfig
    now_s: float = 0.0
    seq: int = 0
    running: list[Call] = field(default_factory=list)
    ended: list[Program] = field(default_factory=list)
    served: dict[Program, float] = field(default_factory=dict)
    alive: dict[str, Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.core = ProgramCore(self.config, lambda p, _: self.ended.append(p))
        self.queue = self.core.new_queue()

    def apply(self, operation: str, which: int, size: int) -> None:
        getattr(self, "do_" + operation)(which, size)
        self.check()

    def do_arrive(self, which: int, size: int) -> None:
        self.seq += 1
        explicit = which < 6
        call = self.core.arrive(
            f"c{self.seq}",
            f"p{which}" if explicit else f"c{self.seq}",
            self.now_s,
            explicit=explicit,
            tier=which % 2,
            ends_program=size == 40,
            class_key=str(which % 3),
            oracle_remaining=float(size) if which % 2 else None,
        )
        self.alive[call.call_id] = call
        self.queue.push(call)

    def do_start(self, which: int, size: int) -> None:
        if len(self.queue) and len(self.running) < SLOTS:
            best = min(self.queue.calls(), key=lambda c: c.rank)
            call = self.queue.pop()
            assert call is best
            self.core.start(call, self.now_s)
            self.running.append(call)

    def do_compute(self, which: int, size: int) -> None:
        if not self.running:
            return
        for call in self.running:
            tokens = 1 if which % 2 else size
            self.core.computed(call, tokens, call.high_water_tokens + tokens)
        self.now_s += 0.01 * size
        self.core.meter.step(0.01 * size, len(self.running), size)
        for call in self.running:
            before = call.service
            self.core.settle(call)
            assert call.service >= before
            self.served[call.program] = (
                self.served.get(call.program, 0.0) + call.service - before
            )

    def do_preempt(self, which: int, size: int) -> None:
        if self.running:
            call = self.running.pop(which % len(self.running))
            self.core.preempt(call, self.now_s, size)
            self.queue.push(call)

    def do_victim(self, which: int, size: int) -> None:
        if not len(self.queue):
            return
        candidate = self.queue.peek()
        victim = self.core.choose_victim(candidate, self.running, lambda c: c.seq % 5)
        if victim is not None:
            assert victim in self.running
            assert victim.rank[:2] > candidate.rank[:2]
            assert victim.run_tokens >= self.config.preempt_min_run_tokens

    def do_finish(self, which: int, size: int, aborted: bool = False) -> None:
        if self.running:
            call = self.running.pop(which % len(self.running))
            self.gone(call, aborted)

    def do_abort(self, which: int, size: int) -> None:
        waiting = self.queue.ordered()
        if waiting and which % 2:
            self.gone(waiting[size % len(waiting)], True)
        else:
            self.do_finish(which, size, True)

    def gone(self, call: Call, aborted: bool) -> None:
        self.core.finish(call, self.now_s, aborted)
        del self.alive[call.call_id]

    def do_end(self, which: int, size: int) -> None:
        known = f"p{which}" in self.core.table.programs
        assert self.core.end_program(f"p{which}", self.now_s) == known

    def do_wait(self, which: int, size: int) -> None:
        self.now_s += 0.1 * size
        self.core.table.expire(self.now_s)

    def do_promote(self, which: int, size: int) -> None:
        self.core.promote_starving(self.now_s)

    def check(self) -> None:
        table = self.core.table
        assert table.calls == self.alive
        waiting = list(self.queue.calls())
        assert {c.call_id for c in (*waiting, *self.running)} == set(self.alive)
        assert len(waiting) + len(self.running) == len(self.alive)
        assert len({c.rank for c in self.alive.values()}) == len(self.alive)
        assert [c.rank[0] for c in self.queue.ordered()] == sorted(
            c.rank[0] for c in waiting
        )
        assert len(set(map(id, self.ended))) == len(self.ended)
        assert len(table._idle) <= self.config.max_programs
        for program in table.programs.values():
            assert program.calls or program.program_id in table._idle
            assert not (program.calls and program.program_id in table._idle)
            assert program.calls or not program.ending
            assert program not in self.ended
            served = self.served.get(program, 0.0)
            assert program.attained_service == pytest.approx(served)
            assert program.critical_path <= program.attained_service + 1e-6


@settings(max_examples=400, deadline=None)
@given(CONFIGS, EVENTS)
def test_no_call_is_lost_and_books_balance(
    config: ProgramSchedConfig, events: list[tuple[str, int, int]]
) -> None:
    world = World(config)
    for event in events:
        world.apply(*event)
    for call in list(world.alive.values()):
        world.gone(call, False)
    assert not world.core.table.calls
    assert len(world.queue) == 0
    assert len(world.core.table) == len(world.core.table._idle)


@settings(max_examples=60, deadline=None)
@given(CONFIGS, EVENTS)
def test_same_events_give_the_same_order(
    config: ProgramSchedConfig, events: list[tuple[str, int, int]]
) -> None:
    worlds = World(config), World(config)
    for event in events:
        for world in worlds:
            world.apply(*event)
    first, second = ([(c.call_id, c.rank) for c in w.queue.ordered()] for w in worlds)
    assert first == second


@settings(max_examples=60, deadline=None)
@given(CONFIGS, EVENTS)
def test_ranking_again_changes_nothing(
    config: ProgramSchedConfig, events: list[tuple[str, int, int]]
) -> None:
    world = World(config)
    for event in events:
        world.apply(*event)
    # Learned distributions may move between events; a rank must settle at once.
    for call in world.alive.values():
        world.core.rank(call)
        assert not world.core.rank(call)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "start", "compute", "finish", "wait"]),
            st.integers(0, 5),
            st.integers(1, 40),
        ),
        max_size=120,
    ),
    st.sampled_from([1.0, 4.0]),
    st.sampled_from(["fcfs", "plas", "gittins"]),
)
def test_a_program_is_promoted_once_its_waiting_ratio_reaches_beta(
    events: list[tuple[str, int, int]], beta: float, policy: str
) -> None:
    world = World(
        ProgramSchedConfig(policy=policy, starvation_ratio=beta, starvation_floor_s=0.5)
    )
    for operation, which, size in events:
        if operation == "arrive":
            which %= 6
            size = min(size, 39)
        world.apply(operation, which, size)
        world.core.promote_starving(world.now_s)
        promoted = []
        for call in world.queue.ordered():
            program = call.program
            waited_s = program.wait_s + call.total_wait_s(world.now_s)
            execution_s = max(0.5, program.execution_s + call.execution_s)
            if waited_s >= beta * execution_s + 1e-6:
                assert call.promoted
            if call.promoted:
                promoted.append((call.rank[0], program.seq))
                assert call.rank[1] == 0
        # Oldest program first, inside the user's own tiers.
        assert promoted == sorted(promoted)
        head = world.queue.ordered()[: len(promoted)]
        tiers = {c.rank[0] for c in world.queue.calls()}
        if len(tiers) == 1:
            assert all(c.promoted for c in head)
