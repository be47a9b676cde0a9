# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is kept in memory about one partition."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from .index import PartitionIndex
from .policy import Policy


class PartitionState:
    """Index and learned state of one partition.

    Attributes:
        digest: The partition's 32-byte key.
        facts: Readable facts about it.
        index: Vectors of its entries; None without semantic matching.
        policy: Decides here and learns from the labels of this partition.
        learning: Held while one request is labelled and inserted, so that two
            answers of one kind do not found two classes.
    """

    __slots__ = ("_classes", "digest", "facts", "index", "learning", "policy")

    def __init__(
        self,
        digest: bytes,
        facts: Mapping[str, str],
        policy: Policy,
        index: PartitionIndex | None,
    ) -> None:
        self.digest = digest
        self.facts = dict(facts)
        self.policy = policy
        self.index = index
        self.learning = threading.Lock()
        self._classes: dict[bytes, int] = {}

    @property
    def dimensions(self) -> int:
        """Length of its vectors; 0 without semantic matching."""
        return self.index.dimensions if self.index is not None else 0

    def class_of(self, normalised: bytes) -> int | None:
        """Class of an answer with this normalised form, if one was seen."""
        return self._classes.get(normalised)

    def remember_class(self, normalised: bytes, class_id: int) -> None:
        """Let later answers with this normalised form join a class."""
        self._classes[normalised] = class_id

    def matches(self, facts: Mapping[str, str]) -> bool:
        """Whether every given fact is this partition's."""
        return all(self.facts.get(name) == value for name, value in facts.items())
