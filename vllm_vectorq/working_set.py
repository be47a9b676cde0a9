# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Everything the cache holds in memory, kept in step with the store."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

from .entries import Entry, EntryTable, StoredAnswer
from .index import PartitionIndex
from .label_quota import LabelQuota
from .metrics import CacheMetrics
from .partition_state import PartitionState
from .policy import Policy
from .record import (
    AnswerRecord,
    Change,
    EntryRecord,
    ObservationRecord,
    PartitionRecord,
    Removal,
    Vector,
)
from .request import Answer, Partition

# Empty partitions whose learned state is kept.
MAX_TAUGHT = 1_000


class WorkingSet:
    """Partitions and entries of this process.

    Args:
        dimensions: Length of the vectors; 0 without semantic matching.
        new_policy: Makes the policy of a new partition.
        submit: Hands a change to the store; never blocks.
        metrics: Where removals are counted.
        quota: Knows who confirmed which entry.
        embedding: Fingerprint of the embedding model; partitions of another one are
            for exact matches only.
        keep_text: Whether texts are written to the store.
    """

    def __init__(
        self,
        dimensions: int,
        new_policy: Callable[[], Policy],
        submit: Callable[[Change], None],
        metrics: CacheMetrics,
        quota: LabelQuota,
        embedding: str = "",
        keep_text: bool = True,
    ) -> None:
        self.entries = EntryTable()
        self._dimensions = dimensions
        self._new_policy = new_policy
        self._submit = submit
        self._metrics = metrics
        self._quota = quota
        self._embedding = embedding
        self._keep_text = keep_text
        self._partitions: dict[bytes, PartitionState] = {}
        # An answer lives as long as an entry serves it.
        self._answers: weakref.WeakValueDictionary[int, StoredAnswer] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()

    def partition(self, digest: bytes) -> PartitionState | None:
        """The partition, if anything was stored in it."""
        return self._partitions.get(digest)

    def partitions(self) -> list[PartitionState]:
        """All partitions."""
        return list(self._partitions.values())

    def partition_for(self, partition: Partition) -> PartitionState:
        """The partition, made if need be."""
        with self._lock:
            state = self._partitions.get(partition.digest)
            if state is not None:
                state.idle = False
                return state
        return self._add_partition(partition.digest, dict(partition.facts))

    def drop_empty(self) -> None:
        """Forget partitions that were empty at the last call, too.

        What was learned outlives the entries, within bounds: after a quiet night the
        same questions come again.
        """
        taught = 0
        for state in self.partitions():
            with self._lock:
                if state.entries:
                    continue
                taught += state.taught
                if state.taught and taught <= MAX_TAUGHT:
                    continue
                if state.idle:
                    del self._partitions[state.digest]
                state.idle = True

    def insert(self, entry: Entry) -> None:
        """Add an entry for exact repeats; replaces one with the same key."""
        stored = entry.stored
        self._hold(entry, None)
        answer = stored.answer
        # Each time: the store drops partitions that were empty for a while.
        state = entry.partition
        self._submit(PartitionRecord(state.digest, state.facts))
        self._submit(
            AnswerRecord(
                stored.answer_id,
                answer.text,
                answer.token_ids,
                answer.stop_reason,
                answer.generation_s,
            )
        )
        self._submit(self._record(entry, None))

    def insert_vector(self, entry: Entry, vector: Vector) -> None:
        """Let an entry be found by meaning, too, unless it is gone already."""
        if entry.partition.index is None or not self._holds(entry):
            return
        self._index(entry, vector)
        self._submit(self._record(entry, vector))
        if not self._holds(entry):
            # Removed meanwhile, which must outlast what was just written.
            self._unindex([entry])
            self._submit(Removal((entry.entry_id,)))

    def _holds(self, entry: Entry) -> bool:
        return self.entries.get(entry.entry_id) is entry

    def _index(self, entry: Entry, vector: Vector) -> None:
        state = entry.partition
        if state.index is None:
            return
        entry.indexed = True
        self.entries.resized(entry)
        state.index.add(entry.entry_id, entry.class_id, vector)
        state.policy.learn(entry.entry_id, vector, entry.class_id)

    def _record(self, entry: Entry, vector: Vector | None) -> EntryRecord:
        return EntryRecord(
            entry_id=entry.entry_id,
            partition=entry.partition.digest,
            exact_key=entry.exact_key,
            text=entry.text if self._keep_text else None,
            vector=vector,
            class_id=entry.class_id,
            answer_id=entry.stored.answer_id,
            created_s=entry.created_s,
            expires_s=entry.expires_s,
            principal=entry.principal,
        )

    def remove(self, entry_ids: Iterable[int], reason: str) -> int:
        """Remove entries here and in the store; return how many were there."""
        removed = self._drop(entry_ids)
        if removed:
            self._metrics.removed(reason, len(removed))
            self._submit(Removal(tuple(removed)))
        return len(removed)

    def invalidate(self, facts: Mapping[str, str], prefix: str = "") -> int:
        """Remove entries of the partitions with these facts.

        Args:
            facts: What must be true of the partition.
            prefix: What the entry's text must begin with; only texts that are kept
                can be compared.
        """
        matching = {s.digest for s in self.partitions() if s.matches(facts)}
        found = [
            entry.entry_id
            for entry in self.entries.all()
            if entry.partition.digest in matching
            and (not prefix or (entry.text or "").startswith(prefix))
        ]
        return self.remove(found, "invalidated")

    def resynchronise(self, records: Iterable[Change], since_s: float) -> None:
        """Take over everything that a store holds, and drop what it lacks.

        Args:
            records: From :meth:`~vllm_vectorq.store.Store.load`.
            since_s: Entries made after this Unix time stay in any case: they may
                not be written yet.
        """
        held: set[int] = set()

        def noted() -> Iterator[Change]:
            for record in records:
                if isinstance(record, EntryRecord):
                    held.add(record.entry_id)
                # Labels were learned from already; twice would count them double.
                if not isinstance(record, ObservationRecord):
                    yield record

        self.apply(noted())
        gone = [
            entry.entry_id
            for entry in self.entries.all()
            if entry.entry_id not in held and entry.created_s < since_s
        ]
        self._drop(gone)

    def apply(self, changes: Iterable[Change]) -> None:
        """Take over what the store holds or another process wrote.

        An answer comes in the same call as the entries that serve it.
        """
        arrived: list[StoredAnswer] = []  # keeps them until their entries come
        for change in changes:
            match change:
                case PartitionRecord():
                    if change.digest not in self._partitions:
                        self._add_partition(change.digest, change.facts)
                case AnswerRecord():
                    arrived.append(self._apply_answer(change))
                case EntryRecord():
                    self._apply_entry(change)
                case ObservationRecord():
                    if change.label:
                        self._quota.restore(change.principal, change.entry_id)
                    state = self._partitions.get(change.partition)
                    if state is not None:
                        state.taught = True
                        state.policy.observe(
                            change.entry_id,
                            change.features,
                            change.label,
                            change.propensity,
                        )
                case Removal():
                    self._drop(change.entry_ids)

    def _add_partition(self, digest: bytes, facts: Mapping[str, str]) -> PartitionState:
        comparable = facts.get("embedding", self._embedding) == self._embedding
        index = None
        if self._dimensions and comparable:
            index = PartitionIndex(self._dimensions)
        with self._lock:
            state = self._partitions.get(digest)
            if state is None:
                state = PartitionState(digest, facts, self._new_policy(), index)
                self._partitions[digest] = state
            return state

    def _apply_answer(self, record: AnswerRecord) -> StoredAnswer:
        known = self._answers.get(record.answer_id)
        if known is not None:
            return known
        answer = Answer(
            record.text, record.token_ids, record.stop_reason, record.generation_s
        )
        stored = store_form(record.answer_id, answer)
        self._answers[record.answer_id] = stored
        return stored

    def _apply_entry(self, record: EntryRecord) -> None:
        state = self._partitions.get(record.partition)
        stored = self._answers.get(record.answer_id)
        if state is None or stored is None:
            return  # Its answer or partition was purged; the entry is worthless.
        indexed = record.vector is not None and state.index is not None
        entry = Entry(
            entry_id=record.entry_id,
            partition=state,
            exact_key=record.exact_key,
            text=record.text,
            class_id=record.class_id,
            stored=stored,
            created_s=record.created_s,
            expires_s=record.expires_s,
            principal=record.principal,
            last_used_s=record.created_s,
        )
        self._hold(entry, record.vector if indexed else None)

    def _hold(self, entry: Entry, vector: Vector | None) -> None:
        self._answers[entry.stored.answer_id] = entry.stored
        known = self.entries.get(entry.entry_id)
        if known is not None:
            # An entry comes for exact repeats first, and again when it has a vector.
            if vector is not None and not known.indexed:
                known.class_id, known.text = entry.class_id, entry.text
                self._index(known, vector)
            return
        replaced = self.entries.add(entry)
        if replaced is entry:
            return  # A newer entry with this key is here already.
        if replaced is not None:
            self._unindex([replaced])
        if vector is not None:
            self._index(entry, vector)

    def _drop(self, entry_ids: Iterable[int]) -> list[int]:
        removed = self.entries.remove(entry_ids)
        self._unindex(removed)
        return [entry.entry_id for entry in removed]

    def _unindex(self, entries: list[Entry]) -> None:
        by_partition: dict[bytes, list[Entry]] = {}
        for entry in entries:
            by_partition.setdefault(entry.partition.digest, []).append(entry)
        for group in by_partition.values():
            state = group[0].partition
            ids = [entry.entry_id for entry in group]
            if state.index is not None:
                state.index.remove(ids)
            state.policy.forget(ids)
            self._quota.forget(ids)


def store_form(answer_id: int, answer: Answer) -> StoredAnswer:
    """An answer with its id and an estimate of its memory."""
    size = 200 + 2 * len(answer.text) + 40 * len(answer.token_ids)
    return StoredAnswer(answer_id, answer, size)
