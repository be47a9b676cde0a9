# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
# mypy: disable-error-code="import-untyped,untyped-decorator"
"""Triton kernels for codes of levels: of new keys into the cache, and of queries.

Not run on a GPU; see triton_encode.py for that and for the rules of kernels.

The rules of levels are those of scorer_levels.py. Seen as 32-bit words, a code holds
eight levels a word, the first in the lowest bits, and place ``p`` in it is half
``p % 2`` of byte ``p // 2``. Channels of queries are kept in the order of places.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Levels that one program makes and that are multiplied at once: four words.
_SEGMENT = tl.constexpr(32)
_SEGMENT_WORDS = tl.constexpr(4)
# Dimensions that are multiplied at once; divides heads of 64, 96 and 128.
_STEP = tl.constexpr(32)
# Columns of the smallest matrix that tensor cores multiply; query heads fill some.
MEMBERS = tl.constexpr(16)
_HIGHEST_LEVEL = tl.constexpr(15.0)
_MOST_ASKED = tl.constexpr(127.0)
_LEAST_UNIT = tl.constexpr(1.1754943508222875e-38)
# Octaves of a logit are its multiples of 1 / log(2); see weighted_choice.py.
_STEPS_PER_NAT = tl.constexpr(32 * 1.4426950408889634)
_STEP_PARTS = tl.constexpr(1048576.0)
# Added and taken away again, it rounds numbers from 0 to itself to whole ones, ties to
# even: the instruction of GPUs is in a library that the interpreter lacks.
_ROUNDS = tl.constexpr(8388608.0)
_TILE_VECTORS = 32


@triton.jit
def rounded(x: tl.tensor) -> tl.tensor:
    """Nearest whole numbers, ties to even, of any that are not negative."""
    return tl.where(x < _ROUNDS, (x + _ROUNDS) - _ROUNDS, x)


@triton.jit
def rounded_signed(x: tl.tensor) -> tl.tensor:
    """Likewise, of any numbers."""
    return tl.where(x < 0.0, -rounded(-x), rounded(x))


@triton.jit
def _projected(
    vectors: tl.tensor,
    valid: tl.tensor,
    lines: tl.tensor,
    place: tl.tensor,
    CHANNELS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Channels at places of the vectors at pointers, float32 [TILE, WIDTH]."""
    channel = place // 2 + place % 2 * (CHANNELS // 2)
    sums = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, HEAD_DIM, _STEP):
        dim = start + tl.arange(0, _STEP)
        part = tl.load(
            vectors[:, None] + dim[None, :], mask=valid[:, None], other=0.0
        ).to(tl.float32)
        line = tl.load(
            lines + dim[:, None] * CHANNELS + channel[None, :],
            mask=place[None, :] < CHANNELS,
            other=0.0,
        )
        # Not TF32: levels are to be those of the reference.
        sums = tl.dot(part, line, sums, input_precision="ieee")
    return sums


