# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How soon do programs finish: policies x loads x seeds on a real engine.

Run from the repository root: ``python -m benchmarks.program_sched.bench_programs``.
One server per policy serves all loads and seeds. Load 1 is the capacity of plain vLLM
on the machine, measured first, so that the regimes are the same on every machine. The
result file is written after each cell and a run with the same settings continues where
the last one stopped.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.command import run_command
from benchmarks.program_sched.experiment import (
    let_learn,
    measure,
    measure_unloaded,
    prepare,
)
from benchmarks.program_sched.plot import plot_latency_cdf
from benchmarks.program_sched.policies import BASELINE, PolicySpec, policy_named
from benchmarks.program_sched.report import load_line, summarize, tables
from benchmarks.program_sched.results import ResultFile
from benchmarks.program_sched.server import VllmServer
from benchmarks.program_sched.workload import WorkloadParams
from scripts.model_cache import resolve_model

_LOW_LOAD_SHARE = 0.2


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _words(text)]


def _seeds(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _mix(text: str) -> tuple[float, ...]:
    return tuple(_numbers(text))


def _parser() -> argparse.ArgumentParser:
    defaults = WorkloadParams()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.program_sched.bench_programs",
        description="Compare scheduling policies on seeded agent programs.",
    )
    parser.add_argument("--model", help="path or hub id (default: the demo model)")
    parser.add_argument(
        "--policies",
        type=_words,
        default=_words("fcfs,priority,mlfq,plas,atlas,gittins,srpt"),
        help="comma-separated; ours is the plugin with its default policy",
    )
    parser.add_argument(
        "--loads",
        type=_numbers,
        default=[3.0, 0.3],
        help="arrival rates in multiples of the capacity of plain vLLM",
    )
    parser.add_argument("--seeds", type=_seeds, default=[1, 2, 3])
    parser.add_argument(
        "--programs",
        type=int,
        default=defaults.programs,
        help="programs of a replay; at loads below 1 a fifth of them",
    )
    parser.add_argument(
        "--mix", type=_mix, default=defaults.mix, help="shares of chat,tools,tree"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=24,
        metavar="N",
        help="unmeasured programs replayed on every server first, the same for every "
        "policy: they measure the capacity, and a policy that learns is measured as on "
        "a server that has run",
    )
    parser.add_argument(
        "--unloaded",
        type=int,
        default=0,
        metavar="N",
        help="also run N programs of every seed one at a time on plain vLLM",
    )
    parser.add_argument("--out", type=Path, default=Path("results/program_sched"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the missing cells and print the tables; return the exit status."""
    options = _parser().parse_args(arguments)
    return run_command(
        "bench_programs",
        lambda: _run(options),
        (FileNotFoundError, ValueError, RuntimeError),
    )


def _run(options: argparse.Namespace) -> int:
    model = options.model or resolve_model()
    # Plain vLLM is always part of it, and first: its capacity is the unit of load.
    names = [BASELINE, *(name for name in options.policies if name != BASELINE)]
    policies = [policy_named(name) for name in names]
    workload = dataclasses.asdict(_params(options))
    for swept in ("seed", "rate", "text_variant"):
        del workload[swept]
    if not options.warm_up > 0:
        raise ValueError(f"--warm-up {options.warm_up}: the capacity needs at least 1")
    path = options.out / "results.json"
    results = ResultFile(
        path, {"model": model, "workload": workload, "warm_up": options.warm_up}
    )
    for policy in policies:
        _measure_policy(policy, model, results, options)
    cells = [cell for cell in results.cells if cell.policy in names]
    pictures = plot_latency_cdf(cells, options.out / "latency_cdf")
    text = "\n\n".join([tables(cells), *_load_lines(results)])
    (options.out / "tables.txt").write_text(text + "\n")
    print(f"\n{text}\n\nAll rows: {results.path}")
    print(f"Plot:     {', '.join(str(picture) for picture in pictures)}")
    failures = sum(summarize(cell).failures for cell in cells)
    if failures:
        print(f"bench_programs: {failures} programs FAILED", file=sys.stderr)
    return 1 if failures else 0


def _params(options: argparse.Namespace) -> WorkloadParams:
    return WorkloadParams(programs=options.programs, mix=tuple(options.mix))


def _programs_at(load: float, programs: int) -> int:
    """Return fewer programs below capacity, where arrivals set the pace."""
    return programs if load >= 1.0 else max(1, round(programs * _LOW_LOAD_SHARE))


def _measure_policy(
    policy: PolicySpec, model: str, results: ResultFile, options: argparse.Namespace
) -> None:
    # A seed holds the same programs at every load. The heaviest load goes first, so
    # that no policy has learned from its programs before.
    missing = [
        (load, seed)
        for load in sorted(options.loads, reverse=True)
        for seed in options.seeds
        if not results.has(policy.name, load, seed)
    ]
    alone = list(_missing_unloaded(policy, results, options))
    if not missing and not alone:
        return
    print(f"\n== {policy.title} ==", file=sys.stderr)
    log = options.out / f"server-{policy.name}.log"
    with VllmServer(model, log, policy.server_flags) as vllm:
        prepare(vllm, policy)
        any_params = _params(options)
        capacity = let_learn(vllm, policy, any_params, options.warm_up)
        if results.capacity is None:
            results.capacity = capacity
        for seed in alone:
            params = dataclasses.replace(any_params, seed=seed, text_variant="alone")
            cell = measure_unloaded(vllm, policy, params, options.unloaded)
            results.add(cell, unloaded=True)
        for load, seed in missing:
            params = dataclasses.replace(
                any_params,
                seed=seed,
                programs=_programs_at(load, options.programs),
                rate=load * results.capacity,
                text_variant=f"load{load:g}",
            )
            results.add(measure(vllm, policy, params, load))


def _missing_unloaded(
    policy: PolicySpec, results: ResultFile, options: argparse.Namespace
) -> Iterator[int]:
    if policy.name == BASELINE and options.unloaded:
        measured = {cell.seed for cell in results.unloaded}
        yield from (seed for seed in options.seeds if seed not in measured)


def _load_lines(results: ResultFile) -> list[str]:
    lines = {
        load: load_line(load, results.cells, results.unloaded)
        for load in sorted({cell.load for cell in results.cells})
    }
    return [f"{load:g} x capacity: {line}" for load, line in lines.items() if line]


if __name__ == "__main__":
    sys.exit(main())
