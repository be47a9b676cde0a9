# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The error model is calibrated on known models, and sane on any labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vllm_vectorq.suite_model import ErrorModel, fit_error_model

Floats = NDArray[np.float64]


def logistic(scores: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-scores)))


def drawn(
    weights: list[float], count: int, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Features, whether right, and the true probability of an error."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((count, len(weights)))
    features[:, 0] = 1.0
    right = logistic(features @ np.array(weights))
    return features, (random.random(count) < right).astype(np.float64), 1.0 - right


# Easy and hard worlds, one with mostly wrong and one with mostly right answers.
WORLDS = ([0.0, 1.0, 0.0], [-3.0, 2.0, 1.0], [4.0, 2.0, -2.0], [0.5, 0.0, 0.0])


@pytest.mark.parametrize("weights", WORLDS)
@pytest.mark.parametrize("seed", range(3))
def test_mean_expected_error_is_the_observed_one(
    weights: list[float], seed: int
) -> None:
    features, right, _ = drawn(weights, 2_000, seed)
    model, unseen = fit_error_model(features, right)
    fresh, fresh_right, _ = drawn(weights, 20_000, seed + 100)
    observed = 1.0 - right.mean()
    assert model.expected_errors(features).mean() == pytest.approx(observed, abs=0.01)
    assert unseen.mean() == pytest.approx(observed, abs=0.01)
    tolerance = 0.005 + 4.0 * (observed / 2_000) ** 0.5
    assert model.expected_errors(fresh).mean() == pytest.approx(
        1.0 - fresh_right.mean(), abs=tolerance
    )


@pytest.mark.parametrize("weights", WORLDS)
def test_expected_error_of_each_is_near_the_true_one(weights: list[float]) -> None:
    model, _ = fit_error_model(*drawn(weights, 4_000)[:2])
    features, _, true_error = drawn(weights, 2_000, seed=9)
    expected = model.expected_errors(features)
    assert np.abs(expected - true_error).mean() < 0.03
    for part in np.array_split(np.argsort(expected), 4):
        assert expected[part].mean() == pytest.approx(
            true_error[part].mean(), rel=0.25, abs=0.01
        )


def test_unseen_labels_are_not_explained_by_features_that_tell_nothing() -> None:
    random = np.random.default_rng(4)
    features = random.standard_normal((120, 20))
    features[:, 0] = 1.0
    right = (random.random(120) < 0.5).astype(np.float64)
    model, unseen = fit_error_model(features, right)
    wrong = 1.0 - right
    assert np.corrcoef(unseen, wrong)[0, 1] < 0.2
    assert np.abs(unseen - 0.5).mean() < 0.15
    # Nor is the model as sure as one that is fitted to such labels without a check.
    assert np.abs(model.expected_errors(features) - 0.5).mean() < 0.2


def test_expected_error_of_a_label_is_from_a_model_that_has_not_seen_it() -> None:
    features, right, _ = drawn([0.0, 1.0], 60)
    features = np.column_stack([features, np.zeros(60)])
    features[17, 2] = 1.0  # only this candidate has it, so it tells of this label
    flipped = right.copy()
    flipped[17] = 1.0 - right[17]
    _, unseen = fit_error_model(features, right)
    _, other = fit_error_model(features, flipped)
    model, _ = fit_error_model(features, right)
    changed, _ = fit_error_model(features, flipped)
    seen = abs(
        model.expected_error(features[17]) - changed.expected_error(features[17])
    )
    assert abs(unseen[17] - other[17]) < 0.5 * seen


@pytest.mark.parametrize(("label", "low", "high"), [(1.0, 0.0, 0.1), (0.0, 0.9, 1.0)])
def test_labels_that_are_all_alike_are_believed(
    label: float, low: float, high: float
) -> None:
    features = drawn([0.0, 1.0, 1.0], 100)[0]
    model, unseen = fit_error_model(features, np.full(100, label))
    expected = np.append(model.expected_errors(features), unseen)
    assert ((expected > low) & (expected < high)).all()


@pytest.mark.parametrize("seed", [0, 324])
def test_few_right_among_many_wrong_do_not_turn_the_expectation(seed: int) -> None:
    features = np.ones((60, 5))
    features[:, 1:] = np.random.default_rng(seed).standard_normal((60, 4))
    right = (np.arange(60) < 2).astype(np.float64)
    model, unseen = fit_error_model(features, right, seed)
    assert unseen.mean() > 0.8
    assert model.expected_errors(features).mean() > 0.8


def test_more_labels_that_are_all_right_make_surer() -> None:
    expected = []
    for count in (60, 240, 960):
        features = drawn([0.0, 1.0], count)[0]
        model, _ = fit_error_model(features, np.ones(count))
        expected.append(model.expected_errors(features).mean())
    assert expected == sorted(expected, reverse=True)


def test_feature_that_never_changes_does_no_harm() -> None:
    features, right, _ = drawn([0.0, 2.0], 500)
    plain, _ = fit_error_model(features, right)
    constant = np.column_stack([features, np.full(500, 7.5)])
    model, _ = fit_error_model(constant, right)
    assert model.expected_errors(constant) == pytest.approx(
        plain.expected_errors(features), abs=1e-6
    )


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_and_origin_of_a_feature_do_not_count(scale: float) -> None:
    features, right, _ = drawn([0.5, 2.0], 500)
    moved = features.copy()
    moved[:, 1] = scale * (features[:, 1] + 10.0)
    plain, _ = fit_error_model(features, right)
    model, _ = fit_error_model(moved, right)
    assert model.expected_errors(moved) == pytest.approx(
        plain.expected_errors(features), abs=0.01
    )


def test_expected_error_falls_with_what_speaks_for_the_candidate() -> None:
    features, right, _ = drawn([0.0, 2.0, -2.0], 2_000)
    model, _ = fit_error_model(features, right)
    for feature, sign in ((1, 1.0), (2, -1.0)):
        rows = np.zeros((9, 3))
        rows[:, 0] = 1.0
        rows[:, feature] = sign * np.linspace(-2.0, 2.0, 9)
        assert (np.diff(model.expected_errors(rows)) < 0.0).all()


def test_order_of_features_does_not_count() -> None:
    features, right, _ = drawn([0.0, 2.0, -1.0, 0.5], 300)
    turned = features[:, [0, 3, 2, 1]]
    plain, _ = fit_error_model(features, right)
    model, _ = fit_error_model(turned, right)
    assert model.expected_errors(turned) == pytest.approx(
        plain.expected_errors(features), abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 40), st.integers(1, 6), st.integers(0, 5))
