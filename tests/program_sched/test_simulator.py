# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The simulator: work is conserved under every policy, and order pays as it should."""

import statistics
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.program_sched.simulator import (
    EngineModel,
    SimulationResult,
    Simulator,
    simulate,
)
from benchmarks.program_sched.workload import (
    CallSpec,
    ProgramSpec,
    WorkloadParams,
    generate_programs,
)
from vllm_program_sched.config import POLICIES, ProgramSchedConfig


@st.composite
def workloads(draw: st.DrawFn) -> list[ProgramSpec]:
    """Small random DAGs, with parallel calls, pauses and simultaneous arrivals."""
    programs, now_s = [], 0.0
    for index in range(draw(st.integers(1, 6))):
        now_s += draw(st.sampled_from([0.0, 0.05, 1.0]))
        calls: list[CallSpec] = []
        for k in range(draw(st.integers(1, 6))):
            parents = sorted(
                draw(st.sets(st.sampled_from(range(k)), max_size=2)) if k else ()
            )
            context = calls[parents[0]] if parents else None
            new = draw(st.integers(1, 300))
            before = context.context_tokens if context else 110
            calls.append(
                CallSpec(
                    f"c{k}",
                    tuple(f"c{p}" for p in parents),
                    context.call_id if context else None,
                    "main",
                    "",
                    new,
                    before + new,
                    draw(st.integers(1, 60)),
                    draw(st.sampled_from([0.0, 0.3])) if parents else 0.0,
                )
            )
        programs.append(ProgramSpec(f"p{index}", "chat", now_s, tuple(calls)))
    return programs


def aggressive(policy: str) -> ProgramSchedConfig:
    return ProgramSchedConfig(
        policy=policy,
        preempt_hysteresis_levels=1,
        preempt_min_run_tokens=1,
        preempt_max_per_step=4,
        starvation_ratio=4.0,
        starvation_floor_s=0.5,
    )


@settings(max_examples=60, deadline=None)
@given(workloads(), st.sampled_from(POLICIES), st.integers(1, 3), st.integers(8, 200))
def test_every_program_completes_and_work_is_conserved(
    programs: list[ProgramSpec], policy: str, slots: int, budget: int
) -> None:
    engine = EngineModel(slots=slots, token_budget=budget)
    simulator = Simulator(programs, aggressive(policy), engine)
    result = simulator.run()
    assert set(result.latencies_s) == {p.program_id for p in programs}
    assert result.output_tokens == sum(p.output_tokens for p in programs)
    assert not simulator.core.table.calls
    for program in programs:
        # A call's tokens come one step at a time after its prompt is computed.
        longest = max(call.output_tokens for call in program.calls)
        assert result.latencies_s[program.program_id] >= longest * engine.base_s
    # The clock only stands still for the engine while it has nothing to do.
    assert simulator.core.meter.elapsed_s <= result.makespan_s + 1e-6


def computed_tokens(programs: list[ProgramSpec], config: ProgramSchedConfig) -> int:
    """Tokens the engine computed, from the time it took beyond empty steps."""
    engine = EngineModel(
        slots=2,
        token_budget=64,
        block_tokens=1,
        base_s=0.0,
        decode_s=0.001,
        prefill_s=0.001,
    )
    simulator = Simulator(programs, config, engine)
    simulator.run()
    # Steps are far below the meter's clamp, and cost 1 ms per token.
    return round(simulator.core.meter.elapsed_s * 1000)


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_policies_compute_the_same_tokens_with_a_perfect_cache(
    programs: list[ProgramSpec],
) -> None:
    # With one-token blocks preemption loses nothing, so all orders cost the same.
    costs = {p: computed_tokens(programs, aggressive(p)) for p in POLICIES}
    assert len(set(costs.values())) == 1, costs


@settings(max_examples=30, deadline=None)
@given(workloads(), st.sampled_from(POLICIES))
def test_two_runs_are_equal(programs: list[ProgramSpec], policy: str) -> None:
    first, second = (simulate(programs, aggressive(policy)) for _ in range(2))
    assert first == second


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_fcfs_starts_calls_in_arrival_order_and_never_preempts(
    programs: list[ProgramSpec],
) -> None:
    started: list[int] = []

    class Recorder(Simulator):
        def _start(self, call: object) -> None:
            started.append(call.seq)  # type: ignore[attr-defined]
            super()._start(call)  # type: ignore[arg-type]

    config = ProgramSchedConfig(policy="fcfs", starvation_ratio=0.0)
    result = Recorder(programs, config, EngineModel(slots=1)).run()
    assert started == sorted(started)
    assert result.preemptions == 0


SEEDS = (1, 2, 3)


@cache
def loaded(policy: str, seed: int) -> SimulationResult:
    """The paper's equal mix at a rate the engine cannot keep up with."""
    programs = generate_programs(
        WorkloadParams(seed=seed, programs=90, rate=2.0, text_variant="t")
    )
    return simulate(programs, ProgramSchedConfig(policy=policy))


def mean_s(policy: str) -> float:
    return statistics.fmean(loaded(policy, seed).mean_s for seed in SEEDS)


def test_knowing_what_remains_beats_arrival_order() -> None:
    assert mean_s("srpt") < 0.75 * mean_s("fcfs")


@pytest.mark.parametrize("other", ["fcfs", "plas"])
def test_learning_beats_arrival_order_and_attained_service(other: str) -> None:
    assert mean_s("gittins") < 0.97 * mean_s(other)


def test_no_policy_beats_the_oracle_by_much() -> None:
    for policy in ("fcfs", "program_fcfs", "plas", "atlas", "gittins"):
        assert mean_s("srpt") < 1.02 * mean_s(policy)


def test_work_takes_as_long_whatever_the_order() -> None:
    spans = [
        sum(loaded(policy, seed).makespan_s for seed in SEEDS)
        for policy in ("fcfs", "plas", "gittins", "srpt")
    ]
    assert max(spans) < 1.25 * min(spans)
