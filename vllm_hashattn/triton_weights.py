# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernel that estimates the weight of every token from codes of levels.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels. The
numbers are those of weighted_choice.py.

``_weigh`` splits each sequence into parts. Each writes the distances of its tokens that
are not always read, and all count together how often each distance occurs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_levels import MEMBERS, level_dots, rounded
from .triton_sequence import level_limits, rows_of, this_sequence

if TYPE_CHECKING:
    from .triton_workspace import LevelBuffers, Workspace

_NEAREST = tl.constexpr(640.0)
_FARTHEST = tl.constexpr(65535.0)


@triton.jit
def _weigh(
    codes: tl.tensor,
    asked: tl.tensor,
    steps: tl.tensor,
    offsets: tl.tensor,
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
    CHANNELS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    MAX_TOKENS: tl.constexpr,
    MAX_CHOSEN: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: sequences, KV heads, parts."""
    length, read, first, last, size = this_sequence(
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
    distances += pair * MAX_TOKENS
    counts += pair * BINS
    scale = tl.load(steps + pair * GROUP + member, mask=mine, other=0.0)
    offset = tl.load(offsets + pair * GROUP + member, mask=mine, other=0.0)
    scale = tl.broadcast_to(scale[None, :], (TILE, MEMBERS))
    offset = tl.broadcast_to(offset[None, :], (TILE, MEMBERS))
    begin = tl.program_id(2) * size
    for start in range(begin, tl.minimum(begin + size, last), TILE):
        token = start + tl.arange(0, TILE)
        free = (token >= first) & (token < last)
        row = rows_of(
            token,
            free,
            blocks,
            head * code_head,
            code_block,
            code_token,
            BLOCK_TOKENS,
            4,
        )
        dots = level_dots(codes + row, free, asked, GROUP, CHANNELS, TILE)
        # Rounds once, as the reference does.
        weights = tl.fma(dots.to(tl.float32), scale, -offset)
        best = tl.max(tl.where(mine[None, :], weights, float("-inf")), axis=1)
        far = tl.minimum(tl.maximum(-(best - _NEAREST), 0.0), _FARTHEST)
        found = rounded(far).to(tl.int32)
        tl.store(distances + token, found.to(tl.int16), mask=free)
        # Whole numbers, so that their order does not matter.
        tl.atomic_add(counts + found, 1, mask=free & (found < BINS), sem="relaxed")


def find_distances(
    codes: Tensor,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
    buffers: LevelBuffers,
) -> None:
    """Estimate the weights of tokens; writes distances and counts.

    Args:
        codes: Of the cache, int32 [blocks, kv heads, block_tokens, words].
        blocks: Block table, int32 [sequences, blocks].
        tokens: Length of each sequence, int32 [sequences].
        chosen: How many tokens of each are read on average, int32 [sequences].
        budget: Which tokens are always read.
        workspace: With room for the sequences.
        buffers: Of the workspace, with all that is known of the queries.
    """
    buffers.counts[: len(tokens)].zero_()
    sizes = level_limits(codes, workspace, buffers)
    _weigh[(len(tokens), codes.shape[1], sizes["PARTS"])](
        *(codes, buffers.asked, buffers.steps, buffers.offsets),
        *(blocks, tokens, chosen, workspace.distances, buffers.counts),
        *(budget.sink_tokens, budget.recent_tokens),
        *(*codes.stride()[:3], blocks.stride(0)),
        BINS=buffers.counts.shape[2],
        **sizes,
    )
