# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Whether the band around an entry's sigmoid covers the truth as often as it says.

Run from the repository root: ``python -m benchmarks.vectorq.coverage``. Labels are
drawn from a true sigmoid, the band is made from them, and a next request of the same
traffic asks whether its true probability lies above the band's lower end. This is what
the guarantee of vCache rests on. The risk is what the guarantee promises: the expected
probability of a wrong answer, as a multiple of the budget.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import environment, figures
from benchmarks.vectorq.budget import draw_similarities
from vllm_vectorq.policy_vcache import exploration
from vllm_vectorq.sigmoid_posterior import (
    KNOTS,
    LEVELS,
    bound_at,
    encode,
    exceedance,
    lower_bound,
    pack,
    posterior,
)

Floats = NDArray[np.float64]

EPSILONS = (0.01, 0.05, 0.1, 0.2, 0.5)
_BOUNDARIES = (0.35, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05)
_SLOPES = (6.0, 12.0, 25.0, 50.0, 100.0)
_LABELS = (2, 4, 8, 16, 32, 64)
_DELTA = 0.02
_PLOTTED_EPSILON = 0.1


@dataclass(frozen=True)
class Cell:
    """Coverage for one true sigmoid and number of labels.

    Attributes:
        boundary: True boundary.
        slope: True slope.
        labels: Labels the band is made from.
        separable: Share of label sets with every right one above every wrong one.
        coverage: Share of bands at or below the truth, one per epsilon.
        risk: Probability of a wrong answer to the next request, over the budget.
        risk_of_always_serving: The same when the next request is always served.
    """

    boundary: float
    slope: float
    labels: int
    separable: float
    coverage: list[float]
    risk: float
    risk_of_always_serving: float


def band(chances: Floats, epsilon: float) -> Floats:
    """Lower end of the ``1 - epsilon`` band at every knot, float64 [knots].

    Args:
        chances: From :func:`~vllm_vectorq.sigmoid_posterior.exceedance`.
        epsilon: Probability left below the band.
    """
    reached = (chances >= 1.0 - epsilon).sum(axis=1)
    return np.asarray(np.concatenate([[0.0], LEVELS])[reached])


def measure(
    boundary: float, slope: float, labels: int, repeats: int, seed: int
) -> Cell:
    """Draw label sets from one sigmoid and count what their bands cover."""
    rng = np.random.default_rng(seed)
    covered = np.zeros((repeats, len(EPSILONS)), dtype=np.bool_)
    separable, wrong, risk = (np.zeros(repeats) for _ in range(3))
    for i in range(repeats):
        similarities = draw_similarities(rng, labels + 1)
        truth = 1.0 / (1.0 + np.exp(-slope * (similarities - boundary)))
        right = rng.random(labels) < truth[:-1]
        separable[i] = _is_separable(similarities[:-1], right)
        codes = [encode(s, c) for s, c in zip(similarities, right, strict=False)]
        chances = exceedance(posterior(np.array(codes, dtype=np.uint16)))
        knot = np.searchsorted(KNOTS, similarities[-1], side="right") - 1
        covered[i] = [band(chances, e)[knot] <= truth[-1] for e in EPSILONS]
        bound = bound_at(pack(lower_bound(chances)), float(similarities[-1]))
        wrong[i] = (1.0 - truth[-1]) / _DELTA
        risk[i] = wrong[i] * (1.0 - max(0.0, exploration(bound, _DELTA)))
    return Cell(
        boundary=boundary,
        slope=slope,
        labels=labels,
        separable=float(separable.mean()),
        coverage=[float(x) for x in covered.mean(axis=0)],
        risk=float(risk.mean()),
        risk_of_always_serving=float(wrong.mean()),
    )


def _is_separable(similarities: Floats, right: NDArray[np.bool_]) -> bool:
    lowest_right = np.min(similarities[right], initial=np.inf)
    return bool(lowest_right > np.max(similarities[~right], initial=-np.inf))


def plot(cells: Sequence[Cell], path: Path) -> list[Path]:
    """Write coverage over the number of labels, one panel per slope, PNG and SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    slopes = sorted({cell.slope for cell in cells})
    boundaries = sorted({cell.boundary for cell in cells})
    column = EPSILONS.index(_PLOTTED_EPSILON)
    figure, axes = plt.subplots(
        1, len(slopes), figsize=(3.2 * len(slopes), 3.6), sharey=True, squeeze=False
    )
    for axis, slope in zip(axes[0], slopes, strict=True):
        for boundary, marker in zip(boundaries, "osv^Dx+", strict=True):
            found = [c for c in cells if (c.slope, c.boundary) == (slope, boundary)]
            found.sort(key=lambda cell: cell.labels)
            axis.plot(
                [cell.labels for cell in found],
                [cell.coverage[column] for cell in found],
                marker=marker,
                label=f"{boundary:g}",
            )
        axis.axhline(1.0 - _PLOTTED_EPSILON, color="black", linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("labels of the entry")
        axis.set_title(f"true slope {slope:g}")
        axis.grid(visible=True, alpha=0.25)
    axes[0][0].set_ylabel(f"coverage of the {1 - _PLOTTED_EPSILON:.0%} band")
    axes[0][-1].legend(title="true boundary", fontsize=8)
    return figures.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cell, write JSON and a picture; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vectorq.coverage",
        description="Band coverage.",
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/vectorq/coverage"))
    options = parser.parse_args(arguments)
    cells: list[Cell] = []
    for boundary in _BOUNDARIES:
        for slope in _SLOPES:
            for labels in _LABELS:
                cell = measure(boundary, slope, labels, options.repeats, len(cells))
                cells.append(cell)
                print(
                    f"t {boundary:4.2f} g {slope:5.1f} n {labels:2}: separable "
                    f"{cell.separable:4.0%}, coverage "
                    + " ".join(f"{x:6.1%}" for x in cell.coverage)
                    + f", risk {cell.risk:.2f}",
                    flush=True,
                )
    report = {
        "environment": environment.describe(),
        "settings": {
            "repeats": options.repeats,
            "epsilons": EPSILONS,
            "delta": _DELTA,
        },
        "cells": [asdict(cell) for cell in cells],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(*plot(cells, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
