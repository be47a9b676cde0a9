# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The posterior of an entry's sigmoid against brute force, theory and simulation."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.vectorq.coverage import EPSILONS, band, measure
from vllm_vectorq import sigmoid_posterior
from vllm_vectorq.sigmoid_posterior import (
    BOUNDARIES,
    KNOTS,
    LEVELS,
    SLOPES,
    bound_at,
    encode,
    exceedance,
    lower_bound,
    pack,
    posterior,
)

Labels = Sequence[tuple[float, bool]]
LABELS = st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=64)


def encoded(labels: Labels) -> NDArray[np.uint16]:
    return np.array([encode(s, c) for s, c in labels], dtype=np.uint16)


def bounds(labels: Labels) -> NDArray[np.float64]:
    return lower_bound(exceedance(posterior(encoded(labels))))


def knot(similarity: float) -> int:
    return int(np.searchsorted(KNOTS, similarity, side="right")) - 1


def logistic(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))


def reference_posterior(labels: Labels) -> NDArray[np.float64]:
    """Cell by cell in double precision from the same prior."""
    t, g = BOUNDARIES[None, :], SLOPES[:, None]
    weights = np.exp(sigmoid_posterior._LOG_PRIOR)
    for similarity, label in labels:
        right = logistic(g * (round(similarity * 1024) / 1024 - t))
        weights = weights * (right if label else 1.0 - right)
    return np.asarray(weights / weights.sum())


def reference_bound(weights: NDArray[np.float64], similarity: float) -> float:
    """Largest (1 - epsilon) * quantile over every epsilon, cells as points."""
    right = logistic(SLOPES[:, None] * (similarity - BOUNDARIES[None, :])).ravel()
    order = np.argsort(-right)
    return float((np.cumsum(weights.ravel()[order]) * right[order]).max())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=12))
def test_posterior_is_prior_times_likelihood(labels: Labels) -> None:
    assert posterior(encoded(labels)) == pytest.approx(
        reference_posterior(labels), rel=2e-3, abs=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_posterior_sums_to_one_whatever_the_labels(labels: Labels) -> None:
    weights = posterior(encoded(labels))
    assert weights.shape == (len(SLOPES), len(BOUNDARIES))
    assert np.all(weights >= 0.0)
    assert weights.sum() == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.randoms(use_true_random=False))
def test_order_of_labels_does_not_matter(labels: Labels, random: object) -> None:
    shuffled = list(labels)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert bounds(shuffled) == pytest.approx(bounds(labels), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_bound_does_not_fall_with_similarity(labels: Labels) -> None:
    found = bounds(labels)
    assert np.all(np.diff(found) >= -1e-12)
    assert np.all((found >= 0.0) & (found < 1.0))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0.001, 0.999))
def test_bound_is_the_best_over_every_epsilon(labels: Labels, epsilon: float) -> None:
    chances = exceedance(posterior(encoded(labels)))
    best = lower_bound(chances)
    assert np.all((1.0 - epsilon) * band(chances, epsilon) <= best + 1e-12)
    fine = [(1.0 - e) * band(chances, e) for e in np.geomspace(1e-6, 1.0, 400)]
    # Relative: the nearest of 400 epsilons is within 3.5 % of the best one.
    assert np.all(np.max(fine, axis=0) >= best - 0.035)


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0.001, 0.998), st.floats(0.001, 0.998))
def test_band_falls_with_confidence(labels: Labels, one: float, other: float) -> None:
    chances = exceedance(posterior(encoded(labels)))
    low, high = sorted((one, other))
    assert np.all(band(chances, low) <= band(chances, high))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.sampled_from(range(len(KNOTS))))
def test_bound_is_below_the_reference_and_not_far(labels: Labels, index: int) -> None:
    weights = posterior(encoded(labels))
    exact = reference_bound(weights, float(KNOTS[index]))
    found = lower_bound(exceedance(weights))[index]
    # Half a cell of the steepest slope is 0.84 in log odds; levels add 0.25.
    odds = math.log(max(exact, 1e-9) / (1.0 - min(exact, 1.0 - 1e-9)))
    assert found <= exact + 1e-9
    if exact > LEVELS[0]:
        assert found >= 1.0 / (1.0 + math.exp(1.4 - odds)) - 0.03


@settings(max_examples=60, deadline=None)
@given(LABELS, st.sampled_from(range(len(KNOTS))))
def test_bound_is_below_the_posterior_mean(labels: Labels, index: int) -> None:
    weights = posterior(encoded(labels))
    right = logistic(SLOPES[:, None] * (KNOTS[index] - BOUNDARIES[None, :]))
    mean = float((weights * right).sum())
    assert lower_bound(exceedance(weights))[index] <= mean + 1e-9


