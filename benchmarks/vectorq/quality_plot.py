# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The report of the quality benchmark as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import figures
from benchmarks.vectorq.quality_policies import LEARNING, SUITE
from benchmarks.vectorq.quality_streams import BANKING, DRIFT
from vllm_vectorq.error_estimate import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = dict[str, Any]

# Okabe-Ito colours, distinguishable with the common kinds of colour blindness; markers
# differ as well.
_STYLES = {
    "suite": ("#D55E00", "o", "suite"),
    "suite unguarded": ("#CC79A7", "v", "suite without guards"),
    "vcache": ("#0072B2", "s", "vcache (default)"),
    "vcache_paper": ("#56B4E9", "D", "vcache (paper)"),
    "vectorq_v1": ("#009E73", "^", "vectorq v1"),
}
_SHADES = ("#009E73", "#0072B2", "#E69F00", "#D55E00", "#CC79A7")
_MOST_ERROR = 6.0
# Beyond it the budget per hit decides.
_LARGEST_SHOWN = 0.02


def plot(report: Report, folder: Path) -> list[Path]:
    """Write all pictures; returns their files."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_frontier(report, folder / "frontier"),
        *_over_time(report, folder / "error_over_time"),
        *_calibration(report, folder / "calibration"),
    ]


def _sources(report: Report) -> list[str]:
    found = {row["source"] for row in report["static"]}
    return [BANKING, *sorted(found - {BANKING})]


def _frontier(report: Report, path: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    sources = _sources(report)
    columns = min(len(sources), 3)
    lines = -(-len(sources) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.6 * columns, 4.6 * lines), squeeze=False
    )
    for axis, source in zip(axes.flat, sources, strict=False):
        _thresholds(axis, [r for r in report["static"] if r["source"] == source])
        runs = [r for r in report["runs"] if r["source"] == source]
        for policy, guards in (*((p, True) for p in LEARNING), (SUITE, False)):
            own = [
                r
                for r in runs
                if (r["part"], r["policy"], r["guards"]) == ("policies", policy, guards)
            ]
            _points(axis, own, policy if guards else f"{policy} unguarded")
        axis.set(
            title=source,
            xlabel="wrong answers per request [%]",
            ylabel="hit rate [%]",
            xlim=(0, _MOST_ERROR),
            ylim=(0, 100),
        )
        axis.grid(visible=True, alpha=0.25)
    for axis in axes.flat[len(sources) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=8, loc="lower right")
    return figures.save(figure, path)


def _thresholds(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Mean over the shuffles at each threshold."""
    for guards, line, name in ((True, "-", "with guards"), (False, "--", "alone")):
        found = [r for r in rows if r["guards"] == guards and r["order"] != DRIFT]
        if found:
            errors = np.mean([r["error_per_request"] for r in found], axis=0)
            hits = np.mean([r["hit_rate"] for r in found], axis=0)
            label = f"any static threshold, {name}"
            axis.plot(100 * errors, 100 * hits, line, color="black", label=label)


def _points(axis: Axes, rows: list[dict[str, Any]], style: str) -> None:
    """Every run as a faint dot, and the mean of the shuffles for each budget."""
    colour, marker, label = _STYLES[style]
    if not rows:
        return
    axis.plot(
        [100 * r["error_per_request"] for r in rows],
        [100 * r["hit_rate"] for r in rows],
        ".",
        color=colour,
        alpha=0.3,
    )
    means = []
    for delta in sorted({r["delta"] for r in rows}):
        own = [r for r in rows if r["delta"] == delta and r["order"] != DRIFT]
        rates = [(r["error_per_request"], r["hit_rate"]) for r in own]
        means.append(100 * np.mean(rates, axis=0))
    errors, hits = np.transpose(means)
    axis.plot(errors, hits, marker=marker, color=colour, linewidth=1, label=label)


def _over_time(report: Report, path: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    runs = [
        r
        for r in report["runs"]
        if (r["part"], r["source"], r["policy"], r["guards"])
        == ("policies", BANKING, SUITE, True)
    ]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, drifts in zip(axes, (False, True), strict=True):
        own = [r for r in runs if (r["order"] == DRIFT) == drifts]
        deltas = sorted({r["delta"] for r in own if r["delta"] <= _LARGEST_SHOWN})
        for delta, colour in zip(deltas, _SHADES, strict=False):
            rows = 100 * np.array(
                [r["error_deciles"] for r in own if r["delta"] == delta]
            )
            ends = 10 * np.arange(1, rows.shape[1] + 1)
            axis.plot(ends, rows.T, color=colour, alpha=0.25, linewidth=0.8)
            label = f"budget {100 * delta:g} %"
            axis.plot(ends, rows.mean(axis=0), color=colour, marker="o", label=label)
            axis.axhline(100 * delta, color=colour, linestyle="--", linewidth=1)
        title = "intents come and go" if drifts else "shuffled"
        axis.set(title=f"{BANKING}, {title}", xlabel="part of the stream [%]")
        axis.grid(visible=True, alpha=0.25)
    axes[0].set_ylabel("wrong answers per request in this tenth [%]")
    axes[0].legend(fontsize=8)
    return figures.save(figure, path)


def _calibration(report: Report, path: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 4.6))
    for source, colour in zip(_sources(report), _SHADES, strict=False):
        rows = [r for r in report["calibration"] if r["source"] == source]
        if not rows:
            continue
        bins = max(rows, key=lambda row: float(row["delta"]))["bins"]
        predicted = [100 * b["predicted"] for b in bins]
        observed = [100 * b["observed"] for b in bins]
        ends = np.array([wilson_interval(b["observed"], b["hits"]) for b in bins])
        below, above = np.abs(100 * ends.T - observed)
        axis.errorbar(
            predicted,
            observed,
            yerr=[below, above],
            fmt="o-",
            color=colour,
            markersize=4,
            linewidth=0.8,
            label=source,
        )
    ends_at = (0.2, 10.0)
    axis.plot(ends_at, ends_at, "k--", linewidth=1)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="expected error of hits [%]",
        ylabel="wrong among them [%], with 95 % intervals",
    )
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend(fontsize=8)
    return figures.save(figure, path)
