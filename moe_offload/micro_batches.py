# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Which requests form a micro-batch, so that CPU attention takes as long for each.

Once for a fixed batch, as published, and continuously for a server.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate


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
    _check_sizes(micro_batches, requests_per_micro_batch)
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


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Rows of a batch, put so that each micro-batch is a range of them.

    Attributes:
        rows: Former row of each row.
        bounds: First row of each micro-batch, and the end. Empty ones are left out.
    """

    rows: tuple[int, ...]
    bounds: tuple[int, ...]


class Assignment:
    """Which micro-batch each running request of a server belongs to.

    Published is a batch that begins and ends as one. Here requests come and go, and
    their weight is the context that attention reads now. A move costs nothing: the
    cache stays where it is, only rows are put in another order.

    Args:
        micro_batches: How many.
        requests_per_micro_batch: At most so many.
        threshold: Heaviest micro-batch over the mean from which :meth:`rebalance`
            acts.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, micro_batches: int, requests_per_micro_batch: int, threshold: float = 1.1
    ) -> None:
        _check_sizes(micro_batches, requests_per_micro_batch)
        if not threshold >= 1.0:
            wrong = (
                f"rebalance from {threshold!r} times the mean on, which is always so"
            )
            raise _error(wrong, "Give at least 1")
        self._cap = requests_per_micro_batch
        self._threshold = threshold
        self._tokens: dict[Hashable, int] = {}
        self._part: dict[Hashable, int] = {}
        self._weights = [0] * micro_batches
        self._counts = [0] * micro_batches

    def __len__(self) -> int:
        return len(self._part)

    @property
    def weights_tokens(self) -> tuple[int, ...]:
        """Context of each micro-batch."""
        return tuple(self._weights)

    @property
    def counts(self) -> tuple[int, ...]:
        """Requests of each micro-batch."""
        return tuple(self._counts)

    @property
    def imbalance(self) -> float:
        """Heaviest micro-batch over the mean of those that could have a request."""
        total, parts = sum(self._weights), min(len(self._weights), len(self._part))
        return max(self._weights) * parts / total if total else 1.0

    def add(self, key: Hashable, context_tokens: int) -> int:
        """Put a request into the lightest micro-batch with room; return which.

        Raises:
            ValueError: It is there already, or all micro-batches are full.
        """
        if key in self._part:
            raise _error(f"add request {key!r}, which is there already", "Remove it")
        if len(self) == len(self._counts) * self._cap:
            wrong = f"add request {key!r}, but all {len(self)} places are taken"
            raise _error(wrong, "Allow more requests per micro-batch")
        part = _place(context_tokens, self._weights, self._counts, self._cap)
        self._tokens[key], self._part[key] = context_tokens, part
        return part

    def remove(self, key: Hashable) -> None:
        """Forget a request that ended.

        Raises:
            ValueError: It is not there.
        """
        part = self.micro_batch(key)
        self._weights[part] -= self._tokens.pop(key)
        self._counts[part] -= 1
        del self._part[key]

    def grow(self, key: Hashable, tokens: int = 1) -> None:
        """Note that a request's context is longer now.

        Raises:
            ValueError: It is not there.
        """
        self._weights[self.micro_batch(key)] += tokens
        self._tokens[key] += tokens

    def rebalance(self) -> int:
        """Distribute all requests anew where they are uneven; return how many moved.

        Nothing moves where that would not make the heaviest micro-batch lighter.
        """
        if self.imbalance <= self._threshold:
            return 0
        parts = len(self._weights)
        weights, counts = [0] * parts, [0] * parts
        longest_first = sorted(self._tokens, key=lambda key: -self._tokens[key])
        chosen = {
            key: _place(self._tokens[key], weights, counts, self._cap)
            for key in longest_first
        }
        if max(weights) >= max(self._weights):
            return 0
        moved = sum(self._part[key] != part for key, part in chosen.items())
        self._part, self._weights, self._counts = chosen, weights, counts
        return moved

    def order(self, keys: Sequence[Hashable]) -> RowOrder:
        """Return the order of a batch's rows that makes micro-batches contiguous.

        Args:
            keys: The request of each row. Requests without a row are skipped.

        Raises:
            ValueError: A request is not there.
        """
        parts = [self.micro_batch(key) for key in keys]
        rows = sorted(range(len(parts)), key=parts.__getitem__)  # stable
        sizes = [parts.count(part) for part in sorted(set(parts))]
        return RowOrder(tuple(rows), tuple(accumulate(sizes, initial=0)))

    def micro_batch(self, key: Hashable) -> int:
        """Return the micro-batch of a request.

        Raises:
            ValueError: It is not there.
        """
        if key not in self._part:
            raise _error(f"find request {key!r}, which is not there", "Add it first")
        return self._part[key]


def _place(tokens: int, weights: list[int], counts: list[int], cap: int) -> int:
    """Put a request into the lightest micro-batch with room; return which."""
    rooms = (part for part, count in enumerate(counts) if count < cap)
    part = min(rooms, key=lambda part: (weights[part], counts[part]))
    weights[part] += tokens
    counts[part] += 1
    return part


def _check_sizes(micro_batches: int, requests_per_micro_batch: int) -> None:
    if micro_batches < 1 or requests_per_micro_batch < 1:
        wrong = f"form {micro_batches!r} micro-batches of {requests_per_micro_batch!r}"
        raise _error(f"{wrong} requests, which holds none", "Give at least 1 of each")


def _error(asked: str, advice: str) -> ValueError:
    return ValueError(f"moe_offload: asked to {asked}. {advice}.")
