# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels that choose the tokens whose codes of signs agree most.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.

Three kernels choose in linear time, whatever the length, without waiting for the host:

1. ``_scan``, in triton_scan.py, finds the distances of each part of a sequence and
   counts how often each occurs.
2. ``_plan`` adds the counts of all parts up, which gives the largest distance
   that is still read, how many tokens at that distance are too many, and where each
   part's positions go.
3. ``_choose`` writes each part's positions there, all in ascending order.

Sequences that are read whole are left out: their positions are 0, 1, 2, and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_sequence import limits, this_sequence

if TYPE_CHECKING:
    from .triton_workspace import SignBuffers, Workspace


@triton.jit
def _plan(
    tokens: tl.tensor,
    chosen: tl.tensor,
    counts: tl.tensor,
    plans: tl.tensor,
    sink: int,
    recent: int,
    KV_HEADS: tl.constexpr,
    BINS: tl.constexpr,
    ROOM: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads."""
    length, read, first, last, size = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    pair = tl.program_id(0).to(tl.int64) * KV_HEADS + tl.program_id(1)
    counts += pair * PARTS * BINS
    plans += pair * PARTS * 3
    bin = tl.arange(0, ROOM)
    total = tl.zeros((ROOM,), tl.int32)
    for part in range(PARTS):
        total += tl.load(counts + part * BINS + bin, mask=bin < BINS, other=0)
    up_to = tl.cumsum(total, 0)
    best = read - first - (length - last)
    # The smallest distance with enough tokens at or below it.
    threshold = tl.sum((up_to < best).to(tl.int32), axis=0)
    # Of those at the threshold the oldest are left out.
    surplus = tl.sum(tl.where(bin == threshold, up_to, 0), axis=0) - best
    nearer = 0
    equal = 0
    for part in range(PARTS):
        begin = tl.minimum(part * size, length)
        always = tl.minimum(begin, first) + tl.maximum(begin - last, 0)
        tl.store(plans + part * 3, threshold)
        tl.store(plans + part * 3 + 1, tl.maximum(surplus - equal, 0))
        at = always + nearer + tl.maximum(equal - surplus, 0)
        tl.store(plans + part * 3 + 2, at)
        count = tl.load(counts + part * BINS + bin, mask=bin < BINS, other=0)
        nearer += tl.sum(tl.where(bin < threshold, count, 0), axis=0)
        equal += tl.sum(tl.where(bin == threshold, count, 0), axis=0)


@triton.jit
def _choose(
    tokens: tl.tensor,
    chosen: tl.tensor,
    distances: tl.tensor,
    plans: tl.tensor,
    positions: tl.tensor,
    sink: int,
    recent: int,
    KV_HEADS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads, parts."""
    length, read, first, last, size = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    begin = tl.program_id(2) * size
    pair = tl.program_id(0).to(tl.int64) * KV_HEADS + tl.program_id(1)
    plans += (pair * PARTS + tl.program_id(2)) * 3
    threshold = tl.load(plans)
    surplus = tl.load(plans + 1)
    positions += pair * MAX_CHOSEN + tl.load(plans + 2)
    distances += pair * MAX_TOKENS
    for start in range(begin, tl.minimum(begin + size, length), TILE):
        token = start + tl.arange(0, TILE)
        valid = token < length
        distance = tl.load(distances + token, mask=valid, other=0).to(tl.int32)
        # Nearer than any code can be: those that are always read.
        free = (token >= first) & (token < last)
        distance = tl.where(free, distance, -1)
        tie = (valid & (distance == threshold)).to(tl.int32)
        late = tl.cumsum(tie, 0) > surplus
        near = (distance < threshold) | ((distance == threshold) & late)
        keep = (valid & near).to(tl.int32)
        place = tl.cumsum(keep, 0) - 1
        tl.store(positions + place, token, mask=keep != 0)
        positions += tl.sum(keep, axis=0)
        surplus -= tl.sum(tie, axis=0)


def choose(
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
    buffers: SignBuffers,
) -> None:
    """Write the positions to read, by what ``triton_scan.scan`` wrote.

    Args:
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, int32 [sequences].
        budget: Which tokens are always read.
        workspace: With room for the sequences.
        buffers: Of the workspace.
    """
    _, kv_heads, parts, bins = buffers.counts.shape
    always = budget.sink_tokens, budget.recent_tokens
    room = triton.next_power_of_2(bins)
    _plan[(len(tokens), kv_heads)](
        *(tokens, chosen, buffers.counts, buffers.plans),
        *always,
        BINS=bins,
        ROOM=room,
        num_warps=4 if room <= 2048 else 16,
        **limits(workspace),
    )
    _choose[(len(tokens), kv_heads, parts)](
        *(tokens, chosen, workspace.distances, buffers.plans, workspace.positions),
        *always,
        **limits(workspace),
    )
