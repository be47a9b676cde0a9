# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The report of the quality benchmark, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.vectorq.quality_outcome import pooled_calibration
from benchmarks.vectorq.quality_policies import STATIC, SUITE
from benchmarks.vectorq.quality_runs import ANSWERS, ANSWERS_ALIKE, THRESHOLDS, Row
from benchmarks.vectorq.quality_static import frontier, interpolated
from benchmarks.vectorq.quality_streams import DRIFT, TRAPS
from vllm_vectorq.config import VectorQConfig

_RATES = ("hit_rate", "error_per_request", "error_per_hit")
_COUNTS = ("judge_calls", "entries")
_HIT_DELTA = VectorQConfig().hit_delta
_DIGITS = 5


def spread(values: list[float]) -> dict[str, float]:
    """Median, mean, standard deviation, smallest and largest."""
    found = {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }
    return {name: round(value, _DIGITS) for name, value in found.items()}


def report_of(rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    """Everything but environment and settings.

    Args:
        rows: From :func:`~benchmarks.vectorq.quality_runs.perform`.
    """
    rows = sorted(rows, key=_place)
    static = [row for row in rows if row["policy"] == STATIC]
    replays = [row for row in rows if "hit_deciles" in row]
    policies = [row for row in replays if row["part"] == "policies"]
    return {
        "summary": _summaries(policies),
        "hindsight": [
            _against_hindsight(row, static)
            for row in policies
            if row["policy"] == SUITE and row["guards"]
        ],
        "calibration": _calibration(policies),
        "ablations": _summaries(_of(replays, "ablations")),
        "judge_noise": _summaries(_of(replays, "judge_noise")),
        "answers": _answers(replays, policies),
        "traps": _traps(_of(rows, TRAPS)),
        "exact": [row for row in rows if row["policy"] == "exact"],
        "static": static,
        "runs": [
            {name: value for name, value in row.items() if name != "calibration"}
            for row in replays
            if row["part"] not in ANSWERS
        ],
    }


def _place(row: Row) -> tuple[Any, ...]:
    names = ("part", "source", "policy", "guards", "delta", "judge_noise", "order")
    return tuple(row[name] for name in names)


def _of(rows: list[Row], part: str) -> list[Row]:
    return [row for row in rows if row["part"] == part]


def _grouped(
    rows: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]
) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _summaries(rows: list[Row]) -> list[dict[str, Any]]:
    """Spread over the shuffles, and the drifting order by itself."""
    named = ("source", "policy", "guards", "delta", "judge_noise")
    groups = _grouped(
        rows, lambda row: (*(row[n] for n in named), row["order"] == DRIFT)
    )
    return [
        {
            **{name: group[0][name] for name in named},
            "order": DRIFT if group[0]["order"] == DRIFT else "shuffled",
            "runs": len(group),
            **{name: spread([row[name] for row in group]) for name in _RATES},
            **{
                name: round(statistics.fmean(row[name] for row in group))
                for name in _COUNTS
            },
            "within_delta": sum(
                row["error_per_request"] <= row["delta"] for row in group
            ),
            "within_hit_delta": sum(
                row["error_per_hit"] <= _HIT_DELTA for row in group
            ),
        }
        for group in groups
    ]


def _against_hindsight(row: Row, static: list[Row]) -> dict[str, Any]:
    """How many more hits than the best threshold that errs as rarely in this order.

    The threshold is chosen knowing all labels of the stream, with or without guards,
    whichever is better.
    """
    rivals = [
        s for s in static if s["source"] == row["source"] and s["order"] == row["order"]
    ]
    allowed = row["error_per_request"]
    curves = [(s["hit_rate"], s["error_per_request"]) for s in rivals]
    best = max((frontier(*curve, allowed) for curve in curves), default=0.0)
    between = max((interpolated(*curve, allowed) for curve in curves), default=0.0)
    return {
        **{name: row[name] for name in ("source", "order", "delta", *_RATES[:2])},
        "static": round(best, _DIGITS),
        "margin": round(row["hit_rate"] - best, _DIGITS),
        "margin_interpolated": round(row["hit_rate"] - between, _DIGITS),
    }


def _calibration(rows: list[Row]) -> list[dict[str, Any]]:
    own = [row for row in rows if row["policy"] == SUITE and row["guards"]]
    return [
        {
            "source": group[0]["source"],
            "delta": group[0]["delta"],
            "bins": pooled_calibration([row["calibration"] for row in group]),
        }
        for group in _grouped(own, lambda row: (row["source"], row["delta"]))
    ]


def _answers(rows: list[Row], policies: list[Row]) -> list[dict[str, Any]]:
    """What the judges cost, against a run that knows the classes."""
    shared = ("source", "order", "policy", "delta", "guards")
    known = {tuple(row[n] for n in shared): row for row in policies}
    found = []
    for row in (row for row in rows if row["part"] in ANSWERS):
        oracle = known[tuple(row[name] for name in shared)]
        found.append(
            {
                "alike": row["part"] == ANSWERS_ALIKE,
                **{name: row[name] for name in shared[:4]},
                **{name: row[name] for name in (*_RATES, *_COUNTS)},
                **{n: row[n] for n in ("exact_repeats", "verdicts", "faults")},
                "oracle_hit_rate": oracle["hit_rate"],
                "oracle_error_per_request": oracle["error_per_request"],
                "share_of_oracle_hits": round(
                    row["hit_rate"] / max(oracle["hit_rate"], 1e-9), 4
                ),
            }
        )
    return found


def _traps(rows: list[Row]) -> list[dict[str, Any]]:
    names = ("traps_answered_wrongly", "rephrasings_served", "error_per_request")
    return [
        {
            **{n: group[0][n] for n in ("policy", "guards", "delta")},
            **{n: group[0][n] for n in ("traps", "rephrasings")},
            "runs": len(group),
            **{name: spread([row[name] for row in group]) for name in names},
        }
        for group in _grouped(rows, lambda row: (row["policy"], row["guards"]))
    ]


def thresholds_at(row: Row, shown: Iterable[float]) -> list[tuple[float, float, float]]:
    """Threshold, hit rate and error per request of a static row."""
    columns = zip(THRESHOLDS, row["hit_rate"], row["error_per_request"], strict=True)
    wanted = set(shown)
    return [each for each in columns if each[0] in wanted]
