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

_BINS_PER_OCTAVE = 3
_FIRST_EDGE = 8.0
_OCTAVES = 22
NUM_BINS = _BINS_PER_OCTAVE * _OCTAVES
_RATIO: float = 2.0 ** (1.0 / _BINS_PER_OCTAVE)
# Bin k covers [EDGES[k], EDGES[k + 1]); bin 0 starts at zero service.
EDGES: tuple[float, ...] = (0.0,) + tuple(
    _FIRST_EDGE * _RATIO**k for k in range(NUM_BINS)
)
# A Pareto(1) job has hazard 1/x: its index grows in proportion to attained service,
# which is exactly least-attained-service order.
_PARETO_HAZARD = 1.0 - 1.0 / _RATIO


def bin_of(service: float) -> int:
    """Index of the bin that holds ``service`` (service units, >= 0)."""
    if service < _FIRST_EDGE:
        return 0
    k = 1 + int(math.log2(service / _FIRST_EDGE) * _BINS_PER_OCTAVE)
    # The logarithm may round across an edge; the edges decide.
    k = min(k, NUM_BINS - 1)
    if service < EDGES[k]:
        return k - 1
    if k < NUM_BINS - 1 and service >= EDGES[k + 1]:
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
        self._events_since_refresh = 0
        self._parent_finished = 0.0
        self._index: list[float] = []

    def advance(self, old_bin: int, new_bin: int) -> None:
        """Record that a program left ``old_bin`` alive and is now in ``new_bin``."""
        for k in range(old_bin, new_bin):
            self.passed[k] += 1.0
        self._events_since_refresh += new_bin - old_bin

    def finish(self, last_bin: int) -> None:
        """Record that a program ended inside ``last_bin``."""
        self.finished[last_bin] += 1.0
        self.num_finished += 1.0
        self._events_since_refresh += _BINS_PER_OCTAVE
        if self.num_finished > self.max_programs:
            self.finished = [x * 0.5 for x in self.finished]
            self.passed = [x * 0.5 for x in self.passed]
            self.num_finished *= 0.5

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
        if self._events_since_refresh > 0.15 * (self.num_finished + 1.0):
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

    Returns:
        Service to invest per expected completion, ``NUM_BINS`` floats > 0.
    """
    index = [0.0] * NUM_BINS
    widths = [EDGES[k + 1] - EDGES[k] for k in range(NUM_BINS)]
    # Service spent inside a bin by a program that enters it: one that ends there
    # uses half of the width on average.
    spent = [w * (1.0 - 0.5 * h) for w, h in zip(widths, hazards, strict=True)]
    middles = [EDGES[k] + 0.5 * widths[k] for k in range(NUM_BINS)]
    worth = [m**-size_exponent for m in middles]
    for start in range(NUM_BINS):
        best = math.inf
        alive = 1.0
        invested = 0.0
        reward = 0.0
        for k in range(start, NUM_BINS):
            invested += alive * spent[k]
            reward += alive * hazards[k] * worth[k]
            alive *= 1.0 - hazards[k]
            cost = invested / reward if reward > 0.0 else math.inf
            if cost < best:
                best = cost
            elif alive < 1e-3:
                break
        index[start] = best
    return index


class ClassTables:
    """One life table per program class over a pooled one; least recent class leaves.

    Args:
        prior_strength: Weight of the pooled hazards in a class, and of the Pareto
            prior in the pool, in programs per bin.
        max_classes: Bound of the number of classes.
    """

    def __init__(self, prior_strength: float = 4.0, max_classes: int = 1024, size_exponent: float = 0.0) -> None:
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

    def advance(self, class_key: str, old_bin: int, new_bin: int) -> None:
        """Record progress of a live program in its class and in the pool."""
        self.get(class_key).advance(old_bin, new_bin)
        self.pooled.advance(old_bin, new_bin)

    def finish(self, class_key: str, last_bin: int) -> None:
        """Record the end of a program in its class and in the pool."""
        self.get(class_key).finish(last_bin)
        self.pooled.finish(last_bin)
