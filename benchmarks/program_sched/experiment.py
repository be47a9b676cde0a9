# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One measurement: a workload, replayed on a running server under one policy."""

import asyncio
import dataclasses
from collections.abc import Sequence

from benchmarks.program_sched.policies import PolicySpec
from benchmarks.program_sched.replay import ReplayOptions, replay, warm_up
from benchmarks.program_sched.report import Cell, summarize
from benchmarks.program_sched.server import SERVED_NAME, VllmServer, growth
from benchmarks.program_sched.workload import (
    ProgramSpec,
    WorkloadParams,
    generate_programs,
)

_LEARNING_SEED = 9001
# Arrivals that leave no slot free until the last programs end.
_BURST_RATE = 100.0


def prepare(server: VllmServer, policy: PolicySpec) -> None:
    """Pay the first-step costs of a server that has just started."""
    asyncio.run(warm_up(_options(server, policy)))


def let_learn(
    server: VllmServer, policy: PolicySpec, params: WorkloadParams, programs: int
) -> float:
    """Replay programs that no measured seed holds, all arriving together.

    Every policy gets them, so that one which learns is measured as on a server that has
    been running, and caches are equally warm for all.

    Returns:
        The capacity of the server: programs that it finishes per second.
    """
    unmeasured = dataclasses.replace(
        params,
        seed=_LEARNING_SEED,
        programs=programs,
        rate=_BURST_RATE,
        text_variant="warm",
    )
    cell = measure(server, policy, unmeasured)
    return programs / summarize(cell).makespan_s


def measure(
    server: VllmServer,
    policy: PolicySpec,
    params: WorkloadParams,
    load: float = 0.0,
) -> Cell:
    """Replay the workload and return its cell.

    Args:
        server: A running server.
        policy: What it runs, and what the client tells it.
        params: The workload.
        load: Its arrival rate as a multiple of the server's capacity, for the record.

    Raises:
        ServerError: The server ended during the replay.
    """
    programs = generate_programs(params)
    label = f"{policy.name}, {params.rate:.2f}/s, seed {params.seed}"
    options = _options(server, policy)
    cell = _measure(server, policy, params, programs, options, label)
    return dataclasses.replace(cell, load=load)


def measure_unloaded(
    server: VllmServer, policy: PolicySpec, params: WorkloadParams, sample: int
) -> Cell:
    """Replay an even sample of the workload's programs, one program at a time."""
    programs = generate_programs(params)
    chosen = programs[:: max(1, len(programs) // sample)][:sample]
    options = _options(server, policy, one_at_a_time=True)
    label = f"{policy.name}, one at a time, seed {params.seed}"
    return _measure(server, policy, params, chosen, options, label)


def _options(
    server: VllmServer, policy: PolicySpec, *, one_at_a_time: bool = False
) -> ReplayOptions:
    return ReplayOptions(
        base_url=server.base_url,
        model=SERVED_NAME,
        hints=policy.hints,
        one_at_a_time=one_at_a_time,
    )


def _measure(
    server: VllmServer,
    policy: PolicySpec,
    params: WorkloadParams,
    programs: Sequence[ProgramSpec],
    options: ReplayOptions,
    label: str,
) -> Cell:
    before = server.counters()
    records = asyncio.run(replay(programs, options, label=label))
    server.check_alive()
    return Cell(
        policy=policy.name,
        load=0.0,
        rate=params.rate,
        seed=params.seed,
        programs=tuple(records),
        counters=growth(before, server.counters()),
        server_command=tuple(server.command()),
    )
