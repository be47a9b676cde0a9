# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""The requests of a step, divided into micro-batches.

Nothing belongs to a micro-batch from one step to the next: keys and values are in the
paged cache. So the requests are divided anew each step, and those that ended or came
leave no gaps.

Source: MoE-Lightning (2411.11217), appendix A.2, algorithm 2; here with the tokens that
a step reads in place of prompt lengths, and without its fixed length of answers.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """All requests of a step, in vLLM's order.

    Attributes:
        starts: Where the tokens of each begin, int32 [requests + 1].
        lengths: Tokens of each with those of this step, int32 [requests].
        table: Blocks of each, int32 [requests, blocks].
        block_tokens: Of the cache.
    """

    starts: np.ndarray
    lengths: np.ndarray
    table: np.ndarray
    block_tokens: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some of the requests.

    Attributes:
        rows: Their tokens in the step's order, int64 [tokens].
        starts: Where the tokens of each request begin, int32 [requests + 1].
        lengths: Tokens of each request with those of this step, int32 [requests].
        table: Blocks of each, int32 [requests, blocks].
        slots: Of the cache, where each token's key and value go, int64 [tokens].
        decodes: The first so many requests have one new token.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    table: Tensor
    slots: Tensor
    decodes: int


def divide(step: Step, parts: int) -> list[MicroBatch]:
    """Return micro-batches that take about as long as each other.

    The largest request goes first, each to the lightest part. What a request weighs is
    the tokens that its attention reads and those that the experts compute.

    Args:
        step: All requests; at least one.
        parts: At most so many; there are fewer if there are fewer requests.
    """
    new = np.diff(step.starts)
    groups = _inseparable(step, new)
    parts = max(1, min(parts, len(groups)))
    each = step.lengths.astype(np.int64) + new * _NEW_TOKEN
    weights = np.array([each[group].sum() for group in groups])
    lightest = [(0, part) for part in range(parts)]
    members: list[list[int]] = [[] for _ in range(parts)]
    for group in np.argsort(-weights, kind="stable").tolist():
        weight, part = heapq.heappop(lightest)
        members[part] += groups[group]
        heapq.heappush(lightest, (weight + int(weights[group]), part))
    return [_micro_batch(step, new, sorted(part)) for part in members]


def _inseparable(step: Step, new: np.ndarray) -> list[list[int]]:
    """Requests, those together that read what another one writes in this step.

    vLLM admits a request on a prefix that a request of the same step only computes now.
    Within a micro-batch all keys and values are written before any is read.
    """
    requests = len(step.lengths)
    writers: dict[int, int] = {}
    for request in np.flatnonzero(new > 1).tolist():
        first = (step.lengths[request] - new[request]) // step.block_tokens
        last = -(-step.lengths[request] // step.block_tokens)
        for block in step.table[request, first:last].tolist():
            writers.setdefault(block, request)
    if not writers:
        return [[request] for request in range(requests)]
    leader = list(range(requests))
    for request in range(requests):
        read = -(-(step.lengths[request] - new[request]) // step.block_tokens)
        for block in step.table[request, :read].tolist():
            writer = writers.get(block, request)
            # Both groups become one.
            old, kept = leader[request], leader[writer]
            if old != kept:
                leader = [kept if each == old else each for each in leader]
    groups: dict[int, list[int]] = {}
    for request, mine in enumerate(leader):
        groups.setdefault(mine, []).append(request)
    return list(groups.values())


# A new token takes as long as reading so many old ones; measured roughly, and only the
# balance of micro-batches depends on it.
_NEW_TOKEN = 64


def _micro_batch(step: Step, new: np.ndarray, requests: list[int]) -> MicroBatch:
    # Those with one new token first.
    chosen = np.array(requests)
    chosen = chosen[np.argsort(new[chosen] != 1, kind="stable")]
    counts = new[chosen]
    starts = np.zeros(len(chosen) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    owner = np.repeat(np.arange(len(chosen)), counts)
    rows = np.repeat(step.starts[chosen], counts) + within
    lengths = step.lengths[chosen].astype(np.int32)
    positions = (lengths - counts)[owner] + within
    table = np.ascontiguousarray(step.table[chosen], np.int32)
    block = table[owner, positions // step.block_tokens].astype(np.int64)
    slots = block * step.block_tokens + positions % step.block_tokens
    return MicroBatch(
        rows=torch.from_numpy(rows.astype(np.int64)),
        starts=torch.from_numpy(starts),
        lengths=torch.from_numpy(lengths),
        table=torch.from_numpy(table),
        slots=torch.from_numpy(slots),
        decodes=int((counts == 1).sum()),
    )
