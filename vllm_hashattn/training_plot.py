# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A picture of a training: what each layer's hash finds on held-out documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg")
# Okabe-Ito colours, distinguishable with the common kinds of colour blindness; markers
# differ as well. What was learned is drawn in full lines, its bounds are dashed.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP"
_BOUNDS = {"oracle": "#000000", "window": "#777777", "random": "#BBBBBB"}


def plot_training(training: Mapping[str, Any], path: Path) -> None:
    """Draw recall, attention mass and loss of every layer into a file.

    Args:
        training: Of a hash file: its `layers` each have a `layer` index, a `loss`, and
            `recall` and `mass` by scorer.
        path: Picture to write, ``.png`` or ``.svg``. The same bytes for the same data.

    Raises:
        ValueError: There is nothing to draw, the suffix is another, or matplotlib is
            not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"hashattn: a picture {path} was asked for; its name must end in "
            f"{' or '.join(_SUFFIXES)}."
        )
    layers = _layers(training)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            f"hashattn: a picture was asked for, but matplotlib is not there ({error})."
            " Install it: pip install matplotlib"
        ) from error
    figure = Figure(figsize=(14, 5))
    draw(layers, figure)
    figure.tight_layout()
    # The same ids every time, and no date.
    with mpl.rc_context({"svg.hashsalt": "vllm-hashattn"}):
        date = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=date)


def draw(layers: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """Draw the three parts of a training side by side.

    Args:
        layers: In ascending order.
        figure: An empty one.
    """
    recall, mass, loss = figure.subplots(1, 3)
    for axis, name, title in (
        (recall, "recall", "most important keys found [%]"),
        (mass, "mass", "attention weight that the choice holds [%]"),
    ):
        _by_scorer(axis, layers, name)
        axis.set(title=title, ylim=(0, 102))
        axis.legend(
            title="mean of the layers",
            fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),  # below, where it covers no line
            ncols=2,
        )
    found = [each["loss"] for each in layers]
    indices = [each["layer"] for each in layers]
    loss.plot(indices, found, "o-", color=_COLOURS[0], markersize=4, gid="loss")
    loss.set(title="loss at the end of training", ylim=(0, None))
    for axis in (recall, mass, loss):
        axis.set_xlabel("layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(visible=True, alpha=0.25)


def _by_scorer(axis: Axes, layers: Sequence[Mapping[str, Any]], name: str) -> None:
    """One line for each scorer, marked in the picture as ``recall-linear``."""
    scorers = list(dict.fromkeys(scorer for each in layers for scorer in each[name]))
    learned = [scorer for scorer in scorers if scorer not in _BOUNDS]
    for scorer in scorers:
        # A scorer that was not measured on a layer leaves a gap.
        shares = [100 * each[name].get(scorer, math.nan) for each in layers]
        mean = statistics.fmean(share for share in shares if not math.isnan(share))
        place = learned.index(scorer) if scorer in learned else 0
        axis.plot(
            [each["layer"] for each in layers],
            shares,
            color=_BOUNDS.get(scorer, _COLOURS[place % len(_COLOURS)]),
            linestyle="--" if scorer in _BOUNDS else "-",
            marker="." if scorer in _BOUNDS else _MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.2,
            label=f"{scorer}: {mean:.0f} %",
            gid=f"{name}-{scorer.replace(' ', '-')}",
        )


def _layers(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is known of each layer, in ascending order."""
    layers = training.get("layers")
    if not layers:
        source = training.get("imported_from")
        reason = f"it was imported from {source}" if source else "it names no layers"
        raise ValueError(
            "hashattn: the hash file says nothing about its training to draw: "
            f"{reason}. Recall is measured by: vllm-hashattn train"
        )
    for each in layers:
        missing = {"layer", "loss", "recall", "mass"} - set(each)
        if missing:
            raise ValueError(
                "hashattn: the hash file lacks the "
                f"{', '.join(sorted(missing))} of layer {each.get('layer')}; it was "
                "written by another version. Train again: vllm-hashattn train"
            )
    return sorted(layers, key=lambda each: int(each["layer"]))
