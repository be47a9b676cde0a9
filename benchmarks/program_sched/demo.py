# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The same agent programs on vLLM's default scheduler and on the program scheduler.

Run from the repository root: ``python -m benchmarks.program_sched.demo``.
"""

import argparse
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
from benchmarks.program_sched.workload import WorkloadParams
from scripts.model_cache import resolve_model

# The measured replay of one server takes about this long, whatever the machine.
_REPLAY_S = 120.0
_PROGRAMS = (18, 60)


def _parser() -> argparse.ArgumentParser:
    defaults = WorkloadParams()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.program_sched.demo",
        description="Replay one seeded mix of chat, tool loops and search trees on two "
        "real vLLM servers, one after the other, and compare program latencies.",
    )
    parser.add_argument("--model", help="path or hub id (default: the demo model)")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--programs",
        type=int,
        help=f"default: what the machine finishes in {_REPLAY_S:g} s, "
        f"{_PROGRAMS[0]} to {_PROGRAMS[1]}",
    )
    parser.add_argument(
        "--load",
        type=float,
        default=5.0,
        help="program arrivals, in multiples of what plain vLLM finishes on this "
        "machine (default: 5)",
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=18,
        metavar="N",
        help="unmeasured programs that both servers get first: they measure the "
        "machine, and the scheduler learns from them as from the traffic of a server "
        "that has been running",
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
    if not options.warm_up > 0 or not options.load > 0.0:
        raise ValueError(
            f"--warm-up {options.warm_up} --load {options.load:g}: both must be above 0"
        )
    model = options.model or resolve_model()
    print(
        "Workload: chats, tool loops and search trees, "
        f"{options.load:g} times as many as plain vLLM finishes, seed {options.seed}.\n"
        f"Model: {model}\n"
        f"Servers, one after the other: {POLICIES[BASELINE].title}, "
        f"{POLICIES[options.policy].title}; each gets {options.warm_up} other programs "
        "first. Four to eight minutes on two cores.",
        file=sys.stderr,
    )
    out: Path = options.out
    results_path = out / "results.json"
    results_path.unlink(missing_ok=True)
    settings = {"model": model, "load": options.load, "warm_up": options.warm_up}
    results = ResultFile(results_path, settings)
    for name in (BASELINE, options.policy):
        policy = policy_named(name)
        print(f"\n== {policy.title} ==", file=sys.stderr)
        with VllmServer(model, out / f"server-{name}.log", policy.server_flags) as vllm:
            prepare(vllm, policy)
            capacity = let_learn(vllm, policy, WorkloadParams(), options.warm_up)
            if results.capacity is None:
                results.capacity = capacity
            params = _params(results.capacity, options)
            results.add(measure(vllm, policy, params, options.load))
    pictures = plot_latency_cdf(results.cells, out / "latency_cdf")
    _conclude(results, pictures, as_json=options.json)
    return _failures(results.cells)


def _params(capacity: float, options: argparse.Namespace) -> WorkloadParams:
    """The same regime on every machine.

    Args:
        capacity: Programs that plain vLLM finishes per second.
        options: Of the command line.
    """
    fewest, most = _PROGRAMS
    fitting = min(max(round(_REPLAY_S * capacity), fewest), most)
    return WorkloadParams(
        seed=options.seed,
        programs=fitting if options.programs is None else options.programs,
        rate=options.load * capacity,
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
