# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which requests of a fixed batch form a micro-batch, as published.

A server divides the requests of every step anew instead: see ``step_batch``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """A request that waits for a batch.

    Attributes:
        key: Whatever tells it from others.
        prompt_tokens: Its length.
    """

    key: Hashable
    prompt_tokens: int


def balanced(
    requests: Sequence[Request],
    micro_batches: int,
    requests_per_micro_batch: int,
    generated_tokens: int,
    cache_tokens: int,
) -> tuple[list[list[Request]], list[Request]]:
    """Form the micro-batches of a batch that generates equally many tokens for all.

    Source: MoE-Lightning (2411.11217), alg. 2, exactly: the longest request goes to
    the micro-batch with the fewest prompt tokens, which must have room for all of the
    request's tokens. Micro-batches without a request are left out.

    Args:
        requests: That wait.
        micro_batches: At most so many.
        requests_per_micro_batch: At most so many.
        generated_tokens: Of each request.
        cache_tokens: Keys and values that one micro-batch may have in the cache.

    Returns:
        Micro-batches, full ones first in the order in which they filled, and the
        requests for which there was no room, for the next batch.

    Raises:
        ValueError: A number is out of range.
    """
    if micro_batches < 1 or requests_per_micro_batch < 1:
        raise ValueError(
            f"moe_offload: asked to form {micro_batches!r} micro-batches of "
            f"{requests_per_micro_batch!r} requests, which holds none. Give at least 1 "
            "of each."
        )
    parts: list[list[Request]] = [[] for _ in range(micro_batches)]
    sums = [0] * micro_batches
    full: list[list[Request]] = []
    left_out: list[Request] = []
    for each in sorted(requests, key=lambda each: -each.prompt_tokens):
        if not parts:
            left_out.append(each)
            continue
        lightest = min(range(len(parts)), key=sums.__getitem__)
        part = parts[lightest]
        generated = (1 + len(part)) * generated_tokens
        if sums[lightest] + each.prompt_tokens + generated > cache_tokens:
            left_out.append(each)
            continue
        part.append(each)
        sums[lightest] += each.prompt_tokens
        if len(part) == requests_per_micro_batch:
            full.append(parts.pop(lightest))
            sums.pop(lightest)
    return full + [part for part in parts if part], left_out
