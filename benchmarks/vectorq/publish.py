# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Writes what was measured of the semantic cache into the documents.

Run from the repository root: ``python -m benchmarks.vectorq.publish``. It reads the
files that ``bench_quality``, ``bench_latency``, ``bench_judge``, ``budget`` and
``coverage`` left in ``benchmarks/vectorq/results``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measured_block import table, with_block
from benchmarks.vectorq import published_cost, published_quality, published_simulations
from benchmarks.vectorq.published_style import Report, percent
from benchmarks.vectorq.quality_plan import STUDIED_DELTA
from benchmarks.vectorq.quality_policies import SUITE
from benchmarks.vectorq.quality_streams import BANKING, DRIFT

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("benchmarks/vectorq/results")
NAMES = ("quality", "latency", "judge", "budget", "coverage")
WRITER = "benchmarks.vectorq.publish"

Reports = dict[str, Report]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the documents; return the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.publish",
        description="Write measured numbers into README and docs.",
    ).parse_args(arguments)
    try:
        reports = read_reports(ROOT)
    except (OSError, ValueError) as problem:
        print(f"publish: {problem}; finish that benchmark first", file=sys.stderr)
        return 1
    for name, block in DOCUMENTS.items():
        path = ROOT / name
        text = with_block(path.read_text("utf-8"), WRITER, block(reports))
        path.write_text(text, "utf-8")
        print(name)
    return 0


def read_reports(root: Path) -> Reports:
    """Return all result files by name.

    Raises:
        OSError: One is missing.
        ValueError: One is no JSON.
    """
    return {
        name: json.loads((root / RESULTS / f"{name}.json").read_text("utf-8"))
        for name in NAMES
    }


def readme_block(reports: Reports) -> str:
    """Return what the README says."""
    quality = reports["quality"]
    shown = [
        row
        for row in published_quality.own(quality, published_quality.SHUFFLED)
        if row["delta"] == STUDIED_DELTA
        or (row["source"] == BANKING and row["delta"] in (0.0025, 0.02))
    ]
    return "\n\n".join(
        (
            "Public question sets as streams of requests; classes are known, every run "
            "starts with an empty cache and the guards are on. "
            + published_quality.orders(quality)
            + "The last column is the fixed similarity threshold that would have "
            "served most at the same share of wrong answers, found afterwards with all "
            "labels.",
            published_quality.policy_table(quality, shown),
            published_cost.cost(reports["latency"]),
        )
    )


def gains_block(reports: Reports) -> str:
    """Return what the cache's own page says."""
    quality, latency = reports["quality"], reports["latency"]
    return "\n\n".join(
        (
            published_quality.setting(quality),
            published_quality.policy_table(
                quality, published_quality.own(quality, published_quality.SHUFFLED)
            ),
            "With intents that come and go instead of a random order:",
            published_quality.policy_table(
                quality, published_quality.own(quality, DRIFT)
            ),
            "![Hits against wrong answers](images/frontier.svg)",
            "Other policies on the same streams, same guards, random orders:",
            published_quality.rival_table(quality),
            "![Errors over time](images/error_over_time.svg)",
            "![Expected and observed errors](images/calibration.svg)",
            published_quality.trap_text(quality),
            published_quality.trap_table(quality),
            (
                "**Judged answers.** The classes are not known; each question gets an "
                "answer from templates, and the default judges compare answers:"
            ),
            published_quality.answer_table(quality),
            "**Judges that err.** A share of all labels is flipped:",
            published_quality.noise_table(quality),
            "### What it costs",
            published_cost.cost(latency),
            published_cost.stage_table(latency),
            (
                "Through a real server, the whole answer; many clients on few cores "
                "wait for each other:"
            ),
            published_cost.server_table(latency),
            published_cost.memory(latency),
            "![Latency and memory](images/latency.svg)",
        )
    )


def parts_block(reports: Reports) -> str:
    """Return what each part of the policy is good for, and how others fare."""
    quality = reports["quality"]
    whole = next(
        row
        for row in published_quality.own(quality, published_quality.SHUFFLED)
        if row["source"] == BANKING and row["delta"] == STUDIED_DELTA
    )
    rows = [["nothing", *published_quality.rates(whole)]]
    for row in quality["ablations"]:
        name = row["policy"].removeprefix(f"{SUITE} ")
        rows.append([published_quality.PARTS[name], *published_quality.rates(row)])
    unguarded = next(
        row
        for row in quality["summary"]
        if (row["source"], row["policy"], row["guards"]) == (BANKING, SUITE, False)
        and (row["order"], row["delta"]) == (published_quality.SHUFFLED, STUDIED_DELTA)
    )
    rows.append(["the guards", *published_quality.rates(unguarded)])
    return "\n\n".join(
        (
            f"On {BANKING} at a budget of {percent(STUDIED_DELTA)}:",
            table(["without", *published_quality.RATES, "entries kept"], rows),
            published_simulations.SIMULATION_TEXT,
            published_simulations.simulation_table(reports["budget"]),
            published_simulations.coverage_text(reports["coverage"]),
            "![Coverage of the band](images/coverage.svg)",
            published_simulations.judge_text(reports["judge"]),
            published_simulations.judge_table(reports["judge"]),
        )
    )


DOCUMENTS: dict[str, Callable[[Reports], str]] = {
    "README.md": readme_block,
    "docs/vectorq/index.md": gains_block,
    "docs/vectorq/how-it-decides.md": parts_block,
}


if __name__ == "__main__":
    sys.exit(main())
