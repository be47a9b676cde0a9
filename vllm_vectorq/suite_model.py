# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Expected error of a candidate from its features: a calibrated logistic regression.

Newton's method with a Gaussian prior on standardised features. Raw scores of a model
on the labels it was fitted to are too sure of themselves, so a second, two-parameter
fit (Platt, 1999) on scores from cross-fitting corrects them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.float64]

_PRECISION = 1.0
_BIAS_PRECISION = 1e-3
_CALIBRATION_PRECISION = 5.0
_ITERATIONS = 25
_HALVINGS = 30
_CONVERGED = 1e-6
_STEEPEST = 35.0


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """Coefficients, calibration included.

    Attributes:
        weights: Of the features, float64 [n]; the first feature is 1.
    """

    weights: Matrix

    def expected_error(self, features: Matrix) -> float:
        """Probability that the candidate with these features [n] is wrong."""
        score = float(self.weights @ features)
        return 1.0 / (1.0 + math.exp(max(min(score, _STEEPEST), -_STEEPEST)))

    def expected_errors(self, features: Matrix) -> Matrix:
        """The same for many, float64 [n, features] to [n]."""
        scores = np.clip(features @ self.weights, -_STEEPEST, _STEEPEST)
        errors: Matrix = 1.0 / (1.0 + np.exp(scores))
        return errors


def fit_error_model(
    features: Matrix, right: Labels, fold_seed: int = 0
) -> tuple[ErrorModel, Matrix]:
    """Fit to labelled candidates.

    Args:
        features: float64 [n, features]; the first is 1.
        right: 1 where the candidate was right, else 0, float64 [n].
        fold_seed: For the halves of the cross-fit.

    Returns:
        The model; and the expected error of each candidate by a model that has not
        seen its label, float64 [n].
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    mean[0], spread[0] = 0.0, 1.0
    standard = (features - mean) / spread
    precision = np.full(features.shape[1], _PRECISION)
    precision[0] = _BIAS_PRECISION
    nothing = np.zeros(features.shape[1])
    fitted = _newton(standard, right, precision, nothing)
    fold = np.random.default_rng(fold_seed).permutation(len(right)) % 2
    scores = np.zeros(len(right))
    for half in (0, 1):
        other = fold != half
        coefficients = _newton(standard[other], right[other], precision, nothing)
        scores[fold == half] = standard[fold == half] @ coefficients
    scored = np.stack([scores, np.ones_like(scores)], axis=1)
    calibration = _newton(
        scored, right, np.full(2, _CALIBRATION_PRECISION), np.array([1.0, 0.0])
    )
    slope, shift = calibration
    weights = fitted / spread
    weights[0] -= float(weights[1:] @ mean[1:])
    weights *= slope
    weights[0] += shift
    return ErrorModel(weights), ErrorModel(calibration).expected_errors(scored)


def _newton(x: Matrix, y: Labels, precision: Matrix, centre: Matrix) -> Matrix:
    """Coefficients of greatest posterior density."""

    def loss(coefficients: Matrix) -> float:
        scores = x @ coefficients
        apart = coefficients - centre
        penalty = 0.5 * float(precision @ (apart * apart))
        return float((np.logaddexp(0.0, scores) - y * scores).sum()) + penalty

    coefficients = centre.copy()
    now = loss(coefficients)
    for _ in range(_ITERATIONS):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ coefficients, -_STEEPEST, _STEEPEST)))
        gradient = x.T @ (y - p) - precision * (coefficients - centre)
        hessian = (x * (p * (1.0 - p))[:, None]).T @ x + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        # A whole step may leap over the optimum where the curve is flat.
        for _ in range(_HALVINGS):
            after = loss(coefficients + step)
            if after <= now:
                break
            step = 0.5 * step
        else:
            break
        coefficients, now = coefficients + step, after
        if np.abs(step).max() < _CONVERGED:
            break
    return coefficients
