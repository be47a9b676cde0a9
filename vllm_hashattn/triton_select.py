# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels that find distances of codes and choose the tokens to read.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.

Three kernels choose in linear time, whatever the length, without waiting for the host:

1. ``_scan`` splits each sequence into parts. Each writes the distances of its
   tokens and counts how often each distance occurs among those not always read.
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
from .triton_encode import code_distances

if TYPE_CHECKING:
    from .triton_decode import Workspace

# Tokens at once; parts begin at multiples of it.
_TILE = 256


@triton.jit
def read_tokens(
    length: tl.tensor,
    chosen: tl.tensor,
    sink: int,
    recent: int,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
) -> tl.tensor:
    """How many tokens of a sequence are read, those always read included.

    All of them where the buffers have no room for a choice: reading more than was asked
    for gives a better answer, and cutting the choice short a wrong one.
    """
    always = tl.minimum(sink + recent, length)
    read = tl.minimum(tl.maximum(chosen, always), length)
    fits = (length <= MAX_TOKENS) & (read <= MAX_CHOSEN)
    return tl.where(fits, read, length)


@triton.jit
def _sequence(
    tokens: tl.tensor,
    chosen: tl.tensor,
    sink: int,
    recent: int,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Length, tokens read, first and last not always read, tokens of each part."""
    length = tl.load(tokens + tl.program_id(0))
    wanted = tl.load(chosen + tl.program_id(0))
    read = read_tokens(length, wanted, sink, recent, MAX_TOKENS, MAX_CHOSEN)
    first = tl.minimum(sink, length)
    last = tl.maximum(length - recent, first)
    return length, read, first, last, tl.cdiv(tl.cdiv(length, PARTS), TILE) * TILE


@triton.jit
def _scan(
    codes: tl.tensor,
    asked: tl.tensor,
    blocks: tl.tensor,
    tokens: tl.tensor,
    chosen: tl.tensor,
    distances: tl.tensor,
    counts: tl.tensor,
    sink: int,
    recent: int,
    code_block: int,
    code_head: int,
    code_token: int,
    block_sequence: int,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads, parts."""
    length, read, first, last, size = _sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.program_id(2) * size
    pair = sequence.to(tl.int64) * KV_HEADS + head
    asked += pair * GROUP * WORDS
    distances += pair * MAX_TOKENS
    counts += (pair * PARTS + tl.program_id(2)) * (GROUP * WORDS * 32 + 1)
    for start in range(begin, tl.minimum(begin + size, length), TILE):
        token = start + tl.arange(0, TILE)
        valid = token < length
        block = tl.load(
            blocks + sequence * block_sequence + token // BLOCK_TOKENS,
            mask=valid,
            other=0,
        ).to(tl.int64)
        row = block * code_block + (token % BLOCK_TOKENS) * code_token
        # Codes begin at multiples of four words, so that one load fetches four.
        row = tl.multiple_of(row + head * code_head, 4)
        found = code_distances(codes + row, valid, asked, GROUP, WORDS, TILE)
        tl.store(distances + token, found.to(tl.int16), mask=valid)
        free = (token >= first) & (token < last)
        # Atomic and not tl.histogram, which keeps all bins in registers: with 16 heads
        # and 512 bits these are 8193. Only this program adds to these counts.
        tl.atomic_add(counts + found, 1, mask=free, sem="relaxed")


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
    length, read, first, last, size = _sequence(
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
    length, read, first, last, size = _sequence(
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


def scan(
    codes: Tensor,
    asked: Tensor,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
) -> None:
    """Compare the codes of queries with cached ones; writes distances and counts.

    Args:
        codes: Of the cache, int32 [blocks, kv heads, block_tokens, words].
        asked: Of the queries, int32 [sequences, query heads, words], contiguous.
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, int32 [sequences].
        budget: Which tokens are always read.
        workspace: With room for the sequences.
    """
    sequences, heads, words = asked.shape
    _, kv_heads, parts, _ = workspace.counts.shape
    workspace.counts[:sequences].zero_()
    _scan[(sequences, kv_heads, parts)](
        *(codes, asked, blocks, tokens, chosen),
        *(workspace.distances, workspace.counts),
        *(budget.sink_tokens, budget.recent_tokens),
        *codes.stride()[:3],
        blocks.stride(0),
        GROUP=heads // kv_heads,
        WORDS=words,
        BLOCK_TOKENS=codes.shape[2],
        **_limits(workspace),
    )


def choose(
    tokens: Tensor, chosen: Tensor, budget: Budget, workspace: Workspace
) -> None:
    """Write the positions to read, by what :func:`scan` wrote.

    Args:
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, int32 [sequences].
        budget: Which tokens are always read.
        workspace: With room for the sequences.
    """
    _, kv_heads, parts, bins = workspace.counts.shape
    always = budget.sink_tokens, budget.recent_tokens
    room = triton.next_power_of_2(bins)
    _plan[(len(tokens), kv_heads)](
        *(tokens, chosen, workspace.counts, workspace.plans),
        *always,
        BINS=bins,
        ROOM=room,
        num_warps=4 if room <= 2048 else 16,
        **_limits(workspace),
    )
    _choose[(len(tokens), kv_heads, parts)](
        *(tokens, chosen, workspace.distances, workspace.plans, workspace.positions),
        *always,
        **_limits(workspace),
    )


def _limits(workspace: Workspace) -> dict[str, int]:
    _, kv_heads, parts, _ = workspace.counts.shape
    return {
        "KV_HEADS": kv_heads,
        "MAX_TOKENS": workspace.distances.shape[2],
        "MAX_CHOSEN": workspace.positions.shape[2],
        "PARTS": parts,
        "TILE": _TILE,
    }
