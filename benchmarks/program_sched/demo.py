# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The same agent programs on vLLM's default scheduler and on the program scheduler.

Run from the repository root: ``python -m benchmarks.program_sched.demo``.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import run_command
from benchmarks.program_sched.experiment import let_learn, measure, prepare
from benchmarks.program_sched.plot import plot_latency_cdf
from benchmarks.program_sched.policies import BASELINE, POLICIES, policy_named
from benchmarks.program_sched.report import Cell, Summary, summarize, tables
from benchmarks.program_sched.results import ResultFile
from benchmarks.program_sched.server import VllmServer
from benchmarks.program_sched.workload import WorkloadParams, generate_programs
from scripts.model_cache import resolve_model


def _parser() -> argparse.ArgumentParser:
    defaults = WorkloadParams()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.program_sched.demo",
        description="Replay one seeded mix of chat, tool loops and search trees on two "
        "real vLLM servers, one after the other, and compare program latencies.",
    )
    parser.add_argument("--model", help="path or hub id (default: the demo model)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--programs", type=int, default=21)
    parser.add_argument(
        "--rate",
        type=float,
        default=1.0,
        help="program arrivals per second; the default is more than two cores finish",
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=24,
        metavar="N",
        help="unmeasured programs from which the scheduler learns first, as it would "
        "from the traffic of a running server",
    )
    parser.add_argument(
        "--policy",
        default="ours",
        choices=[name for name in POLICIES if name != BASELINE],
        help="what to compare with vLLM's default (ours: the plugin as installed)",
    )
    parser.add_argument("--out", type=Path, default=Path("results/demo"))
    parser.add_argument(
        "--json", action="store_true", help="print the summaries as JSON at the end"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    options = _parser().parse_args(arguments)
    return run_command(
        "demo",
        lambda: _run(options),
        (FileNotFoundError, ValueError, RuntimeError),
        interrupted="interrupted, server stopped",
    )


def _run(options: argparse.Namespace) -> int:
    model = options.model or resolve_model()
    params = WorkloadParams(
        seed=options.seed, programs=options.programs, rate=options.rate
    )
    _explain(params, model, options)
    out: Path = options.out
    results_path = out / "results.json"
    results_path.unlink(missing_ok=True)
    settings = {
        "model": model,
        "workload": dataclasses.asdict(params),
        "warm_up": options.warm_up,
    }
    results = ResultFile(results_path, settings)
    for name in (BASELINE, options.policy):
        policy = policy_named(name)
        print(f"\n== {policy.title} ==", file=sys.stderr)
        with VllmServer(model, out / f"server-{name}.log", policy.server_flags) as vllm:
            prepare(vllm, policy)
            if name != BASELINE and options.warm_up > 0:
                let_learn(vllm, policy, params, options.warm_up)
            results.add(measure(vllm, policy, params))
    pictures = plot_latency_cdf(results.cells, out / "latency_cdf")
    _conclude(results, pictures, as_json=options.json)
    return _failures(results.cells)


def _explain(params: WorkloadParams, model: str, options: argparse.Namespace) -> None:
    programs = generate_programs(params)
    calls = sum(len(program.calls) for program in programs)
    print(
        f"Workload: {len(programs)} programs ({calls} calls: chats, tool loops, search "
        f"trees), {params.rate:g} new programs per second, seed {params.seed}.\n"
        f"Model: {model}\n"
        f"Servers, one after the other: {POLICIES[BASELINE].title}, "
        f"{POLICIES[options.policy].title}; the second one learns from "
        f"{options.warm_up} other programs first. Three to eight minutes on two cores.",
        file=sys.stderr,
    )


def _conclude(results: ResultFile, pictures: Sequence[Path], *, as_json: bool) -> None:
    before, after = (summarize(cell) for cell in results.cells)
    print(f"\n{tables(results.cells)}\n")
    print(_sentence(before, after))
    print(f"All rows: {results.path}")
    print(f"Plot:     {', '.join(str(picture) for picture in pictures)}")
    if as_json:
        rows = {cell.policy: summarize(cell).to_json() for cell in results.cells}
        print(json.dumps(rows, indent=1))


def _sentence(before: Summary, after: Summary) -> str:
    return (
        f"Programs finished after {after.mean_s:.1f} s instead of "
        f"{before.mean_s:.1f} s on average, half of them within {after.p50_s:.1f} s "
        "instead of "
        f"{before.p50_s:.1f} s; latency per generated token "
        f"{after.token_mean_ms:.0f} ms instead of {before.token_mean_ms:.0f} ms."
    )


def _failures(cells: Sequence[Cell]) -> int:
    failed = [row for cell in cells for row in cell.programs if row.error is not None]
    if not failed:
        return 0
    print(
        f"demo: {len(failed)} programs FAILED, the first one "
        f"({failed[0].program_id}) with: {failed[0].error}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
