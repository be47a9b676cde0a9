# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels for the attention of one new token of each sequence.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.

Each sequence and KV head has several programs, which share its chosen tokens;
triton_merge.py joins what they found. Drawn tokens stand for others, too, so the
logarithm of their number is added to their dot products. Numbers are multiplied in
TF32 where the cache has 16 bits: keys, values and queries fit into it without loss,
only the weights are rounded, to 10 bits. Sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_merge import merge
from .triton_sequence import limits, read_tokens, rows_of
from .triton_workspace import LevelBuffers, Workspace

# Chosen tokens at once.
_TILE = 64
# Rows of the smallest matrix that tensor cores multiply; query heads fill some.
_ROWS = tl.constexpr(16)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    query: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    tokens: tl.tensor,
    chosen: tl.tensor,
    positions: tl.tensor,
    drawn_rows: tl.tensor,
    extras: tl.tensor,
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
    MAX_ROWS: tl.constexpr,
    DRAWN: tl.constexpr,
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
    pair = sequence.to(tl.int64) * KV_HEADS + kv_head
    # Sequences that are read whole have no list of positions.
    sparse = read < length
    if DRAWN:
        read = tl.where(sparse, tl.load(drawn_rows + pair), read)
        extras += pair * MAX_ROWS
    positions += pair * MAX_ROWS
    listed = tl.where(sparse, read, 0)
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

    dim = tl.arange(0, ROOM)
    inside = dim < HEAD_DIM
    both = mine[:, None] & inside[None, :]
    asked = query + sequence * query_sequence + head[:, None] * query_head
    asked = tl.load(asked + dim[None, :], mask=both, other=0.0).to(tl.float32)
    blocks += sequence * block_sequence

    top = tl.full((_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((_ROWS,), tl.float32)
    result = tl.zeros((_ROWS, ROOM), tl.float32)
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        valid = place < end
        known = place < listed
        token = tl.load(positions + place, mask=known & valid, other=0)
        row = rows_of(
            tl.where(known, token, place),
            valid,
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
        dots *= scale * _LOG2_E
        if DRAWN:
            dots += tl.load(extras + place, mask=known & valid, other=0.0)[None, :]
        dots = tl.where(valid[None, :], dots, float("-inf"))
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
    kv_heads, parts = cache.shape[1], workspace.tops.shape[2]
    own = workspace.buffers
    _attend[(sequences, kv_heads, parts)](
        *(query, cache, blocks, tokens, chosen, workspace.positions),
        *((own.rows, own.extras) if isinstance(own, LevelBuffers) else (None, None)),
        *(workspace.tops, workspace.totals, workspace.sums),
        *(scale, budget.sink_tokens, budget.recent_tokens),
        *query.stride()[:2],
        *cache.stride()[:3],
        blocks.stride(0),
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        ROOM=triton.next_power_of_2(head_dim),
        BLOCK_TOKENS=cache.shape[2],
        MAX_ROWS=workspace.positions.shape[2],
        DRAWN=isinstance(own, LevelBuffers),
        ALIGNED=16 // cache.dtype.itemsize,
        PRECISION="tf32x3" if query.dtype == torch.float32 else "tf32",
        **{**limits(workspace), "TILE": _TILE},
    )
    merge(workspace, out)
