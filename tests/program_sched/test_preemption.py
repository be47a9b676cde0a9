# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Preemption: never a victim that is not worse, and never one that costs more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.preemption import choose, has_run_enough, is_worse, pays
from vllm_program_sched.process_table import Call, Program

CONFIG = ProgramSchedConfig(preempt_hysteresis_levels=2, preempt_min_run_tokens=16)
PROGRAM = Program("p", 0, 0.0)


def make(seq: int, tier: int, level: int, run_tokens: int = 16) -> Call:
    call = Call(str(seq), PROGRAM, seq, 0.0, tier)
    call.rank, call.run_tokens = (tier, level, 0.0, seq), run_tokens
    return call


PLACES = st.tuples(
    st.integers(-2, 2), st.integers(0, 6), st.integers(0, 64), st.integers(0, 99)
)


@given(PLACES, st.lists(PLACES, max_size=8))
def test_victim_is_the_worst_that_qualifies(
    at: tuple[int, int, int, int], others: list[tuple[int, int, int, int]]
) -> None:
    candidate = make(0, at[0], at[1])
    running = [
        make(i + 1, tier, level, run) for i, (tier, level, run, _) in enumerate(others)
    ]

    def lost(call: Call) -> int:
        return others[call.seq - 1][3]

    def qualifies(call: Call) -> bool:
        tier, level = call.rank[:2]
        if call.run_tokens < 16 or tier < at[0]:
            return False
        gap = 1 if at[1] == 0 else 2
        return tier > at[0] or level >= at[1] + gap

    found = choose(candidate, running, lost, CONFIG)
    good = [call for call in running if qualifies(call)]
    if found is None:
        assert not good
        return
    victim, tokens = found
    assert victim in good
    assert victim.rank[:2] == max(call.rank[:2] for call in good)
    assert tokens == min(lost(c) for c in good if c.rank[:2] == victim.rank[:2])


@given(st.integers(-2, 2), st.integers(0, 8), st.integers(1, 8))
def test_an_equal_never_yields(tier: int, level: int, hysteresis: int) -> None:
    assert not is_worse(make(1, tier, level), make(2, tier, level), hysteresis)


@given(PLACES, PLACES)
def test_two_calls_never_displace_each_other(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int]
) -> None:
    one, two = make(1, a[0], a[1]), make(2, b[0], b[1])
    assert not (is_worse(one, two, 1) and is_worse(two, one, 1))


def test_minimum_run_doubles_with_every_preemption() -> None:
    call = make(1, 0, 5, run_tokens=16)
    assert has_run_enough(call, CONFIG)
    call.preemptions = 1
    assert not has_run_enough(call, CONFIG)
    call.run_tokens = 32
    assert has_run_enough(call, CONFIG)
    call.preemptions, call.run_tokens = 10**9, 16 << 10
    assert has_run_enough(call, CONFIG)


@pytest.mark.parametrize(
    ("candidate", "victim", "release_s", "lost", "expected"),
    [
        (1.0, 10.0, 1.0, 100, True),  # gains 0.9 s, costs 0.1 s
        (1.0, 10.0, 0.1, 100, False),  # a slot comes by itself sooner
        (1.0, 10.0, 1.0, 900, False),  # an even trade is not worth it
        (10.0, 10.0, 1e9, 0, False),  # nobody is nearer to completion
        (20.0, 10.0, 1e9, 0, False),
        (1.0, 0.0, 1e9, 0, False),
        (0.0, 10.0, 1.0, 999, True),
    ],
)
def test_gain_is_weighed_against_recomputation(
    candidate: float, victim: float, release_s: float, lost: int, expected: bool
) -> None:
    assert pays(candidate, victim, lost, release_s, 1e-3) is expected


def running_pair(**options: object) -> tuple[ProgramCore, Call]:
    core = ProgramCore(
        ProgramSchedConfig.from_options(
            {"policy": "plas", "preempt_hysteresis_levels": 1, **options}
        )
    )
    old = core.arrive("old", "old", 0.0)
    core.start(old, 0.0)
    core.computed(old, 1000, 1000)
    for _ in range(1000):
        core.computed(old, 1, 0)
    core.settle(old)
    return core, old


def test_cost_binds_levels_but_not_tiers_nor_the_starving() -> None:
    core, old = running_pair()

    def costly(call: Call) -> int:
        return 10**9

    fresh = core.arrive("new", "new", 0.0)
    assert core.choose_victim(fresh, [old], costly) is None
    core.meter.step(1.0, 1, 1)
    core.meter.released()
    assert core.choose_victim(fresh, [old], lambda call: 0) is old
    urgent = core.arrive("urgent", "urgent", 0.0, tier=-1)
    assert core.choose_victim(urgent, [old], costly) is old
    core.promote_starving(1e6)
    assert fresh.promoted
    assert core.choose_victim(fresh, [old], costly) is old


def test_switched_off_it_never_preempts() -> None:
    core, old = running_pair(preemption=False)
    urgent = core.arrive("urgent", "urgent", 0.0, tier=-9)
    assert core.choose_victim(urgent, [old], lambda call: 0) is None


def test_a_lower_tier_waits_however_starved() -> None:
    core, old = running_pair()
    low = core.arrive("low", "low", 0.0, tier=1)
    core.promote_starving(1e6)
    assert low.promoted
    assert core.choose_victim(low, [old], lambda call: 0) is None
