# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""What all Triton kernels of a decode step know: sequences, and where their rows are.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from .triton_workspace import LevelBuffers, Workspace

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
def this_sequence(
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
def rows_of(
    token: tl.tensor,
    valid: tl.tensor,
    blocks: tl.tensor,
    head: int,
    row_block: int,
    row_token: int,
    BLOCK_TOKENS: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> tl.tensor:
    """Where in the cache the rows of tokens begin, int64, multiples of ALIGNED.

    With 16 bytes to these, a load fetches 16 bytes at once.
    """
    block = tl.load(blocks + token // BLOCK_TOKENS, mask=valid, other=0).to(tl.int64)
    row = block * row_block + (token % BLOCK_TOKENS) * row_token + head
    return tl.multiple_of(row, ALIGNED)


def limits(workspace: Workspace) -> dict[str, int]:
    """Return the constants of kernels that choose: what there is room for."""
    _, kv_heads, max_tokens = workspace.distances.shape
    return {
        "KV_HEADS": kv_heads,
        "MAX_TOKENS": max_tokens,
        "MAX_CHOSEN": workspace.max_chosen,
        "PARTS": workspace.tops.shape[2],
        "TILE": _TILE,
    }


def level_limits(
    codes: Tensor, workspace: Workspace, buffers: LevelBuffers
) -> dict[str, int]:
    """Return them with the sizes of codes of levels.

    Args:
        codes: Of the cache, int32 [blocks, kv heads, block_tokens, words].
        workspace: With room for the sequences.
        buffers: Of the workspace.
    """
    _, heads, channels = buffers.asked.shape
    return {
        "GROUP": heads // codes.shape[1],
        "CHANNELS": channels,
        "BLOCK_TOKENS": codes.shape[2],
        **limits(workspace),
    }
