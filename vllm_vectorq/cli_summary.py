# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a store holds, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .record import (
    AnswerRecord,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Record,
)

EXPIRING_S = 3_600.0


@dataclass
class Labels:
    """Labels by what they said."""

    right: int = 0
    wrong: int = 0

    def add(self, label: bool) -> None:
        """Count one."""
        if label:
            self.right += 1
        else:
            self.wrong += 1


@dataclass
class PartitionSummary:
    """One partition.

    Attributes:
        digest: Its key; empty for the sum over all partitions.
        facts: Readable facts about it.
        entries: Requests that are stored.
        semantic: Those that can be found by meaning.
        answers: Different answers.
        expiring: Entries that expire within an hour.
        oldest_s: Unix time of the oldest entry; None without any.
        newest_s: Unix time of the youngest.
        labels: By source.
    """

    digest: bytes = b""
    facts: dict[str, str] = field(default_factory=dict)
    entries: int = 0
    semantic: int = 0
    answers: int = 0
    expiring: int = 0
    oldest_s: float | None = None
    newest_s: float | None = None
    labels: dict[str, Labels] = field(default_factory=dict)

    def add_entry(self, entry: EntryRecord, now_s: float) -> None:
        """Count an entry."""
        self.entries += 1
        self.semantic += entry.vector is not None
        self.expiring += entry.expires_s - now_s <= EXPIRING_S
        born_s = entry.created_s
        self.oldest_s = born_s if self.oldest_s is None else min(self.oldest_s, born_s)
        self.newest_s = born_s if self.newest_s is None else max(self.newest_s, born_s)

    def add_label(self, observation: ObservationRecord) -> None:
        """Count a label."""
        self.labels.setdefault(observation.source, Labels()).add(observation.label)

    def as_dict(self, now_s: float) -> dict[str, Any]:
        """Plain values, with ages instead of times."""
        ages = {
            name: None if born_s is None else round(max(now_s - born_s, 0.0), 3)
            for name, born_s in (
                ("oldest_age_s", self.oldest_s),
                ("newest_age_s", self.newest_s),
            )
        }
        return {
            "entries": self.entries,
            "semantic_entries": self.semantic,
            "answers": self.answers,
            "expiring_within_1h": self.expiring,
            **ages,
            "labels": {
                source: {"right": labels.right, "wrong": labels.wrong}
                for source, labels in sorted(self.labels.items())
            },
        }


@dataclass
class StoreSummary:
    """A whole store.

    Attributes:
        partitions: The one with most entries first.
        total: The sum over them.
    """

    partitions: list[PartitionSummary]
    total: PartitionSummary


def summary_of(records: Iterable[Record], now_s: float) -> StoreSummary:
    """Count what a store gives, in the order in which it does.

    Args:
        records: From :meth:`~vllm_vectorq.store.Store.load`.
        now_s: Unix time.
    """
    partitions: dict[bytes, PartitionSummary] = {}
    answers: Counter[bytes] = Counter()
    seen: set[tuple[bytes, int]] = set()
    total = PartitionSummary()

    def of(digest: bytes) -> PartitionSummary:
        return partitions.setdefault(digest, PartitionSummary(digest))

    for record in records:
        match record:
            case PartitionRecord():
                partitions[record.digest] = PartitionSummary(
                    record.digest, record.facts
                )
            case AnswerRecord():
                total.answers += 1
            case EntryRecord():
                of(record.partition).add_entry(record, now_s)
                total.add_entry(record, now_s)
                served = record.partition, record.answer_id
                if served not in seen:
                    seen.add(served)
                    answers[record.partition] += 1
            case ObservationRecord():
                of(record.partition).add_label(record)
                total.add_label(record)
    for digest, count in answers.items():
        partitions[digest].answers = count
    largest_first = sorted(
        partitions.values(), key=lambda found: (-found.entries, found.digest)
    )
    return StoreSummary(largest_first, total)
