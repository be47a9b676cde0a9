# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""One pass of a policy over a stream of labelled requests, from an empty cache.

Labels come from known answer classes, unless a noise is given. Nothing
else is simulated: the policy is the product's, with its learning run in step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import guards
from .lexical_evidence import lexical_evidence
from .policy import NOTHING_NEAR, Evidence, Policy

Vectors = NDArray[np.float32]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass
class Outcome:
    """What happened to every request of a stream, in order.

    Attributes:
        hit: Served from the cache, bool [n].
        wrong: Served an answer of another class, bool [n].
        probability: The policy's estimate, float32 [n].
        entries: Entries at the end.
        judge_calls: Labels that were asked for.
    """

    hit: Flags
    wrong: Flags
    probability: Vectors
    entries: int = 0
    judge_calls: int = 0
    deciles: list[dict[str, float]] = field(default_factory=list)

    @property
    def hit_rate(self) -> float:
        """Hits over requests."""
        return float(self.hit.sum() / max(len(self.hit), 1))

    @property
    def error_per_request(self) -> float:
        """Wrong answers over requests."""
        return float(self.wrong.sum() / max(len(self.wrong), 1))

    @property
    def error_per_hit(self) -> float:
        """Wrong answers over hits; 0 without hits."""
        return float(self.wrong.sum() / max(self.hit.sum(), 1))


def replay(
    policy: Policy,
    vectors: Vectors,
    classes: Ids,
    delta: float,
    seed: int,
    *,
    neighbours: int = 16,
    judge_noise: float = 0.0,
    texts: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Run a policy over a stream.

    Args:
        policy: A fresh policy.
        vectors: Unit vectors in the order of arrival, float32 [n, d].
        classes: Answer class of each request, int64 [n].
        delta: Error budget per request.
        seed: For the policy's exploration and the judge's noise.
        neighbours: Entries the policy is shown.
        judge_noise: Probability that a label is flipped.
        texts: The requests themselves, for the lexical guards; None: without.
        progress: Called now and then with the number of requests done.
    """
    random = np.random.default_rng(seed)
    n = len(vectors)
    outcome = Outcome(
        np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.float32)
    )
    index = GrowingIndex(vectors.shape[1], n)
    for i in range(n):
        vector, truth = vectors[i], int(classes[i])
        signature = None if texts is None else guards.signature(texts[i])
        evidence = index.evidence(vector, neighbours, signature)
        decision = (
            policy.decide(evidence, delta, float(random.random()))
            if evidence.size
            else NOTHING_NEAR
        )
        outcome.probability[i] = decision.probability
        label = None
        if decision.candidate is not None:
            right = int(evidence.class_ids[decision.candidate]) == truth
            if decision.serve:
                outcome.hit[i] = True
                outcome.wrong[i] = not right
                continue
            label = right != (random.random() < judge_noise)
            outcome.judge_calls += 1
            policy.observe(
                int(evidence.entry_ids[decision.candidate]),
                decision.features,
                label,
                decision.propensity,
            )
        if policy.indexes(decision, label):
            policy.learn(len(index), vector, truth)
            index.add(vector, truth, signature)
        policy.tune()
        if progress is not None and i % 500 == 0:
            progress(i)
    outcome.entries = len(index)
    outcome.deciles = [
        {
            "hit_rate": float(h.sum() / max(len(h), 1)),
            "error_per_request": float(w.sum() / max(len(w), 1)),
            "error_per_hit": float(w.sum() / max(h.sum(), 1)),
        }
        for h, w in zip(
            np.array_split(outcome.hit, 10),
            np.array_split(outcome.wrong, 10),
            strict=True,
        )
    ]
    return outcome


class GrowingIndex:
    """Exact nearest neighbours over a matrix that rows are added to."""

    def __init__(self, dimensions: int, capacity: int) -> None:
        self._vectors = np.zeros((capacity, dimensions), np.float32)
        self._classes = np.zeros(capacity, np.int64)
        self._signatures: list[guards.Signature | None] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(
        self, vector: Vectors, class_id: int, signature: guards.Signature | None = None
    ) -> None:
        """Add a row."""
        self._signatures.append(signature)
        self._vectors[self._size] = vector
        self._classes[self._size] = class_id
        self._size += 1

    def evidence(
        self, vector: Vectors, k: int, signature: guards.Signature | None = None
    ) -> Evidence:
        """The nearest rows; without a signature there is no lexical evidence."""
        size = self._size
        similarities = self._vectors[:size] @ vector
        k = min(k, size)
        ids = np.argpartition(-similarities, k - 1)[:k] if k else np.zeros(0, np.int64)
        ids = ids[np.argsort(-similarities[ids], kind="stable")]
        conflicts, lexical = lexical_evidence(
            signature, [self._signatures[row] for row in ids.tolist()]
        )
        return Evidence(
            vector=vector,
            entry_ids=ids.astype(np.int64),
            class_ids=self._classes[ids],
            similarities=similarities[ids],
            vectors=self._vectors[ids],
            conflicts=conflicts,
            lexical=lexical,
            size=size,
        )
