# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The core as a whole: what is charged, when, and what each event costs."""

import math
from unittest import mock

import pytest

from vllm_program_sched.config import POLICIES, ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Program


def core_of(**options: object) -> ProgramCore:
    return ProgramCore(ProgramSchedConfig.from_options({"policy": "plas", **options}))


def test_tokens_are_charged_by_weight_when_settled() -> None:
    core = core_of(prefill_weight=0.5, decode_weight=2.0)
    call = core.arrive("a", "p", 0.0)
    core.start(call, 1.0)
    assert core.computed(call, 101, 101) == 0
    assert core.computed(call, 1, 102) == 0
    assert call.service == 0.0
    core.settle(call)
    # 100 prompt tokens, and two generated: the chunk's last token yields one.
    assert call.service == 100 * 0.5 + 2 * 2.0
    assert call.program.attained_service == call.service
    assert call.run_tokens == 102
    core.settle(call)
    assert call.service == 54.0


def test_recomputed_tokens_are_not_charged_again() -> None:
    core = core_of(prefill_weight=1.0)
    call = core.arrive("a", "p", 0.0)
    core.start(call, 0.0)
    core.computed(call, 100, 100)
    core.preempt(call, 1.0, 100)
    before = call.service
    core.start(call, 2.0)
    # It comes back with its last sampled token on top of what it had computed.
    assert core.computed(call, 101, 101) == 100
    core.settle(call)
    assert call.service - before == 1.0


def test_time_is_shared_among_the_calls_of_a_step() -> None:
    core = core_of(service_unit="time")
    calls = [core.arrive(n, n, 0.0) for n in "ab"]
    core.start(calls[0], 0.0)
    core.meter.step(0.2, 1, 5)
    core.start(calls[1], 0.2)
    core.meter.step(0.4, 2, 5)
    for call in calls:
        core.settle(call)
    assert [call.service for call in calls] == pytest.approx([400.0, 200.0])
    # Engine time is wall time, which every call of a step sees whole.
    assert [call.execution_s for call in calls] == pytest.approx([0.6, 0.4])


def test_waiting_is_the_sum_of_stretches() -> None:
    core = core_of()
    call = core.arrive("a", "p", 10.0)
    core.start(call, 12.0)
    core.preempt(call, 15.0, 0)
    assert call.total_wait_s(16.0) == 3.0
    core.start(call, 19.0)
    core.finish(call, 30.0)
    assert core.table.programs["p"].wait_s == 6.0


def test_aborted_while_waiting_counts_its_wait_and_leaves_the_queue() -> None:
    core = core_of()
    queue = core.new_queue()
    call = core.arrive("a", "p", 0.0)
    queue.push(call)
    core.finish(call, 7.0, aborted=True)
    assert len(queue) == 0
    assert core.table.programs["p"].wait_s == 7.0


def test_ended_programs_are_learned_from_and_reported_once() -> None:
    ended: list[tuple[Program, str]] = []
    core = ProgramCore(
        ProgramSchedConfig(policy="gittins"), lambda *event: ended.append(event)
    )
    for i in range(3):
        call = core.arrive(str(i), f"p{i}", 0.0, class_key="k", ends_program=True)
        core.start(call, 0.0)
        core.charge(call, 100.0, 1.0)
        core.finish(call, 1.0)
        core.finish(call, 2.0)
    assert [(p.program_id, why) for p, why in ended] == [
        (f"p{i}", "end") for i in range(3)
    ]
    assert core.tables.pooled.num_finished == 3
    assert core.tables.get("k").num_finished == 3


def test_an_aborted_single_call_is_censored_not_learned() -> None:
    core = core_of(policy="gittins")
    call = core.arrive("a", "a", 0.0, explicit=False)
    core.charge(call, 500.0, 1.0)
    core.finish(call, 1.0, aborted=True)
    assert core.tables.pooled.num_finished == 0
    assert sum(core.tables.pooled.passed) > 0


