# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""From call records to the numbers, tables and ratios that people read."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.program_sched.policies import BASELINE, POLICIES
from benchmarks.program_sched.records import CallRecord, ProgramRecord


@dataclass(frozen=True, slots=True)
class Cell:
    """One replay: a policy, a load and a seed, with all raw rows.

    Attributes:
        load: Arrival rate as a multiple of the capacity of plain vLLM.
        rate: Program arrivals per second.
    """

    policy: str
    load: float
    rate: float
    seed: int
    programs: tuple[ProgramRecord, ...]
    counters: Mapping[str, float]
    server_command: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Cell":
        """Return the cell that `to_json` described."""
        programs = tuple(
            ProgramRecord(
                **{**row, "calls": [CallRecord(**call) for call in row["calls"]]}
            )
            for row in data["programs"]
        )
        command = tuple(data["server_command"])
        return cls(**{**data, "programs": programs, "server_command": command})


@dataclass(frozen=True, slots=True)
class Summary:
    """What one replay says about its policy.

    Failed programs are counted and left out of the latencies.

    Attributes:
        mean_s: Mean program latency, planned arrival to last call.
        p50_s: Median program latency.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        token_mean_ms: Mean over programs of latency / generated tokens.
        token_p95_ms: 95th percentile of the same.
        throughput_tok_s: Generated tokens over the makespan.
        makespan_s: First arrival to last finish.
        preemptions: Running calls that were sent back to wait.
        hit_rate: Share of prompt tokens found in the prefix cache.
        programs: Programs that were replayed.
        failures: Programs with a failed call.
    """

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    token_mean_ms: float
    token_p95_ms: float
    throughput_tok_s: float
    makespan_s: float
    preemptions: float
    hit_rate: float
    programs: int
    failures: int

    def to_json(self) -> dict[str, float]:
        """Return the numbers as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of one number over seeds."""

    median: float
    low: float
    high: float


# Column title, field of Summary, format. Preemptions, hit rate and failures have no
# meaningful ratio and stay out of the ratio table.
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("mean s", "mean_s", ".1f"),
    ("P50 s", "p50_s", ".1f"),
    ("P95 s", "p95_s", ".1f"),
    ("P99 s", "p99_s", ".1f"),
    ("ms/token", "token_mean_ms", ".0f"),
    ("P95 ms/token", "token_p95_ms", ".0f"),
    ("tok/s", "throughput_tok_s", ".1f"),
    ("preempted", "preemptions", ".0f"),
    ("cache hits", "hit_rate", ".1%"),
    ("failed", "failures", ".0f"),
)
_RATIO_COLUMNS = tuple((title, name, ".2f") for title, name, _ in _COLUMNS[:7])


def summarize(cell: Cell) -> Summary:
    """Return the summary of one replay.

    Raises:
        ValueError: No program finished.
    """
    good = [row for row in cell.programs if row.error is None and row.completion_tokens]
    if not good:
        errors = sorted({row.error or "no tokens" for row in cell.programs})
        raise ValueError(
            f"{cell.policy}: none of {len(cell.programs)} programs finished; "
            f"reasons: {'; '.join(errors)[:600]}"
        )
    latencies_s = np.array([row.latency_s for row in good])
    token_ms = 1000 * latencies_s / np.array([row.completion_tokens for row in good])
    makespan_s = max(row.finish_s for row in cell.programs) - min(
        row.arrival_s for row in cell.programs
    )
    p50_s, p95_s, p99_s = np.percentile(latencies_s, [50, 95, 99])
    queries = cell.counters.get("prefix_queries_tokens", 0.0)
    hits = cell.counters.get("prefix_hits_tokens", 0.0)
    return Summary(
        mean_s=float(latencies_s.mean()),
        p50_s=float(p50_s),
        p95_s=float(p95_s),
        p99_s=float(p99_s),
        token_mean_ms=float(token_ms.mean()),
        token_p95_ms=float(np.percentile(token_ms, 95)),
        throughput_tok_s=sum(row.completion_tokens for row in good) / makespan_s,
        makespan_s=makespan_s,
        preemptions=cell.counters.get("preemptions", 0.0),
        hit_rate=hits / queries if queries else 0.0,
        programs=len(cell.programs),
        failures=len(cell.programs) - len(good),
    )


def spread(values: Sequence[float]) -> Spread:
    """Return median and range."""
    return Spread(statistics.median(values), min(values), max(values))


