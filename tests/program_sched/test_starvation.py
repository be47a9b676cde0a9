# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Starvation guard: when a call is promoted, and what that costs to know."""

import gc
import weakref

from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Program
from vllm_program_sched.starvation import StarvationGuard


def core_of(**options: object) -> ProgramCore:
    return ProgramCore(
        ProgramSchedConfig.from_options(
            {
                "policy": "plas",
                "starvation_ratio": 4.0,
                "starvation_floor_s": 1.0,
                **options,
            }
        )
    )


def test_a_new_program_is_promoted_after_beta_floors() -> None:
    core = core_of()
    call = core.arrive("a", "a", 100.0)
    assert core.promote_starving(103.9) == 0
    assert core.promote_starving(104.0) == 1
    assert call.rank[1] == 0
    assert core.promote_starving(200.0) == 0
    assert core.num_promotions == 1


def test_execution_earns_patience() -> None:
    core = core_of()
    call = core.arrive("a", "a", 0.0)
    core.start(call, 0.0)
    core.charge(call, 1.0, 10.0)
    core.preempt(call, 10.0, 0)
    assert core.promote_starving(49.0) == 0
    assert core.promote_starving(50.0) == 1


def test_waiting_of_finished_calls_counts() -> None:
    core = core_of()
    first = core.arrive("a", "p", 0.0)
    core.start(first, 3.0)
    core.finish(first, 3.0)
    core.arrive("b", "p", 10.0)
    assert core.promote_starving(10.9) == 0
    assert core.promote_starving(11.0) == 1


def test_what_a_sibling_waited_counts_as_soon_as_it_is_done() -> None:
    core = core_of()
    first, second = core.arrive("a", "p", 0.0), core.arrive("b", "p", 0.0)
    core.start(first, 3.0)
    core.finish(first, 3.0)
    # 3 s of the sibling and 3 s of its own are beyond 4 floors of 1 s.
    assert core.promote_starving(3.0) == 1
    assert second.promoted


def test_a_starving_program_is_served_first_from_arrival_on() -> None:
    core = core_of()
    first = core.arrive("a", "p", 0.0)
    core.start(first, 50.0)
    core.finish(first, 50.0)
    assert core.arrive("b", "p", 51.0).rank[1] == 0
    assert core.num_promotions == 1


def test_promoted_calls_go_oldest_program_first_inside_a_tier() -> None:
    core = core_of()
    calls = {
        name: core.arrive(name, name, at_s, tier=tier)
        for name, at_s, tier in (("b", 0, 0), ("a", 1, 0), ("c", 2, 0), ("u", 3, -1))
    }
    late = core.arrive("b2", "b", 4.0)
    core.promote_starving(100.0)
    got = sorted([*calls.values(), late], key=lambda call: call.rank)
    assert [call.call_id for call in got] == ["u", "b", "b2", "a", "c"]


def test_promotion_does_not_outlive_the_reason_for_it() -> None:
    core = core_of()
    call = core.arrive("a", "a", 0.0)
    core.promote_starving(5.0)
    core.start(call, 5.0)
    core.preempt(call, 5.5, 0)
    assert call.promoted
    core.start(call, 6.0)
    core.charge(call, 100.0, 30.0)
    core.preempt(call, 36.0, 0)
    assert not call.promoted
    assert call.rank[1] > 0
    # It may starve again: 30 s of execution allow 120 s of waiting, 5.5 are used.
    assert core.promote_starving(36.0 + 114.4) == 0
    assert core.promote_starving(36.0 + 114.6) == 1


def test_ratio_zero_switches_the_guard_off() -> None:
    core = core_of(starvation_ratio=0.0)
    core.arrive("a", "a", 0.0)
    assert core.promote_starving(1e9) == 0


def test_running_and_finished_calls_are_not_promoted() -> None:
    core = core_of()
    running, done = core.arrive("a", "a", 0.0), core.arrive("b", "b", 0.0)
    core.start(running, 1.0)
    core.finish(done, 1.0, aborted=True)
    assert core.promote_starving(1e6) == 0


def test_floor_follows_the_mean_execution_time() -> None:
    guard = StarvationGuard(4.0, 5.0)
    assert guard.floor_s == 5.0
    for i in range(500):
        program = Program(str(i), i, 0.0)
        program.execution_s = 1.0
        guard.program_ended(program)
    assert 1.0 < guard.floor_s < 1.2


def test_finished_calls_are_let_go_long_before_they_would_starve() -> None:
    class Payload:
        """Stands for a request with its prompt."""

    core = core_of(starvation_ratio=1e9)
    alive = weakref.WeakSet[Payload]()
    for i in range(3000):
        payload = Payload()
        alive.add(payload)
        call = core.arrive(str(i), str(i), 0.0, explicit=False, payload=payload)
        core.start(call, 0.0)
        core.finish(call, 0.0)
    del payload, call
    gc.collect()
    assert len(alive) < 600


def test_many_preemptions_of_one_call_keep_one_reminder() -> None:
    core = core_of()
    call = core.arrive("a", "a", 0.0)
    for _ in range(5000):
        core.start(call, 0.0)
        core.charge(call, 0.0, 1e-3)
        core.preempt(call, 0.0, 0)
    assert len(core.guard._due) <= 600
