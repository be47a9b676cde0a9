# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What one call of `schedule()` costs: vLLM's own scheduler against the plugin.

Run from the repository root: ``python -m benchmarks.program_sched.bench_schedule``.
Both schedulers are vLLM's real classes with the same running and waiting requests; only
the model is missing. Their steps alternate, so that other load on the machine hits
both.
"""

import argparse
import gc
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import environment
from benchmarks.program_sched.scheduler_harness import (
    PROGRAM_SCHEDULER,
    SchedulerHarness,
)
from scripts.model_cache import resolve_model

_PROMPT_TOKENS = 32
_OUTPUT_TOKENS = 2000


def _loaded(
    model: str, scheduler_cls: str | None, policy: str, running: int, waiting: int
) -> SchedulerHarness:
    harness = SchedulerHarness(
        model,
        scheduler_cls,
        {"policy": policy} if scheduler_cls else None,
        num_blocks=running * 140,
        max_num_seqs=running,
        max_num_batched_tokens=16384,
        log_stats=True,
    )
    rng = random.Random(5)
    for i in range(running + waiting):
        tokens = [rng.randrange(1, 1000) for _ in range(_PROMPT_TOKENS)]
        program = f"p{rng.randrange((running + waiting) // 4)}"
        harness.add(f"r{i}", tokens, _OUTPUT_TOKENS, program)
    for _ in range(5):
        harness.step()
    return harness


def measure(
    model: str, policy: str, running: int, waiting: int, steps: int
) -> dict[str, Any]:
    """Time alternating steps of both schedulers.

    Args:
        model: Local path of a model; only its configuration is read.
        policy: Policy of the program scheduler.
        running: Requests that run.
        waiting: Requests that wait.
        steps: Steps of each scheduler.

    Returns:
        Median and quartiles of `schedule()` in microseconds, and their ratio.
    """
    harnesses = {
        "plain": _loaded(model, None, policy, running, waiting),
        "program": _loaded(model, PROGRAM_SCHEDULER, policy, running, waiting),
    }
    times: dict[str, list[float]] = {name: [] for name in harnesses}
    gc.collect()
    gc.disable()
    try:
        for _ in range(steps):
            for name, harness in harnesses.items():
                harness.step()
                times[name].append(harness.schedule_s)
    finally:
        gc.enable()
    result: dict[str, Any] = {"policy": policy, "running": running, "waiting": waiting}
    for name, samples in times.items():
        low, middle, high = quantiles(samples, n=4)
        result[f"{name}_us"] = round(middle * 1e6, 1)
        result[f"{name}_quartiles_us"] = [round(low * 1e6, 1), round(high * 1e6, 1)]
    plain, program = median(times["plain"]), median(times["program"])
    result["ratio"] = round(program / plain, 3)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the result; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.program_sched.bench_schedule",
        description="Compare the cost of schedule() with and without the plugin.",
    )
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policies", default="gittins,atlas,fcfs")
    parser.add_argument("--out", type=Path, default=Path("results/schedule.json"))
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args(arguments)
    model = resolve_model()
    rows = []
    for policy in options.policies.split(","):
        for _ in range(options.repeats):
            row = measure(
                model, policy, options.running, options.waiting, options.steps
            )
            rows.append(row)
            if not options.json:
                print(
                    f"{policy:8s} plain {row['plain_us']:8.0f} us   program "
                    f"{row['program_us']:8.0f} us   ratio {row['ratio']:.2f}",
                    flush=True,
                )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment.describe(), "rows": rows}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.json:
        print(json.dumps(rows))
    else:
        print(f"All rows: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
