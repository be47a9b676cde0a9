# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernel that compares codes of signs, the first of three that choose tokens.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.

``_scan`` splits each sequence into parts. Each writes the distances of its tokens and
counts how often each distance occurs among those not always read. How that becomes a
choice is in triton_select.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from .budget import Budget
from .triton_encode import code_distances
from .triton_sequence import limits, rows_of, this_sequence

if TYPE_CHECKING:
    from .triton_workspace import SignBuffers, Workspace


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
    length, read, first, last, size = this_sequence(
        tokens, chosen, sink, recent, MAX_TOKENS, MAX_CHOSEN, PARTS, TILE
    )
    if read >= length:
        return
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.program_id(2) * size
    pair = sequence.to(tl.int64) * KV_HEADS + head
    asked += pair * GROUP * WORDS
    blocks += sequence * block_sequence
    distances += pair * MAX_TOKENS
    counts += (pair * PARTS + tl.program_id(2)) * (GROUP * WORDS * 32 + 1)
    for start in range(begin, tl.minimum(begin + size, length), TILE):
        token = start + tl.arange(0, TILE)
        valid = token < length
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
        found = code_distances(codes + row, valid, asked, GROUP, WORDS, TILE)
        tl.store(distances + token, found.to(tl.int16), mask=valid)
        free = (token >= first) & (token < last)
        # Atomic and not tl.histogram, which keeps all bins in registers: with 16 heads
        # and 512 bits these are 8193. Only this program adds to these counts.
        tl.atomic_add(counts + found, 1, mask=free, sem="relaxed")


def scan(
    codes: Tensor,
    asked: Tensor,
    blocks: Tensor,
    tokens: Tensor,
    chosen: Tensor,
    budget: Budget,
    workspace: Workspace,
    buffers: SignBuffers,
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
        buffers: Of the workspace.
    """
    sequences, heads, words = asked.shape
    _, kv_heads, parts, _ = buffers.counts.shape
    buffers.counts[:sequences].zero_()
    _scan[(sequences, kv_heads, parts)](
        *(codes, asked, blocks, tokens, chosen),
        *(workspace.distances, buffers.counts),
        *(budget.sink_tokens, budget.recent_tokens),
        *codes.stride()[:3],
        blocks.stride(0),
        GROUP=heads // kv_heads,
        WORDS=words,
        BLOCK_TOKENS=codes.shape[2],
        **limits(workspace),
    )
