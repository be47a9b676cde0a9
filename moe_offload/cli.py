# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The command ``vllm-moe-offload``: plan how to run a model, simulate it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .machine import Machine
from .model_shape import ModelShape
from .operation_times import timed_schedules
from .overlap import report
from .policy import Policy, Workload
from .policy_search import MAX_BATCH, best_policy
from .policy_words import as_json, explain
from .simulation import lower_bound, simulate
from .trace_file import write_trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 for a failure, 2 for bad usage."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as problem:
        print(f"vllm-moe-offload: {problem}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-moe-offload",
        description="Mixture-of-experts models larger than the memory they run in.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan = commands.add_parser("plan", help="find the best policy and explain it")
    _add_question(plan)
    plan.set_defaults(run=_plan)
    simulated = commands.add_parser(
        "simulate", help="compare schedules of a policy by simulation"
    )
    _add_question(simulated)
    simulated.add_argument(
        "--trace",
        type=Path,
        metavar="FOLDER",
        help="write each schedule's trace, for Chrome's tracing or Perfetto",
    )
    simulated.set_defaults(run=_simulate)
    return parser


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FOLDER", help="with config.json"
    )
    parser.add_argument(
        "--machine", type=Path, required=True, metavar="FILE", help="what it can do"
    )
    parser.add_argument("--prompt-tokens", type=float, required=True, help="mean")
    parser.add_argument("--generated-tokens", type=float, required=True, help="mean")
    parser.add_argument(
        "--max-batch", type=int, default=MAX_BATCH, help="requests (%(default)s)"
    )
    parser.add_argument("--batch", type=int, help="exactly so many requests")
    parser.add_argument("--micro-batch", type=int, help="requests of a micro-batch")
    parser.add_argument("--json", action="store_true")


def _found(options: argparse.Namespace) -> tuple[Any, ...]:
    shape = ModelShape.from_folder(options.model)
    machine = Machine.read(options.machine)
    workload = Workload(options.prompt_tokens, options.generated_tokens)
    policy, expected = best_policy(
        *(shape, machine, workload, options.max_batch),
        batch=options.batch,
        micro_batch=options.micro_batch,
    )
    return shape, machine, workload, policy, expected


def _plan(options: argparse.Namespace) -> int:
    found = _found(options)
    if options.json:
        print(json.dumps(as_json(*found), indent=1))
    else:
        print(explain(*found))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    shape, machine, workload, policy, _ = _found(options)
    rows = _simulated(shape, machine, workload, policy, options.trace)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(
        f"{policy.batch} requests in {policy.micro_batches} micro-batches, "
        f"{policy.device_share:.0%} of the experts resident"
    )
    print(f"{'schedule':12} {'step':>10} {'bound':>10} {'against the first':>18}")
    for row in rows:
        print(
            f"{row['schedule']:12} {row['step_s']:9.3f}s {row['bound_s']:9.3f}s "
            f"{row['step_s'] / rows[0]['step_s']:17.2f}x"
        )
    return 0


def _simulated(
    shape: ModelShape,
    machine: Machine,
    workload: Workload,
    policy: Policy,
    traces: Path | None,
) -> list[dict[str, Any]]:
    steps = 2
    every = timed_schedules(shape, machine, policy, workload.mean_context_tokens, steps)
    rows = []
    for name, (order, seconds) in every.items():
        timeline = simulate(order, seconds)
        rows.append(
            {
                "schedule": name,
                "step_s": timeline.makespan_s / steps,
                "bound_s": lower_bound(order, seconds).bound_s / steps,
                "overlap": report(timeline).as_json(),
            }
        )
        if traces is not None:
            traces.mkdir(parents=True, exist_ok=True)
            write_trace(timeline, traces / f"{name}.json")
    return rows
