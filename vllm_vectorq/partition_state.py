# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What is kept in memory about one partition."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from .index import PartitionIndex
from .policy import Policy

# Normalised answers remembered per partition.
MAX_CLASSES = 20_000


class PartitionState:
    """Index and learned state of one partition.

    Attributes:
        digest: The partition's 32-byte key.
        facts: Readable facts about it.
        index: Vectors of its entries; None without semantic matching.
        policy: Decides here and learns from the labels of this partition.
        entries: Live entries, exact ones included; counted by the entry table.
        taught: Whether its policy learned from labels.
        idle: Whether it was empty at the last look and nobody asked for it since.
    """

    __slots__ = (
        "_classes",
        "digest",
        "entries",
        "facts",
        "idle",
        "index",
        "policy",
        "taught",
    )

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
        self.entries = 0
        self.taught = False
        self.idle = False
        self._classes: OrderedDict[bytes, int] = OrderedDict()

    @property
    def dimensions(self) -> int:
        """Length of its vectors; 0 without semantic matching."""
        return self.index.dimensions if self.index is not None else 0

    def class_of(self, normalised: bytes) -> int | None:
        """Class of an answer with this normalised form, if one was seen."""
        return self._classes.get(normalised)

    def remember_class(self, normalised: bytes, class_id: int) -> None:
        """Let later answers with this normalised form join a class.

        For the one thread that labels. The forms not seen for longest are forgotten.
        """
        self._classes[normalised] = class_id
        self._classes.move_to_end(normalised)
        if len(self._classes) > MAX_CLASSES:
            self._classes.popitem(last=False)

    def matches(self, facts: Mapping[str, str]) -> bool:
        """Whether every given fact is this partition's."""
        return all(self.facts.get(name) == value for name, value in facts.items())
