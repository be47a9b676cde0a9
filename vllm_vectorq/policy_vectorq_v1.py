# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""VectorQ v1: a region of uncertainty per entry. A reconstruction, for comparison.

This is **not** the code of the paper and not certain to be its algorithm. Version 1 of
arXiv 2502.03771 speaks of "threshold regions" per embedding that are re-evaluated by
Bayesian sampling; its update rule could not be read. What follows is rebuilt from the
abstract and from which quantities the public repository kept per entry at that time:
similarities judged right and wrong, a prior and a posterior over thresholds, an
accuracy target and an upper bound of the random number.

An entry's highest similarity judged wrong and its lowest judged right divide the
similarities: at and above both it is served, at and below both the model is asked, and
between them chance decides by the posterior of the threshold ``t`` under a sigmoid of
fixed slope. Labels that overlap widen the region between, others narrow it. Nothing
here keeps an error budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .policy import NOTHING_NEAR, Decision, Evidence
from .policy_entries import EntryPolicy
from .policy_static import nearest_allowed
from .record import Vector

Floats = NDArray[np.float32]

THRESHOLDS: Floats = np.linspace(0.0, 1.0, 65, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Region:
    """What is known about an entry; replaced as a whole.

    Attributes:
        wrong: Highest similarity judged wrong; minus infinity before the first.
        right: Lowest similarity judged right; infinity before the first.
        labels: Number of labels.
        log_posterior: Of every threshold, up to a constant, float32 [65].
    """

    wrong: float
    right: float
    labels: int
    log_posterior: Floats

    def is_hit(self, similarity: float) -> bool:
        """Whether the similarity lies above the uncertain region."""
        return similarity >= self.right and similarity > self.wrong

    def is_miss(self, similarity: float) -> bool:
        """Whether the similarity lies below the uncertain region."""
        return similarity <= self.wrong and similarity < self.right

    def probability(self, similarity: float, slope: float) -> float:
        """Posterior probability that a request of this similarity is right."""
        weights = np.exp(self.log_posterior)
        right = np.exp(_log_sigmoid(slope * (similarity - THRESHOLDS)))
        return min(1.0, float(weights @ right) / float(weights.sum()))

    def with_label(self, similarity: float, label: bool, slope: float) -> Region:
        """The region after one more label."""
        sign = 1.0 if label else -1.0
        odds = sign * slope * (similarity - THRESHOLDS)
        log = self.log_posterior + _log_sigmoid(odds)
        return Region(
            wrong=self.wrong if label else max(self.wrong, similarity),
            right=min(self.right, similarity) if label else self.right,
            labels=self.labels + 1,
            log_posterior=log - log.max(),
        )


UNKNOWN = Region(-math.inf, math.inf, 0, np.zeros_like(THRESHOLDS))


def _log_sigmoid(odds: Floats) -> Floats:
    return -np.logaddexp(np.float32(0.0), -odds)


class VectorQV1Policy(EntryPolicy[Region]):
    """Serves above an entry's uncertain region and by chance within it.

    Args:
        accuracy_target: Within the region, least probability at which it is served.
        random_upper_bound: Within the region, a number drawn evenly below this is
            compared with the probability; larger explores more.
        slope: Of the sigmoid around the threshold.
        min_labels: Labels an entry needs before it is served at all.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "vectorq_v1"

    def __init__(
        self,
        accuracy_target: float = 0.8,
        random_upper_bound: float = 1.0,
        slope: float = 64.0,
        min_labels: int = 2,
    ) -> None:
        """See the class docstring."""
        super().__init__()
        if not 0.0 <= accuracy_target <= 1.0:
            raise ValueError(
                f"vectorq_v1 policy: asked for accuracy_target {accuracy_target!r}, "
                "which is no probability; give a number from 0 to 1."
            )
        for option, value in (
            ("random_upper_bound", random_upper_bound),
            ("slope", slope),
            ("min_labels", min_labels),
        ):
            if not 0 < value < math.inf:
                raise ValueError(
                    f"vectorq_v1 policy: asked for {option} {value!r}, which is not "
                    "positive and finite; give a number above 0."
                )
        self.accuracy_target = accuracy_target
        self.random_upper_bound = random_upper_bound
        self.slope = slope
        self.min_labels = min_labels

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Serve above the region, ask below it, draw within; ``delta`` is not used."""
        index = nearest_allowed(evidence)
        if index is None:
            return NOTHING_NEAR
        features = evidence.similarities[index : index + 1].copy()
        similarity = float(features[0])
        region = self._learned.get(int(evidence.entry_ids[index]))
        if (
            region is None
            or region.labels < self.min_labels
            or not math.isfinite(similarity)
        ):
            return Decision(False, index, 0.0, 1.0, features)
        right = region.probability(similarity, self.slope)
        if region.is_hit(similarity):
            return Decision(True, index, right, 0.0, features)
        if region.is_miss(similarity) or right < self.accuracy_target:
            return Decision(False, index, right, 1.0, features)
        explore = max(0.0, 1.0 - right / self.random_upper_bound)
        return Decision(uniform >= explore, index, right, explore, features)

    def observe(
        self,
        entry_id: int,
        features: Vector,
        label: bool,
        propensity: float,
    ) -> None:
        """Move the region of the entry by one label.

        Features of another policy teach nothing, since its candidate need not be the
        nearest entry.
        """
        if features.shape != (1,) or not math.isfinite(features[0]):
            return
        with self._lock:
            region = self._learned.get(entry_id, UNKNOWN)
            self._learned[entry_id] = region.with_label(
                float(features[0]), label, self.slope
            )
