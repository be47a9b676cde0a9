# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""What the cache is asked and what it answers; no vLLM types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["off", "exact", "semantic"]
Stage = Literal["exact", "semantic", "coalesced"]


@dataclass(frozen=True, slots=True)
class Partition:
    """Requests that may share answers; two partitions never do.

    Attributes:
        digest: 32 bytes over everything that must be equal: ``facts`` and the whole
            rendered prompt apart from the last user turn.
        facts: Readable part, for explanations and invalidation: ``namespace``,
            ``model``, ``weights``, ``lora``, ``protocol``, ``sampling``,
            ``cache_salt`` (hashed), ``tenant`` (hashed).
    """

    digest: bytes
    facts: Mapping[str, str] = field(compare=False)


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """One request as the cache sees it.

    Attributes:
        partition: Where answers may come from and go to.
        exact_key: 32 bytes over the partition and the semantic text or, without one,
            the whole prompt; equal keys mean the same request.
        text: The last user turn, or None when only exact matches are allowed.
        mode: What the operator and the request allow; never ``off`` here.
        why_exact: Reason for ``text`` being None, for explanations; empty otherwise.
        delta: Error budget of this request, at most the operator's; None: operator's.
        ttl_s: Lifetime of what is stored, at most the operator's; None: operator's.
        store: Whether the answer may be stored.
        principal: Who asks, hashed, for quotas on labels; None when unknown.
    """

    partition: Partition
    exact_key: bytes
    text: str | None
    mode: Mode
    why_exact: str = ""
    delta: float | None = None
    ttl_s: float | None = None
    store: bool = True
    principal: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer of the model, in the form that vLLM hands to its servers.

    Attributes:
        text: Detokenised text, special tokens handled as the request asked.
        token_ids: Generated tokens.
        stop_reason: Stop string or token that ended it, None for end of sequence.
        generation_s: Time the model took, in seconds; what a hit saves.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: int | str | None
    generation_s: float


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer served from the cache.

    Attributes:
        stage: Which stage matched.
        similarity: Cosine to the nearest entry of the answer's class; 1 for exact.
        probability: Estimated probability that the answer is right; 1 for exact.
        age_s: Age of the entry served, in seconds.
    """

    answer: Answer
    stage: Stage
    entry_id: int
    similarity: float
    probability: float
    age_s: float
