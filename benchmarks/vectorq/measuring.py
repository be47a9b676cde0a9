# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Times and memory of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def rss_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def milliseconds(samples_s: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and mean of times in seconds, in milliseconds."""
    values = np.array(samples_s) * 1e3
    return {
        "n": len(values),
        "p50_ms": round(float(np.quantile(values, 0.5)), 4),
        "p99_ms": round(float(np.quantile(values, 0.99)), 4),
        "mean_ms": round(float(values.mean()), 4),
    }


class Stopwatch:
    """Times in seconds of what ran in its ``with`` blocks."""

    def __init__(self) -> None:
        self.samples_s: list[float] = []
        self._started = 0.0

    def __enter__(self) -> None:
        """Begin."""
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        """End."""
        self.samples_s.append(time.perf_counter() - self._started)
