# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is kept of one run: rates, their course over time, and calibration counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_vectorq.replay import Outcome

# Bounds of the bins of predicted error; every hit is in one of them.
ERROR_BINS = (0.0, 0.003, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 1.0)
_DIGITS = 5


def measured(outcome: Outcome) -> dict[str, Any]:
    """A run in numbers."""
    return {
        "requests": len(outcome.hit),
        "hit_rate": round(outcome.hit_rate, _DIGITS),
        "error_per_request": round(outcome.error_per_request, _DIGITS),
        "error_per_hit": round(outcome.error_per_hit, _DIGITS),
        "judge_calls": outcome.judge_calls,
        "entries": outcome.entries,
        "hit_deciles": _deciles(outcome.hit),
        "error_deciles": _deciles(outcome.wrong),
        "calibration": calibration_counts(outcome),
    }


def _deciles(happened: np.ndarray[Any, np.dtype[np.bool_]]) -> list[float]:
    return [round(float(part.mean()), 4) for part in np.array_split(happened, 10)]


def calibration_counts(outcome: Outcome) -> list[list[float]]:
    """Per bin of predicted error: hits, sum of their predicted errors, wrong ones."""
    predicted = 1.0 - outcome.probability[outcome.hit].astype(np.float64)
    wrong = outcome.wrong[outcome.hit].astype(np.float64)
    bins = np.searchsorted(ERROR_BINS[1:-1], predicted, side="right")
    count = len(ERROR_BINS) - 1
    columns = (
        np.bincount(bins, minlength=count).astype(np.float64),
        np.bincount(bins, predicted, count),
        np.bincount(bins, wrong, count),
    )
    rows = np.stack(columns, axis=1).round(4)
    return [[float(x) for x in row] for row in rows]


def pooled_calibration(counts: list[list[list[float]]]) -> list[dict[str, float]]:
    """Predicted against observed error over many runs, empty bins left out."""
    total = np.sum(np.array(counts), axis=0)
    return [
        {
            "from": low,
            "to": high,
            "hits": int(hits),
            "predicted": round(predicted / hits, _DIGITS),
            "observed": round(wrong / hits, _DIGITS),
        }
        for low, high, (hits, predicted, wrong) in zip(
            ERROR_BINS, ERROR_BINS[1:], total.tolist(), strict=False
        )
        if hits
    ]
