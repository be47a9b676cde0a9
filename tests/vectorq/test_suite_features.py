# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The candidate is the most voted class; a forbidden entry votes but never answers."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectorq.synthetic_streams import unit
from vllm_vectorq.policy import Evidence
from vllm_vectorq.suite_classes import AnswerClasses
from vllm_vectorq.suite_features import N_FEATURES, NAMES, candidate
from vllm_vectorq.suite_projection import fit_projection
from vllm_vectorq.suite_sample import EntrySample

DIMENSIONS = 6


def evidence(
    similarities: Sequence[float],
    class_ids: Sequence[int],
    conflicts: Sequence[bool] | None = None,
    lexical: Sequence[float] | None = None,
) -> Evidence:
    """Neighbours, nearest first, with vectors that have these cosines."""
    k = len(similarities)
    near = np.array(similarities, np.float32)
    vectors = np.zeros((k, DIMENSIONS), np.float32)
    vectors[:, 0] = near
    for i in range(k):
        vectors[i, 1 + i % (DIMENSIONS - 1)] = math.sqrt(max(1.0 - near[i] ** 2, 0.0))
    return Evidence(
        vector=np.eye(1, DIMENSIONS, dtype=np.float32)[0],
        entry_ids=np.arange(k, dtype=np.int64),
        class_ids=np.array(class_ids, np.int64),
        similarities=near,
        vectors=vectors,
        conflicts=np.array(conflicts or [False] * k, np.bool_),
        lexical=np.array(lexical or [0.0] * k, np.float32),
        size=max(k, 1),
    )


def features(seen: Evidence, classes: AnswerClasses | None = None) -> dict[str, float]:
    found = candidate(seen, AnswerClasses() if classes is None else classes)
    assert found is not None
    return dict(zip(NAMES, found.features, strict=True))


def projected_classes() -> AnswerClasses:
    random = np.random.default_rng(0)
    sample = EntrySample(100)
    vectors = unit(random.standard_normal((100, DIMENSIONS))).astype(np.float32)
    for i, vector in enumerate(vectors):
        sample.add(i + 5, vector, i % 6)
    projection = fit_projection(sample.vectors, sample.class_ids, rank=3)
    return AnswerClasses.of(sample, projection)


NEIGHBOURS = st.lists(
    st.tuples(
        st.floats(-1.0, 1.0, width=32),
        st.integers(0, 5),
        st.booleans(),
        st.floats(0.0, 1.0, width=32),
    ),
    min_size=1,
    max_size=16,
).map(lambda rows: sorted(rows, key=lambda row: -row[0]))
Neighbours = list[tuple[float, int, bool, float]]


def of(rows: Neighbours) -> Evidence:
    near, ids, conflicts, lexical = zip(*rows, strict=True)
    return evidence(near, ids, conflicts, lexical)


@pytest.mark.parametrize("projected", [False, True])
@settings(max_examples=100, deadline=None)
@given(rows=NEIGHBOURS)
def test_candidate_is_allowed_and_its_features_are_numbers(
    projected: bool, rows: Neighbours
) -> None:
    seen = of(rows)
    found = candidate(seen, projected_classes() if projected else AnswerClasses())
    if found is None:
        assert seen.conflicts.any()
        return
    assert not seen.conflicts[found.index]
    assert len(found.features) == N_FEATURES
    assert found.features[0] == 1.0
    assert all(math.isfinite(value) for value in found.features)
    # The nearest allowed entry of its class answers.
    same = seen.class_ids == seen.class_ids[found.index]
    assert found.index == np.flatnonzero(same & ~seen.conflicts)[0]


@settings(max_examples=100, deadline=None)
@given(NEIGHBOURS, st.permutations(range(6)))
def test_names_of_classes_do_not_count(rows: Neighbours, names: list[int]) -> None:
    plain = candidate(of(rows), AnswerClasses())
    renamed = [(s, 10_000 - names[c], f, x) for s, c, f, x in rows]
    assert candidate(of(renamed), AnswerClasses()) == plain


def test_many_near_votes_outweigh_the_nearest() -> None:
    found = candidate(evidence([0.9, 0.89, 0.89, 0.88], [1, 2, 2, 2]), AnswerClasses())
    assert found is not None
    assert found.index == 1


def test_near_vote_outweighs_many_far_ones() -> None:
    found = candidate(evidence([0.95, 0.5, 0.5, 0.5], [1, 2, 2, 2]), AnswerClasses())
    assert found is not None
    assert found.index == 0


@pytest.mark.parametrize("conflicts", [[], [True], [True] * 3])
def test_nothing_allowed_is_no_candidate(conflicts: list[bool]) -> None:
    k = len(conflicts)
    assert candidate(evidence([0.99] * k, [1] * k, conflicts), AnswerClasses()) is None


def test_forbidden_entry_votes_and_an_allowed_one_of_its_class_answers() -> None:
    seen = evidence([0.99, 0.9, 0.8], [1, 2, 1], [True, False, False])
    found = candidate(seen, AnswerClasses())
    assert found is not None
    assert found.index == 2
    named = features(seen)
    assert named["conflicts"] == 0.5
    assert named["similarity"] == pytest.approx(0.99)


def test_winning_class_without_an_allowed_entry_is_no_candidate() -> None:
    seen = evidence([0.99, 0.6], [1, 2], [True, False])
    assert candidate(seen, AnswerClasses()) is None


def test_margin_is_to_the_nearest_entry_of_any_other_class() -> None:
    named = features(evidence([0.95, 0.94, 0.9, 0.85], [1, 1, 3, 2]))
    assert named["margin"] == pytest.approx(0.05)
    assert named["behind_nearest"] == 0.0
    assert named["log_votes"] == pytest.approx(math.log(2))


def test_class_that_was_outvoted_is_the_rival() -> None:
    classes = AnswerClasses()
    centre = np.zeros(DIMENSIONS, np.float32)
    centre[0] = 1.0
    classes.add(0, centre, 1)
    named = features(evidence([0.9, 0.89, 0.89], [1, 2, 2]), classes)
    assert named["margin"] == pytest.approx(-0.01)
    assert named["behind_nearest"] == pytest.approx(-0.01)
    assert (named["centre"], named["centre_margin"]) == (0.0, -1.0)


def test_lexical_agreement_is_the_best_of_the_class_and_of_its_rivals() -> None:
    seen = evidence([0.95, 0.94, 0.5], [1, 1, 2], lexical=[0.25, 0.75, 0.5])
    named = features(seen)
    assert named["lexical"] == pytest.approx(0.75)
    assert named["lexical_margin"] == pytest.approx(0.25)


def test_united_neighbours_speak_for_the_candidate() -> None:
    united = features(evidence([0.9, 0.88, 0.86], [1, 1, 1]))
    split = features(evidence([0.9, 0.88, 0.86], [1, 2, 3]))
    for name in ("vote", "margin", "log_votes", "projected_margin", "centre_margin"):
        assert united[name] > split[name]


def test_vote_grows_as_a_rival_moves_away() -> None:
    votes = [features(evidence([0.9, far], [1, 2]))["vote"] for far in (0.89, 0.8, 0)]
    assert votes == sorted(votes)
    assert all(math.isfinite(vote) for vote in votes)


def test_projection_moves_the_vote() -> None:
    classes = projected_classes()
    seen = evidence([0.8, 0.79, 0.78, 0.3], [1, 1, 1, 2])
    plain, projected = features(seen), features(seen, classes)
    assert projected["similarity"] == plain["similarity"]
    assert projected["projected"] != plain["projected"]
    assert projected["centre"] != 0.0