def test_separable_labels_give_a_finite_bound_that_tightens() -> None:
    found = [
        bounds([(0.9, True)] * n + [(0.8, False)] * n)[knot(0.95)]
        for n in (1, 2, 4, 8, 16, 32)
    ]
    assert found == sorted(found)
    assert found[0] < 0.6
    assert found[-1] > 0.9


def test_fewer_labels_of_the_same_kind_are_less_sure() -> None:
    labels = [(0.95, True), (0.9, True), (0.85, False), (0.9, False), (0.97, True)]
    found = [bounds(labels * n)[knot(0.97)] for n in (1, 2, 4, 8, 12)]
    assert found == sorted(found)


def test_only_wrong_labels_leave_nothing_to_serve() -> None:
    assert bounds([(0.95, False)] * 8)[knot(1.0)] < 0.3
    assert bounds([(1.0, False)] * 8)[knot(1.0)] < 0.12


def test_without_labels_hardly_anything_is_believed() -> None:
    assert bounds([])[knot(1.0)] < 0.6
    assert bounds([])[knot(0.6)] < 0.2


def test_contradicting_labels_keep_the_bound_near_their_share() -> None:
    labels = [(0.9, True), (0.9, False)] * 16
    assert 0.2 < bounds(labels)[knot(0.9)] < 0.5


@pytest.mark.parametrize(
    ("similarity", "label", "code"),
    [
        (0.0, False, 0),
        (0.0, True, 1),
        (1.0, False, 2048),
        (1.0, True, 2049),
        (1.2, True, 2049),
        (-0.5, False, 0),
        (0.5, True, 1025),
        (math.nan, True, 1),
    ],
)
def test_labels_are_clipped_and_packed_into_16_bits(
    similarity: float, label: bool, code: int
) -> None:
    assert encode(similarity, label) == code


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(-1.0, 1.0))
def test_packed_bound_is_the_one_of_the_knot_below(
    labels: Labels, similarity: float
) -> None:
    found = bounds(labels)
    packed = pack(found)
    assert len(packed) == len(KNOTS)
    bound = bound_at(packed, similarity)
    if similarity < KNOTS[0]:
        assert bound == 0.0
        return
    exact = found[knot(similarity)]
    assert bound <= exact
    # One step of a byte is 0.038 in log odds; below a quarter it is 0.
    if exact < 0.25:
        assert bound == 0.0
    else:
        assert bound >= exact / (exact + (1.0 - exact) * math.exp(0.038)) - 1e-9


def test_similarity_just_above_one_is_one_and_no_number_is_nothing() -> None:
    packed = pack(bounds([(0.9, True)] * 8))
    assert bound_at(packed, 1.0000001) == bound_at(packed, 1.0) > 0.5
    assert bound_at(packed, math.nan) == 0.0


# True sigmoids: never right, a coin far below the boundary, flat, steep.
CELLS = [
    (1.05, 50.0, 4),
    (0.9, 12.0, 4),
    (0.7, 6.0, 8),
    (0.8, 25.0, 16),
    (0.8, 100.0, 2),
    (0.95, 100.0, 32),
]
REPEATS = 400
# A band that covers exactly as often as it says fails one of the 30 below with
# probability 0.001.
STANDARD_ERRORS = 4.0


def shortfalls(boundary: float, slope: float, labels: int) -> list[float]:
    """Coverage missing per epsilon, in standard errors of a correct band."""
    cell = measure(boundary, slope, labels, REPEATS, seed=7)
    return [
        (1.0 - epsilon - covered) / math.sqrt(epsilon * (1.0 - epsilon) / REPEATS)
        for epsilon, covered in zip(EPSILONS, cell.coverage, strict=True)
    ]


@pytest.mark.parametrize(("boundary", "slope", "labels"), CELLS)
def test_band_covers_the_truth_as_often_as_it_says(
    boundary: float, slope: float, labels: int
) -> None:
    assert max(shortfalls(boundary, slope, labels)) < STANDARD_ERRORS


def test_a_prior_that_expects_steep_entries_fails_the_same_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steep = 2.0 * np.log(SLOPES)[:, None] - 8.0 * BOUNDARIES[None, :]
    monkeypatch.setattr(sigmoid_posterior, "_LOG_PRIOR", steep)
    assert max(max(shortfalls(*cell)) for cell in CELLS) > STANDARD_ERRORS


@pytest.mark.parametrize(("boundary", "slope", "labels"), CELLS)
def test_expected_error_of_the_next_request_is_within_the_budget(
    boundary: float, slope: float, labels: int
) -> None:
    cell = measure(boundary, slope, labels, REPEATS, seed=11)
    assert cell.risk < 1.0
    assert cell.risk_of_always_serving > 1.0
