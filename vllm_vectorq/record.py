# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What a store keeps. Flat, versioned, and free of anything executable."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

_RANDOM_BITS = 22
_LARGEST = (1 << 63) - 1


def new_id() -> int:
    """A positive 63-bit id that sorts by time and needs no coordination."""
    return first_id_at(time.time()) | secrets.randbits(_RANDOM_BITS)


def first_id_at(time_s: float) -> int:
    """The smallest id that :func:`new_id` gives at a time."""
    return max(-_LARGEST - 1, min(int(time_s * 1000) << _RANDOM_BITS, _LARGEST))


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """A partition as stored.

    Attributes:
        digest: Its 32-byte key.
        facts: Readable facts, see :class:`~vllm_vectorq.request.Partition`.
    """

    digest: bytes
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """An answer; entries of one class may share it.

    Attributes:
        token_ids: Generated tokens, int32.
    """

    answer_id: int
    text: str
    token_ids: tuple[int, ...]
    stop_reason: int | str | None
    generation_s: float


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One stored request.

    Attributes:
        entry_id: Unique among all writers, from :func:`new_id`.
        partition: Digest of its partition.
        exact_key: 32 bytes; at most one live entry has it.
        text: Last user turn; None when exact only or when texts are not kept.
        vector: Unit vector, float32 [dimensions]; None when exact only.
        class_id: Entries with the same class have equivalent answers.
        answer_id: The answer this entry serves.
        created_s: Unix time.
        expires_s: Unix time after which it is never served.
        principal: Who caused it, hashed; None when unknown.
    """

    entry_id: int
    partition: bytes
    exact_key: bytes
    text: str | None
    vector: Vector | None
    class_id: int
    answer_id: int
    created_s: float
    expires_s: float
    principal: bytes | None


@dataclass(frozen=True, slots=True)
class ObservationRecord:
    """One label: was the candidate answer equivalent to the model's own?

    Attributes:
        observation_id: Unique among all writers, from :func:`new_id`.
        entry_id: Nearest entry of the candidate's class.
        features: Evidence the policy saw, float32 [n]; see the policy.
        label: Whether the candidate was right.
        propensity: Probability with which this request was explored, in (0, 1].
        source: Judge that gave the label, or ``feedback``.
    """

    observation_id: int
    partition: bytes
    entry_id: int
    features: Vector
    label: bool
    propensity: float
    source: str
    principal: bytes | None


Record = PartitionRecord | AnswerRecord | EntryRecord | ObservationRecord


@dataclass(frozen=True, slots=True)
class Removal:
    """Entries that are gone: evicted, expired or invalidated."""

    entry_ids: tuple[int, ...]


Change = Record | Removal
