# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a look-up costs in two published designs, on the same vectors and machine.

The parts that dominate, written anew: a table row fetched per hit behind a flat index
(as in GPTCache), and a sigmoid fitted per request to the nearest entry's labels (as in
vCache, Schroeder et al. 2025). What those projects do besides only adds to it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.vectorq.measuring import Stopwatch, milliseconds
from vllm_vectorq.record import Vector

Floats = NDArray[np.float64]

LABELS_PER_ENTRY = 20
_ITERATIONS = 25
_CONFIDENCES = np.linspace(0.01, 0.99, 50)
_QUANTILES = np.array([NormalDist().inv_cdf(1.0 - c) for c in _CONFIDENCES.tolist()])
_DELTA = 0.02
_PRIOR_PRECISION = 1e-2


def row_per_hit(
    vectors: Vector, answers: list[str], queries: Vector, path: Path
) -> dict[str, float]:
    """Flat search, then one row of a database file.

    Args:
        vectors: Unit vectors of the entries, float32 [entries, dimensions].
        answers: Answer of each entry.
        queries: Unit vectors of the requests, float32 [requests, dimensions].
        path: Where to put the database.
    """
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE answers (id INTEGER PRIMARY KEY, question TEXT, answer TEXT)"
    )
    connection.executemany(
        "INSERT INTO answers VALUES (?, ?, ?)",
        ((i, f"question {i}", answer) for i, answer in enumerate(answers)),
    )
    connection.commit()
    watch = Stopwatch()
    for query in queries:
        with watch:
            _, ids = index.search(query[None, :], 1)
            connection.execute(
                "SELECT answer FROM answers WHERE id = ?", (int(ids[0, 0]),)
            ).fetchone()
    connection.close()
    path.unlink()
    return milliseconds(watch.samples_s)


def fit_per_request(vectors: Vector, queries: Vector, seed: int) -> dict[str, float]:
    """Flat search, then a fit to the nearest entry's labels and a decision.

    Args:
        vectors: Unit vectors of the entries, float32 [entries, dimensions].
        queries: Unit vectors of the requests, float32 [requests, dimensions].
        seed: For the labels.
    """
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    random = np.random.default_rng(seed)
    watch = Stopwatch()
    for query in queries:
        similarities = 0.5 + 0.5 * random.beta(4.0, 2.0, LABELS_PER_ENTRY)
        odds = 25.0 * (similarities - 0.8)
        right = random.random(LABELS_PER_ENTRY) < 1.0 / (1.0 + np.exp(-odds))
        with watch:
            found, _ = index.search(query[None, :], 1)
            _exploration(similarities, right.astype(np.float64), float(found[0, 0]))
    return milliseconds(watch.samples_s)


def _exploration(similarities: Floats, right: Floats, similarity: float) -> float:
    """Probability with which to ask the model, from a fit made for this request.

    For every confidence: the pessimistic boundary, a quantile of its asymptotic normal
    distribution, gives a bound on the chance of being right; the best one counts.
    """
    slope, intercept, covariance = _fit(similarities, right)
    boundary = -intercept / slope
    gradient = np.array([intercept / slope**2, -1.0 / slope])
    spread = float(np.sqrt(max(gradient @ covariance @ gradient, 0.0)))
    late = boundary + spread * _QUANTILES
    chance = 1.0 / (1.0 + np.exp(np.clip(-slope * (similarity - late), -35.0, 35.0)))
    alpha = (1.0 - _CONFIDENCES) * chance
    return float(np.clip(1.0 - _DELTA / np.maximum(1.0 - alpha, 1e-9), 0, 1).min())


def _fit(similarities: Floats, right: Floats) -> tuple[float, float, Floats]:
    """Slope, intercept and their covariance by Newton's method."""
    design = np.stack([similarities, np.ones_like(similarities)], axis=1)
    coefficients = np.array([1.0, 0.0])
    precision = np.eye(2) * _PRIOR_PRECISION
    hessian = precision
    for _ in range(_ITERATIONS):
        scores = np.clip(design @ coefficients, -35.0, 35.0)
        chance = 1.0 / (1.0 + np.exp(-scores))
        gradient = design.T @ (right - chance) - precision @ coefficients
        weights = chance * (1.0 - chance)
        hessian = (design * weights[:, None]).T @ design + precision
        step = np.linalg.solve(hessian, gradient)
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-6:
            break
    slope = float(max(coefficients[0], 1e-3))
    return (
        slope,
        float(coefficients[1]),
        np.asarray(np.linalg.inv(hessian), dtype=np.float64),
    )
