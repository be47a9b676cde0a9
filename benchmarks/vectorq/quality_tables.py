# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The report of the quality benchmark as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.vectorq.quality_report import thresholds_at
from benchmarks.vectorq.quality_streams import DRIFT

_SHOWN = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
ANSWERS_TARGET = 0.85


def tables(report: dict[str, Any]) -> Iterator[str]:
    """One line per number that matters, under headings."""
    yield "\n== policies: hit rate, wrong per request, wrong per hit, budgets kept =="
    for row in report["summary"]:
        yield _line(row)
    yield "\n== static thresholds, mean over the shuffles =="
    yield from _static(report["static"])
    yield "\n== more hits than the best threshold in hindsight, per run =="
    yield from _hindsight(report["hindsight"])
    for part in ("ablations", "judge_noise"):
        yield f"\n== {part.replace('_', ' ')} =="
        for row in report[part]:
            yield _line(row)
    yield "\n== judged answers =="
    for row in report["answers"]:
        share = row["share_of_oracle_hits"]
        met = "met" if share >= ANSWERS_TARGET else "missed"
        kept = "kept" if row["error_per_request"] <= row["delta"] else "exceeded"
        yield (
            f"{row['source']} {row['order']}, delta {row['delta']:g}, answers "
            f"{'alike' if row['alike'] else 'apart'}: "
            f"hit {row['hit_rate']:.1%}, wrong {row['error_per_request']:.2%}; with "
            f"known classes {row['oracle_hit_rate']:.1%}, "
            f"{row['oracle_error_per_request']:.2%}; share of hits {share:.1%} "
            f"(target {ANSWERS_TARGET:.0%} {met}), budget {kept}"
        )
    yield "\n== trap pairs =="
    for row in report["traps"]:
        yield (
            f"{_name(row):28} traps answered wrongly "
            f"{row['traps_answered_wrongly']['mean']:6.1f} of {row['traps']}, "
            f"rephrasings served {row['rephrasings_served']['mean']:6.1f} of "
            f"{row['rephrasings']}, wrong per request "
            f"{row['error_per_request']['mean']:.2%}"
        )


def _name(row: dict[str, Any]) -> str:
    return f"{row['policy']}{'' if row['guards'] else ' (no guards)'}"


def _line(row: dict[str, Any]) -> str:
    hit, wrong, per_hit = (
        row[name] for name in ("hit_rate", "error_per_request", "error_per_hit")
    )
    noise = f" noise {row['judge_noise']:.0%}" if row["judge_noise"] else ""
    return (
        f"{row['source']:10} {row['order']:8} {_name(row):26}{noise} delta "
        f"{row['delta']:<7g} hit {hit['mean']:6.1%} +- {hit['sd']:.1%}, wrong "
        f"{wrong['mean']:.2%} (max {wrong['max']:.2%}), per hit {per_hit['mean']:.2%} "
        f"(max {per_hit['max']:.2%}), kept {row['within_delta']}/"
        f"{row['within_hit_delta']} of {row['runs']}, judged {row['judge_calls']:,}, "
        f"entries {row['entries']:,}"
    )


def _static(rows: list[dict[str, Any]]) -> Iterator[str]:
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        if row["order"] != DRIFT:
            groups.setdefault((row["source"], row["guards"]), []).append(row)
    for (source, guards), group in groups.items():
        cells = [thresholds_at(row, _SHOWN) for row in group]
        for column in zip(*cells, strict=True):
            hit = sum(cell[1] for cell in column) / len(column)
            wrong = sum(cell[2] for cell in column) / len(column)
            yield (
                f"{source:10} {column[0][0]:.2f} {'' if guards else '(no guards) '}"
                f"hit {hit:.1%}, wrong {wrong:.2%}"
            )


def _hindsight(rows: list[dict[str, Any]]) -> Iterator[str]:
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], row["delta"]), []).append(row)
    for (source, delta), group in groups.items():
        margins = [row["margin"] for row in group]
        between = [row["margin_interpolated"] for row in group]
        yield (
            f"{source:10} delta {delta:<7g} smallest {min(margins):+.1%}, mean "
            f"{sum(margins) / len(margins):+.1%}; between thresholds smallest "
            f"{min(between):+.1%} ({len(group)} runs)"
        )
