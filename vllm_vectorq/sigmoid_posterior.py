# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""How surely an entry answers a request of some similarity, from few labels.

The model is vCache's: a request of similarity ``s`` to the entry gets the same answer
with probability ``L(s) = 1 / (1 + exp(-g * (s - t)))``; the entry's boundary ``t`` and
slope ``g`` are unknown. Its bound (arXiv 2502.03771, section 4) is, for every epsilon,

    Pr(correct | s)  >=  (1 - epsilon) * L'(s, epsilon)

with ``L'`` from the pessimistic end of a ``1 - epsilon`` confidence band.

We deviate in how the band is made. Maximum likelihood has no finite answer when the
labels can be separated, and its variance means little below a dozen labels. Here the
posterior of ``(t, log g)`` is computed on a grid, which is sound for any labels and
needs no iterations. A request's ``L(s)`` is then one number with a known distribution,
so that ``L'`` is its epsilon quantile and slope and boundary are uncertain together.

The best epsilon needs no grid of its own: the largest ``(1 - epsilon) * L'`` is the
largest ``Pr(L(s) >= level) * level``, and every level gives a valid bound. Levels are
evenly spaced in log odds, which is fine where small budgets need it. The bound does
not depend on the budget, so an entry keeps only the bound at :data:`KNOTS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# A boundary above 1 says that the entry is wrong even for its own text. A slope of 4
# hardly depends on similarity; beyond 256 the band is narrower than what float16
# embeddings resolve.
_BOUNDARY_MIN, _BOUNDARY_MAX, NUM_BOUNDARIES = 0.25, 1.25, 128
_SLOPE_MIN, _SLOPE_MAX, NUM_SLOPES = 4.0, 256.0, 12
_SIMILARITY_STEPS = 1024

_CELL = (_BOUNDARY_MAX - _BOUNDARY_MIN) / NUM_BOUNDARIES
_SLOPE_EDGES = np.asarray(
    np.geomspace(_SLOPE_MIN, _SLOPE_MAX, NUM_SLOPES + 1), dtype=np.float64
)
SLOPES: Floats = np.asarray(np.sqrt(_SLOPE_EDGES[:-1] * _SLOPE_EDGES[1:]))
BOUNDARIES: Floats = np.asarray(
    _BOUNDARY_MIN + _CELL * (np.arange(NUM_BOUNDARIES) + 0.5)
)

# Similarities at which the bound is kept; between two of them the lower one holds.
KNOTS: Floats = np.arange(_BOUNDARY_MIN, 1.0 + _CELL / 2, _CELL, dtype=np.float64)
_LOG_ODDS: Floats = np.linspace(-2.0, 8.0, 41, dtype=np.float64)
LEVELS: Floats = 1.0 / (1.0 + np.exp(-_LOG_ODDS))

# Exponents of the prior, chosen by simulation so that the band covers flat and steep
# entries for every epsilon up to 0.2 from two labels on; a slope exponent of -0.75
# falls short for flat, easy entries (benchmarks/vectorq/coverage.py). At 0.5 the band
# is too high for these, where the factor 1 - epsilon makes up for it. Flat slopes get
# more weight because a few labels that agree cannot rule them out.
_BOUNDARY_EXPONENT = 2.0
_SLOPE_EXPONENT = -1.0


def _log_prior() -> Floats:
    """Logarithm of the prior of every cell, float64 [slopes, boundaries]."""
    boundary = _BOUNDARY_EXPONENT * np.log(BOUNDARIES - _BOUNDARY_MIN)
    slope = _SLOPE_EXPONENT * np.log(SLOPES)
    return np.asarray(slope[:, None] + boundary[None, :])


def _log_likelihood() -> NDArray[np.float32]:
    """Log likelihood of a wrong, then of a right label by similarity minus boundary.

    Both lie on lattices, so all differences fit in one row per slope.
    """
    ticks = np.arange(_TICKS) - _TICK_OF_ZERO
    odds = SLOPES[:, None] * ticks[None, :] / _SIMILARITY_STEPS
    table = -np.logaddexp(0.0, np.concatenate([odds, -odds], axis=1))
    return np.asarray(table, dtype=np.float32)


def _reachable_cells() -> NDArray[np.intp]:
    """Where the cumulated mass of ``L >= level`` ends, [slopes, knots, levels].

    A cell counts when its worst corner reaches the level, so that the width of the
    cells makes the bound smaller, never larger. The worst slope of a cell is its flat
    edge above the boundary and its steep edge below.
    """
    worst_slope = np.where(
        _LOG_ODDS[None, :] > 0.0, _SLOPE_EDGES[:-1, None], _SLOPE_EDGES[1:, None]
    )
    room = KNOTS[None, :, None] - (_LOG_ODDS / worst_slope)[:, None, :]
    cells = np.floor((room - _BOUNDARY_MIN) / _CELL).clip(0, NUM_BOUNDARIES)
    first = np.arange(NUM_SLOPES)[:, None, None] * (NUM_BOUNDARIES + 1)
    return np.asarray(first + cells, dtype=np.intp)


_TICKS_OF_BOUNDARY = np.rint(BOUNDARIES * _SIMILARITY_STEPS).astype(np.intp)
_TICK_OF_ZERO = int(_TICKS_OF_BOUNDARY[-1])
_TICKS = _TICK_OF_ZERO + _SIMILARITY_STEPS - int(_TICKS_OF_BOUNDARY[0]) + 1
_COLUMNS = _TICK_OF_ZERO - _TICKS_OF_BOUNDARY
_LOG_PRIOR = _log_prior()
_LOG_LIKELIHOOD = _log_likelihood()
_REACHABLE = _reachable_cells()
# What one byte of a packed bound stands for. Bounds below a quarter count as nothing:
# they hardly change how often an entry is served, and for one that is never right
# even they are too large.
_PACKED: Floats = np.concatenate(
    [[0.0], 1.0 / (1.0 + np.exp(-np.linspace(-1.1, 8.5, 255)))]
)
_UNPACKED: tuple[float, ...] = tuple(_PACKED.tolist())
_LAST_KNOT = len(KNOTS) - 1


def encode(similarity: float, label: bool) -> int:
    """One label as 16 bits: similarity in steps of 1/1024, then the label."""
    # In this order a similarity that is not a number becomes 0.
    clipped = min(1.0, max(0.0, similarity))
    return 2 * round(clipped * _SIMILARITY_STEPS) + int(label)


def posterior(codes: NDArray[np.uint16]) -> Floats:
    """Probability of every slope and boundary after these labels.

    Args:
        codes: Labels from :func:`encode`, uint16 [n]; n may be 0.

    Returns:
        float64 [slopes, boundaries], sum 1.
    """
    ticks = (codes >> 1).astype(np.intp) + _TICKS * (codes & 1).astype(np.intp)
    rows = ticks[:, None] + _COLUMNS[None, :]
    log = _LOG_PRIOR + _LOG_LIKELIHOOD[:, rows].sum(axis=1)
    weights = np.exp(log - log.max())
    return np.asarray(weights / weights.sum())


def exceedance(weights: Floats) -> Floats:
    """Probability that a request at a knot is right at least with each level.

    Args:
        weights: From :func:`posterior`, float64 [slopes, boundaries].

    Returns:
        ``Pr(L(knot) >= level)``, float64 [knots, levels].
    """
    mass = np.zeros((NUM_SLOPES, NUM_BOUNDARIES + 1))
    np.cumsum(weights, axis=1, out=mass[:, 1:])
    return np.asarray(mass.ravel()[_REACHABLE].sum(axis=0))


def lower_bound(chances: Floats) -> Floats:
    """Largest ``(1 - epsilon) * L'`` at every knot, float64 [knots].

    Args:
        chances: From :func:`exceedance`, float64 [knots, levels].
    """
    return np.asarray((chances * LEVELS).max(axis=1))


def pack(bounds: Floats) -> bytes:
    """Bounds at the knots as one byte each, rounded down."""
    codes = np.searchsorted(_PACKED, bounds, side="right") - 1
    return codes.astype(np.uint8).tobytes()


def bound_at(packed: bytes, similarity: float) -> float:
    """Lower bound of ``Pr(correct)`` at a similarity, in [0, 1).

    Args:
        packed: From :func:`pack`.
        similarity: Cosine to the entry.
    """
    # Written so that a similarity that is not a number gives 0.
    if not similarity >= _BOUNDARY_MIN:
        return 0.0
    knot = min(_LAST_KNOT, int((similarity - _BOUNDARY_MIN) / _CELL))
    return _UNPACKED[packed[knot]]