def test_recalibration_moves_waiting_calls_and_keeps_their_order() -> None:
    core = core_of(levels=2, starvation_ratio=0)
    queue = core.new_queue()
    waiting = []
    for i in range(6):
        call = core.arrive(f"w{i}", f"w{i}", 0.0)
        core.charge(call, 100.0, 0.0)
        waiting.append(call)
    for call in reversed(waiting):
        queue.push(call)
    before = queue.ordered()
    assert before == waiting
    assert waiting[0].rank[1] == 2
    for i in range(64):
        call = core.arrive(f"x{i}", f"x{i}", 0.0, ends_program=True)
        core.start(call, 0.0)
        core.charge(call, 10_000.0, 0.0)
        core.finish(call, 0.0)
    assert waiting[0].rank[1] == 1
    assert queue.ordered() == before


def test_user_priority_is_the_outermost_tier() -> None:
    core = core_of(policy="gittins")
    queue = core.new_queue()
    old = core.arrive("old", "old", 0.0, tier=-1)
    core.charge(old, 1e9, 1e3)
    for call in (core.arrive("new", "new", 0.0), old):
        queue.push(call)
    core.promote_starving(1e9)
    assert [call.call_id for call in queue.ordered()] == ["old", "new"]


@pytest.mark.parametrize("policy", POLICIES)
def test_many_calls_of_one_program_cost_constant_time_per_charge(
    policy: str,
) -> None:
    core = core_of(policy=policy)
    queue = core.new_queue()
    calls = []
    for i in range(1000):
        call = core.arrive(f"c{i}", "p", 0.0, oracle_remaining=1e6)
        queue.push(call)
        calls.append(call)
    running = [queue.pop() for _ in range(8)]
    for call in running:
        core.start(call, 0.0)
    with mock.patch.object(core, "rank", wraps=core.rank) as rank:
        for step in range(1000):
            core.charge(running[step % 8], 1.0, 0.01)
    # Siblings follow at the 22 edges of the life table up to 1000 units, and when a
    # running call changes level; following every charge would take 1 000 000.
    assert rank.call_count < 1000 + (22 + 8 * 10) * 1000
    assert len(queue._heap) <= 2 * len(queue) + 1


@pytest.mark.parametrize(("policy", "lag"), [("plas", 0), ("gittins", 1)])
def test_waiting_siblings_follow_their_program(policy: str, lag: int) -> None:
    core = core_of(policy=policy, starvation_ratio=0)
    waiting = [core.arrive(f"w{i}", "p", 0.0) for i in range(20)]
    running = core.arrive("r", "p", 0.0)
    core.start(running, 0.0)
    for _ in range(300):
        core.charge(running, 3.7, 0.01)
        for call in waiting:
            assert abs(call.rank[1] - running.rank[1]) <= lag
    assert running.rank[1] > 2


def test_clock_going_back_does_no_harm() -> None:
    core = core_of()
    queue = core.new_queue()
    call = core.arrive("a", "p", 1000.0)
    queue.push(call)
    assert core.promote_starving(0.0) == 0
    core.start(queue.pop(), 10.0)
    core.preempt(call, 5.0, 0)
    core.finish(call, 1.0)
    program = core.table.programs["p"]
    assert (program.wait_s, program.execution_s) == (0.0, 0.0)


@pytest.mark.parametrize("service", [0.0, 5e-324, 1e300])
@pytest.mark.parametrize("policy", POLICIES)
def test_extreme_service_keeps_ranks_comparable(policy: str, service: float) -> None:
    core = core_of(policy=policy)
    calls = [core.arrive(f"c{i}", f"p{i}", 0.0) for i in range(2)]
    core.charge(calls[0], service, service)
    for call in calls:
        core.rank(call)
        assert not any(math.isnan(part) for part in call.rank)
    assert calls[0].rank != calls[1].rank


def test_a_program_that_ends_while_active_takes_new_calls_along() -> None:
    core = core_of()
    first = core.arrive("a", "p", 0.0)
    core.charge(first, 100.0, 1.0)
    assert core.end_program("p", 1.0)
    second = core.arrive("b", "p", 2.0)
    assert second.program is first.program
    core.finish(first, 3.0)
    assert "p" in core.table.programs
    core.finish(second, 4.0)
    assert "p" not in core.table.programs
    fresh = core.arrive("c", "p", 5.0)
    assert fresh.program is not first.program
    assert fresh.program.attained_service == 0.0
