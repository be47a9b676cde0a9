# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The worked example of Autellix (arXiv 2502.13965), figure 2, call by call."""

import pytest

from vllm_program_sched.config import ProgramSchedConfig
from vllm_program_sched.core import ProgramCore
from vllm_program_sched.process_table import Call

PROGRAMS = {"A": (4, 3, 1, 1), "B": (3, 3, 4), "C": (1, 2), "D": (4,)}
BATCH = 2


def total_wait(config: ProgramSchedConfig) -> tuple[int, dict[str, int]]:
    """Run algorithm 1 in unit steps; waiting units and completion per program.

    The batch is formed anew in queue order at every step, as in the paper: whoever
    is not in it is preempted.
    """
    core = ProgramCore(config)
    queue = core.new_queue()
    left: dict[str, int] = {}
    done_at: dict[str, int] = {}

    def arrive(program: str, index: int, now: int) -> None:
        call = core.arrive(f"{program}{index}", program, float(now))
        left[call.call_id] = PROGRAMS[program][index]
        queue.push(call)

    for name in PROGRAMS:
        arrive(name, 0, 0)
    waited = now = 0
    while len(queue):
        batch: list[Call] = [queue.pop() for _ in range(min(BATCH, len(queue)))]
        waited += len(queue)
        for call in batch:
            core.start(call, float(now))
        now += 1
        core.meter.step(1.0, len(batch), len(batch))
        for call in batch:
            core.computed(call, 1, 0)
            left[call.call_id] -= 1
        # The next call of a program arrives after the round that saw this one finish,
        # so unfinished calls change queue first.
        for call in [c for c in batch if left[c.call_id] > 0]:
            core.preempt(call, float(now), 0)
            queue.push(call)
        for call in [c for c in batch if left[c.call_id] == 0]:
            core.finish(call, float(now))
            program, index = call.call_id[0], int(call.call_id[1:]) + 1
            if index < len(PROGRAMS[program]):
                arrive(program, index, now)
            else:
                done_at[program] = now
    assert set(done_at) == set(PROGRAMS)
    return waited, done_at


def config(policy: str) -> ProgramSchedConfig:
    return ProgramSchedConfig(
        policy=policy,
        levels=2,
        level_bounds=(2.0,),
        quanta=(1.0, 1.0),
        starvation_ratio=0.0,
    )


def test_fcfs_waits_18_units() -> None:
    assert total_wait(config("fcfs"))[0] == 18


@pytest.mark.parametrize("policy", ["plas", "atlas"])
def test_program_attained_service_waits_12_units(policy: str) -> None:
    waited, done_at = total_wait(config(policy))
    assert waited == 12
    assert done_at["C"] < total_wait(config("fcfs"))[1]["C"]


def test_time_unit_gives_the_same_order() -> None:
    # Two calls share each step, so a unit step is worth 500 service units, but for
    # the tail of the run; the waits of the head are what the bounds decide.
    timed = ProgramSchedConfig(
        policy="plas",
        service_unit="time",
        levels=2,
        level_bounds=(1000.0,),
        quanta=(500.0, 500.0),
        starvation_ratio=0.0,
    )
    assert total_wait(timed)[0] == 12
