# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Many static thresholds in one pass over a stream.

A replay of :class:`~vllm_vectorq.policy_static.StaticPolicy` per threshold would do the
same. All thresholds share the similarities and the guards' verdicts here, which makes a
frontier with many of them affordable.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.vectorq.quality_streams import Stream
from vllm_vectorq import guards

NEIGHBOURS = 16
_CHUNK = 256

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


def sweep(
    stream: Stream, thresholds: Floats, use_guards: bool
) -> tuple[list[float], list[float]]:
    """Hit rate and error per request at each threshold, from an empty cache.

    Args:
        stream: The requests; every miss becomes an entry.
        thresholds: Cosines, ascending, float64 [t].
        use_guards: Whether an entry in conflict with the request is passed over.
    """
    n = len(stream.texts)
    hit: Flags = np.zeros((len(thresholds), n), np.bool_)
    wrong: Flags = np.zeros((len(thresholds), n), np.bool_)
    signatures = [guards.signature(text) for text in stream.texts] if use_guards else []
    for begin in range(0, n, _CHUNK):
        end = min(begin + _CHUNK, n)
        block = stream.vectors[begin:end] @ stream.vectors[:end].T
        for i in range(begin, end):
            row = block[i - begin, :i]
            near = np.flatnonzero(row >= thresholds[0])
            near = near[np.argsort(-row[near], kind="stable")]
            conflicts: dict[int, bool] = {}
            for t, threshold in enumerate(thresholds.tolist()):
                entries = near[~hit[t, near]][:NEIGHBOURS]
                for j in entries[row[entries] >= threshold].tolist():
                    if use_guards and j not in conflicts:
                        conflict = guards.conflict(signatures[i], signatures[j])
                        conflicts[j] = conflict is not None
                    if not conflicts.get(j, False):
                        hit[t, i] = True
                        wrong[t, i] = stream.classes[i] != stream.classes[j]
                        break
    return hit.mean(axis=1).tolist(), wrong.mean(axis=1).tolist()


def frontier(hit_rates: list[float], errors: list[float], allowed: float) -> float:
    """Largest hit rate of a threshold that would have kept an error, in hindsight."""
    kept = [h for h, e in zip(hit_rates, errors, strict=True) if e <= allowed]
    return max(kept, default=0.0)


def interpolated(hit_rates: list[float], errors: list[float], allowed: float) -> float:
    """The same with thresholds between those tried, by a straight line."""
    best = frontier(hit_rates, errors, allowed)
    # As the threshold falls, hits and errors rise.
    points = [(0.0, 0.0), *sorted(zip(errors, hit_rates, strict=True))]
    for (e0, h0), (e1, h1) in pairwise(points):
        if e0 <= allowed < e1:
            best = max(best, h0 + (h1 - h0) * (allowed - e0) / (e1 - e0))
    return best
