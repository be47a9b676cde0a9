# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the demo shows at the end: counts, waits, errors and the trap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.vectorq.demo_client import Reply
from vllm_vectorq.judge import normalised

KINDS = {"exact": "exact hits", "semantic": "semantic hits", "miss": "misses"}


@dataclass(frozen=True)
class Probe:
    """One message of the trap.

    Attributes:
        explained: What the server said about it before.
        reply: What it got.
    """

    explained: dict[str, Any]
    reply: Reply

    def neighbour(self, text: str) -> dict[str, Any] | None:
        """Return what was said about the entry with this text."""
        for found in self.explained.get("neighbours", ()):
            if found["text"] == text:
                near: dict[str, Any] = found
                return near
        return None

    def lines(self, text: str) -> list[str]:
        """Return the message and why it got what it got.

        Args:
            text: Of the entry that it could be mistaken for.
        """
        near = self.neighbour(text)
        served = "would be served" if self.explained["served"] else "refused"
        found = [f'"{self.reply.message}"']
        if near is not None:
            guard = near["guard"] or "none"
            found.append(f"    similarity {near['similarity']:.3f}, guard: {guard}")
        found.append(f"    explain: {served}, {self.explained['why']}")
        found.append(f"    asked:   {self.reply.outcome}, {self.reply.answer!r}")
        return found


@dataclass(frozen=True)
class Summary:
    """Everything that a run found out.

    Attributes:
        replies: To the stream, in order.
        own: The model's own answer to each message that had a semantic hit.
        stats: From the server, after the stream.
        rephrased: The trap's message that means the same.
        changed: The one that does not.
        trap: The message that both resemble.
    """

    replies: Sequence[Reply]
    own: dict[str, str]
    stats: dict[str, Any]
    rephrased: Probe
    changed: Probe
    trap: str

    def of_kind(self, kind: str) -> list[Reply]:
        """Return the replies with one outcome."""
        return [reply for reply in self.replies if reply.outcome == kind]

    def median_ms(self, *kinds: str) -> float | None:
        """Return the median wait for replies of these kinds, None without any."""
        waits_s = [reply.latency_s for kind in kinds for reply in self.of_kind(kind)]
        return round(1e3 * median(waits_s), 1) if waits_s else None

    def different(self) -> list[Reply]:
        """Return the semantic hits that are not the model's own answer."""
        return [
            reply
            for reply in self.of_kind("semantic")
            if normalised(reply.answer) != normalised(self.own[reply.message])
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers."""
        return {
            "requests": len(self.replies),
            **{
                name.replace(" ", "_"): {
                    "count": len(self.of_kind(kind)),
                    "median_ms": self.median_ms(kind),
                }
                for kind, name in KINDS.items()
            },
            "hits_median_ms": self.median_ms("exact", "semantic"),
            "estimated_error": self.stats["error"],
            "budget": self.stats["budget"],
            "different_from_the_models_own_answer": [
                {
                    "message": reply.message,
                    "served": reply.answer,
                    "own": self.own[reply.message],
                }
                for reply in self.different()
            ],
            "trap": [
                {
                    "message": probe.reply.message,
                    "like": self.trap,
                    "neighbour": probe.neighbour(self.trap),
                    "served": probe.explained["served"],
                    "why": probe.explained["why"],
                    "outcome": probe.reply.outcome,
                    "answer": probe.reply.answer,
                }
                for probe in (self.rephrased, self.changed)
            ],
        }


def table(summary: Summary) -> str:
    """Return counts and median waits as a table."""
    total = len(summary.replies)
    rows = [("", "requests", "share", "median wait")]
    for kind, name in KINDS.items():
        count = len(summary.of_kind(kind))
        wait_ms = summary.median_ms(kind)
        wait = "-" if wait_ms is None else f"{wait_ms:.0f} ms"
        rows.append((name, str(count), f"{100 * count / total:.0f} %", wait))
    if others := sum(reply.outcome not in KINDS for reply in summary.replies):
        rows.append(("left alone", str(others), f"{100 * others / total:.0f} %", ""))
    rows.append(("all", str(total), "100 %", ""))
    return "\n".join(
        f"{name:15}{count:>10}{share:>9}{wait:>14}" for name, count, share, wait in rows
    )


def errors(summary: Summary) -> str:
    """Return what the server estimates, what it may do, and what was checked."""
    hits, different = summary.of_kind("semantic"), summary.different()
    same = len(hits) - len(different)
    checked = f"the model answers {same} of the {len(hits)} semantic hits"
    others = "; the others:" if different else "."
    lines = [
        *_estimates(summary.stats),
        f"Asked afterwards, {checked} in the same words{others}",
    ]
    for reply in different:
        own = summary.own[reply.message]
        lines.append(f'  "{reply.message}": {reply.answer!r}, the model: {own!r}')
    return "\n".join(lines)


def _estimates(stats: dict[str, Any]) -> list[str]:
    error, budget = stats["error"], stats["budget"]
    audits = error["audits"]
    rows = [("wrong answers", "estimate", "budget")]
    for key, name in (("per_request", "of all requests"), ("per_hit", "of the hits")):
        estimate = f"{100 * error[key]:.2f} %" if audits else "-"
        rows.append((name, estimate, f"{100 * budget[key]:g} %"))
    share = 100 * stats["config"]["audit"]
    rule = f"{share:g} % of what could be served goes to the model all the same"
    if audits:
        low, high = 100 * error["low_per_hit"], 100 * error["high_per_hit"]
        found = (
            f"{rule}: {audits} so far,\n"
            f"hence {low:.0f} to {high:.0f} % of the hits with 95 % confidence."
        )
    else:
        found = f"{rule}: none so far,\nso there is no estimate yet."
    lines = [f"{name:15}{left:>10}{right:>9}" for name, left, right in rows]
    return [*lines, found, ""]


def trap(summary: Summary) -> str:
    """Return what became of the two messages that look like a third."""
    lines = [f'Two messages that look like "{summary.trap}", which was asked before:']
    for probe in (summary.rephrased, summary.changed):
        lines += [f"  {line}" for line in probe.lines(summary.trap)]
    near = summary.rephrased.neighbour(summary.trap)
    far = summary.changed.neighbour(summary.trap)
    if near and far and far["similarity"] >= near["similarity"]:
        lines.append(
            "  The wrong one is the more similar one: no threshold tells them apart."
        )
    return "\n".join(lines)
