# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""A projection in which questions with one answer lie close together.

Sentence embeddings tell topics apart better than answers. Linear discriminant analysis
on the entries seen so far (Fisher, 1936; shrinkage as in Ledoit and Wolf, 2004) turns
down the directions in which questions with the same answer differ, and keeps those in
which answers differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .policy import Ids
from .record import Vector

Matrix = NDArray[np.float64]

RANK = 64
# Share of a round covariance mixed into the one within classes, and how many entries
# half of the total covariance counts for: classes are many and small.
_SHRINKAGE = 0.3
_PRIOR_ENTRIES = 150.0
_SMALLEST = 1e-9


@dataclass(frozen=True, slots=True)
class Projection:
    """Maps unit vectors to ``rank`` dimensions.

    Attributes:
        matrix: float32 [dimensions, rank].
        offset: Where the mean of all entries is mapped to, float32 [rank].
    """

    matrix: Vector
    offset: Vector

    def apply(self, vectors: Vector) -> Vector:
        """Project and normalise, float32 [..., dimensions] to [..., rank]."""
        projected: Vector = vectors @ self.matrix - self.offset
        lengths = np.sqrt((projected * projected).sum(axis=-1, keepdims=True))
        unit: Vector = projected / np.maximum(lengths, _SMALLEST)
        return unit


def fit_projection(vectors: Vector, class_ids: Ids, rank: int = RANK) -> Projection:
    """Fit a projection to entries and their answer classes.

    Args:
        vectors: Unit vectors, float32 [n, dimensions].
        class_ids: Class of each, int64 [n].
        rank: Dimensions to keep; at most one less than there are classes.
    """
    rows = vectors.astype(np.float64)
    dimensions = rows.shape[1]
    mean: Matrix = rows.mean(axis=0)
    _, members, counts = np.unique(class_ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), dimensions))
    np.add.at(sums, members, rows)
    centres = sums / counts[:, None]
    within = _within(rows, centres, members, counts)
    # There is nothing between classes in further dimensions.
    rank = min(rank, max(len(counts) - 1, 1))
    values, axes = np.linalg.eigh(within)
    whitening = (axes / np.sqrt(values)) @ axes.T
    apart = centres - mean
    between = (apart * counts[:, None]).T @ apart / len(rows)
    _, directions = np.linalg.eigh(whitening @ between @ whitening)
    matrix = whitening @ directions[:, ::-1][:, :rank]
    return Projection(
        np.ascontiguousarray(matrix, dtype=np.float32),
        (mean @ matrix).astype(np.float32),
    )


def _within(
    rows: Matrix, centres: Matrix, members: Ids, counts: NDArray[np.intp]
) -> Matrix:
    """Covariance within classes, shrunk so that it can be inverted."""
    dimensions = rows.shape[1]
    total = np.cov(rows.T)
    several = counts[members] > 1
    residuals = (rows - centres[members])[several]
    freedom = max(len(residuals) - int((counts > 1).sum()), 0)
    scatter = residuals.T @ residuals
    pooled = (scatter + 0.5 * _PRIOR_ENTRIES * total) / (freedom + _PRIOR_ENTRIES)
    level = max(float(np.trace(pooled)) / dimensions, _SMALLEST)
    shrunk: Matrix = (1.0 - _SHRINKAGE) * pooled
    shrunk += _SHRINKAGE * level * np.eye(dimensions)
    return shrunk
