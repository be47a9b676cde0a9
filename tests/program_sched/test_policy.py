# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What each policy sorts by, against the equations it implements."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_program_sched.config import POLICIES, ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Call


def core_of(policy: str, **options: object) -> ProgramCore:
    return ProgramCore(
        ProgramSchedConfig.from_options(
            {"policy": policy, "starvation_ratio": 0, **options}
        )
    )


def serve(core: ProgramCore, call: Call, service: float) -> None:
    core.start(call, 0.0)
    core.charge(call, service, 0.0)
    core.finish(call, 0.0)


def order(core: ProgramCore, *calls: Call) -> list[str]:
    for call in calls:
        core.rank(call)
    return [c.call_id for c in sorted(calls, key=lambda c: c.rank)]


def test_fcfs_is_arrival_order_of_calls() -> None:
    core = core_of("fcfs")
    calls = [core.arrive(f"c{i}", f"p{i % 2}", 0.0) for i in range(5)]
    core.charge(calls[0], 1e6, 1.0)
    assert order(core, *calls) == [f"c{i}" for i in range(5)]


def test_program_fcfs_is_arrival_order_of_programs() -> None:
    core = core_of("program_fcfs")
    serve(core, core.arrive("a0", "a", 0.0), 1e6)
    calls = [core.arrive(f"{p}1", p, 1.0) for p in "cba"]
    assert order(core, *calls) == ["a1", "c1", "b1"]


def test_mlfq_forgets_the_program() -> None:
    core = core_of("mlfq", levels=2, level_bounds=[10])
    serve(core, core.arrive("a0", "a", 0.0), 1e6)
    old, new = core.arrive("a1", "a", 1.0), core.arrive("b0", "b", 1.0)
    assert order(core, old, new) == ["a1", "b0"]
    core.charge(old, 10.0, 0.0)
    assert order(core, old, new) == ["b0", "a1"]


def test_plas_counts_parallel_calls_and_atlas_the_longest() -> None:
    # Two parallel calls of 6 units: a sum of 12, a path of 6; the bound is 10.
    levels = {}
    for policy in ("plas", "atlas"):
        core = core_of(policy, levels=2, level_bounds=[10])
        for call in [core.arrive(f"a{i}", "a", 0.0) for i in range(2)]:
            serve(core, call, 6.0)
        levels[policy] = core.arrive("a2", "a", 0.0).rank[1]
    assert levels == {"plas": 2, "atlas": 1}


def test_a_waiting_sibling_follows_its_program() -> None:
    core = core_of("plas", levels=2, level_bounds=[10])
    running, waiting = core.arrive("a0", "a", 0.0), core.arrive("a1", "a", 0.0)
    core.start(running, 0.0)
    core.charge(running, 10.0, 0.0)
    assert (running.rank[1], waiting.rank[1]) == (2, 2)


def test_quantum_drops_one_queue_at_a_time_and_cycles_in_the_last() -> None:
    core = core_of("plas", levels=3, level_bounds=[100, 200], quanta=[2, 4, 8])
    call = core.arrive("a", "a", 0.0)
    levels, tails = [], []
    for _ in range(24):
        core.charge(call, 1.0, 0.0)
        levels.append(call.rank[1])
        tails.append(call.rank[2])
    assert levels == [1] + [2] * 4 + [3] * 19
    # Quanta end at 2, 6, 14 and 22 units, and each sends the call to the tail.
    assert [i + 1 for i in range(1, 24) if tails[i] > tails[i - 1]] == [2, 6, 14, 22]


@pytest.mark.parametrize("service", [1e9, 1e300])
def test_a_huge_charge_ends_in_the_last_queue_at_once(service: float) -> None:
    core = core_of("atlas", levels=3, level_bounds=[1, 2], quanta=[1e-9] * 3)
    call = core.arrive("a", "a", 0.0)
    core.charge(call, service, 0.0)
    assert call.rank[1] == 3
    assert call.quantum_left > 0


