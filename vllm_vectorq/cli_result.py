# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a replay measured, as a file that can be plotted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .cli_error import CliError
from .replay import Outcome

FORMAT = "vllm-vectorq-replay"
VERSION = 1
_TIMELINE_POINTS = 50
_CALIBRATION_BINS = 10


def run_result(outcome: Outcome) -> dict[str, Any]:
    """Return what a run measured, in numbers and short tables."""
    return {
        "requests": len(outcome.hit),
        "hits": int(outcome.hit.sum()),
        "wrong": int(outcome.wrong.sum()),
        "hit_rate": outcome.hit_rate,
        "error_per_request": outcome.error_per_request,
        "error_per_hit": outcome.error_per_hit,
        "judge_calls": outcome.judge_calls,
        "entries": outcome.entries,
        "deciles": outcome.deciles,
        "timeline": timeline(outcome),
        "calibration": calibration(outcome),
    }


def timeline(outcome: Outcome) -> list[dict[str, float]]:
    """Hit rate and error from the beginning up to points of the stream."""
    hits, wrong = np.cumsum(outcome.hit), np.cumsum(outcome.wrong)
    n = len(hits)
    ends = np.unique(np.linspace(0, n, min(_TIMELINE_POINTS, n) + 1).astype(int)[1:])
    return [
        {
            "requests": int(end),
            "hit_rate": float(hits[end - 1] / end),
            "error_per_request": float(wrong[end - 1] / end),
        }
        for end in ends
    ]


def calibration(outcome: Outcome) -> list[dict[str, float]]:
    """Predicted probability against share right, over the hits.

    Only of hits is it known whether they were right. Bins hold equally many of them,
    because most probabilities are close to 1.
    """
    places = np.flatnonzero(outcome.hit)
    by_probability = places[np.argsort(outcome.probability[places], kind="stable")]
    return [
        {
            "hits": len(part),
            "lowest": float(outcome.probability[part].min()),
            "highest": float(outcome.probability[part].max()),
            "mean_probability": float(outcome.probability[part].mean()),
            "share_right": float(1.0 - outcome.wrong[part].mean()),
        }
        for part in np.array_split(by_probability, _CALIBRATION_BINS)
        if len(part)
    ]


def read_result(path: Path) -> dict[str, Any]:
    """Read what ``vllm-vectorq replay --out`` wrote.

    Raises:
        CliError: The file is something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CliError(f"{path} is not JSON: {error}.") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise CliError(f"{path} was not written by vllm-vectorq replay --out.")
    if result.get("version") != VERSION:
        raise CliError(
            f"{path} has version {result.get('version')!r}, this command reads "
            f"{VERSION}; run replay again."
        )
    return result
