# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Online service distributions and the Gittins index over them.

A life table counts, for log-spaced bins of attained service, how many programs finished
inside the bin and how many went on. Their ratio is the discrete hazard. A program that
is still inside a bin is not counted there yet, so live (right-censored) programs do not
bias the estimate: what a busy server sees first are its short programs.

The Gittins index of a job with attained service ``a`` is

    G(a) = sup_d  P(S - a <= d | S > a) / E[min(S - a, d) | S > a]

and serving the largest index minimises mean response time of a single server when sizes
are unknown but their distribution is not (Gittins 1989; Aalto, Ayesta and Righter 2009,
Queueing Systems 63). :class:`LifeTable` returns ``1 / G``: the service still to invest
per expected completion, in service units, so smaller is better and the value compares
with SRPT's remaining service.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

_BINS_PER_OCTAVE = 3
_FIRST_EDGE = 8.0
_OCTAVES = 22
NUM_BINS = _BINS_PER_OCTAVE * _OCTAVES
_RATIO: float = 2.0 ** (1.0 / _BINS_PER_OCTAVE)
# Bin k covers [EDGES[k], EDGES[k + 1]); bin 0 starts at zero service.
EDGES: tuple[float, ...] = (
    0.0,
    *(_FIRST_EDGE * _RATIO**k for k in range(NUM_BINS)),
)
_LOWER_EDGES = np.asarray(EDGES[:NUM_BINS])
_WIDTHS = np.diff(np.asarray(EDGES))
# A Pareto(1) job has hazard 1/x: its index grows in proportion to attained service,
# which is exactly least-attained-service order.
_PARETO_HAZARD = 1.0 - 1.0 / _RATIO


def bin_of(service: float) -> int:
    """Index of the bin that holds ``service`` (service units, >= 0)."""
    if service < _FIRST_EDGE:
        return 0
    if service >= EDGES[NUM_BINS - 1]:
        return NUM_BINS - 1
    k = 1 + int(math.log2(service / _FIRST_EDGE) * _BINS_PER_OCTAVE)
    # The logarithm may round across an edge; the edges decide.
    if service < EDGES[k]:
        return k - 1
    if service >= EDGES[k + 1]:
        return k + 1
    return k


class LifeTable:
    """Hazards of one program class, shrunk towards a parent table.

    Args:
        parent: Table whose hazards serve as the prior; None means the Pareto prior,
            under which the order is least attained service.
        prior_strength: Weight of the prior, in programs per bin.
        max_programs: Counts are halved beyond this, so old behaviour fades.
    """

    def __init__(
        self,
        parent: LifeTable | None = None,
        prior_strength: float = 4.0,
        max_programs: int = 2000,
        size_exponent: float = 0.0,
    ) -> None:
        """See the class docstring."""
        self.parent = parent
        self.prior_strength = prior_strength
        self.max_programs = max_programs
        self.size_exponent = size_exponent
        self.finished = [0.0] * NUM_BINS
        self.passed = [0.0] * NUM_BINS
        self.num_finished = 0.0
        self._events = 0.0
        self._events_since_refresh = 0
        self._parent_finished = 0.0
        self._index: list[float] = []

    def advance(self, old_bin: int, new_bin: int) -> None:
        """Record that a program left ``old_bin`` alive and is now in ``new_bin``."""
        for k in range(old_bin, new_bin):
            self.passed[k] += 1.0
        self._note(new_bin - old_bin)

    def finish(self, last_bin: int) -> None:
        """Record that a program ended inside ``last_bin``."""
        self.finished[last_bin] += 1.0
        self.num_finished += 1.0
        self._note(_BINS_PER_OCTAVE)
        if self.num_finished > self.max_programs:
            self.finished = [x * 0.5 for x in self.finished]
            self.passed = [x * 0.5 for x in self.passed]
            self.num_finished *= 0.5
            self._events *= 0.5

    def _note(self, events: int) -> None:
        self._events += events
        self._events_since_refresh += events

    def hazards(self) -> list[float]:
        """Probability to end inside each bin, given that it was entered."""
        if self.parent is None:
            prior = [_PARETO_HAZARD] * NUM_BINS
        else:
            prior = self.parent.hazards()
        m = self.prior_strength
        return [
            (done + m * h) / (done + went_on + m)
            for done, went_on, h in zip(self.finished, self.passed, prior, strict=True)
        ]

    def service_per_completion(self, attained: float) -> float:
        """The inverse Gittins index at ``attained``, in service units.

        Interpolated linearly inside a bin, so the order is a smooth function of
        attained service. The cached index is refreshed when the counts have changed
        by 5 %, which keeps the amortised cost of an event constant.
        """
        if self._is_stale():
            self._index = inverse_gittins(self.hazards(), self.size_exponent)
            self._events_since_refresh = 0
            self._parent_finished = self.parent.num_finished if self.parent else 0.0
        k = bin_of(attained)
        here = self._index[k]
        if k + 1 >= NUM_BINS:
            return here
        fraction = (attained - EDGES[k]) / (EDGES[k + 1] - EDGES[k])
        return here + (self._index[k + 1] - here) * fraction

    def _is_stale(self) -> bool:
        if not self._index:
            return True
        if self._events_since_refresh > 2.0 + 0.05 * self._events:
            return True
        if self.parent is None:
            return False
        return self.parent.num_finished > 1.25 * self._parent_finished + 1.0

    def quantile(self, q: float) -> float:
        """Service below which a fraction ``q`` of the ended programs stayed."""
        target = q * self.num_finished
        seen = 0.0
        for k in range(NUM_BINS - 1):
            count = self.finished[k]
            if count > 0.0 and seen + count >= target:
                part = max(0.0, (target - seen) / count)
                return EDGES[k] + part * (EDGES[k + 1] - EDGES[k])
            seen += count
        return EDGES[NUM_BINS - 1]


