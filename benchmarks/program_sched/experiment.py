# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One measurement: a workload, replayed on a running server under one policy."""

import asyncio
import dataclasses
from collections.abc import Sequence

from benchmarks.program_sched.policies import PolicySpec
from benchmarks.program_sched.replay import ReplayOptions, replay, warm_up
from benchmarks.program_sched.report import Cell
from benchmarks.program_sched.server import SERVED_NAME, VllmServer, growth
from benchmarks.program_sched.workload import (
    ProgramSpec,
    WorkloadParams,
    generate_programs,
)

_LEARNING_SEED = 9001


def prepare(server: VllmServer, policy: PolicySpec) -> None:
    """Pay the first-step costs of a server that has just started."""
    asyncio.run(warm_up(_options(server, policy)))


def let_learn(
    server: VllmServer, policy: PolicySpec, params: WorkloadParams, programs: int
) -> None:
    """Replay programs that no measured seed holds, and measure nothing.

    Every policy gets them, so that one which learns is measured as on a server that has
    been running, and caches are equally warm for all.
    """
    if programs:
        unmeasured = dataclasses.replace(
            params, seed=_LEARNING_SEED, programs=programs, text_variant="warm"
        )
        measure(server, policy, unmeasured)


def measure(
    server: VllmServer,
    policy: PolicySpec,
    params: WorkloadParams,
) -> Cell:
    """Replay the workload and return its cell.

    Raises:
        ServerError: The server ended during the replay.
    """
    programs = generate_programs(params)
    label = f"{policy.name}, {params.rate:g}/s, seed {params.seed}"
    options = _options(server, policy)
    return _measure(server, policy, params, programs, options, label)


def measure_unloaded(
    server: VllmServer, policy: PolicySpec, params: WorkloadParams, sample: int
) -> Cell:
    """Replay an even sample of the workload's programs, one program at a time."""
    programs = generate_programs(params)
    chosen = programs[:: max(1, len(programs) // sample)][:sample]
    options = _options(server, policy, one_at_a_time=True)
    label = f"{policy.name}, one at a time, seed {params.seed}"
    return _measure(server, policy, params, chosen, options, label)


def load_ratio(loaded: Cell, unloaded: Cell) -> float:
    """Return mean latency under load / unloaded, over the programs in both.

    Raises:
        ValueError: No program finished in both.
    """
    alone_s, loaded_s = _latencies_s(unloaded), _latencies_s(loaded)
    both = alone_s.keys() & loaded_s.keys()
    if not both:
        raise ValueError("no program finished both under load and alone")
    return sum(loaded_s[name] for name in both) / sum(alone_s[name] for name in both)


def _latencies_s(cell: Cell) -> dict[str, float]:
    return {
        _shape_id(row.program_id): row.latency_s
        for row in cell.programs
        if row.error is None
    }


def _shape_id(program_id: str) -> str:
    """Return the id without the variant of its words."""
    return program_id.partition("@")[0]


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
        rate=params.rate,
        seed=params.seed,
        programs=tuple(records),
        counters=growth(before, server.counters()),
        server_command=tuple(server.command()),
    )
