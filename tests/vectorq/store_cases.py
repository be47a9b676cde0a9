# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Records to store and places to store them in, for the tests of the stores."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from vllm_vectorq.record import (
    AnswerRecord,
    Change,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Vector,
)
from vllm_vectorq.store import Store, open_store

DIMENSIONS = 8
DAY_S = 86_400.0
ODD_TEXTS = [
    "",
    "plain",
    "NUL \0 inside and at the end \0",
    "Größe 東京 🦊 \u2028 \N{ZERO WIDTH JOINER}",
    "lone \ud83d surrogate",
    "two lone ones \ud83d\ude00 side by side",
    'quotes " \\ and \r\n line ends',
]


class Records:
    """Makes records that differ in everything."""

    def partition(self, number: int = 1, /, **facts: str) -> PartitionRecord:
        return PartitionRecord(self.key("partition", number), {"model": "m", **facts})

    def answer(self, number: int = 1, **changes: object) -> AnswerRecord:
        answer = AnswerRecord(
            answer_id=number,
            text=f"answer {number}",
            token_ids=(7, 0, 151_643),
            stop_reason=None,
            generation_s=0.25,
        )
        return replace(answer, **changes)

    def entry(self, number: int = 1, **changes: object) -> EntryRecord:
        entry = EntryRecord(
            entry_id=number,
            partition=self.key("partition", 1),
            exact_key=self.key("exact", number),
            text=f"question {number}",
            vector=self.vector(number),
            class_id=number,
            answer_id=number,
            created_s=time.time(),
            expires_s=time.time() + 3600,
            principal=None,
        )
        return replace(entry, **changes)

    def observation(self, number: int = 1, **changes: object) -> ObservationRecord:
        observation = ObservationRecord(
            observation_id=number,
            partition=self.key("partition", 1),
            entry_id=1,
            features=self.vector(number, 3),
            label=number % 2 == 0,
            propensity=0.5,
            source="judge",
            principal=None,
        )
        return replace(observation, **changes)

    def stored_request(self, number: int) -> list[Change]:
        """An answer and the entry that serves it."""
        return [self.answer(number), self.entry(number)]

    def key(self, kind: str, number: int) -> bytes:
        return f"{kind} {number}".encode().ljust(32, b".")

    def vector(self, seed: int, dimensions: int = DIMENSIONS) -> Vector:
        vector = np.random.default_rng(seed).normal(size=dimensions)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def plain(self, changes: Iterable[Change]) -> list[tuple[object, ...]]:
        """Changes as tuples that compare, vectors bit by bit."""
        return [
            (
                type(change).__name__,
                *(_comparable(getattr(change, f.name)) for f in fields(change)),
            )
            for change in changes
        ]


def _comparable(value: object) -> object:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tobytes()
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    return type(value).__name__, value


@dataclass
class StorePlace:
    """Opens stores on one place, again and again."""

    kind: str
    url: str
    schema: str
    opened: list[Store] = field(default_factory=list)

    def open(self, **options: int) -> Store:
        store = open_store(self.url, schema=self.schema, **options)
        self.opened.append(store)
        return store

    def close_all(self) -> None:
        for store in self.opened:
            store.close()
