# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The answer classes of a partition as one projection shows them."""

from __future__ import annotations

import numpy as np

from .policy import Evidence
from .record import Vector
from .suite_projection import Projection
from .suite_sample import EntrySample

_SMALLEST = 1e-9


class AnswerClasses:
    """Sizes and centres of the classes, and the projected vectors of entries.

    Writers take turns. Readers need no lock: tables change item by item, and a new
    projection comes with new tables.

    Args:
        projection: None until there are enough entries; vectors then stay as they are.
    """

    def __init__(self, projection: Projection | None = None) -> None:
        self._projection = projection
        self._rows: dict[int, Vector] = {}
        self._sums: dict[int, Vector] = {}
        self._centres: dict[int, Vector] = {}
        self._sizes: dict[int, int] = {}

    @classmethod
    def of(cls, sample: EntrySample, projection: Projection) -> AnswerClasses:
        """Classes of the entries in a sample."""
        classes = cls(projection)
        rows = projection.apply(sample.vectors)
        for entry_id, class_id, row in zip(
            sample.entry_ids, sample.class_ids.tolist(), rows, strict=True
        ):
            # A copy: a view would keep all rows in memory.
            classes._add(entry_id, class_id, row.copy())
        return classes

    def add(self, entry_id: int, vector: Vector, class_id: int) -> None:
        """Take an entry in."""
        if self._projection is not None:
            vector = self._projection.apply(vector)
        self._add(entry_id, class_id, vector)

    def _add(self, entry_id: int, class_id: int, row: Vector) -> None:
        if self._projection is not None:
            self._rows[entry_id] = row
        known = self._sums.get(class_id)
        total: Vector = row if known is None else known + row
        self._sums[class_id] = total
        length = float(np.sqrt(total @ total))
        self._centres[class_id] = total / max(length, _SMALLEST)
        self._sizes[class_id] = self._sizes.get(class_id, 0) + 1

    def remove(self, entry_id: int, class_id: int) -> None:
        """Let an entry go; the centre of its class moves with the next projection."""
        self._rows.pop(entry_id, None)
        left = self._sizes.get(class_id, 0) - 1
        if left > 0:
            self._sizes[class_id] = left
            return
        for table in (self._sums, self._centres):
            table.pop(class_id, None)
        self._sizes.pop(class_id, None)

    def size(self, class_id: int, entries: int) -> float:
        """Entries of a class, scaled up from the sample; at least 1."""
        sampled = max(len(self._rows), 1) if self._projection is not None else entries
        return max(self._sizes.get(class_id, 1) * entries / sampled, 1.0)

    def projected(self, evidence: Evidence) -> tuple[Vector, list[float]]:
        """Project a request; cosine to each of its neighbours there."""
        if self._projection is None:
            return evidence.vector, evidence.similarities.tolist()
        vector = self._projection.apply(evidence.vector)
        known = [self._rows.get(entry_id) for entry_id in evidence.entry_ids.tolist()]
        # Entries outside of the sample, or gone from it meanwhile.
        unknown = [i for i, row in enumerate(known) if row is None]
        if unknown:
            rows = self._projection.apply(evidence.vectors[unknown])
            for i, row in zip(unknown, rows, strict=True):
                known[i] = row
        return vector, (np.array(known) @ vector).tolist()

    def towards(self, class_id: int, vector: Vector) -> float:
        """Cosine of a projected request to the centre of a class; 0 if unknown."""
        centre = self._centres.get(class_id)
        return 0.0 if centre is None else float(centre @ vector)