def over_seeds(summaries: Iterable[Summary]) -> dict[str, Spread]:
    """Return the spread of every field over replays that differ in the seed."""
    rows = [summary.to_json() for summary in summaries]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def ratios(
    policy: Mapping[int, Summary], baseline: Mapping[int, Summary]
) -> dict[str, Spread]:
    """Return policy / baseline per field, paired by seed, as a spread over seeds."""
    seeds = sorted(policy.keys() & baseline.keys())
    result = {}
    for _, name, _ in _RATIO_COLUMNS:
        pairs = [(getattr(policy[s], name), getattr(baseline[s], name)) for s in seeds]
        values = [mine / base for mine, base in pairs if base]
        if values:
            result[name] = spread(values)
    return result


def by_policy(cells: Iterable[Cell], load: float) -> dict[str, dict[int, Summary]]:
    """Return the summaries at one load: policy, then seed."""
    found: dict[str, dict[int, Summary]] = {}
    for cell in cells:
        if cell.load == load:
            found.setdefault(cell.policy, {})[cell.seed] = summarize(cell)
    order = list(POLICIES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def tables(cells: Sequence[Cell]) -> str:
    """Return, for every load, the table of values and the table of ratios."""
    blocks = []
    for load in sorted({cell.load for cell in cells}):
        found = by_policy(cells, load)
        rate = next(cell.rate for cell in cells if cell.load == load)
        seeds = max(len(summaries) for summaries in found.values())
        programs = max(s.programs for runs in found.values() for s in runs.values())
        blocks.append(
            f"{arrivals(load, rate)}, {programs} programs, "
            + (f"median of {seeds} seeds" if seeds > 1 else "1 seed")
            + " (program latency; ms/token = latency / generated tokens)"
        )
        values = {name: over_seeds(runs.values()) for name, runs in found.items()}
        blocks.append(_table(values, _COLUMNS, lambda value: value.median))
        if BASELINE not in found or len(found) == 1:
            continue
        compared = {
            name: ratios(runs, found[BASELINE])
            for name, runs in found.items()
            if name != BASELINE
        }
        blocks.append(f"times {POLICIES[BASELINE].title} (below 1 is sooner)")
        blocks.append(_table(compared, _RATIO_COLUMNS, lambda value: value.median))
        if seeds > 1:
            blocks.append("lowest and highest of the seeds")
            blocks.append(_range_table(compared))
    return "\n\n".join(blocks)


def arrivals(load: float, rate: float) -> str:
    """Say how fast programs arrive; `load` is 0 where no capacity was measured."""
    per_second = f"{rate:.2f} program arrivals/s"
    return f"{load:g} x capacity ({per_second})" if load else per_second


def load_line(load: float, cells: Iterable[Cell], alone: Iterable[Cell]) -> str | None:
    """Say how loaded plain vLLM was; None when no program was also run alone."""
    unloaded = {cell.seed: cell for cell in alone}
    ratios_found = [
        load_ratio(cell, unloaded[cell.seed])
        for cell in cells
        if (cell.policy, cell.load) == (BASELINE, load) and cell.seed in unloaded
    ]
    found = [ratio for ratio in ratios_found if ratio is not None]
    if not found:
        return None
    return (
        f"mean latency on plain vLLM {statistics.median(found):.1f} "
        f"({min(found):.1f} to {max(found):.1f}) times that of the same programs one "
        "at a time"
    )


def load_ratio(loaded: Cell, unloaded: Cell) -> float | None:
    """Return mean latency under load / unloaded, over the programs in both."""
    alone_s, loaded_s = _latencies_s(unloaded), _latencies_s(loaded)
    both = alone_s.keys() & loaded_s.keys()
    if not both:
        return None
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


def _table(
    rows: Mapping[str, Mapping[str, Spread]],
    columns: Sequence[tuple[str, str, str]],
    value: Callable[[Spread], float],
) -> str:
    cells = [["policy", *(title for title, _, _ in columns)]]
    for policy, fields in rows.items():
        numbers = [
            format(value(fields[name]), style) if name in fields else "-"
            for _, name, style in columns
        ]
        cells.append([POLICIES[policy].title, *numbers])
    return aligned(cells)


def _range_table(rows: Mapping[str, Mapping[str, Spread]]) -> str:
    cells = [["policy", *(title for title, _, _ in _RATIO_COLUMNS)]]
    for policy, fields in rows.items():
        numbers = [
            f"{fields[name].low:.2f}-{fields[name].high:.2f}" if name in fields else "-"
            for _, name, _ in _RATIO_COLUMNS
        ]
        cells.append([POLICIES[policy].title, *numbers])
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Return rows as text, first column left, the others right aligned."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
