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

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .one_thread import one_blas_thread
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
from .suite_prior import PRIOR, PRIOR_CORRECTION
from .suite_projection import fit_projection
from .suite_sample import EntrySample

Row = NDArray[np.float64]

# After an audit that found a wrong answer, this many hits are audited more often: it
# may be the first of many.
ALERT_HITS = 100
ALERT_FACTOR = 7.0

# So are the first hits of a partition: little is known about them yet.
EARLY_HITS = 1_000
EARLY_FACTOR = 2.5

# At least this share of the requests is labelled.
LABELLED = 0.15

# Labels before anything is served.
FIRST_LABELS = 10

# No single hit may be this many times as doubtful as hits may be wrong on average.
WORST_HIT = 2.5

# Requests of late from which limits are made, and how often.
RECENT = 800
_ENOUGH_RECENT = 200
_LIMITS_EVERY = 250

MAX_LABELS = 4_000
_CORRECTION_LABELS = 2_000
_AFTER_DRIFT = 300
_GROWTH = 1.1
_GROWTH_LABELS = 10

MAX_SAMPLE = 8_192
_FIRST_PROJECTION = 150


@dataclass(slots=True)
class _Label:
    """What was learned from one explored request.

    Attributes:
        expected: Expected error by a model that had not seen the label.
    """

    features: Row
    right: bool
    propensity: float
    expected: float | None = None


class SuitePolicy:
    """Serves the class that the neighbours vote for, as far as the budgets allow.

    Args:
        hit_delta: Allowed share of wrong answers among the hits.
        audit: Share of the requests that could be served which are explored.
        first_fit: Labels that replace what is known from other sets of questions.
        caution: Half of a budget is used after so many labels over the root of the
            budget; fewer labels tell less about how far expected errors are off.
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
        audit: float = 0.015,
        first_fit: int = 60,
        caution: float = 10.0,
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
        self._model: ErrorModel = PRIOR
        self._correction: Correction = PRIOR_CORRECTION
        self._limits: Limits = NOTHING_ALLOWED
        self._counted = 0
        # Appending to a deque is atomic; None: a request without a candidate.
        self._recent: deque[Row | None] = deque(maxlen=RECENT)
        self._requests = 0
        self._alert = 0
        self._hits = 0
        self._wanted_audit = 0.0
        # Under the lock.
        self._lock = threading.Lock()
        self._sample = EntrySample(MAX_SAMPLE, seed)
        self._fitted = False
        self._labels: deque[_Label] = deque(maxlen=MAX_LABELS)
        self._labelled = 0
        self._refit_at = first_fit
        self._limits_at = 0
        self._seen = 0, 0
        self._drift = DriftWatch()

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Serve if the expected error is within what the budgets allow."""
        found = candidate(evidence, self._classes)
        self._requests += 1
        if found is None:
            self._recent.append(None)
            return NOTHING_NEAR
        row = np.array(found.features)
        self._recent.append(row)
        features = row.astype(np.float32)
        error = self._model.expected_error(row)
        wrong = self._correction.apply_one(error)
        limit = self._limits.largest(self._used(delta), self._used(self.hit_delta))
        right = 1.0 - wrong if math.isfinite(wrong) else 0.0
        # So written that what is no number is not served.
        if not (error <= limit and wrong <= WORST_HIT * self.hit_delta):
            return Decision(False, found.index, right, 1.0, features)
        self._hits += 1
        audit = self._audit_now()
        return Decision(uniform >= audit, found.index, right, audit, features)

    def _audit_now(self) -> float:
        """Probability that a request is explored although it could be served."""
        if self._alert > 0:
            self._alert -= 1
            return min(ALERT_FACTOR * self.audit, 0.5)
        if self._hits < EARLY_HITS:
            return min(EARLY_FACTOR * self.audit, 0.5)
        return max(self.audit, self._wanted_audit)

    def _used(self, budget: float) -> float:
        """Part of a budget that so many labels can vouch for."""
        labels = self._counted
        held_back = self._caution / math.sqrt(budget)
        return budget * labels / (labels + held_back) if labels else 0.0

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        """Whether an explored request becomes an entry; not where one would do."""
        return label is not True or decision.propensity >= 1.0

    def observe(
        self, entry_id: int, features: Vector, label: bool, propensity: float
    ) -> None:
        """Add a label; features of another policy or version teach nothing."""
        if features.shape != (N_FEATURES,) or not np.isfinite(features).all():
            return
        new = _Label(features.astype(np.float64), label, propensity)
        with self._lock:
            self._labels.append(new)
            self._labelled += 1
            if not self._fitted:
                return
            new.expected = self._model.expected_error(new.features)
            if propensity < 1.0:
                error = self._correction.apply_one(new.expected)
                if self._drift.drifted(error, not label):
                    self._start_anew()
                elif not label:
                    self._alert = ALERT_HITS

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
                with one_blas_thread():
                    self._refit()
                self._refit_at = int(_GROWTH * self._labelled) + _GROWTH_LABELS
            elif self._requests < self._limits_at or self._labelled < FIRST_LABELS:
                return
            self._set_limits()
            every = _LIMITS_EVERY if self._fitted else FIRST_LABELS
            self._limits_at = self._requests + every
            self._watch_share()

    def _watch_share(self) -> None:
        """Where nearly all is served, hardly a label comes but from audits."""
        requests, hits = self._requests, self._hits
        if requests - self._seen[0] < _ENOUGH_RECENT:
            return
        share = (hits - self._seen[1]) / (requests - self._seen[0])
        self._seen = requests, hits
        self._wanted_audit = max(1.0 - (1.0 - LABELLED) / share, 0.0) if share else 0.0

    def _enough_labels(self) -> bool:
        return len(self._labels) >= self._first_fit

    def _refit(self) -> None:
        if len(self._sample) >= _FIRST_PROJECTION:
            projection = fit_projection(self._sample.vectors, self._sample.class_ids)
            self._classes = AnswerClasses.of(self._sample, projection)
        features = np.array([label.features for label in self._labels])
        right = np.array([label.right for label in self._labels], dtype=np.float64)
        self._fitted = True
        self._model, expected = fit_error_model(features, right, self._seed)
        for label, error in zip(self._labels, expected.tolist(), strict=True):
            if label.expected is None:
                label.expected = error

    def _set_limits(self) -> None:
        newest = list(self._labels)[-_CORRECTION_LABELS:]
        if self._fitted:
            expected = np.array([label.expected for label in newest], dtype=np.float64)
            wrong = np.array([not label.right for label in newest], dtype=np.float64)
            self._correction = measure_correction(expected, wrong)
        recent = list(self._recent)
        errors = np.ones(len(recent))
        seen = [i for i, features_ in enumerate(recent) if features_ is not None]
        if seen:
            rows = np.array([recent[i] for i in seen], dtype=np.float64)
            errors[seen] = self._model.expected_errors(rows)
        weights = np.ones(len(recent))
        if len(recent) < _ENOUGH_RECENT:
            # After a restart: labels stand for the requests that were like them.
            known = newest[-RECENT:]
            rows = np.array([label.features for label in known])
            errors = np.append(errors, self._model.expected_errors(rows))
            weights = np.append(weights, [1.0 / label.propensity for label in known])
        self._counted = self._labelled
        self._limits = limits_of(errors, weights, self._correction)