@triton.jit
def _encode_levels(
    keys: tl.tensor,
    slots: tl.tensor,
    key_map: tl.tensor,
    key_bias: tl.tensor,
    codes: tl.tensor,
    tokens: int,
    key_token: int,
    key_head: int,
    code_block: int,
    code_head: int,
    code_token: int,
    BLOCK_TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: tiles of tokens, KV heads, segments."""
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1)
    segment = tl.program_id(2)
    slot = tl.load(slots + token, mask=token < tokens, other=-1).to(tl.int64)
    valid = slot >= 0
    place = segment * _SEGMENT + tl.arange(0, _SEGMENT)
    sums = _projected(
        keys + token.to(tl.int64) * key_token + head * key_head,
        valid,
        key_map + head * HEAD_DIM * CHANNELS,
        place,
        CHANNELS,
        HEAD_DIM,
        TILE,
        _SEGMENT,
    )
    channel = place // 2 + place % 2 * (CHANNELS // 2)
    sums += tl.load(key_bias + head * CHANNELS + channel)[None, :]
    levels = tl.minimum(tl.maximum(tl.floor(sums), 0.0), _HIGHEST_LEVEL).to(tl.int32)
    levels = tl.reshape(levels, (TILE, _SEGMENT_WORDS, 8))
    # No two levels share a bit, so nothing carries.
    words = tl.sum(levels << (4 * tl.arange(0, 8))[None, None, :], axis=2)
    cell = (slot // BLOCK_TOKENS) * code_block + head * code_head
    cell += (slot % BLOCK_TOKENS) * code_token + segment * _SEGMENT_WORDS
    word = tl.arange(0, _SEGMENT_WORDS)
    tl.store(codes + cell[:, None] + word[None, :], words, mask=valid[:, None])


@triton.jit
def _ask(
    query: tl.tensor,
    query_map: tl.tensor,
    asked: tl.tensor,
    steps: tl.tensor,
    sequences: int,
    query_sequence: int,
    query_head: int,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROOM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Grid: tiles of sequences, query heads."""
    sequence = tl.program_id(0) * TILE + tl.arange(0, TILE)
    head = tl.program_id(1)
    valid = sequence < sequences
    place = tl.arange(0, ROOM)
    sums = _projected(
        query + sequence * query_sequence + head * query_head,
        valid,
        query_map + head * HEAD_DIM * CHANNELS,
        place,
        CHANNELS,
        HEAD_DIM,
        TILE,
        ROOM,
    )
    unit = tl.div_rn(tl.max(tl.abs(sums), axis=1), _MOST_ASKED)
    safe = tl.broadcast_to(tl.maximum(unit, _LEAST_UNIT)[:, None], (TILE, ROOM))
    channels = rounded_signed(tl.div_rn(sums, safe)).to(tl.int8)
    row = sequence * HEADS + head
    tl.store(
        asked + row[:, None] * CHANNELS + place[None, :],
        channels,
        mask=valid[:, None] & (place[None, :] < CHANNELS),
    )
    parts = rounded(unit * _STEPS_PER_NAT * _STEP_PARTS)
    tl.store(steps + row, parts / _STEP_PARTS, mask=valid)


@triton.jit
def level_dots(
    stored: tl.tensor,
    valid: tl.tensor,
    asked: tl.tensor,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Products of codes at `stored` with all asked ones, int32 [TILE, MEMBERS]."""
    member = tl.arange(0, MEMBERS)
    sums = tl.zeros((TILE, MEMBERS), tl.int32)
    for start in tl.static_range(0, CHANNELS, _SEGMENT):
        word = start // 8 + tl.arange(0, _SEGMENT_WORDS)
        words = tl.load(stored[:, None] + word[None, :], mask=valid[:, None], other=0)
        levels = (words[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]) & 15
        levels = tl.reshape(levels, (TILE, _SEGMENT)).to(tl.int8)
        place = start + tl.arange(0, _SEGMENT)
        channels = tl.load(
            asked + member[None, :] * CHANNELS + place[:, None],
            mask=member[None, :] < GROUP,
            other=0,
        )
        sums = tl.dot(levels, channels, sums)
    return sums


def encode_levels(
    keys: Tensor, slots: Tensor, key_map: Tensor, key_bias: Tensor, codes: Tensor
) -> None:
    """Write the codes of new keys into the cache.

    Args:
        keys: [tokens, kv heads, head_dim], the last dimension contiguous; tokens beyond
            those of `slots` are padding.
        slots: ``block * block_tokens + offset`` of each token, int64 [tokens]; below 0
            for padding, which is skipped.
        key_map: float32 [kv heads, head_dim, channels], contiguous.
        key_bias: float32 [kv heads, channels], contiguous.
        codes: Of the cache, int32 [blocks, kv heads, block_tokens, words].
    """
    tokens = len(slots)
    if not tokens:
        return
    kv_heads, head_dim, channels = key_map.shape
    _encode_levels[(triton.cdiv(tokens, _TILE_VECTORS), kv_heads, channels // 32)](
        *(keys, slots, key_map, key_bias, codes, tokens),
        *keys.stride()[:2],
        *codes.stride()[:3],
        BLOCK_TOKENS=codes.shape[2],
        CHANNELS=channels,
        HEAD_DIM=head_dim,
        TILE=_TILE_VECTORS,
    )


def ask(query: Tensor, query_map: Tensor, asked: Tensor, steps: Tensor) -> None:
    """Write the channels of queries, in units, and how many steps a unit is.

    Args:
        query: [sequences, query heads, head_dim], the last dimension contiguous.
        query_map: float32 [query heads, head_dim, channels], contiguous.
        asked: int8 [sequences, query heads, channels], contiguous.
        steps: float32 [sequences, query heads], contiguous.
    """
    heads, head_dim, channels = query_map.shape
    sequences = len(query)
    _ask[(triton.cdiv(sequences, _TILE_VECTORS), heads)](
        *(query, query_map, asked, steps, sequences),
        *query.stride()[:2],
        HEADS=heads,
        CHANNELS=channels,
        ROOM=triton.next_power_of_2(channels),
        HEAD_DIM=head_dim,
        TILE=_TILE_VECTORS,
    )