def test_any_labels_give_probabilities(
    data: st.DataObject, count: int, width: int, seed: int
) -> None:
    numbers = st.floats(-100.0, 100.0, width=32)
    features = np.ones((count, width + 1))
    features[:, 1:] = data.draw(arrays(np.float64, (count, width), elements=numbers))
    right = data.draw(arrays(np.float64, count, elements=st.sampled_from([0.0, 1.0])))
    model, unseen = fit_error_model(features, right, seed)
    expected = model.expected_errors(features)
    assert np.isfinite(model.weights).all()
    for errors in (expected, unseen):
        assert ((errors > 0.0) & (errors < 1.0)).all()
    # The calibration holds the mean near the labels'; few labels count little.
    if count >= 20:
        assert abs(unseen.mean() - (1.0 - right.mean())) < 0.35


@given(
    arrays(np.float64, 4, elements=st.floats(-1e6, 1e6)),
    arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6)),
)
def test_one_by_one_is_as_together_and_never_certain(
    weights: Floats, rows: Floats
) -> None:
    model = ErrorModel(weights)
    together = model.expected_errors(rows)
    alone = [model.expected_error(row) for row in rows]
    assert ((together > 0.0) & (together < 1.0)).all()
    assert alone == pytest.approx(together.tolist(), rel=1e-6, abs=1e-12)