def inverse_gittins(hazards: list[float], size_exponent: float = 0.0) -> list[float]:
    """``1 / G`` at the lower edge of every bin.

    Args:
        hazards: Probability to end inside each bin given it was entered,
            ``NUM_BINS`` floats in (0, 1].
        size_exponent: Completing a program of size x is worth ``x ** -size_exponent``;
            0 counts all programs alike.

    Returns:
        Service to invest per expected completion, ``NUM_BINS`` floats > 0.
    """
    hazard = np.clip(np.asarray(hazards), 0.0, 1.0 - 1e-12)
    # alive[i, k]: probability to enter bin k, given that bin i was entered.
    log_alive = np.concatenate(([0.0], np.cumsum(np.log1p(-hazard))[:-1]))
    with np.errstate(under="ignore"):
        alive = np.exp(np.minimum(log_alive[None, :] - log_alive[:, None], 0.0))
    alive = np.triu(alive)
    # A program that ends inside a bin uses half of its width on average.
    invested = np.cumsum(alive * (_WIDTHS * (1.0 - 0.5 * hazard)), axis=1)
    worth = (_LOWER_EDGES + 0.5 * _WIDTHS) ** -size_exponent
    reward = np.cumsum(alive * (hazard * worth), axis=1)
    cost = np.full_like(invested, np.inf)
    np.divide(invested, reward, out=cost, where=reward > 0.0)
    return [float(x) for x in cost.min(axis=1)]


class ClassTables:
    """One life table per program class over a pooled one; least recent class leaves.

    Args:
        prior_strength: Weight of the pooled hazards in a class, and of the Pareto
            prior in the pool, in programs per bin.
        max_classes: Bound of the number of classes.
        size_exponent: See :func:`inverse_gittins`.
    """

    def __init__(
        self,
        prior_strength: float = 4.0,
        max_classes: int = 1024,
        size_exponent: float = 0.0,
    ) -> None:
        """See the class docstring."""
        self.prior_strength = prior_strength
        self.max_classes = max_classes
        self.size_exponent = size_exponent
        self.pooled = LifeTable(None, prior_strength, size_exponent=size_exponent)
        self._tables: OrderedDict[str, LifeTable] = OrderedDict()

    def __len__(self) -> int:
        """Number of classes kept."""
        return len(self._tables)

    def get(self, class_key: str) -> LifeTable:
        """The table of a class, created on first use."""
        table = self._tables.get(class_key)
        if table is None:
            table = LifeTable(
                self.pooled, self.prior_strength, size_exponent=self.size_exponent
            )
            self._tables[class_key] = table
            if len(self._tables) > self.max_classes:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(class_key)
        return table

    def known(self, class_key: str) -> LifeTable:
        """The table to rank by: the class's own once it has seen two programs.

        Before that the pool knows as much, and where every program is a class of its
        own no index is computed for each of them.
        """
        table = self._tables.get(class_key)
        if table is None or table.passed[0] + table.finished[0] < 2.0:
            return self.pooled
        return table

    def advance(self, class_key: str, old_bin: int, new_bin: int) -> None:
        """Record progress of a live program in its class and in the pool."""
        self.get(class_key).advance(old_bin, new_bin)
        self.pooled.advance(old_bin, new_bin)

    def finish(self, class_key: str, last_bin: int) -> None:
        """Record the end of a program in its class and in the pool."""
        self.get(class_key).finish(last_bin)
        self.pooled.finish(last_bin)
