# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Tables of the quality benchmark in the documents."""

from __future__ import annotations

from benchmarks.measured_block import table
from benchmarks.vectorq.published_style import Report, Row, fixed, percent
from benchmarks.vectorq.quality_plan import STUDIED_DELTA
from benchmarks.vectorq.quality_policies import SUITE
from benchmarks.vectorq.quality_streams import BANKING, DRIFT

SHUFFLED = "shuffled"
_RIVALS = {
    SUITE: "`suite`",
    "vcache": "`vcache`, the defaults here",
    "vcache_paper": "`vcache`, without the floor per hit",
    "vectorq_v1": "`vectorq_v1`",
}
PARTS = {
    "no_projection": "the fitted projection",
    "no_lexical_features": "agreement in words as a feature",
    "no_correction": "the correction measured on labels",
    "no_pruning": "keeping only entries that add something",
    "no_cold_start": "serving before the first own fit",
    "no_caution": "holding back part of the budget while labels are few",
}
RATES = ("orders", "hits", "wrong per request", "worst order", "wrong per hit")


def orders(quality: Report) -> str:
    """Say how many orders were measured."""
    plan = quality["settings"]["plan"]
    return (
        f"Means over {plan['shuffles']} orders of {BANKING} and "
        f"{plan['further_shuffles']} of each other set. "
    )


def setting(quality: Report) -> str:
    """Say what was measured, and how."""
    sets = quality["settings"]["sets"]
    sizes = ", ".join(
        f"{name} {each['questions']:,} questions in {each['classes']:,} classes"
        for name, each in sets.items()
    )
    return (
        f"{sizes}. The questions of a class count as asking for the same answer, every "
        "run starts with an empty cache, embeddings are those of all-MiniLM-L6-v2. "
        + orders(quality)
        + "*Hindsight*: the fixed similarity threshold that would have served most at "
        "the same share of wrong answers, with or without guards, found afterwards "
        "with all labels of that order."
    )


def own(quality: Report, order: str) -> list[Row]:
    """The default policy's rows in one kind of order, banking77 first."""
    rows = [
        row
        for row in quality["summary"]
        if row["policy"] == SUITE and row["guards"] and row["order"] == order
    ]
    return sorted(rows, key=lambda r: (r["source"] != BANKING, r["source"], r["delta"]))


def policy_table(quality: Report, rows: list[Row]) -> str:
    """Hits and errors of the default policy, and of a threshold in hindsight."""
    head = [
        "questions",
        "budget `delta`",
        "hits",
        "wrong per request",
        "worst order",
        "wrong per hit",
        "hindsight: hits",
    ]
    cells = []
    for row in rows:
        rivals = [
            each["static"]
            for each in quality["hindsight"]
            if (each["source"], each["delta"]) == (row["source"], row["delta"])
            and (each["order"] == DRIFT) == (row["order"] == DRIFT)
        ]
        cells.append(
            [
                row["source"],
                percent(row["delta"]),
                percent(row["hit_rate"]["mean"], 1),
                fixed(row["error_per_request"]["mean"]),
                fixed(row["error_per_request"]["max"]),
                fixed(row["error_per_hit"]["mean"]),
                percent(sum(rivals) / len(rivals), 1),
            ]
        )
    return table(head, cells)


def rates(row: Row) -> list[str]:
    """Cells under ``RATES``, and the entries kept."""
    return [
        str(row["runs"]),
        percent(row["hit_rate"]["mean"], 1),
        fixed(row["error_per_request"]["mean"]),
        fixed(row["error_per_request"]["max"]),
        fixed(row["error_per_hit"]["mean"]),
        f"{row['entries']:,}",
    ]


def rival_table(quality: Report) -> str:
    """Every policy on every set."""
    rows = []
    for source in quality["settings"]["sets"]:
        for policy, title in _RIVALS.items():
            rows += [
                [source, title, percent(row["delta"]), *rates(row)]
                for row in quality["summary"]
                if (row["source"], row["policy"]) == (source, policy)
                and row["guards"]
                and row["order"] == SHUFFLED
                and row["delta"] in (STUDIED_DELTA, 2 * STUDIED_DELTA)
            ]
    head = ["questions", "policy", "budget `delta`", *RATES, "entries kept"]
    return table(head, rows)


def trap_text(quality: Report) -> str:
    """Say what the trap pairs are."""
    row = quality["traps"][0]
    return (
        "**Trap pairs.** Question pairs of the package `fow-cache` as one stream: "
        f"{row['rephrasings']} times the second question asks the same in other words, "
        f"{row['traps']} times it differs in a detail that changes the answer."
    )


def trap_table(quality: Report) -> str:
    """What was served of the trap pairs."""
    rows = []
    for row in quality["traps"]:
        served = row["rephrasings_served"]["mean"] / row["rephrasings"]
        wrong = row["traps_answered_wrongly"]["mean"] / row["traps"]
        guards = "with guards" if row["guards"] else "no guards"
        budget = f", budget {percent(row['delta'])}" if row["delta"] else ""
        rows.append(
            [
                f"`{row['policy']}`, {guards}{budget}",
                percent(served, 1),
                fixed(wrong),
                fixed(row["error_per_request"]["max"]),
            ]
        )
    head = [
        "policy",
        "rephrasings served",
        "traps answered wrongly",
        "wrong per request, worst order",
    ]
    return table(head, rows)


def answer_table(quality: Report) -> str:
    """Judged answers against known classes."""
    rows = [
        [
            "worded alike" if row["alike"] else "worded apart",
            row["order"],
            percent(row["hit_rate"], 1),
            fixed(row["error_per_request"]),
            percent(row["oracle_hit_rate"], 1),
            fixed(row["oracle_error_per_request"]),
            percent(row["share_of_oracle_hits"], 0),
        ]
        for row in quality["answers"]
    ]
    head = [
        "answers of different classes",
        "order",
        "hits",
        "wrong",
        "hits with known classes",
        "wrong",
        "share of those hits",
    ]
    return table(head, rows)


def noise_table(quality: Report) -> str:
    """What flipped labels do."""
    rows = [
        [percent(row["judge_noise"]), *rates(row)] for row in quality["judge_noise"]
    ]
    return table(["flipped", *RATES, "entries kept"], rows)
