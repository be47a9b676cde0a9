# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Pictures of what was measured of hash attention."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.figures import save
from benchmarks.hashattn.publish import (
    MODELS,
    Reports,
    Row,
    speeds,
    times,
)
from benchmarks.hashattn.published_quality import contexts, of_texts


def draw(reports: Reports, folder: Path) -> list[Path]:
    """Draw all pictures; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_attention(reports["op"], folder / "attention"),
        *_decoding(speeds(reports), folder / "decoding"),
        *_quality([reports[name] for name in MODELS], folder / "quality"),
    ]


def _axes(count: int) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, count, figsize=(5.2 * count, 3.8), squeeze=False)
    for each in axes[0]:
        each.grid(alpha=0.3)
    return figure, axes[0]


def _attention(report: Row, path: Path) -> list[Path]:
    shapes = sorted(
        {(r["heads"], r["kv_heads"], r["head_dim"]) for r in report["rows"]}
    )
    figure, axes = _axes(len(shapes))
    for (heads, kv_heads, head_dim), axis in zip(shapes, axes, strict=True):
        rows = [
            row
            for row in report["rows"]
            if row["what"] == "decode" and row["batch"] == 1 and row["heads"] == heads
        ]
        for arm in rows[0]["ms"]:
            medians = [statistics.median(row["ms"][arm]) for row in rows]
            axis.plot([row["tokens"] for row in rows], medians, "o-", label=arm)
        axis.set(
            title=f"{heads} heads, {kv_heads} KV heads of {head_dim}, batch 1",
            xlabel="context (tokens)",
            ylabel="attention of a layer (ms)",
            xscale="log",
            yscale="log",
        )
        axis.legend()
    return save(figure, path)


def _decoding(measured: list[Row], path: Path) -> list[Path]:
    found = times(measured, "decode")
    models = sorted({model for model, _, _ in found})
    figure, axes = _axes(len(models))
    for model, axis in zip(models, axes, strict=True):
        batches = sorted({batch for name, _, batch in found if name == model})
        for batch in batches:
            keys = sorted(key for key in found if key[0] == model and key[2] == batch)
            speedups = [
                statistics.median(found[key]["vLLM"])
                / statistics.median(found[key]["hashattn"])
                for key in keys
            ]
            axis.plot([key[1] for key in keys], speedups, "o-", label=f"batch {batch}")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(
            title=model,
            xlabel="context (tokens)",
            ylabel="decoding step, times faster than vLLM",
            xscale="log",
        )
        axis.legend()
    return save(figure, path)


def _quality(models: list[Row], path: Path) -> list[Path]:
    figure, axes = _axes(len(models))
    for model, axis in zip(models, axes, strict=True):
        tokens = contexts(model)[0]
        found = of_texts(model, tokens)
        far = {arm: each.divergence for arm, each in found.items() if arm != "dense"}
        arms = sorted(far, key=lambda arm: far[arm])
        axis.barh(arms, [far[arm] for arm in arms])
        axis.invert_yaxis()
        axis.set(
            title=f"{model['model']}, {tokens:,} tokens",
            xlabel="divergence from dense decoding (nats)",
            xscale="log",
        )
    return save(figure, path)
