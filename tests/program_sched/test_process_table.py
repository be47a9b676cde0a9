# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Process table: bookkeeping, bounds, and a million programs in flat memory."""

import tracemalloc

import pytest

from vllm_program_sched.process_table import (
    Call,
    ProcessTable,
    Program,
)


class Ended:
    """Records which programs left a table and why."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, str]] = []

    def __call__(self, program: Program, reason: str) -> None:
        self.reasons.append((program.program_id, reason))


def run(table: ProcessTable, call: Call, now_s: float, service: float = 1.0) -> None:
    call.wait_s = call.total_wait_s(now_s)
    call.waiting_since_s = None
    table.charge(call, service, service / 10)
    table.finish(call, now_s)


def test_finished_calls_add_up() -> None:
    table = ProcessTable(100.0, 10)
    first = table.arrive("a", "p", 0.0)
    run(table, first, 2.0, 5.0)
    second = table.arrive("b", "p", 3.0)
    assert second.inherited_service == 5.0
    run(table, second, 4.0, 7.0)
    program = table.programs["p"]
    assert program.attained_service == 12.0
    assert program.critical_path == 12.0
    assert program.wait_s == 3.0
    assert program.execution_s == pytest.approx(1.2)
    assert (program.num_calls, program.num_finished_calls) == (2, 2)
    assert (program.last_arrival_s, program.last_completion_s) == (3.0, 4.0)
    assert program.engine_ids == {0}


def test_parallel_calls_sum_for_plas_and_take_the_longest_for_atlas() -> None:
    table = ProcessTable(100.0, 10)
    calls = [table.arrive(str(i), "p", 0.0) for i in range(3)]
    for call, service in zip(calls, (3.0, 9.0, 4.0), strict=True):
        run(table, call, 1.0, service)
    assert table.programs["p"].attained_service == 16.0
    assert table.programs["p"].critical_path == 9.0


def test_named_parents_give_the_path_through_them() -> None:
    table = ProcessTable(100.0, 10)
    x, y = (table.arrive(f"{name}-0badcafe", "p", 0.0) for name in "xy")
    run(table, x, 1.0, 3.0)
    run(table, y, 1.0, 9.0)
    assert table.arrive("c", "p", 1.0, parent_call_ids=("x",)).inherited_service == 3
    both = table.arrive("d", "p", 1.0, parent_call_ids=("x", "y"))
    assert both.inherited_service == 9.0
    unknown = table.arrive("e", "p", 1.0, parent_call_ids=("z",))
    assert unknown.inherited_service == 9.0


def test_a_parent_with_several_answers_counts_as_the_longest() -> None:
    table = ProcessTable(100.0, 10)
    answers = [table.arrive(f"{n}_x-0badcafe", "p", 0.0) for n in range(2)]
    for answer, service in zip(answers, (7.0, 2.0), strict=True):
        run(table, answer, 1.0, service)
    run(table, table.arrive("y-0badcafe", "p", 1.0), 2.0, 30.0)
    child = table.arrive("c", "p", 3.0, parent_call_ids=("x",))
    assert child.inherited_service == 7.0


def test_an_active_id_is_refused_and_changes_nothing() -> None:
    table = ProcessTable(100.0, 10)
    call = table.arrive("a", "p", 0.0)
    with pytest.raises(ValueError, match="'a' is already active"):
        table.arrive("a", "q", 1.0)
    assert table.calls == {"a": call}
    assert list(table.programs) == ["p"]
    run(table, call, 1.0)
    assert table.arrive("a", "p", 2.0) is not call


def test_finishing_twice_counts_once() -> None:
    table = ProcessTable(100.0, 10)
    call = table.arrive("a", "p", 0.0)
    run(table, call, 1.0)
    table.finish(call, 5.0)
    assert table.programs["p"].num_finished_calls == 1
    assert table.programs["p"].wait_s == 1.0


def test_abort_folds_in_what_was_used() -> None:
    ended = Ended()
    table = ProcessTable(100.0, 10, ended)
    call = table.arrive("a", "p", 0.0, ends_program=True)
    table.charge(call, 6.0, 0.5)
    table.finish(call, 2.0, aborted=True)
    program = table.programs["p"]
    assert (program.attained_service, program.critical_path) == (6.0, 6.0)
    assert not table.calls
    # The client may retry, so an aborted last call does not end its program.
    assert not ended.reasons


@pytest.mark.parametrize(("aborted", "reason"), [(False, "call"), (True, "abort")])
def test_a_call_without_program_leaves_at_once(aborted: bool, reason: str) -> None:
    ended = Ended()
    table = ProcessTable(100.0, 10, ended)
    table.finish(table.arrive("a", "a", 0.0, explicit=False), 1.0, aborted)
    assert ended.reasons == [("a", reason)]
    assert len(table) == 0


def test_end_waits_for_active_calls_and_for_new_ones() -> None:
    ended = Ended()
    table = ProcessTable(100.0, 10, ended)
    first = table.arrive("a", "p", 0.0)
    assert table.end_program("p")
    late = table.arrive("b", "p", 1.0)
    table.finish(first, 2.0)
    assert not ended.reasons
    table.finish(late, 3.0)
    assert ended.reasons == [("p", "end")]
    assert not table.end_program("p")
    assert table.arrive("c", "p", 4.0).inherited_service == 0.0


def test_last_call_ends_its_program() -> None:
    ended = Ended()
    table = ProcessTable(100.0, 10, ended)
    table.finish(table.arrive("a", "p", 0.0, ends_program=True), 1.0)
    assert ended.reasons == [("p", "end")]


def test_idle_programs_expire_and_active_ones_do_not() -> None:
    ended = Ended()
    table = ProcessTable(10.0, 100, ended)
    table.finish(table.arrive("a", "idle", 0.0), 1.0)
    table.arrive("b", "busy", 0.0)
    assert table.expire(10.9) == 0
    assert table.expire(11.0) == 1
    assert ended.reasons == [("idle", "ttl")]
    assert table.expire(1e9) == 0
    assert list(table.programs) == ["busy"]


def test_an_arrival_after_the_ttl_starts_a_new_program() -> None:
    table = ProcessTable(10.0, 100)
    run(table, table.arrive("a", "p", 0.0), 1.0, 50.0)
    assert table.arrive("b", "p", 12.0).inherited_service == 0.0
    assert table.programs["p"].attained_service == 0.0


def test_beyond_the_bound_the_least_recent_idle_program_leaves() -> None:
    ended = Ended()
    table = ProcessTable(1e9, 2, ended)
    active = table.arrive("x", "active", 0.0)
    for i, name in enumerate("abac"):
        table.finish(table.arrive(str(i), name, float(i)), float(i))
    assert ended.reasons == [("b", "lru")]
    assert set(table.programs) == {"active", "a", "c"}
    assert active.call_id in table.calls


def test_clock_going_back_neither_expires_nor_counts_negative() -> None:
    table = ProcessTable(10.0, 10)
    table.finish(table.arrive("a", "p", 1000.0), 1001.0)
    call = table.arrive("b", "p", 5.0)
    assert call.total_wait_s(1.0) == 0.0
    table.finish(call, 1.0)
    assert table.programs["p"].wait_s == 1.0
    assert table.expire(2.0) == 0


def test_finished_paths_of_a_program_are_bounded() -> None:
    table = ProcessTable(1e9, 10)
    for i in range(2000):
        run(table, table.arrive(str(i), "p", 0.0), 0.0)
    assert len(table.programs["p"].finished_paths) <= 256


@pytest.mark.parametrize("how", ["end", "call", "ttl", "lru"])
def test_a_million_programs_leave_memory_flat(how: str) -> None:
    # The four ways share a million programs; every way is far past its bound.
    table = ProcessTable(0.5 if how == "ttl" else 1e12, 1000)
    explicit = how != "call"

    def churn(first: int, count: int) -> int:
        for i in range(first, first + count):
            name = str(i)
            now_s = i * 1e-3
            call = table.arrive(
                name, name, now_s, explicit=explicit, ends_program=how == "end"
            )
            call.waiting_since_s = None
            table.charge(call, 1.0, 1e-3)
            table.finish(call, now_s)
        return len(table)

    live = churn(0, 125_000)
    tracemalloc.start()
    churn(125_000, 2000)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    churn(127_000, 121_000)
    tracemalloc.start()
    assert churn(248_000, 2000) == live
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert live <= 1000
    assert not table.calls
    assert len(table.programs) == len(table._idle) == live
    assert after < 1.2 * before + 64_000
