# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What every policy is given, what it decides, and what it learns from.

A policy belongs to one partition. It never sees text or answers: only which stored
entries are near, which of them have equivalent answers (their class), and labels.
``decide`` runs on the request path and is pure apart from reading learned state;
``observe`` and ``learn`` run in the background. Both may run at the same time, so
learned state is replaced as a whole, never changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .record import Vector

Ids = NDArray[np.int64]

NO_FEATURES: Vector = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a request before deciding.

    Attributes:
        vector: Unit vector of the request, float32 [dimensions].
        entry_ids: Nearest entries, best first, int64 [k]; k may be 0.
        class_ids: Answer class of each, int64 [k].
        similarities: Cosine to each, float32 [k], not increasing.
        vectors: Unit vectors of the entries, float32 [k, dimensions].
        conflicts: Which entries the lexical guards forbid, bool [k].
        lexical: Lexical agreement with each entry in [0, 1], float32 [k].
        size: Entries in the partition's index.
    """

    vector: Vector
    entry_ids: Ids
    class_ids: Ids
    similarities: Vector
    vectors: Vector
    conflicts: NDArray[np.bool_]
    lexical: Vector
    size: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Serve or explore.

    Attributes:
        serve: True: answer from the cache; False: ask the model (explore).
        candidate: Index into the evidence of the entry that answers or would have;
            None when there is none, and then nothing is learned.
        probability: Estimated probability that the candidate is right, in [0, 1].
        propensity: Probability with which this request would be explored, in (0, 1];
            1 when no chance was involved in exploring it.
        features: What the estimate was made from, float32 [n]; handed to ``observe``.
    """

    serve: bool
    candidate: int | None
    probability: float
    propensity: float
    features: Vector = field(default_factory=lambda: NO_FEATURES)


NOTHING_NEAR = Decision(serve=False, candidate=None, probability=0.0, propensity=1.0)


class Policy(Protocol):
    """Decides for one partition and learns from its labels.

    Attributes:
        name: As in the option ``policy``.
    """

    name: str

    def decide(self, evidence: Evidence, delta: float, uniform: float) -> Decision:
        """Decide one request; at most 50 microseconds at k = 16.

        Args:
            evidence: What is near.
            delta: Allowed probability of a wrong answer per request, in (0, 1).
            uniform: A uniform random number in [0, 1), drawn by the caller.
        """
        ...

    def observe(
        self,
        entry_id: int,
        features: Vector,
        label: bool,
        propensity: float,
    ) -> None:
        """Learn whether the candidate of an explored request was right.

        Args:
            entry_id: The candidate.
            features: ``Decision.features`` of that request.
            label: Whether its answer is equivalent to the model's own.
            propensity: ``Decision.propensity`` of that request.
        """
        ...

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        """Whether an explored request becomes an entry that others can find.

        Args:
            decision: What was decided about it.
            label: Whether its answer is equivalent to the candidate's; None: unknown.
        """
        ...

    def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
        """Take note of an entry that others can find from now on.

        Args:
            entry_id: The entry.
            vector: Its unit vector, float32 [dimensions].
            class_id: Class of its answer.
        """
        ...

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Drop what is known about entries that are gone."""
        ...

    def tune(self) -> None:
        """Do what is due and takes long; called in the background after labels."""
        ...