def test_queue_is_fifo_by_entry() -> None:
    core = core_of("mlfq", levels=2, level_bounds=[10])
    calls = [core.arrive(n, n, 0.0) for n in "abc"]
    for index in (2, 0, 1):
        core.charge(calls[index], 10.0, 0.0)
    assert order(core, *calls) == ["c", "a", "b"]


def test_srpt_is_remaining_work_and_unknown_goes_last() -> None:
    core = core_of("srpt")
    long = core.arrive("l", "l", 0.0, oracle_remaining=900.0)
    short = core.arrive("s", "s", 0.0, oracle_remaining=100.0)
    blind = core.arrive("b", "b", 0.0)
    assert order(core, blind, long, short) == ["s", "l", "b"]
    core.charge(long, 850.0, 0.0)
    assert order(core, blind, long, short) == ["l", "s", "b"]
    core.charge(long, 1e9, 0.0)
    assert long.program.oracle_remaining == 0.0


def test_gittins_without_learning_is_least_attained_service() -> None:
    # The four programs themselves are observations; the prior outweighs them.
    core = core_of("gittins", prior_strength=100)
    calls = [core.arrive(n, n, 0.0) for n in "abcd"]
    for call, service in zip(calls, (4000.0, 40.0, 1000.0, 200.0), strict=True):
        core.charge(call, service, 0.0)
    assert order(core, *calls) == ["b", "d", "c", "a"]


def test_gittins_serves_first_what_is_nearly_done() -> None:
    core = core_of("gittins", size_exponent=0)
    for i in range(300):
        serve(core, core.arrive(f"x{i}", f"x{i}", 0.0, ends_program=True), 1000.0)
    fresh, old = core.arrive("f", "f", 0.0), core.arrive("o", "o", 0.0)
    core.charge(old, 800.0, 0.0)
    assert order(core, fresh, old) == ["o", "f"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("service", [0.0, 1e-12, 1e12, 1e300])
def test_every_policy_ranks_any_service(policy: str, service: float) -> None:
    core = core_of(policy)
    call = core.arrive("a", "a", 0.0, oracle_remaining=service)
    core.charge(call, service, 0.0)
    assert 1 <= call.rank[1] <= 16
    assert math.isfinite(call.rank[2])


SEQUENTIAL = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4000)), min_size=1, max_size=80
)


@settings(max_examples=100, deadline=None)
@given(SEQUENTIAL, st.booleans())
def test_plas_is_atlas_on_sequential_programs(
    work: list[tuple[int, int]], quanta: bool
) -> None:
    fixed = {"levels": 3, "level_bounds": [512, 4096], "quanta": [16, 64, 256]}
    cores = [core_of(p, **(fixed if quanta else {})) for p in ("plas", "atlas")]
    for i, (program, quarter_units) in enumerate(work):
        ranks = []
        for core in cores:
            call = core.arrive(f"c{i}", f"p{program}", float(i))
            before = call.rank
            core.start(call, float(i))
            core.charge(call, quarter_units / 4, 0.0)
            ranks.append((before, call.rank))
            core.finish(call, float(i))
        assert ranks[0] == ranks[1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 30), max_size=3), st.integers(1, 100)),
        min_size=1,
        max_size=30,
    )
)
def test_atlas_with_named_parents_is_equation_2(
    dag: list[tuple[set[int], int]],
) -> None:
    core = core_of("atlas")
    paths: list[float] = []
    # A call that ran for an hour keeps the program's own path far above all others.
    serve(core, core.arrive("noise", "p", 0.0), 1e6)
    for i, (raw, service) in enumerate(dag):
        parents = sorted({p % i for p in raw}) if i else []
        call = core.arrive(
            f"c{i}-00c0ffee", "p", 0.0, parent_call_ids=tuple(f"c{p}" for p in parents)
        )
        inherited = max((paths[p] for p in parents), default=None)
        if inherited is None:
            # Nobody named: algorithm 1 inherits the longest path of the program.
            inherited = call.program.critical_path
        assert call.inherited_service == inherited
        assert core.policy.index(call) == inherited
        serve(core, call, float(service))
        paths.append(inherited + service)
