# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels for the attention of one new token of each sequence.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.

Each sequence and KV head has several programs, which share its chosen tokens; the
second kernel joins what they found. Numbers are multiplied in TF32 where the cache has
16 bits: keys, values and queries fit into it without loss, only the weights are
rounded, to 10 bits. Sums are in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_select import read_tokens

if TYPE_CHECKING:
    from .triton_decode import Workspace

# Chosen tokens at once.
_TILE = 64
# Rows of the smallest matrix that tensor cores multiply; query heads fill some.
_ROWS = tl.constexpr(16)
_LOWEST = tl.constexpr(-3.0e38)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(
    place: tl.tensor,
    valid: tl.tensor,
    listed: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    head: int,
    row_block: int,
    row_token: int,
    BLOCK_TOKENS: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """Where in the cache the rows at `place` among the read ones begin, int64."""
    known = valid & (place < listed)
    token = tl.where(known, tl.load(positions + place, mask=known, other=0), place)
    block = tl.load(blocks + token // BLOCK_TOKENS, mask=valid, other=0).to(tl.int64)
    row = block * row_block + (token % BLOCK_TOKENS) * row_token + head
    # So that a load fetches 16 bytes.
    return tl.multiple_of(row, ALIGNED)


@triton.jit
def _attend(
    query: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    tokens: tl.tensor,
    chosen: tl.tensor,
    positions: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    scale: float,
    sink: int,
    recent: int,
    query_sequence: int,
    query_head: int,
    row_block: int,
    row_head: int,
    row_token: int,
    block_sequence: int,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads, parts."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(tokens + sequence)
    wanted = tl.load(chosen + sequence)
    read = read_tokens(length, wanted, sink, recent, MAX_TOKENS, MAX_CHOSEN)
    size = tl.cdiv(tl.cdiv(read, PARTS), TILE) * TILE
    begin = part * size
    end = tl.minimum(begin + size, read)

    member = tl.arange(0, _ROWS)
    head = kv_head * GROUP + member
    mine = member < GROUP
    out = (sequence.to(tl.int64) * KV_HEADS * GROUP + head) * PARTS + part
    if begin >= end:
        # Nothing to read; `sums` keeps what it holds, and the merge leaves it out.
        tl.store(totals + out, tl.zeros((_ROWS,), tl.float32), mask=mine)
        tl.store(tops + out, tl.full((_ROWS,), float("-inf"), tl.float32), mask=mine)
        return

    # Sequences that are read whole have no list of positions.
    listed = tl.where(read < length, read, 0)
    dim = tl.arange(0, ROOM)
    inside = dim < HEAD_DIM
    both = mine[:, None] & inside[None, :]
    asked = query + sequence * query_sequence + head[:, None] * query_head
    asked = tl.load(asked + dim[None, :], mask=both, other=0.0).to(tl.float32)
    blocks += sequence * block_sequence
    positions += (sequence.to(tl.int64) * KV_HEADS + kv_head) * MAX_CHOSEN

    top = tl.full((_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((_ROWS,), tl.float32)
    result = tl.zeros((_ROWS, ROOM), tl.float32)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        valid = place < end
        row = _rows(
            place,
            valid,
            listed,
            positions,
            blocks,
            kv_head * row_head,
            row_block,
            row_token,
            BLOCK_TOKENS,
            ALIGNED,
        )
        # What is not read may be anything, not-a-numbers too, so it counts as zero.
        there = valid[:, None] & inside[None, :]
        key = rows + row[:, None] + dim[None, :]
        keys = tl.load(key, mask=there, other=0.0).to(tl.float32)
        dots = tl.dot(asked, tl.trans(keys), input_precision=PRECISION)
        dots = tl.where(valid[None, :], dots * (scale * _LOG2_E), float("-inf"))
        highest = tl.maximum(top, tl.max(dots, axis=1))
        shrink = tl.exp2(top - highest)
        weights = tl.exp2(dots - highest[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        values = tl.load(key + HEAD_DIM, mask=there, other=0.0).to(tl.float32)
        result = result * shrink[:, None]
        result = tl.dot(weights, values, result, input_precision=PRECISION)
        top = highest

    tl.store(tops + out, top, mask=mine)
    tl.store(totals + out, total, mask=mine)
    tl.store(sums + out[:, None] * HEAD_DIM + dim[None, :], result, mask=both)


@triton.jit
def _merge(
    tops: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    out_sequence: int,
    out_head: int,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROOM: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Grid: sequences, query heads. Zeros for a sequence of no tokens."""
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    part = (sequence.to(tl.int64) * HEADS + head) * PARTS + tl.arange(0, PARTS)
    dim = tl.arange(0, ROOM)
    inside = dim < HEAD_DIM
    top = tl.load(tops + part)
    total = tl.load(totals + part)
    used = total > 0.0
    # Finite even if no part has read anything; parts that have not weigh nothing.
    highest = tl.maximum(tl.max(top, axis=0), _LOWEST)
    by = tl.exp2(top - highest)
    all_weights = tl.sum(by * total, axis=0)
    parts = tl.load(
        sums + part[:, None] * HEAD_DIM + dim[None, :],
        mask=used[:, None] & inside[None, :],
        other=0.0,
    )
    result = tl.sum(parts * by[:, None], axis=0)
    result = result / tl.where(all_weights != 0.0, all_weights, 1.0)
    place = out + sequence * out_sequence + head * out_head + dim
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


def attend(
    cache: Tensor,
    query: Tensor,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    scale: float,
    workspace: Workspace,
    out: Tensor,
) -> None:
    """Attention over the positions in the workspace, or over all tokens.

    Args:
        cache: [blocks, kv heads, block_tokens, width]; a key and its value in front.
        query: [sequences, query heads, head_dim], the last dimension contiguous.
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read, int32 [sequences].
        budget: Which tokens are always read.
        scale: Of the dot products.
        workspace: With room for the sequences.
        out: Written; like `query`.
    """
    sequences, heads, head_dim = query.shape
    _, kv_heads, parts, _ = workspace.counts.shape
    found = workspace.tops, workspace.totals, workspace.sums
    room = triton.next_power_of_2(head_dim)
    _attend[(sequences, kv_heads, parts)](
        *(query, cache, blocks, tokens, chosen, workspace.positions, *found),
        *(scale, budget.sink_tokens, budget.recent_tokens),
        *query.stride()[:2],
        *cache.stride()[:3],
        blocks.stride(0),
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        ROOM=room,
        BLOCK_TOKENS=cache.shape[2],
        MAX_TOKENS=workspace.distances.shape[2],
        MAX_CHOSEN=workspace.positions.shape[2],
        PARTS=parts,
        TILE=_TILE,
        ALIGNED=16 // cache.dtype.itemsize,
        PRECISION="tf32x3" if query.dtype == torch.float32 else "tf32",
    )
    _merge[(sequences, heads)](
        *(*found, out),
        *out.stride()[:2],
        HEADS=heads,
        HEAD_DIM=head_dim,
        ROOM=room,
        PARTS=parts,
    )
