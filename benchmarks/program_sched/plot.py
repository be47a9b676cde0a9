# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The latency distribution of every policy as one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import figures
from benchmarks.program_sched.policies import POLICIES
from benchmarks.program_sched.report import Cell, arrivals

# Okabe-Ito colours, distinguishable with the common kinds of colour blindness; line
# styles differ as well, for print without colour.
_COLOURS = (
    *("#000000", "#E69F00", "#0072B2", "#009E73"),
    *("#CC79A7", "#56B4E9", "#D55E00", "#F0E442"),
)
_STYLES = ("-", "--", "-.", ":")


def plot_latency_cdf(cells: Sequence[Cell], path: Path) -> list[Path]:
    """Write the CDF of program latency, one panel per load, as PNG and SVG.

    Programs of all seeds are pooled. `path` is given without a suffix.

    Returns:
        The files that were written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    loads = sorted({cell.load for cell in cells})
    names = [name for name in POLICIES if any(cell.policy == name for cell in cells)]
    figure, axes = plt.subplots(
        1, len(loads), figsize=(6.4 * len(loads), 4.2), sharey=True, squeeze=False
    )
    for axis, load in zip(axes[0], loads, strict=True):
        for index, name in enumerate(names):
            latencies_s = _latencies_s(cells, name, load)
            if latencies_s.size == 0:
                continue
            axis.step(
                latencies_s,
                np.arange(1, latencies_s.size + 1) / latencies_s.size,
                where="post",
                label=f"{POLICIES[name].title} (mean {latencies_s.mean():.1f} s)",
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index % len(_STYLES)],
            )
        axis.set_xscale("log")
        axis.set_xlabel("program latency [s]")
        rate = next(cell.rate for cell in cells if cell.load == load)
        axis.set_title(arrivals(load, rate))
        axis.grid(visible=True, which="both", alpha=0.25)
        axis.legend(loc="lower right", fontsize=8)
    axes[0][0].set_ylabel("share of programs finished")
    return figures.save(figure, path)


def _latencies_s(
    cells: Sequence[Cell], policy: str, load: float
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    values = [
        row.latency_s
        for cell in cells
        if cell.policy == policy and cell.load == load
        for row in cell.programs
        if row.error is None
    ]
    return np.sort(np.array(values, dtype=np.float64))
