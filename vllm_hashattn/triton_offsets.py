# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernel that estimates the sum of the weights of all tokens from a few.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels. The
numbers are those of weighted_choice.py. The sample has little more than a thousand
tokens however long a sequence is, so one program reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_levels import MEMBERS, level_dots, rounded_signed
from .triton_sequence import level_limits, rows_of, this_sequence

if TYPE_CHECKING:
    from .triton_workspace import LevelBuffers, Workspace

_OCTAVE = tl.constexpr(32.0)
# Tokens of a sampled group, and of how many groups one is sampled: a power of two.
_SAMPLE_GROUP = tl.constexpr(16)
_FEWEST_GROUPS = tl.constexpr(8)
_MOST_SAMPLED = tl.constexpr(1024)
# Enough for as many tokens as 32 bits can count.
_DOUBLINGS = tl.constexpr(18)
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _estimate(
    codes: tl.tensor,
    asked: tl.tensor,
    steps: tl.tensor,
    share: tl.tensor,
    blocks: tl.tensor,
    tokens: tl.tensor,
    chosen: tl.tensor,
    offsets: tl.tensor,
    sink: int,
    recent: int,
    code_block: int,
    code_head: int,
    code_token: int,
    block_sequence: int,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads."""
    length, read, first, last, _ = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    head = tl.program_id(1)
    pair = tl.program_id(0).to(tl.int64) * KV_HEADS + head
    member = tl.arange(0, MEMBERS)
    mine = member < GROUP
    blocks += tl.program_id(0) * block_sequence
    asked += pair * GROUP * CHANNELS
    by = tl.load(steps + pair * GROUP + member, mask=mine, other=0.0) / _OCTAVE

    stride = tl.full((), _FEWEST_GROUPS, tl.int32)
    for _ in range(_DOUBLINGS):
        more = (last - first) // stride > _MOST_SAMPLED
        stride = tl.where(more, stride * 2, stride)
    run = stride * _SAMPLE_GROUP
    # As many groups as fill a tile are looked at together.
    place = tl.arange(0, TILE)
    place = place // _SAMPLE_GROUP * run + place % _SAMPLE_GROUP
    highest = tl.full((MEMBERS,), _LOWEST, tl.float32)
    total = tl.zeros((MEMBERS,), tl.float32)
    begin = first // run * run + run // 2
    for start in range(begin, last, run * (TILE // _SAMPLE_GROUP)):
        token = start + place
        valid = (token >= first) & (token < last)
        row = rows_of(
            token,
            valid,
            blocks,
            head * code_head,
            code_block,
            code_token,
            BLOCK_TOKENS,
            4,
        )
        dots = level_dots(codes + row, valid, asked, GROUP, CHANNELS, TILE)
        octaves = dots.to(tl.float32) * by[None, :]
        octaves = tl.where(valid[:, None], octaves, _LOWEST)
        top = tl.maximum(highest, tl.max(octaves, axis=0))
        weights = tl.where(valid[:, None], tl.exp2(octaves - top[None, :]), 0.0)
        total = total * tl.exp2(highest - top) + tl.sum(weights, axis=0)
        highest = top
    known = total > 0.0
    of_sum = highest + tl.log2(tl.where(known, total * stride, 1.0))
    of_sum = tl.where(known, of_sum, 0.0)
    part = tl.load(share + head * GROUP + member, mask=mine, other=1.0)
    offset = rounded_signed((of_sum - tl.log2(part)) * _OCTAVE)
    tl.store(offsets + pair * GROUP + member, offset, mask=mine)


def find_offsets(
    codes: Tensor,
    share: Tensor,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
    buffers: LevelBuffers,
) -> None:
    """Estimate the sums of weights; writes the offsets of queries.

    Args:
        codes: Of the cache, int32 [blocks, kv heads, block_tokens, words].
        share: Of query heads, float32 [query heads]; see scorer_levels.py.
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read on average, int32 [sequences].
        budget: Which tokens are always read.
        workspace: With room for the sequences.
        buffers: Of the workspace, with channels and steps of queries.
    """
    _estimate[(len(tokens), codes.shape[1])](
        *(codes, buffers.asked, buffers.steps, share, blocks, tokens, chosen),
        *(buffers.offsets, budget.sink_tokens, budget.recent_tokens),
        *(*codes.stride()[:3], blocks.stride(0)),
        **level_limits(codes, workspace, buffers),
    )
