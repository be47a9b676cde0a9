# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The default policy: a calibrated vote of the nearest answers under a budget.

vCache asks each entry for its own record, which takes many labels per entry. Here all
labels of a partition teach one model what neighbourhoods look like in which the most
voted answer is right. It gives each request an expected error; those are served whose
errors together stay within the budget. A share of them is explored all the same, to
measure how far the expected errors are off and to notice drift.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .policy import NOTHING_NEAR, Decision, Evidence
from .record import Vector
from .suite_budget import (
    NOTHING_ALLOWED,
    Correction,
    Limits,
    limits_of,
    measure_correction,
)
from .suite_classes import AnswerClasses
from .suite_drift import DriftWatch
from .suite_features import N_FEATURES, candidate
from .suite_model import ErrorModel, fit_error_model
from .suite_projection import fit_projection
from .suite_sample import EntrySample

Row = NDArray[np.float64]

# Requests of late from which limits are made, and how often.
RECENT = 800
_ENOUGH_RECENT = 200
_LIMITS_EVERY = 250

MAX_LABELS = 4_000
_CORRECTION_LABELS = 1_500
_AFTER_DRIFT = 300
_GROWTH = 1.1
_GROWTH_LABELS = 10

MAX_SAMPLE = 8_192
_FIRST_PROJECTION = 150


@dataclass(frozen=True, slots=True)
class _Label:
    """What was learned from one explored request."""

    features: Row
    right: bool
    propensity: float


class SuitePolicy:
    """Serves the class that the neighbours vote for, as far as the budgets allow.

    Args:
        hit_delta: Allowed share of wrong answers among the hits.
        audit: Share of the requests that could be served which are explored.
        first_fit: Labels before anything is served.
        caution: Labels after which half of the budget is used; fewer labels tell
            less about how far expected errors are off.
        seed: For sampling and cross-fitting.

    Raises:
        ValueError: An argument is out of range.

    Attributes:
        drifts: Times that served answers turned out wrong beyond chance.
    """

    name = "suite"

    def __init__(
        self,
        hit_delta: float = 0.05,
        audit: float = 0.02,
        first_fit: int = 60,
        caution: float = 50.0,
        seed: int = 0,
    ) -> None:
        for option, value in (("hit_delta", hit_delta), ("audit", audit)):
            if not 0.0 < value < 1.0:
                raise ValueError(
                    f"suite policy: asked for {option} {value!r}; give a number "
                    "between 0 and 1."
                )
        self.hit_delta = hit_delta
        self.audit = audit
        self.drifts = 0
        self._caution = caution
        self._first_fit = first_fit
        self._seed = seed
        # Read without the lock, replaced as a whole.
        self._classes = AnswerClasses()
        self._model: ErrorModel | None = None
        self._correction = Correction()
        self._limits: Limits = NOTHING_ALLOWED
        self._share = 0.0
        # Appending to a deque is atomic; None: a request without a candidate.
        self._recent: deque[Row | None] = deque(maxlen=RECENT)
        self._requests = 0
        # Under the lock.
        self._lock = threading.Lock()
        self._sample = EntrySample(MAX_SAMPLE, seed)
        self._labels: deque[_Label] = deque(maxlen=MAX_LABELS)
        self._labelled = 0
        self._refit_at = first_fit
        self._limits_at = 0
        self._drift = DriftWatch()

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Serve if the expected error is within what the budgets allow."""
        model = self._model
        found = candidate(evidence, self._classes)
        self._requests += 1
        if found is None:
            self._recent.append(None)
            return NOTHING_NEAR
        row = np.array(found.features)
        self._recent.append(row)
        features = row.astype(np.float32)
        if model is None:
            return Decision(False, found.index, 0.0, 1.0, features)
        error = model.expected_error(row)
        right = 1.0 - self._correction.apply_one(error)
        if error > self._limits.largest(delta * self._share, self.hit_delta):
            return Decision(False, found.index, right, 1.0, features)
        return Decision(uniform >= self.audit, found.index, right, self.audit, features)

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        """Whether an explored request becomes an entry; not where one would do."""
        return label is not True or decision.propensity >= 1.0

    def observe(
        self, entry_id: int, features: Vector, label: bool, propensity: float
    ) -> None:
        """Add a label; features of another policy or version teach nothing."""
        if features.shape != (N_FEATURES,):
            return
        new = _Label(features.astype(np.float64), label, propensity)
        with self._lock:
            self._labels.append(new)
            self._labelled += 1
            if propensity < 1.0 and self._model is not None:
                error = self._model.expected_error(new.features)
                error = self._correction.apply_one(error)
                if self._drift.drifted(error, not label):
                    self._start_anew()

    def _start_anew(self) -> None:
        """Forget old labels, which tell of another world."""
        self.drifts += 1
        newest = list(self._labels)[-_AFTER_DRIFT:]
        self._labels.clear()
        self._labels.extend(newest)
        self._labelled = min(self._labelled, len(newest) // 2)
        self._refit_at = 0

    def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
        """Take a new entry into the picture of its class."""
        with self._lock:
            gone = self._sample.add(entry_id, vector, class_id)
            if gone is None:
                return
            self._classes.add(entry_id, vector, class_id)
            for other_id, other_class in gone:
                self._classes.remove(other_id, other_class)

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Drop entries that are gone."""
        with self._lock:
            for entry_id, class_id in self._sample.remove(entry_ids):
                self._classes.remove(entry_id, class_id)

    def tune(self) -> None:
        """Fit and set limits anew when enough has happened; for the background."""
        with self._lock:
            if self._labelled >= self._refit_at and self._enough_labels():
                self._refit()
                self._refit_at = int(_GROWTH * self._labelled) + _GROWTH_LABELS
            elif self._model is None or self._requests < self._limits_at:
                return
            self._set_limits()
            self._limits_at = self._requests + _LIMITS_EVERY

    def _enough_labels(self) -> bool:
        return len(self._labels) >= self._first_fit

    def _refit(self) -> None:
        if len(self._sample) >= _FIRST_PROJECTION:
            projection = fit_projection(self._sample.vectors, self._sample.class_ids)
            self._classes = AnswerClasses.of(self._sample, projection)
        features, right = self._labelled_arrays(MAX_LABELS)
        self._model = fit_error_model(features, right, self._seed)

    def _labelled_arrays(
        self, newest: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        labels = list(self._labels)[-newest:]
        features = np.array([label.features for label in labels], dtype=np.float64)
        right = np.array([label.right for label in labels], dtype=np.float64)
        return features, right

    def _set_limits(self) -> None:
        assert self._model is not None
        features, right = self._labelled_arrays(_CORRECTION_LABELS)
        expected = self._model.expected_errors(features)
        correction = measure_correction(expected, 1.0 - right)
        self._correction = correction
        recent = list(self._recent)
        errors = np.ones(len(recent))
        seen = [i for i, features_ in enumerate(recent) if features_ is not None]
        if seen:
            rows = np.array([recent[i] for i in seen], dtype=np.float64)
            errors[seen] = self._model.expected_errors(rows)
        weights = np.ones(len(recent))
        if len(recent) < _ENOUGH_RECENT:
            # After a restart: labels stand for the requests that were like them.
            of_label = np.array([1.0 / label.propensity for label in self._labels])
            errors = np.concatenate([errors, expected[-RECENT:]])
            weights = np.concatenate([weights, of_label[-len(expected) :][-RECENT:]])
        self._share = self._labelled / (self._labelled + self._caution)
        self._limits = limits_of(errors, weights, correction)
