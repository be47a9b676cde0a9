# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the policies that learn per entry have in common."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

from .policy import Decision
from .record import Vector

State = TypeVar("State")


class EntryPolicy(Generic[State]):
    """Keeps what was learned about each entry until it is gone.

    States are immutable: a new one replaces the old one as a whole, under the lock,
    and ``decide`` reads without it.
    """

    def __init__(self) -> None:
        """Start with nothing known."""
        self._learned: dict[int, State] = {}
        self._lock = threading.Lock()

    @property
    def num_known(self) -> int:
        """Number of entries with labels."""
        return len(self._learned)

    def indexes(self, decision: Decision, label: bool | None) -> bool:
        """Another entry of the same answer would split the labels."""
        return label is not True

    def learn(self, entry_id: int, vector: Vector, class_id: int) -> None:
        """Answer classes are not used."""

    def tune(self) -> None:
        """Nothing takes long here."""

    def forget(self, entry_ids: Sequence[int]) -> None:
        """Drop what was learned about entries that are gone."""
        with self._lock:
            for entry_id in entry_ids:
                self._learned.pop(entry_id, None)
