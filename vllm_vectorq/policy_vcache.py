# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""vCache: each entry learns how similar a request must be, under an error budget.

Source: vCache (arXiv 2502.03771, v3 and later), written from its formulas. With ``a`` a
lower bound of the probability that the nearest entry answers a request correctly, the
request is explored (the model is asked) with probability

    tau = 1 - delta / (1 - a)

at least, since then ``tau + (1 - tau) * a >= 1 - delta``: the promise is per request,
not per served answer. ``hit_floor`` adds a promise per served answer.

Where we deviate: the bound comes from a grid posterior instead of a normal
approximation with a table (:mod:`.sigmoid_posterior`); labels are kept in a window;
a share of requests is explored even where the paper would always serve, so that an
entry whose answer has become wrong is found out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .policy import NOTHING_NEAR, Decision, Evidence
from .policy_entries import EntryPolicy
from .policy_static import nearest_allowed
from .record import Vector
from .sigmoid_posterior import (
    bound_at,
    encode,
    exceedance,
    lower_bound,
    pack,
    posterior,
)

MAX_LABELS = 64
_LABEL_BYTES = 2


def exploration(bound: float, delta: float) -> float:
    """Least probability of asking the model that keeps the budget.

    Args:
        bound: Lower bound of the probability that the candidate is right, in [0, 1).
        delta: Allowed probability of a wrong answer per request, in (0, 1).

    Returns:
        A number up to ``1 - delta``; 0 or less when serving alone keeps the budget.
    """
    return 1.0 - delta / (1.0 - bound)


@dataclass(frozen=True, slots=True)
class _Learned:
    """What is known about an entry; replaced as a whole.

    Attributes:
        labels: Newest labels, oldest first, two bytes each.
        bounds: Lower bounds at the knots, one byte each.
    """

    labels: bytes
    bounds: bytes


class VCachePolicy(EntryPolicy[_Learned]):
    """Serves the nearest entry as often as its own labels and the budget allow.

    ``Decision.probability`` is the lower bound, not a best guess. Labels must be of
    entries that still exist: one that comes after :meth:`forget` is kept until the
    next ``forget`` of that entry.

    Args:
        hit_floor: Never serve where the lower bound is below this; 1 minus the error
            allowed per served answer. 0 is the paper's policy, which serves any
            neighbour, however dissimilar, with probability ``delta``.
        min_labels: Labels an entry needs before it is served at all.
        min_exploration: Share of requests explored even where the budget needs none.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "vcache"

    def __init__(
        self,
        hit_floor: float = 0.0,
        min_labels: int = 4,
        min_exploration: float = 0.01,
    ) -> None:
        """See the class docstring."""
        super().__init__()
        for option, value in (
            ("hit_floor", hit_floor),
            ("min_exploration", min_exploration),
        ):
            if not 0.0 <= value < 1.0:
                raise ValueError(
                    f"vcache policy: asked for {option} {value!r}, which is no "
                    "probability below 1; give a number from 0 to less than 1."
                )
        if not 1 <= min_labels <= MAX_LABELS:
            raise ValueError(
                f"vcache policy: asked for min_labels {min_labels!r}, but an entry "
                f"keeps {MAX_LABELS} labels; give a number from 1 to {MAX_LABELS}."
            )
        self.hit_floor = hit_floor
        self.min_labels = min_labels
        self.min_exploration = min_exploration

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Explore with probability tau, for certain below the floor."""
        index = nearest_allowed(evidence)
        if index is None:
            return NOTHING_NEAR
        features = evidence.similarities[index : index + 1].copy()
        learned = self._learned.get(int(evidence.entry_ids[index]))
        if learned is None or len(learned.labels) < _LABEL_BYTES * self.min_labels:
            return Decision(False, index, 0.0, 1.0, features)
        bound = bound_at(learned.bounds, float(features[0]))
        if bound < self.hit_floor:
            return Decision(False, index, bound, 1.0, features)
        tau = max(exploration(bound, delta), self.min_exploration)
        return Decision(uniform >= tau, index, bound, tau, features)

    def observe(
        self,
        entry_id: int,
        features: Vector,
        label: bool,
        propensity: float,
    ) -> None:
        """Add a label to the window of its entry and work out its bounds again.

        The propensity is not needed: whether a request was explored depends on its
        similarity and on earlier labels only, never on the label itself. Features of
        another policy teach nothing, since its candidate need not be the nearest.
        """
        if features.shape != (1,):
            return
        code = encode(float(features[0]), label).to_bytes(_LABEL_BYTES, "little")
        with self._lock:
            known = self._learned.get(entry_id)
            labels = code if known is None else known.labels + code
            labels = labels[-_LABEL_BYTES * MAX_LABELS :]
            weights = posterior(np.frombuffer(labels, dtype="<u2"))
            bounds = pack(lower_bound(exceedance(weights)))
            self._learned[entry_id] = _Learned(labels, bounds)
