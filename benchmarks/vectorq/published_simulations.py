# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tables of simulations and of the judges in the documents."""

from __future__ import annotations

from benchmarks.measured_block import table
from benchmarks.vectorq.published_style import Report, fixed, percent

SIMULATION_TEXT = (
    "**Policies that learn per entry**, in simulations in which their assumption "
    "holds: each entry is right by a sigmoid of its own. Then labels are flipped, or "
    "all answers grow old at half time (the boundary of every sigmoid moves up):"
)
_SIMULATED_DELTA = 0.02
_JUDGES = ("equality", "embedding", "chain")


def simulation_table(budget: Report) -> str:
    """Policies that learn per entry, in a world of sigmoids."""
    settings = budget["settings"]
    rows = [
        [
            f"`{row['policy']}`",
            percent(row["judge_noise"]),
            f"{row['drift']:g}",
            percent(row["hit_rate"], 1),
            fixed(row["error_per_request"]),
            fixed(row["error_per_request_worst_seed"]),
            fixed(row["error_per_hit"]),
        ]
        for row in budget["rows"]
        if row["delta"] == _SIMULATED_DELTA
    ]
    head = [
        f"policy, budget {percent(_SIMULATED_DELTA)}",
        "labels flipped",
        "boundaries move by",
        "hits",
        f"wrong per request, {settings['seeds']} seeds",
        "worst seed",
        "wrong per hit",
    ]
    return table(head, rows)


def coverage_text(coverage: Report) -> str:
    """Say how often the band of ``vcache`` covers the truth."""
    settings, cells = coverage["settings"], coverage["cells"]
    lines = []
    for column, epsilon in enumerate(settings["epsilons"]):
        found = [cell["coverage"][column] for cell in cells]
        lines.append(
            f"{percent(1.0 - epsilon, 0)}: {percent(sum(found) / len(found), 1)} "
            f"(worst {percent(min(found), 1)})"
        )
    return (
        f"The bound of `vcache` lies below the truth as often as it says, on average "
        f"over {len(cells)} kinds of entries (boundary, slope, number of labels) with "
        f"{settings['repeats']} draws each. Asked for {'; '.join(lines)}."
    )


def judge_text(judge: Report) -> str:
    """Say what the judges were asked."""
    return (
        f"**Judges** on paraphrased answers of one sentence "
        f"({judge['data']['questions'][1]:,} questions of ParaQA that did not choose "
        f"the thresholds, {judge['thresholds']['same_at']:g} and "
        f"{judge['thresholds']['different_at']:g}), wrong verdicts with 95 % intervals:"
    )


def judge_table(judge: Report) -> str:
    """Verdicts of each judge on each kind of pair."""
    rows = []
    for name in _JUDGES:
        for kind, row in judge["judges"][name].items():
            low, high = row["wrong_share_95"]
            pairs = row["pairs"]
            rows.append(
                [
                    f"`{name}`",
                    kind,
                    f"{pairs:,}",
                    *(
                        percent(row[verdict] / pairs, 1)
                        for verdict in ("same", "different", "undecided")
                    ),
                    f"{fixed(row['wrong_share'])} ({fixed(low)} to {fixed(high)})",
                ]
            )
    head = ["judge", "pairs of", "pairs", "same", "different", "undecided", "wrong"]
    return table(head, rows)
