# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels that make codes: of new keys into the cache, and of queries.

Not run on a GPU: tested in Triton's interpreter, and compiled for GPUs without one.

Rules for the kernels of this package:

* Triton is imported by itself, because ``vllm.triton_utils`` is a placeholder where
  vLLM finds no GPU;
* codes are 32-bit words: bit ``j`` of a code is bit ``j % 32`` of word ``j // 32``,
  which on little-endian machines are the bytes of codes.py;
* parameters in capitals are constants of compilation; `int` is a 32-bit number, and
  offsets into the cache are 64-bit because they are multiples of a block's number.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Bits that one program makes: four words, the smallest code.
SEGMENT_BITS = tl.constexpr(128)
_SEGMENT_WORDS = tl.constexpr(4)
# Dimensions that are multiplied at once; divides heads of 64, 96 and 128.
_STEP = tl.constexpr(32)
_TILE_VECTORS = 32


@triton.jit
def _codes(
    vectors: tl.tensor,
    valid: tl.tensor,
    lines: tl.tensor,
    bias: tl.tensor,
    bits: int,
    segment: int,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Four words of the codes of the vectors at pointers `vectors`, int32 [TILE, 4]."""
    bit = segment * SEGMENT_BITS + tl.arange(0, SEGMENT_BITS)
    sums = tl.zeros((TILE, SEGMENT_BITS), tl.float32) + tl.load(bias + bit)[None, :]
    for start in range(0, HEAD_DIM, _STEP):
        dim = start + tl.arange(0, _STEP)
        part = tl.load(
            vectors[:, None] + dim[None, :], mask=valid[:, None], other=0.0
        ).to(tl.float32)
        line = tl.load(lines + dim[:, None] * bits + bit[None, :])
        # Not TF32: a sum near zero must fall on the side that the reference says.
        sums = tl.dot(part, line, sums, input_precision="ieee")
    ones = tl.reshape((sums >= 0.0).to(tl.int32), (TILE, _SEGMENT_WORDS, 32))
    # Bit 31 makes a word negative; no two bits share a place, so nothing carries.
    return tl.sum(ones << tl.arange(0, 32)[None, None, :], axis=2)


@triton.jit
def _ones(words: tl.tensor) -> tl.tensor:
    """Set bits of each word, int32.

    By sums of ever wider fields: the instruction of GPUs is in a library that the
    interpreter lacks, and a dozen operations for a word still take less time than
    reading it from memory. Unsigned, so that shifts bring in zeros.
    """
    x = words.to(tl.uint32, bitcast=True)
    x = (x & 0x55555555) + ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    return (x & 0x3F).to(tl.int32)


@triton.jit
def code_distances(
    stored: tl.tensor,
    valid: tl.tensor,
    asked: tl.tensor,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Bits in which codes at `stored` differ from all asked ones, int32 [TILE]."""
    sums = tl.zeros((TILE, _SEGMENT_WORDS), tl.int32)
    for start in tl.static_range(0, WORDS, _SEGMENT_WORDS):
        word = start + tl.arange(0, _SEGMENT_WORDS)
        codes = tl.load(stored[:, None] + word[None, :], mask=valid[:, None], other=0)
        for member in range(GROUP):
            one = tl.load(asked + member * WORDS + word)
            sums += _ones(codes ^ one[None, :])
    return tl.sum(sums, axis=1)


@triton.jit
def _encode_keys(
    keys: tl.tensor,
    slots: tl.tensor,
    key_map: tl.tensor,
    key_bias: tl.tensor,
    codes: tl.tensor,
    tokens: int,
    bits: int,
    key_token: int,
    key_head: int,
    code_block: int,
    code_head: int,
    code_token: int,
    BLOCK_TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: tiles of tokens, KV heads, segments."""
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1)
    segment = tl.program_id(2)
    slot = tl.load(slots + token, mask=token < tokens, other=-1).to(tl.int64)
    valid = slot >= 0
    words = _codes(
        keys + token.to(tl.int64) * key_token + head * key_head,
        valid,
        key_map + head * HEAD_DIM * bits,
        key_bias + head * bits,
        bits,
        segment,
        HEAD_DIM,
        TILE,
    )
    cell = (slot // BLOCK_TOKENS) * code_block + head * code_head
    cell += (slot % BLOCK_TOKENS) * code_token + segment * _SEGMENT_WORDS
    word = tl.arange(0, _SEGMENT_WORDS)
    tl.store(codes + cell[:, None] + word[None, :], words, mask=valid[:, None])


@triton.jit
def _encode_queries(
    query: tl.tensor,
    query_map: tl.tensor,
    query_bias: tl.tensor,
    codes: tl.tensor,
    sequences: int,
    bits: int,
    query_sequence: int,
    query_head: int,
    code_sequence: int,
    code_head: int,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: tiles of sequences, query heads, segments."""
    sequence = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1)
    segment = tl.program_id(2)
    valid = sequence < sequences
    words = _codes(
        query + sequence * query_sequence + head * query_head,
        valid,
        query_map + head * HEAD_DIM * bits,
        query_bias + head * bits,
        bits,
        segment,
        HEAD_DIM,
        TILE,
    )
    cell = sequence * code_sequence + head * code_head + segment * _SEGMENT_WORDS
    word = tl.arange(0, _SEGMENT_WORDS)
    tl.store(codes + cell[:, None] + word[None, :], words, mask=valid[:, None])


def encode_keys(
    keys: Tensor, slots: Tensor, key_map: Tensor, key_bias: Tensor, codes: Tensor
) -> None:
    """Write the codes of new keys into the cache.

    Args:
        keys: [tokens, kv heads, head_dim], the last dimension contiguous; tokens beyond
            those of `slots` are padding.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        key_map: float32 [kv heads, head_dim, bits], contiguous.
        key_bias: float32 [kv heads, bits], contiguous.
        codes: Of the cache, int32 [blocks, kv heads, block_tokens, words].
    """
    tokens = len(slots)
    if not tokens:
        return
    kv_heads, head_dim, bits = key_map.shape
    _encode_keys[(triton.cdiv(tokens, _TILE_VECTORS), kv_heads, bits // 128)](
        keys,
        slots,
        key_map,
        key_bias,
        codes,
        tokens,
        bits,
        *keys.stride()[:2],
        *codes.stride()[:3],
        BLOCK_TOKENS=codes.shape[2],
        HEAD_DIM=head_dim,
        TILE=_TILE_VECTORS,
    )


def encode_queries(
    query: Tensor, query_map: Tensor, query_bias: Tensor, codes: Tensor
) -> None:
    """Write the codes of queries.

    Args:
        query: [sequences, query heads, head_dim], the last dimension contiguous.
        query_map: float32 [query heads, head_dim, bits], contiguous.
        query_bias: float32 [query heads, bits], contiguous.
        codes: int32 [sequences, query heads, words], the last dimension contiguous.
    """
    heads, head_dim, bits = query_map.shape
    sequences = len(query)
    _encode_queries[(triton.cdiv(sequences, _TILE_VECTORS), heads, bits // 128)](
        query,
        query_map,
        query_bias,
        codes,
        sequences,
        bits,
        *query.stride()[:2],
        *codes.stride()[:2],
        HEAD_DIM=head_dim,
        TILE=_TILE_VECTORS,
    )
