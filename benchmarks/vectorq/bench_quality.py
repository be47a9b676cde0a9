# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How many answers each policy serves, and how many of them are wrong.

Run from the repository root: ``python -m benchmarks.vectorq.bench_quality``. Labelled
questions come in several random orders and in one in which intents come and go; every
policy starts each of them with an empty cache. Baselines are measured in the same
invocation. Runs that are finished are kept: with the same code and settings a second
invocation goes on where the first one stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.command import run_command
from benchmarks.program_sched.results import one_row_a_line
from benchmarks.vectorq import quality_streams
from benchmarks.vectorq.latency_store import embedding_model_dir
from benchmarks.vectorq.quality_plan import FULL, QUICK, Plan, runs_of
from benchmarks.vectorq.quality_plot import plot
from benchmarks.vectorq.quality_report import report_of
from benchmarks.vectorq.quality_runs import (
    THRESHOLDS,
    Row,
    Run,
    RunLog,
    perform_all,
)
from benchmarks.vectorq.quality_streams import BANKING, TRAPS, Source
from benchmarks.vectorq.quality_tables import tables

_SCRATCH = Path("results/vectorq")
_OUT = Path("benchmarks/vectorq/results/quality.json")
_PICTURES = Path("docs/vectorq/images")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.bench_quality",
        description="Measure hits and wrong answers of every policy.",
    )
    parser.add_argument(
        "--set",
        dest="sets",
        type=Source.parse,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="one more set of questions: CLINC150's data_full.json, or a folder with "
        "{train,valid,test}/seq.in and label; may be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few runs of 3,000 requests"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--embedding-model", metavar="DIRECTORY")
    parser.add_argument("--out", type=Path, help=f"default: {_OUT}")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help=f"default: {_PICTURES}"
    )
    parser.add_argument(
        "--log", type=Path, help="finished runs (default: in results/vectorq)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the missing runs, write JSON and pictures; return the exit status."""
    options = _parser().parse_args(arguments)
    return run_command(
        "bench_quality",
        lambda: _run(_with_defaults(options)),
        (FileNotFoundError, ModuleNotFoundError, ValueError),
    )


def _with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    quick = options.quick
    name = "quality_quick" if quick else "quality"
    options.out = options.out or (_SCRATCH / f"{name}.json" if quick else _OUT)
    options.pictures = options.pictures or (_SCRATCH / name if quick else _PICTURES)
    options.log = options.log or _SCRATCH / f"{name}_runs.jsonl"
    options.embedding_model = embedding_model_dir(options.embedding_model)
    return options


def _run(options: argparse.Namespace) -> int:
    plan = QUICK if options.quick else FULL
    sets = {}
    for source in (Source(BANKING), Source(TRAPS), *options.sets):
        # Here, so that no two processes embed the same questions.
        questions = quality_streams.embedded(source, options.embedding_model)
        sets[source.name] = {
            "questions": len(questions.texts),
            "classes": len(set(questions.classes.tolist())),
        }
    settings = {"plan": asdict(plan), "sets": sets, "thresholds": THRESHOLDS}
    described = environment.describe()
    rows = _perform(plan, settings, options)
    report: dict[str, Any] = {"environment": described, "settings": settings}
    report |= report_of(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(one_row_a_line(report), "utf-8")
    # Through JSON, as a plot of the published file would see it.
    pictures = plot(json.loads(options.out.read_text("utf-8")), options.pictures)
    print("\n".join(tables(report)))
    print(f"\nAll numbers: {options.out}")
    print(f"Plots:       {', '.join(str(picture) for picture in pictures)}")
    return 0


def _perform(
    plan: Plan, settings: dict[str, Any], options: argparse.Namespace
) -> list[Row]:
    runs = list(runs_of(plan, options.sets))
    log = RunLog(options.log, settings)
    started_s = time.perf_counter()
    rows = []
    for run, row in perform_all(
        runs, log, options.embedding_model, plan.requests, options.processes
    ):
        rows.append(row)
        elapsed_s = time.perf_counter() - started_s
        print(
            f"  {len(rows)} of {len(runs)} runs, {elapsed_s:.0f} s: {_said(run, row)}",
            file=sys.stderr,
            flush=True,
        )
    return rows


def _said(run: Run, row: Row) -> str:
    guards = "" if run.guards else " without guards"
    delta = f", delta {run.delta:g}" if run.delta else ""
    noise = f", {run.judge_noise:.0%} of labels flipped" if run.judge_noise else ""
    what = f"{run.part}, {run.source.name} {run.order}, {run.policy}{guards}"
    found = f"{row['seconds']} s"
    if isinstance(row.get("hit_rate"), float):
        found = f"hit {row['hit_rate']:.1%}, wrong {row['error_per_request']:.2%}"
    return f"{what}{delta}{noise}: {found}"


if __name__ == "__main__":
    sys.exit(main())
