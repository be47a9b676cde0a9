# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Fits what the policy ``suite`` believes before it has labels of its own.

Every question of the first part of a stream is explored, so that the labels are a fair
sample. The coefficients printed at the end are those of ``suite_prior.py``.

Use::

    python -m benchmarks.vectorq.fit_prior --embedding-model MODEL --clinc150 JSON ...
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.vectorq import datasets
from vllm_vectorq import guards
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.replay import GrowingIndex
from vllm_vectorq.suite_classes import AnswerClasses
from vllm_vectorq.suite_features import NAMES, candidate
from vllm_vectorq.suite_model import ErrorModel, fit_error_model

SHUFFLES = 8
FIRST = 600
NEIGHBOURS = 16
# Bounds of expected errors between which they are compared with what happened.
BANDS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.01)

Matrix = NDArray[np.float64]
Labelled = tuple[Matrix, Matrix]


def explored(questions: Iterable[tuple[str, int, datasets.Vectors]]) -> Labelled:
    """Features and labels of a stream in which everything goes to the model.

    Args:
        questions: Text, answer class and unit vector of each, in order.
    """
    classes = AnswerClasses()
    index: GrowingIndex | None = None
    features: list[list[float]] = []
    right: list[float] = []
    for text, class_id, vector in questions:
        index = index or GrowingIndex(len(vector), 4 * FIRST)
        signature = guards.signature(text)
        evidence = index.evidence(vector, NEIGHBOURS, signature)
        found = candidate(evidence, classes) if evidence.size else None
        if found is not None:
            features.append(found.features)
            right.append(float(evidence.class_ids[found.index] == class_id))
        classes.add(len(index), vector, class_id)
        index.add(vector, class_id, signature)
    return np.array(features), np.array(right)


def of_set(data: datasets.LabelledSet, vectors: datasets.Vectors) -> Labelled:
    """The first questions of several shuffles."""
    parts = []
    for shuffle in range(SHUFFLES):
        order = datasets.shuffled(data, 1000 + shuffle)[:FIRST].tolist()
        parts.append(
            explored((data.texts[i], int(data.classes[i]), vectors[i]) for i in order)
        )
    return joined(parts)


def of_pairs(model: EmbeddingModel) -> Labelled:
    """Question pairs in several orders; equal texts have equal answers."""
    pairs = datasets.trap_pairs()
    texts = sorted({text for pair in pairs for text in pair[:2]})
    vectors = dict(zip(texts, model.embed(texts), strict=True))
    parts = []
    for shuffle in range(SHUFFLES):
        ids: dict[str, int] = {}
        stream: list[tuple[str, int, datasets.Vectors]] = []
        for i in np.random.default_rng(shuffle).permutation(len(pairs)).tolist():
            first, second, same, _ = pairs[i]
            one = ids.setdefault(first, len(ids))
            other = ids.setdefault(second, one if same else len(ids))
            stream += [(first, one, vectors[first]), (second, other, vectors[second])]
        parts.append(explored(stream))
    return joined(parts)


def joined(parts: Iterable[Labelled]) -> Labelled:
    """Several labelled streams as one."""
    features, right = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(right)


def bands(model: ErrorModel, labelled: Labelled) -> str:
    """Share of wrong candidates between bounds of the expected error."""
    features, right = labelled
    place = np.digitize(model.expected_errors(features), BANDS) - 1
    return "  ".join(
        f"{low:g}: {100 * (1 - right[place == i]).mean():.1f} % of {n}"
        for i, low in enumerate(BANDS[:-1])
        if (n := int((place == i).sum()))
    )


def main() -> None:
    """Fit, check by leaving out one set at a time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clinc150", type=Path, required=True, metavar="JSON")
    parser.add_argument("--hwu64", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--embedding-model", required=True, metavar="DIRECTORY")
    given = parser.parse_args()
    model = EmbeddingModel(given.embedding_model)
    sets = {
        data.name: of_set(data, datasets.embedded(data, model.embed, model.fingerprint))
        for data in (
            datasets.banking77(),
            datasets.clinc150(given.clinc150),
            datasets.labelled_lines("hwu64", given.hwu64),
        )
    }
    sets["fow-cache"] = of_pairs(model)
    for left_out, labelled in sets.items():
        others = joined(part for name, part in sets.items() if name != left_out)
        fitted, _ = fit_error_model(*others)
        print(f"wrong in {left_out}, left out, by expected error:")
        print(f"  {bands(fitted, labelled)}")
    fitted, _ = fit_error_model(*joined(sets.values()))
    for name, weight in zip(NAMES, fitted.weights.tolist(), strict=True):
        print(f"{name:28} {weight:9.4f}")


if __name__ == "__main__":
    main()
