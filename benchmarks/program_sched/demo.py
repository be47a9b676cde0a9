# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The same agent programs on vLLM's default scheduler and on the program scheduler.

Run from the repository root: ``python -m benchmarks.program_sched.demo``.
"""

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.program_sched.experiment import let_learn, measure, prepare
from benchmarks.program_sched.plot import plot_latency_cdf
from benchmarks.program_sched.policies import BASELINE, POLICIES, policy_named
from benchmarks.program_sched.report import Cell, Summary, summarize, tables
from benchmarks.program_sched.results import ResultFile
from benchmarks.program_sched.server import VllmServer
from benchmarks.program_sched.workload import WorkloadParams, generate_programs
from scripts.model_cache import resolve_model

_TIME_LIMIT_S = 7.5 * 60
_FEWEST_PROGRAMS = 18


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
        help="programs to replay (default: as many as fit the time, at most "
        f"{defaults.programs})",
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=12,
        metavar="N",
        help="unmeasured programs replayed first on both servers; they measure the "
        "capacity of the machine, and the scheduler learns from them as it would from "
        "the traffic of a running server",
    )
    parser.add_argument(
        "--load",
        type=float,
        default=4.0,
        help="arrival rate as a multiple of the capacity that the warm-up measured",
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
    # A terminated demo must still end its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _run(options)
    except (FileNotFoundError, ValueError, RuntimeError) as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted, server stopped", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    model = options.model or resolve_model()
    started_s = time.monotonic()
    _explain(model, options)
    out: Path = options.out
    results_path = out / "results.json"
    results_path.unlink(missing_ok=True)
    settings = {"model": model, "load": options.load, "warm_up": options.warm_up}
    results = ResultFile(results_path, settings)
    params = WorkloadParams(seed=options.seed)
    for name in (BASELINE, options.policy):
        policy = policy_named(name)
        print(f"\n== {policy.title} ==", file=sys.stderr)
        with VllmServer(model, out / f"server-{name}.log", policy.server_flags) as vllm:
            prepare(vllm, policy)
            capacity = let_learn(vllm, policy, params, options.warm_up)
            if results.capacity is None:
                results.capacity = capacity
                spent_s = time.monotonic() - started_s
                params = dataclasses.replace(
                    params,
                    programs=options.programs or programs_in_time(capacity, spent_s),
                    rate=options.load * capacity,
                )
                _describe(params, options.load)
            results.add(measure(vllm, policy, params, options.load))
    pictures = plot_latency_cdf(results.cells, out / "latency_cdf")
    _conclude(results, pictures, as_json=options.json)
    return _failures(results.cells)


def programs_in_time(capacity: float, spent_s: float) -> int:
    """Return how many programs make both replays end within `_TIME_LIMIT_S`.

    Args:
        capacity: Programs per second that plain vLLM finishes.
        spent_s: Time until the first server was started and warmed up; the second
            one will take the same.
    """
    per_replay_s = (_TIME_LIMIT_S - 2 * spent_s) / 2
    fitting = int(per_replay_s * capacity)
    return max(_FEWEST_PROGRAMS, min(fitting, WorkloadParams().programs))


def _explain(model: str, options: argparse.Namespace) -> None:
    print(
        "Agent programs (chats, tool loops, search trees; many calls each) on two real "
        "vLLM servers, one after the other:\n"
        f"{POLICIES[BASELINE].title}, then {POLICIES[options.policy].title}. "
        f"Model: {model}\n"
        f"Each server is warmed up with {options.warm_up} programs first. At most "
        "eight minutes on two cores, less on fast ones.",
        file=sys.stderr,
    )


def _describe(params: WorkloadParams, load: float) -> None:
    programs = generate_programs(params)
    calls = sum(len(program.calls) for program in programs)
    print(
        f"Workload: {len(programs)} programs, {calls} calls, seed {params.seed}; "
        f"{params.rate:.2f} new programs per second, {load:g} times what this machine "
        "finishes.",
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
