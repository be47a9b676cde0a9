# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tables of the latency benchmark in the documents."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measured_block import table
from benchmarks.vectorq.published_style import Report

_STAGES = {
    "exact": "exact look-up",
    "search": "nearest entries",
    "signature": "signature of the text, for the guards",
    "guards": "guards",
    "decide": "decision",
}
_LOOKUPS = {
    "exact": "whole look-up, exact hit",
    "semantic": "whole look-up, semantic hit",
    "miss": "whole look-up, miss",
}
_COMPARATORS = {
    "row_per_hit": "flat search and a database row per hit (as in GPTCache)",
    "fit_per_request": "flat search and a fit per request (as in vCache)",
}


def cost(latency: Report) -> str:
    """Say in a sentence what hits, misses and decisions cost."""
    row = latency["stages"][-1]
    environment = latency["environment"]["stages"]
    return (
        f"In the process, with {row['entries']:,} entries of one partition, on "
        f"{environment['cores']} cores ({environment['cpu']}): beyond its embedding a "
        f"semantic hit takes {row['lookup']['semantic']['p50_ms']:.2f} ms (median), a "
        f"miss adds {row['lookup']['miss']['p99_ms']:.2f} ms (99th percentile), and "
        f"the decision takes {1000 * row['stages']['decide']['p50_ms']:.0f} µs."
    )


def stage_table(latency: Report) -> str:
    """What each stage takes in the process."""
    stages = latency["stages"]
    head = [""]
    for row in stages:
        head += [f"{row['entries']:,} entries: p50", "p99"]

    def rows(part: str, titles: dict[str, str]) -> Iterator[list[str]]:
        for name, title in titles.items():
            cells = [title]
            for row in stages:
                times = row[part][name]
                cells += [f"{times['p50_ms']:.3f} ms", f"{times['p99_ms']:.3f} ms"]
            yield cells

    return table(
        head,
        [
            *rows("stages", _STAGES),
            *rows("lookup", _LOOKUPS),
            *rows("comparators", _COMPARATORS),
        ],
    )


def server_table(latency: Report) -> str:
    """What clients of a real server wait."""
    rows = [
        [
            str(row["clients"]),
            f"{row['exact_hit_p50_ms']:.1f} / {row['exact_hit_p99_ms']:.1f} ms",
            f"{row['semantic_hit_p50_ms']:.1f} / {row['semantic_hit_p99_ms']:.1f} ms",
            f"{row['semantic_hit_p50_beyond_embedding_ms']:.1f} ms",
            f"{row['render_only_p50_ms']:.1f} ms",
        ]
        for row in latency["server"]["summary"]
    ]
    head = [
        "clients",
        "exact hit p50 / p99",
        "semantic hit p50 / p99",
        "semantic p50 beyond the embedding",
        "rendering alone, without a cache, p50",
    ]
    return table(head, rows)


def memory(latency: Report) -> str:
    """Say what entries weigh and whether memory stays flat."""
    row, soak = latency["stages"][-1], latency["soak"]
    in_memory = row["memory_bytes_per_entry"]["accounted"] / 1024
    stored = row["store_bytes_per_entry"] / 1024
    return (
        f"An entry is accounted with {in_memory:.1f} KiB of memory and takes "
        f"{stored:.1f} KiB in SQLite; a start with {row['entries']:,} takes "
        f"{row['start_s']:.0f} s. Over the second half of {soak['requests']:,} mixed "
        f"requests memory changed by {soak['slope_mib_per_100k_requests']:+.1f} MiB "
        "per 100,000 requests."
    )
