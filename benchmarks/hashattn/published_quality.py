# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tables of what sparse decoding costs in quality, from a file of ``bench_quality``."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.hashattn.quality_tasks import FOUND_BY_DENSE
from benchmarks.measured_block import table
from vllm_hashattn.evaluation_change import (
    Change,
    change_of_blocks,
    change_of_pairs,
    mean_change,
)

Row = dict[str, Any]
_NEW = {"context_tokens", "nll_changes", "divergence", "same_top"}


@dataclass(frozen=True, slots=True)
class OfTexts:
    """What one arm does to texts.

    Attributes:
        bytes_share: That it read, of what dense decoding reads.
        perplexity: Of decoded tokens.
        change: Of the logarithm of perplexity against dense decoding.
        divergence: Mean Kullback-Leibler divergence from dense decoding, in nats.
        same_top: Share of tokens where both find the same one most likely.
    """

    bytes_share: float
    perplexity: float
    change: Change
    divergence: float
    same_top: float


def check(name: str, model: Row) -> None:
    """Refuse a file of before there were divergences.

    Raises:
        ValueError: It is one.
    """
    if not all(row.keys() >= _NEW for row in model["texts"]):
        raise ValueError(
            f"{name}.json has no divergences from dense decoding: it was made by an "
            "older bench_quality"
        )


def contexts(model: Row) -> list[int]:
    """Return the lengths of contexts that texts were decoded after, in tokens."""
    return sorted({row["context_tokens"] for row in model["texts"]})


def of_texts(model: Row, context_tokens: int) -> dict[str, OfTexts]:
    """Return what arms do to texts after contexts of one length, by arm."""
    rows: dict[str, list[Row]] = {}
    for row in model["texts"]:
        if row["context_tokens"] == context_tokens:
            rows.setdefault(row["arm"], []).append(row)
    return {arm: _of_texts(found) for arm, found in rows.items()}


def _of_texts(rows: list[Row]) -> OfTexts:
    tokens = [row["tokens"] for row in rows]
    shares = [row["reading"]["bytes_share"] for row in rows]
    blocks = [block for row in rows for block in row["nll_changes"]]
    return OfTexts(
        statistics.fmean(shares, tokens),
        math.exp(statistics.fmean([row["nll"] for row in rows], tokens)),
        change_of_blocks(blocks),
        statistics.fmean([row["divergence"] for row in rows], tokens),
        statistics.fmean([row["same_top"] for row in rows], tokens),
    )


def informative(model: Row) -> list[str]:
    """Kinds of tasks in which dense decoding finds more than 80 %."""
    return [
        row["kind"]
        for row in model["tasks"]
        if row["arm"] == "dense" and row["mean_share"] > FOUND_BY_DENSE
    ]


def task_means(model: Row) -> dict[str, tuple[float, Change]]:
    """Mean share over the informative kinds, and its change against dense, by arm."""
    kinds = informative(model)
    cells = {(row["arm"], row["kind"]): row for row in model["tasks"]}
    found = {}
    for arm in dict.fromkeys(row["arm"] for row in model["tasks"] if kinds):
        changes, shares = [], []
        for kind in kinds:
            mine, dense = cells[arm, kind]["shares"], cells["dense", kind]["shares"]
            pairs = zip(mine, dense, strict=True)
            changes.append(change_of_pairs([a - b for a, b in pairs]))
            shares.append(statistics.fmean(mine))
        found[arm] = statistics.fmean(shares), mean_change(changes)
    return found


def quality(model: Row, densities: tuple[str, ...]) -> str:
    """Return tables of texts and the mean of tasks, one for each length of context.

    Args:
        model: Of one file.
        densities: Ends of the names of arms that are shown.
    """
    tasks, parts = task_means(model), []
    tasks_tokens = model["settings"]["context_tokens"]
    for tokens in contexts(model):
        rows = []
        for arm, found in of_texts(model, tokens).items():
            if arm != "dense" and not arm.endswith(densities):
                continue
            asked = tasks.get(arm) if tokens == tasks_tokens else None
            rows.append([*_text_cells(arm, found), *_task_cells(arm, asked)])
        head = [
            *("arm", "bytes read", "divergence (nats)", "same most likely token"),
            *("perplexity", "against dense (95 %)"),
            *("tasks", "against dense, points (95 %)"),
        ]
        # The last two columns are empty where no task was asked.
        columns = len(head) if any(row[-2] for row in rows) else len(head) - 2
        cells = [row[:columns] for row in rows]
        title = f"{model['model']}, contexts of {tokens:,} tokens:"
        parts.append(f"{title}\n\n{table(head[:columns], cells)}")
    return "\n\n".join(parts)


def _text_cells(arm: str, found: OfTexts) -> list[str]:
    low, high = (math.expm1(end) for end in found.change.interval)
    change = f"{math.expm1(found.change.mean):+.2%} ({low:+.2%} to {high:+.2%})"
    return [
        arm,
        f"{found.bytes_share:.1%}",
        f"{found.divergence:.4f}",
        f"{found.same_top:.1%}",
        f"{found.perplexity:.3f}",
        "" if arm == "dense" else change,
    ]


def _task_cells(arm: str, found: tuple[float, Change] | None) -> list[str]:
    if found is None:
        return ["", ""]
    mean, change = found
    # No more than everything can be lost or won, whatever the formula says.
    low, high = (100 * min(max(end, -1.0), 1.0) for end in change.interval)
    points = f"{100 * change.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return [f"{mean:.1%}", "" if arm == "dense" else points]


def tasks(model: Row) -> str:
    """Return what each arm found of each kind of task."""
    if not model["tasks"]:
        return f"{model['model']}: no tasks were asked yet."
    cells = {(row["arm"], row["kind"]): row for row in model["tasks"]}
    arms = list(dict.fromkeys(row["arm"] for row in model["tasks"]))
    counted = informative(model)
    rows = [
        [arm, *(_share(cells.get((arm, kind))) for kind in counted)] for arm in arms
    ]
    others = [
        f"{kind} ({row['mean_share']:.0%} of {row['n']} questions)"
        for (arm, kind), row in cells.items()
        if arm == "dense" and kind not in counted
    ]
    too_little = f"dense decoding finds too little: {', '.join(others)}."
    if not counted:
        return f"{model['model']}: no task says anything, for {too_little}"
    counts = ", ".join(f"{kind} {cells['dense', kind]['n']}" for kind in counted)
    note = (
        f"{model['model']}, share of what was asked for (95 % interval of answers that "
        f"hold all of it). Questions: {counts}."
    )
    if others:
        note += f" Not counted, for {too_little}"
    return f"{note}\n\n{table(['arm', *counted], rows)}"


def _share(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['mean_share']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
