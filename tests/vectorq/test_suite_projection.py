# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The projection tells answers apart, and is sane on any set of entries."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.vectorq.synthetic_streams import unit
from vllm_vectorq.record import Vector
from vllm_vectorq.suite_projection import RANK, Projection, fit_projection

Ids = NDArray[np.int64]


def told_apart(
    seed: int, per_class: int, classes: int = 40, dimensions: int = RANK + 32
) -> tuple[Vector, Ids]:
    """Answers differ in a few directions, wording in others and far more."""
    world = np.random.default_rng(seed)
    centres = 0.5 * world.standard_normal((classes, dimensions))
    centres[:, dimensions // 4 :] *= 0.1
    random = np.random.default_rng([seed, per_class])
    ids = np.repeat(np.arange(classes), per_class)
    wording = random.standard_normal((len(ids), dimensions))
    wording[:, : dimensions // 4] *= 0.2
    return unit(centres[ids] + wording).astype(np.float32), ids


def separation(rows: Vector, ids: Ids) -> float:
    """Mean cosine within classes less that between classes, in its spread."""
    cosines = rows @ rows.T
    same = ids[:, None] == ids[None, :]
    np.fill_diagonal(same, False)
    within, between = cosines[same], cosines[ids[:, None] != ids[None, :]]
    return float((within.mean() - between.mean()) / between.std())


@pytest.mark.parametrize("seed", range(5))
def test_unseen_requests_of_one_answer_move_together(seed: int) -> None:
    projection = fit_projection(*told_apart(seed, per_class=8))
    vectors, ids = told_apart(seed, per_class=5)
    projected = projection.apply(vectors)
    cosines = projected @ projected.T
    same = ids[:, None] == ids[None, :]
    assert separation(projected, ids) > 1.5 * separation(vectors, ids)
    assert cosines[same].mean() > cosines[~same].mean() + 0.2


def test_nearest_neighbour_has_the_same_answer_more_often() -> None:
    projection = fit_projection(*told_apart(0, per_class=8))
    vectors, ids = told_apart(0, per_class=5)

    def hits(rows: Vector) -> float:
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -2.0)
        return float((ids[cosines.argmax(axis=1)] == ids).mean())

    assert hits(projection.apply(vectors)) > 2.0 * hits(vectors)


def test_projected_vectors_are_unit_vectors_of_the_rank() -> None:
    vectors, ids = told_apart(1, per_class=4)
    rows = fit_projection(vectors, ids).apply(vectors)
    assert rows.shape == (len(vectors), min(RANK, len(set(ids.tolist())) - 1))
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert fit_projection(vectors, ids, rank=3).apply(vectors).shape[1] == 3


def test_one_vector_is_projected_as_many_are() -> None:
    vectors, ids = told_apart(2, per_class=4)
    projection = fit_projection(vectors, ids)
    rows = projection.apply(vectors)
    for vector, row in zip(vectors[:5], rows[:5], strict=True):
        assert projection.apply(vector) == pytest.approx(row, abs=1e-5)


def cosines(projection: Projection, vectors: Vector) -> NDArray[np.float32]:
    rows = projection.apply(vectors)
    return np.asarray(rows @ rows.T)


@pytest.mark.parametrize("classes", [2 * RANK, RANK // 4])
def test_names_of_classes_do_not_count(classes: int) -> None:
    vectors, ids = told_apart(3, per_class=8, classes=classes)
    names = np.random.default_rng(0).permutation(1_000)[ids]
    plain, renamed = fit_projection(vectors, ids), fit_projection(vectors, names)
    off = cosines(renamed, vectors) - cosines(plain, vectors)
    assert np.abs(off).max() < 0.01


@pytest.mark.parametrize("classes", [2 * RANK, RANK // 4])
def test_order_of_entries_does_not_count(classes: int) -> None:
    vectors, ids = told_apart(3, per_class=8, classes=classes)
    plain = fit_projection(vectors, ids)
    turned = fit_projection(vectors[::-1], ids[::-1])
    off = cosines(turned, vectors) - cosines(plain, vectors)
    assert np.abs(off).max() < 0.01


SPHERE = unit(np.random.default_rng(5).standard_normal((60, 16))).astype(np.float32)
ODD = {
    "one class": (SPHERE, np.zeros(60, np.int64)),
    "classes of one entry": (SPHERE, np.arange(60)),
    "one vector in one class": (SPHERE[:1].repeat(60, 0), np.zeros(60, np.int64)),
    "one vector in many classes": (SPHERE[:1].repeat(60, 0), np.arange(60)),
    "every entry twice": (SPHERE.repeat(2, 0), np.arange(120) // 2),
    "fewer entries than dimensions": (SPHERE[:6], np.arange(6) // 2),
    "two entries": (SPHERE[:2], np.arange(2)),
    "opposite vectors": (np.concatenate([SPHERE, -SPHERE]), np.arange(120) % 7),
    "a plane": (
        unit(SPHERE[:, :2].astype(np.float64)).astype(np.float32)
        @ np.eye(2, 16, dtype=np.float32),
        np.arange(60) % 5,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_entries_give_finite_cosines(name: str) -> None:
    vectors, ids = ODD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projection = fit_projection(vectors, ids)
        rows = projection.apply(np.concatenate([vectors, SPHERE]))
    assert np.isfinite(projection.matrix).all()
    assert np.isfinite(rows).all()
    assert (np.abs(rows @ rows.T) <= 1.0 + 1e-5).all()


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 40),
    st.integers(1, 24),
    st.integers(1, 8),
    st.floats(0.0, 1.0),
    st.integers(0, 10_000),
)
def test_any_entries_give_finite_cosines(
    count: int, dimensions: int, classes: int, spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    base = random.standard_normal(dimensions)
    vectors = unit(base + spread * random.standard_normal((count, dimensions)))
    ids = random.integers(classes, size=count)
    projection = fit_projection(vectors.astype(np.float32), ids)
    rows = projection.apply(np.append(vectors, -vectors, axis=0).astype(np.float32))
    assert np.isfinite(rows).all()
    assert (np.linalg.norm(rows, axis=1) <= 1.0 + 1e-5).all()


def test_vector_in_the_middle_of_all_has_no_direction() -> None:
    vectors, ids = ODD["opposite vectors"]
    projection = fit_projection(vectors, ids)
    centre = projection.apply(np.zeros(16, np.float32))
    assert np.isfinite(centre).all()
