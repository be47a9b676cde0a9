# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Vectors for the tests of the index."""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

DIMENSIONS = 8
ALL = 1_000_000


def units(rng: np.random.Generator, count: int, dimensions: int) -> Vectors:
    vectors = rng.standard_normal((count, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def nearest_ids(
    ids: NDArray[np.int64], vectors: Vectors, query: Vectors, k: int
) -> list[int]:
    """Exact answer, ties by id."""
    cosines = vectors.astype(np.float64) @ query.astype(np.float64)
    order = np.lexsort((ids, -cosines.astype(np.float32)))[:k]
    return [int(i) for i in ids[order]]


# Few vectors, so that many entries are equally near.
PALETTE = units(np.random.default_rng(7), 6, DIMENSIONS)
