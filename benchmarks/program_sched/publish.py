# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Publishes a finished benchmark: raw rows, picture, and the tables in the README.

Run from the repository root: ``python -m benchmarks.program_sched.publish``. The tables
are made from the published rows alone, and a test makes them again, so a number in the
README cannot differ from what was measured.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured_block import table, with_block
from benchmarks.program_sched.control import machine_ratio
from benchmarks.program_sched.plot import plot_latency_cdf
from benchmarks.program_sched.policies import BASELINE, POLICIES
from benchmarks.program_sched.report import (
    Cell,
    Spread,
    by_policy,
    load_line,
    over_seeds,
    ratios,
    spread,
    summarize,
)
from benchmarks.program_sched.results import one_row_a_line

ROOT = Path(__file__).resolve().parents[2]
ROWS = Path("benchmarks/program_sched/results/programs.json")
PICTURE = Path("docs/program_sched/images/latency_cdf")
README = Path("README.md")
WRITER = "benchmarks.program_sched.publish"

# Title, field of Summary, format of the value.
_COLUMNS = (
    ("mean program latency", "mean_s", "{:.1f} s"),
    ("P50", "p50_s", "{:.1f} s"),
    ("P99", "p99_s", "{:.1f} s"),
    ("latency per generated token", "token_mean_ms", "{:.0f} ms"),
    ("tokens/s", "throughput_tok_s", "{:.1f}"),
)
_RANGES = ("mean_s", "token_mean_ms", "p99_s", "throughput_tok_s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.program_sched.publish",
        description="Put a finished benchmark into the repository.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        default=Path("results/program_sched/results.json"),
        help="result file of bench_programs",
    )
    source: Path = parser.parse_args(arguments).source
    try:
        data = json.loads(source.read_text())
        text = measured_block(data)
    except (OSError, ValueError, KeyError) as problem:
        print(
            f"publish: {source} cannot be published ({problem!r}); finish a run of "
            "bench_programs with --unloaded first",
            file=sys.stderr,
        )
        return 1
    rows = ROOT / ROWS
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text(one_row_a_line(public_rows(data)))
    loaded = [cell for cell in _cells(data, "cells") if cell.load >= 1.0]
    pictures = plot_latency_cdf(loaded, ROOT / PICTURE)
    readme = ROOT / README
    readme.write_text(with_block(readme.read_text(), WRITER, text))
    for path in (rows, *pictures, readme):
        print(path.relative_to(ROOT))
    return 0


def public_rows(data: dict[str, Any]) -> dict[str, Any]:
    """Return the rows without paths of the machine and without the answers' ids.

    Ids are random and served the replay alone; they are a fifth of the file.
    """
    model = data["settings"]["model"]
    name = Path(model).name
    public = {**data, "settings": {**data["settings"], "model": name}}
    for group in ("cells", "unloaded"):
        public[group] = [
            {
                **cell,
                "programs": [_without_answer_ids(row) for row in cell["programs"]],
                "server_command": [
                    "python",
                    *(name if x == model else x for x in cell["server_command"][1:]),
                ],
            }
            for cell in data[group]
        ]
    return public


def _without_answer_ids(program: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {name: value for name, value in call.items() if name != "answer_id"}
        for call in program["calls"]
    ]
    return {**program, "calls": calls}


def measured_block(data: dict[str, Any]) -> str:
    """Return the Markdown that a result file stands for.

    Raises:
        ValueError: A program failed, or plain vLLM was not measured.
    """
    cells = _cells(data, "cells")
    alone = _cells(data, "unloaded")
    if any(summarize(cell).failures for cell in cells):
        raise ValueError("programs failed in this run")
    parts = [_setting(data, cells)]
    for load in sorted({cell.load for cell in cells}, reverse=True):
        found = by_policy(cells, load)
        if BASELINE not in found:
            raise ValueError(f"plain vLLM was not measured at load {load:g}")
        parts += [_heading(load, cells, alone), _table(found)]
        if load < 1.0:
            parts += _controls(load, cells)
    return "\n\n".join(parts)


def _cells(data: dict[str, Any], name: str) -> list[Cell]:
    return [Cell.from_json(row) for row in data[name]]


def _setting(data: dict[str, Any], cells: Sequence[Cell]) -> str:
    environment, workload = data["environment"], data["settings"]["workload"]
    command = cells[0].server_command
    dtype = next(flag for flag in command if flag.startswith("--dtype=")).split("=")[1]
    slots = next(flag for flag in command if flag.startswith("--max-num-seqs="))
    return (
        f"Measured on {environment['cores']} cores ({environment['cpu']}), vLLM "
        f"{environment['versions']['vllm']}, SmolLM2-135M in {dtype}, "
        f"{slots.partition('=')[2]} slots, prefix caching and chunked prefill on for "
        f"everyone; up to {workload['programs']} programs a run, equal shares of "
        "chats, tool loops and search trees with the published shapes scaled down; "
        f"{data['settings']['warm_up']} unmeasured programs first on every server. "
        "Medians over seeds; times plain vLLM (below 1 is sooner), with the lowest and "
        "highest seed in brackets."
    )


def _heading(load: float, cells: Sequence[Cell], alone: Sequence[Cell]) -> str:
    rate = next(cell.rate for cell in cells if cell.load == load)
    line = load_line(load, cells, alone) if load >= 1.0 else None
    loaded = f"; {line}" if line else ""
    return (
        f"**Programs arrive at {load:g} times what plain vLLM finishes** "
        f"({rate:.2f} per second{loaded}):"
    )


def _controls(load: float, cells: Sequence[Cell]) -> list[str]:
    """Say how much faster or slower the machine was itself, where that shows."""
    here = [cell for cell in cells if cell.load == load]
    base = {cell.seed: cell for cell in here if cell.policy == BASELINE}
    lines = []
    for policy in dict.fromkeys(cell.policy for cell in here):
        if policy == BASELINE:
            continue
        found = [
            machine_ratio(cell, base[cell.seed])
            for cell in here
            if cell.policy == policy and cell.seed in base
        ]
        values = [value for value in found if value is not None]
        if values:
            middle = spread(values)
            lines.append(
                f"Calls that had the server to themselves, which no order can change, "
                f"took {middle.median:.2f} ({middle.low:.2f} to {middle.high:.2f}) "
                f"times as long in the run of {POLICIES[policy].title}: that part of "
                "the difference is the machine's."
            )
    return lines


def _table(found: dict[str, dict[int, Any]]) -> str:
    rows = []
    for policy, runs in found.items():
        values = over_seeds(runs.values())
        compared = {} if policy == BASELINE else ratios(runs, found[BASELINE])
        cells = [
            _entry(style.format(values[name].median), compared.get(name), name)
            for _, name, style in _COLUMNS
        ]
        rows.append([POLICIES[policy].title, str(len(runs)), *cells])
    return table(["", "seeds", *(title for title, _, _ in _COLUMNS)], rows)


def _entry(value: str, ratio: Spread | None, name: str) -> str:
    if ratio is None:
        return value
    entry = f"{value}, {ratio.median:.2f}x"
    if name in _RANGES:
        entry += f" [{ratio.low:.2f} to {ratio.high:.2f}]"
    return entry


if __name__ == "__main__":
    sys.exit(main())
