# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The report of the latency benchmark as pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe-Ito colours, distinguishable with the common kinds of colour blindness.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
_STAGES = ("exact", "search", "signature", "guards", "decide")
_COMPARATORS = {
    "row_per_hit": "flat search,\nrow per hit",
    "fit_per_request": "flat search,\nfit per request",
}


def plot(report: dict[str, Any], path: Path) -> list[Path]:
    """Write one panel per part that was measured; `path` has no suffix.

    Returns:
        The files that were written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    draw: dict[str, Callable[[Any, Axes], None]] = {
        "stages": _stages,
        "server": _server,
        "soak": _soak,
    }
    parts = [part for part in draw if part in report]
    figure, axes = plt.subplots(
        1, len(parts), figsize=(5.6 * len(parts), 4.4), squeeze=False
    )
    for part, axis in zip(parts, axes[0], strict=True):
        draw[part](report[part], axis)
        axis.grid(visible=True, alpha=0.25)
    return figures.save(figure, path)


def _stages(rows: list[dict[str, Any]], axis: Axes) -> None:
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        times = {name: row["stages"][name] for name in _STAGES}
        times |= {f"look-up:\n{name}": t for name, t in row["lookup"].items()}
        times |= {text: row["comparators"][n] for n, text in _COMPARATORS.items()}
        places = [place + i * width for place in range(len(times))]
        middle = [t["p50_ms"] for t in times.values()]
        above = [t["p99_ms"] - t["p50_ms"] for t in times.values()]
        axis.bar(
            places,
            middle,
            width,
            yerr=[[0.0] * len(above), above],
            capsize=2,
            color=_COLOURS[i % len(_COLOURS)],
            label=f"{row['entries']:,} entries",
        )
        axis.set_xticks(places, list(times), rotation=60, ha="right", fontsize=8)
    axis.set_yscale("log")
    axis.set_ylabel("time [ms], median and 99th percentile")
    axis.set_title("in the process, without the embedding")
    axis.legend(fontsize=8)


def _server(part: dict[str, Any], axis: Axes) -> None:
    rows = part["summary"]
    places = range(len(rows))
    for i, kind in enumerate(("exact_hit", "semantic_hit")):
        for share, style in (("p50", "-"), ("p99", "--")):
            axis.plot(
                places,
                [row[f"{kind}_{share}_ms"] for row in rows],
                style,
                marker="o",
                color=_COLOURS[i],
                label=f"{kind.replace('_', ' ')}, {share}",
            )
    axis.plot(
        places,
        [row["render_only_p50_ms"] for row in rows],
        ":",
        color="black",
        label="rendering only, without a cache, p50",
    )
    axis.set_xticks(list(places), [str(row["clients"]) for row in rows])
    axis.set_yscale("log")
    axis.set_xlabel("concurrent clients")
    axis.set_ylabel("time to the whole answer [ms]")
    axis.set_title(f"through the server, {part['entries']:,} entries")
    axis.legend(fontsize=8)


def _soak(part: dict[str, Any], axis: Axes) -> None:
    samples = part["samples"]
    axis.plot([s[0] for s in samples], [s[1] for s in samples], color=_COLOURS[0])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("requests")
    axis.set_ylabel("memory in RAM [MiB]")
    slope = part["slope_mib_per_100k_requests"]
    axis.set_title(f"memory; second half {slope:+.1f} MiB per 100,000 requests")
