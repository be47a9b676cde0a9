# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Policies that learn nothing: one similarity threshold, and exact matches only.

They are the baselines. A fixed threshold has no error budget: what it costs in wrong
answers depends on the embedding model and on the traffic, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Sequence

from .policy import NOTHING_NEAR, Decision, Evidence
from .record import Vector


def nearest_allowed(evidence: Evidence) -> int | None:
    """Index of the nearest entry that no lexical guard forbids; None without one."""
    conflicts = evidence.conflicts
    if conflicts.size == 0:
        return None
    index = int(conflicts.argmin())
    return None if conflicts[index] else index


class _Unlearning:
    """What a policy does with labels that it has no use for."""

    def observe(
        self,
        entry_id: int,
        features: Vector,
        label: bool,
        propensity: float,
    ) -> None:
        """Ignore a label."""

    def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
        """Ignore the answer class of an entry."""

    def tune(self) -> None:
        """Nothing takes long here."""

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Nothing is known about any entry."""


class StaticPolicy(_Unlearning):
    """Serves the nearest entry when it is similar enough.

    ``Decision.probability`` is the similarity, the only evidence there is; it is not
    a calibrated probability. ``Decision.propensity`` is 1 on a miss and 0 on a hit:
    chance decides nothing here.

    Args:
        threshold: Least cosine at which the entry answers, in [-1, 1].
        inserts_equivalent: Whether a miss whose answer turned out equivalent to its
            neighbour's becomes an entry; most caches insert every miss.

    Raises:
        ValueError: The threshold is no cosine.
    """

    name = "static"

    def __init__(self, threshold: float, inserts_equivalent: bool = True) -> None:
        """See the class docstring."""
        if not -1.0 <= threshold <= 1.0:
            raise ValueError(
                f"static policy: asked for threshold {threshold!r}, which is no "
                "cosine; give a number from -1 to 1."
            )
        self.threshold = threshold
        self.inserts_equivalent = inserts_equivalent

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        """As the argument of that name says."""
        return self.inserts_equivalent or label is not True

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Serve at or above the threshold, whatever the budget says."""
        index = nearest_allowed(evidence)
        if index is None:
            return NOTHING_NEAR
        similarity = float(evidence.similarities[index])
        serve = similarity >= self.threshold
        probability = min(1.0, max(0.0, similarity))
        return Decision(
            serve=serve,
            candidate=index,
            probability=probability,
            propensity=0.0 if serve else 1.0,
            features=evidence.similarities[index : index + 1].copy(),
        )


class ExactPolicy(_Unlearning):
    """Never serves a semantic neighbour and never learns about one."""

    name = "exact"

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        """Nothing is looked for among neighbours."""
        return False

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Ask the model."""
        return NOTHING_NEAR
