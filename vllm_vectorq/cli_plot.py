# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``vllm-vectorq plot``: a replay as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_error import CliError
from .cli_result import read_result
from .error_estimate import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg")
_EXAMPLE = """\
example:
  vllm-vectorq replay log.jsonl --out result.json
  vllm-vectorq plot result.json --out result.png
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plot",
        help="draw the result of replay",
        description="Draw hit rate and error over time with their budget, and whether "
        "the predicted probabilities were right. Needs matplotlib: pip install "
        "'vllm-vectorq[plot]'.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "result", type=Path, metavar="RESULT.json", help="what replay --out wrote"
    )
    parser.add_argument(
        "--out",
        type=_picture,
        required=True,
        metavar="FILE",
        help="picture to write, .png or .svg",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draw a result; return the exit status."""
    result = read_result(options.result)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CliError(
            f"plot needs matplotlib ({error}): pip install 'vllm-vectorq[plot]'."
        ) from error
    figure = Figure(figsize=(12, 4))
    try:
        draw(result, figure)
    except (KeyError, TypeError, ValueError) as error:
        raise CliError(f"{options.result} is incomplete: {error!r}.") from error
    figure.tight_layout()
    # The same bytes every time: fixed ids, and no date.
    with mpl.rc_context({"svg.hashsalt": "vllm-vectorq"}):
        date = {"Date": None} if options.out.suffix == ".svg" else None
        figure.savefig(options.out, dpi=150, metadata=date)
    print(json.dumps({"file": str(options.out)}) if options.json else options.out)
    return 0


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw the three parts of a result side by side."""
    hits, errors, calibration = figure.subplots(1, 3)
    labels: dict[str, str] = {}
    budgets: dict[float, None] = {}
    lowest = 1.0
    for found in result["runs"]:
        label = f"{found['policy']}, {found['delta']:g}"
        first = label not in labels
        color = labels.setdefault(label, f"C{len(labels) % 10}")
        style = {"color": color, "label": label if first else None}
        times = [point["requests"] for point in found["timeline"]]
        for axis, name in ((hits, "hit_rate"), (errors, "error_per_request")):
            shares = [100 * point[name] for point in found["timeline"]]
            axis.plot(times, shares, linewidth=1.2, **style)
        lowest = min(
            lowest, _draw_calibration(calibration, found["calibration"], style)
        )
        budgets[found["delta"]] = None
    for budget in budgets:
        errors.axhline(100 * budget, color="black", linestyle="--", linewidth=1)
    for axis, title in (
        (hits, "hit rate so far (%)"),
        (errors, "wrong answers per request so far (%)"),
    ):
        axis.set(xlabel="requests", title=title)
    hits.legend(title="policy, delta", fontsize=8)
    calibration.plot([lowest, 1], [lowest, 1], "k--", linewidth=1)
    calibration.set(
        xlabel="predicted probability of a hit",
        ylabel="share right",
        title="calibration of hits",
    )
    for axis in (hits, errors, calibration):
        axis.grid(alpha=0.3)


def _draw_calibration(
    axis: Axes, bins: list[dict[str, float]], style: dict[str, Any]
) -> float:
    """Draw points with their 95 % intervals, after Wilson; return where they begin."""
    if not bins:
        return 1.0
    means = [found["mean_probability"] for found in bins]
    shares = [found["share_right"] for found in bins]
    intervals = [wilson_interval(found["share_right"], found["hits"]) for found in bins]
    lows, highs = zip(*intervals, strict=True)
    axis.errorbar(
        means,
        shares,
        # Rounding must not make a length negative.
        yerr=[
            [max(share - low, 0.0) for share, low in zip(shares, lows, strict=True)],
            [max(high - share, 0.0) for share, high in zip(shares, highs, strict=True)],
        ],
        fmt="o",
        markersize=4,
        linewidth=0.8,
        **style,
    )
    return float(min(*means, *lows))


def _picture(given: str) -> Path:
    path = Path(given)
    if path.suffix not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"{given} ends in neither .png nor .svg")
    return path
